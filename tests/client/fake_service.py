"""A service of phosphene.v1 that answers from samples, fails as it is told to, and remembers what it was asked."""

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from phosphene.v1.explain_pb2 import ExplainPart
from phosphene.v1.images_pb2 import GetImageResponse, ImageMetric, SearchImagesResponse
from phosphene.v1.models_pb2 import GetModelResponse, ListModelsResponse, Model
from phosphene.v1.neurons_pb2 import ListNeuronsResponse, NeuronMatch, NeuronMetric, SearchNeuronsResponse
from phosphene.v1.service_pb2_grpc import PhospheneServiceServicer, add_PhospheneServiceServicer_to_server
from phosphene.v1.streams_pb2 import ExplainImagesRequest, ExplainImagesResponse
from phosphene.v1.values_pb2 import CodeSearch, ImageMatch
from tests.client.sample_answers import (
    NEURON_COUNT,
    corpus_image,
    exemplars,
    explanation,
    model,
    neuron_answer,
    neuron_summary,
    provenance,
)


@dataclass
class Failure:
    """How a call ends badly."""

    code: grpc.StatusCode
    message: str = "because"
    details: tuple[Message, ...] = ()
    trailing_metadata: tuple[tuple[str, bytes], ...] | None = None

    def end(self, context: Any) -> None:
        if self.trailing_metadata is not None:
            context.set_trailing_metadata(self.trailing_metadata)
            context.abort(self.code, self.message)
        context.abort_with_status(rpc_status.to_status(self.status()))

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


@dataclass
class Break:
    """How an ExplainImages call ends before its time: after so many answers; without a failure as if all were said."""

    after: int
    failure: Failure | None = None


@dataclass
class FakeService(PhospheneServiceServicer):
    """`failures` are used up one by one, each by one call; `hold` keeps every call waiting while it is cleared.

    Of ExplainImages: `breaks` are used up one by each call that gets as far, `item_failures` by each question of an
    item. It knows every digest, unless `known` says which.
    """

    failures: deque[Failure] = field(default_factory=deque)
    requests: list[Any] = field(default_factory=list)
    remaining_s: list[float] = field(default_factory=list)
    model: Model = field(default_factory=model)
    hold: threading.Event = field(default_factory=threading.Event)
    breaks: deque[Break] = field(default_factory=deque)
    item_failures: dict[int, deque[Failure]] = field(default_factory=dict)
    known: set[str] | None = None
    messages: list[ExplainImagesRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    stream_ended: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def __post_init__(self) -> None:
        self.hold.set()

    def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.remaining_s.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        self.hold.wait(timeout=5)
        if self.failures:
            self.failures.popleft().end(context)

    def _not_found(self, context: Any, kind: str, name: str) -> None:
        detail = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name)
        Failure(grpc.StatusCode.NOT_FOUND, f"there is no {kind} {name}", (detail,)).end(context)

    def Explain(self, request, context):
        self._begin(request, context)
        answer = self._explained(request, request.image.data)
        if isinstance(answer, Failure):
            answer.end(context)
        return answer

    def ExplainImages(self, request_iterator, context):
        self._begin(None, context)
        context.add_callback(self.stream_ended.set)
        for count, (question, data) in enumerate(self._questions(request_iterator)):
            if self.breaks and count == self.breaks[0].after:
                broken = self.breaks.popleft().failure
                if broken is not None:
                    broken.end(context)
                return
            self.hold.wait(timeout=5)
            failures = self.item_failures.get(question.item)
            answer = failures.popleft() if failures else self._explained(question.explain, data)
            if isinstance(answer, Failure):
                yield ExplainImagesResponse(item=question.item, status=answer.status())
            else:
                yield ExplainImagesResponse(item=question.item, explanation=answer)

    def _questions(self, messages):
        question, data = None, b""
        for message in messages:
            self.messages.append(message)
            if message.HasField("explain"):
                question, data = message, message.explain.image.data
            else:
                assert message.item == question.item
                data += message.chunk
            if len(data) >= question.explain.image.upload.size_bytes:
                yield question, data

    def _explained(self, request, data):
        if request.image.sha256 and self.known is not None and request.image.sha256 not in self.known:
            detail = error_details_pb2.ResourceInfo(resource_type="image.sha256", resource_name=request.image.sha256)
            return Failure(grpc.StatusCode.NOT_FOUND, "no image with this digest", (detail,))
        if data and not data.startswith((b"\xff\xd8", b"\x89PNG")):
            violation = error_details_pb2.BadRequest.FieldViolation(field="image.data", description="not an image")
            detail = error_details_pb2.BadRequest(field_violations=[violation])
            return Failure(grpc.StatusCode.INVALID_ARGUMENT, "not an image", (detail,))
        answer = explanation(
            neuron_count=request.top_n or 10,
            exemplar_count=request.exemplars_per_neuron or 9,
            thumbnails=request.include_thumbnails,
            patches=ExplainPart.EXPLAIN_PART_PATCH_ACTIVATIONS in request.parts,
        )
        answer.image.sha256 = request.image.sha256 or hashlib.sha256(data).hexdigest()
        return answer

    def GetNeuron(self, request, context):
        self._begin(request, context)
        if request.neuron_id >= NEURON_COUNT:
            self._not_found(context, "neuron_id", str(request.neuron_id))
        return neuron_answer(request.neuron_id, thumbnails=request.include_thumbnails)

    def ListNeurons(self, request, context):
        self._begin(request, context)
        size = request.page_size if request.HasField("page_size") else 50
        start = int(request.page_token or 0)
        end = min(start + size, NEURON_COUNT)
        return ListNeuronsResponse(
            provenance=provenance(),
            neurons=[neuron_summary(neuron_id) for neuron_id in range(start, end)],
            next_page_token=str(end) if end < NEURON_COUNT else "",
            total_count=NEURON_COUNT,
        )

    def SearchNeurons(self, request, context):
        self._begin(request, context)
        by_text = request.WhichOneof("query") == "text"
        metric = NeuronMetric.NEURON_METRIC_TEXT_EXEMPLARS if by_text else NeuronMetric.NEURON_METRIC_DIRECTIONS
        shown = request.exemplars_per_neuron if request.include_top_images else 0
        return SearchNeuronsResponse(
            provenance=provenance(),
            metric=metric,
            neurons=[
                NeuronMatch(
                    neuron=neuron_summary(neuron_id),
                    score=0.9 - 0.01 * neuron_id,
                    top_images=exemplars(neuron_id, shown, thumbnails=request.include_thumbnails),
                )
                for neuron_id in range(request.count or 10)
            ],
        )

    def SearchImages(self, request, context):
        self._begin(request, context)
        query = request.WhichOneof("query")
        metrics = {
            "image": ImageMetric.IMAGE_METRIC_CODE_COSINE,
            "neuron_id": ImageMetric.IMAGE_METRIC_ACTIVATION,
            "expression": ImageMetric.IMAGE_METRIC_EXPRESSION,
            "text": ImageMetric.IMAGE_METRIC_TEXT_COSINE,
        }
        return SearchImagesResponse(
            provenance=provenance(),
            metric=request.similarity or metrics[query],
            total_count=340 if query == "expression" else None,
            code_search=CodeSearch(recall=0.97, left_out_neuron_ids=range(10))
            if query == "image" and request.similarity != ImageMetric.IMAGE_METRIC_RESIDUAL_COSINE
            else None,
            recall=0.96 if query in ("image", "text") else None,
            images=[
                ImageMatch(image=corpus_image(row, thumbnail=request.include_thumbnails), score=0.9 - 0.01 * row)
                for row in range(request.count or 12)
            ],
        )

    def GetImage(self, request, context):
        self._begin(request, context)
        return GetImageResponse(provenance=provenance(), image=corpus_image(7, thumbnail=True))

    def ListModels(self, request, context):
        self._begin(request, context)
        return ListModelsResponse(models=[self.model])

    def GetModel(self, request, context):
        self._begin(request, context)
        if request.bundle not in ("", self.model.bundle):
            self._not_found(context, "bundle", request.bundle)
        return GetModelResponse(model=self.model)


@contextmanager
def serving(service: FakeService, *, options: tuple[tuple[str, int], ...] = ()) -> Iterator[FakeService]:
    """Serve on a free port of the loopback interface, told in `service.address`."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *options])
        add_PhospheneServiceServicer_to_server(service, server)
        service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield service
        finally:
            service.hold.set()
            server.stop(grace=None).wait()
