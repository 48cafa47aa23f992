import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phosphene.corpus import open_corpus
from phosphene.encoder import Encoder, Site, Tokens, load_encoder
from phosphene.errors import CorpusError, NumericError
from tests.training.corpora import corrupt, write_corpus
from tests.training.recorded_progress import RecordedProgress
from training.activations import Activations
from training.contents import digest_images
from training.execution import Execution
from training.harvest import HarvestPlan
from training.harvest_settings import HarvestSettings
from training.progress import SilentProgress
from training.reading import ReadingSettings, open_source
from training.source import ActivationSource
from training.streaming import StreamedActivations

CLS, PATCHES, ALL = (Site(block=1, tokens=tokens) for tokens in (Tokens.CLS, Tokens.PATCHES, Tokens.ALL))
TOKENS, WIDTH = 16, 32
BUFFER_VALUES = 12 * TOKENS * WIDTH
"""Windows of 12 images of patches: the 72 training images make six of them."""


class Counting(Encoder):
    """Counts the images that it encodes; makes the patch at place 3 of every image loud where it is told to."""

    image_count = 0
    is_loud = False
    breaks_image = -1

    def residuals(self, pixels: torch.Tensor, site: Site) -> torch.Tensor:
        found = super().residuals(pixels, site).clone()
        if self.is_loud:
            found[:, 3] *= 50
        if self.image_count <= self.breaks_image < self.image_count + len(pixels):
            found[self.breaks_image - self.image_count, 0, 0] = torch.nan
        self.image_count += len(pixels)
        return found


@pytest.fixture
def encoder(encoder_folder: Path) -> Counting:
    counting = object.__new__(Counting)
    counting.__dict__.update(load_encoder(encoder_folder).__dict__)
    return counting


def make_plan(folder: Path, encoder: Encoder, site: Site = PATCHES, **options: Any) -> HarvestPlan:
    corpus = open_corpus(str(folder))
    return HarvestPlan(
        corpus=corpus,
        digests=digest_images(corpus, len(corpus), SilentProgress()),
        encoder=encoder,
        site=site,
        settings=HarvestSettings(batch_images=4, **options),
        execution=Execution(),
    )


def stream(plan: HarvestPlan, *, seed: int = 0, **options: Any) -> StreamedActivations:
    options = {"buffer_values": BUFFER_VALUES} | options
    return StreamedActivations(plan, options.pop("progress", SilentProgress()), seed=seed, **options)


def harvested(plan: HarvestPlan, folder: Path, **options: Any) -> Activations:
    source = open_source(plan, ReadingSettings(**options), seed=0, folder=folder, progress=SilentProgress())
    assert isinstance(source, Activations)
    return source


def keys(rows: torch.Tensor) -> set[tuple[float, ...]]:
    """The rows as values; the same image gives the same residual up to rounding, whatever shares its batch."""
    return {tuple(row) for row in np.round(rows.double().numpy(), 3).tolist()}


def epoch_of(source: ActivationSource, batch_rows: int = 1) -> torch.Tensor:
    return torch.cat(list(islice(source.batches(batch_rows, first_step=0), source.training_count // batch_rows)))


@pytest.mark.parametrize("site", [CLS, PATCHES])
def test_a_stream_splits_and_shows_what_a_harvest_of_the_same_plan_does(
    corpus_folder: Path, encoder: Counting, tmp_path: Path, site: Site
) -> None:
    plan = make_plan(corpus_folder, encoder, site)
    streamed, on_disk = stream(plan), harvested(plan, tmp_path)
    assert isinstance(streamed, ActivationSource)
    for fact in ("width", "image_count", "held_out_image_count", "training_count"):
        assert getattr(streamed, fact) == getattr(on_disk, fact)
    assert streamed.id != on_disk.id
    for half in (0, 1):
        assert torch.allclose(streamed.held_out(half), on_disk.held_out(half), atol=1e-5)
    (mean, mean_square), (due_mean, due_square) = streamed.moments(), on_disk.moments()
    assert torch.allclose(mean, due_mean, atol=1e-5)
    assert mean_square == pytest.approx(due_square, rel=1e-5)
    shown, due = epoch_of(streamed), epoch_of(on_disk)
    assert shown.shape == due.shape
    assert torch.allclose(shown.sort(dim=0).values, due.sort(dim=0).values, atol=1e-5)
    assert not torch.allclose(shown, due, atol=1e-2), "the same order: the test is blind"


def test_every_epoch_has_an_order_of_its_own_and_rows_are_mixed_within_windows(
    corpus_folder: Path, encoder: Counting
) -> None:
    streamed = stream(make_plan(corpus_folder, encoder))
    count = streamed.training_count // 8
    batches = list(islice(streamed.batches(8, first_step=0), 2 * count))
    epochs = [torch.cat(batches[:count]), torch.cat(batches[count:])]
    assert not torch.equal(*epochs)
    assert torch.allclose(epochs[0].sort(dim=0).values, epochs[1].sort(dim=0).values, atol=1e-5)
    other = torch.cat(list(islice(stream(make_plan(corpus_folder, encoder), seed=1).batches(8, first_step=0), count)))
    assert not torch.equal(other, epochs[0])


@pytest.mark.parametrize("first_step", [0, 1, 11, 12, 13, 71, 72, 100])
def test_resuming_at_any_step_shows_the_same_bits_and_encodes_one_window_again_at_most(
    corpus_folder: Path, encoder: Counting, first_step: int
) -> None:
    plan = make_plan(corpus_folder, encoder)
    whole = list(islice(stream(plan).batches(17, first_step=0), first_step + 14))[first_step:]
    resumed = stream(plan)
    resumed.sample(1)
    encoder.image_count = 0
    found = list(islice(resumed.batches(17, first_step=first_step), 14))
    assert all(torch.equal(due, batch) for due, batch in zip(whole, found, strict=True))
    assert encoder.image_count <= (2 + 1) * 12, "14 steps of 17 rows lie in at most three windows of 12 images"


def test_held_out_images_are_never_shown(corpus_folder: Path, encoder: Counting) -> None:
    streamed = stream(make_plan(corpus_folder, encoder, CLS))
    held_out = keys(torch.cat([streamed.held_out(0), streamed.held_out(1)]))
    assert len(held_out) == streamed.held_out_image_count
    assert not held_out & keys(torch.cat(list(islice(streamed.batches(5, first_step=0), 40))))
    assert not held_out & keys(streamed.sample(10**6))


def test_an_image_that_does_not_decode_is_replaced_within_its_window_and_told_once(
    encoder: Counting, tmp_path: Path
) -> None:
    folder = write_corpus(tmp_path / "corpus", 32)
    for place in range(0, 32, 3):
        corrupt(folder, place)
    progress = RecordedProgress()
    streamed = stream(make_plan(folder, encoder, CLS), buffer_values=8 * WIDTH, progress=progress)
    sound = keys(streamed.sample(10**6))
    assert streamed.training_count == 24 > len(sound)
    shown = epoch_of(streamed)
    assert len(shown) == 24
    assert keys(shown) == sound
    assert sum(event["unreadable"] for event in progress.named("images left out")) == 24 - len(sound)
    resumed = torch.cat(list(islice(stream(streamed._plan, buffer_values=8 * WIDTH).batches(1, first_step=13), 11)))
    assert torch.equal(resumed, shown[13:])


def test_an_image_that_cannot_be_read_is_known_from_the_start(encoder: Counting, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 20)
    plan = make_plan(folder, encoder)
    sorted(folder.rglob("*.png"))[3].unlink()
    plan = dataclasses.replace(plan, digests=digest_images(plan.corpus, 20, SilentProgress()))
    streamed = stream(plan)
    assert (streamed.image_count, streamed.quarantined()) == (19, [{"row": 3, "error": "CorpusError"}])


def test_a_window_without_one_sound_image_is_refused(encoder: Counting, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 16)
    for place in range(15):
        corrupt(folder, place)
    streamed = stream(make_plan(folder, encoder, CLS), buffer_values=4 * WIDTH)
    with pytest.raises(CorpusError, match=r"not one of 4 images .* can be used"):
        for _ in islice(streamed.batches(1, first_step=0), 12):
            pass


@pytest.mark.parametrize("site", [PATCHES, ALL])
def test_artefact_tokens_are_left_out_everywhere(corpus_folder: Path, encoder: Counting, site: Site) -> None:
    encoder.is_loud = True
    plan = make_plan(corpus_folder, encoder, site)
    plain, thinned = stream(plan), stream(plan, leaves_out_artefacts=True)
    assert plain.id != thinned.id
    for part in (lambda source: source.held_out(0), lambda source: source.sample(10**6), epoch_of):
        loud = keys(part(plain)) - keys(part(thinned))
        assert keys(part(thinned)) < keys(part(plain))
        assert min(np.linalg.norm(row) for row in loud) > max(np.linalg.norm(row) for row in keys(part(thinned)))
    count = encoder.site_token_count(site)
    assert len(thinned.held_out(0)) == len(plain.held_out(0)) * (count - 1) // count
    assert len(epoch_of(thinned)) == thinned.training_count == plain.training_count


def test_a_sample_is_bounded_spread_and_the_same_in_every_run(
    corpus_folder: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.streaming._SAMPLE_LIMIT_ROWS", 100)
    plan = make_plan(corpus_folder, encoder)
    streamed = stream(plan)
    encoder.image_count = 0
    sample = streamed.sample(10**6)
    assert encoder.image_count == 25, "four tokens of each image"
    assert len(sample) == len(keys(sample)) == 100
    few = streamed.sample(30)
    assert len(few) == 30
    assert keys(few) < keys(sample)
    assert torch.equal(stream(plan).sample(30), few)
    assert encoder.image_count == 50, "a sample is encoded once"


def test_a_subsample_of_tokens_is_that_of_the_harvest(corpus_folder: Path, encoder: Counting, tmp_path: Path) -> None:
    plan = make_plan(corpus_folder, encoder, tokens_per_image=5)
    streamed = stream(plan)
    assert streamed.training_count == 72 * 5
    assert torch.allclose(streamed.held_out(1), harvested(plan, tmp_path).held_out(1), atol=1e-5)


def test_nan_is_refused_with_the_image(corpus_folder: Path, encoder: Counting) -> None:
    streamed = stream(make_plan(corpus_folder, encoder))
    streamed.sample(1)
    encoder.image_count, encoder.breaks_image = 0, 20
    with pytest.raises(
        NumericError, match=r"1 of 4 images have NaN or infinity, first image \d+ \('.*\.png'\) at block 1"
    ):
        epoch_of(streamed)


def test_too_few_images_are_refused_before_any_work(encoder: Counting, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="only 15 images"):
        stream(make_plan(write_corpus(tmp_path / "corpus", 15), encoder))
    assert encoder.image_count == 0


def test_a_stream_leaves_nothing_on_disk(corpus_folder: Path, encoder: Counting, tmp_path: Path) -> None:
    reading = ReadingSettings(is_streamed=True)
    plan = make_plan(corpus_folder, encoder)
    source = open_source(plan, reading, seed=0, folder=tmp_path / "work", progress=SilentProgress())
    assert isinstance(source, StreamedActivations)
    next(source.batches(64, first_step=3))
    assert list(tmp_path.iterdir()) == []
    assert reading.config == {"is_streamed": True, "leaves_out_artefacts": False}
