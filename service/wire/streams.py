"""ExplainImages: messages of the caller -> questions and chunks, answers -> messages."""

from __future__ import annotations

from phosphene.errors import InputError
from phosphene.v1 import explain_pb2, streams_pb2
from service.outcomes import outcome_of
from service.stream_messages import Answered, Chunk, Fault, Question, StreamMessage
from service.wire.requests import explain_query

__all__ = ["answered_response", "stream_message"]


def stream_message(request: streams_pb2.ExplainImagesRequest, *, upload_limit_bytes: int) -> StreamMessage:
    """Read one message; what is wrong with a question is its item's own fault."""
    match request.WhichOneof("part"):
        case "explain":
            try:
                return Question(request.item, explain_query(request.explain, upload_limit_bytes=upload_limit_bytes))
            except InputError as error:
                if error.field:
                    error.field = f"explain.{error.field}"
                return Fault(request.item, error, request.explain.image.upload.size_bytes)
        case "chunk":
            return Chunk(request.item, request.chunk)
        case _:
            return Fault(request.item, InputError("part is not set; set explain or chunk", field="part"))


def answered_response(
    answered: Answered[explain_pb2.ExplainResponse], *, request_id: str
) -> streams_pb2.ExplainImagesResponse:
    """The message that answers one item."""
    match answered.outcome:
        case Exception() as error:
            status = outcome_of(error, request_id=request_id).to_status()
            return streams_pb2.ExplainImagesResponse(item=answered.item, status=status)
        case explanation:
            return streams_pb2.ExplainImagesResponse(item=answered.item, explanation=explanation)
