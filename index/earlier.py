"""The index that another one grows from: what an append takes over of it; knows nothing of the new images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.plan import SHARDS_FOLDER, IndexConfig, ShardRows, config_of, stored_shards
from index.progress import Progress
from index.vocabulary import read_words
from index.workspace import Workspace
from phosphene.bundle import Bundle
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import Manifest, open_artefact

__all__ = ["EarlierIndex", "open_earlier", "take_over"]


@dataclass(frozen=True, kw_only=True)
class EarlierIndex:
    """A finished index, every digest of it checked."""

    folder: Path
    """Where it lies."""
    manifest: Manifest
    """Its manifest."""

    @property
    def config(self) -> IndexConfig:
        """What its builder chose: the same for all that is appended."""
        return config_of(self._plan)

    @property
    def segments(self) -> tuple[int, ...]:
        """Rows of each of its segments."""
        return tuple(int(count) for count in self._plan["segments"])

    @property
    def row_count(self) -> int:
        """Its rows."""
        return sum(self.segments)

    @property
    def shards(self) -> tuple[ShardRows, ...]:
        """Its shards, in order."""
        return stored_shards(self._plan)

    @property
    def has_text(self) -> bool:
        """Whether its shards hold embeddings."""
        return bool(self.manifest.config["has_text"])

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that it was given to name neurons by the text tower; none where those of its bundle served."""
        found = read_words(self.folder) if self._plan["vocabulary_digest"] else None
        return () if found is None else found[0]

    def shard_folder(self, shard: ShardRows) -> Path:
        """Return where a shard lies."""
        return self.folder / SHARDS_FOLDER / shard.name

    def check_text(self, with_text: bool) -> None:
        """Refuse new shards that hold embeddings where the earlier ones do not, or the other way round.

        Raises:
            ArtefactMismatch: they differ.
        """
        if with_text != self.has_text:
            raise ArtefactMismatch(
                f"index {self.folder.name!r} has {'' if self.has_text else 'no '}embeddings, and this bundle gives "
                f"{'them' if with_text else 'none'}: append with the bundle that it was built with"
            )

    @property
    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = self.manifest.config["plan"]
        return plan


def open_earlier(folder: Path, bundle: Bundle) -> EarlierIndex:
    """Open an index to append to.

    Raises:
        ArtefactError: it is missing or damaged, or was built with another `code_id`.
    """
    manifest = open_artefact(folder, kind="index")
    earlier = EarlierIndex(folder=folder, manifest=manifest)
    _ = earlier.shards  # Refuses what another version wrote.
    built_with = manifest.config["plan"]["code_id"]
    if built_with != bundle.code_id:
        raise ArtefactMismatch(
            f"index {folder.name!r} was built with code_id {built_with}; bundle {bundle.path.name!r} has "
            f"{bundle.code_id}: their neurons are not the same, so that neither index can hold both. Append with the "
            "bundle that it was built with"
        )
    return earlier


def take_over(earlier: EarlierIndex, workspace: Workspace, progress: Progress) -> None:
    """Take its shards into a job's workspace, those that are not there yet."""
    progress.begin("take over", len(earlier.shards), 0, "shards")
    for shard in earlier.shards:
        workspace.adopt_shard(shard, earlier.shard_folder(shard))
        progress.advance(1)
