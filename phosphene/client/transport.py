"""What the two clients' channels have in common: limits, reconnection, the shape of a method; makes no calls."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

__all__ = ["DEFAULT_ADDRESS", "LARGEST_IMAGE_LIMIT_BYTES", "Method", "channel_options"]

Request = TypeVar("Request", contravariant=True)
Answer = TypeVar("Answer", covariant=True)

DEFAULT_ADDRESS = "127.0.0.1:50051"

_MIB = 2**20

LARGEST_IMAGE_LIMIT_BYTES = 2**31 - 1 - _MIB
"""The largest that an image may be allowed to be: gRPC counts the bytes of a message in 31 bits."""


@runtime_checkable
class Method(Protocol[Request, Answer]):
    """A method of the stub; `Answer` is the response, or what gives it when awaited."""

    def __call__(
        self, request: Request, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] | None = None
    ) -> Answer:
        """Send `request` with `metadata`; `timeout` is in seconds."""


def channel_options(image_limit_bytes: int) -> list[tuple[str, int]]:
    """Return the gRPC channel arguments for images of up to `image_limit_bytes`.

    A message is one MiB larger than its image, in both directions, as on the service's side. gRPC's own retries are
    off: they know neither the answer's RetryInfo nor the deadline of the whole call.
    """
    message_limit_bytes = image_limit_bytes + _MIB
    return [
        ("grpc.max_send_message_length", message_limit_bytes),
        ("grpc.max_receive_message_length", message_limit_bytes),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),
        # A service that was just started is found by the next attempt, not a second later.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]
