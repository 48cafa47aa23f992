"""Callers without manners, on raw HTTP/2: each is told so or cut off, and nobody else notices."""

import asyncio
import contextlib
import hashlib
import json
import zlib
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from phosphene.v1 import service_pb2_grpc
from tests.service.fingerprints import Worlds, by_bytes, is_of, picture
from tests.service.own_process import own_process
from tests.service.raw_http2 import RawConnection
from tests.service.scraping import page

ONE = picture(1)
MESSAGE = by_bytes(ONE).SerializeToString()
SERVICE = "/phosphene.v1.PhospheneService"
_HANG_S = 60
_GROWTH_LIMIT_BYTES = 96 * 2**20
_LIMIT_BYTES = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service():
    """One process for the whole file: what one test does to it, the next one would feel."""
    variables = {"PHOSPHENE_IMAGE_LIMIT_BYTES": str(_LIMIT_BYTES), "PHOSPHENE_CACHE_BYTES": "0"}
    async with own_process(**variables) as process:
        process.address, process.metrics, process.admin = await process.addresses()
        yield process


@contextlib.asynccontextmanager
async def still_answering(service):
    """Another caller, on a connection of its own, is answered before, meanwhile and after."""

    async def ask(stub):
        assert is_of(await stub.Explain(by_bytes(ONE), timeout=_HANG_S), ONE, Worlds().both)

    async with grpc.aio.insecure_channel(str(service.address)) as channel:
        stub = service_pb2_grpc.PhospheneServiceStub(channel)
        await ask(stub)
        yield lambda: ask(stub)
        await ask(stub)


def peak_bytes(process):
    """Most memory that the process ever held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    if not found:
        pytest.skip("the system does not say how much memory a process ever held")
    return int(found[0]) * 1024


def bomb(mebibyte_count):
    """So many mebibytes of zeros in a thousandth of the bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(mebibyte_count)), packer.flush()])


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_message_beyond_the_limit_is_refused(service):
    async with still_answering(service), RawConnection(service.address) as raw:
        trailers = await raw.call(bytes(_LIMIT_BYTES + 2**20 + 1))
        assert trailers[b"grpc-status"] == b"8"


async def test_a_bomb_is_refused_before_it_fills_the_memory(service):
    data = bomb(1000)
    assert len(data) < 2**20 + _LIMIT_BYTES
    async with still_answering(service):
        before_bytes = peak_bytes(service)
        for _ in range(3):
            async with RawConnection(service.address) as raw:
                trailers = await raw.call(data, extra=[(b"grpc-encoding", b"gzip")], is_compressed=True)
                assert trailers[b"grpc-status"] == b"8"
        assert peak_bytes(service) - before_bytes < _GROWTH_LIMIT_BYTES


async def test_a_message_compressed_in_good_faith_is_answered(service):
    async with grpc.aio.insecure_channel(str(service.address), compression=grpc.Compression.Gzip) as channel:
        answer = await service_pb2_grpc.PhospheneServiceStub(channel).Explain(by_bytes(ONE), timeout=_HANG_S)
    assert is_of(answer, ONE, Worlds().both)


async def test_metadata_beyond_the_limit_is_refused(service):
    async with still_answering(service), RawConnection(service.address) as raw:
        trailers = await raw.call(MESSAGE, extra=[(b"x-large", b"x" * 20_000)])
        assert trailers[b"grpc-status"] == b"8"


async def test_half_open_calls_hold_no_place(service):
    """Headers without a message, twice as many as one connection may open, and connections that say nothing."""
    async with contextlib.AsyncExitStack() as lifetimes, still_answering(service) as ask:
        for _ in range(2):
            raw = await lifetimes.enter_async_context(RawConnection(service.address))
            for _ in range(250):
                raw.begin()
            await raw.flush()
        for _ in range(50):
            _, writer = await asyncio.open_connection(service.address.host, service.address.port)
            lifetimes.callback(writer.close)
        await asyncio.gather(*(ask() for _ in range(20)))
        found = await page(service.metrics)
        assert found["phosphene_admitted_items"] == 0
        done = found['phosphene_requests_total{code="OK",method="Explain"}']
        ends = (value for name, value in found.items() if name.startswith('phosphene_requests_total{code="'))
        assert found['phosphene_requests_received_total{method="Explain"}'] == sum(ends) >= done > 20


async def test_calls_beyond_those_of_one_connection_are_refused_and_it_lives_on(service):
    async with still_answering(service) as ask, RawConnection(service.address) as raw:
        limit = next(value for code, value in raw.settings.items() if code == 3)
        streams = [raw.begin() for _ in range(limit)]
        await raw.flush()
        raw.allow_any_number()
        beyond = raw.begin()
        await raw.flush()
        await raw.until(lambda: beyond in raw.ended or raw.is_over)
        await ask()
        if not raw.is_over:
            assert raw.ended[beyond] == 7
            await raw.send(streams[0], MESSAGE)
            await raw.until(lambda: streams[0] in raw.ended)
            assert raw.headers[streams[0]][b"grpc-status"] == b"0"


async def test_callers_who_keep_to_the_limit_are_not_refused(service):
    """More calls at once than one connection may have open: gRPC's own client sends them as others end."""
    async with grpc.aio.insecure_channel(str(service.address)) as channel:
        stub = service_pb2_grpc.PhospheneServiceStub(channel)
        calls = (stub.Explain(by_bytes(ONE, bundle="nobody's"), timeout=_HANG_S) for _ in range(600))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {end.code() for end in ends} == {grpc.StatusCode.NOT_FOUND}


async def test_what_is_no_message_is_refused_without_a_name_of_ours(service):
    async with still_answering(service), RawConnection(service.address) as raw:
        for junk in (b"\xff\xff\xff\xff", b"\x0a\x05ab", MESSAGE[:-1]):
            trailers = await raw.call(junk)
            assert trailers[b"grpc-status"] == b"3"
            assert b"ExplainRequest" not in b"".join(trailers.values())
            assert b"phosphene.v1" not in b"".join(trailers.values())
        stream = raw.begin(f"{SERVICE}/ExplainImages")
        await raw.send(stream, b"\xff\xff\xff\xff", ends=False)
        await raw.until(lambda: stream in raw.ended)
        assert raw.headers[stream][b"grpc-status"] == b"3"


@pytest.mark.parametrize("path", [f"{SERVICE}/Nothing", "/nobody.v1.Service/Explain", "/", "no path"])
async def test_an_unknown_method_is_unimplemented(service, path):
    async with still_answering(service), RawConnection(service.address) as raw:
        trailers = await raw.call(MESSAGE, path)
        assert trailers.get(b"grpc-status") == b"12" or trailers.get(b":status") == b"404" or raw.is_over


async def test_floods_of_pings_and_of_resets_are_survived(service):
    async with still_answering(service) as ask, RawConnection(service.address) as raw:
        for _ in range(500):
            raw.ping()
        await raw.flush()
        await raw.until(lambda: raw.is_over)
        async with RawConnection(service.address) as resetting:
            for _ in range(100):
                for _ in range(20):
                    stream = resetting.begin()
                    resetting.reset(stream)
                await resetting.flush()
            await ask()
    assert (await page(service.metrics))["phosphene_admitted_items"] == 0


async def test_the_log_shows_neither_control_characters_nor_tokens_nor_images(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {hashlib.sha256(b'the-right-token').hexdigest()}\n")
    offered = [b"\x01", b"a\x1b[31mred", b"a\nb", "ü".encode(), b"\x7f", b'"}', b"x" * 500]
    async with own_process(PHOSPHENE_TOKENS_FILE=str(tokens), keeps_all=True) as process:
        address, _, _ = await process.addresses()
        for content in offered:
            for token in (b"the-right-token", b"the-wrong-token" + content):
                extra = [(b"x-request-id", content), (b"authorization", b"Bearer " + token)]
                async with RawConnection(address) as raw:
                    await raw.call(MESSAGE, extra=extra)
                    await raw.call(by_bytes(picture(2, is_poison=True)).SerializeToString(), extra=extra)
                    await raw.call(b"\xff" + MESSAGE, extra=extra)
        assert process.events.count("answered") >= 3 * len(offered)
        assert process.events.count("defect") >= len(offered)
    said = b"".join(process.raw)
    assert all(byte == 10 or 32 <= byte < 127 for byte in said)
    assert b"-token" not in said.replace(b"tokens", b"")
    for shown in (ONE.data[:16].hex(), repr(ONE.data)[2:30], json.dumps(ONE.data.decode("latin-1"))[1:30], "iVBORw0KG"):
        assert shown.encode() not in said
