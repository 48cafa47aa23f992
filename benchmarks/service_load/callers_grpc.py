"""Asks Phosphene over gRPC."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc.aio

from benchmarks.service_load.load import Ended
from benchmarks.service_load.photo_requests import Requests
from phosphene.v1 import explain_pb2, service_pb2_grpc, values_pb2

__all__ = ["GrpcCallers"]

_CONNECTIONS = 8
_TOP_N = 10
_ENDS: dict[grpc.StatusCode, Ended] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.DEADLINE_EXCEEDED: "expired",
}


class GrpcCallers:
    """Callers over a few connections, as several clients have them; an async context manager."""

    def __init__(self, address: str) -> None:
        """Prepare to call host:port."""
        self._address = address
        self._stubs: list[service_pb2_grpc.PhospheneServiceAsyncStub] = []
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the connections."""
        for _ in range(_CONNECTIONS):
            channel = grpc.aio.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])
            self._stubs.append(service_pb2_grpc.PhospheneServiceStub(await self._open.enter_async_context(channel)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close them."""
        await self._open.aclose()

    async def ask(self, requests: Requests, deadline_s: float, serial: int) -> Ended:
        """Send one request and judge its answer."""
        request = explain_pb2.ExplainRequest(
            image=values_pb2.ImageQuery(data=requests.data(serial)),
            parts=[explain_pb2.EXPLAIN_PART_NEURONS],
            top_n=_TOP_N,
        )
        try:
            answer = await self._stubs[serial % _CONNECTIONS].Explain(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            return _ENDS.get(error.code(), "failed")
        neuron_ids = tuple(active.neuron.neuron_id for active in answer.neurons)
        return "answered" if requests.is_right(serial, neuron_ids) else "wrong"
