"""`AdminClient`: what operators tell one replica; waits for its answers, and repeats nothing."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar, Unpack

import grpc

from phosphene.client.access import AccessOptions, access_to
from phosphene.client.failures import error_from
from phosphene.client.retries import RetryPolicy
from phosphene.client.transport import Method, channel_options
from phosphene.v1.admin_pb2 import (
    DrainRequest,
    DrainResponse,
    GetStatusRequest,
    GetStatusResponse,
    ReloadRequest,
    ReloadResponse,
)
from phosphene.v1.admin_pb2_grpc import AdminServiceStub

__all__ = ["AdminClient"]

Request = TypeVar("Request")
Response = TypeVar("Response")


class AdminClient:
    """The admin port of one replica (PHOSPHENE_ADMIN_LISTEN). Use it in a `with` block, or close it.

    Every method raises the errors of `phosphene.errors`: `Unauthenticated` or `PermissionDenied` where the token is not
    an operator's, `ServiceUnreachable`, `DeadlineExpired`, and those that it names.
    """

    def __init__(self, address: str, *, timeout_s: float | int = 30, **access: Unpack[AccessOptions]) -> None:
        """Prepare a channel; the first call connects.

        Args:
            address: `host:port` of the admin port.
            timeout_s: seconds for each call, a day at most; a reload takes as long as its files take to load.
            **access: API token, TLS, client certificate; see `AccessOptions`.

        Raises:
            SettingError: `timeout_s` is out of its bounds, or `access` is refused; see `access_to`.
        """
        self.address = address
        self._timeout_s = RetryPolicy(timeout_s=float(timeout_s)).timeout_s
        allowed = access_to(address, **access)
        self._metadata = allowed.metadata
        options = [*channel_options(0), *allowed.channel_options]
        self._channel = (
            grpc.insecure_channel(address, options=options)
            if allowed.credentials is None
            else grpc.secure_channel(address, allowed.credentials, options=options)
        )
        self._stub = AdminServiceStub(self._channel)

    def __enter__(self) -> AdminClient:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """End calls under way and the connection; closing twice is fine."""
        self._channel.close()

    def status(self) -> GetStatusResponse:
        """Return what is served, and how busy the replica is."""
        return self._ask(self._stub.GetStatus, GetStatusRequest())

    def reload(self) -> ReloadResponse:
        """Switch to what the settings name now, once all of it is loaded; nothing changes where that fails.

        Raises:
            Unanswerable: something is missing, damaged or does not belong together.
            ReloadUnderWay: another reload has not ended.
        """
        return self._ask(self._stub.Reload, ReloadRequest())

    def drain(self) -> DrainResponse:
        """End the replica, once what it has accepted is answered."""
        return self._ask(self._stub.Drain, DrainRequest())

    def _ask(self, method: Method[Request, Response], request: Request) -> Response:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise error_from(failure, address=self.address, timeout_s=self._timeout_s) from failure
