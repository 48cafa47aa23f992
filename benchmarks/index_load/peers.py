"""The peers' environments, made on first use from benchmarks/peers-index.txt; one that fails is reported as missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

from benchmarks.training_load.peers import PeerMissing, pins_of

__all__ = ["PEERS", "PINS", "Peer", "PeerMissing", "python_of"]

PINS = Path("benchmarks/peers-index.txt")
Peer = Literal["scipy", "seismic", "qdrant"]
PEERS: tuple[Peer, ...] = get_args(Peer)
_ENVIRONMENTS = Path("build/peers/index")
_INSTALL_LIMIT_S = 600
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")


def python_of(peer: Peer) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other pins.

    Raises:
        PeerMissing: it cannot be made, or the peer cannot be imported in it.
    """
    folder = _ENVIRONMENTS / peer
    python, stamp = folder / "bin" / "python", folder / "pins.sha256"
    pins = pins_of(peer, PINS.read_text())
    digest = hashlib.sha256("\n".join(pins).encode()).hexdigest()
    if not (python.exists() and stamp.exists() and stamp.read_text() == digest):
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), *_PIP, *pins)
        _run(str(python), "-c", f"import benchmarks.index_load.peer_{peer}")
        stamp.write_text(digest)
    return python


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
    except subprocess.CalledProcessError as failure:
        lines = [line for line in failure.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerMissing((lines or failure.stderr.splitlines() or ["it gave no reason"])[-1]) from failure
    except subprocess.TimeoutExpired as failure:
        raise PeerMissing(f"installing took more than {_INSTALL_LIMIT_S} s") from failure
