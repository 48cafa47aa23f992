"""Two indexes of one bundle: which neurons fire more, beyond chance."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from index.__main__ import main
from index.build import BuildJob, build_index
from index.diff import density_ratios, describe_shifts, neurons_firing_more
from index.reader import IndexReader, open_index
from index.values import Exemplar, ImageRow, NameSource, NeuronName, NeuronRow
from phosphene.errors import ArtefactMismatch
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle


class Made(IndexReader):
    """An index by its counts."""

    def __init__(self, name: str, counts: list[int], image_count: int) -> None:
        self._name, self._counts, self._image_count = name, counts, image_count
        self.names: dict[int, str] = {}

    @property
    def code_id(self) -> str:
        return "c" * 64

    @property
    def image_count(self) -> int:
        return self._image_count

    @property
    def firing_counts(self) -> np.ndarray:
        return np.array(self._counts)

    def neuron(self, neuron_id: int) -> NeuronRow:
        count = self._counts[neuron_id]
        return NeuronRow(
            neuron_id=neuron_id,
            firing_count=count,
            density=count / self._image_count,
            mean=1.0,
            std=0.0,
            maximum=1.0,
            quantiles=(),
            label_entropy=None,
            names=tuple(
                NeuronName(name=name, score=0.9, margin=0.5, source=NameSource.LABEL)
                for named, name in self.names.items()
                if named == neuron_id
            ),
        )

    def images_by_neuron(self, neuron_id: int, count: int) -> list[Exemplar]:
        return [Exemplar(row=10 * neuron_id + place, value=1.0, quantile=0.5) for place in range(count)]

    def image(self, row: int) -> ImageRow:
        return ImageRow(row=row, uri=f"{self._name}/{row}.png", sha256="", label=None, caption=None, width=1, height=1)


def test_neurons_that_fire_more_come_in_order_with_exemplars() -> None:
    #                            the same, much more, a little by chance, less, more, never seen before
    first = Made("first", [500, 10, 20, 300, 100, 0], 1000)
    second = Made("second", [1000, 400, 48, 100, 400, 60], 2000)
    shifts = neurons_firing_more(first, second)
    assert [shift.neuron_id for shift in shifts] == [1, 4, 5]
    assert shifts[0].densities == (0.01, 0.2)
    assert shifts[0].ratio == pytest.approx(20, rel=0.06)
    assert shifts[0].exemplar_uris == ("second/10.png", "second/11.png", "second/12.png")
    for shift in shifts:
        assert 1 < shift.bounds[0] < shift.ratio < shift.bounds[1]
    assert [shift.neuron_id for shift in neurons_firing_more(second, first)] == [3]


def test_a_neuron_is_called_what_it_is_in_the_second_index_or_else_in_the_first() -> None:
    first, second = Made("first", [10, 10, 10], 1000), Made("second", [400, 400, 400], 1000)
    first.names, second.names = {0: "cat", 1: "dog"}, {1: "[red] wolf"}
    shifts = neurons_firing_more(first, second)
    assert [shift.name for shift in shifts] == ["cat", "[red] wolf", None]
    stream = io.StringIO()
    Console(file=stream, width=120).print(describe_shifts(shifts, count=5))
    assert "cat" in stream.getvalue()
    assert "[red] wolf" in stream.getvalue()


def test_the_command_prints_them(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(built), str(built), "--count", "3"]) == 0
    assert "0 neurons fire more in the second index" in capsys.readouterr().out
    stream = io.StringIO()
    shifts = neurons_firing_more(Made("first", [10, 500], 1000), Made("second", [400, 10], 1000))
    Console(file=stream, width=120).print(describe_shifts(shifts, count=5))
    assert "second/0.png, second/1.png, second/2.png" in stream.getvalue()
    assert "second/10.png" not in stream.getvalue()


def test_indexes_of_two_bundles_are_refused(built: Path, tmp_path: Path, corpus: Path) -> None:
    other = write_bundle(tmp_path, seed=5)
    build_index(BuildJob(corpus=str(corpus), bundle=other, out=tmp_path / "index", config=SMALL), Notes())
    with (
        open_index(built) as first,
        open_index(tmp_path / "index") as second,
        pytest.raises(ArtefactMismatch, match="of one bundle"),
    ):
        neurons_firing_more(first, second)


def test_chance_alone_is_listed_in_one_pair_out_of_twenty_at_most() -> None:
    generator = np.random.default_rng(0)
    density = 10.0 ** generator.uniform(-4, -0.5, 500)
    false = 0
    for _ in range(200):
        first, second = generator.binomial(5000, density), generator.binomial(3000, density)
        _, low, _ = density_ratios(first, 5000, second, 3000)
        false += bool((low > 1).any())
    assert false / 200 <= 0.05


def test_the_bounds_hold_the_true_ratio_and_narrow_with_images() -> None:
    widths = []
    for images in (1_000, 100_000):
        ratio, low, high = density_ratios(np.array([images // 50]), images, np.array([images // 10]), images)
        assert low[0] < 5 < high[0]
        assert ratio[0] == pytest.approx(5, rel=0.03)
        widths.append(high[0] / low[0])
    assert widths[1] < widths[0]
    # None seen in the first says that there are more, not that there are infinitely many more.
    ratio, low, high = density_ratios(np.array([0]), 1000, np.array([50]), 1000)
    assert 1 < low[0] < ratio[0] < high[0] < np.inf
