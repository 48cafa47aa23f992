"""The methods of phosphene.v1.PhospheneService: parse, await, reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, service_pb2_grpc
from service.answers import Answers
from service.interceptor import deadline_of
from service.wire import replies, requests

__all__ = ["PhospheneServicer"]


class PhospheneServicer(service_pb2_grpc.PhospheneServiceServicer):
    """Answers each method; exceptions become statuses in the interceptor."""

    def __init__(self, answers: Answers, *, clock: Callable[[], float]) -> None:
        """Keep what answers, and the clock that its deadlines are times of."""
        self._answers = answers
        self._clock = clock

    async def Explain(self, request: explain_pb2.ExplainRequest, context: Any) -> explain_pb2.ExplainResponse:
        """What lights up on an image."""
        query = requests.explain_query(request)
        generation, explanation = await self._answers.explain(query, deadline_of(context, self._clock))
        return replies.explain_response(generation, explanation)

    async def GetNeuron(self, request: neurons_pb2.GetNeuronRequest, context: Any) -> neurons_pb2.GetNeuronResponse:
        """One neuron."""
        query = requests.neuron_query(request)
        generation, profile = await self._answers.neuron(query, deadline_of(context, self._clock))
        return replies.neuron_response(generation, profile)

    async def ListNeurons(
        self, request: neurons_pb2.ListNeuronsRequest, context: Any
    ) -> neurons_pb2.ListNeuronsResponse:
        """Neurons in an order, page by page."""
        query = requests.neuron_list_query(request)
        generation, page = await self._answers.neurons(query, deadline_of(context, self._clock))
        return replies.neuron_list_response(generation, page)

    async def SearchNeurons(
        self, request: neurons_pb2.SearchNeuronsRequest, context: Any
    ) -> neurons_pb2.SearchNeuronsResponse:
        """Neurons by meaning."""
        search = requests.neuron_search(request)
        generation, matches = await self._answers.search_neurons(search, deadline_of(context, self._clock))
        return replies.neuron_search_response(generation, search, matches)

    async def SearchImages(
        self, request: images_pb2.SearchImagesRequest, context: Any
    ) -> images_pb2.SearchImagesResponse:
        """Images by code or by neuron."""
        search = requests.image_search(request)
        generation, found = await self._answers.search_images(search, deadline_of(context, self._clock))
        return replies.image_search_response(generation, found)

    async def GetImage(self, request: images_pb2.GetImageRequest, context: Any) -> images_pb2.GetImageResponse:
        """One image of a corpus."""
        lookup = requests.image_lookup(request)
        generation, image = await self._answers.image(lookup, deadline_of(context, self._clock))
        return replies.image_response(generation, image)

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Any) -> models_pb2.ListModelsResponse:
        """Every bundle."""
        entries = self._answers.catalogue.entries
        return models_pb2.ListModelsResponse(
            models=[replies.model(bundle, corpora, self._answers.limits) for bundle, corpora in entries]
        )

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.GetModelResponse:
        """One bundle."""
        bundle, corpora = self._answers.catalogue.entry(request.bundle)
        return models_pb2.GetModelResponse(model=replies.model(bundle, corpora, self._answers.limits))
