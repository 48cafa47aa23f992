"""Replicas are replaced one after the other under load; callers who try once more on the other one notice nothing."""

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from phosphene.v1 import service_pb2_grpc
from tests.service.caching.redis_server import free_port
from tests.service.fingerprints import Worlds, by_bytes, is_of, picture
from tests.service.own_process import own_process

CALLERS = 8
_HANG_S = 60


class Seat:
    """A port that one process after another answers on."""

    def __init__(self, lifetimes):
        self._port = free_port()
        self._lifetimes = lifetimes
        self._process = None
        # Without a pause before it tries again, so that the next process is found at once.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=options)
        lifetimes.push_async_callback(self._channel.close)
        self.stub = service_pb2_grpc.PhospheneServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def start(self):
        """Start a process and wait until it is ready."""
        listen = f"127.0.0.1:{self._port}"
        starting = own_process(PHOSPHENE_LISTEN=listen)
        self._process = await self._lifetimes.enter_async_context(starting)
        await self._process.line("serving")
        # What a load balancer does before it sends anything.
        status = await self._health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=_HANG_S)
        assert status.status == health_pb2.HealthCheckResponse.SERVING

    async def restart(self):
        """As a supervisor does: ask it to leave, wait for its end, start the next one on its port."""
        self._process.child.send_signal(signal.SIGTERM)
        assert await self._process.end() == 0
        await self.start()


class Caller:
    """Asks without end; a request that finds nobody is asked once more, of the other replica."""

    def __init__(self, number, seats):
        self._number = number
        self._seats = seats
        self.answer_count = 0
        self.retries = Counter()
        self._answered = asyncio.Event()

    async def ask(self, is_over):
        while not is_over.is_set():
            one = picture(self.answer_count * CALLERS + self._number)
            at = self._number % len(self._seats)
            try:
                answer = await self._seats[at].stub.Explain(by_bytes(one), timeout=_HANG_S)
            except grpc.aio.AioRpcError as error:
                self.retries[error.code()] += 1
                answer = await self._seats[at - 1].stub.Explain(by_bytes(one), timeout=_HANG_S)
            assert is_of(answer, one, Worlds().both)
            self.answer_count += 1
            self._answered.set()

    async def goes_on(self):
        """Wait until a question that it asks from now on is answered."""
        for _ in range(2):
            self._answered.clear()
            await self._answered.wait()


@pytest.mark.parametrize("restart_count", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_restarts_under_load_cost_nobody_an_answer(restart_count):
    async with AsyncExitStack() as lifetimes:
        seats = [Seat(lifetimes), Seat(lifetimes)]
        async with asyncio.TaskGroup() as starting:
            for seat in seats:
                starting.create_task(seat.start())
        callers = [Caller(number, seats) for number in range(CALLERS)]
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as asking:
            for caller in callers:
                asking.create_task(caller.ask(is_over))
            try:
                for number in range(restart_count):
                    await seats[number % 2].restart()
                    # Nobody is still on the way to the one that is next.
                    async with asyncio.timeout(_HANG_S):
                        await asyncio.gather(*(caller.goes_on() for caller in callers))
            finally:
                is_over.set()
        assert all(caller.answer_count > restart_count for caller in callers)
        retries = sum((caller.retries for caller in callers), Counter())
        # gRPC itself cancels what comes between its end and the caller's hearing of it; all else is told where to go.
        assert set(retries) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert retries[grpc.StatusCode.CANCELLED] <= CALLERS * restart_count / 2
        assert retries[grpc.StatusCode.UNAVAILABLE]
