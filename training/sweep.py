"""The sweep: every combination of settings from one harvest, compared in a table.

Runs of one seed share passes over the activations, a few of each site at a time. A run that fails is a row with its
reason and stops no other; a run that is finished is used again, so that the same sweep goes on after a kill. Knows
nothing of the command line.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from phosphene.bundle import Bundle
from phosphene.encoder import Site, load_encoder
from phosphene.errors import DeviceOutOfMemory, PhospheneError, SettingError
from training.fit import FitRefused, FitResult, fit_many
from training.harvest import EncoderOutOfMemory
from training.plan import FitRequest
from training.progress import Progress
from training.quality import Quality
from training.sweep_grid import Run, SweepRequest, plan_runs

__all__ = ["FitMany", "NothingPublished", "Outcome", "run_sweep"]

FitMany = Callable[[Sequence[FitRequest], Progress], list[FitResult | FitRefused]]
"""The job for several autoencoders in one pass."""


class NothingPublished(PhospheneError):
    """No run of a sweep made a bundle; its text gives the first reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How one run ended."""

    run: Run
    """The run."""
    bundle: Bundle | None = None
    """What it published; None where it failed."""
    reason: str | None = None
    """Why it failed; None where it did not."""
    training: Quality | None = None
    """What a failed run was worth on training residuals; None where it did not get so far, or did not fail."""
    held_out: Quality | None = None
    """The same on held-out ones."""
    seconds: float | None = None
    """Its share of the wall time of its pass, the first of which harvests; None where it had been finished before."""


def run_sweep(
    request: SweepRequest,
    progress: Progress,
    *,
    save: Callable[[Sequence[Outcome]], None],
    fit_several: FitMany = fit_many,
    clock_s: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run what is missing.

    Args:
        request: what to do.
        progress: where to report.
        save: called after each pass with the outcomes so far, in the order of the lists, so that a killed sweep
            leaves its table.
        fit_several: the job.
        clock_s: monotonic seconds.

    Raises:
        SettingError, SiteError, EncoderError: a combination is impossible; nothing has been done then.
        NothingPublished: every run failed; their rows have been saved.
        PhospheneError: what would befall every run, such as a corpus that cannot be read; see `fit_many`.
    """
    runs = plan_runs(request)
    request.harvest.check()
    request.execution.check()
    _refuse_picture_in_corpus(request)
    _refuse_impossible(request, runs)
    outcomes: dict[str, Outcome] = {}
    for index, group in enumerate(_passes(runs, request.runs_at_once)):
        progress.event("pass", number=index + 1, runs=[run.name for run in group])
        outcomes |= {outcome.run.name: outcome for outcome in _run_pass(group, progress, fit_several, clock_s)}
        save([outcomes[run.name] for run in runs if run.name in outcomes])
    ordered = [outcomes[run.name] for run in runs]
    if all(outcome.bundle is None for outcome in ordered):
        raise NothingPublished(f"none of the {len(ordered)} runs was published; the first: {ordered[0].reason}")
    return ordered


def _refuse_impossible(request: SweepRequest, runs: Sequence[Run]) -> None:
    # What depends on the width of the residuals: a sweep that fails at its last run has cost all the others.
    encoder = load_encoder(request.sources.encoder, revision=request.sources.revision)
    for run in runs:
        run.request.sae.resolve(encoder.site_width(run.request.site))


def _refuse_picture_in_corpus(request: SweepRequest) -> None:
    # Every pass lists the corpus anew, and would find the picture that the one before it drew.
    corpus = Path(request.sources.corpus.removeprefix("file://")).expanduser().resolve()
    if corpus.is_dir() and request.out.resolve().is_relative_to(corpus):
        raise SettingError(
            f"--out {str(request.out)!r} lies in the corpus {corpus.name!r}, one of whose images the picture of the "
            "sweep would become: choose a folder outside it",
            field="out",
        )


def _passes(runs: Sequence[Run], runs_at_once: int) -> Iterator[Sequence[Run]]:
    # One seed to a pass: the first run's seed decides split and order for all, so what a run becomes would depend on
    # which others are in the list. All sites in each pass: the first one harvests them together, and their runs are
    # trained one site after the other.
    by_seed: defaultdict[int, defaultdict[Site, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_seed[run.request.training.seed][run.request.site].append(run)
    for by_site in by_seed.values():
        longest = max(map(len, by_site.values()))
        for start in range(0, longest, runs_at_once):
            yield [run for members in by_site.values() for run in members[start : start + runs_at_once]]


def _run_pass(
    group: Sequence[Run], progress: Progress, fit_several: FitMany, clock_s: Callable[[], float]
) -> list[Outcome]:
    begun_s = clock_s()
    try:
        results = fit_several([run.request for run in group], progress)
    except DeviceOutOfMemory as error:
        seconds = (clock_s() - begun_s) / len(group)
        return [_failed(run, f"{error}{_more_room(error, group)}", seconds, progress) for run in group]
    made_count = sum(isinstance(result, FitRefused) or result.is_new for result in results)
    seconds = (clock_s() - begun_s) / max(made_count, 1)
    return [_outcome(run, result, seconds, progress) for run, result in zip(group, results, strict=True)]


def _more_room(error: DeviceOutOfMemory, group: Sequence[Run]) -> str:
    """What a pass that did not fit can do beside what its error says; nothing where it trained no two together."""
    is_streamed = group[0].request.sources.reading.is_streamed
    together = max(Counter(run.request.site for run in group).values())
    if together == 1 or (isinstance(error, EncoderOutOfMemory) and not is_streamed):
        return ""
    return f"; or lower --at-once: {together} autoencoders were trained together"


def _outcome(run: Run, result: FitResult | FitRefused, seconds: float, progress: Progress) -> Outcome:
    match result:
        case FitResult():
            return Outcome(run=run, bundle=result.bundle, seconds=seconds if result.is_new else None)
        case FitRefused():
            return _failed(run, str(result.error), seconds, progress, result.training, result.held_out)
        case _:
            assert_never(result)


def _failed(
    run: Run,
    reason: str,
    seconds: float,
    progress: Progress,
    training: Quality | None = None,
    held_out: Quality | None = None,
) -> Outcome:
    progress.event("failed", run=run.name, reason=reason)
    return Outcome(run=run, reason=reason, training=training, held_out=held_out, seconds=seconds)
