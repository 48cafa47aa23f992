"""The service's configuration, by part, from `PHOSPHENE_*` variables; the project's only reader of the environment.

Every variable is known, bounded and described in `service/variables.py`. All faults of a configuration are reported at
once, each with the variable, its value, the limit and the remedy; an unknown `PHOSPHENE_*` variable is a fault too,
because a misspelt limit that is silently ignored is a limit that does not hold. Nothing here opens a file or a socket.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phosphene.errors import SettingError
from service.variable_kinds import ListenAddress, NamedPath, without_secret
from service.variables import read_values

__all__ = [
    "ArtefactSettings",
    "CacheSettings",
    "EngineSettings",
    "ImageSettings",
    "ListenAddress",
    "NamedPath",
    "NetworkSettings",
    "QdrantSettings",
    "QueueSettings",
    "SecuritySettings",
    "Settings",
    "load_settings",
    "read_settings",
    "without_secret",
]

_DEFAULT_DECODE_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class ArtefactSettings:
    """What is served: bundles and indexes, or a file that names a generation of them."""

    bundles: tuple[NamedPath, ...] = ()
    """The first is the default; empty where `current` is set."""
    indexes: tuple[NamedPath, ...] = ()
    """The corpora; the first of a bundle is that bundle's default."""
    tombstones: tuple[NamedPath, ...] = ()
    """What was taken down, by the name of its corpus; empty where `current` is set."""
    flags: tuple[NamedPath, ...] = ()
    """What is sensitive, by the name of its corpus; empty where `current` is set."""
    names: tuple[NamedPath, ...] = ()
    """What neurons are called, by the name of their corpus; empty where `current` is set."""
    current: Path | None = None
    """Names one generation of all of them."""
    engines: tuple[NamedPath, ...] = ()
    """Exported engines, by the name of their bundle."""
    index_device: str = "cpu"
    """Where FAISS searches images: `cpu`, `cuda` or `cuda:N`."""


@dataclass(frozen=True, kw_only=True)
class QdrantSettings:
    """Where codes are searched in place of the indexes."""

    url: str | None = None
    """Of the Qdrant; None: the indexes are searched. May hold a password."""
    collection: str | None = None
    """As it was given to `python -m index push`; None only where there is no `url`."""
    key_file: Path | None = None
    """File of its API key; None: it asks for none."""
    timeout_s: int = 10
    """Seconds that one call may take."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Where the service is reached and how it leaves."""

    listen: ListenAddress = ListenAddress(host="127.0.0.1", port=50051)
    """Address of the gRPC server; loopback unless told otherwise."""
    metrics_listen: ListenAddress = ListenAddress(host="127.0.0.1", port=9464)
    """Address of the Prometheus page; loopback unless told otherwise."""
    admin_listen: ListenAddress | None = None
    """Address of AdminService; None: there is none."""
    connection_streams: int = 256
    """Most open calls of one connection."""
    connection_age_s: float = 1800.0
    """Seconds after which a connection is asked to come anew; 0: never."""
    drain_s: float = 20.0
    """Seconds that accepted work may take after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Who is let in."""

    certificate: Path | None = None
    """PEM file of the certificate chain; None: plaintext."""
    key: Path | None = None
    """PEM file of its private key."""
    client_ca: Path | None = None
    """PEM file of authorities of client certificates; None: none is asked for."""
    tokens: Path | None = None
    """File of API tokens; None: no token is asked for."""
    rate_per_s: float = 0.0
    """Requests a second of one caller; 0: no limit."""
    rate_burst: int = 100
    """Requests that a quiet caller may make at once."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs encoders, and where."""

    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    engine: str = "torch"
    """`torch`, `onnxruntime` or `onnxruntime-int8`."""
    thread_count: int | None = None
    """CPU threads of the engine; None leaves the choice to torch."""
    batch_images: int = 32
    """Most images in one batch."""
    stall_s: float = 60.0
    """Seconds without a success of the device, while work is queued, after which the service says NOT_SERVING."""


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """What may wait, and who decodes it."""

    images: int = 256
    """Most images that are accepted and not yet answered."""
    image_bytes: int = 512 * 2**20
    """Most bytes of theirs."""
    image_pixels: int = 2_000_000_000
    """Most pixels of theirs."""
    upload_idle_s: float = 30.0
    """Seconds without a chunk after which an image that comes in chunks is dropped."""
    bulk_share: float = 0.25
    """Share of the device that bulk work keeps."""
    decode_worker_count: int = 4
    """Processes that decode images."""
    decode_limit_s: float = 10.0
    """Seconds that one image may decode for."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Limits on one uploaded image."""

    limit_bytes: int = 16 * 2**20
    """Most bytes of the file."""
    limit_pixels: int = 50_000_000
    """Most pixels (width x height), read from the header before any decode."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where codes are kept."""

    redis_url: str | None = None
    """Redis that replicas share; None: each keeps its own cache. May hold a password."""
    limit_bytes: int = 64 * 2**20
    """Most bytes in the in-process cache; 0: no cache at all."""
    ttl_s: int = 3600
    """Seconds that a code stays."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration, by part; functions take the part that they use."""

    artefacts: ArtefactSettings
    """What is served."""
    qdrant: QdrantSettings = QdrantSettings()
    """Where codes are searched."""
    network: NetworkSettings = NetworkSettings()
    """Where the service is reached."""
    security: SecuritySettings = SecuritySettings()
    """Who is let in."""
    engine: EngineSettings = EngineSettings()
    """What runs encoders."""
    queue: QueueSettings = QueueSettings()
    """What may wait."""
    image: ImageSettings = ImageSettings()
    """Limits on an uploaded image."""
    cache: CacheSettings = CacheSettings()
    """Where codes are kept."""
    traces_endpoint: str | None = None
    """OpenTelemetry collector; None: no traces."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    def to_log(self) -> dict[str, object]:
        """The settings as plain values for the start-up log line, without the secrets of URLs."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        if self.cache.redis_url is not None:
            plain["cache"]["redis_url"] = without_secret(self.cache.redis_url)
        if self.qdrant.url is not None:
            plain["qdrant"]["url"] = without_secret(self.qdrant.url)
        if self.traces_endpoint is not None:
            plain["traces_endpoint"] = without_secret(self.traces_endpoint)
        return plain


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
    values = read_values(variables)

    def of(name: str) -> Any:
        return values[f"PHOSPHENE_{name}"]

    settings = Settings(
        artefacts=ArtefactSettings(
            bundles=of("BUNDLES"),
            indexes=of("INDEXES"),
            tombstones=of("TOMBSTONES"),
            flags=of("FLAGS"),
            names=of("NAMES"),
            current=of("CURRENT"),
            engines=of("ENGINES"),
            index_device=of("INDEX_DEVICE"),
        ),
        qdrant=QdrantSettings(
            url=of("QDRANT_URL"),
            collection=of("QDRANT_COLLECTION"),
            key_file=of("QDRANT_KEY_FILE"),
            timeout_s=of("QDRANT_TIMEOUT_S"),
        ),
        network=NetworkSettings(
            listen=of("LISTEN"),
            metrics_listen=of("METRICS_LISTEN"),
            admin_listen=of("ADMIN_LISTEN"),
            connection_streams=of("CONNECTION_STREAMS"),
            connection_age_s=of("CONNECTION_AGE_S"),
            drain_s=of("DRAIN_S"),
        ),
        security=SecuritySettings(
            certificate=of("TLS_CERTIFICATE"),
            key=of("TLS_KEY"),
            client_ca=of("TLS_CLIENT_CA"),
            tokens=of("TOKENS_FILE"),
            rate_per_s=of("RATE_PER_S"),
            rate_burst=of("RATE_BURST"),
        ),
        engine=EngineSettings(
            device=of("DEVICE"),
            engine=of("ENGINE"),
            thread_count=of("ENGINE_THREADS"),
            batch_images=of("BATCH_IMAGES"),
            stall_s=of("STALL_S"),
        ),
        queue=QueueSettings(
            images=of("QUEUE_IMAGES"),
            image_bytes=of("QUEUE_BYTES"),
            image_pixels=of("QUEUE_PIXELS"),
            upload_idle_s=of("UPLOAD_IDLE_S"),
            bulk_share=of("BULK_SHARE"),
            decode_worker_count=of("DECODE_WORKERS") or min(cpu_count, _DEFAULT_DECODE_WORKERS),
            decode_limit_s=of("DECODE_LIMIT_S"),
        ),
        image=ImageSettings(limit_bytes=of("IMAGE_LIMIT_BYTES"), limit_pixels=of("IMAGE_LIMIT_PIXELS")),
        cache=CacheSettings(redis_url=of("REDIS_URL"), limit_bytes=of("CACHE_BYTES"), ttl_s=of("CACHE_TTL_S")),
        traces_endpoint=of("TRACES_ENDPOINT"),
        log_level=of("LOG_LEVEL"),
    )
    _check(settings, allows_plaintext=of("ALLOW_PLAINTEXT") == "yes")
    return settings


def _check(settings: Settings, *, allows_plaintext: bool) -> None:
    """Refuse settings that contradict one another; all of them in one error."""
    artefacts, network, security = settings.artefacts, settings.network, settings.security
    faults: list[str] = []
    if artefacts.current is None and not artefacts.bundles:
        faults.append(
            "PHOSPHENE_BUNDLES is not set; name what to serve, such as PHOSPHENE_BUNDLES=scenes=build/bundle, or a "
            "generation with PHOSPHENE_CURRENT"
        )
    named = (artefacts.bundles, artefacts.indexes, artefacts.tombstones, artefacts.flags, artefacts.names)
    if artefacts.current is not None and any(named):
        faults.append(
            "PHOSPHENE_CURRENT is set beside PHOSPHENE_BUNDLES, PHOSPHENE_INDEXES, PHOSPHENE_TOMBSTONES, "
            "PHOSPHENE_FLAGS or PHOSPHENE_NAMES; it names all of them itself: unset one side"
        )
    for variable, entries in (
        ("TOMBSTONES", artefacts.tombstones),
        ("FLAGS", artefacts.flags),
        ("NAMES", artefacts.names),
    ):
        stray = sorted({entry.name for entry in entries} - {entry.name for entry in artefacts.indexes})
        if stray and artefacts.current is None:
            faults.append(
                f"PHOSPHENE_{variable} names {', '.join(stray)}, and PHOSPHENE_INDEXES does not; use the names of its "
                "corpora"
            )
    if settings.engine.engine != "torch" and not artefacts.engines:
        faults.append(
            f"PHOSPHENE_ENGINE is {settings.engine.engine!r} and PHOSPHENE_ENGINES is not set; export one for each "
            "bundle (`python -m training export-engine`) and name them"
        )
    qdrant = settings.qdrant
    if (qdrant.url is None) != (qdrant.collection is None) or (qdrant.url is None and qdrant.key_file is not None):
        faults.append(
            "PHOSPHENE_QDRANT_URL and PHOSPHENE_QDRANT_COLLECTION go together, PHOSPHENE_QDRANT_KEY_FILE with them; "
            "set both, or none of them"
        )
    if (security.certificate is None) != (security.key is None):
        faults.append("PHOSPHENE_TLS_CERTIFICATE and PHOSPHENE_TLS_KEY go together; set both or neither")
    if security.client_ca is not None and security.certificate is None:
        faults.append("PHOSPHENE_TLS_CLIENT_CA needs PHOSPHENE_TLS_CERTIFICATE and PHOSPHENE_TLS_KEY; set them too")
    public = [
        name
        for name, address in (("PHOSPHENE_LISTEN", network.listen), ("PHOSPHENE_ADMIN_LISTEN", network.admin_listen))
        if address is not None and not address.is_loopback
    ]
    if public and security.certificate is None and not allows_plaintext:
        who = "PHOSPHENE_LISTEN and PHOSPHENE_ADMIN_LISTEN reach" if len(public) > 1 else f"{public[0]} reaches"
        faults.append(
            f"{who} beyond this machine without TLS, so images and tokens would travel in the clear; set "
            "PHOSPHENE_TLS_CERTIFICATE and PHOSPHENE_TLS_KEY, or PHOSPHENE_ALLOW_PLAINTEXT=yes where something else "
            "encrypts"
        )
    if faults:
        raise SettingError("\n".join(faults))


def _plain(value: object) -> Any:
    """As JSON can hold it."""
    match value:
        case {"host": str(host), "port": int(port)}:
            return str(ListenAddress(host=host, port=port))
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
        case Path():
            return str(value)
        case _:
            return value
