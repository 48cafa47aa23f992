"""Asks what lights up on many images at once, with asyncio; answers are printed as they come.

python -m examples.clients.python.explain_async photos/*.jpg --at-once 16
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from examples.clients.python.connection import Connection, add_options, connection_of
from examples.clients.python.retries import retry_delay_s
from phosphene.v1 import explain_pb2, service_pb2_grpc, values_pb2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument(
        "--at-once", type=_at_least_one, default=16, metavar="COUNT", help="questions under way (%(default)s)"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        failed_count = asyncio.run(
            explain_all(options.images, connection_of(options), at_once=options.at_once, timeout_s=options.timeout)
        )
    except (OSError, ValueError) as fault:
        parser.error(str(fault))
    return 1 if failed_count else 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of questions from 1 on")
    return int(text)


async def explain_all(images: Sequence[Path], connection: Connection, *, at_once: int, timeout_s: float) -> int:
    """Ask about every image, `at_once` at a time; returns how many got no answer."""
    turns = asyncio.Semaphore(at_once)

    async def ask(path: Path) -> bool:
        async with turns:
            try:
                data = path.read_bytes()
            except OSError as fault:
                sys.stderr.write(f"{path.name}: {fault}\n")
                return False
            request = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=data), top_n=3)
            try:
                answer = await explain(stub, request, connection, timeout_s=timeout_s)
            except grpc.aio.AioRpcError as failure:
                sys.stderr.write(f"{path.name}: {failure.code().name}: {failure.details()}\n")
                return False
        seen = ", ".join(active.neuron.name.name or f"neuron {active.neuron.neuron_id}" for active in answer.neurons)
        sys.stdout.write(f"{path.name}: {seen}\n")
        return True

    async with open_channel(connection) as channel, asyncio.TaskGroup() as group:
        stub = service_pb2_grpc.PhospheneServiceStub(channel)
        tasks = [group.create_task(ask(path)) for path in images]
    return sum(not task.result() for task in tasks)


def open_channel(connection: Connection) -> grpc.aio.Channel:
    """Return a channel; one serves a whole program."""
    if connection.credentials is None:
        return grpc.aio.insecure_channel(connection.target, options=connection.options)
    return grpc.aio.secure_channel(connection.target, connection.credentials, options=connection.options)


async def explain(
    stub: service_pb2_grpc.PhospheneServiceStub,
    request: explain_pb2.ExplainRequest,
    connection: Connection,
    *,
    timeout_s: float,
) -> explain_pb2.ExplainResponse:
    """Ask, and ask again where that helps; `timeout_s` is for all of it.

    Raises:
        AioRpcError: no answer.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    attempt = 0
    while True:
        try:
            return await stub.Explain(request, timeout=deadline - clock(), metadata=connection.metadata)
        except grpc.aio.AioRpcError as failure:
            delay_s = retry_delay_s(failure, attempt, remaining_s=deadline - clock())
            if delay_s is None:
                raise
        attempt += 1
        await asyncio.sleep(delay_s)


if __name__ == "__main__":
    sys.exit(main())
