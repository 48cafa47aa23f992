"""`python -m training sweep`: every combination of settings from one harvest, as a table and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from phosphene.durable_files import write_durably
from phosphene.encoder import Site, Tokens
from training.command import options as shared
from training.command.requests import execution_of, harvest_of, sae_of, site_of, sources_of, training_of
from training.progress import Progress
from training.recipes import Recipe, RecipeName, recipe_of
from training.reports import RunReports
from training.requests import SaeRequest
from training.sweep import Outcome, run_sweep
from training.sweep_grid import Grid, SweepRequest
from training.variants import FIXED_L0, VariantName

TABLE_NAME = "sweep.parquet"
PLOT_NAME = "pareto.png"


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    wholes = shared.list_of(int, "a whole number", "16,32,64")
    numbers = shared.list_of(float, "a number", "1e-3,3e-3")
    command.add_argument("corpus", help="folder of images, CSV or Parquet list, or WebDataset tars")
    command.add_argument(
        "--recipe",
        type=shared.choice_of(RecipeName),
        metavar="NAME",
        help="settings to start from; every option given here wins over them",
    )
    shared.add_encoder(command)
    command.add_argument(
        "--block",
        type=shared.list_of(int, "a whole number", "9,10,11"),
        metavar="LIST",
        help="0-based blocks to listen at; none for --tokens embedding",
    )
    shared.add_tokens(command)
    shared.add_out(command, f"folder of {TABLE_NAME}, {PLOT_NAME} and the bundles")
    shared.add_initial(command)
    command.add_argument("--vocabulary", type=Path, help="file of names, one per line (default: the corpus's labels)")
    sae = command.add_argument_group("autoencoder; LIST is values with commas, and every combination is one run")
    sae.add_argument(
        "--variant",
        type=shared.list_of(shared.choice_of(VariantName), f"the variants {', '.join(VariantName)}", "batchtopk,topk"),
        metavar="LIST",
        help=f"training rules: {', '.join(VariantName)} (default: {VariantName.BATCHTOPK})",
    )
    size = sae.add_mutually_exclusive_group()
    size.add_argument("--neurons", type=wholes, metavar="LIST", help="numbers of neurons")
    size.add_argument("--expansion", type=wholes, metavar="LIST", help="neurons per residual dimension")
    sae.add_argument("--k", type=wholes, metavar="LIST", help="active neurons per token; for the top-k variants")
    sae.add_argument("--sparsity", type=numbers, metavar="LIST", help="penalty weights; for relu and jumprelu")
    shared.add_rule(sae)
    activations = command.add_argument_group("activations, read once for all runs")
    shared.add_harvest(activations)
    shared.add_reading(activations)
    optimisation = command.add_argument_group("optimisation")
    shared.add_length(optimisation)
    optimisation.add_argument("--lr", type=numbers, metavar="LIST", help="peak learning rates")
    optimisation.add_argument(
        "--seeds", type=wholes, metavar="LIST", help="seeds of split, start and order (default: 0)"
    )
    shared.add_schedule(optimisation)
    shared.add_execution(optimisation)
    optimisation.add_argument(
        "--at-once",
        type=shared.whole,
        default=4,
        help="autoencoders trained in one pass over the activations; memory grows with it (default: 4)",
    )
    shared.add_reports(command.add_argument_group("reports"))


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Do it, keep table and picture up to date, and show the table; errors as `training.sweep.run_sweep`."""
    # Only a sweep pays for pyarrow and matplotlib.
    from training.pareto import draw_pareto
    from training.sweep_table import points_of, read_rows, row_of, table_of, with_known_seconds, write_rows

    request = request_of(options)
    table, plot = request.out / TABLE_NAME, request.out / PLOT_NAME
    earlier = read_rows(table)
    rows: list[dict[str, Any]] = []

    def save(outcomes: Sequence[Outcome]) -> None:
        rows[:] = with_known_seconds([row_of(outcome) for outcome in outcomes], earlier)
        request.out.mkdir(parents=True, exist_ok=True)
        write_rows(table, rows)
        points = points_of(rows)
        if points:
            write_durably(
                plot,
                draw_pareto(points, f"{request.out.name}: {len(points)} autoencoder{'s' if len(points) > 1 else ''}"),
            )

    try:
        run_sweep(request, progress, save=save)
    finally:
        if rows and sys.stdout.isatty():
            Console().print(table_of(rows))
    progress.event("swept", runs=len(rows), failed=_failed_count(rows), table=str(table), plot=str(plot))


def request_of(options: argparse.Namespace) -> SweepRequest:
    """What was asked for.

    Raises:
        SettingError, SiteError: see `training.command.requests`.
    """
    recipe = None if options.recipe is None else recipe_of(options.recipe)
    variants: tuple[VariantName, ...] = options.variant or ()
    return SweepRequest(
        sources=sources_of(options, recipe),
        grid=Grid(
            sites=_sites(options.block, options.tokens, recipe),
            variants=variants,
            neuron_counts=options.neurons or (),
            expansions=options.expansion or (),
            ks=options.k or (),
            sparsities=options.sparsity or (),
            learning_rates=options.lr or (),
            seeds=options.seeds or (),
        ),
        sae=sae_of(options, recipe),
        variant_saes=_saes(options, recipe, variants),
        training=training_of(options, recipe),
        harvest=harvest_of(options, seed=0),
        execution=execution_of(options),
        out=options.out,
        reports=RunReports(tensorboard=options.tensorboard, metrics_file=options.metrics_file),
        runs_at_once=options.at_once,
    )


def _saes(
    options: argparse.Namespace, recipe: Recipe | None, variants: Sequence[VariantName]
) -> tuple[SaeRequest, ...]:
    """The autoencoder of each variant, as `fit` would have it; what the recipe says of k goes for all that take one."""
    own = [sae_of(options, recipe, variant=variant) for variant in variants]
    k = next((sae.k for sae in own if sae.k is not None), None)
    return tuple(replace(sae, k=k) if sae.variant in FIXED_L0 else sae for sae in own)


def _sites(blocks: tuple[int, ...] | None, tokens: Tokens | None, recipe: Recipe | None) -> tuple[Site, ...]:
    return tuple(site_of(block, tokens, recipe) for block in blocks or (None,))


def _failed_count(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["bundle"] is None for row in rows)
