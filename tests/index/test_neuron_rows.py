"""The neuron table of a hand-made corpus: names and entropies say what was put in."""

from pathlib import Path

import numpy as np
import pytest

from index.codes_store import CodesStore, write_codes
from index.exemplars import ExemplarStore, write_exemplars
from index.image_table import ImageRecord, ImageTable, concatenate_images, write_images
from index.neuron_rows import neuron_rows
from index.postings import Postings, write_postings
from index.values import NameSource, NeuronRow
from phosphene.codes import ImageCode

COLOURS = ("red", "blue", "green", "yellow")
ROW_COUNT = 80


@pytest.fixture
def neurons(tmp_path: Path) -> list[NeuronRow]:
    """Neuron 0 fires on red images, 1 on every image, 2 never; the last row is quarantined. Labels are colours."""
    shard = tmp_path / "shard"
    shard.mkdir()
    colours = [COLOURS[row % 4] for row in range(ROW_COUNT)]
    records = [
        ImageRecord(
            row=row,
            uri=f"{row}.png",
            sha256=f"{row:064x}",
            byte_count=1,
            width=8,
            height=8,
            label=f"the_{colour}s",
            caption=f"a {colour} thing",
            fvu=0.5,
            quarantine_reason="corrupt" if row == ROW_COUNT - 1 else None,
        )
        for row, colour in enumerate(colours)
    ]
    write_images(shard, records)
    concatenate_images(tmp_path, [shard])
    codes = []
    for row, colour in enumerate(colours):
        active = [] if row == ROW_COUNT - 1 else [0, 1] if colour == "red" else [1]
        values = np.array([2.0, 1.0][-len(active) :] if active else [], dtype=np.float32)
        codes.append(ImageCode(neuron_ids=np.array(active, dtype=np.int32), values=values))
    write_codes(tmp_path, codes)
    write_postings(tmp_path, CodesStore(tmp_path), 3)
    postings = Postings(tmp_path)
    write_exemplars(tmp_path, postings, np.arange(ROW_COUNT), top_count=40, spread_count=4)
    return neuron_rows(postings, ExemplarStore(tmp_path, postings), ImageTable(tmp_path))


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
