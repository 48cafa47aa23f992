"""Look-ups in an index: neurons, lists and pages of them, exemplars, images by query; pure, and knows no protobuf.

Reads the index, so it belongs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from index.values import ExemplarKind, NeuronRow
from phosphene.codes import ImageCode
from phosphene.errors import NotFound
from service.corpus_reader import CorpusReader
from service.generation import Generation
from service.pages import page_offset, page_token
from service.values import (
    ActivationHistogram,
    CoActiveNeuron,
    CodeSearch,
    CorpusImage,
    ExemplarImage,
    ImageList,
    ImageMatch,
    ImageMetric,
    ImageSearch,
    LikeExpression,
    LikeNeuron,
    NeuronList,
    NeuronListQuery,
    NeuronMatch,
    NeuronPart,
    NeuronProfile,
    NeuronQuery,
    NeuronSearch,
    NeuronView,
)

__all__ = [
    "code_search",
    "corpus_image",
    "exemplar_images",
    "images_exciting",
    "images_firing",
    "images_like",
    "list_neurons",
    "neuron_profile",
    "neuron_view",
    "neurons_like_neuron",
    "neurons_like_text",
    "row_of",
]

_SHARED_NEURON_LIMIT = 16


def neuron_view(reader: CorpusReader | None, neuron_id: int) -> NeuronView:
    """A neuron as lists show it."""
    return NeuronView(neuron_id=neuron_id, row=None if reader is None else reader.neuron(neuron_id))


def corpus_image(reader: CorpusReader, row: int, *, with_thumbnail: bool) -> CorpusImage:
    """An image of the corpus by row."""
    return CorpusImage(image=reader.image(row), thumbnail=reader.thumbnail(row) if with_thumbnail else b"")


def row_of(generation: Generation, sha256: str, *, field: str) -> int:
    """The row of an image by digest; raises `NotFound`."""
    row = generation.reader.row_of(sha256)
    if row is None:
        assert generation.corpus is not None, "reader has refused a missing corpus"
        raise NotFound(
            f"corpus {generation.corpus.name!r} holds no image with the digest {sha256}; send the image's bytes, or "
            "name another corpus",
            field=field,
            name=sha256,
        )
    return row


def exemplar_images(
    reader: CorpusReader, neuron_id: int, kind: ExemplarKind, count: int, *, with_thumbnails: bool
) -> tuple[ExemplarImage, ...]:
    """At most `count` exemplars of a neuron, strongest first."""
    return tuple(
        ExemplarImage(
            image=corpus_image(reader, exemplar.row, with_thumbnail=with_thumbnails),
            activation=exemplar.value,
            quantile=exemplar.quantile,
        )
        for exemplar in reader.exemplars(neuron_id, kind, count)
    )


def images_like(
    reader: CorpusReader,
    code: ImageCode,
    count: int,
    *,
    own_row: int | None,
    own_sha256: str,
    with_thumbnails: bool,
) -> tuple[ImageMatch, ...]:
    """At most `count` images with the most similar codes, best first, without copies of the image itself.

    Args:
        reader: the index.
        code: the code of the queried image.
        count: how many.
        own_row: a row of the corpus that holds the queried image.
        own_sha256: its digest: a corpus may hold it more than once.
        with_thumbnails: whether each image carries its thumbnail.
    """
    asked = count
    while True:
        found = reader.similar_images(code, asked, exclude_row=own_row)
        others = [match for match in found if reader.image(match.row).sha256 != own_sha256]
        if len(others) >= count or len(found) < asked:
            break
        asked *= 2
    return tuple(
        ImageMatch(
            image=corpus_image(reader, match.row, with_thumbnail=with_thumbnails),
            score=match.similarity,
            shared_neuron_ids=tuple(match.shared_neuron_ids[:_SHARED_NEURON_LIMIT]),
        )
        for match in others[:count]
    )


def images_exciting(generation: Generation, search: ImageSearch, like: LikeNeuron) -> ImageList:
    """The images that excite a neuron most; raises `NotFound` for an unknown one."""
    generation.check_neuron(like.neuron_id)
    exemplars = exemplar_images(
        generation.reader,
        like.neuron_id,
        ExemplarKind.TOP,
        search.count,
        with_thumbnails=search.with_thumbnails,
    )
    images = tuple(ImageMatch(image=exemplar.image, score=exemplar.activation) for exemplar in exemplars)
    return ImageList(images=images, metric=ImageMetric.ACTIVATION)


def images_firing(generation: Generation, search: ImageSearch, like: LikeExpression) -> ImageList:
    """The images that fire as an expression asks, and how many there are.

    Raises:
        InputError: it is no expression.
        NotFound: it names an unknown neuron.
    """
    reader = generation.reader
    images = tuple(
        ImageMatch(image=corpus_image(reader, row, with_thumbnail=search.with_thumbnails), score=score)
        for row, score in reader.images_by_expression(like.text, search.count)
    )
    return ImageList(images=images, metric=ImageMetric.EXPRESSION, total_count=reader.count_by_expression(like.text))


def code_search(reader: CorpusReader) -> CodeSearch:
    """How images with similar codes are looked for."""
    return CodeSearch(recall=reader.similar_recall, left_out_neuron_ids=reader.left_out_neuron_ids)


def neuron_profile(generation: Generation, query: NeuronQuery) -> NeuronProfile:
    """Statistics, names and the parts that were asked for; raises `NotFound` for an unknown neuron."""
    generation.check_neuron(query.neuron_id)
    reader = generation.reader

    def exemplars(part: NeuronPart, kind: ExemplarKind) -> tuple[ExemplarImage, ...]:
        if part not in query.parts:
            return ()
        return exemplar_images(
            reader, query.neuron_id, kind, query.exemplar_count, with_thumbnails=query.with_thumbnails
        )

    similar: Sequence[tuple[int, float]] = ()
    if NeuronPart.SIMILAR_NEURONS in query.parts:
        similar = _others(reader, query.neuron_id, query.similar_count)
    row = reader.neuron(query.neuron_id)
    return NeuronProfile(
        row=row,
        image_count=reader.image_count,
        quantile_levels=reader.quantile_levels,
        top_images=exemplars(NeuronPart.TOP_IMAGES, ExemplarKind.TOP),
        spread_images=exemplars(NeuronPart.SPREAD_IMAGES, ExemplarKind.SPREAD),
        similar_neurons=tuple(
            NeuronMatch(neuron=neuron_view(reader, neuron_id), score=cosine) for neuron_id, cosine in similar
        ),
        histogram=_histogram(reader, row, query.bin_count)
        if NeuronPart.HISTOGRAM in query.parts and row.alive
        else None,
        co_active_neurons=_co_active(reader, query.neuron_id, query.co_active_count)
        if NeuronPart.CO_ACTIVE_NEURONS in query.parts
        else (),
    )


def list_neurons(generation: Generation, query: NeuronListQuery) -> NeuronList:
    """One page of neurons.

    Raises:
        InputError: a page token that belongs to another request or generation, or to none.
    """
    reader = generation.reader
    offset = page_offset(query, generation.id)
    neuron_ids = reader.list_neurons(
        query.order,
        min_density=query.filter.min_density,
        max_density=query.filter.max_density,
        name_contains=query.filter.name_contains,
        alive_only=query.filter.alive_only,
    )
    end = offset + query.page_size
    return NeuronList(
        neurons=tuple(neuron_view(reader, neuron_id) for neuron_id in neuron_ids[offset:end]),
        next_page_token=page_token(query, generation.id, end) if end < len(neuron_ids) else "",
        total_count=len(neuron_ids),
    )


def neurons_like_neuron(generation: Generation, search: NeuronSearch, like: LikeNeuron) -> tuple[NeuronMatch, ...]:
    """The neurons with the most similar directions, without the neuron itself; raises `NotFound`."""
    generation.check_neuron(like.neuron_id)
    return _matches(generation.reader, search, _others(generation.reader, like.neuron_id, search.count))


def neurons_like_text(
    generation: Generation, search: NeuronSearch, text_vector: Float32[np.ndarray, " embedding"]
) -> tuple[NeuronMatch, ...]:
    """The neurons whose exemplars' embeddings, less the corpus's mean, point most along the text."""
    reader = generation.reader
    return _matches(reader, search, reader.neurons_by_text(text_vector, search.count))


def _histogram(reader: CorpusReader, row: NeuronRow, bin_count: int) -> ActivationHistogram:
    edges = np.linspace(0, row.maximum, bin_count + 1)
    counts = reader.activation_histogram(row.neuron_id, edges)
    return ActivationHistogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _co_active(reader: CorpusReader, neuron_id: int, count: int) -> tuple[CoActiveNeuron, ...]:
    return tuple(
        CoActiveNeuron(neuron=neuron_view(reader, other), npmi=npmi, image_count=image_count)
        for other, npmi, image_count in reader.co_active_neurons(neuron_id, count)
    )


def _others(reader: CorpusReader, neuron_id: int, count: int) -> Sequence[tuple[int, float]]:
    return [(other, cosine) for other, cosine in reader.neurons_like(neuron_id, count + 1) if other != neuron_id][
        :count
    ]


def _matches(reader: CorpusReader, search: NeuronSearch, found: Sequence[tuple[int, float]]) -> tuple[NeuronMatch, ...]:
    return tuple(
        NeuronMatch(
            neuron=neuron_view(reader, neuron_id),
            score=score,
            top_images=exemplar_images(
                reader,
                neuron_id,
                ExemplarKind.TOP,
                search.exemplars_per_neuron,
                with_thumbnails=search.with_thumbnails,
            )
            if search.exemplars_per_neuron
            else (),
        )
        for neuron_id, score in found
    )
