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
from service.queries import (
    CODES_ALIKE,
    SHARED_NEURON_LIMIT,
    CodesAlike,
    ImageSearch,
    LikeExpression,
    LikeNeuron,
    NeuronListQuery,
    NeuronPart,
    NeuronQuery,
    NeuronSearch,
    Pictures,
)
from service.values import (
    ActivationHistogram,
    CoActiveNeuron,
    CodeSearch,
    CorpusImage,
    ExemplarImage,
    ImageList,
    ImageMatch,
    ImageMetric,
    NeuronList,
    NeuronMatch,
    NeuronProfile,
    NeuronView,
    PatchMap,
)

__all__ = [
    "check_sensitive",
    "check_taken_down",
    "code_search",
    "corpus_image",
    "exemplar_images",
    "images_by_words",
    "images_exciting",
    "images_firing",
    "images_like",
    "images_near",
    "list_neurons",
    "neuron_profile",
    "neuron_view",
    "neurons_like_neuron",
    "neurons_like_text",
    "patch_map",
    "row_of",
]


def neuron_view(reader: CorpusReader | None, neuron_id: int) -> NeuronView:
    """A neuron as lists show it."""
    if reader is None:
        return NeuronView(neuron_id=neuron_id, row=None)
    is_sensitive = neuron_id in reader.sensitive_neuron_ids
    return NeuronView(neuron_id=neuron_id, row=reader.neuron(neuron_id), is_sensitive=is_sensitive)


def corpus_image(reader: CorpusReader, row: int, *, with_thumbnail: bool) -> CorpusImage:
    """An image of the corpus by row."""
    return CorpusImage(image=reader.image(row), thumbnail=reader.thumbnail(row) if with_thumbnail else b"")


def row_of(generation: Generation, sha256: str, *, field: str) -> int:
    """The row of an image by digest; raises `NotFound`."""
    row = generation.reader.row_of(sha256)
    if row is None:
        check_taken_down(generation, sha256, field=field)
        check_sensitive(generation, sha256, field=field)
        assert generation.corpus is not None, "reader has refused a missing corpus"
        raise NotFound(
            f"corpus {generation.corpus.name!r} holds no image with the digest {sha256}; send the image's bytes, or "
            "name another corpus",
            field=field,
            name=sha256,
        )
    return row


def check_sensitive(generation: Generation, sha256: str, *, field: str) -> None:
    """Raise `NotFound` where the image with a digest is hidden because it is sensitive."""
    if generation.hides(sha256):
        raise NotFound(
            f"the image with the digest {sha256} is sensitive; ask for it with include_sensitive",
            field=field,
            name=sha256,
        )


def check_taken_down(generation: Generation, sha256: str, *, field: str) -> None:
    """Raise `NotFound` where the image with a digest was taken down; reads memory alone."""
    corpus = generation.corpus
    if corpus is not None and corpus.reader.is_taken_down(sha256):
        raise NotFound(
            f"the image with the digest {sha256} was taken down from corpus {corpus.name!r}; ask for another one",
            field=field,
            name=sha256,
        )


def exemplar_images(
    generation: Generation,
    neuron_id: int,
    kind: ExemplarKind,
    count: int,
    *,
    pictures: Pictures,
) -> tuple[ExemplarImage, ...]:
    """At most `count` exemplars of a neuron, strongest first."""
    reader = generation.reader
    found = reader.exemplars(neuron_id, kind, count)
    images = [corpus_image(reader, exemplar.row, with_thumbnail=pictures.thumbnails) for exemplar in found]
    return tuple(
        ExemplarImage(
            image=image,
            activation=exemplar.value,
            quantile=exemplar.quantile,
            patch_map=patch_map(generation, image, neuron_id) if pictures.patch_maps else None,
        )
        for exemplar, image in zip(found, images, strict=True)
    )


def patch_map(generation: Generation, image: CorpusImage, neuron_id: int) -> PatchMap | None:
    """Where on an image a neuron fires; None where it does not, or where the index keeps no maps."""
    row = image.image
    shares = generation.reader.patch_map(row.row, neuron_id)
    grid = generation.bundle.patch_grid(width=row.width, height=row.height)
    return None if shares is None or grid is None else PatchMap(grid=grid, shares=shares.tobytes())


def images_like(
    reader: CorpusReader,
    code: ImageCode,
    count: int,
    *,
    own_sha256: str,
    with_thumbnails: bool,
    alike: CodesAlike = CODES_ALIKE,
) -> tuple[ImageMatch, ...]:
    """At most `count` images with the most similar codes, best first, without copies of the image itself.

    Args:
        reader: the index.
        code: the code of the queried image.
        count: how many.
        own_sha256: its digest: a corpus may hold it more than once.
        with_thumbnails: whether each image carries its thumbnail.
        alike: how codes are compared.
    """
    own_rows, only = reader.rows_of(own_sha256), alike.only_neuron_ids or None
    return tuple(
        ImageMatch(
            image=corpus_image(reader, match.row, with_thumbnail=with_thumbnails),
            score=match.similarity,
            shared_neuron_ids=match.shared_neuron_ids[:SHARED_NEURON_LIMIT],
        )
        for match in reader.similar_images(code, count, exclude_rows=own_rows, metric=alike.metric, neuron_ids=only)
    )


def images_near(
    reader: CorpusReader,
    residual: Float32[np.ndarray, " width"],
    count: int,
    *,
    own_sha256: str,
    with_thumbnails: bool,
) -> tuple[ImageMatch, ...]:
    """At most `count` images with the most similar residuals. Arguments as `images_like`, but for the residual."""
    return tuple(
        ImageMatch(image=corpus_image(reader, row, with_thumbnail=with_thumbnails), score=cosine)
        for row, cosine in reader.images_by_residual(residual, count, exclude_rows=reader.rows_of(own_sha256))
    )


def images_by_words(
    reader: CorpusReader, search: ImageSearch, text_vector: Float32[np.ndarray, " embedding"]
) -> ImageList:
    """The images whose embeddings point most along the words."""
    images = tuple(
        ImageMatch(image=corpus_image(reader, row, with_thumbnail=search.pictures.thumbnails), score=score)
        for row, score in reader.images_by_text(text_vector, search.count)
    )
    return ImageList(images=images, metric=ImageMetric.TEXT_COSINE, recall=reader.text_recall)


def images_exciting(generation: Generation, search: ImageSearch, like: LikeNeuron) -> ImageList:
    """The images that excite a neuron most; raises `NotFound` for an unknown one."""
    generation.check_neuron(like.neuron_id)
    exemplars = exemplar_images(
        generation,
        like.neuron_id,
        ExemplarKind.TOP,
        search.count,
        pictures=search.pictures,
    )
    images = tuple(
        ImageMatch(image=exemplar.image, score=exemplar.activation, patch_map=exemplar.patch_map)
        for exemplar in exemplars
    )
    return ImageList(images=images, metric=ImageMetric.ACTIVATION)


def images_firing(generation: Generation, search: ImageSearch, like: LikeExpression) -> ImageList:
    """The images that fire as an expression asks, and how many there are.

    Raises:
        InputError: it is no expression.
        NotFound: it names an unknown neuron.
    """
    reader = generation.reader
    images = tuple(
        ImageMatch(image=corpus_image(reader, row, with_thumbnail=search.pictures.thumbnails), score=score)
        for row, score in reader.images_by_expression(like.text, search.count)
    )
    return ImageList(
        images=images,
        metric=ImageMetric.EXPRESSION,
        total_count=reader.count_by_expression(like.text),
        engine=reader.code_engine,
    )


def code_search(reader: CorpusReader, alike: CodesAlike = CODES_ALIKE) -> CodeSearch:
    """How images with similar codes are looked for."""
    # Whatever is not the plain cosine is always found exactly.
    recall = reader.similar_recall if alike == CODES_ALIKE else 1.0
    return CodeSearch(recall=recall, left_out_neuron_ids=reader.left_out_neuron_ids, engine=reader.code_engine)


def neuron_profile(generation: Generation, query: NeuronQuery) -> NeuronProfile:
    """Statistics, names and the parts that were asked for; raises `NotFound` for an unknown neuron."""
    generation.check_neuron(query.neuron_id)
    reader = generation.reader

    def exemplars(part: NeuronPart, kind: ExemplarKind) -> tuple[ExemplarImage, ...]:
        if part not in query.parts:
            return ()
        return exemplar_images(
            generation,
            query.neuron_id,
            kind,
            query.exemplar_count,
            pictures=query.pictures,
        )

    similar: Sequence[tuple[int, float]] = ()
    if NeuronPart.SIMILAR_NEURONS in query.parts:
        similar = reader.neurons_like(query.neuron_id, query.similar_count)
    view, row = neuron_view(reader, query.neuron_id), reader.neuron(query.neuron_id)
    return NeuronProfile(
        neuron=view,
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
    neuron_ids = reader.list_neurons(query.order, query.filter)
    end = offset + query.page_size
    return NeuronList(
        neurons=tuple(neuron_view(reader, neuron_id) for neuron_id in neuron_ids[offset:end]),
        next_page_token=page_token(query, generation.id, end) if end < len(neuron_ids) else "",
        total_count=len(neuron_ids),
    )


def neurons_like_neuron(generation: Generation, search: NeuronSearch, like: LikeNeuron) -> tuple[NeuronMatch, ...]:
    """The neurons with the most similar directions, without the neuron itself; raises `NotFound`."""
    generation.check_neuron(like.neuron_id)
    return _matches(generation, search, generation.reader.neurons_like(like.neuron_id, search.count))


def neurons_like_text(
    generation: Generation, search: NeuronSearch, text_vector: Float32[np.ndarray, " embedding"]
) -> tuple[NeuronMatch, ...]:
    """The neurons whose exemplars' embeddings, less the corpus's mean, point most along the text."""
    return _matches(generation, search, generation.reader.neurons_by_text(text_vector, search.count))


def _histogram(reader: CorpusReader, row: NeuronRow, bin_count: int) -> ActivationHistogram:
    edges = np.linspace(0, row.maximum, bin_count + 1)
    counts = reader.activation_histogram(row.neuron_id, edges)
    return ActivationHistogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _co_active(reader: CorpusReader, neuron_id: int, count: int) -> tuple[CoActiveNeuron, ...]:
    return tuple(
        CoActiveNeuron(neuron=neuron_view(reader, other), npmi=npmi, image_count=image_count)
        for other, npmi, image_count in reader.co_active_neurons(neuron_id, count)
    )


def _matches(
    generation: Generation, search: NeuronSearch, found: Sequence[tuple[int, float]]
) -> tuple[NeuronMatch, ...]:
    return tuple(
        NeuronMatch(
            neuron=neuron_view(generation.reader, neuron_id),
            score=score,
            top_images=exemplar_images(
                generation,
                neuron_id,
                ExemplarKind.TOP,
                search.exemplars_per_neuron,
                pictures=search.pictures,
            )
            if search.exemplars_per_neuron
            else (),
        )
        for neuron_id, score in found
    )
