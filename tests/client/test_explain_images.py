"""explain_images of both clients: every image is answered once, whatever breaks, and no more is held than may be."""

import asyncio
import gc
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, closing, suppress
from typing import Any

import grpc
import pytest

from phosphene.client import AsyncClient, Client, Digest, StreamBroken
from phosphene.errors import (
    DeadlineExpired,
    ImageTooLarge,
    ImageUnreadable,
    InputError,
    NotFound,
    Overloaded,
    PhospheneError,
    ServiceUnreachable,
    Unauthenticated,
    Unavailable,
)
from phosphene.v1.explain_pb2 import ExplainPart, ExplainResponse
from tests.client.fake_service import Break, Failure, FakeService, serving
from tests.client.test_client_failures import precondition, retry_info

CODE = grpc.StatusCode
MIB = 2**20
JPEG = b"\xff\xd8\xff"
AWAY = Failure(CODE.UNAVAILABLE, "leaving")
FULL = Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(0.01),))

Ask = Callable[..., Any]


def image(number: int, size_bytes: int = 100) -> bytes:
    return (JPEG + f"{number}.".encode()).ljust(size_bytes, b"\0")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def waiting(address: str, images: Iterable[Any], settings: dict[str, Any], **options: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    with Client(address, **{"timeout_s": 10, **settings}) as client:
        for position, outcome in client.explain_images(images, **options):
            assert position not in found
            found[position] = outcome
    return found


async def through_waiting(address: str, images: Iterable[Any], settings: dict[str, Any], **options: Any) -> Any:
    return await asyncio.to_thread(waiting, address, images, settings, **options)


async def through_asyncio(address: str, images: Iterable[Any], settings: dict[str, Any], **options: Any) -> Any:
    async def each() -> AsyncIterator[Any]:
        for each_image in images:
            yield each_image

    found: dict[int, Any] = {}
    async with AsyncClient(address, **{"timeout_s": 10, **settings}) as client:
        async for position, outcome in client.explain_images(each(), **options):
            assert position not in found
            found[position] = outcome
    return found


@pytest.fixture(params=[through_waiting, through_asyncio])
def explained(request: pytest.FixtureRequest, service: FakeService) -> Ask:
    """Asks for images through one kind of client, and gives all outcomes by position."""

    async def ask(images: Iterable[Any], *, address: str | None = None, settings: Any = None, **options: Any) -> Any:
        return await request.param(address or service.address, images, settings or {}, **options)

    return ask


def digests(found: dict[int, ExplainResponse]) -> list[str]:
    return [found[position].image.sha256 for position in range(len(found))]


async def test_bytes_paths_and_digests_are_answered_under_their_positions(
    explained: Ask, service: FakeService, tmp_path
) -> None:
    images = [image(number) for number in range(100)]
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, data in zip(paths, images, strict=False):
        path.write_bytes(data)
    asked = [*paths[:2], str(paths[2]), *images[3:], Digest("ab" * 32)]
    found = await explained(asked, in_flight=7, parts=["neurons", "fidelity"], top_n=3, bundle="scenes")
    assert digests(found) == [*map(digest, images), "ab" * 32]
    for message in service.messages:
        assert set(message.explain.parts) == {ExplainPart.EXPLAIN_PART_NEURONS, ExplainPart.EXPLAIN_PART_FIDELITY}
        assert (message.explain.bundle, message.explain.top_n) == ("scenes", 3)
    assert len(service.requests) == 1


async def test_no_images_are_no_call(explained: Ask, service: FakeService) -> None:
    assert await explained([]) == {}
    assert not service.requests


async def test_large_images_travel_in_pieces_that_any_message_limit_lets_through(explained: Ask, tmp_path) -> None:
    sizes = [MIB, MIB + 1, 5 * MIB // 2, 10 * MIB]
    images = [image(number, size_bytes) for number, size_bytes in enumerate(sizes)]
    options = (("grpc.max_receive_message_length", 4 * MIB),)
    with serving(FakeService(), options=options) as service:
        found = await explained(images, address=service.address)
    assert digests(found) == [digest(data) for data in images]
    assert max(message.ByteSize() for message in service.messages) < MIB + 200
    pieces = [len(message.chunk) for message in service.messages if message.item == 2 and message.chunk]
    assert pieces == [MIB, MIB, MIB // 2]


async def test_an_image_that_fails_does_not_end_the_rest(explained: Ask, service: FakeService, tmp_path) -> None:
    folder, large = tmp_path, tmp_path / "large.jpg"
    large.write_bytes(image(0, 5000))
    service.known = set()
    asked = [image(0), "no/such.jpg", folder, large, b"text", Digest("x"), Digest("ab" * 32), image(7)]
    found = await explained(asked, settings={"image_limit_bytes": 4096})
    kinds = [type(found[position]) for position in range(len(asked))]
    assert kinds == [
        *(ExplainResponse, ImageUnreadable, ImageUnreadable, ImageTooLarge),
        *(InputError, InputError, NotFound, ExplainResponse),
    ]
    assert found[4].field == "image.data"


async def test_what_the_service_refuses_for_now_is_asked_again(explained: Ask, service: FakeService) -> None:
    service.item_failures = {1: deque([FULL, Failure(CODE.UNAVAILABLE, "draining")]), 3: deque([FULL] * 3)}
    found = await explained([image(number) for number in range(6)], in_flight=2, settings={"retries": 2})
    assert isinstance(found.pop(3), Overloaded)
    assert [found[number].image.sha256 for number in (0, 1, 2, 4, 5)] == [digest(image(n)) for n in (0, 1, 2, 4, 5)]
    assert [message.item for message in service.messages].count(1) == 3


async def test_an_item_s_status_is_its_error(explained: Ask, service: FakeService) -> None:
    service.item_failures = {0: deque([Failure(CODE.UNAVAILABLE, "broken")]), 1: deque([Failure(CODE.INTERNAL, "r-7")])}
    found = await explained([image(0), image(1)], settings={"retries": 0})
    assert isinstance(found[0], Unavailable)
    assert "INTERNAL: r-7" in str(found[1])


@pytest.mark.parametrize("failure", [AWAY, FULL, Failure(CODE.CANCELLED, "drained"), None])
async def test_a_call_that_breaks_is_taken_up_where_it_was(
    explained: Ask, service: FakeService, failure: Failure | None
) -> None:
    service.breaks.extend([Break(2, failure), Break(0, failure), Break(3, failure)])
    images = [image(number) for number in range(10)]
    found = await explained(images, in_flight=3, settings={"retries": 3})
    assert digests(found) == [digest(data) for data in images]
    assert len(service.requests) == 4


async def test_a_service_that_is_started_late_is_found(explained: Ask, service: FakeService) -> None:
    service.failures.extend([AWAY, AWAY])
    found = await explained([image(0)], settings={"retries": 2})
    assert digests(found) == [digest(image(0))]


async def test_a_call_that_breaks_too_often_says_what_is_open(explained: Ask, service: FakeService) -> None:
    service.breaks.append(Break(2, AWAY))
    with pytest.raises(StreamBroken, match="; of [2-6] images asked, [1-4] got no answer: positions 2") as caught:
        await explained([image(number) for number in range(6)], in_flight=4, settings={"retries": 0})
    open_positions = caught.value.open_positions
    assert open_positions == tuple(range(2, 2 + len(open_positions)))
    assert isinstance(caught.value, ServiceUnreachable)
    assert len(service.requests) == 1


async def test_no_server_says_how_to_start_one(explained: Ask, deserted_address: str) -> None:
    with pytest.raises(StreamBroken, match="python -m service") as caught:
        await explained([image(0), image(1)], address=deserted_address, in_flight=1, settings={"retries": 1})
    assert caught.value.open_positions == (0,)


async def test_a_call_that_is_refused_as_a_whole_is_not_tried_again(explained: Ask, service: FakeService) -> None:
    service.failures.extend([Failure(CODE.UNAUTHENTICATED, "no token")] * 9)
    with pytest.raises(Unauthenticated, match="no token"):
        await explained([image(0)], settings={"retries": 8})
    # grpc.aio loses the status of a call that ends while a message is being written: that one is asked again.
    assert len(service.requests) < 4


async def test_digests_go_first_and_images_only_where_they_are_needed(explained: Ask, service: FakeService) -> None:
    images = [image(number, MIB * number + 50) for number in range(3)]
    service.known = {digest(images[0])}
    service.item_failures = {
        2: deque([Failure(CODE.FAILED_PRECONDITION, "send it", (precondition("IMAGE_REQUIRED", "parts"),))])
    }
    found = await explained([*images, Digest("ab" * 32)], digest_first=True, in_flight=1)
    assert isinstance(found.pop(3), NotFound)
    assert digests(found) == [digest(data) for data in images]
    sent = [(message.item, message.explain.image.WhichOneof("source")) for message in service.messages]
    assert sent == [
        *((0, "sha256"), (1, "sha256"), (1, "upload"), (1, None), (1, None)),
        *((2, "sha256"), (2, "upload"), (2, None), (2, None), (2, None), (3, "sha256")),
    ]


async def test_files_are_read_and_images_taken_when_there_is_room(
    explained: Ask, service: FakeService, tmp_path
) -> None:
    taken: list[int] = []

    def images() -> Iterable[Any]:
        for number in range(20):
            taken.append(number)
            path = tmp_path / f"{number}.jpg"
            path.write_bytes(image(number))
            yield path
            # Two are open at most when the next is taken, so that the fake has come past all others.
            assert len(taken) - len({message.item for message in service.messages}) <= 2

    found = await explained(images(), in_flight=3)
    assert digests(found) == [digest(image(number)) for number in range(20)]


async def test_a_silent_service_is_given_up(explained: Ask, service: FakeService) -> None:
    service.hold.clear()
    with pytest.raises(DeadlineExpired, match="within 0.2 s, and 2 images are open"):
        await explained([image(0), image(1)], settings={"timeout_s": 0.2})


async def test_patience_that_the_service_asked_for_is_not_its_silence(explained: Ask) -> None:
    class Slow(FakeService):
        def _explained(self, *asked: Any) -> Any:
            time.sleep(0.7)
            return super()._explained(*asked)

    busy = Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(1.2),))
    with serving(Slow(item_failures={0: deque([busy])})) as service:
        # It is asked again after most of the time that the service may be silent for.
        found = await explained([image(0)], address=service.address, settings={"timeout_s": 1.5})
    assert digests(found) == [digest(image(0))]


async def test_what_the_images_raise_is_raised(explained: Ask, service: FakeService) -> None:
    def images() -> Iterable[Any]:
        yield image(0)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        await explained(images(), in_flight=1)
    assert await asyncio.to_thread(service.stream_ended.wait, 10)


@pytest.mark.parametrize(
    ("options", "said"), [({"in_flight": 0}, "in_flight is 0"), ({"parts": ["latents"]}, "it knows fidelity")]
)
async def test_wrong_options_ask_nothing(
    explained: Ask, service: FakeService, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        await explained([image(0)], **options)
    assert not service.requests


def test_a_loop_that_is_left_ends_the_call(client: Client, service: FakeService) -> None:
    def endless() -> Iterable[bytes]:
        while True:
            yield image(0)

    with closing(client.explain_images(endless())) as answers:
        assert next(answers)[0] == 0
        assert not service.stream_ended.is_set()
    assert service.stream_ended.wait(timeout=10)


async def test_a_loop_that_is_left_ends_the_asynchronous_call(service: FakeService) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield image(0)

    async with AsyncClient(service.address, timeout_s=10) as client:
        async with aclosing(client.explain_images(endless())) as answers:
            assert (await anext(answers))[0] == 0
        assert await asyncio.to_thread(service.stream_ended.wait, 10)


async def test_answers_come_while_the_next_image_is_waited_for(service: FakeService) -> None:
    is_answered = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield image(0)
        await is_answered.wait()
        yield image(1)

    found = []
    async with AsyncClient(service.address, timeout_s=10) as client:
        async for position, _ in client.explain_images(slow()):
            found.append(position)
            is_answered.set()
    assert found == [0, 1]


async def test_closing_a_client_ends_its_streams(service: FakeService) -> None:
    service.hold.clear()
    raised: list[PhospheneError] = []
    client = Client(service.address, timeout_s=60)

    def ask() -> None:
        try:
            list(client.explain_images([image(0)]))
        except PhospheneError as error:
            raised.append(error)

    asking = asyncio.create_task(asyncio.to_thread(ask))
    while not service.requests:
        await asyncio.sleep(0.01)
    client.close()
    await asyncio.wait_for(asking, timeout=20)
    assert isinstance(raised[0], StreamBroken)

    other = AsyncClient(service.address, timeout_s=60)
    answers = other.explain_images([image(0)])
    pending = asyncio.ensure_future(anext(answers))
    while len(service.requests) < 2:
        await asyncio.sleep(0.01)
    await other.close()
    with pytest.raises(StreamBroken, match="was closed"):
        await asyncio.wait_for(pending, timeout=20)


async def test_closing_a_client_ends_the_wait_for_a_new_call(service: FakeService) -> None:
    # Once the question has arrived: what is still being written when the call ends hides why it ended.
    service.breaks.append(Break(0, Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(500),))))
    client = AsyncClient(service.address, timeout_s=1000)
    pending = asyncio.ensure_future(anext(client.explain_images([image(0)])))
    while service.breaks:
        await asyncio.sleep(0.01)
    # The end of the call is on its way to the client; it is there when nothing else is left to do.
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(StreamBroken, match="was closed"):
        await asyncio.wait_for(pending, timeout=20)
    assert len(service.requests) == 1


@pytest.mark.parametrize("ends", ["all is said", "the loop is left", "the call breaks", "the call is refused"])
def test_no_ended_call_is_left_to_the_garbage_collector(service: FakeService, ends: str) -> None:
    """Freed as the process ends, a call would wait for a lock that a thread of gRPC may have died with."""
    match ends:
        case "the call breaks":
            service.breaks.append(Break(2, AWAY))
        case "the call is refused":
            service.failures.append(Failure(CODE.UNAUTHENTICATED))

    def ask() -> None:
        with Client(service.address) as client, suppress(PhospheneError):
            for _ in client.explain_images([image(number) for number in range(5)], in_flight=2):
                if ends == "the loop is left":
                    return

    gc.collect()
    gc.disable()
    try:
        ask()
        assert not [each for each in gc.get_objects() if issubclass(type(each), grpc.Call)]
    finally:
        gc.enable()
