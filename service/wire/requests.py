"""Protobuf requests -> queries, checked against the bounds that the contract states.

Every fault is an `InputError` that names the field, its value and the limit. Reads nothing but the request.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from google.protobuf.message import Message

from index.values import CodeMetric, NeuronFilter, NeuronOrder
from phosphene.errors import InputError
from phosphene.manifest import is_digest
from phosphene.v1 import explain_pb2, images_pb2, neurons_pb2, values_pb2
from service.queries import (
    CodesAlike,
    ExplainPart,
    ExplainQuery,
    ImageBytes,
    ImageDigest,
    ImageLookup,
    ImageQuery,
    ImageSearch,
    ImageUpload,
    LikeExpression,
    LikeImage,
    LikeNeuron,
    LikeText,
    NeuronListQuery,
    NeuronPart,
    NeuronQuery,
    NeuronSearch,
    Pictures,
    ResidualsAlike,
    Scope,
    Similarity,
)

__all__ = [
    "explain_query",
    "image_lookup",
    "image_search",
    "neuron_list_query",
    "neuron_query",
    "neuron_search",
]

Choice = TypeVar("Choice", bound=Hashable)

_LIST_LIMIT = 100
_EXEMPLAR_LIMIT = 128
_SCORE_LIMIT = 1000
_PAGE_LIMIT = 1000
_IMAGE_LIMIT = 8192
_THUMBNAIL_LIMIT = 1024
_TEXT_LIMIT_CHARACTERS = 1024
_ONLY_LIMIT = 64
_NAME_LIMIT_CHARACTERS = 256
_CHOICE_LIMIT = 64
_SHOWN_CHOICE_LIMIT = 4

_EXPLAIN_PARTS: Mapping[int, ExplainPart] = {
    explain_pb2.EXPLAIN_PART_FIDELITY: ExplainPart.FIDELITY,
    explain_pb2.EXPLAIN_PART_NEURONS: ExplainPart.NEURONS,
    explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS: ExplainPart.PATCH_ACTIVATIONS,
    explain_pb2.EXPLAIN_PART_NEAREST_NEURONS: ExplainPart.NEAREST_NEURONS,
    explain_pb2.EXPLAIN_PART_TOP_IMAGES: ExplainPart.TOP_IMAGES,
    explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES: ExplainPart.SIMILAR_IMAGES,
    explain_pb2.EXPLAIN_PART_SCORES: ExplainPart.SCORES,
    explain_pb2.EXPLAIN_PART_CODE: ExplainPart.CODE,
}
_NEURON_PARTS: Mapping[int, NeuronPart] = {
    neurons_pb2.NEURON_PART_TOP_IMAGES: NeuronPart.TOP_IMAGES,
    neurons_pb2.NEURON_PART_SPREAD_IMAGES: NeuronPart.SPREAD_IMAGES,
    neurons_pb2.NEURON_PART_SIMILAR_NEURONS: NeuronPart.SIMILAR_NEURONS,
    neurons_pb2.NEURON_PART_HISTOGRAM: NeuronPart.HISTOGRAM,
    neurons_pb2.NEURON_PART_CO_ACTIVE_NEURONS: NeuronPart.CO_ACTIVE_NEURONS,
}
_SIMILARITIES: Mapping[int, Similarity] = {
    images_pb2.IMAGE_METRIC_UNSPECIFIED: CodesAlike(),
    images_pb2.IMAGE_METRIC_CODE_COSINE: CodesAlike(),
    images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT: CodesAlike(metric=CodeMetric.INNER_PRODUCT),
    images_pb2.IMAGE_METRIC_RESIDUAL_COSINE: ResidualsAlike(),
}
_ORDERS: Mapping[int, NeuronOrder] = {
    neurons_pb2.NEURON_ORDER_UNSPECIFIED: NeuronOrder.NEURON_ID,
    neurons_pb2.NEURON_ORDER_ID: NeuronOrder.NEURON_ID,
    neurons_pb2.NEURON_ORDER_DENSITY: NeuronOrder.DENSITY,
    neurons_pb2.NEURON_ORDER_MAXIMUM: NeuronOrder.MAXIMUM,
    neurons_pb2.NEURON_ORDER_MEAN: NeuronOrder.MEAN,
    neurons_pb2.NEURON_ORDER_LABEL_ENTROPY: NeuronOrder.LABEL_ENTROPY,
    neurons_pb2.NEURON_ORDER_NAME_SCORE: NeuronOrder.NAME_SCORE,
    neurons_pb2.NEURON_ORDER_MONOSEMANTICITY: NeuronOrder.MONOSEMANTICITY,
}


@runtime_checkable
class _Scoped(Protocol):
    @property
    def bundle(self) -> str: ...
    @property
    def corpus(self) -> str: ...
    @property
    def include_sensitive(self) -> bool: ...


@runtime_checkable
class _Listing(Protocol):
    @property
    def include_thumbnails(self) -> bool: ...
    @property
    def include_patch_maps(self) -> bool: ...


def explain_query(request: explain_pb2.ExplainRequest, *, upload_limit_bytes: int | None = None) -> ExplainQuery:
    """Read an Explain request.

    Args:
        request: as it came.
        upload_limit_bytes: most bytes of an image that follows in chunks; None: none can follow.

    Raises:
        InputError: see the contract.
    """
    parts = _choices(request.parts, _EXPLAIN_PARTS, field="parts") or frozenset({ExplainPart.NEURONS})
    if parts & {ExplainPart.PATCH_ACTIVATIONS, ExplainPart.TOP_IMAGES}:
        parts |= {ExplainPart.NEURONS}
    query = ExplainQuery(
        scope=_scope(request),
        image=_image_query(request.image, upload_limit_bytes),
        parts=parts,
        top_n=_count(request, "top_n", default=10, limit=_LIST_LIMIT),
        nearest_count=_count(request, "nearest_count", default=10, limit=_LIST_LIMIT),
        exemplars_per_neuron=_count(request, "exemplars_per_neuron", default=9, limit=_EXEMPLAR_LIMIT),
        similar_count=_count(request, "similar_count", default=12, limit=_LIST_LIMIT),
        score_count=_count(request, "score_count", default=10, limit=_SCORE_LIMIT),
        pictures=_pictures(request),
    )
    neuron_count = query.top_n + (query.nearest_count if ExplainPart.NEAREST_NEURONS in parts else 0)
    image_count = neuron_count * query.exemplars_per_neuron if ExplainPart.TOP_IMAGES in parts else 0
    image_count += query.similar_count if ExplainPart.SIMILAR_IMAGES in parts else 0
    _check_image_count(image_count, query.pictures)
    return query


def neuron_query(request: neurons_pb2.GetNeuronRequest) -> NeuronQuery:
    """Read a GetNeuron request; raises `InputError`."""
    if not request.HasField("neuron_id"):
        raise InputError("neuron_id is not set; name a neuron (0 is one)", field="neuron_id")
    return NeuronQuery(
        scope=_scope(request),
        neuron_id=request.neuron_id,
        parts=_choices(request.parts, _NEURON_PARTS, field="parts"),
        exemplar_count=_count(request, "exemplar_count", default=9, limit=_EXEMPLAR_LIMIT),
        similar_count=_count(request, "similar_count", default=10, limit=_LIST_LIMIT),
        bin_count=_count(request, "bin_count", default=10, limit=_LIST_LIMIT),
        co_active_count=_count(request, "co_active_count", default=10, limit=_LIST_LIMIT),
        pictures=_pictures(request),
    )


def neuron_list_query(request: neurons_pb2.ListNeuronsRequest) -> NeuronListQuery:
    """Read a ListNeurons request; raises `InputError`."""
    (order,) = _choices([request.order], _ORDERS, field="order")
    if request.filter.is_sensitive and not request.include_sensitive:
        raise InputError(
            "filter.is_sensitive is true and include_sensitive is not, so that nothing could be listed; set both, or "
            "neither",
            field="filter.is_sensitive",
        )
    return NeuronListQuery(
        scope=_scope(request),
        order=order,
        filter=_neuron_filter(request.filter),
        page_size=_count(request, "page_size", default=50, limit=_PAGE_LIMIT),
        page_token=request.page_token,
    )


def neuron_search(request: neurons_pb2.SearchNeuronsRequest) -> NeuronSearch:
    """Read a SearchNeurons request; raises `InputError`."""
    like: LikeText | LikeNeuron
    match request.WhichOneof("query"):
        case "text":
            like = LikeText(_words(request.text))
        case "neuron_id":
            like = LikeNeuron(request.neuron_id)
        case _:
            raise InputError("query is not set; set text or neuron_id", field="query")
    count = _count(request, "count", default=10, limit=_LIST_LIMIT)
    exemplar_count = _count(request, "exemplars_per_neuron", default=9, limit=_EXEMPLAR_LIMIT)
    search = NeuronSearch(
        scope=_scope(request),
        like=like,
        count=count,
        exemplars_per_neuron=exemplar_count if request.include_top_images else 0,
        pictures=_pictures(request),
    )
    _check_image_count(count * search.exemplars_per_neuron, search.pictures)
    return search


def image_search(request: images_pb2.SearchImagesRequest) -> ImageSearch:
    """Read a SearchImages request; raises `InputError`."""
    like: LikeImage | LikeNeuron | LikeExpression | LikeText
    query = request.WhichOneof("query")
    similarity = _similarity(request, query)
    match query:
        case "image":
            like = LikeImage(_image_query(request.image), similarity)
        case "neuron_id":
            like = LikeNeuron(request.neuron_id)
        case "expression":
            like = LikeExpression(request.expression)
        case "text":
            like = LikeText(_words(request.text))
        case _:
            raise InputError("query is not set; set image, neuron_id, expression or text", field="query")
    return ImageSearch(
        scope=_scope(request),
        like=like,
        count=_count(request, "count", default=12, limit=_LIST_LIMIT),
        pictures=_pictures(request),
    )


def _similarity(request: images_pb2.SearchImagesRequest, query: str | None) -> Similarity:
    (similarity,) = _choices([request.similarity], _SIMILARITIES, field="similarity")
    only = request.only_neuron_ids
    if request.similarity and query != "image":
        raise InputError(f"similarity is for an image; the query is {query or 'not set'}", field="similarity")
    if not only:
        return similarity
    if query != "image" or isinstance(similarity, ResidualsAlike):
        raise InputError("only_neuron_ids is for an image by codes; leave it empty", field="only_neuron_ids")
    if len(only) > _ONLY_LIMIT:
        raise InputError(
            f"only_neuron_ids has {len(only)} neurons; the limit is {_ONLY_LIMIT}", field="only_neuron_ids"
        )
    return replace(similarity, only_neuron_ids=tuple(only))


def image_lookup(request: images_pb2.GetImageRequest) -> ImageLookup:
    """Read a GetImage request; raises `InputError`."""
    return ImageLookup(scope=_scope(request), sha256=_digest(request.sha256, field="sha256"))


def _pictures(request: _Listing) -> Pictures:
    return Pictures(thumbnails=request.include_thumbnails, patch_maps=request.include_patch_maps)


def _scope(request: _Scoped) -> Scope:
    return Scope(bundle=request.bundle, corpus=request.corpus, include_sensitive=request.include_sensitive)


def _image_query(image: values_pb2.ImageQuery, upload_limit_bytes: int | None = None) -> ImageQuery:
    match image.WhichOneof("source"):
        case "data":
            return ImageBytes(image.data)
        case "sha256":
            return ImageDigest(_digest(image.sha256, field="image.sha256"))
        case "upload":
            if upload_limit_bytes is None:
                raise InputError(
                    "image.upload announces chunks, which only ExplainImages reads; send the bytes as image.data",
                    field="image.upload",
                )
            if not 1 <= image.upload.size_bytes <= upload_limit_bytes:
                raise InputError(
                    f"image.upload announces {image.upload.size_bytes} bytes; it must be 1 to {upload_limit_bytes}",
                    field="image.upload.size_bytes",
                )
            return ImageUpload(image.upload.size_bytes)
        case _:
            raise InputError("image is not set; send its bytes as image.data, or image.sha256", field="image")


def _digest(text: str, *, field: str) -> str:
    if not is_digest(text):
        raise InputError(f"{field} is {text[:80]!r}; it must be 64 lowercase hexadecimal digits", field=field)
    return text


def _words(text: str) -> str:
    if not text.strip() or len(text) > _TEXT_LIMIT_CHARACTERS:
        raise InputError(
            f"text has {len(text)} characters, {len(text.strip())} without outer white space; send 1 to "
            f"{_TEXT_LIMIT_CHARACTERS}",
            field="text",
        )
    return text


def _count(request: Message, field: str, *, default: int, limit: int) -> int:
    if not request.HasField(field):
        return default
    value: int = getattr(request, field)
    if not 1 <= value <= limit:
        raise InputError(f"{field} is {value}; it must be 1 to {limit}, or unset for {default}", field=field)
    return value


def _choices(numbers: Sequence[int], known: Mapping[int, Choice], *, field: str) -> frozenset[Choice]:
    if len(numbers) > _CHOICE_LIMIT:
        raise InputError(
            f"{field} has {len(numbers)} values; the limit is {_CHOICE_LIMIT}: name each once", field=field
        )
    try:
        return frozenset([known[number] for number in numbers])
    except KeyError:
        unknown = sorted({number for number in numbers if number not in known})
        shown = [*map(str, unknown[:_SHOWN_CHOICE_LIMIT]), *(["…"] if len(unknown) > _SHOWN_CHOICE_LIMIT else [])]
        raise InputError(
            f"{field} has the value {', '.join(shown)}, which names nothing here; "
            f"known are {', '.join(map(str, known))}",
            field=field,
        ) from None


def _neuron_filter(message: neurons_pb2.NeuronFilter) -> NeuronFilter:
    bounds: dict[str, float | None] = {}
    for name in ("min_density", "max_density"):
        value: float | None = getattr(message, name) if message.HasField(name) else None
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"filter.{name} is {value}; it must be 0 to 1", field=f"filter.{name}")
        bounds[name] = value
    low, high = bounds["min_density"], bounds["max_density"]
    if low is not None and high is not None and high < low:
        raise InputError(
            f"filter.max_density is {high}, below filter.min_density, {low}; no neuron is both",
            field="filter.max_density",
        )
    if len(message.name_contains) > _NAME_LIMIT_CHARACTERS:
        raise InputError(
            f"filter.name_contains has {len(message.name_contains)} characters; the limit is {_NAME_LIMIT_CHARACTERS}",
            field="filter.name_contains",
        )
    return NeuronFilter(
        min_density=low,
        max_density=high,
        name_contains=message.name_contains,
        alive_only=message.alive_only,
        in_dense_cluster=message.in_dense_cluster if message.HasField("in_dense_cluster") else None,
        is_sensitive=message.is_sensitive if message.HasField("is_sensitive") else None,
    )


def _check_image_count(image_count: int, pictures: Pictures) -> None:
    if image_count > _IMAGE_LIMIT:
        raise InputError(
            f"the answer could list {image_count} images; the limit is {_IMAGE_LIMIT}, and {_THUMBNAIL_LIMIT} with "
            "thumbnails: ask for fewer neurons or exemplars",
            field="exemplars_per_neuron",
        )
    if pictures.thumbnails and image_count > _THUMBNAIL_LIMIT:
        raise InputError(
            f"include_thumbnails would send {image_count} thumbnails; the limit is {_THUMBNAIL_LIMIT}: ask for fewer "
            "neurons or exemplars",
            field="include_thumbnails",
        )
