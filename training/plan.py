"""What `fit` is asked to do and, once checked, what it will do; writes nothing and knows nothing of optimisation.

Everything that can be refused is refused here, before any work: options, places, corpus, encoder, site.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phosphene.codes import CodeLimits
from phosphene.corpus import open_corpus
from phosphene.encoder import Encoder, Site, load_encoder
from phosphene.engine import open_device
from phosphene.errors import CorpusError, SettingError
from phosphene.manifest import differences, digest_of
from phosphene.readout import load_readout
from training.contents import digest_images
from training.execution import Execution, check_bfloat16
from training.harvest import HarvestPlan
from training.harvest_settings import HarvestSettings
from training.initial import Initial, read_initial
from training.places import (
    FreeBytes,
    bytes_below,
    refuse_nameless,
    refuse_taken,
    refuse_too_full,
    refuse_unwritable,
    refuse_within,
)
from training.progress import Progress, SilentProgress
from training.reading import ReadingSettings
from training.reports import RunReports, check_reports
from training.requests import SaeRequest, TrainingRequest
from training.settings import SaeSettings, TrainingSettings, config_of
from training.source import MIN_IMAGE_COUNT, held_out_count
from training.variants import SelectionPrecision
from training.vocabulary import choose_vocabulary, read_vocabulary

WIDEST_TOKEN_CODE = 4096
"""Most neurons that a token's code may hold under a rule that fixes no number of active neurons."""

_STATE_COUNT = 9  # weights and two moments, in two checkpoints and one that is being written


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What an autoencoder is made from."""

    corpus: str
    """Folder, list or tars, as `open_corpus` reads them."""
    encoder: str
    """Local folder in the Hugging Face layout, or a hub id."""
    revision: str | None = None
    """Revision of a hub id."""
    vocabulary: Path | None = None
    """Text file with one name per line for the readout; None takes the corpus's labels."""
    initial: Path | None = None
    """A bundle, or an SAE in any format that is read, to go on from (`--initial`); None starts from random weights."""
    reading: ReadingSettings = ReadingSettings()
    """Whether activations are kept on disk, and which of them are used."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One `fit` as it was asked for."""

    sources: Sources
    """What it is made from."""
    site: Site
    """Where in the encoder to listen."""
    sae: SaeRequest
    """The autoencoder."""
    out: Path
    """Where the bundle goes."""
    work: Path | None = None
    """Where activations and checkpoints go; None is `OUT.work`."""
    harvest: HarvestSettings = HarvestSettings()
    """How activations are read."""
    training: TrainingRequest = TrainingRequest()
    """The optimisation."""
    execution: Execution = Execution()
    """Device and threads."""
    name: str | None = None
    """A name for people, kept in the bundle; None is the name of `out`."""
    reports: RunReports = RunReports()
    """Where the curve goes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FitPlan:
    """One `fit` with every number fixed."""

    request: FitRequest
    """What was asked for."""
    harvest: HarvestPlan
    """What is read off the encoder."""
    sae: SaeSettings
    """Size and rule."""
    training: TrainingSettings
    """The optimisation."""
    vocabulary: tuple[str, ...]
    """Names for the readout; empty where the encoder has no text tower."""
    data_seed: int
    """Decides the held-out images and the order of the data: the seed of the first of those trained in one pass."""
    initial: Initial | None = None
    """What training goes on from; None starts from random weights."""

    @property
    def encoder(self) -> Encoder:
        """The frozen model."""
        return self.harvest.encoder

    @property
    def name(self) -> str:
        """A name for people."""
        return _name_of(self.request)

    @property
    def limits(self) -> CodeLimits:
        """The code limits: the defaults, widened where k needs it; the widest where the variant fixes no k."""
        default, k = CodeLimits(), self.sae.k
        if k is None:
            widest = max(default.token_code_limit, min(self.sae.neuron_count, WIDEST_TOKEN_CODE))
            return CodeLimits(image_code_limit=default.image_code_limit, token_code_limit=widest)
        return CodeLimits(
            image_code_limit=max(default.image_code_limit, k), token_code_limit=max(default.token_code_limit, 2 * k)
        )

    @property
    def work(self) -> Path:
        """Where activations and checkpoints go."""
        return work_of(self.request)

    @property
    def config(self) -> dict[str, Any]:
        """What decides the bundle, for comparing; without device and threads, which only decide its last bits."""
        harvest = {key: value for key, value in self.harvest.config.items() if key != "execution"}
        return {
            "name": self.name,
            "inputs": self.harvest.inputs,
            "harvest": harvest,
            "reading": self.request.sources.reading.config,
            "sae": config_of(self.sae),
            "training": config_of(self.training),
            "data_seed": self.data_seed,
            "initial": None if self.initial is None else self.initial.digest,
            "vocabulary": digest_of(list(self.vocabulary)),
        }


def work_of(request: FitRequest) -> Path:
    """Where a request's activations and checkpoints go."""
    return request.work or request.out.with_name(f"{request.out.name}.work")


def plan_fit(request: FitRequest, progress: Progress | None = None) -> FitPlan:
    """Check a request and fix its numbers; arguments and errors as `plan_fits`."""
    return plan_fits([request], progress)[0]


def plan_fits(
    requests: Sequence[FitRequest], progress: Progress | None = None, *, free_bytes: FreeBytes | None = None
) -> list[FitPlan]:
    """Check requests that share sources, harvest settings, device and work folder, and fix their numbers.

    Reads every image once, for its digest, after everything else has been checked. The seed of the first decides which
    images are held out, and the order of the data, for all.

    Args:
        requests: at least one; they may differ in site, autoencoder, optimisation, name, place and reports.
        progress: where to report; None reports nothing.
        free_bytes: what a disk has left; None asks the file system.

    Raises:
        SettingError: an option is out of its bounds or contradicts another, a place cannot be written, or a disk is
            too full.
        CorpusError: the corpus is empty, too small or cannot be listed.
        EncoderError, SiteError: the encoder cannot be loaded or has no such site.
        ArtefactError: what to go on from cannot be read, or something else than a bundle lies at an `out`.
    """
    first = requests[0]
    for request in requests:
        refuse_nameless(request.out)
        refuse_taken(request.out, "bundle")
        _refuse_half_characters(request)
    _refuse_unlike(requests)
    for request in requests:
        request.sae.check()
        request.training.check()
    first.harvest.check()
    first.execution.check()
    unmade = [request for request in requests if not request.out.exists()]
    _refuse_places(unmade)
    device = open_device(first.execution.device)
    if any(request.sae.selection_precision is SelectionPrecision.BFLOAT16 for request in requests):
        check_bfloat16(device)
    sources = first.sources
    named = None if sources.vocabulary is None else read_vocabulary(sources.vocabulary)
    initial = None if sources.initial is None else read_initial(sources.initial)
    corpus = open_corpus(sources.corpus)
    encoder = load_encoder(sources.encoder, revision=sources.revision, device=first.execution.device)
    saes = [_resolve_sae(request, encoder, initial) for request in requests]
    image_count = first.harvest.image_count(len(corpus))
    if image_count < MIN_IMAGE_COUNT:
        raise CorpusError(
            f"{image_count} images are too few to train on and to hold some out; the least is "
            f"{MIN_IMAGE_COUNT}: add images to {sources.corpus!r}"
            + (" or raise --limit" if first.harvest.image_limit is not None else ""),
            field="corpus",
        )
    readout = load_readout(sources.encoder, encoder, revision=sources.revision)
    vocabulary = choose_vocabulary(readout, model=encoder.spec.model, rows=corpus.rows[:image_count], named=named)
    # Digests come last: reading every image is work.
    harvests = [
        HarvestPlan(
            corpus=corpus,
            digests=[""] * image_count,
            encoder=encoder,
            site=request.site,
            settings=request.harvest,
            execution=request.execution,
        )
        for request in requests
    ]
    drafts = [
        FitPlan(
            request=request,
            harvest=harvest,
            sae=sae,
            training=request.training.resolve(
                _training_row_count(harvest), sae, width=harvest.encoder.site_width(harvest.site)
            ),
            vocabulary=vocabulary,
            data_seed=first.training.seed,
            initial=initial,
        )
        for request, harvest, sae in zip(requests, harvests, saes, strict=True)
    ]
    _refuse_other_batches(drafts)
    refuse_too_full(
        _needs([draft for draft in drafts if draft.request in unmade]),
        free_bytes=free_bytes,
        remedy="use --storage float16, a smaller --limit or fewer --neurons",
    )
    digests = digest_images(corpus, image_count, progress or SilentProgress())
    return [dataclasses.replace(draft, harvest=dataclasses.replace(draft.harvest, digests=digests)) for draft in drafts]


def _name_of(request: FitRequest) -> str:
    return request.name or request.out.name


def _refuse_half_characters(request: FitRequest) -> None:
    # What Python makes of bytes that are not UTF-8: no digest can be made of it, and no JSON.
    place = os.path.relpath(request.out.absolute(), work_of(request).absolute())
    for option, text in (("--name", request.name or ""), ("--out", place)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SettingError(f"{option} is {text!a}, which is not UTF-8: give another name") from None


def _refuse_unlike(requests: Sequence[FitRequest]) -> None:
    first = requests[0]
    due = _shared_config(first)
    for request in requests[1:]:
        lines = differences(due, _shared_config(request))
        if lines:
            raise SettingError(
                "what is trained in one pass must share corpus, encoder, harvest, device and --work; "
                f"{request.out.name!r} and {first.out.name!r} differ in {'; '.join(lines)}"
            )
    outs = [request.out.absolute() for request in requests]
    if len(set(outs)) < len(outs):
        raise SettingError("two autoencoders trained in one pass have the same --out; give each its own", field="out")


def _refuse_other_batches(plans: Sequence[FitPlan]) -> None:
    sizes: dict[Site, int] = {}
    for plan in plans:
        due = sizes.setdefault(plan.request.site, plan.training.batch_rows)
        if plan.training.batch_rows != due:
            raise SettingError(
                f"autoencoders trained in one pass over a site share one --batch; {plan.name!r} asks for "
                f"{plan.training.batch_rows}, the first for {due}",
                field="batch",
            )


def _shared_config(request: FitRequest) -> dict[str, Any]:
    return {
        "sources": {key: value and str(value) for key, value in dataclasses.asdict(request.sources).items()},
        "harvest": config_of(request.harvest),
        "execution": config_of(request.execution),
        "work": str(work_of(request)),
    }


def _refuse_places(requests: Sequence[FitRequest]) -> None:
    check_reports([request.reports for request in requests])
    for request in requests:
        work = work_of(request)
        refuse_unwritable(request.out, "--out")
        refuse_unwritable(work, "--work")
        if not work.exists():
            refuse_taken(work, "activations")  # They will lie in it.
        _refuse_name_as_path(request)
        for option, place in _written_meanwhile(request):
            refuse_within(place, option, request.out)


def _refuse_name_as_path(request: FitRequest) -> None:
    # TensorBoard's files of a run lie in a folder of its name.
    name = _name_of(request)
    if request.reports.tensorboard is not None and (name in (".", "..") or "/" in name):
        raise SettingError(
            f"--name is {name!r}, and no folder in --tensorboard can be called so: leave out '/'", field="name"
        )


def _written_meanwhile(request: FitRequest) -> Iterator[tuple[str, Path]]:
    reports = request.reports
    yield "--work", work_of(request)
    if reports.journal is not None:
        yield "--journal", reports.journal
    if reports.tensorboard is not None:
        yield "--tensorboard", reports.tensorboard / _name_of(request)
    if reports.metrics_file is not None:
        yield "--metrics-file", reports.metrics_file


def _resolve_sae(request: FitRequest, encoder: Encoder, initial: Initial | None) -> SaeSettings:
    width = encoder.site_width(request.site)
    sae = request.sae.resolve(width)
    if initial is not None:
        initial.check(width=width, neuron_count=sae.neuron_count)
    return sae


def _training_row_count(harvest: HarvestPlan) -> int:
    held_out = held_out_count(harvest.image_count, harvest.tokens_per_image)
    return (harvest.image_count - held_out) * harvest.tokens_per_image


def _needs(plans: Sequence[FitPlan]) -> dict[Path, int]:
    """Bytes that are still to be written, by place."""
    needs: dict[Path, int] = {}
    if plans:
        is_streamed = plans[0].request.sources.reading.is_streamed
        harvests = {} if is_streamed else {plan.request.site: plan.harvest.size_bytes for plan in plans}
        states = sum(_STATE_COUNT * _weight_bytes(plan) for plan in plans)
        work = plans[0].work
        needs[work] = max(0, sum(harvests.values()) + states - bytes_below(work))
    for plan in plans:
        needs[plan.request.out] = _weight_bytes(plan)
    return needs


def _weight_bytes(plan: FitPlan) -> int:
    width, neuron_count = plan.encoder.site_width(plan.request.site), plan.sae.neuron_count
    return 4 * (2 * width * neuron_count + neuron_count + width)
