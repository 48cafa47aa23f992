"""What an index job will do, decided before it starts: the same plan gives the same index, however often it is killed.

`plan_id` digests inputs and configuration; it does not depend on the machine, the device or the number of decoding
threads. The plan fixes the rows of each shard and batch, and the thread count, so that on one machine with pinned
versions the contents are reproducible too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from phosphene.errors import CorpusError, SettingError
from phosphene.manifest import digest_of

__all__ = ["IndexConfig", "Plan", "ShardRows"]

LAYOUT = 1
"""Raised when the same inputs and configuration give another index."""

_BOUNDS = {
    "shard_images": (1, 1 << 20),
    "batch_images": (1, 4096),
    "thread_count": (1, 1024),
    "top_count": (1, 4096),
    "spread_count": (1, 4096),
    "thumbnail_px": (16, 1024),
    "sketch_seed": (0, 2**63),
    "ivf_from_images": (1, 2**31),
}


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What the caller may choose; every field is part of `plan_id`."""

    shard_images: int = 1024
    """Corpus rows in a shard, the unit of work that a killed job keeps."""
    batch_images: int = 32
    """Corpus rows that go through the encoder together; a batch never crosses shards."""
    thread_count: int = 2
    """CPU threads of the encoder; a constant, because results may differ in the last bit from one count to another."""
    top_count: int = 128
    """Top exemplars kept per neuron."""
    spread_count: int = 32
    """Spread exemplars kept per neuron."""
    thumbnail_px: int = 128
    """Longer side of a thumbnail, in pixels."""
    sketch_seed: int = 0
    """Seed of the sign vectors of the sketch."""
    ivf_from_images: int = 200_000
    """From this many rows on, the sketch index is cut into inverted lists."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SettingError: one or more fields are out of bounds; all of them in one error.
        """
        wrong = [
            f"{name} is {getattr(self, name)}; the limits are {least} to {most}"
            for name, (least, most) in _BOUNDS.items()
            if not least <= getattr(self, name) <= most
        ]
        if wrong:
            raise SettingError("; ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """One shard of the work."""

    number: int
    """0-based."""
    start: int
    """First corpus row."""
    stop: int
    """Row after the last."""

    @property
    def name(self) -> str:
        """Folder of the shard."""
        return f"{self.number:05d}"

    def batches(self, batch_images: int) -> list[range]:
        """Return the rows of each batch, in order."""
        return [
            range(start, min(start + batch_images, self.stop)) for start in range(self.start, self.stop, batch_images)
        ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An index job: its inputs and its configuration."""

    corpus_digest: str
    """Digest of the corpus: its rows and the bytes of its images."""
    row_count: int
    """Rows of the corpus."""
    bundle_id: str
    """Id of the bundle."""
    code_id: str
    """What decides codes; the service refuses an index of another `code_id`."""
    config: IndexConfig
    """What the caller chose."""

    def __post_init__(self) -> None:
        """Check that there is something to do.

        Raises:
            CorpusError: the corpus is empty.
        """
        if self.row_count < 1:
            raise CorpusError("the corpus has 0 images; an index needs at least 1: check the folder or list you named")

    @property
    def id(self) -> str:
        """`plan_id`: the digest of inputs and configuration."""
        return digest_of(self.to_config())

    @property
    def inputs(self) -> dict[str, str]:
        """Ids of what the index is made from, by role."""
        return {"bundle": self.bundle_id, "corpus": self.corpus_digest}

    @property
    def shards(self) -> tuple[ShardRows, ...]:
        """The work, in order."""
        size = self.config.shard_images
        starts = range(0, self.row_count, size)
        return tuple(
            ShardRows(number=number, start=start, stop=min(start + size, self.row_count))
            for number, start in enumerate(starts)
        )

    def to_config(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "layout": LAYOUT,
            "corpus_digest": self.corpus_digest,
            "row_count": self.row_count,
            "bundle_id": self.bundle_id,
            "code_id": self.code_id,
        } | asdict(self.config)
