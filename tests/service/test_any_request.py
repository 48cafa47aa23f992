"""Whatever a caller sends, the answer is one of the statuses that the contract names, never a defect."""

import random

import grpc
from google.protobuf.descriptor import FieldDescriptor

from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, service_pb2
from tests.fakes import CORPUS, png

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}
MODULES = (explain_pb2, images_pb2, models_pb2, neurons_pb2)
TEXTS = [
    "",
    "",
    "",
    "",
    "colours",
    "swatches",
    "red",
    "nope",
    image_sha256(CORPUS["red-1"]),
    "0" * 64,
    "é\x00\n😀" * 9,
    "0>0.5 & !1",
]
BYTES = [
    CORPUS["red-1"],
    CORPUS["white-1"],
    b"",
    b"\x89PNG\r\n\x1a\n",
    CORPUS["blue-1"],
    CORPUS["blue-1"][:50],
    png((1, 1, 1)),
    b"\xff\xd8\xff",
]
NUMBERS = [0, 1, 2, 3, 5, 6, 7, 100, 101, 128, 129, 1000, 2**31, 2**32 - 1]
DENSITIES = [-1.0, 0.0, 0.2, 0.7, 1.0, 2.0, float("nan"), float("inf")]


def fill(message, rng, skip):
    """Set a random choice of fields to values on and about the bounds."""
    for field in message.DESCRIPTOR.fields:
        is_choice = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        if rng.random() < (0.7 if is_choice else skip) and (field.message_type is None or is_choice):
            continue
        if field.message_type is not None:
            fill(getattr(message, field.name), rng, skip)
            getattr(message, field.name).SetInParent()
        elif field.type == FieldDescriptor.TYPE_ENUM:
            put(message, field, rng.choice([*field.enum_type.values_by_number, 99]), rng)
        else:
            choices = {
                FieldDescriptor.TYPE_STRING: TEXTS,
                FieldDescriptor.TYPE_BYTES: BYTES,
                FieldDescriptor.TYPE_UINT32: NUMBERS,
                FieldDescriptor.TYPE_UINT64: NUMBERS,
                FieldDescriptor.TYPE_FLOAT: DENSITIES,
                FieldDescriptor.TYPE_BOOL: [True, False],
            }
            put(message, field, rng.choice(choices[field.type]), rng)


def put(message, field, value, rng):
    """Set a field, or put a few of the same into a repeated one."""
    if field.is_repeated:
        getattr(message, field.name).extend([value] * rng.randrange(3))
    else:
        setattr(message, field.name, value)


async def test_every_request_ends_in_a_status_of_the_contract(running):
    rng = random.Random(7)
    methods = [
        method
        for method in service_pb2.DESCRIPTOR.services_by_name["PhospheneService"].methods
        if not method.client_streaming
    ]
    seen = {method.name: set() for method in methods}
    for _ in range(150):
        for method in methods:
            name = method.input_type.name
            request = next(getattr(module, name) for module in MODULES if hasattr(module, name))()
            fill(request, rng, skip=rng.choice([0.2, 0.6, 0.9, 0.99]))
            try:
                await getattr(running.stub, method.name)(request)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
            assert code in EXPECTED, (method.name, request)
            seen[method.name].add(code)
    assert all(grpc.StatusCode.OK in codes for codes in seen.values()), seen
