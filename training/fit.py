"""The training job: harvest -> train -> finish -> publish, for one autoencoder or for several in one pass.

Running it again does what is missing: a finished bundle is left alone, finished activations are used again, training
goes on from its newest checkpoint, and the ids come out the same. Knows nothing of the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import torch

from phosphene.bundle import Bundle, load_bundle
from phosphene.durable_files import hold_folder
from phosphene.encoder import Site
from phosphene.errors import ArtefactMismatch, NumericError, PhospheneError
from phosphene.manifest import differences, digest_of
from training.checkpoint import CheckpointFolder
from training.gate import NotPublished
from training.plan import FitPlan, FitRequest, plan_fits
from training.progress import Progress
from training.publishing import Finished, finish, publish
from training.quality import Quality
from training.ranks import ALONE, Ranks
from training.reading import open_sources
from training.run_folder import PUBLISHED, RunFolder, begin_run
from training.settings import config_of
from training.source import ActivationSource
from training.trainer import Diverged, Trained, Trainee, train_many

__all__ = ["FitRefused", "FitResult", "fit", "fit_many"]

_STATE_LAYOUT = 1  # raised when what learners keep in a checkpoint changes


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` ends with."""

    bundle: Bundle
    """The published bundle."""
    is_new: bool
    """False where it had been finished before."""


@dataclass(frozen=True, kw_only=True)
class FitRefused:
    """An autoencoder of several that is not published; the others are not held up by it."""

    out: Path
    """Where its bundle would have gone."""
    error: NumericError | NotPublished
    """Why: it diverged, or the gate held it back."""
    training: Quality | None
    """What it is worth on training residuals; None where it did not get so far."""
    held_out: Quality | None
    """The same on held-out ones."""


def fit(request: FitRequest, progress: Progress, ranks: Ranks = ALONE) -> FitResult:
    """Make and publish a bundle, or find it finished.

    Args:
        request: what to do.
        progress: where to report.
        ranks: the processes that train it together, all of which call this.

    Raises:
        PhospheneError: as `fit_many`; or the autoencoder diverged, or is not published.
    """
    (result,) = fit_many([request], progress, ranks)
    match result:
        case FitResult():
            return result
        case FitRefused():
            raise result.error
        case _:
            assert_never(result)


def fit_many(requests: Sequence[FitRequest], progress: Progress, ranks: Ranks = ALONE) -> list[FitResult | FitRefused]:
    """Make and publish several bundles: one harvest of all sites, then one pass for the autoencoders of each site.

    What each becomes does not depend on the others, but for the seed of the first: it decides which images are held
    out, and the order of the data, for all. Those that are finished already are left out.

    Args:
        requests: at least one, in one work folder; see `plan_fits` for what they share.
        progress: where to report.
        ranks: the processes that train them together; the first harvests, keeps checkpoints and publishes.

    Returns:
        What became of each, in order.

    Raises:
        PhospheneError: see `plan_fits` and `open_sources`; nothing is published then.
        ArtefactMismatch: an `out` holds something else, or the work folder an unfinished run of another configuration.
        SettingError: another process works there.
    """
    plans = plan_fits(requests, progress)
    torch.set_num_threads(plans[0].request.execution.thread_count)
    if ranks.is_first:
        found = _lead(plans, progress, ranks)
        ranks.wait()
    else:
        _follow(plans, progress, ranks)
        ranks.wait()
        found = _all_finished(plans)
    refused: dict[Path, FitRefused] = ranks.tell(
        {out: result for out, result in found.items() if isinstance(result, FitRefused)}
    )
    return [refused.get(plan.request.out) or found[plan.request.out] for plan in plans]


def _lead(plans: Sequence[FitPlan], progress: Progress, ranks: Ranks) -> dict[Path, FitResult | FitRefused]:
    """Do everything, the others' part of the training aside."""
    found = _all_finished(plans)
    if len(found) == len(plans):
        ranks.tell({})
        return found
    work = plans[0].work
    work.mkdir(parents=True, exist_ok=True)
    with hold_folder(work):
        found = _all_finished(plans)  # Another process may have ended meanwhile.
        return found | _make([plan for plan in plans if plan.request.out not in found], progress, ranks)


def _follow(plans: Sequence[FitPlan], progress: Progress, ranks: Ranks) -> None:
    """Train on this process's part of every batch; the first process does the rest."""
    runs: dict[Path, RunFolder] = ranks.tell(None)
    due = [plan for plan in plans if plan.request.out in runs]
    sites = _open_sites(due, progress) if due else []
    while sites:
        _train_site(*sites.pop(), runs, progress, ranks)


def _all_finished(plans: Sequence[FitPlan]) -> dict[Path, FitResult | FitRefused]:
    bundles = {plan.request.out: _find_finished(plan) for plan in plans}
    return {out: FitResult(bundle=bundle, is_new=False) for out, bundle in bundles.items() if bundle is not None}


def _find_finished(plan: FitPlan) -> Bundle | None:
    """The bundle at `out` where it is the one that this plan makes; None where nothing lies there.

    Raises:
        ArtefactMismatch: it is another bundle.
        ArtefactDamaged: it is not sound.
    """
    out = plan.request.out
    if not out.exists():
        return None
    bundle = load_bundle(out)
    found = bundle.training.get("plan", {})
    if found != plan.config:
        lines = "".join(f"\n  {line}" for line in differences(plan.config, found))
        raise ArtefactMismatch(
            f"{str(out)!r} holds a bundle of another configuration (there -> asked for):{lines}\n"
            "choose another --out, or remove it"
        )
    return bundle


def _make(plans: Sequence[FitPlan], progress: Progress, ranks: Ranks) -> dict[Path, FitResult | FitRefused]:
    runs: dict[Path, RunFolder] = {}
    made: dict[Path, FitResult | FitRefused] = {}
    try:
        for plan in plans:
            runs[plan.request.out] = _begin(plan)
        if ranks.count > 1:
            _open_sites(plans, progress)  # The others find the harvest finished.
        ranks.tell(runs)
        sites = _open_sites(plans, progress)
        while sites:
            # Popped: what a source has in memory goes before the next one is read.
            for out, result in _make_site(*sites.pop(), runs, progress, ranks):
                made[out] = result
    except PhospheneError as error:
        # Refused, not stopped: what mends it may be another configuration.
        for out in runs.keys() - made.keys():
            runs[out].end(str(error))
        raise
    return made


def _make_site(
    group: Sequence[FitPlan], source: ActivationSource, runs: Mapping[Path, RunFolder], progress: Progress, ranks: Ranks
) -> Iterator[tuple[Path, FitResult | FitRefused]]:
    """Train the autoencoders of one site, and finish one after the other."""
    outcomes = _train_site(group, source, runs, progress, ranks)
    for plan, outcome in zip(group, outcomes, strict=True):
        out = plan.request.out
        yield out, _end(plan, outcome, source, runs[out], progress)


def _train_site(
    group: Sequence[FitPlan], source: ActivationSource, runs: Mapping[Path, RunFolder], progress: Progress, ranks: Ranks
) -> list[Trained | Diverged]:
    trainees = [_trainee(plan, runs[plan.request.out], source) for plan in group]
    device = torch.device(group[0].request.execution.device)
    return train_many(source, trainees, device=device, progress=progress, ranks=ranks)


def _open_sites(plans: Sequence[FitPlan], progress: Progress) -> list[tuple[list[FitPlan], ActivationSource]]:
    """The activations of every site, with those who learn from them; the first site comes last."""
    sites: dict[Site, list[FitPlan]] = {}
    for plan in plans:
        sites.setdefault(plan.request.site, []).append(plan)
    sources = open_sources(
        [group[0].harvest for group in sites.values()],
        plans[0].request.sources.reading,
        seed=plans[0].data_seed,
        folder=plans[0].work / "activations",
        progress=progress,
    )
    return list(zip(sites.values(), sources, strict=True))[::-1]


def _end(
    plan: FitPlan, outcome: Trained | Diverged, source: ActivationSource, run: RunFolder, progress: Progress
) -> FitResult | FitRefused:
    finished: Finished | None = None
    try:
        if isinstance(outcome, Diverged):
            raise outcome
        finished = finish(plan, outcome, source, progress)
        bundle = publish(plan, finished, outcome, source)
    except (NumericError, NotPublished) as error:
        run.end(str(error))
        return FitRefused(
            out=plan.request.out,
            error=error,
            training=None if finished is None else finished.training,
            held_out=None if finished is None else finished.held_out,
        )
    run.end(PUBLISHED)
    return FitResult(bundle=bundle, is_new=True)


def _begin(plan: FitPlan) -> RunFolder:
    config = plan.config | {"execution": config_of(plan.request.execution)}
    return begin_run(plan.work / "training", out=plan.request.out, config=config)


def _trainee(plan: FitPlan, run: RunFolder, source: ActivationSource) -> Trainee:
    contents: dict[str, Any] = {"layout": _STATE_LAYOUT, "run": run.record.id, "activations": source.id}
    return Trainee(
        name=plan.name,
        run_id=run.id,
        sae=plan.sae,
        settings=plan.training,
        checkpoints=CheckpointFolder(run.checkpoints, plan_id=digest_of(contents)),
        journal=plan.request.reports.journal or run.journal,
        reports=plan.request.reports,
        initial=None if plan.initial is None else plan.initial.sae,
    )
