"""The peers: their environments, made on first use from benchmarks/peers.txt, and the settings that are tried.

A peer that cannot be installed is reported as missing, never as beaten.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.environments import make_environment, run

__all__ = [
    "CONSTRAINTS",
    "LitServeSettings",
    "RaySettings",
    "environment_of",
    "litserve_settings",
    "ray_settings",
]

CONSTRAINTS = Path("benchmarks/peers.txt")
_ENVIRONMENTS = Path("build/peers")

Peer = Literal["litserve", "ray"]
_ASKED_FOR: dict[Peer, tuple[str, ...]] = {
    "litserve": ("litserve", "aiohttp", "numpy", "pillow"),
    "ray": ("ray[serve]", "aiohttp", "numpy", "pillow"),
}


@dataclass(frozen=True, kw_only=True)
class LitServeSettings:
    """What LitServe lets one choose that matters here."""

    batch_timeout_s: float
    """How long a batch that is not full waits for more."""
    worker_count: int = 1
    """Processes that decode and drive the device."""
    api_server_count: int = 1
    """Processes that speak HTTP."""
    has_fast_queue: bool = False
    """Whether ZeroMQ carries requests and answers between them."""

    def to_json(self) -> str:
        """As the server's command line takes it."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """For tables."""
        text = f"timeout {self.batch_timeout_s:g} s, workers {self.worker_count}, API servers {self.api_server_count}"
        return f"{text}, fast queue" if self.has_fast_queue else text


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """What Ray Serve lets one choose that matters here."""

    replica_count: int = 1
    """Processes that decode and drive the device."""
    batch_wait_s: float = 0.01
    """How long a batch that is not full waits for more."""
    concurrent_batches: int = 1
    """Batches that a replica has under way at a time."""
    ongoing_limit: int = 64
    """Requests that a replica has under way at a time."""
    has_thread: bool = True
    """Whether a batch runs beside the replica's event loop, as its guide does not."""

    def to_json(self) -> str:
        """As the server's command line takes it."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """For tables."""
        batches = f"batches at a time {self.concurrent_batches}, {'a thread' if self.has_thread else 'no thread'}"
        return f"wait {self.batch_wait_s:g} s, replicas {self.replica_count}, {batches}"


def litserve_settings(*, quick: bool) -> list[LitServeSettings]:
    """The settings among which LitServe's best is sought; with one worker there is one copy of the model."""
    workers = (1, 2)
    if quick:
        return [LitServeSettings(batch_timeout_s=0.01, worker_count=count) for count in workers]
    return [
        *(
            LitServeSettings(batch_timeout_s=timeout_s, worker_count=count)
            for timeout_s in (0.0, 0.005, 0.01, 0.05)
            for count in workers
        ),
        *(LitServeSettings(batch_timeout_s=0.01, worker_count=count, api_server_count=2) for count in workers),
        *(LitServeSettings(batch_timeout_s=0.01, worker_count=count, has_fast_queue=True) for count in workers),
    ]


def ray_settings(*, quick: bool) -> list[RaySettings]:
    """The settings among which Ray Serve's best is sought."""
    if quick:
        return [RaySettings(concurrent_batches=2)]
    return [
        RaySettings(batch_wait_s=0.0),
        RaySettings(),
        RaySettings(concurrent_batches=2),
        RaySettings(batch_wait_s=0.05, concurrent_batches=2),
        RaySettings(replica_count=2, ongoing_limit=32),
    ]


def environment_of(peer: Peer) -> Path:
    """The Python of a peer's environment, which is made where it is missing or older than the constraints.

    Raises:
        PeerMissing: it cannot be installed.
    """

    def fill(python: Path) -> None:
        options = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
        run(str(python), "-m", "pip", "install", *options, "--constraint", str(CONSTRAINTS), *_ASKED_FOR[peer])

    return make_environment(_ENVIRONMENTS / peer, CONSTRAINTS.read_text(), fill)
