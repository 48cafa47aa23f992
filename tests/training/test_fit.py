import dataclasses
import gc
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.durable_files import hold_folder
from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, CorpusError, NumericError, SettingError
from phosphene.pipeline import open_bundle
from phosphene.selection import JumpReLU, TopK
from tests.families import write_encoder
from tests.training.corpora import corrupt, write_corpus
from tests.training.recorded_progress import Killed, RecordedProgress
from training.execution import Execution
from training.fit import FitRefused, FitResult, fit, fit_many
from training.gate import NotPublished
from training.journal import read_journal
from training.plan import FitRequest, Sources
from training.progress import Advance, SilentProgress
from training.reading import ReadingSettings
from training.reports import RunReports
from training.requests import SaeRequest, TrainingRequest
from training.streaming import StreamedActivations
from training.variants import VariantName


def make_request(corpus: Path, encoder: Path, out: Path, **changes: Any) -> FitRequest:
    request = FitRequest(
        sources=Sources(corpus=str(corpus), encoder=str(encoder)),
        site=Site(block=1, tokens=Tokens.CLS),
        sae=SaeRequest(k=4, neuron_count=48, variant=VariantName.TOPK),
        training=TrainingRequest(step_count=60),
        out=out,
    )
    return dataclasses.replace(request, **changes)


def sae_of(variant: VariantName) -> SaeRequest:
    has_k = variant not in (VariantName.RELU, VariantName.JUMPRELU)
    return SaeRequest(k=4 if has_k else None, neuron_count=48, variant=variant)


@pytest.mark.parametrize("variant", list(VariantName))
def test_a_bundle_comes_out_that_encodes_and_says_how_good_it_is(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, variant: VariantName
) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", sae=sae_of(variant))
    result = fit(request, SilentProgress())
    assert result.is_new
    bundle = result.bundle
    assert isinstance(bundle.sae.selection, TopK if variant is VariantName.TOPK else JumpReLU)
    assert bundle.vocabulary is not None
    assert bundle.vocabulary.names == ("blue", "green", "red", "white")
    quality = bundle.training["held_out_quality"]
    assert 0 < quality["fvu"] < 0.9
    assert quality["row_count"] == bundle.training["held_out_image_count"] == 24
    assert quality["cut_share"] == bundle.training["skipped_step_count"] == 0
    is_calibrated = variant in (VariantName.BATCHTOPK, VariantName.MATRYOSHKA)
    assert (bundle.training["calibration"] is not None) == is_calibrated
    codes = open_bundle(bundle.path).encode(sorted(corpus_folder.rglob("*.png"))[:8])
    assert all(len(code) > 0 for code in codes)


def test_the_curve_stays_and_the_checkpoints_go(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress())
    (run,) = (tmp_path / "b.work" / "training").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["journal.jsonl", "run.json"]
    assert [line["step"] for line in read_journal(run / "journal.jsonl", run=run.name)] == [10, 20, 30, 40, 50, 60]
    assert json.loads((run / "run.json").read_bytes())["outcome"] == "published"


def test_reports_go_where_asked(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    reports = RunReports(
        journal=tmp_path / "curve.jsonl", tensorboard=tmp_path / "board", metrics_file=tmp_path / "training.prom"
    )
    fit(make_request(corpus_folder, encoder_folder, tmp_path / "b", reports=reports, name="n"), SilentProgress())
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 6
    assert len(list((tmp_path / "board" / "n").iterdir())) == 1
    assert 'phosphene_training_step{run="n"} 60.0' in (tmp_path / "training.prom").read_text()


@pytest.mark.parametrize("family", list(Family))
def test_every_family_can_be_fitted(corpus_folder: Path, tmp_path: Path, family: Family) -> None:
    encoder = write_encoder(tmp_path / "encoder", family)
    site = Site(block=1, tokens=Tokens.MEAN if family is Family.SIGLIP else Tokens.CLS)
    request = make_request(corpus_folder, encoder, tmp_path / "b", site=site)
    assert fit(request, SilentProgress()).bundle.training["held_out_quality"]["fvu"] < 1


def test_patch_tokens_can_be_fitted(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    site = Site(block=2, tokens=Tokens.PATCHES)
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", site=site)
    training = fit(request, SilentProgress()).bundle.training
    assert training["held_out_quality"]["row_count"] == 24 * 16


def test_a_finished_bundle_is_left_alone(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    first = fit(request, SilentProgress())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")}
    again = fit(request, SilentProgress())
    assert not again.is_new
    assert again.bundle.id == first.bundle.id
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")} == stamps


def test_equal_requests_make_equal_bundles_and_other_seeds_other_codes(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    requests = [
        make_request(corpus_folder, encoder_folder, tmp_path / folder / "b", training=training)
        for folder, training in (
            ("1", TrainingRequest(step_count=40)),
            ("2", TrainingRequest(step_count=40)),
            ("3", TrainingRequest(step_count=40, seed=5)),
        )
    ]
    first, second, other = (fit(request, SilentProgress()).bundle for request in requests)
    assert first.id == second.id
    assert first.code_id != other.code_id


def test_another_configuration_at_the_same_place_is_refused_by_name(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    bundle = fit(request, SilentProgress()).bundle
    other = dataclasses.replace(request, sae=dataclasses.replace(request.sae, k=3), training=TrainingRequest(seed=1))
    with pytest.raises(ArtefactMismatch, match=r"sae\.variant\.k: 4 -> 3\n(.*\n)*.*training\.seed: 0 -> 1"):
        fit(other, SilentProgress())
    assert fit(request, SilentProgress()).bundle.id == bundle.id


def test_changed_images_under_the_same_names_are_another_configuration(encoder_folder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 40)
    request = make_request(corpus, encoder_folder, tmp_path / "b")
    fit(request, SilentProgress())
    first, second = sorted(corpus.rglob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(ArtefactMismatch, match=r"inputs\.corpus"):
        fit(request, SilentProgress())


def test_two_fits_of_one_bundle_do_not_meet(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.work").mkdir()
    with hold_folder(tmp_path / "b.work"), pytest.raises(SettingError, match="another process works in 'b.work'"):
        fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert not (tmp_path / "b").exists()


def test_something_else_at_the_same_place_is_left_alone(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtefactMismatch, match="is no bundle"):
        fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_a_damaged_bundle_is_refused(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    fit(request, SilentProgress())
    file = tmp_path / "b" / "sae" / "sae_weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(ArtefactDamaged, match="remove it and run its job again"):
        fit(request, SilentProgress())


def test_a_leftover_partial_blocks_nothing(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.partial" / "sae").mkdir(parents=True)
    (tmp_path / "b.partial" / "sae" / "junk").write_text("junk")
    bundle = fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress()).bundle
    assert "sae/junk" not in bundle.manifest.files


def test_unreadable_images_are_counted(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 40)
    corrupt(folder, 11)
    bundle = fit(make_request(folder, encoder_folder, tmp_path / "b"), SilentProgress()).bundle
    assert bundle.training["quarantined"] == [{"row": 11, "error": "ImageUnreadable"}]
    assert bundle.training["image_count"] == 39


def test_a_batch_of_everything_shrinks_with_what_cannot_be_read(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 41)
    corrupt(folder, 11)
    training = TrainingRequest(step_count=20, batch_rows=4096)
    bundle = fit(make_request(folder, encoder_folder, tmp_path / "b", training=training), SilentProgress()).bundle
    assert bundle.training["training_quality"]["row_count"] < bundle.training["plan"]["training"]["batch_rows"]


def test_a_corpus_of_unreadable_images_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 20)
    for position in range(10):
        corrupt(folder, position)
    with pytest.raises(CorpusError, match="only 10 images of the corpus can be read"):
        fit(make_request(folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert not (tmp_path / "b").exists()


def test_what_fails_the_gate_is_not_published(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(
        corpus_folder, encoder_folder, tmp_path / "b", training=TrainingRequest(step_count=40, learning_rate=50.0)
    )
    with pytest.raises((NotPublished, NumericError), match="diverged"):
        fit(request, SilentProgress())
    assert not (tmp_path / "b").exists()


def test_fit_computes_with_the_threads_asked_for(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", execution=Execution(thread_count=2))
    try:
        bundle = fit(request, SilentProgress()).bundle
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert bundle.training["execution"] == {"device": "cpu", "thread_count": 2}


def test_an_unfinished_run_of_another_configuration_is_named_and_left_alone(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    whole = fit(make_request(corpus_folder, encoder_folder, tmp_path / "whole" / "b"), SilentProgress()).bundle
    with pytest.raises(Killed):
        fit(request, RecordedProgress(kill_at=30))
    other = dataclasses.replace(request, training=TrainingRequest(step_count=60, learning_rate=1e-3))
    with pytest.raises(
        ArtefactMismatch, match=r"unfinished run .* for 'b' (.*\n)*  training\.learning_rate: .* -> 0\.001"
    ):
        fit(other, SilentProgress())
    assert fit(request, SilentProgress()).bundle.id == whole.id


def test_a_run_killed_before_training_is_unfinished_too(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    with pytest.raises(Killed):
        fit(request, RecordedProgress(kill_at=32, stage="harvest"))
    with pytest.raises(ArtefactMismatch, match="execution.thread_count: 1 -> 2"):
        fit(dataclasses.replace(request, execution=Execution(thread_count=2)), SilentProgress())
    assert fit(request, SilentProgress()).is_new


def test_after_a_refusal_other_settings_may_be_tried(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    wild = TrainingRequest(step_count=40, learning_rate=50.0)
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", training=wild)
    with pytest.raises((NotPublished, NumericError), match="diverged"):
        fit(request, SilentProgress())
    tamed = dataclasses.replace(request, training=TrainingRequest(step_count=40))
    assert fit(tamed, SilentProgress()).is_new
    assert not list((tmp_path / "b.work" / "training").glob("*/checkpoints"))


def many(corpus: Path, encoder: Path, folder: Path, **changes: dict[str, Any]) -> list[FitRequest]:
    """Requests by name that share a work folder."""
    return [
        make_request(corpus, encoder, folder / name, work=folder / "work", **change) for name, change in changes.items()
    ]


def test_several_come_out_of_one_pass_as_each_would_alone(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "a": {"sae": SaeRequest(k=4, neuron_count=48)},
        "b": {"sae": SaeRequest(k=8, expansion=2, variant=VariantName.TOPK)},
        "c": {"sae": sae_of(VariantName.RELU)},
        "d": {"sae": SaeRequest(k=4, neuron_count=48), "site": Site(block=2, tokens=Tokens.CLS)},
    }
    progress = RecordedProgress()
    results = fit_many(many(corpus_folder, encoder_folder, tmp_path / "many", **changes), progress)
    assert all(isinstance(result, FitResult) and result.is_new for result in results)
    assert [name for name, done, _ in progress.advances if name == "harvest" and done == 96] == ["harvest"]
    for (name, change), result in zip(changes.items(), results, strict=True):
        assert isinstance(result, FitResult)
        alone = make_request(corpus_folder, encoder_folder, tmp_path / "alone" / name, **change)
        assert fit(alone, SilentProgress()).bundle.id == result.bundle.id


def test_streamed_residuals_of_one_site_go_before_those_of_the_next_come(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    class Counting(RecordedProgress):
        """Counts the sources that are there whenever training begins."""

        def __init__(self) -> None:
            super().__init__()
            self.source_counts: list[int] = []

        def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
            if name == "train":
                self.source_counts.append(sum(type(found) is StreamedActivations for found in gc.get_objects()))
            return super().stage(name, total, unit)

    sources = Sources(corpus=str(corpus_folder), encoder=str(encoder_folder), reading=ReadingSettings(is_streamed=True))
    changes = {f"b{block}": {"site": Site(block=block, tokens=Tokens.CLS), "sources": sources} for block in range(3)}
    requests = many(corpus_folder, encoder_folder, tmp_path, **changes)
    gc.collect()
    progress = Counting()
    results = fit_many(requests, progress)
    assert all(isinstance(result, FitResult) for result in results)
    assert progress.source_counts == [3, 2, 1]


def test_a_stream_whose_held_out_half_does_not_decode_says_so(encoder_folder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 20)
    for position in np.random.default_rng([0, 0]).permutation(20)[:4:2]:  # Held out by seed 0: every other one.
        corrupt(corpus, position)
    sources = Sources(corpus=str(corpus), encoder=str(encoder_folder), reading=ReadingSettings(is_streamed=True))
    training = TrainingRequest(step_count=2)
    for variant in (VariantName.TOPK, VariantName.BATCHTOPK):
        out, sae = tmp_path / variant, SaeRequest(k=4, neuron_count=48, variant=variant)
        request = make_request(corpus, encoder_folder, out, sources=sources, sae=sae, training=training)
        with pytest.raises(CorpusError, match="not one of the images of a held-out half, 2 of 20, can be used"):
            fit(request, SilentProgress())
        assert not out.exists()


def test_another_seed_in_one_pass_shares_the_data_and_no_weights(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    requests = many(
        corpus_folder,
        encoder_folder,
        tmp_path,
        a={},
        b={"training": TrainingRequest(step_count=60, seed=7)},
    )
    first, second = fit_many(requests, SilentProgress())
    assert isinstance(first, FitResult)
    assert isinstance(second, FitResult)
    assert second.bundle.training["plan"]["data_seed"] == 0
    assert second.bundle.training["plan"]["training"]["seed"] == 7
    assert first.bundle.code_id != second.bundle.code_id
    again = fit_many(requests, SilentProgress())
    assert [isinstance(result, FitResult) and result.is_new for result in again] == [False, False]


def test_one_refusal_leaves_the_others_free(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    first, second = many(corpus_folder, encoder_folder, tmp_path, a={}, b={})
    with pytest.raises(Killed):
        fit(second, RecordedProgress(kill_at=30))
    other = dataclasses.replace(second, training=TrainingRequest(step_count=50))
    with pytest.raises(ArtefactMismatch, match="unfinished run of another configuration for 'b'"):
        fit_many([first, other], SilentProgress())
    changed = dataclasses.replace(first, training=TrainingRequest(step_count=50))
    assert fit(changed, SilentProgress()).is_new


def test_one_that_is_held_back_holds_up_no_other(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    wild = TrainingRequest(step_count=60, learning_rate=50.0)
    bad, good = fit_many(
        many(corpus_folder, encoder_folder, tmp_path, bad={"training": wild}, good={}), SilentProgress()
    )
    assert isinstance(good, FitResult)
    assert isinstance(bad, FitRefused)
    assert bad.out == tmp_path / "bad"
    assert "diverged" in str(bad.error)
    assert not bad.out.exists()


def test_killed_between_bundles_it_makes_the_missing_ones(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "a": {"sae": SaeRequest(k=4, neuron_count=48)},
        "b": {"sae": SaeRequest(k=2, neuron_count=48)},
    }
    due = fit_many(many(corpus_folder, encoder_folder, tmp_path / "whole", **changes), SilentProgress())

    class KilledAtSecond(RecordedProgress):
        def event(self, name: str, **fields: Any) -> None:
            super().event(name, **fields)
            if len(self.named("calibrated")) == 2:
                raise Killed

    requests = many(corpus_folder, encoder_folder, tmp_path / "killed", **changes)
    with pytest.raises(Killed):
        fit_many(requests, KilledAtSecond())
    assert [request.out.exists() for request in requests] == [True, False]
    progress = RecordedProgress()
    found = fit_many(requests, progress)
    assert [isinstance(result, FitResult) and result.is_new for result in found] == [False, True]
    assert progress.named("resumed") == [{"step": 60}]
    for before, after in zip(due, found, strict=True):
        assert isinstance(before, FitResult)
        assert isinstance(after, FitResult)
        assert before.bundle.id == after.bundle.id


def test_training_goes_on_from_a_bundle(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    sae = SaeRequest(k=4, neuron_count=48)
    longer = make_request(
        corpus_folder, encoder_folder, tmp_path / "first", sae=sae, training=TrainingRequest(step_count=200)
    )
    first = fit(longer, SilentProgress()).bundle
    # At a learning rate of next to nothing, what comes out is what went in.
    request = make_request(
        corpus_folder,
        encoder_folder,
        tmp_path / "second",
        sae=sae,
        sources=dataclasses.replace(longer.sources, initial=first.path),
        training=TrainingRequest(step_count=1, learning_rate=1e-12),
    )
    second = fit(request, SilentProgress()).bundle
    assert second.training["plan"]["initial"] == first.code_id
    assert torch.allclose(second.sae.directions, first.sae.directions, atol=1e-5)
    assert second.training["held_out_quality"]["fvu"] == pytest.approx(
        first.training["held_out_quality"]["fvu"], abs=1e-3
    )


def test_a_lock_of_a_dead_process_holds_no_one_up(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "b.work"
    work.mkdir()
    hold = "import sys, time, pathlib; from phosphene.durable_files import hold_folder\n"
    hold += "with hold_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", hold, str(work)], cwd=root, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match="another process works in 'b.work'"):
            fit(request, SilentProgress())
        holder.kill()
    assert fit(request, SilentProgress()).is_new


def test_two_processes_publish_what_one_publishes(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    options = [
        "-m", "training", "fit", str(corpus_folder), "--encoder", str(encoder_folder), "--block", "1",
        "--neurons", "48", "--k", "4", "--steps", "60", "--batch", "64", "--threads", "1", "--out",
    ]  # fmt: skip
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    qualities = []
    for name, command in (("together", together), ("alone", [sys.executable])):
        out = tmp_path / name / "bundle"
        done = subprocess.run([*command, *options, str(out)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count('"event": "published"') == 1
        facts = open_bundle(out).bundle.training
        journal = next((tmp_path / name).rglob("journal.jsonl"))
        losses = [line["loss"] for line in read_journal(journal, run=journal.parent.name)]
        qualities.append((facts["held_out_quality"], losses))
    (first, first_losses), (second, second_losses) = qualities
    assert first == pytest.approx(second, rel=1e-3)
    assert len(first_losses) == 6
    assert first_losses == pytest.approx(second_losses, rel=1e-4)
