"""What a person wants to know of a job that has ended: how much is in the index, what it takes, where the time went."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType
from rich.table import Table

from index.build import BuildResult
from index.metrics import StageFigures

__all__ = ["describe_outcome", "outcome_figures"]


def outcome_figures(result: BuildResult) -> dict[str, int | float]:
    """Return the figures of a finished index by name; what was seen is indexed, quarantined or skipped.

    A folder that could not be listed is none of that: nobody saw what it holds.
    """
    summary = result.summary
    skipped_count, folder_count = sum(result.skipped_counts.values()), result.unlisted_folder_count
    return {
        "images": summary.image_count,
        "quarantined_images": summary.quarantined_count - folder_count,
        "skipped_files": skipped_count,
        "seen_files": summary.row_count - folder_count + skipped_count,
        "unlisted_folders": folder_count,
        "neurons": summary.neuron_count,
        "dead_neurons": summary.neuron_count - summary.alive_count,
        "l0_neurons": round(summary.mean_l0, 4),
        "fvu_ratio": round(summary.mean_fvu, 6),
        "size_bytes": sum(entry.bytes for entry in result.manifest.files.values()),
    }


def describe_outcome(result: BuildResult, stages: Mapping[str, StageFigures]) -> RenderableType:
    """Return the summary of a job for a terminal."""
    figures = outcome_figures(result)
    images = int(figures["images"])
    table = Table(title=f"index {result.manifest.id[:12]}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("images", f"{images:,} indexed, {int(figures['quarantined_images']):,} quarantined")
    if result.skipped_counts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(result.skipped_counts.items()))
        table.add_row(
            "skipped", f"{int(figures['skipped_files']):,} of {int(figures['seen_files']):,} files: {reasons}"
        )
    if result.unlisted_folder_count:
        table.add_row("folders", f"{result.unlisted_folder_count:,} could not be listed: what they hold is missing")
    table.add_row("neurons", f"{int(figures['neurons']):,}, of which {int(figures['dead_neurons']):,} never fire")
    table.add_row("mean L0", f"{figures['l0_neurons']:.2f} neurons per image")
    table.add_row("bytes", f"{int(figures['size_bytes']):,}, {figures['size_bytes'] / max(1, images):,.0f} per image")
    for name, stage in stages.items():
        table.add_row(f"time, {name}", f"{stage.duration_s:.1f} s")
    return table
