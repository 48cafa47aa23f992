"""How activations are read off the encoder; knows nothing of encoders or files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from phosphene.errors import SettingError

_SHARD_TARGET_BYTES = 64 << 20


class Storage(StrEnum):
    """Number format of activations on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


@dataclass(frozen=True, kw_only=True)
class HarvestSettings:
    """How activations are read off the encoder."""

    batch_images: int = 32
    """Images per forward pass; fixed, because floating-point results depend on it."""
    tokens_per_image: int | None = None
    """Tokens kept of each image, drawn without replacement; None keeps all."""
    storage: Storage = Storage.FLOAT32
    """Number format on disk."""
    image_limit: int | None = None
    """Use only the first so many images of the corpus; None uses all."""
    seed: int = 0
    """Decides which tokens are kept."""

    def check(self) -> None:
        """Refuse values out of bounds.

        Raises:
            SettingError: naming the option, its value and the limit.
        """
        if not 1 <= self.batch_images <= 4096:
            raise SettingError(f"--images-per-batch is {self.batch_images}; it must be from 1 to 4096")
        if self.tokens_per_image is not None and self.tokens_per_image < 1:
            raise SettingError(f"--tokens-per-image is {self.tokens_per_image}; the least is 1")
        if self.image_limit is not None and self.image_limit < 1:
            raise SettingError(f"--limit is {self.image_limit}; the least is 1 image")

    def image_count(self, corpus_count: int) -> int:
        """Images used of a corpus of so many."""
        return corpus_count if self.image_limit is None else min(self.image_limit, corpus_count)

    def shard_images(self, token_count: int, width: int) -> int:
        """Images per shard: whole batches of about 64 MiB, between one batch and 32 of them."""
        image_bytes = token_count * width * (2 if self.storage is Storage.FLOAT16 else 4)
        batch_count = _SHARD_TARGET_BYTES // (image_bytes * self.batch_images)
        return self.batch_images * min(max(batch_count, 1), 32)
