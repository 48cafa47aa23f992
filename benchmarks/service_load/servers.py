"""A server under test with its load generator: started for a while, asked for phases, ended."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.service_load.device import BATCH_LIMIT
from benchmarks.service_load.peers import LitServeSettings, RaySettings, environment_of
from benchmarks.service_load.photos import Size
from benchmarks.service_load.processes import free_port, running, says

__all__ = [
    "Phase",
    "Server",
    "ServerSilent",
    "UnderTest",
    "litserve",
    "ours",
    "ours_with_model",
    "ray_serve",
    "seconds_to_ready",
    "serving",
]

_PACKAGE = "benchmarks.service_load"
_GENERATOR_END_S = 10.0
_READY_LIMIT_S = 120.0


class ServerSilent(Exception):
    """A server gave no right answer in time; its log says why."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One kind of load for one window."""

    measure_s: float
    """Length of the window."""
    callers: int | None = None
    """Callers that each wait for their answer (closed loop); None where `rate_per_s` is given."""
    rate_per_s: float | None = None
    """Requests a second, answered or not (open loop)."""
    size: Size = "small"
    """Which photos."""
    warm_s: float = 0.5
    """Seconds of the same load before the window."""
    deadline_s: float = 30.0
    """How long each request may take."""
    is_repeated: bool = False
    """Whether every request sends the same bytes."""

    def to_json(self) -> str:
        """As the generator reads it."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return json.dumps(given)


@dataclass(frozen=True, kw_only=True)
class Server:
    """How to start a server, and how to ask it."""

    name: str
    """For tables and logs."""
    command: tuple[str, ...]
    """Program and arguments; `{port}` and `{device}` stand for what `serving` chooses."""
    protocol: str
    """What the generator speaks: `grpc`, `grpc-any` (any answer is right), `base64` or `raw`."""
    python: Path
    """The Python that the generator runs in."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to its environment; `{port}` stands for the port."""
    note: str = ""
    """Its settings, for tables."""


def ours(**variables: str) -> Server:
    """Phosphene's own serving process with the stand-in device in it."""
    return _phosphene(("-m", f"{_PACKAGE}.our_server", "{device}"), {"PHOSPHENE_BUNDLES": "stand-in=none"} | variables)


def ours_with_model(bundle: Path, **variables: str) -> Server:
    """`python -m service` with a real bundle, whose answers no photo's fingerprint can foretell."""
    return _phosphene(("-m", "service"), {"PHOSPHENE_BUNDLES": f"real={bundle}"} | variables, protocol="grpc-any")


def litserve(settings: LitServeSettings) -> Server:
    """LitServe; raises `PeerMissing`."""
    python = environment_of("litserve")
    command = (str(python), "-m", f"{_PACKAGE}.litserve_server", "{port}", "{device}", settings.to_json())
    return Server(name="LitServe", command=command, protocol="base64", python=python, note=settings.to_text())


def ray_serve(settings: RaySettings) -> Server:
    """Ray Serve; raises `PeerMissing`."""
    python = environment_of("ray")
    command = (str(python), "-m", f"{_PACKAGE}.ray_server", "{port}", "{device}", settings.to_json())
    variables = {"PYTHONPATH": str(Path.cwd()), "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    return Server(
        name="Ray Serve",
        command=command,
        protocol="raw",
        python=python,
        variables=variables,
        note=settings.to_text(),
    )


class UnderTest:
    """A running server and its load generator."""

    def __init__(self, server: Server, pid: int, generator: subprocess.Popen[str]) -> None:
        """Keep both."""
        self.server = server
        self.pid = pid
        self._generator = generator

    def ask(self, phase: Phase) -> dict[str, Any]:
        """Load the server for one phase; returns what `load.Tally.summary` says, and processor seconds."""
        assert self._generator.stdin is not None
        self._generator.stdin.write(phase.to_json() + "\n")
        self._generator.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Read one line of the generator."""
        assert self._generator.stdout is not None
        line = self._generator.stdout.readline()
        if not line:
            raise ServerSilent(f"the load generator of {self.server.name} ended; its last words are above")
        heard: dict[str, Any] = json.loads(line)
        return heard


@contextmanager
def serving(server: Server, *, photos: Path, logs: Path) -> Iterator[UnderTest]:
    """Start a server and its generator, and wait until it answers rightly; both end with the block.

    Raises:
        ServerSilent: it never did.
    """
    port = free_port()
    log = logs / f"{server.name.lower().replace(' ', '-')}.log"
    with tempfile.NamedTemporaryFile(prefix="phosphene-device-") as device:
        given = {"port": str(port), "device": device.name}
        command = [_filled(part, given) for part in server.command]
        variables = {name: _filled(value, given) for name, value in server.variables.items()}
        with running(command, log=log, variables=variables) as process:
            arguments = (server.protocol, f"127.0.0.1:{port}", str(process.pid), str(photos))
            with _generator((str(server.python), "-m", f"{_PACKAGE}.generator", *arguments)) as generator:
                under_test = UnderTest(server, process.pid, generator)
                ready = under_test.hear()
                if not ready["ready"]:
                    raise ServerSilent(f"{server.name} gave no right answer ({ready['last']}); see {log}")
                yield under_test


def seconds_to_ready(bundle: Path, *, logs: Path) -> float:
    """How long `python -m service` takes from its start until it says that it serves.

    Raises:
        ServerSilent: it never did.
    """
    log = logs / "cold-start.log"
    variables = {
        "PHOSPHENE_BUNDLES": f"real={bundle}",
        "PHOSPHENE_LISTEN": "127.0.0.1:0",
        "PHOSPHENE_METRICS_LISTEN": "127.0.0.1:0",
    }
    begun_s = time.monotonic()
    with running((sys.executable, "-m", "service"), log=log, variables=variables, is_heard=True) as process:
        if not says(process, b'"serving"', limit_s=_READY_LIMIT_S, log=log):
            raise ServerSilent(f"the service did not start; see {log}")
        return time.monotonic() - begun_s


def _phosphene(arguments: tuple[str, ...], variables: dict[str, str], protocol: str = "grpc") -> Server:
    settings = {
        "PHOSPHENE_LISTEN": "127.0.0.1:{port}",
        "PHOSPHENE_METRICS_LISTEN": "127.0.0.1:0",
        "PHOSPHENE_BATCH_IMAGES": str(BATCH_LIMIT),
    }
    return Server(
        name="Phosphene",
        command=(sys.executable, *arguments),
        protocol=protocol,
        python=Path(sys.executable),
        variables=settings | variables,
    )


def _filled(text: str, given: Mapping[str, str]) -> str:
    for name, value in given.items():
        text = text.replace(f"{{{name}}}", value)
    return text


@contextmanager
def _generator(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(_GENERATOR_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
