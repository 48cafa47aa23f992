"""When to ask again: the service says so itself (google.rpc.RetryInfo); pure arithmetic, waits for nothing."""

from __future__ import annotations

import random

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

__all__ = ["RETRY_COUNT", "retry_delay_s"]

RETRY_COUNT = 3
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


def retry_delay_s(failure: grpc.RpcError, attempt: int, *, remaining_s: float) -> float | None:
    """Return the seconds after which to repeat a call, or None where that would not help.

    A call of phosphene.v1 has no effects, so repeating one is safe. RESOURCE_EXHAUSTED with RetryInfo: the service is
    full and says for how long. UNAVAILABLE: this replica is starting or leaving. Everything else fails again.

    Args:
        failure: what the call raised.
        attempt: how many calls failed before this one.
        remaining_s: seconds that the whole is given from now on.
    """
    if attempt >= RETRY_COUNT:
        return None
    backoff_s = min(_FIRST_DELAY_S * 2.0**attempt, _LONGEST_DELAY_S)
    match failure.code():
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            asked_s = _asked_delay_s(failure)
            if asked_s is None:
                return None
            delay_s = max(asked_s, backoff_s)
        case grpc.StatusCode.UNAVAILABLE:
            delay_s = backoff_s
        case _:
            return None
    # Callers that were refused together must not come back together.
    delay_s *= 1.0 + 0.5 * random.random()
    return delay_s if delay_s < remaining_s else None


def _asked_delay_s(failure: grpc.RpcError) -> float | None:
    status = rpc_status.from_call(failure)
    for packed in () if status is None else status.details:
        info = RetryInfo()
        if packed.Unpack(info):
            return info.retry_delay.seconds + info.retry_delay.nanos / 1e9
    return None
