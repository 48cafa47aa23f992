"""Where in an encoder residuals are read: a block and some of its tokens.

A value, the same for every kind of model; which sites an encoder really has, `encoder.py` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from phosphene.errors import SchemaUnknown, SiteError

__all__ = ["Site", "Tokens"]


class Tokens(StrEnum):
    """Which tokens of a block a site reads."""

    CLS = "cls"
    """The class token: one per image."""
    PATCHES = "patches"
    """The patch tokens in row order; without class, register and distillation tokens."""
    ALL = "all"
    """Every token, in the model's order."""
    MEAN = "mean"
    """The mean over the patch tokens: one per image."""
    EMBEDDING = "embedding"
    """The projected embedding of the whole encoder, not normalised: one per image, and of no block."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where in an encoder residuals are read."""

    block: int | None
    """0-based transformer block whose output is read (`hidden_states[block + 1]`); None for the embedding alone."""
    tokens: Tokens
    """Which of the block's tokens."""
    prompt: str | None = None
    """Text that a decoder is prompted with; vision encoders take none."""

    def __post_init__(self) -> None:
        if (self.block is None) != (self.tokens is Tokens.EMBEDDING):
            raise SiteError(
                f"the site names block {self.block} and tokens {self.tokens}; the embedding has no block, "
                "every other choice of tokens has one",
                field="site.block",
            )

    def __str__(self) -> str:
        where = self.tokens.value if self.block is None else f"block {self.block}, {self.tokens.value}"
        return where if self.prompt is None else f"{where}, prompt {self.prompt!r}"

    def to_config(self) -> dict[str, Any]:
        """Give the site as JSON values."""
        return {"block": self.block, "tokens": self.tokens.value, "prompt": self.prompt}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Site:
        """Read what `to_config` wrote.

        Raises:
            SchemaUnknown: A key or a kind of tokens that this version does not know.
        """
        unknown = sorted(config.keys() ^ {"block", "tokens", "prompt"})
        if unknown or config["tokens"] not in set(Tokens):
            raise SchemaUnknown(f"the site {config} has unknown or missing {', '.join(unknown) or 'tokens'}")
        return cls(block=config["block"], tokens=Tokens(config["tokens"]), prompt=config["prompt"])
