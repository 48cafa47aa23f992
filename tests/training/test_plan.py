import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from phosphene.artefact_writing import publish
from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import (
    ArtefactError,
    ArtefactMismatch,
    CorpusError,
    EncoderMissing,
    InputError,
    PhospheneError,
    SettingError,
    SiteError,
)
from phosphene.manifest import MANIFEST_NAME, partial_path
from phosphene.sae import SparseAutoencoder, save_sae
from phosphene.selection import TopK
from tests.families import write_encoder
from tests.training.corpora import write_corpus
from tests.training.recorded_progress import RecordedProgress
from training.execution import Execution
from training.harvest_settings import HarvestSettings
from training.plan import FitRequest, Sources, plan_fit, plan_fits
from training.reports import RunReports
from training.requests import SaeRequest, TrainingRequest
from training.variants import VariantName


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
    [
        (b"", "holds 0 names"),
        (b"a\nb\na\n", "more than once"),
        (b"\n".join(b"%d" % (name % 99_999) for name in range(100_000)), "more than once"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ],
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


def test_a_variant_without_k_gets_the_widest_codes(request_: FitRequest) -> None:
    sae = SaeRequest(expansion=8, variant=VariantName.RELU)
    limits = plan_fit(dataclasses.replace(request_, sae=sae)).limits
    assert (limits.image_code_limit, limits.token_code_limit) == (64, 256)
    sae = SaeRequest(expansion=1024, variant=VariantName.JUMPRELU)
    assert plan_fit(dataclasses.replace(request_, sae=sae)).limits.token_code_limit == 4096


def test_places_that_cannot_be_written_are_refused_before_any_image_is_read(
    request_: FitRequest, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    taken = tmp_path / "thesis.txt" / "b"
    for changes in (
        {"out": taken},
        {"work": taken},
        {"reports": RunReports(journal=taken)},
        {"reports": RunReports(tensorboard=taken)},
        {"reports": RunReports(metrics_file=taken)},
    ):
        progress = RecordedProgress()
        with pytest.raises(SettingError, match="thesis.txt' is no folder; choose another place"):
            plan_fit(dataclasses.replace(request_, **changes), progress)
        assert progress.advances == []


def test_a_place_where_no_file_can_be_replaced_is_refused_before_any_image_is_read(
    request_: FitRequest, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for reports in (RunReports(metrics_file=tmp_path / "pipe"), RunReports(journal=tmp_path / "pipe")):
        progress = RecordedProgress()
        with pytest.raises(SettingError, match="pipe' is no regular file, which alone can be replaced whole"):
            plan_fit(dataclasses.replace(request_, reports=reports), progress)
        assert progress.advances == []


def test_nothing_else_goes_into_the_folder_that_the_bundle_alone_fills(request_: FitRequest, tmp_path: Path) -> None:
    out = request_.out
    (tmp_path / "link").symlink_to(tmp_path)
    for changes, option in (
        ({"work": out}, "--work"),
        ({"work": out / "work"}, "--work"),
        ({"work": partial_path(out)}, "--work"),
        ({"reports": RunReports(journal=out / "journal.jsonl")}, "--journal"),
        ({"reports": RunReports(journal=tmp_path / "link" / "bundle" / "journal.jsonl")}, "--journal"),
        ({"reports": RunReports(metrics_file=out / "run.prom")}, "--metrics-file"),
        ({"reports": RunReports(tensorboard=out / "curves")}, "--tensorboard"),
        ({"reports": RunReports(tensorboard=tmp_path)}, "--tensorboard"),
    ):
        progress = RecordedProgress()
        with pytest.raises(SettingError, match=f"{option} would write to .* which the bundle alone fills"):
            plan_fit(dataclasses.replace(request_, **changes), progress)
        assert progress.advances == []
    plan_fit(dataclasses.replace(request_, name="other", reports=RunReports(tensorboard=tmp_path)))


@pytest.mark.parametrize("name", ["..", "../beside", "/elsewhere", "a/b"])
def test_a_name_leads_the_curves_nowhere_else(request_: FitRequest, tmp_path: Path, name: str) -> None:
    reports = RunReports(tensorboard=tmp_path / "curves")
    with pytest.raises(SettingError, match="--name is .*, and no folder in --tensorboard can be called so"):
        plan_fit(dataclasses.replace(request_, name=name, reports=reports))
    plan_fit(dataclasses.replace(request_, name=name))


def test_a_curve_and_figures_do_not_replace_each_other(request_: FitRequest, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    reports = RunReports(journal=tmp_path / "run", metrics_file=tmp_path / "link" / "run")
    with pytest.raises(SettingError, match="--journal and --metrics-file are one file"):
        plan_fit(dataclasses.replace(request_, reports=reports))


def test_names_that_no_file_of_ours_can_hold_are_refused_before_any_image_is_read(request_: FitRequest) -> None:
    progress = RecordedProgress()
    broken = os.fsdecode(b"caf\xe9")
    for changes, option in (({"name": broken}, "--name"), ({"out": request_.out.with_name(broken)}, "--out")):
        with pytest.raises(SettingError, match=rf"{option} .*caf.* is not UTF-8"):
            plan_fit(dataclasses.replace(request_, **changes), progress)
    assert progress.advances == []


def test_a_place_where_no_bundle_can_be_made_is_refused_before_any_image_is_read(
    request_: FitRequest, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "thesis").mkdir()
    publish(tmp_path / "flags", kind="flags", inputs={}, config={}, write=lambda folder: None)
    for changes, error, message in (
        ({"out": tmp_path / "link"}, SettingError, "link' is a symbolic link"),
        ({"out": tmp_path / "thesis"}, ArtefactMismatch, "thesis' exists and is no bundle: choose another --out"),
        ({"out": tmp_path / "flags" / "b"}, SettingError, "flags', which is an artefact"),
        ({"work": tmp_path / "flags" / "w"}, SettingError, "flags', which is an artefact"),
    ):
        progress = RecordedProgress()
        with pytest.raises(error, match=message):
            plan_fit(dataclasses.replace(request_, **changes), progress)
        assert progress.advances == []


def test_a_disk_too_full_is_refused_before_any_image_is_read(request_: FitRequest) -> None:
    progress = RecordedProgress()
    with pytest.raises(SettingError, match=r"has 0\.01 GB left; .* GB there: make room.* or fewer --neurons$"):
        plan_fits([request_], progress, free_bytes=lambda folder: 10_000_000)
    assert progress.advances == []
    request_.out.mkdir()
    (request_.out / MANIFEST_NAME).touch()  # What is finished takes no room.
    plan_fits([request_], free_bytes=lambda folder: 0)


def test_several_share_corpus_encoder_and_seed_of_the_data(request_: FitRequest, tmp_path: Path) -> None:
    first = dataclasses.replace(request_, work=tmp_path / "work")
    second = dataclasses.replace(
        first,
        out=tmp_path / "second",
        sae=SaeRequest(k=2, expansion=4),
        site=Site(block=2, tokens=Tokens.PATCHES),
        training=TrainingRequest(seed=9),
    )
    progress = RecordedProgress()
    plans = plan_fits([first, second], progress)
    assert [plan.data_seed for plan in plans] == [0, 0]
    assert [plan.training.seed for plan in plans] == [0, 9]
    assert [plan.sae.neuron_count for plan in plans] == [64, 128]
    assert [plan.harvest.tokens_per_image for plan in plans] == [1, 16]
    assert plans[0].config == plan_fit(first).config
    assert max(done for _, done, _ in progress.advances) == 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"harvest": HarvestSettings(image_limit=50)}, "'second' and 'bundle' differ in harvest.image_limit"),
        ({"execution": Execution(thread_count=2)}, "differ in execution.thread_count: 2 -> 1"),
        ({"work": None}, "differ in work:"),
        ({"out": "bundle"}, "have the same --out"),
        ({"training": TrainingRequest(batch_rows=8)}, "share one --batch; 'second' asks for 8, the first for 16"),
        ({"reports": RunReports(journal=Path("curve"))}, "--journal 'curve' is given to 2 runs"),
    ],
)
def test_several_that_share_too_little_or_too_much_are_refused(
    request_: FitRequest, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first = dataclasses.replace(request_, work=tmp_path / "work", reports=RunReports(journal=Path("curve")))
    out = tmp_path / changes.get("out", "second")
    second = dataclasses.replace(first, **({"reports": RunReports()} | changes | {"out": out}))
    with pytest.raises(SettingError, match=message):
        plan_fits([first, second])


def write_sae(folder: Path, *, width: int, neuron_count: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(
        encoder_weight=torch.randn(width, neuron_count, generator=generator),
        encoder_bias=torch.zeros(neuron_count),
        directions=torch.nn.functional.normalize(torch.randn(neuron_count, width, generator=generator), dim=1),
        decoder_bias=torch.zeros(width),
        selection=TopK(k=4),
    )
    folder.mkdir()
    save_sae(folder, sae, metadata={})
    return folder


def test_what_to_go_on_from_must_fit_and_decides_the_configuration(request_: FitRequest, tmp_path: Path) -> None:
    fitting = with_sources(request_, initial=write_sae(tmp_path / "fitting", width=32, neuron_count=64))
    plan = plan_fit(fitting)
    assert plan.initial is not None
    assert plan.config["initial"] == plan.initial.digest
    assert plan_fit(request_).config["initial"] is None
    wide = write_sae(tmp_path / "wide", width=48, neuron_count=64)
    with pytest.raises(SettingError, match="--initial reads residuals of width 48, and the site has width 32"):
        plan_fit(with_sources(request_, initial=wide))
    large = write_sae(tmp_path / "large", width=32, neuron_count=96)
    with pytest.raises(SettingError, match="--initial has 96 neurons, and 64 are asked for: give --neurons 96"):
        plan_fit(with_sources(request_, initial=large))
    with pytest.raises(ArtefactError, match="no SAE folder or file at"):
        plan_fit(with_sources(request_, initial=tmp_path / "none"))
