"""OpenQuestions on its own clock: whatever the service says, every image is closed once, and asked boundedly often."""

import hashlib
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from phosphene.client.questions import CHUNK_BYTES, Digest, OpenQuestions, Question
from phosphene.client.retries import RetryPolicy
from phosphene.errors import Overloaded, PhospheneError, ServiceUnreachable, StreamBroken
from phosphene.v1.explain_pb2 import ExplainResponse
from phosphene.v1.streams_pb2 import ExplainImagesResponse
from tests.client.fake_service import Failure
from tests.client.test_client_failures import precondition, retry_info

CODE = grpc.StatusCode
FULL = Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(3.0),))
REFUSALS = {
    "full": FULL.status(),
    "away": Failure(CODE.UNAVAILABLE, "away").status(),
    "bytes": Failure(CODE.FAILED_PRECONDITION, "send it", (precondition("IMAGE_REQUIRED", "parts"),)).status(),
    "invalid": Failure(CODE.INVALID_ARGUMENT, "no image").status(),
}


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def questions(clock: Clock | None = None, *, retries: int = 2, **options: Any) -> OpenQuestions:
    policy = RetryPolicy(timeout_s=30.0, retry_count=retries, first_delay_s=1.0, jitter=0.0)
    return OpenQuestions(policy=policy, clock=clock or Clock(), address="here", image_limit_bytes=2**24, **options)


def answer(position: int) -> ExplainImagesResponse:
    return ExplainImagesResponse(item=position, explanation=ExplainResponse())


def refusal(position: int, status: Status) -> ExplainImagesResponse:
    return ExplainImagesResponse(item=position, status=status)


@given(st.data(), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_every_image_is_closed_once_and_asked_boundedly_often(
    data: st.DataObject, in_flight: int, retries: int, digest_first: bool
) -> None:
    clock = Clock()
    book = questions(clock, retries=retries, in_flight=in_flight, digest_first=digest_first)
    image_count = data.draw(st.integers(0, 12))
    sent: list[Question] = []
    asked: dict[int, int] = {}
    closed: dict[int, ExplainResponse | PhospheneError] = {}

    def send(*due: Question) -> None:
        for question in due:
            sent.append(question)
            asked[question.position] = asked.get(question.position, 0) + 1

    def close(settled: Any) -> None:
        match settled:
            case Question():
                send(settled)
            case (position, outcome):
                assert position not in closed
                closed[position] = outcome

    taken = 0
    while taken < image_count or book:
        if taken < image_count and book.has_room:
            send(book.ask(b"image"))
            taken += 1
        elif not sent:
            pause_s = book.pause_s()
            assert pause_s is not None
            clock.now_s += pause_s
            send(*book.due())
        elif data.draw(st.integers(0, 9)) == 0:
            sent.clear()
            if any(question.retry_count == retries for question in book.all_open()):
                with pytest.raises(StreamBroken) as broken:
                    book.broke_off(book.error_from(None))
                assert set(broken.value.open_positions) == set(range(taken)) - set(closed)
                return
            clock.now_s += book.broke_off(book.error_from(None))
            send(*book.all_open())
        else:
            question = sent.pop(data.draw(st.integers(0, len(sent) - 1)))
            word = data.draw(st.sampled_from(["yes", *REFUSALS]))
            said = answer(question.position) if word == "yes" else refusal(question.position, REFUSALS[word])
            close(book.settle(said))
        assert len(book) <= in_flight
    assert sorted(closed) == list(range(image_count))
    assert all(count <= 1 + retries + digest_first for count in asked.values())


def test_the_service_s_delay_holds_all_new_images_back() -> None:
    clock = Clock()
    book = questions(clock, in_flight=3)
    for _ in range(2):
        book.ask(b"image")
    assert book.has_room
    assert book.settle(refusal(1, FULL.status())) is None
    assert not book.has_room
    assert (book.pause_s(), book.due()) == (3.0, [])
    clock.now_s += 3.0
    assert [question.position for question in book.due()] == [1]
    assert book.has_room
    assert book.pause_s() is None


def test_a_delay_longer_than_a_call_may_take_is_an_error() -> None:
    book = questions()
    book.ask(b"image")
    settled = book.settle(refusal(0, Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(30.0),)).status()))
    assert isinstance(settled, tuple)
    assert isinstance(settled[1], Overloaded)


def test_answers_to_nothing_are_nobody_s() -> None:
    book = questions()
    assert book.settle(answer(3)) is None
    assert book.fail(3, ServiceUnreachable("x")) is None
    book.ask(b"image")
    assert isinstance(book.settle(ExplainImagesResponse(item=0)), tuple)
    assert book.settle(answer(0)) is None


def test_an_answer_that_overtakes_its_delay_is_not_asked_for_again() -> None:
    clock = Clock()
    book = questions(clock)
    book.ask(b"image")
    book.settle(refusal(0, FULL.status()))
    assert isinstance(book.settle(answer(0)), tuple)
    clock.now_s += 3.0
    assert book.due() == []
    assert book.has_room


def test_a_call_that_ends_while_nothing_is_open_is_no_loss() -> None:
    book = questions(retries=0)
    assert book.broke_off(book.error_from(None)) == 0.0


@given(st.integers(1, 4 * CHUNK_BYTES))
def test_messages_hold_the_image_and_none_is_large(size_bytes: int) -> None:
    data = bytes(size_bytes)
    book = questions()
    first, *pieces = book.messages(book.ask(data))
    source = first.explain.image
    joined = b"".join(piece.chunk for piece in pieces) if source.HasField("upload") else source.data
    assert hashlib.sha256(joined).digest() == hashlib.sha256(data).digest()
    assert source.HasField("upload") == (size_bytes > CHUNK_BYTES)
    assert not source.HasField("upload") or source.upload.size_bytes == size_bytes
    assert all(1 <= len(piece.chunk) <= CHUNK_BYTES for piece in pieces)


def test_a_digest_asks_the_same_whatever_goes_first() -> None:
    for digest_first in (False, True):
        book = questions(digest_first=digest_first)
        (message,) = book.messages(book.ask(Digest("ab" * 32)))
        assert message.explain.image.sha256 == "ab" * 32
        settled = book.settle(refusal(0, REFUSALS["bytes"]))
        assert isinstance(settled, tuple)


@pytest.mark.parametrize("code", [CODE.INVALID_ARGUMENT, CODE.PERMISSION_DENIED, CODE.INTERNAL])
def test_what_a_new_call_cannot_mend_is_raised(code: grpc.StatusCode) -> None:
    book = questions()
    book.ask(b"image")
    failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")
    with pytest.raises(PhospheneError, match="no") as caught:
        book.broke_off(book.error_from(failure))
    assert not isinstance(caught.value, StreamBroken)
