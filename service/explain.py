"""Explain: what the engine or the index says of one image -> an explanation; pure, and knows no queue and no protobuf.

Only the parts that were asked for are looked up. Reads the index, so it belongs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, assert_never

import numpy as np

from index.values import ExemplarKind
from phosphene.codes import ImageCode
from phosphene.engine import EngineName, EngineRow, Want
from phosphene.errors import Unanswerable
from service.caching.coded_image import CodedImage
from service.generation import Generation
from service.lookups import code_search, corpus_image, exemplar_images, images_like, neuron_view
from service.queries import ExplainPart, ExplainQuery
from service.values import ActiveNeuron, ExemplarImage, Explanation, FidelityReport, NeuronMatch, QueriedImage

__all__ = ["LiveImage", "StoredImage", "check_parts", "explain", "needs_pixels", "wanted"]

_NEED_CORPUS = (ExplainPart.NEAREST_NEURONS, ExplainPart.TOP_IMAGES, ExplainPart.SIMILAR_IMAGES)
_CONDITIONAL = (ExplainPart.PATCH_ACTIVATIONS, *_NEED_CORPUS, ExplainPart.SCORES)
"""Parts that not every bundle and corpus can give."""
_NEED_PIXELS = (ExplainPart.PATCH_ACTIVATIONS, ExplainPart.NEAREST_NEURONS, ExplainPart.SCORES)


@dataclass(frozen=True, eq=False)
class LiveImage:
    """An uploaded image that an engine has encoded, now or when it was cached."""

    coded: CodedImage
    """What is known of it."""
    engine: str
    """What encoded it."""


@dataclass(frozen=True)
class StoredImage:
    """An image of the corpus, of which the index holds the code."""

    row: int
    engine: ClassVar[str] = str(EngineName.TORCH)
    """With which every index is built."""


def check_parts(generation: Generation, query: ExplainQuery) -> None:
    """Raise `Unanswerable` for the first part that this bundle, corpus or kind of image query cannot give."""
    facts = generation.bundle.facts
    for part in _CONDITIONAL:
        if part not in query.parts:
            continue
        if part in _NEED_CORPUS:
            _ = generation.reader
        if part is ExplainPart.PATCH_ACTIVATIONS and facts.grid is None:
            raise Unanswerable(
                f"bundle {generation.bundle.name!r} listens at {facts.site}, which has no patches; ask a bundle "
                "whose site is `patches` or `all`",
                subject="parts",
            )
        if part is ExplainPart.SCORES and not generation.bundle.score_names:
            raise Unanswerable(
                f"bundle {generation.bundle.name!r} has no names to score (readout: {facts.readout}); fit it with "
                "--vocabulary on an encoder with a text tower, or on a classifier",
                subject="parts",
            )


def needs_pixels(parts: frozenset[ExplainPart]) -> bool:
    """Whether a part needs more than an index stores of an image."""
    return not parts.isdisjoint(_NEED_PIXELS)


@lru_cache
def wanted(parts: frozenset[ExplainPart]) -> Want:
    """What the engine has to compute for the parts that were asked for."""
    return Want(
        token_codes=ExplainPart.PATCH_ACTIVATIONS in parts,
        fidelity=ExplainPart.FIDELITY in parts,
        residuals=ExplainPart.NEAREST_NEURONS in parts,
        scores=ExplainPart.SCORES in parts,
    )


def explain(generation: Generation, query: ExplainQuery, image: LiveImage | StoredImage) -> Explanation:
    """Answer the parts that were asked for.

    Args:
        generation: bundle and corpus; `check_parts` has passed.
        query: what was asked.
        image: what is known of the image.
    """
    code = _code(generation, image)
    parts = query.parts
    queried = _queried_image(generation, query, image)
    encoded = image.coded.row if isinstance(image, LiveImage) else None
    similar = ExplainPart.SIMILAR_IMAGES in parts
    return Explanation(
        engine=image.engine,
        image=queried,
        fidelity=_fidelity(generation, image, code) if ExplainPart.FIDELITY in parts else None,
        neurons=_active_neurons(generation, query, code, encoded) if ExplainPart.NEURONS in parts else (),
        grid=generation.bundle.patch_grid(width=queried.width, height=queried.height)
        if ExplainPart.PATCH_ACTIVATIONS in parts
        else None,
        nearest_neurons=_nearest_neurons(generation, query, encoded),
        similar_images=images_like(
            generation.reader,
            code,
            query.similar_count,
            own_sha256=queried.sha256,
            with_thumbnails=query.pictures.thumbnails,
        )
        if similar
        else (),
        code_search=code_search(generation.reader) if similar else None,
        scores=_scores(generation, query, encoded),
        code=generation.shown_code(code) if ExplainPart.CODE in parts else None,
    )


def _code(generation: Generation, image: LiveImage | StoredImage) -> ImageCode:
    match image:
        case LiveImage(coded=coded):
            return coded.row.code
        case StoredImage(row=row):
            return generation.reader.code(row)
        case _:
            assert_never(image)


def _queried_image(generation: Generation, query: ExplainQuery, image: LiveImage | StoredImage) -> QueriedImage:
    thumbnails = query.pictures.thumbnails
    match image:
        case StoredImage(row=row):
            stored = corpus_image(generation.reader, row, with_thumbnail=thumbnails)
            return QueriedImage(
                sha256=stored.image.sha256,
                width=stored.image.width,
                height=stored.image.height,
                drafted=False,
                corpus_image=stored,
            )
        case LiveImage(coded=coded):
            reader = generation.corpus.reader if generation.corpus is not None else None
            own_row = generation.listed_row(coded.sha256)
            return QueriedImage(
                sha256=coded.sha256,
                width=coded.width,
                height=coded.height,
                drafted=coded.drafted,
                corpus_image=None
                if reader is None or own_row is None
                else corpus_image(reader, own_row, with_thumbnail=thumbnails),
            )
        case _:
            assert_never(image)


def _fidelity(generation: Generation, image: LiveImage | StoredImage, code: ImageCode) -> FidelityReport:
    match image:
        case StoredImage(row=row):
            return FidelityReport(fvu=generation.reader.fvu(row), cut_count=code.cut_count)
        case LiveImage(coded=coded):
            measured = coded.row.fidelity
            assert measured is not None, "the engine was asked for fidelity"
            return FidelityReport(
                fvu=measured.fvu,
                cut_count=code.cut_count - measured.cut_count,
                cosine=measured.cosine,
                l0=measured.l0,
                residual_norm=measured.residual_norm,
                token_cut_count=measured.cut_count,
            )
        case _:
            assert_never(image)


def _active_neurons(
    generation: Generation, query: ExplainQuery, code: ImageCode, encoded: EngineRow | None
) -> tuple[ActiveNeuron, ...]:
    reader = generation.corpus.reader if generation.corpus is not None else None
    with_maps = ExplainPart.PATCH_ACTIVATIONS in query.parts and generation.bundle.facts.grid is not None
    with_images = reader is not None and ExplainPart.TOP_IMAGES in query.parts
    neurons = []
    code = generation.shown_code(code, query.top_n)
    for neuron_id, activation in zip(
        code.neuron_ids[: query.top_n].tolist(), code.values[: query.top_n].tolist(), strict=True
    ):
        view = neuron_view(reader, neuron_id)
        quantile: float | None = None
        activations: tuple[float, ...] = ()
        images: tuple[ExemplarImage, ...] = ()
        if reader is not None and view.row is not None and view.row.alive:
            quantile = reader.quantile(neuron_id, activation)
        if with_maps and encoded is not None:
            activations = _patch_activations(generation, encoded, neuron_id)
        if with_images:
            images = exemplar_images(
                generation, neuron_id, ExemplarKind.TOP, query.exemplars_per_neuron, pictures=query.pictures
            )
        neurons.append(ActiveNeuron(view, activation, quantile, activations, images))
    return tuple(neurons)


def _patch_activations(generation: Generation, encoded: EngineRow, neuron_id: int) -> tuple[float, ...]:
    assert encoded.token_values is not None, "the engine was asked for token codes"
    assert encoded.token_neuron_ids is not None, "the engine was asked for token codes"
    offset = generation.bundle.facts.patch_offset
    is_neuron = encoded.token_neuron_ids[offset:] == neuron_id
    activations: list[float] = np.where(is_neuron, encoded.token_values[offset:], 0.0).max(axis=1).tolist()
    return tuple(activations)


def _nearest_neurons(generation: Generation, query: ExplainQuery, encoded: EngineRow | None) -> tuple[NeuronMatch, ...]:
    if ExplainPart.NEAREST_NEURONS not in query.parts or encoded is None:
        return ()
    assert encoded.residual is not None, "the engine was asked for residuals"
    reader = generation.reader
    found = reader.nearest_neurons(encoded.residual - generation.bundle.decoder_bias, query.nearest_count)
    with_images = ExplainPart.TOP_IMAGES in query.parts
    return tuple(
        NeuronMatch(
            neuron=neuron_view(reader, neuron_id),
            score=cosine,
            top_images=exemplar_images(
                generation,
                neuron_id,
                ExemplarKind.TOP,
                query.exemplars_per_neuron,
                pictures=query.pictures,
            )
            if with_images
            else (),
        )
        for neuron_id, cosine in found
    )


def _scores(generation: Generation, query: ExplainQuery, encoded: EngineRow | None) -> tuple[tuple[str, float], ...]:
    if ExplainPart.SCORES not in query.parts or encoded is None:
        return ()
    assert encoded.scores is not None, "the engine was asked for scores"
    names: Sequence[str] = generation.bundle.score_names
    order = np.argsort(-encoded.scores, kind="stable")[: query.score_count].tolist()
    return tuple((names[position], float(encoded.scores[position])) for position in order)
