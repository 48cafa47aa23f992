import dataclasses
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.corpus import open_corpus
from phosphene.encoder import Encoder, Site, Tokens, load_encoder
from phosphene.errors import CorpusError, DeviceFailed, NumericError, SettingError
from phosphene.images import prepare
from phosphene.manifest import open_artefact
from tests.training.corpora import corrupt, write_corpus
from tests.training.recorded_progress import Killed, RecordedProgress
from training.contents import digest_images
from training.execution import Execution
from training.harvest import EncoderOutOfMemory, HarvestPlan, harvest, harvest_sites, quarantined_images
from training.harvest_settings import HarvestSettings, Storage
from training.progress import SilentProgress
from training.reading import ReadingSettings, open_source

EMBEDDING = Site(block=None, tokens=Tokens.EMBEDDING)
CLS, PATCHES = Site(block=1, tokens=Tokens.CLS), Site(block=1, tokens=Tokens.PATCHES)
SETTINGS = HarvestSettings(batch_images=4)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return load_encoder(encoder_folder)


def make_plan(folder: Path, encoder: Encoder, site: Site = CLS, **options: Any) -> HarvestPlan:
    corpus, settings = open_corpus(str(folder)), dataclasses.replace(SETTINGS, **options)
    return HarvestPlan(
        corpus=corpus,
        digests=digest_images(corpus, settings.image_count(len(corpus)), SilentProgress()),
        encoder=encoder,
        site=site,
        settings=settings,
        execution=Execution(),
    )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All residuals and the corpus row of each."""
    files = sorted(path.glob("shard-?????.npy"))
    rows = [np.load(file.with_suffix(".rows.npy")) for file in files]
    return np.concatenate([np.load(file) for file in files]), np.concatenate(rows)


def several_sites(corpus_folder: Path, encoder: Encoder) -> list[HarvestPlan]:
    """Sites whose shards end at different images, one of them twice."""
    return [
        make_plan(corpus_folder, encoder, PATCHES, tokens_per_image=5),
        make_plan(corpus_folder, encoder, CLS, storage=Storage.FLOAT16),
        make_plan(corpus_folder, encoder, EMBEDDING),
        make_plan(corpus_folder, encoder, Site(block=0, tokens=Tokens.ALL), storage=Storage.FLOAT16),
        make_plan(corpus_folder, encoder, CLS, storage=Storage.FLOAT16),
    ]


class CountingEncoder(Encoder):
    """Counts its forward passes."""

    pass_count = 0

    def residuals_at(self, pixels: torch.Tensor, sites: Sequence[Site]) -> tuple[torch.Tensor, ...]:
        self.pass_count += 1
        return super().residuals_at(pixels, sites)


def counting(encoder: Encoder) -> CountingEncoder:
    twin = object.__new__(CountingEncoder)
    twin.__dict__.update(encoder.__dict__)
    return twin


@pytest.mark.parametrize("site", [CLS, PATCHES, Site(block=0, tokens=Tokens.ALL), EMBEDDING], ids=str)
def test_residuals_are_those_of_the_encoder_in_corpus_order(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, site: Site
) -> None:
    plan = make_plan(corpus_folder, encoder, site, image_limit=10)
    residuals, rows = read(harvest(plan, tmp_path, SilentProgress()))
    token_count = encoder.site_token_count(site)
    assert rows.tolist() == [row for row in range(10) for _ in range(token_count)]
    for row in (0, 5, 9):
        pixels = prepare(plan.corpus.read(row), encoder.preprocessing).pixels
        due = encoder.residuals(torch.from_numpy(pixels)[None], site)[0].numpy()
        assert np.allclose(residuals[rows == row], due, atol=1e-5)


def test_an_unreadable_image_is_counted_and_changes_no_other(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 20)
    sound = read(harvest(make_plan(folder, encoder), tmp_path / "a", SilentProgress()))
    corrupt(folder, 6)
    path = harvest(make_plan(folder, encoder), tmp_path / "b", SilentProgress())
    residuals, rows = read(path)
    assert quarantined_images(path) == [{"row": 6, "error": "ImageUnreadable"}]
    assert rows.tolist() == [row for row in range(20) if row != 6]
    assert np.array_equal(residuals, sound[0][sound[1] != 6])


@pytest.mark.parametrize("killed_after", [0, 6, 40, 95])
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.harvest_settings._SHARD_TARGET_BYTES", 8 * 32 * 4)
    plan = make_plan(corpus_folder, encoder)
    assert plan.shard_images == 8
    whole = open_artefact(harvest(plan, tmp_path / "whole", SilentProgress()), kind="activations")
    with pytest.raises(Killed):
        harvest(plan, tmp_path / "killed", RecordedProgress(kill_at=killed_after, stage="harvest"))
    partial = next((tmp_path / "killed").glob("*.partial"))
    (partial / "shard-00011.npy.draft").write_bytes(b"half")
    (partial / "manifest.json").write_bytes(b"left before the rename")
    for record in list(partial.glob("shard-*.json"))[:1]:
        record.with_suffix(".npy").write_bytes(b"damaged")
    path = harvest(plan, tmp_path / "killed", SilentProgress())
    assert open_artefact(path, kind="activations").id == whole.id


def test_a_finished_harvest_is_used_again(corpus_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    plan = make_plan(corpus_folder, encoder, image_limit=20)
    path = harvest(plan, tmp_path, SilentProgress())
    assert harvest(plan, tmp_path, RecordedProgress(kill_at=0, stage="harvest")) == path


def test_shards_of_images_that_have_changed_since_are_not_used(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.harvest_settings._SHARD_TARGET_BYTES", 8 * 32 * 4)
    folder = write_corpus(tmp_path / "corpus", 24)
    with pytest.raises(Killed):
        harvest(make_plan(folder, encoder), tmp_path / "killed", RecordedProgress(kill_at=16, stage="harvest"))
    first, second = sorted(folder.rglob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    resumed, _ = read(harvest(make_plan(folder, encoder), tmp_path / "killed", SilentProgress()))
    fresh, _ = read(harvest(make_plan(folder, encoder), tmp_path / "fresh", SilentProgress()))
    assert np.array_equal(resumed, fresh)
    assert np.array_equal(resumed[0], resumed[1])


def test_an_image_that_changes_after_it_was_planned_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 16)
    plan = make_plan(folder, encoder)
    corrupt(folder, 3)
    with pytest.raises(CorpusError, match=r"'blue/00014\.png' changed while .* run it again"):
        harvest(plan, tmp_path / "work", SilentProgress())
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_image_that_cannot_be_read_is_counted(encoder: Encoder, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 20)
    plan = make_plan(folder, encoder)
    sorted(folder.rglob("*.png"))[3].unlink()
    plan = dataclasses.replace(plan, digests=digest_images(plan.corpus, plan.image_count, SilentProgress()))
    path = harvest(plan, tmp_path / "work", SilentProgress())
    assert quarantined_images(path) == [{"row": 3, "error": "CorpusError"}]


def test_other_settings_make_another_harvest_beside_it(corpus_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    paths = {
        harvest(make_plan(corpus_folder, encoder, image_limit=16, storage=storage), tmp_path, SilentProgress())
        for storage in Storage
    }
    assert len(paths) == 2
    halves, wholes = sorted((read(path)[0] for path in paths), key=lambda array: array.itemsize)
    assert halves.dtype == np.float16
    assert np.allclose(halves, wholes, rtol=1e-3, atol=1e-3)


def test_a_subsample_of_tokens_follows_from_the_seed_and_lies_within_the_image(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    whole = read(harvest(make_plan(corpus_folder, encoder, PATCHES, image_limit=16), tmp_path, SilentProgress()))
    options: dict[str, Any] = {"image_limit": 16, "tokens_per_image": 5}
    paths = [
        harvest(make_plan(corpus_folder, encoder, PATCHES, **options, seed=seed), tmp_path / name, SilentProgress())
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, again, other = (read(path) for path in paths)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    for row in range(16):
        kept = {residual.tobytes() for residual in first[0][first[1] == row]}
        assert len(kept) == 5
        assert kept <= {residual.tobytes() for residual in whole[0][whole[1] == row]}


def test_residuals_beyond_the_storage_are_refused_with_shard_and_row(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    class Loud(Encoder):
        def residuals_at(self, pixels: torch.Tensor, sites: Sequence[Site]) -> tuple[torch.Tensor, ...]:
            found = [residuals.clone() for residuals in super().residuals_at(pixels, sites)]
            found[0][2, 0, 0] = 1e6
            return tuple(found)

    loud = object.__new__(Loud)
    loud.__dict__.update(encoder.__dict__)
    plan = make_plan(corpus_folder, loud, image_limit=16, storage=Storage.FLOAT16)
    with pytest.raises(NumericError, match=r"shard-00000 holds NaN or infinity .* first at row 2 \(image 2, 'blue/"):
        harvest(plan, tmp_path, SilentProgress())
    assert not list(tmp_path.glob("*/manifest.json"))


def test_several_sites_in_one_pass_give_what_each_gives_alone(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.harvest_settings._SHARD_TARGET_BYTES", 24 * 32 * 4)
    counter = counting(encoder)
    plans = several_sites(corpus_folder, counter)
    assert len({plan.shard_images for plan in plans}) > 2, "all shards end at the same images: the test is blind"
    paths = harvest_sites(plans, tmp_path / "together", SilentProgress())
    assert counter.pass_count == 96 // 4
    assert paths[1] == paths[4]
    for plan, path in zip(plans, paths, strict=True):
        alone = harvest(plan, tmp_path / "alone", SilentProgress())
        assert open_artefact(path, kind="activations").id == open_artefact(alone, kind="activations").id
        assert path.name == alone.name


def test_a_site_that_is_finished_is_left_out(corpus_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    plans = several_sites(corpus_folder, encoder)
    due = harvest(plans[0], tmp_path, SilentProgress())
    stamps = {file: file.stat().st_mtime_ns for file in due.iterdir()}
    paths = harvest_sites(plans, tmp_path, SilentProgress())
    assert paths[0] == due
    assert {file: file.stat().st_mtime_ns for file in due.iterdir()} == stamps
    counter = counting(encoder)
    assert (
        harvest_sites(several_sites(corpus_folder, counter), tmp_path, RecordedProgress(kill_at=0, stage="harvest"))
        == paths
    )
    assert counter.pass_count == 0


@pytest.mark.parametrize("killed_after", [4, 36, 60, 96])
def test_several_sites_killed_anywhere_and_run_again_give_the_same_bytes(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.harvest_settings._SHARD_TARGET_BYTES", 24 * 32 * 4)
    plans = several_sites(corpus_folder, encoder)
    due = [
        open_artefact(path, kind="activations").id for path in harvest_sites(plans, tmp_path / "a", SilentProgress())
    ]
    with pytest.raises(Killed):
        harvest_sites(plans, tmp_path / "b", RecordedProgress(kill_at=killed_after, stage="harvest"))
    counter = counting(encoder)
    paths = harvest_sites(several_sites(corpus_folder, counter), tmp_path / "b", SilentProgress())
    assert [open_artefact(path, kind="activations").id for path in paths] == due
    if killed_after >= 60:
        assert counter.pass_count < 96 // 4


def test_plans_that_share_no_pass_are_refused(corpus_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    plans = [make_plan(corpus_folder, encoder), make_plan(corpus_folder, encoder, PATCHES, batch_images=8)]
    with pytest.raises(SettingError, match=r"one pass: another images per batch; harvest them one by one"):
        harvest_sites(plans, tmp_path, SilentProgress())
    other = dataclasses.replace(make_plan(corpus_folder, encoder, image_limit=8), execution=Execution(thread_count=2))
    with pytest.raises(SettingError, match="another corpus, another device or threads"):
        harvest_sites([plans[0], other], tmp_path, SilentProgress())
    with pytest.raises(CorpusError, match="no images to harvest"):
        harvest(dataclasses.replace(plans[0], digests=()), tmp_path, SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_places_and_norms_of_the_tokens_lie_beside_the_residuals(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"image_limit": 16, "storage": Storage.FLOAT16}
    whole, _ = read(harvest(make_plan(corpus_folder, encoder, PATCHES, **options), tmp_path, SilentProgress()))
    path = harvest(
        make_plan(corpus_folder, encoder, PATCHES, **options, tokens_per_image=5), tmp_path, SilentProgress()
    )
    residuals, rows = read(path)
    places, norms = (np.load(path / f"shard-00000.{kind}.npy") for kind in ("tokens", "norms"))
    assert (places.dtype, norms.dtype) == (np.int32, np.float32)
    assert np.array_equal(whole[rows * 16 + places], residuals)
    assert np.allclose(norms, np.linalg.norm(residuals.astype(np.float64), axis=1), rtol=1e-6)


def test_patches_of_high_norm_are_marked_and_their_share_is_told(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    class Loud(Encoder):
        def residuals_at(self, pixels: torch.Tensor, sites: Sequence[Site]) -> tuple[torch.Tensor, ...]:
            found = [residuals.clone() for residuals in super().residuals_at(pixels, sites)]
            for site, residuals in zip(sites, found, strict=True):
                residuals[:, 0] *= 50
                if site.tokens is Tokens.ALL:
                    residuals[:, 7] *= 50
            return tuple(found)

    loud = object.__new__(Loud)
    loud.__dict__.update(encoder.__dict__)
    sites = [CLS, PATCHES, Site(block=1, tokens=Tokens.ALL)]
    progress = RecordedProgress()
    paths = harvest_sites([make_plan(corpus_folder, loud, site) for site in sites], tmp_path, progress)
    marks = [json.loads((path / "artefact-tokens.json").read_bytes()) for path in paths]
    assert [mark["artefact_count"] for mark in marks] == [0, 96, 96], "the class token is none, however loud"
    assert [mark["patch_count"] for mark in marks] == [0, 96 * 16, 96 * 16]
    told = {event["site"]: event["share"] for event in progress.named("artefact tokens")}
    assert told == {"block 1, patches": 1 / 16, "block 1, all": 1 / 16}
    norms = np.load(paths[1] / "shard-00000.norms.npy").astype(np.float64)
    median = np.sort(norms)[(len(norms) - 1) // 2]
    mad = np.sort(np.abs(norms - median))[(len(norms) - 1) // 2]
    assert marks[1]["norm_limit"] == pytest.approx(median + 6 * mad, rel=1e-6)


def test_a_full_disk_leaves_nothing_that_passes_for_done_and_the_next_run_goes_on(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.harvest_settings._SHARD_TARGET_BYTES", 32 * 16 * 32 * 4)
    plan = make_plan(corpus_folder, encoder, PATCHES)
    due = harvest(plan, tmp_path / "whole", SilentProgress())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(OSError, match=r"too large.*shard-00000\.npy'"):
            harvest(plan, tmp_path / "full", SilentProgress())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("full/*/manifest.json"))
    assert not list(tmp_path.glob("full/*/*.json"))
    path = harvest(plan, tmp_path / "full", SilentProgress())
    assert open_artefact(path, kind="activations").id == open_artefact(due, kind="activations").id


def test_what_a_harvest_takes_on_disk_is_known_before(corpus_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    plan = make_plan(corpus_folder, encoder, PATCHES, storage=Storage.FLOAT16)
    assert plan.size_bytes == 96 * 16 * (32 * 2 + 16)
    path = harvest(plan, tmp_path, SilentProgress())
    arrays = sum(file.stat().st_size for file in path.glob("*.npy"))
    assert 0 < arrays - plan.size_bytes <= 4 * 128


def test_a_place_that_cannot_be_written_to_fails_before_any_image_is_encoded(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    counter = counting(encoder)
    with pytest.raises(NotADirectoryError):
        harvest(make_plan(corpus_folder, counter), tmp_path / "file" / "work", SilentProgress())
    assert counter.pass_count == 0


class FailingEncoder(CountingEncoder):
    """Fails at every pass as a GPU does."""

    text = ""

    def residuals_at(self, pixels: torch.Tensor, sites: Sequence[Site]) -> tuple[torch.Tensor, ...]:
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    ("text", "due", "message"),
    [
        (
            "CUDA error: out of memory",
            EncoderOutOfMemory,
            "out of memory; use a smaller --images-per-batch, which is 4$",
        ),
        (
            "CUDA error: an illegal memory access was encountered",
            DeviceFailed,
            "illegal memory access .* start it again",
        ),
    ],
)
def test_a_device_that_fails_is_told_with_the_option_that_mends_it(
    corpus_folder: Path, encoder: Encoder, tmp_path: Path, text: str, due: type[Exception], message: str
) -> None:
    failing = object.__new__(FailingEncoder)
    failing.__dict__.update(encoder.__dict__ | {"text": text})
    with pytest.raises(due, match=message):
        harvest(make_plan(corpus_folder, failing), tmp_path, SilentProgress())
    streamed = open_source(
        make_plan(corpus_folder, failing),
        ReadingSettings(is_streamed=True),
        seed=0,
        folder=tmp_path,
        progress=SilentProgress(),
    )
    with pytest.raises(due, match=message):
        streamed.moments()
