"""Every `PHOSPHENE_*` variable: its meaning, kind, bounds and default, in one table; and reading values by it.

The table is what `python -m service --help`, docs/configuration.md and the messages of faults are made of, so that none
of them can say something else than what is read. Reads a mapping that is handed in; the environment is
`service/settings.py`'s matter. Nothing here opens a file or a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phosphene.errors import SettingError
from service.variable_kinds import (
    Address,
    Choice,
    Device,
    Integer,
    Kind,
    NamedPaths,
    Number,
    PathTo,
    Url,
    Word,
    bounds_of,
    default_of,
    read_value,
    without_secret,
)

__all__ = ["VARIABLES", "Variable", "describe", "read_values", "to_markdown"]

_PREFIX = "PHOSPHENE_"
_MIB = 2**20


@dataclass(frozen=True)
class Variable:
    """One setting."""

    group: str
    """Its heading in docs/configuration.md."""
    meaning: str
    """What it does; says what no value means where that is not a default."""
    kind: Kind
    """What values it takes."""


def _variable(group: str, meaning: str, kind: Kind) -> Variable:
    return Variable(group, meaning, kind)


VARIABLES: dict[str, Variable] = {
    "PHOSPHENE_BUNDLES": _variable(
        "What is served", "The bundles; the first is the default. This or PHOSPHENE_CURRENT is required.", NamedPaths()
    ),
    "PHOSPHENE_INDEXES": _variable(
        "What is served", "The corpora; an index belongs to the bundle that it was built for.", NamedPaths()
    ),
    "PHOSPHENE_TOMBSTONES": _variable(
        "What is served",
        "What was taken down from a corpus, by the corpus's name; `python -m index take-down` makes them.",
        NamedPaths(),
    ),
    "PHOSPHENE_FLAGS": _variable(
        "What is served",
        "What of a corpus is sensitive, by the corpus's name; `python -m index flag` says it.",
        NamedPaths(),
    ),
    "PHOSPHENE_NAMES": _variable(
        "What is served",
        "What the neurons of a corpus are called, by the corpus's name; `python -m index name` makes them. Unset: as "
        "the index says.",
        NamedPaths(),
    ),
    "PHOSPHENE_CURRENT": _variable(
        "What is served",
        "A file that names one generation of all bundles, indexes, tombstones, flags and names, instead of the five "
        "variables above; a reload reads it again. `python -m index activate` writes it.",
        PathTo(),
    ),
    "PHOSPHENE_INDEX_DEVICE": _variable(
        "What is served",
        "Where FAISS searches images; cuda needs a FAISS with GPUs, and indexes without fast-scan lists "
        "(`index build --quantiser eight-bit`) whose width divided by 8 is 1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, "
        "48, 56, 64 or 96 (not 1024). There searches run one after the other; one that has to look at more than 2048 "
        "images runs on the CPU.",
        Device("cpu"),
    ),
    "PHOSPHENE_QDRANT_URL": _variable(
        "What is served",
        "A Qdrant that answers similar images (by codes) and expressions in place of the indexes; every index that is "
        "served must have been pushed there (`python -m index push`). Needs requirements/qdrant.txt, which the "
        "container images have. Unset: the indexes answer.",
        Url(("http", "https")),
    ),
    "PHOSPHENE_QDRANT_COLLECTION": _variable(
        "What is served",
        "The name of the collection, as it was given to `index push`; with PHOSPHENE_QDRANT_URL.",
        Word(),
    ),
    "PHOSPHENE_QDRANT_KEY_FILE": _variable(
        "What is served", "File of the API key that Qdrant asks for, over https only. Unset: none.", PathTo()
    ),
    "PHOSPHENE_QDRANT_TIMEOUT_S": _variable(
        "What is served",
        "Seconds that one call of Qdrant may take; then the request is UNAVAILABLE.",
        Integer(1, 600, 10),
    ),
    "PHOSPHENE_LISTEN": _variable(
        "Network", "Address of the gRPC server; port 0 picks a free one.", Address("127.0.0.1:50051")
    ),
    "PHOSPHENE_METRICS_LISTEN": _variable(
        "Network", "Address of the Prometheus page (plain HTTP).", Address("127.0.0.1:9464")
    ),
    "PHOSPHENE_ADMIN_LISTEN": _variable(
        "Network", "Address of AdminService (reload, drain, status). Unset: there is none.", Address(None)
    ),
    "PHOSPHENE_CONNECTION_STREAMS": _variable(
        "Network", "Most calls that one connection may have open at a time.", Integer(1, 10_000, 256)
    ),
    "PHOSPHENE_CONNECTION_AGE_S": _variable(
        "Network",
        "Seconds after which a connection is asked to come anew, so that load spreads over replicas; its calls "
        "have 60 s more, streams too. 0: never.",
        Number(0.0, 86_400.0, 1800.0),
    ),
    "PHOSPHENE_DRAIN_S": _variable(
        "Network", "Seconds that accepted work may take after SIGTERM.", Number(0.0, 600.0, 20.0)
    ),
    "PHOSPHENE_TLS_CERTIFICATE": _variable(
        "Callers and security",
        "PEM file of the server's certificate chain; with PHOSPHENE_TLS_KEY. Unset: plaintext.",
        PathTo(),
    ),
    "PHOSPHENE_TLS_KEY": _variable("Callers and security", "PEM file of the certificate's private key.", PathTo()),
    "PHOSPHENE_TLS_CLIENT_CA": _variable(
        "Callers and security",
        "PEM file of the authorities whose client certificates are let in (mTLS). Unset: none is asked for.",
        PathTo(),
    ),
    "PHOSPHENE_ALLOW_PLAINTEXT": _variable(
        "Callers and security",
        "yes: listen beyond loopback without TLS (behind a mesh or an ingress that encrypts); otherwise refused.",
        Choice(("no", "yes"), "no"),
    ),
    "PHOSPHENE_TOKENS_FILE": _variable(
        "Callers and security",
        "File of API tokens: one `name sha256-of-token [admin]` a line (`printf %s TOKEN | sha256sum`), read at the "
        "start. Unset: everybody who reaches the port is answered.",
        PathTo(),
    ),
    "PHOSPHENE_RATE_PER_S": _variable(
        "Callers and security",
        "Requests a second that one caller may make on average, each image of a stream being one; 0: no limit.",
        Number(0.0, 1_000_000.0, 0.0),
    ),
    "PHOSPHENE_RATE_BURST": _variable(
        "Callers and security", "Requests that a caller who was quiet may make at once.", Integer(1, 1_000_000, 100)
    ),
    "PHOSPHENE_DEVICE": _variable("Engine and queues", "Where encoders and SAEs run.", Device("cpu")),
    "PHOSPHENE_ENGINE": _variable(
        "Engine and queues",
        "What runs them; the onnxruntime ones need an exported engine for each bundle in PHOSPHENE_ENGINES.",
        Choice(("torch", "onnxruntime", "onnxruntime-int8"), "torch"),
    ),
    "PHOSPHENE_ENGINES": _variable(
        "Engine and queues",
        "Exported engines (`python -m training export-engine`), by the name of the bundle that each belongs to.",
        NamedPaths(),
    ),
    "PHOSPHENE_ENGINE_THREADS": _variable(
        "Engine and queues", "CPU threads of the engine. Unset: torch's choice.", Integer(1, 256, None)
    ),
    "PHOSPHENE_BATCH_IMAGES": _variable("Engine and queues", "Most images in one batch.", Integer(1, 1024, 32)),
    "PHOSPHENE_QUEUE_IMAGES": _variable(
        "Engine and queues",
        "Most images that are accepted and not yet answered, counting every request that waits for the same image. "
        "ExplainImages may have three quarters of them, and one caller three quarters of what its kind of request may "
        "have; so it is with bytes and pixels. As many look-ups may wait.",
        Integer(1, 65_536, 256),
    ),
    "PHOSPHENE_QUEUE_BYTES": _variable(
        "Engine and queues",
        "Most bytes of encoded images that are accepted and not yet answered.",
        Integer(_MIB, 2**40, 512 * _MIB),
    ),
    "PHOSPHENE_QUEUE_PIXELS": _variable(
        "Engine and queues",
        "Most pixels of images that are accepted and not yet answered.",
        Integer(1_000_000, 10**12, 2_000_000_000),
    ),
    "PHOSPHENE_UPLOAD_IDLE_S": _variable(
        "Engine and queues",
        "Seconds without a chunk after which an image that comes in chunks (ExplainImages) is dropped.",
        Number(0.1, 3600.0, 30.0),
    ),
    "PHOSPHENE_BULK_SHARE": _variable(
        "Engine and queues",
        "Share of the device that bulk work (ExplainImages) keeps while somebody else waits interactively.",
        Number(0.0, 0.9, 0.25),
    ),
    "PHOSPHENE_STALL_S": _variable(
        "Engine and queues",
        "Seconds without one success of the device, while work is queued, after which the service says NOT_SERVING.",
        Number(1.0, 3600.0, 60.0),
    ),
    "PHOSPHENE_DECODE_WORKERS": _variable(
        "Engine and queues",
        "Processes that decode images. Unset: the number of CPUs, at most 8.",
        Integer(1, 256, None),
    ),
    "PHOSPHENE_DECODE_LIMIT_S": _variable(
        "Engine and queues",
        "Seconds that one image may decode for, before its worker is killed.",
        Number(0.1, 600.0, 10.0),
    ),
    "PHOSPHENE_IMAGE_LIMIT_BYTES": _variable(
        "Images", "Most bytes of one image file.", Integer(1024, 256 * _MIB, 16 * _MIB)
    ),
    "PHOSPHENE_IMAGE_LIMIT_PIXELS": _variable(
        "Images",
        "Most pixels of one image; a WebP has 24 million at most, whatever is said here.",
        Integer(1, 10**9, 50_000_000),
    ),
    "PHOSPHENE_REDIS_URL": _variable(
        "Cache",
        "Redis for codes and rate limits that replicas share, on a network near by: one that takes longer than 22.5 ms "
        "over most answers is not asked. Unset: each replica keeps its own.",
        Url(("redis", "rediss", "unix")),
    ),
    "PHOSPHENE_CACHE_BYTES": _variable(
        "Cache",
        "Most bytes of codes in the in-process cache, which serves where there is no Redis or it is away; 0: none.",
        Integer(0, 2**40, 64 * _MIB),
    ),
    "PHOSPHENE_CACHE_TTL_S": _variable(
        "Cache", "Seconds that a code stays in Redis, give or take a tenth.", Integer(1, 31_536_000, 3600)
    ),
    "PHOSPHENE_TRACES_ENDPOINT": _variable(
        "Logs and traces",
        "OpenTelemetry collector (OTLP over gRPC), such as http://127.0.0.1:4317; needs requirements/tracing.txt. "
        "Unset: no traces.",
        Url(("http", "https")),
    ),
    "PHOSPHENE_LOG_LEVEL": _variable(
        "Logs and traces", "Least level of a log line.", Choice(("debug", "info", "warning", "error"), "info")
    ),
}
"""Every variable that the service reads."""


def read_values(given: Mapping[str, str]) -> dict[str, Any]:
    """Read the variables of the service, of which those without the prefix are ignored.

    Args:
        given: name to value, such as the environment.

    Returns:
        A value for every name of `VARIABLES`; None where there is neither a value nor a default.

    Raises:
        SettingError: one message that names every fault: variable, value, limit.
    """
    ours = {name: value.strip() for name, value in given.items() if name.startswith(_PREFIX)}
    faults = [
        f"{name} is not a setting of the service; `python -m service --help` lists those that are"
        for name in sorted(ours.keys() - VARIABLES.keys())
    ]
    values: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        try:
            values[name] = read_value(variable.kind, ours.get(name, ""))
        except ValueError as fault:
            shown = without_secret(ours[name]) if isinstance(variable.kind, Url) else ours[name]
            faults.append(f"{name} is {shown!r}; {fault}")
    if faults:
        raise SettingError("\n".join(faults))
    return values


def to_markdown() -> str:
    """The body of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "The service is set by environment variables; `python -m service --help` prints this list, and "
        "`python -m service check` tries the values that are set. Unknown `PHOSPHENE_*` variables, and values out of "
        "their bounds, are refused at start, all of them in one message. Made from `service/variables.py` by "
        "`python -m service configuration`; a test holds the two together.",
    ]
    for group in dict.fromkeys(variable.group for variable in VARIABLES.values()):
        lines += ["", f"## {group}", "", "| variable | meaning | values | default |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {_cell(variable.meaning)} | {bounds_of(variable.kind)} | {default_of(variable.kind)} |"
            for name, variable in VARIABLES.items()
            if variable.group == group
        ]
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    # A bar would end the cell, in a piece of code too.
    return words.replace("|", "\\|")


def describe(name: str) -> str:
    """One variable in words: meaning, values, default."""
    kind = VARIABLES[name].kind
    default = default_of(kind)
    return f"{VARIABLES[name].meaning} {bounds_of(kind)}{f'; default {default}' if default else ''}"
