"""A real gRPC server on a free port of loopback, over fakes; nothing of gRPC is faked."""

import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import pytest

from phosphene.images import ImageLimits
from phosphene.v1 import service_pb2_grpc
from service.answers import Answers
from service.batcher import Batcher
from service.catalogue import Catalogue
from service.interceptor import AnswerInterceptor
from service.metrics import Metrics, MetricsServer
from service.server import MESSAGE_OVERHEAD_BYTES, METHODS, SERVICE, Port, Server
from service.settings import ListenAddress
from service.workers import WorkerPool
from tests.fakes import FakeEngine, fake_entry

ANY_PORT = ListenAddress(host="127.0.0.1", port=0)


@dataclass
class Running:
    """A running service and a client of it."""

    engine: FakeEngine
    stub: service_pb2_grpc.PhospheneServiceStub
    channel: grpc.aio.Channel
    server: Server
    metrics_address: ListenAddress


@asynccontextmanager
async def serving(entries=None, *, engine=None, queue_limit=64, limits=None, drain_s=5.0, is_open=True):
    """Serve the entries (one bundle with one corpus) until left."""
    engine = engine or FakeEngine()
    metrics = Metrics(methods=METHODS, queue_capacity=queue_limit)
    clock = time.monotonic
    answered = limits or ImageLimits()
    async with AsyncExitStack() as lifetimes:
        enter = lifetimes.enter_async_context
        page = await enter(MetricsServer(metrics, ANY_PORT))
        port = await enter(
            Port(
                ANY_PORT,
                message_limit_bytes=answered.file_bytes + MESSAGE_OVERHEAD_BYTES,
                interceptor=AnswerInterceptor(service=SERVICE, metrics=metrics, clock=clock),
            )
        )
        batcher = await enter(Batcher(queue_limit=queue_limit, batch_limit=8, clock=clock, events=metrics))
        decoders, lookups = [
            await enter(
                WorkerPool(worker_count=2, queue_limit=64, clock=clock, what="images wait", setting="PHOSPHENE_X")
            )
            for _ in range(2)
        ]
        answers = Answers(
            catalogue=Catalogue(entries or [fake_entry(engine)]),
            batcher=batcher,
            decoders=decoders,
            lookups=lookups,
            limits=answered,
            metrics=metrics,
            clock=clock,
        )
        server = await enter(Server(port, answers, drain_s=drain_s, clock=clock))
        if is_open:
            await server.open_for_business()
        # The channel closes before the server stops, as a client that leaves does.
        channel = await enter(
            grpc.aio.insecure_channel(str(port.address), options=[("grpc.max_send_message_length", -1)])
        )
        lifetimes.callback(engine.gate.set)
        yield Running(
            engine=engine,
            stub=service_pb2_grpc.PhospheneServiceStub(channel),
            channel=channel,
            server=server,
            metrics_address=page.address,
        )


@pytest.fixture
async def running():
    """The default service: one bundle over colours, one corpus of swatches."""
    async with serving() as service:
        yield service
