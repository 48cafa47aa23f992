"""What the log says of an answer that gRPC could not send."""

import grpc.aio
import pytest

from service.interceptor import AnswerInterceptor
from service.observing.metric_events import Metrics
from service.server import METHODS, SERVICE, Port
from tests.service.conftest import ANY_PORT, logged


async def test_an_answer_that_does_not_go_out_is_one_warning_without_a_traceback():
    async def too_much(request, context):
        return b"x" * 5000

    interceptor = AnswerInterceptor(
        service=SERVICE, metrics=Metrics(methods=METHODS, queue_capacity=8), clock=lambda: 0.0
    )
    with logged() as lines:
        async with Port(ANY_PORT, message_limit_bytes=1000, interceptor=interceptor, answer_limit_bytes=1000) as port:
            handler = grpc.unary_unary_rpc_method_handler(too_much)
            port.grpc_server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("other.Service", {"Method": handler}),)
            )
            await port.grpc_server.start()
            async with grpc.aio.insecure_channel(str(port.address)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await channel.unary_unary("/other.Service/Method")(b"")
        (line,) = [line for line in lines() if line.get("logger") == "grpc._cython.cygrpc"]
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (line["event"], line["level"]) == ("answer not delivered", "warning")
    assert "/other.Service/Method" in line["reason"]
    assert "traceback" not in line
