"""Builds the requests of `phosphene.v1` from plain arguments; knows nothing of channels, retries or answers.

Bounds are the service's to check; here only what no message can hold is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Unpack

from phosphene.client.options import (
    ExplainOptions,
    ListNeuronsOptions,
    NeuronOptions,
    Place,
    SearchImagesOptions,
    SearchNeuronsOptions,
)
from phosphene.client.paths import kind_of
from phosphene.errors import ImageTooLarge, ImageUnreadable, InputError
from phosphene.v1.explain_pb2 import ExplainPart, ExplainRequest
from phosphene.v1.images_pb2 import GetImageRequest, ImageMetric, SearchImagesRequest
from phosphene.v1.models_pb2 import GetModelRequest, ListModelsRequest
from phosphene.v1.neurons_pb2 import (
    GetNeuronRequest,
    ListNeuronsRequest,
    NeuronFilter,
    NeuronOrder,
    NeuronPart,
    SearchNeuronsRequest,
)
from phosphene.v1.values_pb2 import ImageQuery

__all__ = [
    "IMAGE_LIMIT_BYTES",
    "ImageSource",
    "by_digest",
    "explain_request",
    "image_query",
    "image_request",
    "list_neurons_request",
    "model_request",
    "models_request",
    "neuron_request",
    "read_image",
    "search_images_request",
    "search_neurons_request",
]

IMAGE_LIMIT_BYTES = 16 * 2**20
"""The largest encoded image that a service takes unless it is told otherwise (`ImageLimits.byte_limit`)."""

ImageSource = bytes | str | Path
"""An encoded JPEG, PNG or WebP file, or the path of one."""

_UINT32_LIMIT = 2**32 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


def image_query(
    image: ImageSource | None = None, *, sha256: str | None = None, limit_bytes: int = IMAGE_LIMIT_BYTES
) -> ImageQuery:
    """Return the query for an image given as bytes, as the path of a file, or as the digest of a corpus image.

    Raises:
        InputError: neither or both are given, or the digest is not 64 lowercase hexadecimal digits.
        ImageUnreadable: there is no such file, or it cannot be read.
        ImageTooLarge: more than `limit_bytes`; told before the file is read.
    """
    if (image is None) == (sha256 is None):
        raise InputError("give exactly one of an image (bytes or a path) and sha256", field="image")
    if sha256 is not None:
        return ImageQuery(sha256=_checked_sha256(sha256, "image.sha256"))
    assert image is not None
    return ImageQuery(data=read_image(image, limit_bytes=limit_bytes))


def read_image(image: ImageSource, *, limit_bytes: int = IMAGE_LIMIT_BYTES) -> bytes:
    """Return the encoded file of an image given as bytes or as a path; whether it is an image, the service tells.

    Raises:
        ImageUnreadable: there is no such file, or it cannot be read.
        ImageTooLarge: more than `limit_bytes`; told before the file is read.
    """
    if isinstance(image, bytes):
        _check_size(len(image), "the image", limit_bytes)
        return image
    path = Path(image)
    try:
        kind = kind_of(path)
        if kind != "file":
            what = {"nothing": "does not exist", "folder": "is a folder", "other": "is no regular file"}[kind]
            raise ImageUnreadable(f"{str(path)!r} {what}; give the path of a JPEG, PNG or WebP file", field="image")
        _check_size(path.stat().st_size, repr(str(path)), limit_bytes)
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadable(
            f"{str(path)!r} cannot be read: {error.strerror}; name a file that you may read", field="image"
        ) from error


def explain_request(query: ImageQuery, **options: Unpack[ExplainOptions]) -> ExplainRequest:
    """Return the request of `Explain`.

    Raises:
        InputError: an unknown part, or a count or a text that no message can hold.
    """
    request = ExplainRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        image=query,
        parts=[_explain_part(name) for name in options.get("parts", ())],
        include_thumbnails=options.get("include_thumbnails", False),
        include_patch_maps=options.get("include_patch_maps", False),
    )
    if "top_n" in options:
        request.top_n = _uint32("top_n", options["top_n"])
    if "nearest_count" in options:
        request.nearest_count = _uint32("nearest_count", options["nearest_count"])
    if "exemplars_per_neuron" in options:
        request.exemplars_per_neuron = _uint32("exemplars_per_neuron", options["exemplars_per_neuron"])
    if "similar_count" in options:
        request.similar_count = _uint32("similar_count", options["similar_count"])
    if "score_count" in options:
        request.score_count = _uint32("score_count", options["score_count"])
    return request


def by_digest(request: ExplainRequest) -> ExplainRequest:
    """Return the same request with the digest of its image instead of the image."""
    asked = ExplainRequest()
    asked.CopyFrom(request)
    asked.image.sha256 = sha256_of(request.image.data).hexdigest()
    return asked


def neuron_request(neuron_id: int, **options: Unpack[NeuronOptions]) -> GetNeuronRequest:
    """Return the request of `GetNeuron`.

    Raises:
        InputError: an unknown part, or a number or a text that no message can hold.
    """
    request = GetNeuronRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        neuron_id=_uint32("neuron_id", neuron_id),
        parts=[_neuron_part(name) for name in options.get("parts", ())],
        include_thumbnails=options.get("include_thumbnails", False),
        include_patch_maps=options.get("include_patch_maps", False),
    )
    if "exemplar_count" in options:
        request.exemplar_count = _uint32("exemplar_count", options["exemplar_count"])
    if "similar_count" in options:
        request.similar_count = _uint32("similar_count", options["similar_count"])
    if "bin_count" in options:
        request.bin_count = _uint32("bin_count", options["bin_count"])
    if "co_active_count" in options:
        request.co_active_count = _uint32("co_active_count", options["co_active_count"])
    return request


def list_neurons_request(
    *, page_size: int | None = None, page_token: str = "", **options: Unpack[ListNeuronsOptions]
) -> ListNeuronsRequest:
    """Return the request of `ListNeurons` for one page.

    Raises:
        InputError: an unknown order, or a number or a text that no message can hold.
    """
    request = ListNeuronsRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        order=_neuron_order(options.get("order", "id")),
        filter=NeuronFilter(
            min_density=options.get("min_density"),
            max_density=options.get("max_density"),
            name_contains=_text("name_contains", options.get("name_contains", "")),
            alive_only=options.get("alive_only", False),
            in_dense_cluster=options.get("in_dense_cluster"),
            is_sensitive=options.get("is_sensitive"),
        ),
        page_token=_text("page_token", page_token),
    )
    if page_size is not None:
        request.page_size = _uint32("page_size", page_size)
    return request


def search_neurons_request(
    text: str | None = None, *, neuron_id: int | None = None, **options: Unpack[SearchNeuronsOptions]
) -> SearchNeuronsRequest:
    """Return the request of `SearchNeurons`, by words or by another neuron.

    Raises:
        InputError: neither or both are given, or a number or a text that no message can hold.
    """
    if (text is None) == (neuron_id is None):
        raise InputError("give exactly one of text and neuron_id", field="query")
    request = SearchNeuronsRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        include_top_images=options.get("include_top_images", False),
        include_thumbnails=options.get("include_thumbnails", False),
        include_patch_maps=options.get("include_patch_maps", False),
    )
    if text is not None:
        request.text = _text("text", text)
    if neuron_id is not None:
        request.neuron_id = _uint32("neuron_id", neuron_id)
    if "count" in options:
        request.count = _uint32("count", options["count"])
    if "exemplars_per_neuron" in options:
        request.exemplars_per_neuron = _uint32("exemplars_per_neuron", options["exemplars_per_neuron"])
    return request


def search_images_request(
    query: ImageQuery | None = None,
    *,
    neuron_id: int | None = None,
    expression: str | None = None,
    text: str | None = None,
    **options: Unpack[SearchImagesOptions],
) -> SearchImagesRequest:
    """Return the request of `SearchImages`, by an image, by a neuron, by a neuron expression or by words.

    Raises:
        InputError: none or several are given, or a number or a text that no message can hold.
    """
    if sum(each is not None for each in (query, neuron_id, expression, text)) != 1:
        raise InputError(
            "give exactly one of an image (bytes, a path or sha256), neuron_id, expression and text", field="query"
        )
    request = SearchImagesRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        include_thumbnails=options.get("include_thumbnails", False),
        include_patch_maps=options.get("include_patch_maps", False),
    )
    if query is not None:
        request.image.CopyFrom(query)
    if neuron_id is not None:
        request.neuron_id = _uint32("neuron_id", neuron_id)
    if expression is not None:
        request.expression = _text("expression", expression)
    if text is not None:
        request.text = _text("text", text)
    if "similarity" in options:
        request.similarity = _image_metric(options["similarity"])
    request.only_neuron_ids.extend(
        _uint32("only_neuron_ids", neuron_id) for neuron_id in options.get("only_neuron_ids", ())
    )
    if "count" in options:
        request.count = _uint32("count", options["count"])
    return request


def image_request(sha256: str, **options: Unpack[Place]) -> GetImageRequest:
    """Return the request of `GetImage`.

    Raises:
        InputError: the digest is not 64 lowercase hexadecimal digits, or a text that no message can hold.
    """
    return GetImageRequest(
        bundle=_text("bundle", options.get("bundle", "")),
        corpus=_text("corpus", options.get("corpus", "")),
        include_sensitive=options.get("include_sensitive", False),
        sha256=_checked_sha256(sha256, "sha256"),
    )


def models_request() -> ListModelsRequest:
    """Return the request of `ListModels`."""
    return ListModelsRequest()


def model_request(bundle: str = "") -> GetModelRequest:
    """Return the request of `GetModel`; an empty name asks for the default bundle.

    Raises:
        InputError: a text that no message can hold.
    """
    return GetModelRequest(bundle=_text("bundle", bundle))


def _check_size(size_bytes: int, what: str, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ImageTooLarge(
            f"{what} has {size_bytes} bytes; the limit is {limit_bytes} bytes (image_limit_bytes): save it smaller",
            field="image",
        )


def _checked_sha256(text: str, field: str) -> str:
    if not _SHA256.fullmatch(text):
        raise InputError(f"{field} is {text!r}; a digest is 64 lowercase hexadecimal digits", field=field)
    return text


def _text(field: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        # What Python makes of bytes that are not UTF-8, such as those of a file's name.
        raise InputError(f"{field} is {value!r}, which holds half a character; give text", field=field) from None
    return value


def _uint32(field: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _UINT32_LIMIT:
        raise InputError(f"{field} is {value!r}; it is a whole number from 0 to {_UINT32_LIMIT}", field=field)
    return value


def _explain_part(name: str) -> ExplainPart.ValueType:
    _check_choice("parts", name, "EXPLAIN_PART_", ExplainPart.keys())
    return ExplainPart.Value(f"EXPLAIN_PART_{name.upper()}")


def _neuron_part(name: str) -> NeuronPart.ValueType:
    _check_choice("parts", name, "NEURON_PART_", NeuronPart.keys())
    return NeuronPart.Value(f"NEURON_PART_{name.upper()}")


def _neuron_order(name: str) -> NeuronOrder.ValueType:
    _check_choice("order", name, "NEURON_ORDER_", NeuronOrder.keys())
    return NeuronOrder.Value(f"NEURON_ORDER_{name.upper()}")


def _image_metric(name: str) -> ImageMetric.ValueType:
    _check_choice("similarity", name, "IMAGE_METRIC_", ImageMetric.keys())
    return ImageMetric.Value(f"IMAGE_METRIC_{name.upper()}")


def _check_choice(field: str, name: str, prefix: str, keys: Iterable[str]) -> None:
    choices = [key.removeprefix(prefix).lower() for key in keys if key != f"{prefix}UNSPECIFIED"]
    if name not in choices:
        raise InputError(f"{field} names {name!r}; it knows {', '.join(choices)}", field=field)
