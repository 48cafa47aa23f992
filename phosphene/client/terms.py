"""What `Client` and `AsyncClient` do alike: the terms of their calls, requests and errors; makes no calls itself."""

from __future__ import annotations

import time
from typing import Unpack

import grpc
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from phosphene.client.access import AccessOptions, access_to
from phosphene.client.failures import error_from, error_of
from phosphene.client.options import ExplainImagesOptions, ExplainOptions, SearchImagesOptions
from phosphene.client.questions import OpenQuestions
from phosphene.client.requests import ImageSource, by_digest, explain_request, image_query, search_images_request
from phosphene.client.retries import Attempts, RetryPolicy
from phosphene.client.transport import LARGEST_IMAGE_LIMIT_BYTES, channel_options
from phosphene.errors import PhospheneError, ServiceError, SettingError
from phosphene.v1.explain_pb2 import ExplainRequest
from phosphene.v1.images_pb2 import SearchImagesRequest

__all__ = ["CallTerms"]


class CallTerms:
    """How one client calls one service."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | int,
        retries: int,
        image_limit_bytes: int,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Agree on them; see `Client`.

        Raises:
            SettingError: `timeout_s`, `retries` or `image_limit_bytes` is out of its bounds, or `access` is refused;
                see `access_to`.
        """
        self.address = address
        """The service."""
        self.timeout_s = float(timeout_s)
        """Seconds for a call, repeats included; of a stream, the longest silence."""
        self._policy = RetryPolicy(timeout_s=self.timeout_s, retry_count=retries)
        if not 1 <= image_limit_bytes <= LARGEST_IMAGE_LIMIT_BYTES:
            raise SettingError(
                f"image_limit_bytes is {image_limit_bytes}; give 1 to {LARGEST_IMAGE_LIMIT_BYTES}, which is what a "
                "message can hold",
                field="image_limit_bytes",
            )
        self._image_limit_bytes = image_limit_bytes
        allowed = access_to(address, **access)
        self.credentials = allowed.credentials
        """Of the channel; None: plaintext."""
        self.metadata = allowed.metadata
        """Of every call."""
        self.channel_options = [*channel_options(image_limit_bytes), *allowed.channel_options]
        """Of the channel."""

    def attempts(self) -> Attempts:
        """The attempts of a call that begins now."""
        return Attempts(self._policy, clock=time.monotonic)

    def error(self, failure: grpc.RpcError | grpc.aio.AioRpcError) -> PhospheneError:
        """The error to raise for a failed call."""
        return error_from(failure, address=self.address, timeout_s=self.timeout_s)

    def closed(self) -> PhospheneError:
        """The error to raise for a call that ends because the client is closed."""
        return error_of(Status(code=code_pb2.CANCELLED), address=self.address)

    def used_after(self) -> PhospheneError:
        """The error to raise for a call that begins once the client is closed."""
        return ServiceError(f"the client of {self.address} is closed; open another")

    def open_questions(self, **options: Unpack[ExplainImagesOptions]) -> OpenQuestions:
        """The questions of an `explain_images`; raises `InputError` where the options are wrong."""
        return OpenQuestions(
            policy=self._policy,
            clock=time.monotonic,
            address=self.address,
            image_limit_bytes=self._image_limit_bytes,
            **options,
        )

    def explain_requests(
        self, image: ImageSource | None, *, sha256: str | None, digest_first: bool, **options: Unpack[ExplainOptions]
    ) -> tuple[ExplainRequest, ...]:
        """What `explain` asks: the next one only where the service `failures.needs_bytes` for the one before.

        Raises:
            InputError: see `requests.image_query` and `requests.explain_request`.
            ImageError: the image cannot be read, or is too large.
        """
        request = explain_request(image_query(image, sha256=sha256, limit_bytes=self._image_limit_bytes), **options)
        if digest_first and request.image.HasField("data"):
            return by_digest(request), request
        return (request,)

    def search_images_request(
        self,
        image: ImageSource | None,
        *,
        sha256: str | None,
        neuron_id: int | None,
        expression: str | None,
        text: str | None,
        **options: Unpack[SearchImagesOptions],
    ) -> SearchImagesRequest:
        """What `search_images` asks.

        Raises:
            InputError: see `requests.image_query` and `requests.search_images_request`.
            ImageError: the image cannot be read, or is too large.
        """
        by_image = image is not None or sha256 is not None
        query = image_query(image, sha256=sha256, limit_bytes=self._image_limit_bytes) if by_image else None
        return search_images_request(query, neuron_id=neuron_id, expression=expression, text=text, **options)
