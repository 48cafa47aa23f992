"""The public contract is commented throughout, cannot break by accident, and its stubs are those that it generates."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.rpc import status_pb2

from tests.house.tree import copy_sources, plant, run_tool, surroundings

PROTO = "proto/phosphene/v1/neurons.proto"

# Field numbers of google/protobuf/descriptor.proto: the steps of a path into a file's source information.
MESSAGE, ENUM, SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_MESSAGE, MESSAGE_ENUM, MESSAGE_ONEOF = 2, 3, 4, 8
ENUM_VALUE, SERVICE_METHOD = 2, 2

Element = tuple[tuple[int, ...], str]


def enum_elements(enum: EnumDescriptorProto, path: tuple[int, ...], name: str) -> Iterator[Element]:
    yield path, name
    for number, value in enumerate(enum.value):
        yield (*path, ENUM_VALUE, number), f"{name}.{value.name}"


def message_elements(message: DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[Element]:
    yield path, name
    for number, field in enumerate(message.field):
        yield (*path, MESSAGE_FIELD, number), f"{name}.{field.name}"
    for number, nested in enumerate(message.nested_type):
        yield from message_elements(nested, (*path, MESSAGE_MESSAGE, number), f"{name}.{nested.name}")
    for number, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, (*path, MESSAGE_ENUM, number), f"{name}.{enum.name}")
    # An `optional` field is a oneof of its own, which nobody wrote.
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for number, oneof in enumerate(message.oneof_decl):
        if number not in synthetic:
            yield (*path, MESSAGE_ONEOF, number), f"{name}.{oneof.name}"


def elements(file: FileDescriptorProto) -> Iterator[Element]:
    """Every service, method, message, field, oneof, enum and enum value of a file: its path and its name."""
    for number, message in enumerate(file.message_type):
        yield from message_elements(message, (MESSAGE, number), message.name)
    for number, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, (ENUM, number), enum.name)
    for number, service in enumerate(file.service):
        yield (SERVICE, number), service.name
        for method_number, method in enumerate(service.method):
            yield (SERVICE, number, SERVICE_METHOD, method_number), f"{service.name}.{method.name}"


def uncommented(files: FileDescriptorSet) -> list[str]:
    missing = []
    for file in files.file:
        comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        missing += [f"{file.name}: {name}" for path, name in elements(file) if not comments.get(path)]
    return missing


def describe(tree: Path, target: Path) -> FileDescriptorSet:
    protos = sorted(str(file) for file in (tree / "proto").rglob("*.proto"))
    google = Path(status_pb2.__file__).parents[2]
    options = ["-I", str(tree / "proto"), "-I", str(google), "--include_source_info", f"--descriptor_set_out={target}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *protos], check=True)
    return FileDescriptorSet.FromString(target.read_bytes())


def test_every_element_is_commented(root: Path, tmp_path: Path) -> None:
    files = describe(root, tmp_path / "set.binpb")
    assert sum(len(list(elements(file))) for file in files.file) > 150
    assert uncommented(files) == []


def test_an_uncommented_field_is_refused(root: Path, tmp_path: Path) -> None:
    tree = copy_sources(root, tmp_path)
    plant(tree, PROTO, "// Planted.\nmessage Planted {\n  bool bare = 1;\n}")
    result = run_tool(tree, "buf", "lint")
    assert result.returncode != 0
    assert 'Field "bare" should have a non-empty comment' in result.stdout
    assert uncommented(describe(tree, tmp_path / "set.binpb")) == ["phosphene/v1/neurons.proto: Planted.bare"]


def test_a_break_is_refused(root: Path, tmp_path: Path) -> None:
    tree = copy_sources(root, tmp_path)
    text = (tree / PROTO).read_text()
    assert "uint32 total_count = 4;" in text
    (tree / PROTO).write_text(text.replace("uint32 total_count = 4;", "string total_count = 4;"))
    result = run_tool(tree, "buf", "breaking", "proto", "--against", "proto/phosphene_v1.binpb")
    assert result.returncode != 0
    assert "total_count" in result.stdout


@pytest.mark.parametrize("file", [PROTO, "phosphene/v1/neurons_pb2.pyi"])
def test_drift_of_the_stubs_is_refused(root: Path, tmp_path: Path, file: str) -> None:
    tree = copy_sources(root, tmp_path)
    check = ["make", "--old-file=setup", "stubs", f"PY={sys.executable}", f"BIN={Path(sys.executable).parent}"]
    clean = subprocess.run(check, cwd=tree, env=surroundings(tree), capture_output=True, text=True, check=False)
    assert clean.returncode == 0, clean.stdout + clean.stderr

    comment = "// Planted.\nmessage Planted {}" if file == PROTO else "planted: int"
    plant(tree, file, comment)
    drifted = subprocess.run(check, cwd=tree, env=surroundings(tree), capture_output=True, text=True, check=False)
    assert drifted.returncode != 0
    assert "make proto" in drifted.stderr
