"""What `fit` is asked to do and, once checked, what it will do; has no effects and knows nothing of optimisation.

Everything that can be refused is refused here, before any work: options, corpus, encoder, site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phosphene.codes import CodeLimits
from phosphene.corpus import Row, open_corpus
from phosphene.encoder import Encoder, Site, load_encoder
from phosphene.engine import open_device
from phosphene.errors import CorpusError, InputError, ReadoutMissing, SettingError
from phosphene.manifest import digest_of
from phosphene.readout import SimilarityReadout, load_readout
from training.activations import MIN_IMAGE_COUNT, held_out_count
from training.contents import digest_images
from training.harvest import HarvestPlan
from training.progress import Progress, SilentProgress
from training.settings import (
    Execution,
    HarvestSettings,
    SaeRequest,
    SaeSettings,
    TrainingRequest,
    TrainingSettings,
    config_of,
)

_VOCABULARY_LIMIT_NAMES = 100_000


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

    @property
    def encoder(self) -> Encoder:
        """The frozen model."""
        return self.harvest.encoder

    @property
    def limits(self) -> CodeLimits:
        """The code limits: the defaults, widened where k needs it."""
        default = CodeLimits()
        return CodeLimits(
            image_code_limit=max(default.image_code_limit, self.sae.k),
            token_code_limit=max(default.token_code_limit, 2 * self.sae.k),
        )

    @property
    def work(self) -> Path:
        """Where activations and checkpoints go."""
        out = self.request.out
        return self.request.work or out.with_name(f"{out.name}.work")

    @property
    def config(self) -> dict[str, Any]:
        """What decides the bundle, for comparing; without device and threads, which only decide its last bits."""
        harvest = {key: value for key, value in self.harvest.config.items() if key != "execution"}
        return {
            "name": self.request.name or self.request.out.name,
            "inputs": self.harvest.inputs,
            "harvest": harvest,
            "sae": config_of(self.sae),
            "training": config_of(self.training),
            "vocabulary": digest_of(list(self.vocabulary)),
        }


def plan_fit(request: FitRequest, progress: Progress | None = None) -> FitPlan:
    """Check a request and fix its numbers; reads every image once, for its digest.

    Args:
        request: what was asked for.
        progress: where to report; None reports nothing.

    Raises:
        SettingError: an option is out of its bounds or contradicts another.
        CorpusError: the corpus is empty, too small or cannot be listed.
        EncoderError, SiteError: the encoder cannot be loaded or has no such site.
    """
    request.sae.check()
    request.harvest.check()
    request.training.check()
    request.execution.check()
    open_device(request.execution.device)
    named = None if request.sources.vocabulary is None else read_vocabulary(request.sources.vocabulary)
    corpus = open_corpus(request.sources.corpus)
    encoder = load_encoder(request.sources.encoder, revision=request.sources.revision, device=request.execution.device)
    sae = request.sae.resolve(encoder.site_width(request.site))
    image_count = request.harvest.image_count(len(corpus))
    if image_count < MIN_IMAGE_COUNT:
        raise CorpusError(
            f"{image_count} images are too few to train on and to hold some out; the least is "
            f"{MIN_IMAGE_COUNT}: add images to {request.sources.corpus!r}"
            + (" or raise --limit" if request.harvest.image_limit is not None else ""),
            field="corpus",
        )
    vocabulary = _vocabulary(request, encoder, corpus.rows[:image_count], named)
    harvest = HarvestPlan(
        corpus=corpus,
        digests=digest_images(corpus, image_count, progress or SilentProgress()),
        encoder=encoder,
        site=request.site,
        settings=request.harvest,
        execution=request.execution,
    )
    held_out = held_out_count(harvest.image_count, harvest.tokens_per_image)
    row_count = (harvest.image_count - held_out) * harvest.tokens_per_image
    return FitPlan(
        request=request,
        harvest=harvest,
        sae=sae,
        training=request.training.resolve(row_count, sae),
        vocabulary=vocabulary,
    )


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Names from a text file: one per line, blank lines skipped, order kept.

    Raises:
        SettingError: no such file, no UTF-8 text, no names, too many, or one of them twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingError(
            f"--vocabulary {str(path)!r} cannot be read as UTF-8 text; give a file with one name per line"
        ) from cause
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(names) <= _VOCABULARY_LIMIT_NAMES:
        raise SettingError(f"--vocabulary holds {len(names)} names; it must hold 1 to {_VOCABULARY_LIMIT_NAMES:,}")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SettingError(f"--vocabulary holds {twice[:5]} more than once; remove the repetitions")
    return names


def _vocabulary(
    request: FitRequest, encoder: Encoder, rows: Sequence[Row], named: tuple[str, ...] | None
) -> tuple[str, ...]:
    readout = load_readout(request.sources.encoder, encoder, revision=request.sources.revision)
    if not isinstance(readout, SimilarityReadout):
        if named is not None:
            raise SettingError(
                f"--vocabulary was given, but {encoder.spec.model} has no text tower to compare names with images: "
                "leave it out",
                field="vocabulary",
            )
        return ()
    if named is not None:
        readout.check_texts(named)
        return named
    labels = sorted({row.label for row in rows if row.label})
    return _legible(readout, labels[:_VOCABULARY_LIMIT_NAMES])


def _legible(readout: SimilarityReadout, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that the text tower reads: nobody asked for them, so one too long is left out, not refused."""
    legible: list[str] = []
    for label in labels:
        try:
            readout.check_texts([label])
        except ReadoutMissing:
            return ()
        except InputError:
            continue
        legible.append(label)
    return tuple(legible)
