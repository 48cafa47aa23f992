from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.errors import ArtefactDamaged, CorpusError
from tests.training.synthetic import mixtures, write_activations
from training.activations import Activations, held_out_count

IMAGE_COUNT, TOKENS = 300, 3


@pytest.fixture(scope="module")
def residuals() -> np.ndarray:
    return mixtures(IMAGE_COUNT * TOKENS)


@pytest.fixture(scope="module")
def harvest(tmp_path_factory: pytest.TempPathFactory, residuals: np.ndarray) -> Path:
    return write_activations(tmp_path_factory.mktemp("harvest") / "a", residuals, tokens_per_image=TOKENS)


def rows_of(part: torch.Tensor, residuals: np.ndarray) -> set[int]:
    """Which rows of the harvest these are; every row of it is different."""
    lookup = {row.tobytes(): index for index, row in enumerate(residuals)}
    return {lookup[row.numpy().tobytes()] for row in part}


def test_the_split_is_by_image_and_loses_nothing(harvest: Path, residuals: np.ndarray) -> None:
    activations = Activations(harvest, seed=0)
    halves = [rows_of(activations.held_out(half), residuals) for half in (0, 1)]
    training = rows_of(activations.sample(10**6), residuals)
    assert halves[0] | halves[1] | training == set(range(len(residuals)))
    assert len(halves[0]) + len(halves[1]) + len(training) == len(residuals)
    images = [{row // TOKENS for row in part} for part in (*halves, training)]
    assert not images[0] & images[1]
    assert not (images[0] | images[1]) & images[2]
    assert len(images[0]) == len(images[1]) == activations.held_out_image_count // 2
    assert activations.training_count == len(training)


def test_an_epoch_shows_every_training_row_once_in_another_order_than_the_next(
    harvest: Path, residuals: np.ndarray
) -> None:
    activations = Activations(harvest, seed=0)
    per_epoch = activations.training_count // 7
    batches = list(islice(activations.batches(7, first_step=0), 2 * per_epoch))
    epochs = [torch.cat(batches[:per_epoch]), torch.cat(batches[per_epoch:])]
    assert all(len(batch) == 7 for batch in batches)
    held_out = rows_of(torch.cat([activations.held_out(0), activations.held_out(1)]), residuals)
    for epoch in epochs:
        seen = rows_of(epoch, residuals)
        assert len(seen) == 7 * per_epoch
        assert not seen & held_out
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("first_step", [1, 5, 37, 120])
def test_resuming_at_any_step_shows_the_same_data(harvest: Path, first_step: int) -> None:
    whole = list(islice(Activations(harvest, seed=1).batches(16, first_step=0), first_step + 60))[first_step:]
    resumed = islice(Activations(harvest, seed=1).batches(16, first_step=first_step), 60)
    assert all(torch.equal(due, found) for due, found in zip(whole, resumed, strict=True))


def test_windows_smaller_than_the_corpus_keep_every_promise(
    harvest: Path, residuals: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.activations._WINDOW_BYTES", 2 * 64 * TOKENS * residuals.shape[1] * 4)
    activations = Activations(harvest, seed=0)
    per_epoch = activations.training_count // 10
    epoch = list(islice(activations.batches(10, first_step=0), per_epoch))
    assert len(rows_of(torch.cat(epoch), residuals)) == 10 * per_epoch
    resumed = islice(Activations(harvest, seed=0).batches(10, first_step=33), per_epoch - 33)
    assert all(torch.equal(due, found) for due, found in zip(epoch[33:], resumed, strict=True))


def test_moments_are_those_of_the_training_rows(harvest: Path) -> None:
    activations = Activations(harvest, seed=0)
    rows = activations.sample(10**6).double()
    mean, mean_square = activations.moments()
    assert torch.allclose(mean.double(), rows.mean(dim=0))
    assert mean_square == pytest.approx(float((rows - rows.mean(dim=0)).square().mean()))


def test_a_sample_is_spread_over_the_shards_and_the_same_in_every_run(harvest: Path, residuals: np.ndarray) -> None:
    first, again = (Activations(harvest, seed=0).sample(100) for _ in range(2))
    assert len(first) == 100
    assert torch.equal(first, again)
    assert {row // (64 * TOKENS) for row in rows_of(first, residuals)} == set(range(5))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    stored = mixtures(64).astype(np.float16)
    activations = Activations(write_activations(tmp_path / "a", stored), seed=0)
    assert activations.held_out(0).dtype == torch.float32


def test_a_flipped_bit_is_seen_before_anything_is_read(tmp_path: Path) -> None:
    path = write_activations(tmp_path / "a", mixtures(64))
    file = path / "shard-00000.npy"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtefactDamaged, match=r"shard-00000\.npy"):
        Activations(path, seed=0)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="only 15 images"):
        Activations(write_activations(tmp_path / "a", mixtures(15)), seed=0)


def test_the_number_of_held_out_images_is_even_and_bounded() -> None:
    assert held_out_count(16, 1) == 4
    assert held_out_count(301, 1) == 64
    assert held_out_count(4000, 1) == 400
    assert held_out_count(10**8, 1) == 65_536
    assert held_out_count(10**8, 196) == 334
