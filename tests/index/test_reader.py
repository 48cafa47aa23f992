"""The reader over a real small index: every answer, every refusal, one flipped bit in each file."""

from __future__ import annotations

import gc
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.reader import IndexReader, open_index
from index.values import ExemplarKind, NeuronFilter, NeuronOrder
from phosphene.bundle import load_bundle
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactError,
    ArtefactMismatch,
    ArtefactMissing,
    NotFound,
    SettingError,
    Unanswerable,
)
from phosphene.images import image_sha256
from phosphene.pipeline import open_bundle
from tests.index.small_world import NEURON_COUNT


@pytest.fixture(scope="module")
def index(built: Path) -> Iterator[IndexReader]:
    with open_index(built) as opened:
        yield opened


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_a_closed_reader_holds_no_file(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(built, folder)
    opened = open_index(folder)
    opened.similar_images(opened.code(0), 3)
    opened.images_by_expression("1 | 2", 3)
    assert str(folder) in Path("/proc/self/maps").read_text()
    opened.close()
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert opened.image_count == 39
    opened.close()


def test_says_what_it_was_built_from(index: IndexReader, bundle: Path) -> None:
    made_with = load_bundle(bundle)
    assert (index.bundle_id, index.code_id) == (made_with.id, made_with.code_id)
    assert index.neuron_count == NEURON_COUNT
    assert len(index.id) == len(index.plan_id) == 64
    assert index.config["batch_images"] == 4
    assert (index.has_labels, index.has_text) == (True, True)
    assert (index.similarity_is_exact, index.summary.similar_recall) == (True, 1.0)


def test_rows_know_their_image(index: IndexReader, corpus: Path) -> None:
    for row in (0, 6, 39):
        image = index.image(row)
        data = (corpus.parent / image.uri).read_bytes()
        assert image.sha256 == image_sha256(data)
        assert (image.row, image.width, image.height) == (row, 40, 40)
        assert image.caption is not None
        assert image.label in image.caption
        assert index.row_of(image.sha256) == row
        assert index.row_of(image.sha256.upper()) == row
        with Image.open(io.BytesIO(index.thumbnail(row))) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (40, 40))
        assert 0 < index.fvu(row) < 2


def test_digests_find_rows_that_can_be_used(index: IndexReader) -> None:
    assert index.row_of(index.image(7).sha256) == 6  # The same bytes, twice.
    assert index.row_of(index.image(5).sha256) is None  # Quarantined.
    assert index.row_of("no digest") is None
    assert index.row_of("") is None


def test_every_figure_of_every_neuron_equals_the_codes(index: IndexReader) -> None:
    codes = [index.code(row) for row in range(index.row_count)]
    for neuron_id in range(NEURON_COUNT):
        firing = {
            row: float(code.values[code.neuron_ids == neuron_id][0])
            for row, code in enumerate(codes)
            if neuron_id in code.neuron_ids
        }
        neuron = index.neuron(neuron_id)
        assert (neuron.firing_count, neuron.alive) == (len(firing), bool(firing))
        assert neuron.density == len(firing) / 39
        if firing:
            values = np.array(list(firing.values()))
            assert (neuron.mean, neuron.maximum) == (pytest.approx(values.mean()), values.max())
            assert len(neuron.quantiles) == len(index.quantile_levels)
            best = max(firing, key=lambda row: (firing[row], -row))
            top = index.exemplars(neuron_id, ExemplarKind.TOP, 3)[0]
            assert (top.row, top.value) == (best, firing[best])
            assert index.quantile(neuron_id, firing[best]) == (values < firing[best]).mean()
            masses = Counter[str | None]()
            for row, value in firing.items():
                masses[index.image(row).label] += value  # type: ignore[assignment]
            shares = np.array(list(masses.values())) / sum(masses.values())
            assert neuron.label_entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-9)
        shown = index.exemplars(neuron_id, ExemplarKind.TOP, 100)
        digests = [index.image(exemplar.row).sha256 for exemplar in shown]
        assert len(set(digests)) == len(digests) == min(10, len({index.image(row).sha256 for row in firing}))
        assert index.images_by_neuron(neuron_id, 2) == shown[:2]


def test_neurons_are_listed_in_order(index: IndexReader) -> None:
    by_density = index.list_neurons(NeuronOrder.DENSITY, NeuronFilter(alive_only=True))
    densities = [index.neuron(neuron_id).density for neuron_id in by_density]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] > 0
    assert index.list_neurons() == list(range(NEURON_COUNT))
    scores = [index.neuron(neuron_id).monosemanticity for neuron_id in index.list_neurons(NeuronOrder.MONOSEMANTICITY)]
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert scores[: len(known)] == known
    assert 1 < len(known) < NEURON_COUNT


def test_similar_images_leave_out_the_query_and_the_quarantined(index: IndexReader) -> None:
    for row in (0, 6):
        found = index.similar_images(index.code(row), 100, exclude_rows=[row])
        assert row not in {image.row for image in found}
        assert 5 not in {image.row for image in found}
        similarities = [image.similarity for image in found]
        assert similarities == sorted(similarities, reverse=True)
    found = index.similar_images(index.code(6), 100, exclude_rows=[6])
    assert max(found, key=lambda image: (image.similarity, image.row == 7)).row == 7  # The same bytes.
    assert index.similar_images(index.code(5), 5) == []
    assert index.similar_recall == 1.0
    assert index.left_out_neuron_ids == index.summary.left_out_neuron_ids


def test_expressions_and_histograms_equal_brute_force(index: IndexReader) -> None:
    codes = [index.code(row) for row in range(index.row_count)]
    alive = index.list_neurons(NeuronOrder.DENSITY, NeuronFilter(alive_only=True))
    fires = {neuron: [row for row, code in enumerate(codes) if neuron in code.neuron_ids] for neuron in alive}
    first, second = next(pair for pair in permutations(alive, 2) if len(set(fires[pair[0]]) - set(fires[pair[1]])) > 2)
    due = set(fires[first]) - set(fires[second])
    found = index.images_by_expression(f"{first} & !{second}", 100)
    assert {row for row, _ in found} == due
    assert index.count_by_expression(f"{first} & !{second}") == len(due)
    assert index.count_by_expression(f"!{first}") == 39 - len(fires[first])  # Not the quarantined row.
    values = [float(codes[row].values[codes[row].neuron_ids == first][0]) for row in fires[first]]
    edges = np.linspace(0, max(values), 5)
    assert index.activation_histogram(first, edges).tolist() == np.histogram(values, edges)[0].tolist()
    with pytest.raises(NotFound, match="96"):
        index.images_by_expression("96", 1)


def test_co_active_neurons_fire_together_as_often_as_they_say(index: IndexReader) -> None:
    codes = [set(index.code(row).neuron_ids.tolist()) for row in range(index.row_count)]
    found = {neuron_id: index.co_active_neurons(neuron_id, 3) for neuron_id in range(NEURON_COUNT)}
    assert any(found.values())
    for neuron_id, others in found.items():
        scores = [score for _, score, _ in others]
        assert scores == sorted(scores, reverse=True)
        for other, _, count in others:
            assert count == sum({neuron_id, other} <= code for code in codes)


def test_directions_find_their_neuron(index: IndexReader, bundle: Path) -> None:
    directions = load_bundle(bundle).sae.directions.numpy()
    neuron_id, cosine = index.nearest_neurons(2 * directions[11], 3)[0]
    assert (neuron_id, cosine) == (11, pytest.approx(1.0))
    cosines = directions @ directions[11]
    cosines[11] = -2
    assert [other for other, _ in index.neurons_like(11, 4)] == np.argsort(-cosines)[:4].tolist()


def test_text_finds_living_neurons_and_readable_images(index: IndexReader, bundle: Path) -> None:
    vector = open_bundle(bundle, thread_count=1).text_vectors(["a red circle"])[0]
    found = index.neurons_by_text(vector, 500)
    assert {neuron_id for neuron_id, _ in found} == set(index.list_neurons(filter=NeuronFilter(alive_only=True)))
    assert len(index.images_by_text(vector, 500)) == 39
    with pytest.raises(SettingError, match=f"3 numbers; embeddings have {len(vector)}"):
        index.neurons_by_text(vector[:3], 5)


@pytest.mark.parametrize("neuron_id", [-1, NEURON_COUNT, 10**9])
def test_an_unknown_neuron_is_named(index: IndexReader, neuron_id: int) -> None:
    for ask in (
        lambda: index.neuron(neuron_id),
        lambda: index.exemplars(neuron_id, ExemplarKind.TOP, 1),
        lambda: index.quantile(neuron_id, 1.0),
        lambda: index.neurons_like(neuron_id, 1),
        lambda: index.co_active_neurons(neuron_id, 1),
    ):
        with pytest.raises(NotFound, match=f"neuron {neuron_id} does not exist; neurons are 0 to {NEURON_COUNT - 1}"):
            ask()


@pytest.mark.parametrize("row", [-1, 40])
def test_an_unknown_row_is_named(index: IndexReader, row: int) -> None:
    for ask in (index.image, index.thumbnail, index.code, index.fvu):
        with pytest.raises(NotFound, match=f"row {row} does not exist; rows are 0 to 39"):
            ask(row)
    with pytest.raises(NotFound, match="row 5 is quarantined"):
        index.fvu(5)


def test_an_index_without_embeddings_says_so(built: Path, index: IndexReader) -> None:
    bare = IndexReader.__new__(IndexReader)
    bare.__dict__.update(index.__dict__ | {"_text": None})
    assert not bare.has_text
    with pytest.raises(Unanswerable, match="no text tower"):
        bare.neurons_by_text(np.zeros(20, dtype=np.float32), 3)


def test_another_code_id_is_refused_with_both_and_the_remedy(built: Path, index: IndexReader) -> None:
    with pytest.raises(ArtefactMismatch, match=f"{index.code_id}.*{'0' * 64}.*python -m index build"):
        open_index(built, code_id="0" * 64)


def test_a_bundle_is_no_index(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMismatch, match="index"):
        open_index(bundle)
    with pytest.raises(ArtefactMissing):
        open_index(tmp_path / "nothing")


def test_one_flipped_bit_in_any_file_is_refused(built: Path, tmp_path: Path) -> None:
    names = [path.relative_to(built) for path in sorted(built.rglob("*")) if path.is_file()]
    assert len({name.parent for name in names if name.match("shards/0000?/*")}) == 3
    # One shard is as good as the others.
    names = [name for name in names if not name.is_relative_to("shards") or name.parts[1] == "00001"]
    assert len(names) == 42
    copy = tmp_path / "index"
    shutil.copytree(built, copy)
    for name in names:
        whole = (copy / name).read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[place] ^= 1
            (copy / name).write_bytes(flipped)
            with pytest.raises(ArtefactError, match="index"):
                open_index(copy)
        (copy / name).unlink()
        with pytest.raises(ArtefactMissing):
            open_index(copy)
        (copy / name).write_bytes(whole[:-1])
        with pytest.raises(ArtefactDamaged):
            open_index(copy)
        (copy / name).write_bytes(whole)
    open_index(copy).close()
