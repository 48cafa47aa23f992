"""Exceptions -> gRPC status codes with google.rpc details; what is not ours becomes INTERNAL without its text.

Pure: sends nothing and logs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from phosphene.errors import (
    ArtefactError,
    DeadlineExpired,
    DeviceError,
    EncoderError,
    ImageRequired,
    InputError,
    NotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    ReadoutMissing,
    ReloadUnderWay,
    SettingError,
    Unanswerable,
    Unauthenticated,
    Unavailable,
)
from service.answer_size import AnswerTooLarge

__all__ = ["Outcome", "outcome_of"]

_TEXT_LIMIT_BYTES = 1000
_NAME_LIMIT_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a request ends that gets no answer."""

    code: grpc.StatusCode
    """The status."""
    reason: str
    """Which of `metric_labels.REFUSALS` it counts as."""
    message: str
    """What the caller reads."""
    details: tuple[Message, ...]
    """google.rpc messages."""

    @property
    def outcome(self) -> str:
        """Which of `metric_labels.OUTCOMES` it counts as."""
        match self.code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return "expired"
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNAVAILABLE:
                return "failed"
            case _:
                return "refused"

    def to_status(self) -> status_pb2.Status:
        """The rich status that grpcio-status sends."""
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def outcome_of(error: Exception, *, request_id: str) -> Outcome:
    """How a request ends that raised `error`.

    Args:
        error: what an answer raised.
        request_id: joins the caller's error with the service's log.
    """
    text = _plain(str(error))
    match error:
        case SettingError() | ArtefactError() | EncoderError():
            # A reload that found nothing to serve; no other method opens artefacts.
            return _outcome(
                grpc.StatusCode.FAILED_PRECONDITION, "precondition", text, _precondition("ARTEFACT", "generation", text)
            )
        case NotFound():
            resource = error_details_pb2.ResourceInfo(
                resource_type=error.field or "thing",
                resource_name=_plain(error.name, _NAME_LIMIT_BYTES),
                description=text,
            )
            return _outcome(grpc.StatusCode.NOT_FOUND, "not_found", text, resource)
        case InputError():
            violation = error_details_pb2.BadRequest.FieldViolation(field=error.field or "request", description=text)
            bad_request = error_details_pb2.BadRequest(field_violations=[violation])
            return _outcome(grpc.StatusCode.INVALID_ARGUMENT, "invalid", text, bad_request)
        case ImageRequired(subject=subject):
            return _outcome(
                grpc.StatusCode.FAILED_PRECONDITION,
                "precondition",
                text,
                _precondition("IMAGE_REQUIRED", subject, text),
            )
        case Unanswerable(subject=subject):
            return _outcome(
                grpc.StatusCode.FAILED_PRECONDITION, "precondition", text, _precondition("UNANSWERABLE", subject, text)
            )
        case ReadoutMissing():
            return _outcome(
                grpc.StatusCode.FAILED_PRECONDITION,
                "precondition",
                text,
                _precondition("READOUT_MISSING", "bundle", text),
            )
        case Overloaded(retry_after_s=retry_after_s):
            delay = Duration()
            delay.FromNanoseconds(round(retry_after_s * 1e9))
            retry = error_details_pb2.RetryInfo(retry_delay=delay)
            reason = "rate_limited" if isinstance(error, RateLimited) else "overloaded"
            return _outcome(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, text, retry)
        case AnswerTooLarge():
            # No RetryInfo: the contract tells by that that trying again is of no use.
            return _outcome(grpc.StatusCode.RESOURCE_EXHAUSTED, "invalid", text)
        case DeadlineExpired():
            return _outcome(grpc.StatusCode.DEADLINE_EXCEEDED, "expired", text)
        case Unavailable() | DeviceError():
            return _outcome(grpc.StatusCode.UNAVAILABLE, "unavailable", text)
        case Unauthenticated():
            return _outcome(grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", text)
        case PermissionDenied():
            return _outcome(grpc.StatusCode.PERMISSION_DENIED, "unauthenticated", text)
        case ReloadUnderWay():
            return _outcome(grpc.StatusCode.ABORTED, "precondition", text)
        case _:
            return _outcome(
                grpc.StatusCode.INTERNAL,
                "internal",
                f"internal error; the service's log explains request {request_id}",
                error_details_pb2.RequestInfo(request_id=request_id),
            )


def _outcome(code: grpc.StatusCode, reason: str, message: str, *details: Message) -> Outcome:
    return Outcome(code=code, reason=reason, message=message, details=details)


def _precondition(kind: str, subject: str, text: str) -> error_details_pb2.PreconditionFailure:
    violation = error_details_pb2.PreconditionFailure.Violation(type=kind, subject=subject, description=text)
    return error_details_pb2.PreconditionFailure(violations=[violation])


def _plain(text: str, limit_bytes: int = _TEXT_LIMIT_BYTES) -> str:
    """Without control characters, and short: a status travels in HTTP/2 headers, of which clients take 8 KiB."""
    # A character is a byte or more, so that what is cut here would not be shown; it may be megabytes of a request.
    shown = "".join(character if character.isprintable() else " " for character in text[: limit_bytes + 1])
    encoded = shown.encode()
    if len(encoded) <= limit_bytes:
        return shown
    return encoded[: limit_bytes - len("…".encode())].decode(errors="ignore") + "…"
