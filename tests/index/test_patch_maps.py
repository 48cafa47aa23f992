"""Patch maps: what is stored equals a plain reference over token codes; an index has one for every activation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.array_stream import ArrayStream
from index.build import BuildJob, build_index
from index.patch_maps import PatchMaps, PatchMapsWriter
from index.plan import IndexConfig
from index.reader import open_index
from index.values import ExemplarKind
from index.verify import verify_index
from phosphene.codes import TokenCodes, image_codes
from phosphene.encoder import Family, Tokens
from phosphene.engine import Want
from phosphene.errors import ArtefactDamaged, NotFound
from phosphene.pipeline import open_bundle
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.shard_folders import write_shards
from tests.index.small_world import NEURON_COUNT, write_bundle
from tests.index.test_verify import seal_again

GRID = (3, 5)
NEURONS = 12


@st.composite
def token_codes(draw: st.DrawFn, *, images: int = 5, tokens: int = GRID[0] * GRID[1], slots: int = 4) -> TokenCodes:
    """Codes of tokens that share few neurons, some tokens silent."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.stack([[generator.permutation(NEURONS)[:slots] for _ in range(tokens)] for _ in range(images)])
    values = generator.choice([0.0, 1e-7, 0.25, 0.3, 0.5, 0.5001, 2.0], (images, tokens, slots)).astype(np.float32)
    order = np.argsort(-values, axis=-1, kind="stable")
    values, ids = np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1)
    return TokenCodes(
        torch.from_numpy(values),
        torch.from_numpy(np.where(values > 0, ids, 0)),
        torch.zeros((images, tokens), dtype=torch.int64),
    )


def plain_map(values: np.ndarray, neuron_ids: np.ndarray, neuron_id: int, activation: float) -> np.ndarray:
    """Ten lines: where one neuron fires among tokens [patches, slots], in 1/255 of its activation on the image."""
    drawn = np.zeros(len(values), dtype=np.uint8)
    for patch in range(len(values)):
        for value, fired in zip(values[patch], neuron_ids[patch], strict=True):
            if value > 0 and fired == neuron_id:
                drawn[patch] = min(255, max(1, round(255 * float(value / np.float32(activation)))))
    return drawn


@settings(deadline=None, max_examples=30)
@given(token_codes(), st.integers(1, NEURONS), st.integers(1, 4))
def test_every_map_equals_the_plain_reference(
    tmp_path_factory: pytest.TempPathFactory, tokens: TokenCodes, limit: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    codes = image_codes(tokens, limit=limit)
    shards = write_shards(folder, codes, neuron_count=NEURONS, size=size)
    values, neuron_ids = tokens.values.numpy(), tokens.neuron_ids.numpy()
    for shard in shards:
        with PatchMapsWriter(shard.folder, patch_count=values.shape[1]) as maps:
            for row in range(shard.rows.start, shard.rows.stop):
                maps.add(codes[row], values[row], neuron_ids[row])
    stored = PatchMaps(shards, grid=GRID)
    for row, code in enumerate(codes):
        for neuron_id in range(NEURONS):
            drawn = stored.map(row, neuron_id)
            if neuron_id not in code.neuron_ids:
                assert drawn is None
                continue
            activation = float(code.values[code.neuron_ids == neuron_id][0])
            assert drawn is not None
            assert drawn.shape == GRID
            assert np.array_equal(drawn.ravel(), plain_map(values[row], neuron_ids[row], neuron_id, activation))
            # The image code is the maximum over tokens.
            assert drawn.max() == 255


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), max_size=5))
def test_a_stream_writes_what_save_does(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    folder = tmp_path_factory.mktemp("stream")
    parts = [np.arange(length, dtype=np.uint16) for length in lengths]
    with ArrayStream(folder / "parts.npy", np.uint16) as stream:
        for part in parts:
            stream.append(part)
    np.save(folder / "whole.npy", np.concatenate([np.zeros(0, np.uint16), *parts]))
    assert (folder / "parts.npy").read_bytes() == (folder / "whole.npy").read_bytes()


@pytest.mark.parametrize("tokens", [Tokens.PATCHES, Tokens.ALL])
def test_an_index_maps_what_the_encoder_says_of_each_image(tokens: Tokens, corpus: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, Family.VIT, tokens=tokens)
    build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL), Notes())
    pipeline = open_bundle(bundle, thread_count=1)
    first = pipeline.bundle.encoder_spec.prefix_token_count if tokens is Tokens.ALL else 0
    with open_index(tmp_path / "index") as index:
        assert index.patch_grid == (4, 4)
        partly = 0
        for row in (0, 6, 17, 39):
            image = pipeline.prepare((corpus.parent / index.image(row).uri).read_bytes())
            answer = pipeline.run([image], Want(token_codes=True))
            assert answer.token_codes is not None
            values = answer.token_codes.values[0, first:].numpy()
            neuron_ids = answer.token_codes.neuron_ids[0, first:].numpy()
            for neuron_id, activation in zip(answer.codes[0].neuron_ids, answer.codes[0].values, strict=True):
                drawn = index.patch_map(row, int(neuron_id))
                due = plain_map(values, neuron_ids, int(neuron_id), float(activation))
                assert drawn is not None
                # Another batch moves an activation by rounding.
                assert np.abs(drawn.ravel().astype(int) - due.astype(int)).max() <= 1
                partly += int(drawn.max() < 255)
        # A neuron may fire most on the class token, which is no patch.
        assert (partly > 0) == (tokens is Tokens.ALL)
        assert index.patch_map(5, 0) is None  # Quarantined.
        shown = [index.exemplars(neuron, kind, 9) for neuron in range(NEURON_COUNT) for kind in ExemplarKind]
        assert all(index.patch_map(e.row, n // 2) is not None for n, part in enumerate(shown) for e in part)
        for row, neuron_id in ((40, 0), (0, NEURON_COUNT)):
            with pytest.raises(NotFound):
                index.patch_map(row, neuron_id)


def test_without_maps_there_are_none(patches_index: Path, patches_bundle: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    config = IndexConfig(
        shard_image_count=16, batch_images=4, thread_count=1, top_count=10, spread_count=6, patch_maps=False
    )
    build_index(BuildJob(corpus=str(corpus), bundle=patches_bundle, out=out, config=config), Notes())
    assert not list(out.rglob("maps"))
    with open_index(out) as index, open_index(patches_index) as full:
        assert (index.patch_grid, index.patch_map(0, 0)) == (None, None)
        assert index.plan_id != full.plan_id
        assert (index.code(0).values == full.code(0).values).all()


def _wrong_counts(folder: Path) -> None:
    counts = np.load(folder / "shards/00001/maps/counts.npy")
    counts[:2] = counts[1::-1] + np.array([1, -1], dtype=np.int8).astype(np.uint8)
    counts[2] += 1
    np.save(folder / "shards/00001/maps/counts.npy", counts)


def _wrong_patch(folder: Path) -> None:
    patches = np.load(folder / "shards/00000/maps/patches.npy")
    patches[4] = 16
    np.save(folder / "shards/00000/maps/patches.npy", patches)


def _wrong_value(folder: Path) -> None:
    values = np.load(folder / "shards/00002/maps/values.npy")
    values[4] = 0
    np.save(folder / "shards/00002/maps/values.npy", values)


def _cut(folder: Path) -> None:
    path = folder / "shards/00002/maps/values.npy"
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (_wrong_counts, "00001: maps/offsets.npy does not count"),
        (_wrong_patch, "00000: maps/patches.npy names patch 16 of 16"),
        (_wrong_value, "00002: maps/values.npy holds 0"),
        (_cut, "names .* patches, patches.npy has"),
    ],
)
def test_contradictions_are_found(
    patches_index: Path, tmp_path: Path, damage: Callable[[Path], None], finding: str
) -> None:
    verify_index(patches_index, advance=lambda _: None)
    copy = tmp_path / "index"
    shutil.copytree(patches_index, copy)
    damage(copy)
    seal_again(copy)
    with pytest.raises(ArtefactDamaged, match=finding):
        verify_index(copy, advance=lambda _: None)
