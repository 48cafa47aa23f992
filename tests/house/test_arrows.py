"""The arrows and doors of docs/design.md, section 3, hold, and a wrong one is refused."""

from pathlib import Path

import pytest

from tests.house.tree import copy_sources, plant, run_tool

# (contract, file, line): one wrong arrow for every contract of pyproject.toml.
WRONG_ARROWS = [
    ("kernel: imports point downwards", "phosphene/codes.py", "import phosphene.sae"),
    ("kernel: knows none of the applications", "phosphene/fidelity.py", "import training"),
    ("phosphene.client: errors and phosphene.v1 only", "phosphene/client/wrong.py", "import phosphene.manifest"),
    ("phosphene.v1: stubs know nothing of the kernel", "phosphene/v1/wrong.py", "import phosphene.errors"),
    ("training: the kernel only", "training/wrong.py", "import index"),
    ("index: the kernel only", "index/wrong.py", "import service"),
    ("service: the kernel and index.reader only", "service/wrong.py", "import index.postings"),
    ("service: protobuf stays in wire, servicers and server", "service/wrong.py", "import phosphene.v1.explain_pb2"),
    ("embedded: the kernel only", "embedded/wrong.py", "import training"),
    ("examples, benchmarks and tests are imported by nobody", "index/wrong.py", "import tests"),
    ("images and corpus: no torch", "phosphene/images.py", "import torch"),
    ("door: transformers and the hub", "training/wrong.py", "import transformers"),
    ("door: Pillow", "service/wrong.py", "from PIL import Image"),
    ("door: onnxruntime", "index/wrong.py", "import onnxruntime"),
    ("door: faiss", "phosphene/sae.py", "import faiss"),
    ("door: grpc", "phosphene/manifest.py", "import grpc.aio"),
    ("door: opentelemetry", "service/wrong.py", "import opentelemetry"),
    ("door: redis", "service/wrong.py", "import redis"),
    ("door: prometheus_client", "index/wrong.py", "import prometheus_client"),
    ("door: numba", "index/wrong.py", "import numba"),
    ("door: matplotlib", "index/wrong.py", "import matplotlib"),
    ("door: tensorboardX", "index/wrong.py", "import tensorboardX"),
    ("door: Qdrant", "index/wrong.py", "import qdrant_client"),
    ("door: triton", "service/wrong.py", "import triton"),
    ("door: ray", "index/wrong.py", "import ray"),
]


@pytest.fixture(scope="module")
def refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter says of a tree with every wrong arrow."""
    tree = copy_sources(root, tmp_path_factory.mktemp("wrong"))
    for _, file, line in WRONG_ARROWS:
        plant(tree, file, line)
    result = run_tool(tree, "lint-imports", "--no-cache")
    assert result.returncode == 1, result.stdout
    return result.stdout


@pytest.mark.parametrize(("contract", "file", "line"), WRONG_ARROWS)
def test_a_wrong_arrow_is_refused(refused: str, contract: str, file: str, line: str) -> None:
    assert f"{contract} BROKEN" in refused
    importer = file.removesuffix(".py").replace("/", ".")
    imported = line.split()[1].removesuffix(".aio")
    assert f"{importer} -> {imported}" in refused


def test_the_house_holds(root: Path, tmp_path: Path) -> None:
    result = run_tool(copy_sources(root, tmp_path), "lint-imports", "--no-cache")
    assert result.returncode == 0, result.stdout
    assert f"{len(WRONG_ARROWS)} kept, 0 broken" in result.stdout


def test_a_kernel_file_without_a_place_is_refused(root: Path, tmp_path: Path) -> None:
    tree = copy_sources(root, tmp_path)
    plant(tree, "phosphene/novelty.py", "WIDTH = 3")
    result = run_tool(tree, "lint-imports", "--no-cache")
    assert result.returncode == 1
    assert "phosphene.novelty" in result.stdout


@pytest.mark.parametrize("line", ["import os\n\nHOME = os.environ", "from os import getenv\n\nHOME = getenv('HOME')"])
def test_the_environment_has_one_door(root: Path, tmp_path: Path, line: str) -> None:
    tree = copy_sources(root, tmp_path)
    plant(tree, "index/wrong.py", line)
    plant(tree, "service/settings.py", line)
    result = run_tool(tree, "ruff", "check", "--select", "TID251", "index/wrong.py", "service/settings.py")
    assert "Found 1 error" in result.stdout
    assert "--> index/wrong.py" in result.stdout
