import dataclasses
from pathlib import Path
from typing import Any

import pytest

from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import CorpusError, EncoderMissing, InputError, PhospheneError, SettingError, SiteError
from tests.families import write_encoder
from tests.training.corpora import write_corpus
from training.plan import FitRequest, Sources, plan_fit
from training.settings import Execution, HarvestSettings, SaeRequest, TrainingRequest


@pytest.fixture
def request_(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> FitRequest:
    return FitRequest(
        sources=Sources(corpus=str(corpus_folder), encoder=str(encoder_folder)),
        site=Site(block=1, tokens=Tokens.CLS),
        sae=SaeRequest(k=4, expansion=2),
        out=tmp_path / "bundle",
    )


def with_sources(request: FitRequest, **changes: Any) -> FitRequest:
    return dataclasses.replace(request, sources=dataclasses.replace(request.sources, **changes))


def test_what_was_left_open_is_fixed(request_: FitRequest) -> None:
    plan = plan_fit(request_)
    assert plan.sae.neuron_count == 64
    assert plan.training.batch_rows == 16
    assert plan.vocabulary == ("blue", "green", "red", "white")
    assert plan.work == request_.out.with_name("bundle.work")
    assert (plan.limits.image_code_limit, plan.limits.token_code_limit) == (64, 64)


def test_the_limits_leave_room_for_a_large_k(request_: FitRequest) -> None:
    plan = plan_fit(dataclasses.replace(request_, sae=SaeRequest(k=100, expansion=8)))
    assert (plan.limits.image_code_limit, plan.limits.token_code_limit) == (100, 200)


def test_labels_that_the_text_tower_cannot_read_are_no_vocabulary(request_: FitRequest, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 16)
    (corpus / "white").rename(corpus / " ".join(["white"] * 40))
    assert plan_fit(with_sources(request_, corpus=str(corpus))).vocabulary == ("blue", "green", "red")
    encoder = write_encoder(tmp_path / "clip", Family.CLIP)
    for path in encoder.glob("tokenizer*"):
        path.unlink()
    assert plan_fit(with_sources(request_, encoder=str(encoder))).vocabulary == ()


def test_names_that_the_text_tower_cannot_read_are_refused_before_any_work(
    request_: FitRequest, tmp_path: Path
) -> None:
    file = tmp_path / "names.txt"
    file.write_text("red square\n" + "very " * 40 + "long\n", encoding="utf-8")
    with pytest.raises(InputError, match="at most 32"):
        plan_fit(with_sources(request_, vocabulary=file))


def test_the_vocabulary_can_come_from_a_file(request_: FitRequest, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("red square\n\n  blue ring \n", encoding="utf-8")
    assert plan_fit(with_sources(request_, vocabulary=file)).vocabulary == ("red square", "blue ring")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds 0 names"), (b"a\nb\na\n", "more than once"), (b"\xff\xfe\x00", "cannot be read as UTF-8")],
)
def test_a_useless_vocabulary_is_refused(request_: FitRequest, tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(SettingError, match=message):
        plan_fit(with_sources(request_, vocabulary=file))


def test_a_missing_vocabulary_is_refused(request_: FitRequest, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="give a file with one name per line"):
        plan_fit(with_sources(request_, vocabulary=tmp_path / "none.txt"))


def test_a_vocabulary_is_refused_where_nothing_can_read_it(request_: FitRequest, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "dino", Family.DINOV2)
    assert plan_fit(with_sources(request_, encoder=str(encoder))).vocabulary == ()
    file = tmp_path / "names.txt"
    file.write_text("red\n", encoding="utf-8")
    with pytest.raises(SettingError, match="no text tower"):
        plan_fit(with_sources(request_, encoder=str(encoder), vocabulary=file))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sae": SaeRequest(k=65, neuron_count=64)}, SettingError, "--k is 65; the limit .* 64"),
        ({"sae": SaeRequest(k=4, expansion=0)}, SettingError, "--expansion is 0; the least is 1"),
        ({"training": TrainingRequest(step_count=0)}, SettingError, "--steps is 0"),
        ({"execution": Execution(thread_count=0)}, SettingError, "--threads is 0; it must be from 1 to 1024"),
        ({"execution": Execution(device="tpu")}, SettingError, "device 'tpu' is not one; use cpu"),
        ({"execution": Execution(device="cuda:63")}, SettingError, "device 'cuda:63' is not here.*use cpu"),
        ({"harvest": HarvestSettings(image_limit=15)}, CorpusError, "15 images are too few .* least is 16.*--limit"),
        ({"site": Site(block=3, tokens=Tokens.CLS)}, SiteError, "block 3 does not exist; .* 0 to 2"),
    ],
    ids=["k", "expansion", "steps", "threads", "device", "cuda", "limit", "block"],
)
def test_what_cannot_be_done_is_refused(
    request_: FitRequest, changes: dict[str, Any], error: type[PhospheneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_fit(dataclasses.replace(request_, **changes))


def test_missing_sources_are_refused(request_: FitRequest, tmp_path: Path) -> None:
    with pytest.raises(EncoderMissing, match="no encoder folder"):
        plan_fit(with_sources(request_, encoder=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no image"):
        plan_fit(with_sources(request_, corpus=str(tmp_path / "empty")))
