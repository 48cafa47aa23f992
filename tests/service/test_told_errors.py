"""What a request leaves behind that got no answer, with the garbage collector off: nothing of its image."""

import asyncio
import gc
import tracemalloc
from contextlib import contextmanager

import grpc.aio
import pytest

from phosphene.v1 import models_pb2
from service.told_errors import forget_frames
from tests.fakes import png
from tests.service.conftest import logged, serving, settings_with
from tests.service.test_explain_images import asking, outcomes

IMAGE_BYTES = 2**20
COUNT = 4
CACHES = pytest.mark.parametrize("cache_bytes", [0, 2**20], ids=["no cache", "cache"])


def image(number, *, is_broken=False):
    """A megabyte that is an image, another one for each number."""
    whole = png((number, 5, 9))
    return (whole[:40] + bytes([number]) if is_broken else whole) + bytes(IMAGE_BYTES)


@contextmanager
def counted():
    """Give what tells the bytes that Python allocated within and still holds, without a garbage collector."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


async def lets_go(running, held_bytes, limit_bytes=IMAGE_BYTES):
    """Wait until less than one image is held; bounded by the number of small requests that are answered meanwhile."""
    for _ in range(50):
        if held_bytes() < limit_bytes:
            return
        await running.stub.ListModels(models_pb2.ListModelsRequest())
    pytest.fail(f"{held_bytes()} bytes are held")


async def ended(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def serving_with(cache_bytes, **queue):
    return serving(settings=settings_with(cache={"limit_bytes": cache_bytes}, queue=queue))


@CACHES
async def test_unreadable_images_go(cache_bytes):
    async with serving_with(cache_bytes) as running:
        with counted() as held_bytes:
            for number in range(COUNT):
                call = running.stub.Explain(asking(0, image(number, is_broken=True)).explain)
                assert await ended(call) == "INVALID_ARGUMENT"
                del call
            await lets_go(running, held_bytes)


@CACHES
async def test_images_that_a_defect_befell_go_and_the_log_has_each_traceback(cache_bytes):
    async with serving_with(cache_bytes) as running:
        running.engine.is_poison = lambda pixels: True
        with logged() as lines, counted() as held_bytes:
            for number in range(COUNT):
                call = running.stub.Explain(asking(0, image(number)).explain)
                assert await ended(call) == "INTERNAL"
                del call
            await lets_go(running, held_bytes)
            defects = [line for line in lines() if line["event"] == "defect"]
        assert len(defects) == COUNT
        assert all("secret path" in defect["traceback"] for defect in defects)


@CACHES
async def test_images_for_which_there_is_no_room_go(cache_bytes):
    async with serving_with(cache_bytes, images=1) as running:
        running.engine.gate.clear()
        first = running.stub.Explain(asking(0, png((200, 0, 0))).explain)
        await asyncio.to_thread(running.engine.entered.acquire)
        with counted() as held_bytes:
            for number in range(COUNT):
                call = running.stub.Explain(asking(0, image(number)).explain)
                assert await ended(call) == "RESOURCE_EXHAUSTED"
                del call
            await lets_go(running, held_bytes)
        running.engine.gate.set()
        assert (await first).neurons


@CACHES
@pytest.mark.parametrize("timeout_s", [None, 0.2], ids=["cancelled", "deadline"])
async def test_images_of_callers_who_have_gone_go(cache_bytes, timeout_s):
    async with serving_with(cache_bytes) as running:
        running.engine.gate.clear()
        with counted() as held_bytes:
            call = running.stub.Explain(asking(0, image(1)).explain, timeout=timeout_s)
            await asyncio.to_thread(running.engine.entered.acquire)
            if timeout_s is None:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                assert await ended(call) == "DEADLINE_EXCEEDED"
            del call
            running.engine.gate.set()
            await lets_go(running, held_bytes)


@CACHES
@pytest.mark.parametrize("is_defect", [False, True], ids=["unreadable", "defect"])
async def test_images_of_items_that_failed_go_while_their_stream_lives(cache_bytes, is_defect):
    async with serving_with(cache_bytes) as running:
        running.engine.is_poison = lambda pixels: is_defect
        with logged() as lines, counted() as held_bytes:
            call = running.stub.ExplainImages()
            for number in range(COUNT):
                await call.write(asking(number, image(number, is_broken=not is_defect)))
            for _ in range(COUNT):
                assert (await call.read()).HasField("status")
            # The last message stays, as it came and as it was read, until the next one comes.
            await lets_go(running, held_bytes, 5 * IMAGE_BYTES // 2)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            defects = [line for line in lines() if line["event"] == "defect"]
        assert len(defects) == (COUNT if is_defect else 0)


@CACHES
async def test_images_of_a_stream_whose_caller_has_gone_go(cache_bytes):
    async with serving_with(cache_bytes) as running:
        running.engine.gate.clear()
        with counted() as held_bytes:
            call = running.stub.ExplainImages()
            for number in range(COUNT):
                await call.write(asking(number, image(number)))
            await asyncio.to_thread(running.engine.entered.acquire)
            call.cancel()
            del call
            running.engine.gate.set()
            await lets_go(running, held_bytes)


async def test_images_of_a_stream_that_breaks_the_order_go(running):
    with counted() as held_bytes:
        for number in range(COUNT):
            running.engine.gate.clear()
            with pytest.raises(grpc.aio.AioRpcError, match="asked again"):
                await outcomes(running, [asking(1, image(number)), asking(1, image(number))])
            running.engine.gate.set()
        await lets_go(running, held_bytes)


def test_what_an_error_came_from_is_forgotten_with_it():
    def fails():
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ExceptionGroup("both", [ValueError("part"), inner]) from inner

    with pytest.raises(ExceptionGroup) as caught:
        fails()
    error = caught.value
    forget_frames(error)
    assert [each.__traceback__ for each in (error, error.__cause__, *error.exceptions)] == [None] * 4
    assert str(error.__cause__) == "'inner'"


def test_errors_that_came_from_each_other_are_forgotten_once():
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    forget_frames(one)
