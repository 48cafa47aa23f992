"""The peers' environments, made on first use from benchmarks/peers-index.txt; one that fails is reported as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from benchmarks.environments import make_environment, pins_of, run

__all__ = ["PEERS", "PINS", "Peer", "python_of"]

PINS = Path("benchmarks/peers-index.txt")
Peer = Literal["scipy", "seismic", "qdrant"]
PEERS: tuple[Peer, ...] = get_args(Peer)
_ENVIRONMENTS = Path("build/peers/index")
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")


def python_of(peer: Peer) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other pins.

    Raises:
        PeerMissing: it cannot be made, or the peer cannot be imported in it.
    """
    pins = pins_of(peer, PINS.read_text())

    def fill(python: Path) -> None:
        run(str(python), *_PIP, *pins)
        run(str(python), "-c", f"import benchmarks.index_load.peer_{peer}")

    return make_environment(_ENVIRONMENTS / peer, "\n".join(pins), fill)
