"""Asks what lights up on one image, and waits for the answer.

python -m examples.clients.python.explain photo.jpg
python -m examples.clients.python.explain photo.jpg --server dns:///phosphene.example:50051 --tls --token-file token
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from examples.clients.python.connection import Connection, add_options, connection_of
from examples.clients.python.retries import retry_delay_s
from phosphene.v1 import explain_pb2, service_pb2_grpc, values_pb2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("image", type=Path)
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        data = options.image.read_bytes()
        connection = connection_of(options)
        opened = open_channel(connection)
    except (OSError, ValueError) as fault:
        parser.error(str(fault))
    request = explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=data),
        parts=[explain_pb2.EXPLAIN_PART_NEURONS, explain_pb2.EXPLAIN_PART_FIDELITY],
        top_n=5,
    )
    with opened as channel:
        try:
            answer = explain(channel, request, connection, timeout_s=options.timeout)
        except grpc.RpcError as failure:
            sys.stderr.write(f"{failure.code().name}: {failure.details()}\n")
            return 1
    for active in answer.neurons:
        sys.stdout.write(f"{active.neuron.neuron_id}\t{active.activation:.3g}\t{active.neuron.name.name or '-'}\n")
    sys.stdout.write(f"unexplained variance: {answer.fidelity.fvu:.3g}\n")
    return 0


def open_channel(connection: Connection) -> grpc.Channel:
    """Return a channel; one serves a whole program, from any number of threads."""
    if connection.credentials is None:
        return grpc.insecure_channel(connection.target, options=connection.options)
    return grpc.secure_channel(connection.target, connection.credentials, options=connection.options)


def explain(
    channel: grpc.Channel, request: explain_pb2.ExplainRequest, connection: Connection, *, timeout_s: float
) -> explain_pb2.ExplainResponse:
    """Ask, and ask again where that helps; `timeout_s` is for all of it.

    Raises:
        RpcError: no answer.
    """
    stub = service_pb2_grpc.PhospheneServiceStub(channel)
    deadline = time.monotonic() + timeout_s
    attempt = 0
    while True:
        try:
            return stub.Explain(request, timeout=deadline - time.monotonic(), metadata=connection.metadata)
        except grpc.RpcError as failure:
            delay_s = retry_delay_s(failure, attempt, remaining_s=deadline - time.monotonic())
            if delay_s is None:
                raise
        attempt += 1
        # A program with one question has nothing else to do or to be woken by; `explain_async` has.
        time.sleep(delay_s)


if __name__ == "__main__":
    sys.exit(main())
