"""The closed label sets of the metrics: every value that a label can have, so that each exists before its first event.

An event with another value is a defect of the service, and raises `KeyError`.
"""

from __future__ import annotations

__all__ = [
    "ADMISSION_REASONS",
    "CACHE_RESULTS",
    "CIRCUIT_STATES",
    "CODES",
    "DROP_CAUSES",
    "DROP_STAGES",
    "KILL_CAUSES",
    "LANES",
    "OPERATIONS",
    "OUTCOMES",
    "REFUSALS",
    "RELOAD_RESULTS",
    "STAGES",
    "outcome_of_code",
]

CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
)
"""Every gRPC code that a method of this service ends with."""

OUTCOMES = ("ok", "refused", "expired", "cancelled", "failed")
"""How a request ends; every received request ends in exactly one of these."""

STAGES = ("receive", "decode", "queue", "encode", "sae", "index", "explain", "serialise")
"""Where the time of a request goes, in order; `encode` and `sae` are those of the batch that it shared."""

REFUSALS = (
    "invalid",
    "not_found",
    "overloaded",
    "rate_limited",
    "precondition",
    "unauthenticated",
    "unavailable",
    "expired",
    "internal",
)
"""Why a request got no answer."""

ADMISSION_REASONS = ("queue_full", "bytes", "pixels", "deadline")
"""Which bound made admission turn work away."""

LANES = ("interactive", "bulk")
"""The lanes of the queues."""

OPERATIONS = ("encode", "text")
"""What a batch of the engine thread does."""

DROP_STAGES = ("decode", "queue", "index")
"""Where work was waiting when it was dropped."""

DROP_CAUSES = ("cancelled", "expired", "closed")
"""Why work was dropped: the caller left, its deadline passed, the service shuts down."""

KILL_CAUSES = ("timeout", "crash")
"""Why a decode worker was replaced."""

CACHE_RESULTS = ("hit", "miss", "coalesced", "poisoned", "error", "bypassed")
"""What the cache said."""

CIRCUIT_STATES = ("closed", "open", "half_open")
"""States of the circuit breaker before Redis; closed is the good one."""

RELOAD_RESULTS = ("switched", "unchanged", "refused")
"""How a reload ended."""

_OUTCOMES_BY_CODE = {"OK": "ok", "CANCELLED": "cancelled", "DEADLINE_EXCEEDED": "expired"}
_FAILED_CODES = ("INTERNAL", "UNAVAILABLE", "UNKNOWN")


def outcome_of_code(code: str) -> str:
    """The outcome that a gRPC code stands for where nothing more is known of the request."""
    if code in _FAILED_CODES:
        return "failed"
    return _OUTCOMES_BY_CODE.get(code, "refused")
