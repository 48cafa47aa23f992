"""What an encoder is, in numbers: what a bundle's manifest says of it; loads no model and holds no path."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from phosphene.encoder_families import Family
from phosphene.errors import SchemaUnknown

__all__ = ["EncoderSpec"]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What an encoder is, in numbers; holds no path."""

    family: Family
    """How the model is built."""
    model: str
    """Hub id, or the name of the local folder."""
    revision: str | None
    """Hub commit; None for a local folder."""
    width: int
    """Length of a residual."""
    block_count: int
    """Transformer blocks."""
    prefix_token_count: int
    """Tokens before the patches: class, then register or distillation tokens; SigLIP has none."""
    has_cls: bool
    """Whether the first token is a class token."""
    grid: tuple[int, int]
    """Patch rows and columns."""
    embedding_width: int | None
    """Length of the embedding that text is compared with; None where there is none."""
    weights_sha256: str
    """Digest of configuration, preprocessor and weights (`encoder_source.weights_sha256`)."""

    @property
    def token_count(self) -> int:
        """Tokens of one image."""
        return self.prefix_token_count + self.grid[0] * self.grid[1]

    def to_config(self) -> dict[str, Any]:
        """Give the specification as JSON values."""
        return {**asdict(self), "family": self.family.value, "grid": list(self.grid)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EncoderSpec:
        """Read what `to_config` wrote.

        Raises:
            SchemaUnknown: A key or a family that this version does not know.
        """
        unknown = sorted(config.keys() ^ {field.name for field in fields(cls)})
        if unknown or config["family"] not in set(Family):
            raise SchemaUnknown(f"the encoder specification has unknown or missing {', '.join(unknown) or 'family'}")
        rows, columns = config["grid"]
        return cls(**{**config, "family": Family(config["family"]), "grid": (rows, columns)})
