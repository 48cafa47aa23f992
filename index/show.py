"""What a person wants to see of an index: how much is in it, which neurons live, what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from index.dense_clusters import dense_density
from index.plan import SHARDS_FOLDER
from index.reader import IndexReader
from index.summary import Summary
from index.terminal_text import printable
from index.values import NeuronFilter, NeuronOrder, NeuronRow
from phosphene.manifest import read_manifest

__all__ = ["describe_index"]

_DECADES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BAR_WIDTH = 32


def describe_index(folder: Path, index: IndexReader, *, name_count: int = 20) -> RenderableType:
    """Return the summary of an open index.

    Args:
        folder: where it lies.
        index: the open index.
        name_count: how many named neurons to list.
    """
    parts: list[RenderableType] = [_figures(folder, index), Text(), _densities(index)]
    named = _best_named(index, name_count)
    if named:
        parts += [Text(), _names(named)]
    return Group(*parts, Text(), _sizes(folder))


def _best_named(index: IndexReader, count: int) -> list[NeuronRow]:
    """The first `count` of the neurons that have a name, by descending score."""
    ranked = index.list_neurons(NeuronOrder.NAME_SCORE, NeuronFilter(alive_only=True))
    return list(islice(takewhile(lambda neuron: neuron.names, map(index.neuron, ranked)), count))


def _figures(folder: Path, index: IndexReader) -> Table:
    summary = index.summary
    named = sum(bool(index.neuron(neuron_id).names) for neuron_id in range(index.neuron_count))
    dead = summary.neuron_count - summary.alive_count
    table = Table(title=Text(printable(f"index {folder.name}")), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # an id without its end is none
    table.add_row("id", index.id)
    table.add_row("plan id", index.plan_id)
    table.add_row("code id", index.code_id)
    folder_count = index.unlisted_folder_count
    table.add_row("images", f"{summary.image_count} indexed, {index.quarantined_count - folder_count} quarantined")
    if folder_count:
        table.add_row("folders", f"{folder_count} could not be listed: what they hold is missing")
    segments = index.config["segments"]
    if len(segments) > 1:
        table.add_row("rows", f"{' + '.join(str(count) for count in segments)}, appended")
    if index.taken_down_count:
        table.add_row("taken down", f"{index.taken_down_count} rows; figures of neurons count them as built")
    table.add_row("neurons", f"{summary.alive_count} alive, {dead} dead, {named} named")
    table.add_row("mean L0", f"{summary.mean_l0:.2f} neurons per image; {summary.cut_image_count} codes cut")
    table.add_row("mean FVU", f"{summary.mean_fvu:.3f} of the residual variance unexplained")
    how = "exact" if index.similarity_is_exact else f"the sketch finds {summary.similar_recall:.1%} of the ten nearest"
    table.add_row("similar images", f"{how}; {_left_out(summary)}")
    table.add_row("labels", "yes" if summary.has_labels else "no")
    table.add_row("captions", "yes" if summary.has_captions else "no")
    table.add_row("text search", "yes" if index.has_text else "no (the encoder has no text tower)")
    return table


def _left_out(summary: Summary) -> str:
    count = len(summary.left_out_neuron_ids)
    if not count:
        return "0 dense neurons are left out"
    share = dense_density(mean_l0=summary.mean_l0, neuron_count=summary.neuron_count)
    return f"{count} dense neurons, which fire on more than {share:.0%} of the images, are left out"


def _densities(index: IndexReader) -> Table:
    densities = np.array(
        [index.neuron(neuron_id).density for neuron_id in index.list_neurons(filter=NeuronFilter(alive_only=True))]
    )
    table = Table(title="density of the living neurons", title_justify="left", box=None)
    table.add_column("share of images", no_wrap=True)
    table.add_column("neurons", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    counts = [
        int(((densities > low) & (densities <= high)).sum())
        for low, high in zip(_DECADES[:-1], _DECADES[1:], strict=True)
    ]
    for low, high, count in zip(_DECADES[:-1], _DECADES[1:], counts, strict=True):
        bar = "█" * round(_BAR_WIDTH * count / max(*counts, 1))
        table.add_row(f"{low:g} to {high:g}", str(count), bar)
    return table


def _names(neurons: Sequence[NeuronRow]) -> Table:
    table = Table(title="best named neurons", title_justify="left", box=None)
    for heading in ("neuron", "density", "maximum", "entropy", "score", "margin"):
        table.add_column(heading, justify="right", overflow="fold")
    for heading in ("name", "from", "other names"):
        table.add_column(heading, overflow="fold")
    for neuron in neurons:
        best, others = neuron.names[0], ", ".join(name.name for name in neuron.names[1:])
        table.add_row(
            str(neuron.neuron_id),
            f"{neuron.density:.4f}",
            f"{neuron.maximum:.3g}",
            "" if neuron.label_entropy is None else f"{neuron.label_entropy:.2f}",
            f"{best.score:.2f}",
            f"{best.margin:.2f}",
            Text(printable(best.name)),
            Text(best.source.value, style="dim"),
            Text(printable(others), style="dim"),
        )
    return table


def _sizes(folder: Path) -> Table:
    table = Table(title="bytes", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    totals: dict[str, int] = {}
    for name, entry in read_manifest(folder).files.items():
        part = name.split("/")[2 if name.startswith(f"{SHARDS_FOLDER}/") else 0]
        totals[part] = totals.get(part, 0) + entry.bytes
    for part, size_bytes in sorted(totals.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{size_bytes:,}")
    table.add_row("all", f"{sum(totals.values()):,}")
    return table
