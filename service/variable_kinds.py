"""The kinds of values that settings take: how each is written, its bounds, and reading one from text.

Knows no variable by name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

__all__ = [
    "Address",
    "Choice",
    "Device",
    "Integer",
    "Kind",
    "ListenAddress",
    "NamedPath",
    "NamedPaths",
    "Number",
    "PathTo",
    "Url",
    "Word",
    "bounds_of",
    "default_of",
    "read_value",
    "without_secret",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
# An "@" anywhere but at the end of a user and password may be a part of them that was not written as it should be.
_SAFE_URL = re.compile(r"(?P<scheme>[a-z]+)://([^/?#]*@)?(?P<place>[^@?#]*)([?#][^@]*)?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_URL = re.compile(r"(?P<scheme>[a-z]+)://[\x21-\x7e]{1,2000}")


@dataclass(frozen=True, kw_only=True)
class NamedPath:
    """A served artefact: the name that requests use and the folder that holds it."""

    name: str
    """Lower-case letters, digits, `.`, `_`, `-`; at most 64 characters."""
    path: Path
    """Folder of the artefact."""


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

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            # Another name, which may be anybody's: 127.example.org is one too.
            return False


@dataclass(frozen=True)
class Integer:
    """A whole number."""

    minimum: int
    maximum: int
    default: int | None
    """None: the service chooses; the meaning says how."""


@dataclass(frozen=True)
class Number:
    """A decimal number, such as seconds or a share."""

    minimum: float
    maximum: float
    default: float


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    choices: tuple[str, ...]
    default: str


@dataclass(frozen=True)
class Address:
    """`host:port`."""

    default: str | None


@dataclass(frozen=True)
class NamedPaths:
    """`name=folder[,name=folder...]`."""


@dataclass(frozen=True)
class PathTo:
    """A file or folder."""


@dataclass(frozen=True)
class Device:
    """`cpu`, `cuda` or `cuda:N`."""

    default: str


@dataclass(frozen=True)
class Url:
    """A URL with one of these schemes."""

    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Word:
    """A name in another system."""


Kind = Integer | Number | Choice | Address | NamedPaths | PathTo | Device | Url | Word


def read_value(kind: Kind, text: str) -> Any:
    """The value of a text, the default of an empty one; raises `ValueError` with the limit."""
    match kind:
        case Integer(minimum, maximum, default):
            if not text:
                return default
            if not re.fullmatch(r"-?\d{1,15}", text) or not minimum <= int(text) <= maximum:
                raise ValueError(f"it must be a whole number from {minimum} to {maximum}")
            return int(text)
        case Number(minimum, maximum, default):
            if not text:
                return default
            if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) or not minimum <= float(text) <= maximum:
                raise ValueError(f"it must be a number from {minimum:g} to {maximum:g}")
            return float(text)
        case Choice(choices, default):
            if text and text.lower() not in choices:
                raise ValueError(f"it must be one of {', '.join(choices)}")
            return text.lower() or default
        case Address(default):
            given = text or default
            return _address(given) if given else None
        case NamedPaths():
            return _named_paths(text)
        case PathTo():
            return Path(text) if text else None
        case Device(default):
            if text and not _DEVICE.fullmatch(text):
                raise ValueError("it must be cpu, cuda or cuda:N")
            return text or default
        case Url(schemes):
            found = _URL.fullmatch(text)
            if text and (found is None or found["scheme"] not in schemes):
                raise ValueError(f"it must be a URL with the scheme {' or '.join(schemes)}")
            return text or None
        case Word():
            if text and not _WORD.fullmatch(text):
                raise ValueError(
                    "it must be 1-100 characters from letters, digits, '.', '_', '-', and begin with a letter or digit"
                )
            return text or None
        case _:
            assert_never(kind)


def bounds_of(kind: Kind) -> str:
    """What values it takes, in a few words."""
    match kind:
        case Integer(minimum, maximum, _):
            return f"{minimum} to {maximum}"
        case Number(minimum, maximum, _):
            return f"{minimum:g} to {maximum:g}"
        case Choice(choices, _):
            return ", ".join(choices)
        case Address():
            return "host:port"
        case NamedPaths():
            return "name=folder[,name=folder...]"
        case PathTo():
            return "path"
        case Device():
            return "cpu, cuda, cuda:N"
        case Url(schemes):
            return ", ".join(f"{scheme}://" for scheme in schemes)
        case Word():
            return "name"
        case _:
            assert_never(kind)


def default_of(kind: Kind) -> str:
    """What no value means; empty where that is nothing."""
    match kind:
        case Integer(_, _, default) | Address(default):
            return "" if default is None else str(default)
        case Number(_, _, default):
            return f"{default:g}"
        case Choice(_, default) | Device(default):
            return default
        case NamedPaths() | PathTo() | Url() | Word():
            return ""
        case _:
            assert_never(kind)


def without_secret(url: str) -> str:
    """Scheme, host and path of a URL, which may hold a password elsewhere; less where it is not sure where."""
    found = _SAFE_URL.fullmatch(url)
    return f"{found['scheme']}://{found['place']}" if found else "..."


def _address(text: str) -> ListenAddress:
    host, _, port = text.rpartition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError("it must be host:port, such as 127.0.0.1:50051, with a port from 0 to 65535")
    return ListenAddress(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def _named_paths(text: str) -> tuple[NamedPath, ...]:
    entries: dict[str, NamedPath] = {}
    for part in filter(None, text.split(",")):
        name, _, path = part.strip().partition("=")
        if not _NAME.fullmatch(name) or not path:
            raise ValueError(
                f"{part.strip()!r} must be name=folder, the name of 1-64 characters from a-z, 0-9, '.', '_' and '-'"
            )
        if name in entries:
            raise ValueError(f"the name {name} is given twice; names must differ")
        entries[name] = NamedPath(name=name, path=Path(path))
    return tuple(entries.values())
