"""`python -m training recipes`: the recipes as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import assert_never

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from training.recipes import Recipe, RecipeName, recipe_of
from training.requests import SaeRequest, TrainingRequest
from training.variants import VariantName

_LEFT_OPEN = "left open"
_WIDTH = 180
_HEADINGS = ("paper", "encoder", "site", "size", "rule", "training")


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--json", action="store_true", help="every setting, one recipe per line, for programs")


def run(options: argparse.Namespace) -> None:
    """Print them."""
    recipes = [recipe_of(name) for name in RecipeName]
    if options.json:
        for recipe in recipes:
            sys.stdout.write(json.dumps(dataclasses.asdict(recipe), default=str) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(view_of(recipes, console))


def view_of(recipes: list[Recipe], console: Console) -> Table | Group:
    """The table, or the list where the console is too narrow for it."""
    table = table_of(recipes)
    natural = Measurement.get(console, console.options.update(max_width=10 * _WIDTH), table).maximum
    return table if natural <= console.width else list_of(recipes)


def table_of(recipes: list[Recipe]) -> Table:
    """Name, paper, encoder, site, size, rule and length of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", *_HEADINGS):
        table.add_column(heading, no_wrap=True)
    for recipe in recipes:
        table.add_row(recipe.name, *_facts(recipe))
    return table


def list_of(recipes: list[Recipe]) -> Group:
    """The same for a terminal that is too narrow for the table, with every name, which is to be typed, in one piece."""
    lines: list[Text | Padding] = []
    for recipe in recipes:
        said = " · ".join(f"{heading} {fact}" for heading, fact in zip(_HEADINGS, _facts(recipe), strict=True))
        lines += [Text(recipe.name, style="bold", overflow="fold"), Padding(Text(said), (0, 0, 0, 2))]
    return Group(*lines)


def _facts(recipe: Recipe) -> tuple[str, ...]:
    return (
        recipe.paper,
        _encoder(recipe),
        str(recipe.site or _LEFT_OPEN),
        _size(recipe.sae),
        _rule(recipe.sae),
        _length(recipe.training),
    )


def _encoder(recipe: Recipe) -> str:
    if recipe.encoder is None:
        return _LEFT_OPEN
    folder = Path(recipe.encoder)
    return "/".join(folder.parts[-2:]) if folder.is_absolute() else recipe.encoder


def _size(sae: SaeRequest) -> str:
    return f"x {sae.expansion}" if sae.neuron_count is None else f"{sae.neuron_count} neurons"


def _rule(sae: SaeRequest) -> str:
    match sae.variant:
        case VariantName.TOPK | VariantName.BATCHTOPK | VariantName.MATRYOSHKA:
            return f"{sae.variant}, k = {sae.k}"
        case VariantName.RELU:
            return f"{sae.variant}, L1 {sae.sparsity:g}"
        case VariantName.JUMPRELU:
            return f"{sae.variant}, L0 {sae.sparsity:g}"
        case _:
            assert_never(sae.variant)


def _length(training: TrainingRequest) -> str:
    if training.step_count is None:
        return "from the corpus"
    batch = "" if training.batch_rows is None else f" of {training.batch_rows:,}"
    return f"{training.step_count:,} steps{batch}"
