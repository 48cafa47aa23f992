"""The table of a sweep, one row per run: as plain values, as Parquet, and for a terminal; knows nothing of training."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from phosphene.durable_files import write_durably
from phosphene.errors import SettingError
from training.pareto import Point, pareto_front
from training.sweep import Outcome

__all__ = ["points_of", "read_rows", "row_of", "table_of", "with_known_seconds", "write_rows"]

_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("block", pa.int64()),
        ("tokens", pa.string()),
        ("variant", pa.string()),
        ("neurons", pa.int64()),
        ("expansion", pa.float64()),
        ("k", pa.int64()),
        ("sparsity", pa.float64()),
        ("learning_rate", pa.float64()),
        ("steps", pa.int64()),
        ("batch", pa.int64()),
        ("seed", pa.int64()),
        ("fvu", pa.float64()),
        ("training_fvu", pa.float64()),
        ("explained_variance", pa.float64()),
        ("l0", pa.float64()),
        ("dead_share", pa.float64()),
        ("threshold", pa.float64()),
        ("seconds", pa.float64()),
        ("bundle", pa.string()),
        ("reason", pa.string()),
        ("settings", pa.string()),
    ]
)


def row_of(outcome: Outcome) -> dict[str, Any]:
    """One run as a row; what a failed run never resolved is what was asked for, or None.

    The columns: `fvu`, `explained_variance` and `l0` are of held-out residuals, `training_fvu` and `dead_share` of
    training ones; `threshold` is BatchTopK's, in units of the scaled pre-activation; `bundle` is its id; `settings`
    is the resolved configuration as JSON.
    """
    request, bundle = outcome.run.request, outcome.bundle
    row: dict[str, Any] = dict.fromkeys(_SCHEMA.names)
    row |= {
        "run": outcome.run.name,
        "block": request.site.block,
        "tokens": str(request.site.tokens),
        "variant": str(request.sae.variant),
        "neurons": request.sae.neuron_count,
        "expansion": request.sae.expansion,
        "k": request.sae.k,
        "sparsity": request.sae.sparsity,
        "learning_rate": request.training.learning_rate,
        "steps": request.training.step_count,
        "batch": request.training.batch_rows,
        "seed": request.training.seed,
        "seconds": outcome.seconds,
        "reason": outcome.reason,
    }
    if outcome.held_out is not None:
        row |= _quality(asdict(outcome.held_out))
    if outcome.training is not None:
        row |= _training_quality(asdict(outcome.training))
    if bundle is None:
        return row
    facts = bundle.training
    plan, held_out, training = facts["plan"], facts["held_out_quality"], facts["training_quality"]
    rule = plan["sae"]["variant"]
    calibration = facts["calibration"] or {}
    return row | {
        "neurons": plan["sae"]["neuron_count"],
        "expansion": plan["sae"]["neuron_count"] / bundle.sae.width,
        "k": rule.get("k"),
        "sparsity": rule.get("l1_coefficient", rule.get("l0_coefficient")),
        "learning_rate": plan["training"]["learning_rate"],
        "steps": plan["training"]["step_count"],
        "batch": plan["training"]["batch_rows"],
        **_quality(held_out),
        **_training_quality(training),
        "threshold": calibration.get("threshold"),
        "bundle": bundle.id,
        "settings": json.dumps({"sae": plan["sae"], "training": plan["training"], "harvest": plan["harvest"]}),
    }


def _quality(held_out: Mapping[str, Any]) -> dict[str, Any]:
    return {name: held_out[name] for name in ("fvu", "explained_variance", "l0")}


def _training_quality(training: Mapping[str, Any]) -> dict[str, Any]:
    return {"training_fvu": training["fvu"], "dead_share": training["dead_share"]}


def with_known_seconds(rows: Sequence[dict[str, Any]], earlier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, where a bundle had been finished before with the time that an earlier table gives for it."""
    known = {row["bundle"]: row["seconds"] for row in earlier if row["bundle"] is not None}
    return [
        row | {"seconds": known.get(row["bundle"])} if row["seconds"] is None and row["bundle"] else row for row in rows
    ]


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The published runs as points: a curve for each site, variant and size."""
    published = [row for row in rows if row["bundle"] is not None]
    has_many_sites = len({(row["block"], row["tokens"]) for row in published}) > 1
    return [
        Point(
            curve=f"{row['variant']}, {row['neurons']:,} neurons" + (f", {_site(row)}" if has_many_sites else ""),
            setting=str(row["sparsity"] if row["k"] is None else row["k"]),
            rate=row["learning_rate"],
            l0=row["l0"],
            fvu=row["fvu"],
        )
        for row in published
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_SCHEMA), buffer)
    write_durably(path, buffer.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run of the sweep; none where there is no such table.

    Raises:
        SettingError: something else lies there.
    """
    if not path.is_file():
        return []
    try:
        table = pq.read_table(path)
    except pa.ArrowException as cause:
        raise SettingError(
            f"{str(path)!r} is no table of a sweep ({cause}): remove it, or choose another --out", field="out"
        ) from cause
    rows: list[dict[str, Any]] = table.to_pylist() if table.schema.names == _SCHEMA.names else []
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal; those on the Pareto front of FVU and L0 are marked."""
    published = [row for row in rows if row["bundle"] is not None]
    front = pareto_front([(row["l0"], row["fvu"]) for row in published])
    best = {row["run"] for row, is_best in zip(published, front, strict=True) if is_best}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", style="bold")
    table.add_column("run", overflow="fold")
    for heading in ("FVU", "explained", "L0", "dead", "lr", "s"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("bundle", overflow="fold")
    for row in rows:
        mark = "*" if row["run"] in best else ""
        if row["bundle"] is None:
            table.add_row(
                mark,
                row["run"],
                "",
                "",
                "",
                "",
                _short(row["learning_rate"]),
                _short(row["seconds"]),
                Text(row["reason"], style="italic"),
            )
        else:
            table.add_row(
                mark,
                row["run"],
                f"{row['fvu']:.4f}",
                f"{row['explained_variance']:.4f}",
                f"{row['l0']:.1f}",
                f"{row['dead_share']:.1%}",
                _short(row["learning_rate"]),
                _short(row["seconds"]),
                row["bundle"][:12],
            )
    return table


def _site(row: Mapping[str, Any]) -> str:
    return str(row["tokens"]) if row["block"] is None else f"block {row['block']}"


def _short(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}"
