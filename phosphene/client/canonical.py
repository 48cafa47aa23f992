"""Answers as canonical protobuf JSON; knows nothing of where they come from or who reads them."""

from __future__ import annotations

import json
import re
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

__all__ = ["json_value", "to_json"]

# JSON lets them stand as they are; a terminal takes some of them for orders.
_CONTROLS = re.compile("[\x7f-\x9f]")


def to_json(message: Message, *, include_thumbnails: bool = False) -> str:
    """Return a message as indented JSON text that `google.protobuf.json_format.Parse` reads back.

    Zeros and empty lists are written out, so that neuron 0 has its id; fields that are "not known here" are left out.
    Control characters are written as escapes.

    Args:
        message: an answer of `phosphene.v1`, or any part of one.
        include_thumbnails: whether to keep thumbnails, as base64; they are most of an answer's length.
    """
    text = json.dumps(json_value(message, include_thumbnails=include_thumbnails), indent=2, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def json_value(message: Message, *, include_thumbnails: bool = False) -> Any:
    """Return what `to_json` writes, as dictionaries, lists, texts and numbers."""
    value = MessageToDict(message, always_print_fields_with_no_presence=True)
    return value if include_thumbnails else _without_thumbnails(value)


def _without_thumbnails(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_thumbnails(each) for key, each in value.items() if key != "thumbnail"}
    if isinstance(value, list):
        return [_without_thumbnails(each) for each in value]
    return value
