"""The index job: what it makes, what it refuses, and that it may be killed at any moment."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from index.build import BuildJob, BuildResult, Sources, build_index, plan_index
from index.contents import digest_images
from index.plan import IndexConfig, Quantiser
from index.reader import open_index
from index.values import NeuronFilter
from index.workspace import open_workspace
from phosphene.bundle import load_bundle
from phosphene.corpus import open_corpus
from phosphene.encoder import Family, Tokens
from phosphene.engine import Want
from phosphene.errors import ArtefactMismatch, ArtefactMissing, CorpusError, SettingError, Unanswerable
from phosphene.pipeline import open_bundle
from tests.families import PROJECTION_WIDTH
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus


class Killed(BaseException):
    """Stands for a kill at one moment: nothing catches it."""


class Fuse(Notes):
    """Ends the job when a stage has told of so many steps."""

    def __init__(self, stage: str, steps: int) -> None:
        super().__init__()
        self._stage, self._steps = stage, steps

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] == self._stage:
            self._steps -= 1
            if self._steps == 0:
                raise Killed


def _job(corpus: Path, bundle: Path, out: Path, **changes: object) -> BuildJob:
    plain: dict[str, object] = {"corpus": str(corpus), "bundle": bundle, "out": out, "config": SMALL}
    return BuildJob(**plain | changes)  # type: ignore[arg-type]


def _build(corpus: Path, bundle: Path, out: Path, **changes: object) -> BuildResult:
    return build_index(_job(corpus, bundle, out, **changes), Notes())


def test_stored_codes_equal_live_ones_within_a_step(built: Path, bundle: Path, corpus: Path) -> None:
    pipeline = open_bundle(bundle, thread_count=1)
    with open_index(built, code_id=pipeline.bundle.code_id) as index:
        for row in range(40):
            stored = index.code(row)
            if row == 5:
                assert len(stored) == 0
                continue
            live = pipeline.encode([corpus.parent / f"{row:04d}.png"])[0]
            assert set(stored.neuron_ids.tolist()) == set(live.neuron_ids.tolist())
            by_id = dict(zip(live.neuron_ids.tolist(), live.values.tolist(), strict=True))
            for neuron_id, value in zip(stored.neuron_ids.tolist(), stored.values.tolist(), strict=True):
                assert abs(value - by_id[neuron_id]) <= np.spacing(np.float16(by_id[neuron_id]))


def test_the_same_job_gives_the_same_id_and_a_finished_one_returns_at_once(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    first = _build(corpus, bundle, tmp_path / "index")
    with open_index(built) as index:
        assert first.manifest.id == index.id
    assert not first.was_finished
    notes = Notes()
    again = build_index(_job(corpus, bundle, tmp_path / "index"), notes)
    assert again.was_finished
    assert again.manifest.id == first.manifest.id
    assert notes.stages == ["digest"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(
    ("stage", "steps"),
    [("digest", 1), ("encode", 3), ("encode", 4), ("encode", 10), ("assemble", 1), ("assemble", 7)],
)
def test_stopped_anywhere_and_run_again_gives_the_same_id(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path, stage: str, steps: int
) -> None:
    out = tmp_path / "index"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse(stage, steps))
    assert not out.exists()
    notes = Notes()
    result = build_index(_job(corpus, bundle, out), notes)
    with open_index(built) as index:
        assert result.manifest.id == index.id
    # Shards of 16 rows are 4 batches; finished ones are not run again.
    kept = {"digest": 0, "encode": (steps - 1) // 4 * 16, "assemble": 40}[stage]
    assert notes.encoded == 40 - kept
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.slow
def test_killed_for_real_and_run_again_gives_the_same_id(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "index"
    options = ["--shard-images", "16", "--batch", "4", "--threads", "1", "--top", "10", "--spread", "6"]
    command = [
        sys.executable,
        "-m",
        "index",
        "build",
        str(corpus),
        "--bundle",
        str(bundle),
        "--out",
        str(out),
        *options,
    ]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"encode"' in line:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    with open_index(built) as index:
        assert _build(corpus, bundle, out).manifest.id == index.id


def test_a_damaged_shard_is_made_again(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse("assemble", 1))
    (tmp_path / "index.partial" / "index" / "shards" / "00001" / "codes" / "values.npy").write_bytes(b"half")
    (tmp_path / "index.partial" / "index" / "shards" / "00002" / "record.json").write_text('{"rows": [3')
    notes = Notes()
    result = build_index(_job(corpus, bundle, out), notes)
    assert notes.encoded == 24
    with open_index(built) as index:
        assert result.manifest.id == index.id


def test_shards_of_another_device_are_made_again(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse("assemble", 1))
    record = tmp_path / "index.partial" / "index" / "shards" / "00001" / "record.json"
    record.write_text(record.read_text().replace('"device":"cpu"', '"device":"cuda"'))
    notes = Notes()
    result = build_index(_job(corpus, bundle, out), notes)
    assert notes.encoded == 16
    with open_index(built) as index:
        assert result.manifest.id == index.id


class Rival(Notes):
    """Another process finishes the same job while this one reads the corpus."""

    def __init__(self, job: BuildJob) -> None:
        super().__init__()
        self._job: BuildJob | None = job

    def advance(self, count: int) -> None:
        super().advance(count)
        job, self._job = self._job, None
        if job is not None:
            build_index(job, Notes())


def test_a_job_that_another_process_finishes_meanwhile_is_not_done_twice(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    job = _job(corpus, bundle, tmp_path / "index")
    rival = Rival(job)
    result = build_index(job, rival)
    assert result.was_finished
    with open_index(built) as index:
        assert result.manifest.id == index.id
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_another_plan_on_a_finished_index_is_refused_with_the_differences(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    shutil.copytree(built, out)
    config = IndexConfig(shard_image_count=16, batch_images=8, thread_count=1, top_count=10, spread_count=6)
    with pytest.raises(ArtefactMismatch, match="batch_images: 4 -> 8; choose another --out"):
        _build(corpus, bundle, out, config=config)
    with open_index(out) as index, open_index(built) as before:
        assert index.id == before.id


def test_a_changed_image_makes_another_plan(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 6)
    _build(corpus, bundle, tmp_path / "index")
    (corpus.parent / "0002.png").write_bytes((corpus.parent / "0003.png").read_bytes())
    with pytest.raises(ArtefactMismatch, match="corpus_digest"):
        _build(corpus, bundle, tmp_path / "index")


def test_a_leftover_of_another_plan_is_set_aside_and_taken_back(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse("assemble", 1))
    other = IndexConfig(shard_image_count=16, batch_images=8, thread_count=1, top_count=10, spread_count=6)
    notes = Notes()
    build_index(_job(corpus, bundle, out, config=other), notes)
    assert "belongs to another plan" in notes.sentences[0]
    shutil.rmtree(out)
    notes = Notes()
    build_index(_job(corpus, bundle, out), notes)
    assert notes.encoded == 0
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("kept", [("plan.json", "index"), ("plan.json", "drafts"), ("plan.json",), ()])
def test_a_job_killed_while_it_cleans_up_leaves_nothing_for_good(
    bundle: Path, corpus: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    out, partial = tmp_path / "index", tmp_path / "index.partial"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse("assemble", 7))
    shutil.copytree(partial, tmp_path / "copy")
    _build(corpus, bundle, out)
    partial.mkdir()
    for name in kept:
        (tmp_path / "copy" / name).rename(partial / name)
    shutil.rmtree(tmp_path / "copy")
    assert _build(corpus, bundle, out).was_finished
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_two_builders_of_one_index_do_not_meet(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, tmp_path / "index"), Fuse("encode", 1))
    opened = open_corpus(str(corpus))
    with ThreadPoolExecutor(1) as readers:
        digests = digest_images(opened, readers, lambda _: None)
    plan = plan_index(Sources(bundle=load_bundle(bundle), corpus=opened), digests, SMALL)
    with (
        open_workspace(tmp_path / "index", plan, device="cpu", report=lambda _: None),
        pytest.raises(SettingError, match="another process"),
    ):
        _build(corpus, bundle, tmp_path / "index")


def test_shard_size_and_batch_of_one_give_the_same_codes(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    config = IndexConfig(shard_image_count=7, batch_images=1, thread_count=1, top_count=10, spread_count=6)
    _build(corpus, bundle, tmp_path / "index", config=config)
    with open_index(built) as index, open_index(tmp_path / "index") as alone:
        for row in range(40):
            one, other = index.code(row), alone.code(row)
            assert one.neuron_ids.tolist() == other.neuron_ids.tolist()
            np.testing.assert_allclose(one.values, other.values, rtol=2e-3)


def test_corrupt_images_are_quarantined_with_reason(built: Path) -> None:
    with open_index(built) as index:
        assert (index.row_count, index.image_count, index.quarantined_count) == (40, 39, 1)
        row = index.image(5)
        assert row.quarantine_reason is not None
        assert (row.width, row.height) == (0, 0)
        assert index.thumbnail(5) == b""


def test_a_file_beyond_the_limit_is_quarantined_unread(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20)
    (corpus.parent / "0003.png").write_bytes(bytes(2**24 + 1))
    _build(corpus, bundle, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert index.quarantined_count == 1
        assert index.image(3).sha256 == ""
        assert str(tmp_path) not in str(index.image(3).quarantine_reason)


def test_too_many_bad_images_stop_the_job_and_can_be_allowed(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20, corrupt=(0, 3, 19))
    with pytest.raises(CorpusError, match=r"3 of 20 images cannot be used.*--max-bad-ratio.*0000\.png"):
        _build(corpus, bundle, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    result = _build(corpus, bundle, tmp_path / "index", max_bad_ratio=0.2)
    assert not result.was_finished


def test_a_corpus_of_corrupt_images_alone_is_refused(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 6, corrupt=tuple(range(6)))
    with pytest.raises(CorpusError, match="none of the 6 images"):
        _build(corpus, bundle, tmp_path / "index", max_bad_ratio=1.0)
    assert not (tmp_path / "index").exists()


def test_an_empty_corpus_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no image"):
        _build(tmp_path / "empty", bundle, tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_missing_bundle_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing):
        _build(corpus, tmp_path / "nothing", tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_not_touched(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "diary.txt").write_text("mine")
    with pytest.raises(SettingError, match="is no index"):
        _build(corpus, bundle, tmp_path / "index")
    assert (tmp_path / "index" / "diary.txt").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    result = _build(corpus, bundle, tmp_path / "index")
    with open_index(built) as index:
        assert result.manifest.id == index.id


def test_captions_that_the_text_tower_cannot_read_are_left_out_of_its_mean(bundle: Path, tmp_path: Path) -> None:
    short, long = write_corpus(tmp_path / "short", 6), write_corpus(tmp_path / "long", 6)
    long.write_text(long.read_text().strip() + " and more words than the text tower reads" * 9 + "\n")
    for corpus in (short, long):
        _build(corpus, bundle, tmp_path / f"index-{corpus.parent.name}")
    means = [np.load(tmp_path / f"index-{name}" / "text" / "text_mean.npy") for name in ("short", "long")]
    assert np.linalg.norm(means[1]) > 0.1
    assert float(means[0] @ means[1]) / float(np.linalg.norm(means[0]) * np.linalg.norm(means[1])) > 0.5


def test_an_encoder_without_its_tokenizer_is_indexed(corpus: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, with_tokenizer=False)
    _build(corpus, bundle, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert index.image_count == 39
    assert not np.load(tmp_path / "index" / "text" / "text_mean.npy").any()


def test_settings_out_of_bounds_are_named_all_at_once() -> None:
    with pytest.raises(SettingError, match=r"--shard-images is 0; the limits are 1 to 65536.*--top is -1"):
        IndexConfig(shard_image_count=0, top_count=-1)
    with pytest.raises(SettingError, match="max_bad_ratio is 2"):
        BuildJob(corpus="x", bundle=Path("b"), out=Path("o"), config=SMALL, max_bad_ratio=2.0)


def test_the_index_holds_no_paths_and_no_times(built: Path, corpus: Path) -> None:
    for path in built.rglob("*"):
        if path.is_file():
            assert str(corpus.parent).encode() not in path.read_bytes(), path.name
            assert b"/tmp/" not in path.read_bytes(), path.name


def test_patch_tokens_and_an_encoder_without_text(corpus: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, Family.DEIT, tokens=Tokens.PATCHES)
    _build(corpus, bundle, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert not index.has_text
        assert index.summary.mean_l0 > 8
        # From residuals, which every encoder has.
        assert any(index.neuron(neuron).monosemanticity is not None for neuron in range(index.neuron_count))
        with pytest.raises(Unanswerable, match="no embeddings"):
            index.images_by_text(np.ones(4, dtype=np.float32), 3)


def test_every_image_s_residual_is_stored_and_finds_the_nearest(built: Path, bundle: Path, corpus: Path) -> None:
    pipeline, photos = open_bundle(bundle), open_corpus(str(corpus))
    live = pipeline.run([pipeline.prepare(photos.read(3))], Want(residuals=True)).residuals
    assert live is not None
    with open_index(built) as index:
        stored = np.stack([index.residual(row) for row in range(index.row_count)])
        np.testing.assert_allclose(stored[3], live[0] / np.linalg.norm(live[0]), atol=1e-3)
        assert not stored[5].any()  # Quarantined.
        found = index.images_by_residual(live[0], 12, exclude_rows=[3])
        due = stored @ stored[3]
        due[[3, 5]] = -2
        np.testing.assert_allclose([cosine for _, cosine in found], np.sort(due)[::-1][:12], atol=2e-3)
        assert index.residual_recall == index.text_recall == 1.0
        with pytest.raises(SettingError, match="3 numbers; residuals have"):
            index.images_by_residual(np.ones(3, dtype=np.float32), 1)


def test_an_index_asked_for_sketches_finds_the_same_here_and_says_how_well(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, sketch_from_images=0)
    _build(corpus, bundle, tmp_path / "index", config=config)
    with open_index(built) as exact, open_index(tmp_path / "index") as sketch:
        assert (exact.similarity_is_exact, sketch.similarity_is_exact) == (True, False)
        assert sketch.summary.similar_recall == 1.0  # 40 rows are all candidates.
        code = exact.code(6)
        assert sketch.similar_images(code, 10) == exact.similar_images(code, 10)
    assert not (built / "sketch.faiss").exists()


@pytest.mark.parametrize("quantiser", list(Quantiser))
def test_an_index_with_inverted_lists_says_how_much_each_search_finds(
    bundle: Path, corpus: Path, tmp_path: Path, quantiser: Quantiser
) -> None:
    config = dataclasses.replace(SMALL, sketch_from_images=0, ivf_from_images=1, quantiser=quantiser)
    _build(corpus, bundle, tmp_path / "index", config=config)
    with open_index(tmp_path / "index") as index:
        # 8 bits have more entries than this corpus has images: what is not searched by codes stays exact.
        few = quantiser is Quantiser.EIGHT_BIT
        assert set(index.summary.approximations) == ({"code"} if few else {"code", "residual", "text"})
        assert index.similar_recall == index.summary.approximations["code"].recall
        # All 6 lists are scanned where that is what it takes.
        assert index.residual_recall > 0.8
        assert len(index.images_by_text(np.ones(PROJECTION_WIDTH, dtype=np.float32), 5)) == 5
        assert {image.recall for image in index.similar_images(index.code(6), 10)} == {index.similar_recall}


def test_shards_are_in_the_index_as_they_were_written(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    with pytest.raises(Killed):
        build_index(_job(corpus, bundle, out), Fuse("assemble", 1))
    shards = tmp_path / "index.partial" / "index" / "shards"
    before = {path.relative_to(shards): path.stat().st_ino for path in shards.rglob("*")}
    _build(corpus, bundle, out)
    assert {path.relative_to(out / "shards"): path.stat().st_ino for path in (out / "shards").rglob("*")} == before


def test_dense_neurons_are_left_out_of_similarity_and_named(bundle: Path, tmp_path: Path) -> None:
    # All images alike: their eight neurons fire on all of them.
    corpus = write_corpus(tmp_path / "pictures", 1)
    for row in range(1, 12):
        (corpus.parent / f"{row:04d}.png").write_bytes((corpus.parent / "0000.png").read_bytes())
    _build(corpus.parent, bundle, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        firing = index.list_neurons(filter=NeuronFilter(alive_only=True))
        # At least one is kept, so that codes can be compared.
        assert len(index.summary.left_out_neuron_ids) == len(firing) - 1
        kept = set(firing) - set(index.summary.left_out_neuron_ids)
        found = index.similar_images(index.code(0), 20, exclude_rows=[0])
        assert [image.row for image in found] == list(range(1, 12))
        assert all(set(image.shared_neuron_ids) == kept for image in found)
