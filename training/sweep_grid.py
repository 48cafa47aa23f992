"""What a sweep is asked for: lists of settings whose every combination is one run; has no effects.

Everything that no encoder can mend is refused here, before any work. Knows nothing of training.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from phosphene.encoder import Site
from phosphene.errors import SettingError
from training.execution import Execution
from training.harvest_settings import HarvestSettings
from training.plan import FitRequest, Sources
from training.reports import RunReports
from training.requests import SaeRequest, TrainingRequest
from training.variants import FIXED_L0, VariantName

RUN_LIMIT = 10_000
"""Runs of one sweep."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings that vary; an empty tuple leaves a setting as the base has it."""

    sites: tuple[Site, ...]
    """Where to listen; at least one."""
    variants: tuple[VariantName, ...] = ()
    """Training rules."""
    neuron_counts: tuple[int, ...] = ()
    """Numbers of neurons."""
    expansions: tuple[int, ...] = ()
    """Numbers of neurons as multiples of the residual's width; instead of `neuron_counts`."""
    ks: tuple[int, ...] = ()
    """Active neurons per token, for the variants that fix it."""
    sparsities: tuple[float, ...] = ()
    """Weights of the penalty, for the variants that have one."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates."""
    seeds: tuple[int, ...] = ()
    """Seeds of split, start and order."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """One sweep as it was asked for."""

    sources: Sources
    """What the autoencoders are made from."""
    grid: Grid
    """What varies."""
    sae: SaeRequest
    """What does not vary of the autoencoder."""
    training: TrainingRequest
    """What does not vary of the optimisation."""
    harvest: HarvestSettings
    """How activations are read; once for all runs."""
    execution: Execution
    """Device and threads."""
    out: Path
    """Folder of the table, the plot and the bundles."""
    reports: RunReports = RunReports()
    """Where the curves go."""
    variant_saes: tuple[SaeRequest, ...] = ()
    """Instead of `sae`, for the variants that a recipe says more, or less, of: at most one for each."""
    runs_at_once: int = 4
    """Autoencoders of a site trained in one pass over its activations; memory grows with it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One combination."""

    name: str
    """What it varies, in words; the name of its bundle's folder."""
    request: FitRequest
    """The fit that it is."""


def plan_runs(request: SweepRequest) -> tuple[Run, ...]:
    """Every combination, in the order of the lists, the last one varying fastest.

    Raises:
        SettingError: a list that nothing takes, a combination that no encoder can mend, or too many of them.
    """
    if request.runs_at_once < 1:
        raise SettingError(f"--at-once is {request.runs_at_once}; the least is 1", field="at-once")
    grid = request.grid
    lists = (
        grid.sites,
        _autoencoders(request),
        grid.learning_rates or (request.training.learning_rate,),
        grid.seeds or (request.training.seed,),
    )
    run_count = math.prod(map(len, lists))
    if run_count > RUN_LIMIT:
        raise SettingError(f"the lists make {run_count:,} runs; the limit is {RUN_LIMIT:,}: give shorter lists")
    return tuple(_run(request, *combination) for combination in itertools.product(*lists))


def _run(request: SweepRequest, site: Site, sae: SaeRequest, rate: float | None, seed: int) -> Run:
    sae.check()
    training = dataclasses.replace(request.training, learning_rate=rate, seed=seed)
    training.check()
    name = _name(site, sae, rate, seed)
    fit = FitRequest(
        sources=request.sources,
        site=site,
        sae=sae,
        out=request.out / "bundles" / name,
        work=request.out / "work",
        harvest=request.harvest,
        training=training,
        execution=request.execution,
        reports=request.reports,
    )
    return Run(name=name, request=fit)


def _autoencoders(request: SweepRequest) -> list[SaeRequest]:
    grid = request.grid
    variants = grid.variants or (request.sae.variant,)
    if grid.ks and not any(variant in FIXED_L0 for variant in variants):
        raise SettingError(f"--k goes with the top-k variants; {', '.join(variants)} take --sparsity", field="k")
    if grid.sparsities and all(variant in FIXED_L0 for variant in variants):
        raise SettingError(
            f"--sparsity goes with --variant relu and jumprelu; {', '.join(variants)} take --k", field="sparsity"
        )
    bases = {sae.variant: sae for sae in request.variant_saes}
    return [
        sparse
        for variant in variants
        for sized in _sizes(grid, bases.get(variant, request.sae))
        for sparse in _sparsities(grid, sized, variant)
    ]


def _sizes(grid: Grid, base: SaeRequest) -> list[SaeRequest]:
    bare = dataclasses.replace(base, neuron_count=None, expansion=None)
    sizes = [
        *(dataclasses.replace(bare, neuron_count=count) for count in grid.neuron_counts),
        *(dataclasses.replace(bare, expansion=expansion) for expansion in grid.expansions),
    ]
    return sizes or [base]


def _sparsities(grid: Grid, sized: SaeRequest, variant: VariantName) -> list[SaeRequest]:
    if variant in FIXED_L0:
        bare = dataclasses.replace(sized, variant=variant, sparsity=None)
        return [dataclasses.replace(bare, k=k) for k in grid.ks] or [bare]
    bare = dataclasses.replace(sized, variant=variant, k=None)
    return [dataclasses.replace(bare, sparsity=sparsity) for sparsity in grid.sparsities] or [bare]


def _name(site: Site, sae: SaeRequest, rate: float | None, seed: int) -> str:
    parts = [
        str(site.tokens) if site.block is None else f"block{site.block}-{site.tokens}",
        str(sae.variant),
        f"x{sae.expansion}" if sae.neuron_count is None else f"n{sae.neuron_count}",
        *([] if sae.k is None else [f"k{sae.k}"]),
        *([] if sae.sparsity is None else [f"sparsity{sae.sparsity!r}"]),
        *([] if rate is None else [f"lr{rate!r}"]),
        f"seed{seed}",
    ]
    return "-".join(parts)
