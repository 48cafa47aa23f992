"""`python -m training fit`: one autoencoder on a corpus, from options or a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.command import options as shared
from training.command.requests import execution_of, harvest_of, sae_of, site_of, sources_of, training_of
from training.fit import FitResult, fit
from training.plan import FitRequest
from training.progress import Progress, SilentProgress
from training.ranks import open_ranks
from training.recipes import RecipeName, recipe_of
from training.reports import RunReports
from training.variants import VariantName


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("corpus", help="folder of images, CSV or Parquet list, or WebDataset tars")
    command.add_argument(
        "--recipe",
        type=shared.choice_of(RecipeName),
        metavar="NAME",
        help="settings to start from (`python -m training recipes` lists them); every option given here wins over them",
    )
    shared.add_place(command)
    command.add_argument("--work", type=Path, help="folder for activations and checkpoints (default: OUT.work)")
    command.add_argument("--name", help="a name for people (default: the name of OUT)")
    command.add_argument("--vocabulary", type=Path, help="file of names, one per line (default: the corpus's labels)")
    shared.add_initial(command)
    sae = command.add_argument_group("autoencoder")
    size = sae.add_mutually_exclusive_group()
    size.add_argument("--neurons", type=shared.whole, help="number of neurons")
    size.add_argument("--expansion", type=shared.whole, help="neurons per residual dimension")
    sae.add_argument("--k", type=shared.whole, help="active neurons per token (topk, batchtopk, matryoshka)")
    sae.add_argument(
        "--sparsity", type=shared.number, help="weight of the L1 (relu) or L0 (jumprelu) penalty (default: 0.001)"
    )
    sae.add_argument(
        "--variant",
        type=shared.choice_of(VariantName),
        help=f"training rule: {', '.join(VariantName)} (default: {VariantName.BATCHTOPK})",
    )
    shared.add_rule(sae)
    activations = command.add_argument_group("activations")
    shared.add_harvest(activations)
    shared.add_reading(activations)
    optimisation = command.add_argument_group("optimisation")
    shared.add_length(optimisation)
    optimisation.add_argument("--lr", type=shared.number, help="peak learning rate (default: from width and steps)")
    shared.add_schedule(optimisation)
    optimisation.add_argument("--seed", type=shared.whole, help="decides split, start and order (default: 0)")
    shared.add_execution(optimisation)
    reports = command.add_argument_group("reports")
    reports.add_argument("--journal", type=Path, metavar="FILE", help="the curve as JSON lines (default: below --work)")
    shared.add_reports(reports)


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Do it and say what came out; errors as `training.fit.fit`."""
    with open_ranks(options.device) as ranks:
        own = progress if ranks.is_first else SilentProgress()
        report(fit(request_of(options), own, ranks), own)


def request_of(options: argparse.Namespace) -> FitRequest:
    """What was asked for."""
    recipe = None if options.recipe is None else recipe_of(options.recipe)
    return FitRequest(
        sources=sources_of(options, recipe),
        site=site_of(options.block, options.tokens, recipe),
        sae=sae_of(
            options,
            recipe,
            variant=options.variant,
            neuron_count=options.neurons,
            expansion=options.expansion,
            k=options.k,
            sparsity=options.sparsity,
        ),
        out=options.out,
        work=options.work,
        harvest=harvest_of(options, seed=options.seed or 0),
        training=training_of(options, recipe, learning_rate=options.lr, seed=options.seed),
        execution=execution_of(options),
        name=options.name,
        reports=RunReports(journal=options.journal, tensorboard=options.tensorboard, metrics_file=options.metrics_file),
    )


def report(result: FitResult, progress: Progress) -> None:
    """Say what the bundle is worth."""
    bundle, quality = result.bundle, result.bundle.training["held_out_quality"]
    progress.event(
        "published" if result.is_new else "already finished",
        bundle=str(bundle.path),
        id=bundle.id,
        fvu=quality["fvu"],
        explained_variance=quality["explained_variance"],
        l0=quality["l0"],
        dead_share=bundle.training["training_quality"]["dead_share"],
        quarantined=len(bundle.training["quarantined"]),
    )
