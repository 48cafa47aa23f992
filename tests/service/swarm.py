"""Many callers of every kind at once: whole images, digests, streams; some leave early, some are in a hurry.

Each answer is checked against its own image, and everything that ends otherwise is counted by how it ended.
"""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio
from google.rpc import code_pb2

from phosphene.v1 import service_pb2_grpc, streams_pb2
from tests.service.fingerprints import by_bytes, by_digest, is_of, picture

GARBAGE = replace(picture(0), data=b"words, no image", sha256="0" * 64)
_STREAM_ITEMS = 24
_CHANNELS = 4
_HANG_S = 120


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What callers do; shares of 1, the rest asks by bytes and waits for its answer."""

    pictures: int
    """Different images, of which each is asked for again and again."""
    digests: float = 0.2
    """Share that asks by digest."""
    leavers: float = 0.05
    """Share that cancels."""
    hurried: float = 0.05
    """Share with a deadline of a few milliseconds."""
    poison: float = 0.01
    """Share whose pixels break the engine."""
    garbage: float = 0.01
    """Share that is no image."""


@dataclass
class Told:
    """What callers saw."""

    single: Counter = field(default_factory=Counter)
    """Explain, by code."""
    streams: Counter = field(default_factory=Counter)
    """ExplainImages, by code."""
    items: Counter = field(default_factory=Counter)
    """Items of streams, by code."""
    mixed: list = field(default_factory=list)
    """Answers that are not of their image."""
    wrong: list = field(default_factory=list)
    """Ends that nothing in the request explains."""

    @property
    def answer_count(self):
        """Answers that were checked."""
        return self.single["OK"] + self.items["OK"]

    @property
    def request_count(self):
        """Images that were asked for."""
        return self.single.total() + self.items.total()


class Swarm:
    """Callers on several channels; an async context manager that closes them."""

    def __init__(self, address, worlds, mix, *, seed=0):
        self.told = Told()
        self._address = str(address)
        self._worlds = worlds
        self._mix = mix
        self._random = random.Random(seed)
        self._number = 0
        self._stubs = []
        self._lifetimes = AsyncExitStack()

    async def __aenter__(self):
        for number in range(_CHANNELS):
            # Equal channels would share one connection.
            channel = grpc.aio.insecure_channel(self._address, options=[("phosphene.channel", number)])
            await self._lifetimes.enter_async_context(channel)
            self._stubs.append(service_pb2_grpc.PhospheneServiceStub(channel))
        return self

    async def __aexit__(self, *exit):
        await self._lifetimes.aclose()

    async def ask(self, request_count, *, singles, streams=0):
        """Ask until so many images were asked for, by that many callers of each kind at a time."""
        limit = self.told.request_count + request_count
        async with asyncio.TaskGroup() as callers:
            for number in range(singles):
                callers.create_task(self._ask_singly(self._stubs[number % _CHANNELS], limit))
            for number in range(streams):
                callers.create_task(self._ask_in_streams(self._stubs[number % _CHANNELS], limit))

    async def _ask_singly(self, stub, limit):
        while self.told.request_count < limit:
            await self._single(stub)

    async def _ask_in_streams(self, stub, limit):
        while self.told.request_count < limit:
            await self._stream(stub)

    async def _single(self, stub):
        one = self._picture()
        asks_by_digest = self._random.random() < self._mix.digests
        is_hurried = self._random.random() < self._mix.hurried
        leaves = self._random.random() < self._mix.leavers
        call = stub.Explain(
            (by_digest if asks_by_digest else by_bytes)(one),
            timeout=self._random.uniform(0.0, 0.05) if is_hurried else _HANG_S,
        )
        if leaves:
            asyncio.get_running_loop().call_later(self._random.uniform(0.0, 0.03), call.cancel)
        try:
            answer = await call
            self._check(answer, one)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code.name not in self._ends(one, asks_by_digest, is_hurried):
                self.told.wrong.append((code, error.details(), one))
        except asyncio.CancelledError:
            if not leaves:
                raise
            code = grpc.StatusCode.CANCELLED
        self.told.single[code.name] += 1

    async def _stream(self, stub):
        asked = {}
        leaves = self._random.random() < 4 * self._mix.leavers
        stays = self._random.randrange(_STREAM_ITEMS) if leaves else _STREAM_ITEMS

        def messages():
            for item in range(_STREAM_ITEMS):
                asked[item] = self._picture()
                yield streams_pb2.ExplainImagesRequest(item=item, explain=by_bytes(asked[item]))

        call = stub.ExplainImages(messages(), timeout=_HANG_S)
        answered_count = 0
        try:
            async for reply in call:
                self._take(reply, asked)
                answered_count += 1
                if leaves and answered_count >= stays:
                    call.cancel()
        except asyncio.CancelledError:
            if not leaves:
                raise
        except grpc.aio.AioRpcError as error:
            self.told.wrong.append((error.code(), error.details(), "stream"))
        code = await call.code()
        if code is grpc.StatusCode.OK and answered_count != _STREAM_ITEMS:
            self.told.wrong.append((code, f"{answered_count} answers of {_STREAM_ITEMS}", "stream"))
        self.told.streams[code.name] += 1

    def _take(self, reply, asked):
        one = asked[reply.item]
        if reply.HasField("explanation"):
            self._check(reply.explanation, one)
            self.told.items["OK"] += 1
            return
        code = code_pb2.Code.Name(reply.status.code)
        if code not in self._ends(one, False, False):
            self.told.wrong.append((code, reply.status.message, one))
        self.told.items[code] += 1

    def _check(self, answer, one):
        if one is GARBAGE or one.is_poison or not is_of(answer, one, self._worlds):
            self.told.mixed.append((one, answer))

    def _picture(self):
        fate = self._random.random()
        if fate < self._mix.garbage:
            return GARBAGE
        number = self._random.randrange(self._mix.pictures)
        return picture(number, is_poison=fate < self._mix.garbage + self._mix.poison)

    def _ends(self, one, asks_by_digest, is_hurried):
        """Codes that are no surprise."""
        ends = set()
        if one is GARBAGE:
            ends |= {"INVALID_ARGUMENT"}
        if one.is_poison:
            ends |= {"INTERNAL"}
        if asks_by_digest:
            ends |= {"NOT_FOUND"}
        if is_hurried:
            ends |= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        return ends
