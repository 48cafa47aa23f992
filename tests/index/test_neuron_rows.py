"""The neuron table of a hand-made corpus: names and entropies say what was put in."""

from pathlib import Path

import numpy as np
import pytest

from index.exemplars import ExemplarStore, write_exemplars
from index.image_table import ImageTable, write_digests
from index.neuron_rows import neuron_rows
from index.values import NameSource, NeuronRow
from phosphene.codes import ImageCode
from tests.index.shard_folders import image_record, write_shards

COLOURS = ("red", "blue", "green", "yellow")
ROW_COUNT = 80


@pytest.fixture(params=[80, 32, 3])
def neurons(tmp_path: Path, request: pytest.FixtureRequest) -> list[NeuronRow]:
    """Neuron 0 fires on red images, 1 on every image, 2 never; the last row is quarantined. Labels are colours."""
    colours = [COLOURS[row % 4] for row in range(ROW_COUNT)]
    records = [
        image_record(
            row,
            label=f"the_{colour}s",
            caption=f"a {colour} thing",
            quarantine_reason="corrupt" if row == ROW_COUNT - 1 else None,
        )
        for row, colour in enumerate(colours)
    ]
    codes = []
    for row, colour in enumerate(colours):
        active = [] if row == ROW_COUNT - 1 else [0, 1] if colour == "red" else [1]
        values = np.array([2.0, 1.0][-len(active) :] if active else [], dtype=np.float32)
        codes.append(ImageCode(neuron_ids=np.array(active, dtype=np.int32), values=values))
    shards = write_shards(tmp_path, codes, neuron_count=3, size=request.param, records=records)
    write_digests(tmp_path, shards)
    images = ImageTable(tmp_path, shards)
    write_exemplars(tmp_path, shards, images.first_rows(), top_count=40, spread_count=4)
    return neuron_rows(shards, ExemplarStore(tmp_path), images)


def test_a_neuron_is_called_what_its_images_are(neurons: list[NeuronRow]) -> None:
    names = {name.source: name for name in neurons[0].names}
    assert names[NameSource.LABEL].name == "the reds"
    assert "red" in names[NameSource.CAPTION].name
    assert all(name.margin > 0.5 for name in names.values())


def test_a_neuron_of_all_images_and_a_dead_one_have_no_name(neurons: list[NeuronRow]) -> None:
    assert neurons[1].names == neurons[2].names == ()


def test_figures_are_over_readable_images(neurons: list[NeuronRow]) -> None:
    assert [neuron.firing_count for neuron in neurons] == [20, 79, 0]
    assert neurons[0].density == 20 / 79
    assert (neurons[0].mean, neurons[0].std, neurons[0].maximum) == (2.0, 0.0, 2.0)
    assert neurons[0].label_entropy == 0
    assert neurons[1].label_entropy == pytest.approx(2, abs=0.01)
    assert neurons[2].label_entropy is None
