"""A real gRPC server on a free port of loopback, over fakes; nothing of gRPC is faked."""

import asyncio
import gc
import io
import json
import logging
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import grpc.aio
import pytest

from phosphene.v1 import service_pb2_grpc
from service.assembly import catalogue_opener, open_service
from service.batching.batcher import Batcher
from service.catalogue import Catalogue
from service.observing.logs import open_logs
from service.replica import Replica
from service.server import Server
from service.settings import (
    ArtefactSettings,
    CacheSettings,
    ListenAddress,
    NetworkSettings,
    QueueSettings,
    Settings,
)
from tests.fakes import FakeEngine, fake_entry

ANY_PORT = ListenAddress(host="127.0.0.1", port=0)
SETTINGS = Settings(
    artefacts=ArtefactSettings(),
    network=NetworkSettings(listen=ANY_PORT, metrics_listen=ANY_PORT, drain_s=5.0),
    queue=QueueSettings(images=64, decode_worker_count=1),
    # Equal images would otherwise reach the engine once; the tests of the cache turn it on.
    cache=CacheSettings(limit_bytes=0),
)


@dataclass
class Running:
    """A running service and a client of it."""

    engine: FakeEngine
    stub: service_pb2_grpc.PhospheneServiceStub
    channel: grpc.aio.Channel
    server: Server
    replica: Replica
    batcher: Batcher
    address: ListenAddress
    metrics_address: ListenAddress
    admin_address: ListenAddress | None
    stop: asyncio.Event


def settings_with(**parts):
    """The settings of tests, with parts of parts replaced: `settings_with(queue={"images": 2})`."""
    return replace(SETTINGS, **{name: replace(getattr(SETTINGS, name), **values) for name, values in parts.items()})


def always(entries, engine):
    """An opener that opens the same entries again and again."""

    @asynccontextmanager
    async def open_entries(before):
        yield Catalogue(entries)

    def make_opener(settings, on_stage):
        engine.on_stage = on_stage
        return open_entries

    return make_opener


def alive(kind):
    """How many objects of a type nobody has let go of; what only the garbage collector knows of does not count."""
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


@contextmanager
def logged():
    """Give what returns the lines of the log so far, as objects."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    open_logs("info", stream)

    def lines():
        root.handlers[0].flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    try:
        yield lines
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@asynccontextmanager
async def serving(entries=None, *, engine=None, settings=SETTINGS, make_opener=None, credentials=None):
    """Serve the entries (one bundle with one corpus) until left."""
    engine = engine or FakeEngine()
    stop = asyncio.Event()
    make_opener = make_opener or always(entries or [fake_entry(engine)], engine)
    async with open_service(settings, make_opener, stop=stop, clock=time.monotonic) as running:
        engine.forget()
        address = str(running.address)
        options = [("grpc.max_send_message_length", -1)]
        channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        # The channel closes before the server stops, as a client that leaves does.
        async with channel:
            try:
                yield Running(
                    engine=engine,
                    stub=service_pb2_grpc.PhospheneServiceStub(channel),
                    channel=channel,
                    server=running.server,
                    replica=running.replica,
                    batcher=running.batcher,
                    address=running.address,
                    metrics_address=running.metrics_address,
                    admin_address=running.admin_address,
                    stop=stop,
                )
            finally:
                engine.gate.set()


@asynccontextmanager
async def serving_artefacts(artefacts, *, settings=SETTINGS):
    """Serve real bundles and indexes from disk, on one thread, until left."""
    settings = replace(settings, artefacts=artefacts, engine=replace(settings.engine, thread_count=1))
    async with serving(settings=settings, make_opener=catalogue_opener) as service:
        yield service


@pytest.fixture
async def running():
    """The default service: one bundle over colours, one corpus of swatches."""
    async with serving() as service:
        yield service
