"""The environments that peers run in: made on first use, and again where what they are made of has changed.

A peer that cannot be had is reported as missing, never as beaten.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["PeerMissing", "installed", "make_environment", "pins_of", "run"]

_INSTALL_LIMIT_S = 900
_LIST = """
import importlib.metadata, json
print(json.dumps({found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}))
"""


class PeerMissing(Exception):
    """A peer cannot be had here; its text says why."""


def make_environment(folder: Path, made_of: str, fill: Callable[[Path], None]) -> Path:
    """The Python of an environment.

    Args:
        folder: where it lies.
        made_of: its packages with versions; where they have changed, it is made anew.
        fill: installs them for the environment's Python, and raises what `run` raises.

    Raises:
        PeerMissing: it cannot be made.
    """
    python, stamp = folder / "bin" / "python", folder / "made-of.sha256"
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    if not (python.exists() and stamp.exists() and stamp.read_text() == digest):
        run(sys.executable, "-m", "venv", "--clear", str(folder))
        fill(python)
        stamp.write_text(digest)
    return python


def installed(python: Path) -> dict[str, str]:
    """The packages that an environment's Python sees, with their versions, for a benchmark's record."""
    answer = subprocess.run([str(python), "-I", "-c", _LIST], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def pins_of(environment: str, text: str) -> list[str]:
    """The packages with their versions under one heading of a list.

    Raises:
        ValueError: there is no such heading.
    """
    found: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("# -- "):
            if found is not None:
                break
            found = [] if line.removeprefix("# -- ").strip() == environment else None
        elif found is not None and (pin := line.partition("#")[0].strip()):
            found.append(pin)
    if found is None:
        raise ValueError(f"no '# -- {environment}' in the list")
    return found


def run(*command: str) -> None:
    """Run a step of an installation.

    Raises:
        PeerMissing: it failed, or took too long.
    """
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerMissing((lines or failure.stderr.splitlines() or ["it gave no reason"])[-1]) from failure
    except subprocess.TimeoutExpired as failure:
        raise PeerMissing(f"installing took more than {_INSTALL_LIMIT_S} s") from failure
