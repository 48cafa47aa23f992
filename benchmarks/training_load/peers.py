"""The peers' environments, made on first use from benchmarks/peers-training.txt.

torch is installed once and seen by every peer through a path file. A peer that cannot be installed, or that cannot be
imported once it is, is reported as missing, never as beaten.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Literal, get_args

__all__ = ["PEERS", "PINS", "Peer", "PeerMissing", "pins_of", "python_of"]

PINS = Path("benchmarks/peers-training.txt")
Peer = Literal["saelens", "dictionary_learning", "overcomplete", "sparsify"]
PEERS: tuple[Peer, ...] = get_args(Peer)
_ENVIRONMENTS = Path("build/peers/training")
_SHARED = "torch"
_INSTALL_LIMIT_S = 900
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")


class PeerMissing(Exception):
    """A peer cannot be had here; its text says why."""


def python_of(peer: Peer) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other pins.

    Raises:
        PeerMissing: it cannot be made, or the peer cannot be imported in it.
    """
    shared = _environment(_SHARED, (), check="torch")
    path = _packages_of(shared)
    check = f"benchmarks.training_load.peer_{peer}"
    return _environment(peer, ("--no-deps",), check=check, shared=path) / "bin" / "python"


def pins_of(environment: str, text: str) -> list[str]:
    """The packages with their versions under one heading of the list.

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


def _environment(name: str, options: tuple[str, ...], *, check: str, shared: Path | None = None) -> Path:
    folder = _ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "pins.sha256"
    pins = pins_of(name, PINS.read_text())
    digest = hashlib.sha256("\n".join(pins).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return folder
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    if shared is not None:
        (_packages_of(folder) / "shared.pth").write_text(f"{shared.resolve()}\n")
    _run(str(python), *_PIP, *options, *pins)
    _run(str(python), "-c", f"import {check}")
    stamp.write_text(digest)
    return folder


def _packages_of(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment), "platbase": str(environment)}))


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerMissing((lines or failure.stderr.splitlines() or ["it gave no reason"])[-1]) from failure
    except subprocess.TimeoutExpired as failure:
        raise PeerMissing(f"installing took more than {_INSTALL_LIMIT_S} s") from failure
