"""The methods of phosphene.v1.PhospheneService and AdminService: parse, await, reply."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from google.rpc import code_pb2

import phosphene
from phosphene.errors import Unavailable
from phosphene.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    explain_pb2,
    images_pb2,
    models_pb2,
    neurons_pb2,
    service_pb2_grpc,
    streams_pb2,
)
from service.answer_size import ANSWER_LIMIT_BYTES, check_answer_size
from service.answers import Answers
from service.calls_in_hand import CallsInHand
from service.claims import Claim, Lane
from service.generations import Generations
from service.interceptor import claim_of
from service.observing.logs import log_event, request_id
from service.observing.metric_events import Metrics
from service.outcomes import outcome_of
from service.queries import ExplainPart, ExplainQuery
from service.replica import Replica
from service.stream_messages import Answered, StreamMessage
from service.stream_window import UnreadBudget
from service.streams import answer_stream
from service.uploads import UploadBudget
from service.wire import models, replies, requests, streams

__all__ = ["AdminServicer", "PhospheneServicer"]

_WINDOW_LIMIT = 64
# The number of an item goes with its answer.
_ITEM_OVERHEAD_BYTES = 64
# What one of the images that an answer lists adds to it, about.
_PICTURE_BYTES = 300
_THUMBNAIL_BYTES = 5000
_PATCH_MAP_BYTES = 256


class PhospheneServicer(service_pb2_grpc.PhospheneServiceServicer):
    """Answers each method from the generation that it began with; exceptions become statuses in the interceptor."""

    def __init__(
        self,
        answers: Answers,
        generations: Generations,
        *,
        calls: CallsInHand,
        uploads: UploadBudget,
        bulk_image_limit: int,
        limit: Callable[[str], Awaitable[None]] | None,
        metrics: Metrics,
        on_stage: Callable[[str, float], None],
        clock: Callable[[], float],
        answer_limit_bytes: int = ANSWER_LIMIT_BYTES,
    ) -> None:
        """Join what answers.

        Args:
            answers: makes answers.
            generations: what they are made from.
            calls: told of streams that have nothing to answer.
            uploads: what unfinished uploads may hold.
            bulk_image_limit: most images of streams in hand; one stream alone never asks for more.
            limit: raises `RateLimited` for a caller who asks too often, counted for each item of a stream.
            metrics: told of streams.
            on_stage: told how long an explanation takes to write.
            clock: monotonic seconds, which deadlines are times of.
            answer_limit_bytes: most bytes of the answer to one item of a stream.
        """
        self._answers = answers
        self._generations = generations
        self._calls = calls
        self._uploads = uploads
        self._unread = UnreadBudget()
        self._window = min(_WINDOW_LIMIT, bulk_image_limit)
        self._limit = limit
        self._metrics = metrics
        self._on_stage = on_stage
        self._clock = clock
        self._answer_limit_bytes = answer_limit_bytes

    async def Explain(self, request: explain_pb2.ExplainRequest, context: Any) -> explain_pb2.ExplainResponse:
        """What lights up on an image."""
        query = requests.explain_query(request)
        # It holds the image a second time, which nobody counts.
        del request
        return await self._explain(query, claim_of(context, self._clock))

    async def ExplainImages(
        self, request_iterator: AsyncIterator[streams_pb2.ExplainImagesRequest], context: Any
    ) -> AsyncIterator[streams_pb2.ExplainImagesResponse]:
        """What lights up on each of many images."""
        limit_bytes = self._answers.limits.file_bytes

        async def messages() -> AsyncIterator[StreamMessage]:
            async for request in request_iterator:
                message = streams.stream_message(request, upload_limit_bytes=limit_bytes)
                # Both hold an image, and the next one may be long in coming.
                del request
                yield message
                del message

        async def answer(query: ExplainQuery) -> explain_pb2.ExplainResponse:
            return await self._explain(query, claim_of(context, self._clock, Lane.BULK))

        self._metrics.stream_opened()
        try:
            caller = claim_of(context, self._clock).caller
            answers = answer_stream(
                messages(),
                answer,
                window=self._window,
                budget=self._uploads,
                unread=self._unread,
                calls=self._calls,
                caller=caller,
                limit=None if self._limit is None else partial(self._limit, caller),
                size_of=self._item_bytes,
                expected_bytes=_expected_bytes,
                on_failed=_log_defect,
            )
            # Closed here and now: left to the garbage collector, the work of a caller that has gone would go on.
            async with aclosing(answers):
                async for answered in answers:
                    # It may have waited for a caller who reads slowly.
                    answered = self._checked(answered)
                    response = streams.answered_response(answered, request_id=request_id.get())
                    self._metrics.stream_item_done(code_pb2.Code.Name(response.status.code))
                    if response.status.code == code_pb2.UNAVAILABLE:
                        _log_unavailable(answered, response.status.message)
                    yield response
        finally:
            self._metrics.stream_closed()

    def _item_bytes(self, explanation: explain_pb2.ExplainResponse) -> int:
        """Bytes of an answer; raises `AnswerTooLarge` where no message holds it."""
        size_bytes = explanation.ByteSize()
        check_answer_size(size_bytes + _ITEM_OVERHEAD_BYTES, self._answer_limit_bytes)
        return size_bytes

    def _checked(self, answered: Answered[explain_pb2.ExplainResponse]) -> Answered[explain_pb2.ExplainResponse]:
        """The answer, or in its place what to do where it may show an image that was taken down since it was made."""
        outcome = answered.outcome
        if isinstance(outcome, Exception) or not self._generations.is_outdated(outcome.provenance.generation):
            return answered
        error = Unavailable("images were taken down after this item was answered; ask it again")
        return Answered(answered.item, error)

    async def GetNeuron(self, request: neurons_pb2.GetNeuronRequest, context: Any) -> neurons_pb2.GetNeuronResponse:
        """One neuron."""
        query = requests.neuron_query(request)
        with self._generations.lease() as catalogue:
            generation, profile = await self._answers.neuron(catalogue, query, claim_of(context, self._clock))
            return replies.neuron_response(generation, profile)

    async def ListNeurons(
        self, request: neurons_pb2.ListNeuronsRequest, context: Any
    ) -> neurons_pb2.ListNeuronsResponse:
        """Neurons in an order, page by page."""
        query = requests.neuron_list_query(request)
        with self._generations.lease() as catalogue:
            generation, page = await self._answers.neurons(catalogue, query, claim_of(context, self._clock))
            return replies.neuron_list_response(generation, page)

    async def SearchNeurons(
        self, request: neurons_pb2.SearchNeuronsRequest, context: Any
    ) -> neurons_pb2.SearchNeuronsResponse:
        """Neurons by meaning."""
        search = requests.neuron_search(request)
        with self._generations.lease() as catalogue:
            generation, matches = await self._answers.search_neurons(catalogue, search, claim_of(context, self._clock))
            return replies.neuron_search_response(generation, search, matches)

    async def SearchImages(
        self, request: images_pb2.SearchImagesRequest, context: Any
    ) -> images_pb2.SearchImagesResponse:
        """Images like another, by neuron, by expression or by words."""
        search = requests.image_search(request)
        # See `Explain`.
        del request
        with self._generations.lease() as catalogue:
            generation, found = await self._answers.search_images(catalogue, search, claim_of(context, self._clock))
            return replies.image_search_response(generation, found)

    async def GetImage(self, request: images_pb2.GetImageRequest, context: Any) -> images_pb2.GetImageResponse:
        """One image of a corpus."""
        lookup = requests.image_lookup(request)
        with self._generations.lease() as catalogue:
            generation, image = await self._answers.image(catalogue, lookup, claim_of(context, self._clock))
            return replies.image_response(generation, image)

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Any) -> models_pb2.ListModelsResponse:
        """Every bundle."""
        with self._generations.lease() as catalogue:
            return models_pb2.ListModelsResponse(
                models=[models.model(bundle, corpora, self._answers.limits) for bundle, corpora in catalogue.entries]
            )

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.GetModelResponse:
        """One bundle."""
        with self._generations.lease() as catalogue:
            bundle, corpora = catalogue.entry(request.bundle)
            return models_pb2.GetModelResponse(model=models.model(bundle, corpora, self._answers.limits))

    async def _explain(self, query: ExplainQuery, claim: Claim) -> explain_pb2.ExplainResponse:
        with self._generations.lease() as catalogue:
            generation, explanation = await self._answers.explain(catalogue, query, claim)
            begun_s = self._clock()
            reply = replies.explain_response(generation, explanation)
            self._on_stage("explain", self._clock() - begun_s)
            return reply


def _expected_bytes(query: ExplainQuery) -> int:
    """About what the answer to a question will hold, where it lists images: the rest is small."""
    picture_count = 0
    if ExplainPart.TOP_IMAGES in query.parts:
        neuron_count = query.top_n + (query.nearest_count if ExplainPart.NEAREST_NEURONS in query.parts else 0)
        picture_count += neuron_count * query.exemplars_per_neuron
    if ExplainPart.SIMILAR_IMAGES in query.parts:
        picture_count += query.similar_count
    picture_bytes = _PICTURE_BYTES
    if query.pictures.thumbnails:
        picture_bytes += _THUMBNAIL_BYTES
    if query.pictures.patch_maps:
        picture_bytes += _PATCH_MAP_BYTES
    return picture_count * picture_bytes


def _log_defect(item: int, error: Exception) -> None:
    """What the status of an item promises: that the service's log explains it."""
    if outcome_of(error, request_id=request_id.get()).code is grpc.StatusCode.INTERNAL:
        log_event("defect", level=logging.ERROR, error=error, method="ExplainImages", item=item)


def _log_unavailable(answered: Answered[Any], reason: str) -> None:
    """Tell operators what the caller is told."""
    log_event("unavailable", level=logging.WARNING, method="ExplainImages", item=answered.item, reason=reason)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Does what operators ask of this replica."""

    def __init__(self, replica: Replica) -> None:
        """Keep what is operated."""
        self._replica = replica

    async def Reload(self, request: admin_pb2.ReloadRequest, context: Any) -> admin_pb2.ReloadResponse:
        """Switch to what the settings name now."""
        switched = await self._replica.reload()
        return admin_pb2.ReloadResponse(generation=self._replica.status().generation, switched=switched)

    async def Drain(self, request: admin_pb2.DrainRequest, context: Any) -> admin_pb2.DrainResponse:
        """Leave."""
        return admin_pb2.DrainResponse(limit_s=self._replica.drain())

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Any) -> admin_pb2.GetStatusResponse:
        """How the replica is."""
        status = self._replica.status()
        return admin_pb2.GetStatusResponse(
            generation=status.generation,
            serving=status.is_serving,
            accepted_image_count=status.image_count,
            accepted_image_bytes=status.size_bytes,
            wait_s=status.wait_s,
            service_version=phosphene.__version__,
        )
