"""Phosphene: which concepts light up inside a vision model when it looks at an image.

`import phosphene` is light: no torch, no grpc. The names below load their rooms when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phosphene.bundle import Bundle as Bundle
    from phosphene.pipeline import Pipeline as Pipeline
    from phosphene.pipeline import open_bundle as open_bundle

__version__ = "0.1.0"
__all__ = ["Bundle", "Pipeline", "__version__", "open_bundle"]

_ROOMS = {"Bundle": "phosphene.bundle", "Pipeline": "phosphene.pipeline", "open_bundle": "phosphene.pipeline"}


def __getattr__(name: str) -> Any:
    """Load a public name from its room (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'phosphene' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
