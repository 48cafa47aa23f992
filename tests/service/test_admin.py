"""AdminService on its own port: status, reload, drain, and who may call it."""

import hashlib

import grpc
import grpc.aio
import pytest

from phosphene.v1 import admin_pb2, admin_pb2_grpc, explain_pb2, models_pb2, values_pb2
from tests.fakes import CORPUS
from tests.service.conftest import ANY_PORT, serving, settings_with

WITH_ADMIN = {"admin_listen": ANY_PORT}


def stub_of(running, channel):
    return admin_pb2_grpc.AdminServiceStub(channel)


async def test_operators_see_what_is_served_and_reload_it():
    async with (
        serving(settings=settings_with(network=WITH_ADMIN)) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as channel,
    ):
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        status = await admin.GetStatus(admin_pb2.GetStatusRequest())
        assert status.serving
        assert len(status.generation) == 64
        assert (status.accepted_image_count, status.accepted_image_bytes) == (0, 0)
        reloaded = await admin.Reload(admin_pb2.ReloadRequest())
        assert (reloaded.generation, reloaded.switched) == (status.generation, False)


async def test_drain_sets_the_replica_off():
    async with (
        serving(settings=settings_with(network=WITH_ADMIN)) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as channel,
    ):
        reply = await admin_pb2_grpc.AdminServiceStub(channel).Drain(admin_pb2.DrainRequest())
        assert reply.limit_s == 5.0
        assert running.stop.is_set()


async def test_the_public_port_has_no_admin(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin_pb2_grpc.AdminServiceStub(running.channel).Drain(admin_pb2.DrainRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not running.stop.is_set()


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    lines = [
        f"ann {hashlib.sha256(b'apple').hexdigest()}",
        f"root {hashlib.sha256(b'pear').hexdigest()} admin",
    ]
    path.write_text("\n".join(lines))
    return path


async def code_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_tokens_open_what_they_are_marked_for(tokens):
    settings = settings_with(network=WITH_ADMIN, security={"tokens": tokens})
    async with (
        serving(settings=settings) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as channel,
    ):
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        codes = grpc.StatusCode
        for token, public, private in (
            (None, codes.UNAUTHENTICATED, codes.UNAUTHENTICATED),
            ("wrong", codes.UNAUTHENTICATED, codes.UNAUTHENTICATED),
            ("apple", codes.OK, codes.PERMISSION_DENIED),
            ("pear", codes.OK, codes.OK),
        ):
            metadata = [("authorization", f"Bearer {token}")] if token else []
            assert await code_of(running.stub.ListModels(models_pb2.ListModelsRequest(), metadata=metadata)) is public
            assert await code_of(admin.GetStatus(admin_pb2.GetStatusRequest(), metadata=metadata)) is private


async def test_a_caller_that_asks_too_often_is_told_when_to_come_back():
    settings = settings_with(security={"rate_per_s": 0.001, "rate_burst": 2})
    async with serving(settings=settings) as running:
        request = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"]))
        assert [await code_of(running.stub.Explain(request)) for _ in range(3)] == [
            grpc.StatusCode.OK,
            grpc.StatusCode.OK,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ]
