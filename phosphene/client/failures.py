"""What went wrong with a call, as `phosphene.errors`; knows nothing of when it is tried again.

A status carries a `google.rpc.Status` in its trailing metadata (AIP-193), and every failed item of a stream is one. The
details that Phosphene's services send are BadRequest (the field at fault), ResourceInfo (what was not found),
PreconditionFailure (what the bundle or corpus lacks), RetryInfo (when to try again) and RequestInfo (what the service's
log explains).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, RequestInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from phosphene.errors import (
    DeadlineExpired,
    ImageRequired,
    InputError,
    NotFound,
    Overloaded,
    PermissionDenied,
    PhospheneError,
    ReadoutMissing,
    ReloadUnderWay,
    ServiceError,
    ServiceUnreachable,
    Unanswerable,
    Unauthenticated,
    Unavailable,
)

__all__ = ["error_from", "error_of", "needs_bytes"]

# Pairs of a key and a value (text, or bytes where the key ends in -bin), which the two channels type differently.
_Metadata = Iterable[Any]
_STATUS_KEY = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(kw_only=True)
class _Details:
    """The details of a status; each is empty where the service sent none."""

    bad_request: BadRequest = field(default_factory=BadRequest)
    precondition: PreconditionFailure = field(default_factory=PreconditionFailure)
    resource: ResourceInfo = field(default_factory=ResourceInfo)
    request: RequestInfo = field(default_factory=RequestInfo)
    retry: RetryInfo = field(default_factory=RetryInfo)


def error_from(failure: grpc.RpcError | grpc.aio.AioRpcError, *, address: str, timeout_s: float) -> PhospheneError:
    """Return the error to raise for a failed call.

    Args:
        failure: what grpc raised, from either kind of channel.
        address: the server that was asked, for the message.
        timeout_s: the deadline that the call had, in seconds, for the message.

    Returns:
        That of `error_of`, but for two statuses that gRPC itself makes: UNAVAILABLE without a `google.rpc.Status`,
        `ServiceUnreachable`; DEADLINE_EXCEEDED, `DeadlineExpired` with the deadline.
    """
    code, text = failure.code(), (failure.details() or "").strip() or "no reason given"
    status = _status_in(failure.trailing_metadata() or ())
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExpired(
                f"no answer from {address} within {timeout_s:g} s; "
                "ask for less, or allow more time (timeout_s, --timeout)"
            )
        case grpc.StatusCode.UNAVAILABLE if status is None:
            return ServiceUnreachable(
                f"no Phosphene service answers at {address} ({text}); "
                "start one with `python -m service` or `make demo`, or name another address"
            )
        case _:
            return _error(code, text, _details_of(status or Status()), address=address)


def error_of(status: Status, *, address: str) -> PhospheneError:
    """Return the error that a service's status stands for, such as that of one item of a stream.

    Args:
        status: what the service said.
        address: the server that was asked, for the message.

    Returns:
        INVALID_ARGUMENT: `InputError` with the field. NOT_FOUND: `NotFound`. FAILED_PRECONDITION: `ImageRequired`,
        `ReadoutMissing` or `Unanswerable`. RESOURCE_EXHAUSTED: `Overloaded` where the service says when to try again,
        else `InputError`, the message is too large. DEADLINE_EXCEEDED: `DeadlineExpired`. UNAVAILABLE: `Unavailable`.
        UNAUTHENTICATED: `Unauthenticated`. PERMISSION_DENIED: `PermissionDenied`. ABORTED: `ReloadUnderWay`.
        Everything else: `ServiceError`, with the request id where there is one.
    """
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _error(code, status.message.strip() or "no reason given", _details_of(status), address=address)


def needs_bytes(error: PhospheneError) -> bool:
    """Whether a service that was asked by digest would answer if it were sent the image."""
    match error:
        case ImageRequired():
            return True
        case NotFound(field=field):
            return field == "image.sha256"
        case _:
            return False


def _error(code: grpc.StatusCode, text: str, details: _Details, *, address: str) -> PhospheneError:
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return _invalid(text, details.bad_request)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(text, field=details.resource.resource_type or None, name=details.resource.resource_name)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return _unanswerable(text, details.precondition)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if details.retry.HasField("retry_delay"):
            delay_s = max(0.0, details.retry.retry_delay.seconds + details.retry.retry_delay.nanos / 1e9)
            # Phosphene's own services say it already; a proxy in front of one may not.
            again = "" if "try again in " in text else f"; try again in {delay_s:.3g} s"
            return Overloaded(f"the service at {address} is full: {text}{again}", retry_after_s=delay_s)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return InputError(f"the message is too large ({text}); send a smaller image, or ask for fewer thumbnails")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExpired(f"the service at {address} had no time left: {text}")
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"the service at {address} cannot answer now: {text}")
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(f"{text} (token=, --token-file)")
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(text)
        case grpc.StatusCode.ABORTED:
            return ReloadUnderWay(text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServiceError(f"the server at {address} does not serve this call of phosphene.v1 ({text})")
        case grpc.StatusCode.CANCELLED:
            return ServiceError(f"the call to {address} was cancelled before its answer came")
        case _:
            return _defect(code.name, text, details.request.request_id, address)


def _details_of(status: Status) -> _Details:
    details = _Details()
    known = (details.bad_request, details.precondition, details.resource, details.request, details.retry)
    try:
        for packed in status.details:
            for detail in known:
                packed.Unpack(detail)
    except DecodeError:
        # What a proxy garbled is no reason to hide the status itself.
        return _Details()
    return details


def _status_in(metadata: _Metadata) -> Status | None:
    for key, value in metadata:
        if key == _STATUS_KEY:
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _invalid(text: str, bad_request: BadRequest) -> InputError:
    violations = list(bad_request.field_violations)
    unsaid = [f"{each.field}: {each.description}" for each in violations if each.description not in text]
    return InputError("; ".join([text, *unsaid]), field=violations[0].field if violations else None)


def _unanswerable(text: str, precondition: PreconditionFailure) -> PhospheneError:
    violation = next(iter(precondition.violations), None)
    subject = violation.subject if violation is not None else "request"
    match violation.type if violation is not None else "":
        case "READOUT_MISSING":
            return ReadoutMissing(text)
        case "IMAGE_REQUIRED":
            return ImageRequired(text, subject=subject)
        case _:
            return Unanswerable(text, subject=subject)


def _defect(code: str, text: str, request_id: str, address: str) -> ServiceError:
    reference = f" (request id {request_id})" if request_id and request_id not in text else ""
    return ServiceError(f"the service at {address} failed with {code}: {text}{reference}")
