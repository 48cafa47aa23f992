"""What is published: the kernel with its stubs, installable without torch."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.house.tree import copy_sources, run_tool

LIGHT = [
    "import phosphene",
    "import phosphene.v1.service_pb2_grpc",
    "import phosphene.client",
    "import phosphene.errors",
]


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    tree = copy_sources(root, tmp_path_factory.mktemp("wheel"))
    shutil.copytree(root / "phosphene", tree / "phosphene", dirs_exist_ok=True)
    result = run_tool(tree, "pyproject-build", "--wheel", "--no-isolation", "--outdir", "dist")
    assert result.returncode == 0, result.stdout
    (file,) = (tree / "dist").glob("*.whl")
    return ZipFile(file)


def test_only_the_kernel_is_published(wheel: ZipFile) -> None:
    rooms = {name.split("/")[0] for name in wheel.namelist()}
    assert {re.sub(r"-.*\.dist-info", ".dist-info", room) for room in rooms} == {"phosphene", "phosphene.dist-info"}


def test_all_of_the_kernel_is_published(wheel: ZipFile, root: Path) -> None:
    files = {
        str(file.relative_to(root)) for file in (root / "phosphene").rglob("*.*") if "__pycache__" not in file.parts
    }
    assert {"phosphene/py.typed", "phosphene/v1/service_pb2.pyi", "phosphene/v1/service_pb2_grpc.py"} <= files
    assert files <= set(wheel.namelist())


def test_a_client_needs_no_torch(wheel: ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    declared = HeaderParser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist") or []
    base = {need.name for need in map(Requirement, declared) if need.marker is None}
    client = {
        need.name for need in map(Requirement, declared) if need.marker and need.marker.evaluate({"extra": "client"})
    }
    assert base == {"googleapis-common-protos", "grpcio", "protobuf"}
    assert client == {"grpcio-status", "rich"}


@pytest.mark.parametrize("statement", LIGHT)
def test_a_client_imports_no_torch(root: Path, statement: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'faiss', 'onnxruntime', 'pyarrow'}"
    code = f"import sys; {statement}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def pins(root: Path, name: str) -> dict[str, str]:
    """The packages of a requirement file, without those of the files that it includes, and their exact versions."""
    lines = [re.split("[#;]", line)[0].strip() for line in (root / "requirements" / name).read_text().splitlines()]
    found = [
        re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z]+\])?==([0-9][0-9A-Za-z.]*)", line)
        for line in lines
        if line and line[0] != "-"
    ]
    assert all(found), f"{name}: every line names one exact version, without a local label"
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_cpu_and_gpu_never_meet(root: Path) -> None:
    assert set(pins(root, "cpu.txt")) == {"faiss-cpu", "onnxruntime"}
    assert set(pins(root, "gpu.txt")) == {"faiss-gpu", "onnxruntime-gpu"}
    shared = set(pins(root, "runtime.txt")) | set(pins(root, "dev.txt"))
    assert not shared & {"faiss-cpu", "faiss-gpu", "onnxruntime", "onnxruntime-gpu"}
    assert pins(root, "runtime.txt")["torch"] == "2.13.0"


def test_what_is_installed_together_is_pinned_once(root: Path) -> None:
    together = ["runtime.txt", "cpu.txt", "tracing.txt", "qdrant.txt"]
    for names in ([*together, "dev.txt"], [*together[:3], "ray.txt"]):
        counts = Counter(package for name in names for package in pins(root, name))
        assert [package for package, count in counts.items() if count > 1] == []


def test_ray_s_image_has_the_versions_that_were_tested(root: Path) -> None:
    tested = pins(root, "dev.txt") | pins(root, "qdrant.txt")
    ray = pins(root, "ray.txt")
    assert "ray" in tested
    assert {package: ray[package] for package in tested.keys() & ray.keys()} == {
        package: tested[package] for package in tested.keys() & ray.keys()
    }


def test_the_applications_run_with_versions_that_the_wheel_allows(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    # Ray and Qdrant are options, which tests try.
    pinned = pins(root, "dev.txt") | pins(root, "qdrant.txt") | pins(root, "runtime.txt")
    extras = [need for extra in project["optional-dependencies"].values() for need in extra]
    for need in map(Requirement, [*project["dependencies"], *extras]):
        assert need.specifier.contains(pinned[need.name.lower()]), need
