"""What a client makes of a call that fails: which error, and whether it tries again."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, RequestInfo, RetryInfo

from phosphene.client import AsyncClient, Client
from phosphene.client.retries import Attempts, RetryPolicy, retry_delay_s
from phosphene.errors import (
    DeadlineExpired,
    ImageRequired,
    InputError,
    NotFound,
    Overloaded,
    PermissionDenied,
    PhospheneError,
    ReadoutMissing,
    ReloadUnderWay,
    ServiceError,
    ServiceUnreachable,
    Unanswerable,
    Unauthenticated,
    Unavailable,
)
from tests.client.fake_service import Failure, FakeService, serving

CODE = grpc.StatusCode


def retry_info(delay_s: float) -> RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(round(delay_s * 1e9))
    return RetryInfo(retry_delay=delay)


def bad_request(field: str, description: str) -> BadRequest:
    return BadRequest(field_violations=[BadRequest.FieldViolation(field=field, description=description)])


def precondition(kind: str, subject: str) -> PreconditionFailure:
    return PreconditionFailure(violations=[PreconditionFailure.Violation(type=kind, subject=subject)])


NO_CORPUS, NO_TEXT = precondition("UNANSWERABLE", "scenes"), precondition("READOUT_MISSING", "scenes")
NO_BYTES = precondition("IMAGE_REQUIRED", "parts")
GARBLED = (("grpc-status-details-bin", b"\xff\xff"),)
FINAL = [
    (Failure(CODE.INVALID_ARGUMENT, "top_n is 0", (bad_request("top_n", "top_n is 0"),)), InputError, "^top_n is 0$"),
    (Failure(CODE.INVALID_ARGUMENT, "no", (bad_request("top_n", "is 0"),)), InputError, "^no; top_n: is 0$"),
    (Failure(CODE.INVALID_ARGUMENT, ""), InputError, "no reason given"),
    (
        Failure(CODE.FAILED_PRECONDITION, "no corpus", (precondition("UNANSWERABLE", "scenes"),)),
        Unanswerable,
        "no corpus",
    ),
    (Failure(CODE.FAILED_PRECONDITION, "no corpus"), Unanswerable, "no corpus"),
    (Failure(CODE.FAILED_PRECONDITION, "no text", (NO_TEXT,)), ReadoutMissing, "no text"),
    (Failure(CODE.RESOURCE_EXHAUSTED, "larger than max"), InputError, "too large .larger than max."),
    (Failure(CODE.INTERNAL, "internal error", (RequestInfo(request_id="r-7"),)), ServiceError, "request id r-7"),
    (Failure(CODE.INTERNAL, "see r-7", (RequestInfo(request_id="r-7"),)), ServiceError, "INTERNAL: see r-7$"),
    (Failure(CODE.UNKNOWN, "oh"), ServiceError, "UNKNOWN: oh"),
    (Failure(CODE.UNIMPLEMENTED, "what"), ServiceError, "does not serve this call"),
    (Failure(CODE.FAILED_PRECONDITION, "send it", (NO_BYTES,)), ImageRequired, "^send it$"),
    (Failure(CODE.PERMISSION_DENIED, "no"), PermissionDenied, "^no$"),
    (Failure(CODE.UNAUTHENTICATED, "who"), Unauthenticated, "^who .token=, --token-file.$"),
    (Failure(CODE.ABORTED, "another reload"), ReloadUnderWay, "^another reload$"),
    (Failure(CODE.CANCELLED, "gone"), ServiceError, "cancelled"),
    (
        Failure(CODE.DATA_LOSS, "x", trailing_metadata=GARBLED),
        ServiceError,
        "DATA_LOSS",
    ),
]


@pytest.mark.parametrize(("failure", "kind", "said"), FINAL)
def test_final_failures_are_raised_at_once(
    client: Client, service: FakeService, failure: Failure, kind: type[PhospheneError], said: str
) -> None:
    service.failures.append(failure)
    with pytest.raises(kind, match=said) as caught:
        client.model()
    assert type(caught.value) is kind
    assert len(service.requests) == 1


@pytest.mark.parametrize(("failure", "kind", "said"), FINAL)
async def test_the_asynchronous_client_raises_the_same(
    service: FakeService, failure: Failure, kind: type[PhospheneError], said: str
) -> None:
    service.failures.append(failure)
    async with AsyncClient(service.address, timeout_s=10) as client:
        with pytest.raises(kind, match=said):
            await client.model()
    assert len(service.requests) == 1


def test_errors_carry_what_they_are_about(client: Client, service: FakeService) -> None:
    service.failures.append(Failure(CODE.INVALID_ARGUMENT, "no", (bad_request("image.data", "empty"),)))
    with pytest.raises(InputError) as invalid:
        client.explain(b"")
    assert invalid.value.field == "image.data"
    with pytest.raises(NotFound, match="there is no neuron_id 999") as missing:
        client.neuron(999)
    assert (missing.value.field, missing.value.name) == ("neuron_id", "999")
    service.failures.append(Failure(CODE.FAILED_PRECONDITION, "no", (precondition("UNANSWERABLE", "corpus x"),)))
    with pytest.raises(Unanswerable) as unanswerable:
        client.model()
    assert unanswerable.value.subject == "corpus x"


@pytest.mark.parametrize(
    "failure", [Failure(CODE.UNAVAILABLE, "starting"), Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(0.01),))]
)
async def test_passing_failures_are_tried_again(service: FakeService, failure: Failure) -> None:
    service.failures.extend([failure, failure])
    with Client(service.address, timeout_s=10, retries=2) as client:
        assert client.model().bundle == "scenes"
    service.failures.extend([failure, failure])
    async with AsyncClient(service.address, timeout_s=10, retries=2) as client:
        assert (await client.model()).bundle == "scenes"
    assert len(service.requests) == 6


async def test_retries_end(service: FakeService) -> None:
    service.failures.extend([Failure(CODE.UNAVAILABLE, "starting")] * 4)
    with Client(service.address, retries=1) as client, pytest.raises(Unavailable, match="starting"):
        client.model()
    async with AsyncClient(service.address, retries=1) as client:
        with pytest.raises(Unavailable, match="starting"):
            await client.model()
    assert len(service.requests) == 4


def test_a_full_service_that_asks_for_more_time_than_there_is_gets_no_second_call(service: FakeService) -> None:
    service.failures.append(Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(60),)))
    with Client(service.address, timeout_s=5) as client, pytest.raises(Overloaded, match="try again in 60 s") as caught:
        client.model()
    assert caught.value.retry_after_s == 60
    assert len(service.requests) == 1


def test_no_server_says_how_to_start_one(deserted_address: str) -> None:
    with Client(deserted_address, retries=1) as client, pytest.raises(ServiceUnreachable) as caught:
        client.model()
    assert deserted_address in str(caught.value)
    assert "python -m service" in str(caught.value)
    assert "make demo" in str(caught.value)


async def test_the_deadline_ends_a_call(service: FakeService) -> None:
    service.hold.clear()
    with Client(service.address, timeout_s=0.2) as client, pytest.raises(DeadlineExpired, match="within 0.2 s"):
        client.model()
    async with AsyncClient(service.address, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExpired, match="within 0.2 s"):
            await client.model()
    assert len(service.requests) == 2


def test_closing_a_client_ends_the_wait_for_a_retry(service: FakeService) -> None:
    service.failures.append(Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(500),)))
    client = Client(service.address, timeout_s=1000)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            client.model()
        except PhospheneError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while service.failures:
        thread.join(timeout=0.01)
    client.close()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert isinstance(raised[0], ServiceError)
    assert len(service.requests) == 1


async def test_closing_an_asynchronous_client_ends_the_wait_for_a_retry(service: FakeService) -> None:
    service.failures.append(Failure(CODE.RESOURCE_EXHAUSTED, "full", (retry_info(500),)))
    client = AsyncClient(service.address, timeout_s=1000)
    asking = asyncio.create_task(client.model())
    while service.failures:
        await asyncio.sleep(0.01)
    # The failure is on its way to the client; it is there when nothing else is left to do.
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(Overloaded):
        await asyncio.wait_for(asking, timeout=20)
    assert len(service.requests) == 1


async def test_closing_an_asynchronous_client_cancels_no_task(service: FakeService) -> None:
    service.hold.clear()
    client = AsyncClient(service.address, timeout_s=1000)
    asking = asyncio.create_task(client.model())
    while not service.requests:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(ServiceError, match="was cancelled before its answer came"):
        await asyncio.wait_for(asking, timeout=20)


def test_a_full_service_that_says_when_to_try_again_is_quoted_once(service: FakeService) -> None:
    service.failures.append(Failure(CODE.RESOURCE_EXHAUSTED, "9 images; try again in 60 s", (retry_info(60),)))
    with Client(service.address, retries=0) as client, pytest.raises(Overloaded) as caught:
        client.model()
    assert str(caught.value).endswith(" is full: 9 images; try again in 60 s")


async def test_a_cancelled_task_cancels_its_call(service: FakeService) -> None:
    service.hold.clear()
    async with AsyncClient(service.address, timeout_s=20) as client:
        task = asyncio.create_task(client.model())
        while not service.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_message_that_the_other_end_refuses_is_too_large() -> None:
    with (
        serving(FakeService(), options=(("grpc.max_receive_message_length", 1000),)) as service,
        Client(service.address) as client,
        pytest.raises(InputError, match="too large"),
    ):
        client.explain(b"\xff\xd8\xff" + bytes(2000))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attempts(clock: Clock, **policy: Any) -> Attempts:
    return Attempts(RetryPolicy(**policy), clock=clock, chance=lambda: 0.0)


def test_delays_double_up_to_their_limit() -> None:
    each = attempts(Clock(), timeout_s=100.0, retry_count=6, first_delay_s=0.5, longest_delay_s=3.0)
    delays_s = [each.delay_s(ServiceUnreachable("x")) for _ in range(7)]
    assert delays_s == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0, None]


def test_delays_have_a_limit_however_often_a_call_is_repeated() -> None:
    policy = RetryPolicy(retry_count=10_000)
    assert retry_delay_s(policy, ServiceUnreachable("x"), retry_count=9_999, chance=lambda: 0.0) == 2.0


def test_the_service_s_delay_is_honoured() -> None:
    each = attempts(Clock(), timeout_s=100.0, first_delay_s=0.5)
    assert each.delay_s(Overloaded("x", retry_after_s=7.5)) == 7.5
    assert each.delay_s(Overloaded("x", retry_after_s=0.0)) == 1.0


def test_nothing_is_tried_again_after_the_deadline() -> None:
    clock = Clock()
    each = attempts(clock, timeout_s=10.0, first_delay_s=0.5)
    clock.now_s += 9.4
    assert each.remaining_s() == pytest.approx(0.6)
    assert each.delay_s(ServiceUnreachable("x")) == 0.5
    clock.now_s += 0.5
    assert each.delay_s(ServiceUnreachable("x")) is None
    clock.now_s += 5
    assert each.remaining_s() == 0.0


def test_jitter_only_lengthens_and_stays_in_its_share() -> None:
    each = Attempts(RetryPolicy(timeout_s=100.0, first_delay_s=1.0, jitter=0.5), clock=Clock(), chance=lambda: 0.999)
    assert each.delay_s(ServiceUnreachable("x")) == pytest.approx(1.4995)
