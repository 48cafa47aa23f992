"""A copy of the source tree to plant mistakes in; knows nothing of the checks that find them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from google.rpc import status_pb2

PACKAGES = ("phosphene", "training", "index", "service", "embedded")


def copy_sources(root: Path, target: Path) -> Path:
    """Copies the Python files, the contract and the configuration of the checks from `root` into `target`."""
    for package in PACKAGES:
        for file in (root / package).rglob("*.py*"):
            if file.suffix in {".py", ".pyi"}:
                copy = target / file.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    shutil.copytree(root / "proto", target / "proto")
    google = target / "build" / "googleapis" / "google" / "rpc" / "status.proto"
    google.parent.mkdir(parents=True)
    shutil.copyfile(Path(status_pb2.__file__.replace("_pb2.py", ".proto")), google)
    for name in ("pyproject.toml", "Makefile", "buf.yaml", "README.md", "LICENSE"):
        shutil.copyfile(root / name, target / name)
    return target


def plant(tree: Path, file: str, text: str) -> None:
    """Appends `text` to `file` of the copied tree; the file may be new."""
    path = tree / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(f"\n{text}\n")


def run_tool(tree: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this Python's environment in the copied tree; its two outputs come back as one text."""
    command = [str(Path(sys.executable).parent / tool), *arguments]
    return subprocess.run(
        command,
        cwd=tree,
        env=surroundings(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def surroundings(tree: Path) -> dict[str, str]:
    """This process's environment; lines are not broken, and what `buf` keeps has a place: not everybody has a home."""
    return os.environ | {"COLUMNS": "300", "BUF_CACHE_DIR": str(tree / "build" / "buf")}
