"""The service's configuration from `PHOSPHENE_*` variables; the only reader of the environment in the project.

Every variable is known, bounded and described in `VARIABLES`. All faults of a configuration are reported at once, each
with the variable, its value, the limit and the remedy; an unknown `PHOSPHENE_*` variable is a fault too, because a
misspelt limit that is silently ignored is a limit that does not hold. Nothing here opens a file or a socket.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from phosphene.errors import SettingError

__all__ = [
    "VARIABLES",
    "ArtefactSettings",
    "EngineSettings",
    "ImageSettings",
    "ListenAddress",
    "NamedPath",
    "NetworkSettings",
    "Settings",
    "load_settings",
    "read_settings",
]

_PREFIX = "PHOSPHENE_"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_MIB = 2**20

VARIABLES: dict[str, str] = {
    "PHOSPHENE_BUNDLES": "name=folder[,name=folder...]; the first is the default bundle (required)",
    "PHOSPHENE_INDEXES": "name=folder[,name=folder...]; an index belongs to the bundle that it was built for",
    "PHOSPHENE_LISTEN": "host:port of the gRPC server; port 0 picks a free one (127.0.0.1:50051)",
    "PHOSPHENE_METRICS_LISTEN": "host:port of the Prometheus page (127.0.0.1:9464)",
    "PHOSPHENE_DRAIN_S": "seconds that accepted work may take after SIGTERM, 0-600 (20)",
    "PHOSPHENE_DEVICE": "cpu, cuda or cuda:N (cpu)",
    "PHOSPHENE_ENGINE_THREADS": "CPU threads of the engine, 1-256; unset: torch's choice",
    "PHOSPHENE_BATCH_IMAGES": "most images in one batch, 1-1024 (32)",
    "PHOSPHENE_QUEUE_IMAGES": "most images that wait for a decode worker or for the engine, 1-65536 (256)",
    "PHOSPHENE_DECODE_WORKERS": "threads that decode images, 1-256 (number of CPUs, at most 8)",
    "PHOSPHENE_IMAGE_LIMIT_BYTES": "most bytes of one image file, 1024-268435456 (16777216)",
    "PHOSPHENE_IMAGE_LIMIT_PIXELS": "most pixels of one image, 1-1000000000 (50000000)",
    "PHOSPHENE_LOG_LEVEL": "debug, info, warning or error (info)",
}
"""Every variable that the service reads, with its meaning, bounds and default."""


@dataclass(frozen=True, kw_only=True)
class NamedPath:
    """A served artefact: the name that requests use and the folder that holds it."""

    name: str
    """Lower-case letters, digits, `.`, `_`, `-`; at most 64 characters."""
    path: Path
    """Folder of the bundle or index."""


@dataclass(frozen=True, kw_only=True)
class ListenAddress:
    """Where a server listens."""

    host: str
    """Host name or IP address, without brackets."""
    port: int
    """0-65535; 0 lets the system choose."""

    def __str__(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings:
    """What is served."""

    bundles: tuple[NamedPath, ...]
    """At least one; the first is the default."""
    indexes: tuple[NamedPath, ...] = ()
    """The corpora; the first of a bundle is that bundle's default."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Where the service is reached and how it leaves."""

    listen: ListenAddress = ListenAddress(host="127.0.0.1", port=50051)
    """Address of the gRPC server; loopback unless told otherwise."""
    metrics_listen: ListenAddress = ListenAddress(host="127.0.0.1", port=9464)
    """Address of the Prometheus page; loopback unless told otherwise."""
    drain_s: float = 20.0
    """Seconds that accepted work may take after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Device, batches and the bounds of the queues."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    thread_count: int | None = None
    """CPU threads of the engine; None leaves the choice to torch."""
    batch_images: int = 32
    """Most images in one batch."""
    queue_images: int = 256
    """Most images that wait, for a decode worker and for the engine each."""
    decode_worker_count: int = 4
    """Threads that decode images."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Limits on one uploaded image."""

    limit_bytes: int = 16 * _MIB
    """Most bytes of the file."""
    limit_pixels: int = 50_000_000
    """Most pixels (width x height), read from the header before any decode."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration, by part; functions take the part that they use."""

    artefacts: ArtefactSettings
    """What is served."""
    network: NetworkSettings = NetworkSettings()
    """Where the service is reached."""
    engine: EngineSettings = EngineSettings()
    """Device, batches, queues."""
    image: ImageSettings = ImageSettings()
    """Limits on an uploaded image."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    def to_log(self) -> dict[str, object]:
        """The settings as plain values for the start-up log line; none of them is a secret."""
        return {
            "bundles": {entry.name: str(entry.path) for entry in self.artefacts.bundles},
            "indexes": {entry.name: str(entry.path) for entry in self.artefacts.indexes},
            "listen": str(self.network.listen),
            "metrics_listen": str(self.network.metrics_listen),
            "drain_s": self.network.drain_s,
            "engine": asdict(self.engine),
            "image": asdict(self.image),
            "log_level": self.log_level,
        }


def load_settings() -> Settings:
    """Read the settings from this process's environment; raises `SettingError`."""
    return read_settings(os.environ, cpu_count=os.cpu_count() or 1)


def read_settings(variables: Mapping[str, str], *, cpu_count: int = 4) -> Settings:
    """Read the settings from `variables`, of which those without the prefix are ignored.

    Args:
        variables: name to value, such as the environment.
        cpu_count: processors of this machine, for the default number of decode workers.

    Raises:
        SettingError: one message that names every fault.
    """
    given = _Given({name: value for name, value in variables.items() if name.startswith(_PREFIX)})
    given.refuse_unknown()
    settings = Settings(
        artefacts=ArtefactSettings(
            bundles=given.named_paths("PHOSPHENE_BUNDLES", required=True),
            indexes=given.named_paths("PHOSPHENE_INDEXES", required=False),
        ),
        network=NetworkSettings(
            listen=given.address("PHOSPHENE_LISTEN", "127.0.0.1:50051"),
            metrics_listen=given.address("PHOSPHENE_METRICS_LISTEN", "127.0.0.1:9464"),
            drain_s=given.seconds("PHOSPHENE_DRAIN_S", default=20.0, maximum=600.0),
        ),
        engine=EngineSettings(
            device=given.device("PHOSPHENE_DEVICE", "cpu"),
            thread_count=given.integer("PHOSPHENE_ENGINE_THREADS", default=0, minimum=1, maximum=256) or None,
            batch_images=given.integer("PHOSPHENE_BATCH_IMAGES", default=32, minimum=1, maximum=1024),
            queue_images=given.integer("PHOSPHENE_QUEUE_IMAGES", default=256, minimum=1, maximum=65536),
            decode_worker_count=given.integer(
                "PHOSPHENE_DECODE_WORKERS", default=min(cpu_count, 8), minimum=1, maximum=256
            ),
        ),
        image=ImageSettings(
            limit_bytes=given.integer(
                "PHOSPHENE_IMAGE_LIMIT_BYTES", default=16 * _MIB, minimum=1024, maximum=256 * _MIB
            ),
            limit_pixels=given.integer(
                "PHOSPHENE_IMAGE_LIMIT_PIXELS", default=50_000_000, minimum=1, maximum=1_000_000_000
            ),
        ),
        log_level=given.choice("PHOSPHENE_LOG_LEVEL", "info", _LOG_LEVELS),
    )
    given.raise_faults()
    return settings


class _Given:
    """The variables that were set, and the faults found while reading them; a faulty one reads as its default."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._faults: list[str] = []

    def raise_faults(self) -> None:
        if self._faults:
            raise SettingError("\n".join(self._faults))

    def refuse_unknown(self) -> None:
        for name in sorted(self._variables.keys() - VARIABLES.keys()):
            self._faults.append(f"{name} is not a setting of the service; known are {', '.join(VARIABLES)}")

    def integer(self, variable: str, *, default: int, minimum: int, maximum: int) -> int:
        text = self._variables.get(variable, "").strip()
        if not text:
            return default
        value = int(text) if re.fullmatch(r"-?\d{1,15}", text) else None
        if value is None or not minimum <= value <= maximum:
            self._refuse(variable, text, f"it must be a whole number from {minimum} to {maximum}")
            return default
        return value

    def seconds(self, variable: str, *, default: float, maximum: float) -> float:
        text = self._variables.get(variable, "").strip()
        if not text:
            return default
        value = float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) else None
        if value is None or value > maximum:
            self._refuse(variable, text, f"it must be a number of seconds from 0 to {maximum:g}")
            return default
        return value

    def choice(self, variable: str, default: str, choices: tuple[str, ...]) -> str:
        text = self._variables.get(variable, "").strip().lower() or default
        if text not in choices:
            self._refuse(variable, text, f"it must be one of {', '.join(choices)}")
            return default
        return text

    def device(self, variable: str, default: str) -> str:
        text = self._variables.get(variable, "").strip() or default
        if not _DEVICE.fullmatch(text):
            self._refuse(variable, text, "it must be cpu, cuda or cuda:N")
            return default
        return text

    def address(self, variable: str, default: str) -> ListenAddress:
        text = self._variables.get(variable, "").strip() or default
        host, _, port = text.rpartition(":")
        bare_host = host.removeprefix("[").removesuffix("]")
        is_plain = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host) is not None
        if not is_plain or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
            self._refuse(variable, text, "it must be host:port, such as 127.0.0.1:50051, with a port from 0 to 65535")
            return ListenAddress(host="127.0.0.1", port=0)
        return ListenAddress(host=bare_host, port=int(port))

    def named_paths(self, variable: str, *, required: bool) -> tuple[NamedPath, ...]:
        text = self._variables.get(variable, "").strip()
        if not text:
            if required:
                self._faults.append(
                    f"{variable} is not set; name what to serve, such as {variable}=scenes=build/bundle"
                )
            return ()
        entries: list[NamedPath] = []
        for part in text.split(","):
            name, separator, path = part.strip().partition("=")
            if not separator or not _NAME.fullmatch(name) or not path:
                self._refuse(
                    variable,
                    part.strip(),
                    "each entry must be name=folder, the name of 1-64 characters from a-z, 0-9, '.', '_' and '-'",
                )
            elif name in {entry.name for entry in entries}:
                self._refuse(variable, part.strip(), f"the name {name} is given twice; names must differ")
            else:
                entries.append(NamedPath(name=name, path=Path(path)))
        return tuple(entries)

    def _refuse(self, variable: str, text: str, reason: str) -> None:
        self._faults.append(f"{variable} is {text!r}; {reason}")
