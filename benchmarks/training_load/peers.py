"""The peers' environments, made on first use from benchmarks/peers-training.txt.

torch is installed once and seen by every peer through a path file. A peer that cannot be installed, or that cannot be
imported once it is, is reported as missing, never as beaten.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Literal, get_args

from benchmarks.environments import make_environment, pins_of, run

__all__ = ["PEERS", "PINS", "Peer", "python_of"]

PINS = Path("benchmarks/peers-training.txt")
Peer = Literal["saelens", "dictionary_learning", "overcomplete", "sparsify"]
PEERS: tuple[Peer, ...] = get_args(Peer)
_ENVIRONMENTS = Path("build/peers/training")
_SHARED = "torch"
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")


def python_of(peer: Peer) -> Path:
    """The Python of a peer's environment, which is made where it is missing or of other pins.

    Raises:
        PeerMissing: it cannot be made, or the peer cannot be imported in it.
    """
    shared = _environment(_SHARED, (), check="torch")
    path = _packages_of(shared)
    check = f"benchmarks.training_load.peer_{peer}"
    return _environment(peer, ("--no-deps",), check=check, shared=path) / "bin" / "python"


def _environment(name: str, options: tuple[str, ...], *, check: str, shared: Path | None = None) -> Path:
    folder = _ENVIRONMENTS / name
    pins = pins_of(name, PINS.read_text())

    def fill(python: Path) -> None:
        if shared is not None:
            (_packages_of(folder) / "shared.pth").write_text(f"{shared.resolve()}\n")
        run(str(python), *_PIP, *options, *pins)
        run(str(python), "-c", f"import {check}")

    make_environment(folder, "\n".join(pins), fill)
    return folder


def _packages_of(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment), "platbase": str(environment)}))
