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

__all__ = ["SHARDS_FOLDER", "IndexConfig", "Plan", "ShardRows", "plan_shards"]

SHARDS_FOLDER = "shards"
"""Where in an index its shards lie."""
LAYOUT = 2
"""Raised when the same inputs and configuration give another index."""

_BOUNDS = {
    "shard_image_count": (1, 1 << 16),
    "batch_images": (1, 4096),
    "thread_count": (1, 1024),
    "top_count": (1, 128),
    "spread_count": (1, 4096),
    "thumbnail_px": (16, 1024),
    "sketch_seed": (0, 2**63),
    "sketch_from_images": (0, 2**40),
    "ivf_from_images": (1, 2**40),
}


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What the caller may choose; every field is part of `plan_id`."""

    shard_image_count: int = 65_536
    """Corpus rows in a shard, the unit of work that a killed job keeps; a row within a shard has 16 bits."""
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
    sketch_from_images: int = 4_000_000
    """From this many rows on, similar images are proposed by the sketch; below, the search is exact."""
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


def plan_shards(row_count: int, shard_image_count: int) -> tuple[ShardRows, ...]:
    """Cut so many rows into shards, all but the last of equal size."""
    starts = range(0, row_count, shard_image_count)
    return tuple(
        ShardRows(number=number, start=start, stop=min(start + shard_image_count, row_count))
        for number, start in enumerate(starts)
    )


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
        return plan_shards(self.row_count, self.config.shard_image_count)

    def to_config(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "layout": LAYOUT,
            "corpus_digest": self.corpus_digest,
            "row_count": self.row_count,
            "bundle_id": self.bundle_id,
            "code_id": self.code_id,
        } | asdict(self.config)
