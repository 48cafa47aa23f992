"""`Client`: calls a Phosphene service and waits for its answers. Asyncio has its twin, `asynchronous.AsyncClient`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from threading import Event
from types import TracebackType
from typing import TypeVar, Unpack

import grpc

from phosphene.client.access import AccessOptions
from phosphene.client.failures import needs_bytes
from phosphene.client.image_stream import explain_each
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

__all__ = ["Client"]

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """One service, from one or many threads. Use it in a `with` block, or close it.

    Every method raises the errors of `phosphene.errors`: `InputError` (with its `field`) for a request that is wrong,
    `Unanswerable` for one that this bundle or corpus cannot answer, `NotFound`, `Overloaded`, `Unavailable`,
    `DeadlineExpired`, `ServiceUnreachable`, `Unauthenticated`, and `ServiceError` for everything else.
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
            grpc.insecure_channel(address, options=terms.channel_options)
            if terms.credentials is None
            else grpc.secure_channel(address, terms.credentials, options=terms.channel_options)
        )
        self._stub = PhospheneServiceStub(self._channel)
        self._closed = Event()

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """End calls under way and the connection; closing twice is fine."""
        self._closed.set()
        self._channel.close()

    def explain(
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
                return self._ask(self._stub.Explain, request, attempts)
            except PhospheneError as error:
                if not needs_bytes(error):
                    raise
        return self._ask(self._stub.Explain, last, attempts)

    def explain_images(
        self, images: Iterable[QuestionSource], **options: Unpack[ExplainImagesOptions]
    ) -> Generator[Answer, None, None]:
        """Tell what lights up on each of many images, on one call, in any order and number.

            for position, outcome in client.explain_images(paths, parts=["neurons"], top_n=5):
                match outcome:
                    case ExplainResponse(): ...
                    case PhospheneError(): ...

        Images are taken from `images` as there is room for them, at most `in_flight` at a time, and files are read just
        before they are sent. An image that cannot be read or that the service refuses does not end the rest: its error
        is its answer. What the service refuses for now, because it is full or leaves, is asked again, and no new image
        is taken meanwhile. Images above 1 MiB are sent in pieces. The service answers in its bulk lane: whoever asks
        for one image goes first.

        Where the call breaks, what was answered stays answered, and what is open is asked again on a new call: every
        image at most `retries` times in all. A loop that is left early should close the iterator
        (`contextlib.closing`), which cancels the call.

        Args:
            images: bytes, paths, and `Digest`s.
            **options: what to answer for each, and how to go about it.

        Yields:
            The position of an image in `images`, from 0, and its explanation or error; each once, as they are ready.

        Raises:
            StreamBroken: a `ServiceUnreachable` with the `open_positions` of the images that were taken and not
                answered: the call broke, and some image was asked `retries` times again.
            DeadlineExpired: nothing was said for `timeout_s` seconds, although something was open.
            InputError: the options are wrong, or one of `images` is no image.
            ServiceError: the call was refused as a whole, for example `Unauthenticated`, or the client is closed.

            What taking the next of `images` raises is raised too. Any of these ends the call.
        """
        if self._closed.is_set():
            raise self._terms.used_after()
        return explain_each(
            images,
            self._terms.open_questions(**options),
            lambda messages: self._stub.ExplainImages(messages, metadata=self._terms.metadata),
            timeout_s=self._terms.timeout_s,
            wait=self._closed.wait,
        )

    def neuron(self, neuron_id: int, **options: Unpack[NeuronOptions]) -> GetNeuronResponse:
        """Tell what is known of a neuron: statistics, names, and the parts that are asked for."""
        return self._ask(self._stub.GetNeuron, neuron_request(neuron_id, **options))

    def neurons(
        self, *, page_size: int | None = None, **options: Unpack[ListNeuronsOptions]
    ) -> Iterator[NeuronSummary]:
        """List neurons in an order, fetching page after page as they are consumed; each page has its own deadline."""
        page_token = ""
        while True:
            page = self.neurons_page(page_size=page_size, page_token=page_token, **options)
            yield from page.neurons
            page_token = page.next_page_token
            if not page_token:
                return

    def neurons_page(
        self, *, page_size: int | None = None, page_token: str = "", **options: Unpack[ListNeuronsOptions]
    ) -> ListNeuronsResponse:
        """List one page of neurons, with the total count and the token of the next page."""
        request = list_neurons_request(page_size=page_size, page_token=page_token, **options)
        return self._ask(self._stub.ListNeurons, request)

    def search_neurons(
        self, text: str | None = None, *, neuron_id: int | None = None, **options: Unpack[SearchNeuronsOptions]
    ) -> SearchNeuronsResponse:
        """Find neurons by words, or neurons like another one."""
        return self._ask(self._stub.SearchNeurons, search_neurons_request(text, neuron_id=neuron_id, **options))

    def search_images(
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
        return self._ask(self._stub.SearchImages, request)

    def image(self, sha256: str, **options: Unpack[Place]) -> CorpusImage:
        """Return an image of the corpus with its thumbnail."""
        return self._ask(self._stub.GetImage, image_request(sha256, **options)).image

    def thumbnail(self, sha256: str, **options: Unpack[Place]) -> bytes:
        """Return the thumbnail of an image of the corpus, a small JPEG file."""
        return self.image(sha256, **options).thumbnail

    def models(self) -> list[Model]:
        """Return every bundle that the service has, the default one first."""
        return list(self._ask(self._stub.ListModels, models_request()).models)

    def model(self, bundle: str = "") -> Model:
        """Return one bundle; an empty name is the default one."""
        return self._ask(self._stub.GetModel, model_request(bundle)).model

    def _ask(self, method: Method[Request, Response], request: Request, attempts: Attempts | None = None) -> Response:
        attempts = attempts or self._terms.attempts()
        while True:
            try:
                return method(request, timeout=attempts.remaining_s(), metadata=self._terms.metadata)
            except grpc.RpcError as failure:
                error = self._terms.error(failure)
            except ValueError:
                # So gRPC calls it, and a deadline or metadata that it does not take.
                if not self._closed.is_set():
                    raise
                raise self._terms.used_after() from None
            delay_s = attempts.delay_s(error)
            if delay_s is None or self._closed.wait(delay_s):
                raise error
