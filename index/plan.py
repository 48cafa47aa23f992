"""What an index job will do, decided before it starts: the same plan gives the same index, however often it is killed.

`plan_id` digests inputs and configuration; it does not depend on the machine, the device or the number of decoding
threads. The plan fixes the rows of each shard and batch, and the thread count, so that on one machine with pinned
versions the contents are reproducible too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from phosphene.errors import CorpusError, SchemaUnknown, SettingError
from phosphene.manifest import digest_of

__all__ = [
    "SHARDS_FOLDER",
    "IndexConfig",
    "Plan",
    "Quantiser",
    "ShardRows",
    "config_of",
    "plan_shards",
    "stored_shards",
]

SHARDS_FOLDER = "shards"
"""Where in an index its shards lie."""
LAYOUT = 3
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
_OPTIONS = {
    "shard_image_count": "--shard-images",
    "batch_images": "--batch",
    "thread_count": "--threads",
    "top_count": "--top",
    "spread_count": "--spread",
    "sketch_from_images": "--sketch-from",
    "ivf_from_images": "--ivf-from",
}


class Quantiser(StrEnum):
    """What inverted lists hold of a vector."""

    FAST_SCAN = "fast-scan"
    """4 bits for every 4 numbers, in blocks that a CPU scans in its registers."""
    EIGHT_BIT = "eight-bit"
    """8 bits for every 8 numbers: slower on a CPU, and what a GPU can search."""


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
    patch_maps: bool = True
    """Whether maps of where neurons fire are kept, for sites with patches."""
    sketch_seed: int = 0
    """Seed of the sign vectors of the sketch."""
    sketch_from_images: int = 4_000_000
    """From this many rows on, similar images are proposed by the sketch; below, the search is exact."""
    ivf_from_images: int = 200_000
    """From this many rows on, FAISS indexes over images are cut into inverted lists."""
    quantiser: Quantiser = Quantiser.FAST_SCAN
    """What those lists hold."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SettingError: one or more fields are out of bounds; all of them in one error.
        """
        wrong = [
            f"{_OPTIONS.get(name, name)} is {getattr(self, name)}; the limits are {least} to {most}"
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


def plan_shards(row_count: int, shard_image_count: int, *, earlier: Sequence[int] = ()) -> tuple[ShardRows, ...]:
    """Cut rows into shards, all but the last of a segment of equal size.

    Args:
        row_count: rows in all.
        shard_image_count: rows of a shard, at most.
        earlier: rows of each segment but the last; a shard never crosses segments.
    """
    bounds: list[tuple[int, int]] = []
    first = 0
    for count in (*earlier, row_count - sum(earlier)):
        starts = range(first, first + count, shard_image_count)
        bounds += [(start, min(start + shard_image_count, first + count)) for start in starts]
        first += count
    return tuple(ShardRows(number=number, start=start, stop=stop) for number, (start, stop) in enumerate(bounds))


def stored_shards(plan: Mapping[str, Any]) -> tuple[ShardRows, ...]:
    """Return the shards of an index by the plan in its manifest.

    Raises:
        SchemaUnknown: it has the plan of an earlier version.
    """
    if plan.get("layout") != LAYOUT:
        raise SchemaUnknown(
            f"the index has layout {plan.get('layout')}; this version reads {LAYOUT}: build it again "
            "into another folder"
        )
    segments = [int(count) for count in plan["segments"]]
    return plan_shards(int(plan["row_count"]), int(plan["shard_image_count"]), earlier=segments[:-1])


def config_of(plan: Mapping[str, Any]) -> IndexConfig:
    """Return what the caller of a finished job had chosen, by the plan in its manifest."""
    chosen = {each.name: plan[each.name] for each in fields(IndexConfig)}
    return IndexConfig(**chosen | {"quantiser": Quantiser(chosen["quantiser"])})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An index job: its inputs and its configuration."""

    corpus_digest: str
    """Digest of the corpus: its rows and the bytes of its images; of an append, of what is appended."""
    row_count: int
    """Rows of the index."""
    bundle_id: str
    """Id of the bundle."""
    code_id: str
    """What decides codes; the service refuses an index of another `code_id`."""
    config: IndexConfig
    """What the caller chose."""
    earlier: tuple[int, ...] = ()
    """Rows of each segment that is taken from another index; the others are the last segment."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """Ids of the artefacts, other than bundle and corpus, that rows come from, by role."""
    vocabulary_digest: str = ""
    """Digest of the words given to name neurons by the text tower; empty: those of the bundle, if any."""

    def __post_init__(self) -> None:
        """Check that there is something to do.

        Raises:
            CorpusError: the corpus is empty.
        """
        if self.row_count <= self.first_row:
            raise CorpusError("the corpus has 0 images; an index needs at least 1: check the folder or list you named")

    @property
    def id(self) -> str:
        """`plan_id`: the digest of inputs and configuration."""
        return digest_of(self.to_config())

    @property
    def inputs(self) -> dict[str, str]:
        """Ids of what the index is made from, by role."""
        return {"bundle": self.bundle_id, "corpus": self.corpus_digest} | dict(self.made_from)

    @property
    def first_row(self) -> int:
        """The first row that is not taken from another index."""
        return sum(self.earlier)

    @property
    def new_shards(self) -> tuple[ShardRows, ...]:
        """The shards that are not taken from another index."""
        return tuple(shard for shard in self.shards if shard.start >= self.first_row)

    @property
    def shards(self) -> tuple[ShardRows, ...]:
        """The work, in order."""
        return plan_shards(self.row_count, self.config.shard_image_count, earlier=self.earlier)

    def to_config(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "layout": LAYOUT,
            "corpus_digest": self.corpus_digest,
            "row_count": self.row_count,
            "segments": [*self.earlier, self.row_count - self.first_row],
            "made_from": dict(self.made_from),
            "bundle_id": self.bundle_id,
            "code_id": self.code_id,
            "vocabulary_digest": self.vocabulary_digest,
        } | asdict(self.config)

    @classmethod
    def from_config(cls, record: Mapping[str, Any]) -> Plan | None:
        """Read a plan back from JSON; None where another version wrote it."""
        try:
            config = config_of(record)
            inputs = {
                name: record[name]
                for name in (
                    "corpus_digest",
                    "row_count",
                    "bundle_id",
                    "code_id",
                    "made_from",
                    "vocabulary_digest",
                )
            }
            plan = cls(config=config, earlier=tuple(record["segments"][:-1]), **inputs)
        except (KeyError, TypeError, ValueError, SettingError):
            return None
        return plan if plan.to_config() == record else None
