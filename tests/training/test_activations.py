import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.artefact_writing import seal
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, CorpusError, SchemaUnknown
from tests.training.synthetic import mixtures, write_activations
from training.activations import Activations, held_out_count
from training.shards import ShardArrays, mark_artefact_tokens, write_shard
from training.source import ActivationSource

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


def test_windows_change_nothing_but_the_order_and_a_batch_may_cross_several_of_them(
    harvest: Path, residuals: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.activations._WINDOW_BYTES", 1)
    activations = Activations(harvest, seed=0)
    batch_rows = activations.training_count * 2 // 5
    batches = list(islice(activations.batches(batch_rows, first_step=0), 2))
    assert [len(batch) for batch in batches] == [batch_rows] * 2
    assert len(rows_of(torch.cat(batches), residuals)) == 2 * batch_rows
    resumed = next(Activations(harvest, seed=0).batches(batch_rows, first_step=1))
    assert torch.equal(resumed, batches[1])


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


def test_artefact_tokens_are_left_out_everywhere_and_nothing_else_is(tmp_path: Path) -> None:
    residuals = mixtures(IMAGE_COUNT * TOKENS)
    residuals[::TOKENS] *= 30  # class tokens, which are never artefacts
    residuals[4::30] *= 20  # one patch of every tenth image
    path = write_activations(tmp_path / "a", residuals, tokens_per_image=TOKENS, first_patch=1)
    plain, thinned = Activations(path, seed=0), Activations(path, seed=0, leaves_out_artefacts=True)
    assert plain.id == plain.manifest.id != thinned.id
    due = set(range(len(residuals))) - set(range(4, len(residuals), 30))
    parts = [thinned.held_out(0), thinned.held_out(1), thinned.sample(10**6)]
    assert set[int]().union(*(rows_of(part, residuals) for part in parts)) == due
    assert sum(map(len, parts)) == len(due)
    assert thinned.training_count == len(parts[2]) < plain.training_count
    epoch = torch.cat(list(islice(thinned.batches(1, first_step=0), thinned.training_count)))
    assert rows_of(epoch, residuals) == rows_of(parts[2], residuals)
    assert torch.allclose(thinned.moments()[0], parts[2].mean(dim=0), rtol=1e-4)
    assert [len(thinned.held_out(half)) < len(plain.held_out(half)) for half in (0, 1)] == [True, True]


def test_a_harvest_is_a_source(harvest: Path) -> None:
    assert isinstance(Activations(harvest, seed=0), ActivationSource)


def test_mixed_shards_and_those_of_another_version_are_refused(tmp_path: Path) -> None:
    def write(name: str, plan_ids: tuple[str, str]) -> Path:
        partial = tmp_path / f"{name}.partial"
        partial.mkdir()
        arrays = ShardArrays(
            residuals=mixtures(32), image_rows=np.arange(32, dtype=np.int64), tokens=np.zeros(32, dtype=np.int32)
        )
        for index, plan_id in enumerate(plan_ids):
            shard = f"shard-0000{index}"
            write_shard(partial, shard, arrays, plan_id=plan_id, contents_sha256="0" * 64, quarantined=[])
        mark_artefact_tokens(partial, ["shard-00000", "shard-00001"], first_patch=None)
        if name == "old":
            record = partial / "shard-00001.json"
            record.write_text(record.read_text().replace(".norms.", ".lengths."))
        seal(partial, tmp_path / name, kind="activations", inputs={}, config={})
        return tmp_path / name

    with pytest.raises(ArtefactMismatch, match=r"mixes shards of 2 harvests, such as \['shard-00000', 'shard-00001'\]"):
        Activations(write("mixed", ("a", "b")), seed=0)
    with pytest.raises(SchemaUnknown, match="files of another version; harvest again"):
        Activations(write("old", ("a", "a")), seed=0)


def test_what_is_in_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width, window_bytes = 256, 2 * 128 * 256 * 4
    monkeypatch.setattr("training.activations._WINDOW_BYTES", window_bytes)
    monkeypatch.setattr("training.activations._BLOCK_BYTES", 64 << 10)
    for image_count in (512, 4096):
        rows = np.random.default_rng(0).normal(size=(image_count, width)).astype(np.float16)
        path = write_activations(tmp_path / str(image_count), rows, shard_images=128)
        tracemalloc.start()
        activations = Activations(path, seed=0)
        activations.moments()
        assert sum(len(batch) for batch in islice(activations.batches(16, first_step=0), 300)) == 16 * 300
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 3 * window_bytes < 4096 * width * 4, f"{image_count} images"
