"""What one typed word of the command must be; what is not is told in words that say what to type instead.

Knows nothing of options and of what other words say. Bounds are those of the contract.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from phosphene.client.options import ExplainPartName
from phosphene.client.page_file import check_page_path
from phosphene.client.retries import TIMEOUT_LIMIT_S
from phosphene.client.transport import DEFAULT_ADDRESS
from phosphene.errors import SettingError

__all__ = [
    "address",
    "count",
    "counting_neuron",
    "neuron_id",
    "page",
    "part_of_name",
    "parts",
    "seconds",
    "sha256",
    "share",
    "text",
    "url",
    "words",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UINT32_LIMIT = 2**32 - 1
_WORDS_LIMIT = 1024
_NAME_LIMIT = 256


def count(limit: int) -> Callable[[str], int]:
    """Return the type of a whole number from 1 to `limit`."""

    def parse(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= limit:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to {limit}")
        return int(value)

    return parse


def neuron_id(value: str) -> int:
    """A neuron's number."""
    if not value.isascii() or not value.isdigit() or int(value) > _UINT32_LIMIT:
        raise argparse.ArgumentTypeError(f'{value!r} is not a neuron\'s number; to find neurons by words, use "search"')
    return int(value)


def counting_neuron(value: str) -> int:
    """A neuron's number among others, behind which an image would be taken for one."""
    try:
        return neuron_id(value)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a neuron's number; type numbers with spaces between them, and IMAGE before --only"
        ) from None


def seconds(value: str) -> float:
    """A time that can be waited."""
    wait_s = _number(value)
    if not 0 < wait_s <= TIMEOUT_LIMIT_S:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a number of seconds above 0, and {TIMEOUT_LIMIT_S} (a day) at most"
        )
    return wait_s


def text(value: str) -> str:
    """A text that a message can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{os.fsencode(value)!r} is not UTF-8; type it as UTF-8") from None
    return value


def words(value: str) -> str:
    """Words to search by."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} holds no words")
    return _limited(value, _WORDS_LIMIT)


def part_of_name(value: str) -> str:
    """What a name contains."""
    return _limited(value, _NAME_LIMIT)


def address(value: str) -> str:
    """Where a service is, as gRPC names it."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is no address; say HOST:PORT, such as {DEFAULT_ADDRESS}")
    return text(value)


def url(value: str) -> str:
    """The address of a page."""
    try:
        parts = urlsplit(text(value))
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise argparse.ArgumentTypeError(f"{value!r} is no address of a page; say http://HOST:PORT/metrics")
    return value


def share(value: str) -> float:
    """A number in [0, 1]."""
    found = _number(value)
    if not 0.0 <= found <= 1.0:
        raise argparse.ArgumentTypeError(f"{value!r} is not in [0, 1]")
    return found


def sha256(value: str) -> str:
    """The digest of an image."""
    if not _SHA256.fullmatch(value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a SHA-256 digest, 64 lowercase hexadecimal digits")
    return value


def parts(value: str) -> Sequence[str]:
    """Parts of an explanation, with commas between them."""
    names, known = value.split(","), get_args(ExplainPartName)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown part {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return names


def page(value: str) -> Path:
    """Where a page may be written."""
    path = Path(value)
    try:
        check_page_path(path)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def _limited(value: str, limit: int) -> str:
    if len(value) > limit:
        raise argparse.ArgumentTypeError(f"it has {len(value)} characters; the limit is {limit}")
    return text(value)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
