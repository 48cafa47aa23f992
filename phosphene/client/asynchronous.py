"""`AsyncClient`: calls a Phosphene service from asyncio. Its twin that waits is `sync.Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from types import TracebackType
from typing import TypeVar, Unpack

import grpc

from phosphene.client.access import AccessOptions
from phosphene.client.failures import needs_bytes
from phosphene.client.image_stream_async import explain_each
from phosphene.client.options import (
    ExplainImagesOptions,
    ExplainOptions,
    ListNeuronsOptions,
    NeuronOptions,
    Place,
    SearchImagesOptions,
    SearchNeuronsOptions,
)
from phosphene.client.questions import Answer, QuestionSource
from phosphene.client.requests import (
    IMAGE_LIMIT_BYTES,
    ImageSource,
    image_request,
    list_neurons_request,
    model_request,
    models_request,
    neuron_request,
    search_neurons_request,
)
from phosphene.client.retries import Attempts
from phosphene.client.terms import CallTerms
from phosphene.client.transport import DEFAULT_ADDRESS, Method
from phosphene.errors import PhospheneError
from phosphene.v1.explain_pb2 import ExplainResponse
from phosphene.v1.images_pb2 import SearchImagesResponse
from phosphene.v1.models_pb2 import Model
from phosphene.v1.neurons_pb2 import GetNeuronResponse, ListNeuronsResponse, SearchNeuronsResponse
from phosphene.v1.service_pb2_grpc import PhospheneServiceStub
from phosphene.v1.values_pb2 import CorpusImage, NeuronSummary

__all__ = ["AsyncClient"]

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """One service, from the tasks of one event loop. Use it in an `async with` block, or close it.

    Its methods take, return and raise what those of `Client` do. A cancelled task cancels its call.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float | int = 30,
        retries: int = 2,
        image_limit_bytes: int = IMAGE_LIMIT_BYTES,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Prepare a channel; the first call connects.

        Args:
            address: `host:port`, or any other gRPC target.
            timeout_s: seconds for each call, repeats included; of `explain_images`, the longest silence. A day at most.
            retries: how often a call is repeated that found no service or a full one; other failures are final.
            image_limit_bytes: largest image to send; the service has its own limit.
            **access: API token, TLS, client certificate; see `AccessOptions`.

        Raises:
            SettingError: `timeout_s`, `retries` or `image_limit_bytes` is out of its bounds, or `access` is refused;
                see `access_to`.
        """
        self.address = address
        self._terms = terms = CallTerms(
            address, timeout_s=timeout_s, retries=retries, image_limit_bytes=image_limit_bytes, **access
        )
        self._channel = (
            grpc.aio.insecure_channel(address, options=terms.channel_options)
            if terms.credentials is None
            else grpc.aio.secure_channel(address, terms.credentials, options=terms.channel_options)
        )
        self._stub = PhospheneServiceStub(self._channel)
        self._closed = asyncio.Event()

    async def __aenter__(self) -> AsyncClient:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """End calls under way and the connection; closing twice is fine."""
        self._closed.set()
        await self._channel.close(grace=None)

    async def explain(
        self,
        image: ImageSource | None = None,
        *,
        sha256: str | None = None,
        digest_first: bool = False,
        **options: Unpack[ExplainOptions],
    ) -> ExplainResponse:
        """Tell what lights up on an image, given as bytes, as a path, or as the digest of an image of the corpus.

        With `digest_first` the image is asked for by its digest, and sent only where the service needs it: it knows
        those of the corpus, which it answers from what the index stored, and those that this caller sent before.
        """
        *first, last = self._terms.explain_requests(image, sha256=sha256, digest_first=digest_first, **options)
        attempts = self._terms.attempts()
        for request in first:
            try:
                return await self._ask(self._stub.Explain, request, attempts)
            except PhospheneError as error:
                if not needs_bytes(error):
                    raise
        return await self._ask(self._stub.Explain, last, attempts)

    def explain_images(
        self,
        images: Iterable[QuestionSource] | AsyncIterable[QuestionSource],
        **options: Unpack[ExplainImagesOptions],
    ) -> AsyncIterator[Answer]:
        """Tell what lights up on each of many images; see `Client.explain_images`.

        `images` may be asynchronous: answers come while the next image is waited for. A loop that is left early should
        close the iterator (`contextlib.aclosing`), which cancels the call.
        """
        if self._closed.is_set():
            raise self._terms.used_after()
        return explain_each(
            images,
            self._terms.open_questions(**options),
            lambda: self._stub.ExplainImages(metadata=self._terms.metadata),  # type: ignore[call-arg]  # one that is written to
            timeout_s=self._terms.timeout_s,
            wait=self._is_closed_within,
        )

    async def neuron(self, neuron_id: int, **options: Unpack[NeuronOptions]) -> GetNeuronResponse:
        """Tell what is known of a neuron: statistics, names, and the parts that are asked for."""
        return await self._ask(self._stub.GetNeuron, neuron_request(neuron_id, **options))

    async def neurons(
        self, *, page_size: int | None = None, **options: Unpack[ListNeuronsOptions]
    ) -> AsyncIterator[NeuronSummary]:
        """List neurons in an order, fetching page after page as they are consumed; each page has its own deadline."""
        page_token = ""
        while True:
            page = await self.neurons_page(page_size=page_size, page_token=page_token, **options)
            for neuron in page.neurons:
                yield neuron
            page_token = page.next_page_token
            if not page_token:
                return

    async def neurons_page(
        self, *, page_size: int | None = None, page_token: str = "", **options: Unpack[ListNeuronsOptions]
    ) -> ListNeuronsResponse:
        """List one page of neurons, with the total count and the token of the next page."""
        request = list_neurons_request(page_size=page_size, page_token=page_token, **options)
        return await self._ask(self._stub.ListNeurons, request)

    async def search_neurons(
        self, text: str | None = None, *, neuron_id: int | None = None, **options: Unpack[SearchNeuronsOptions]
    ) -> SearchNeuronsResponse:
        """Find neurons by words, or neurons like another one."""
        return await self._ask(self._stub.SearchNeurons, search_neurons_request(text, neuron_id=neuron_id, **options))

    async def search_images(
        self,
        image: ImageSource | None = None,
        *,
        sha256: str | None = None,
        neuron_id: int | None = None,
        expression: str | None = None,
        text: str | None = None,
        **options: Unpack[SearchImagesOptions],
    ) -> SearchImagesResponse:
        """Find images of the corpus like an image, that excite a neuron, that fire as asked, or that words describe.

        An expression names neurons: `12>0.5 & 907 & !55` are the images on which neuron 12 is above 0.5, 907 fires and
        55 does not.
        """
        request = self._terms.search_images_request(
            image, sha256=sha256, neuron_id=neuron_id, expression=expression, text=text, **options
        )
        return await self._ask(self._stub.SearchImages, request)

    async def image(self, sha256: str, **options: Unpack[Place]) -> CorpusImage:
        """Return an image of the corpus with its thumbnail."""
        return (await self._ask(self._stub.GetImage, image_request(sha256, **options))).image

    async def thumbnail(self, sha256: str, **options: Unpack[Place]) -> bytes:
        """Return the thumbnail of an image of the corpus, a small JPEG file."""
        return (await self.image(sha256, **options)).thumbnail

    async def models(self) -> list[Model]:
        """Return every bundle that the service has, the default one first."""
        return list((await self._ask(self._stub.ListModels, models_request())).models)

    async def model(self, bundle: str = "") -> Model:
        """Return one bundle; an empty name is the default one."""
        return (await self._ask(self._stub.GetModel, model_request(bundle))).model

    async def _ask(
        self, method: Method[Request, Awaitable[Response]], request: Request, attempts: Attempts | None = None
    ) -> Response:
        attempts = attempts or self._terms.attempts()
        while True:
            try:
                return await method(request, timeout=attempts.remaining_s(), metadata=self._terms.metadata)
            except grpc.aio.AioRpcError as failure:
                error = self._terms.error(failure)
            except grpc.aio.UsageError:
                if not self._closed.is_set():
                    raise
                raise self._terms.used_after() from None
            except asyncio.CancelledError:
                if not self._closed.is_set() or _is_cancelled():
                    raise
                # gRPC cancels whoever waits for a call that ends with its channel; nobody cancelled this task.
                raise self._terms.closed() from None
            delay_s = attempts.delay_s(error)
            if delay_s is None or await self._is_closed_within(delay_s):
                raise error

    async def _is_closed_within(self, wait_s: float) -> bool:
        """Wait that long, or until the client is closed."""
        try:
            async with asyncio.timeout(wait_s):
                return await self._closed.wait()
        except TimeoutError:
            return False


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
