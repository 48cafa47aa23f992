"""An index that is open: its files mapped, its searches ready, and what answers may show of it; answers nothing itself.

Everything large is memory-mapped and shared by threads; nothing here writes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from index.directions import DirectionSearch
from index.exemplars import ExemplarStore
from index.expression_evaluation import ExpressionEvaluation
from index.facts import IndexFacts
from index.flags import Flags
from index.hidden_activations import HiddenActivations, visible_maxima
from index.image_table import ImageTable
from index.image_vectors import EMBEDDINGS_FILE, RESIDUALS_FILE, ImageVectors
from index.names import NeuronNames
from index.neighbours import Neighbours
from index.neuron_table import NeuronTable
from index.patch_maps import PatchMaps
from index.plan import stored_shards
from index.quarantine import unlisted_folders
from index.shards import open_shards
from index.similar import SimilarImages, search_shards
from index.summary import read_summary
from index.text_search import TextSearch
from index.thumbnails import ThumbnailStore
from index.tombstones import Tombstones
from index.vector_search import EMBEDDINGS_INDEX, RESIDUALS_INDEX, VectorSearch
from index.visibility import Hidden, Visibility
from phosphene.errors import ArtefactDamaged, NotFound, SettingError, Unanswerable
from phosphene.manifest import Manifest

if TYPE_CHECKING:
    # Only who asks Qdrant loads it.
    from index.qdrant.search import QdrantSearch

__all__ = ["OpenedIndex"]


class OpenedIndex(IndexFacts):
    """The parts of an open index."""

    unlisted_folder_count: int
    """Folders of the corpus that could not be listed: quarantined rows that are no images."""
    _qdrant: QdrantSearch | None = None
    """Finds similar codes, and what expressions ask for; None: the index itself does."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        tombstones: Tombstones | None = None,
        flags: Flags | None = None,
        names: NeuronNames | None = None,
        *,
        device: str = "cpu",
    ) -> None:
        """Map the files; `open_index` has checked them.

        Raises:
            ArtefactDamaged: the files do not fit together.
            SettingError: the device cannot hold the index.
        """
        super().__init__(manifest, read_summary(folder), tombstones, flags, names)
        self.unlisted_folder_count = len(unlisted_folders(folder))
        self._lifetime = ExitStack()
        plan = manifest.config["plan"]
        self._shards = open_shards(folder, stored_shards(plan))
        self._images = ImageTable(folder, self._shards)
        self._neurons = NeuronTable(folder, None if names is None else names.column)
        self._exemplars = ExemplarStore(folder)
        self._thumbnails = ThumbnailStore(self._shards)
        self._directions = DirectionSearch(folder, self._neurons.neuron_count)
        self._similar = SimilarImages(
            folder,
            self._shards,
            left_out_neuron_ids=self.summary.left_out_neuron_ids,
            sketch_seed=int(plan["sketch_seed"]),
            approximation=self.summary.approximations.get("code"),
            device=device,
        )
        self._residuals = self._vector_search(folder, RESIDUALS_INDEX, RESIDUALS_FILE, "residual", device)
        self._search_shards = search_shards(self._shards)
        self._neighbours = Neighbours(folder)
        self._text: TextSearch | None = None
        self._embeddings: VectorSearch | None = None
        if manifest.config["has_text"]:
            self._text = TextSearch(folder, self._neurons.firing_count > 0)
            self._embeddings = self._vector_search(folder, EMBEDDINGS_INDEX, EMBEDDINGS_FILE, "text", device)
        grid = manifest.config["patch_grid"]
        self._maps = None if grid is None else PatchMaps(self._shards, grid=(int(grid[0]), int(grid[1])))
        rows = {self.summary.row_count, self._images.row_count, self._shards.row_count}
        neurons = {self.summary.neuron_count, self._neurons.neuron_count, self._shards.neuron_count}
        if len(rows) != 1 or len(neurons) != 1:
            raise ArtefactDamaged(
                f"the files of index {folder.name!r} name {sorted(rows)} rows and {sorted(neurons)} neurons: "
                "build it again"
            )
        down = self._images.rows_with(() if tombstones is None else tombstones.reasons.keys())
        hidden = Hidden(rows=down, why="was taken down")
        self._show(Visibility(readable=self._images.readable, hidden=[hidden]))
        self._sensitive_rows = self._images.rows_with(() if flags is None else set(flags.image_digests))

    def _show(self, visibility: Visibility) -> None:
        """Answer with what `visibility` shows from now on."""
        self._visibility, hidden_rows = visibility, visibility.hidden_rows
        self._hidden = HiddenActivations(self._shards, hidden_rows)
        self._expressions = ExpressionEvaluation(
            self._search_shards,
            maxima=visible_maxima(self._search_shards, self._neurons.maximum, self._hidden, hidden_rows),
            excluded_rows=visibility.excluded_rows,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    def close(self) -> None:
        """Let go of the files, the FAISS indexes and Qdrant; the reader answers nothing after that."""
        self._lifetime.close()
        # Its ids may still be asked for: by who served it.
        kept = ("_manifest", "_tombstones", "_flags", "_lifetime")
        for name in [name for name in vars(self) if name.startswith("_") and name not in kept]:
            delattr(self, name)

    @property
    def has_text(self) -> bool:
        """Whether neurons and images can be found by a text vector."""
        return self._text is not None

    def _vector_search(self, folder: Path, index: str, stored: str, name: str, device: str) -> VectorSearch:
        return VectorSearch(
            folder / index,
            ImageVectors(self._shards, stored),
            approximation=self.summary.approximations.get(name),
            device=device,
        )

    def _text_search(self, vector: Float32[np.ndarray, " embedding"]) -> TextSearch:
        if self._text is None:
            raise Unanswerable(
                "the index holds no embeddings, because its encoder has no text tower; use a CLIP or SigLIP bundle",
                subject="corpus",
            )
        if len(vector) != self._text.width:
            raise SettingError(f"the text vector has {len(vector)} numbers; embeddings have {self._text.width}")
        return self._text

    def _check_neuron(self, neuron_id: int) -> None:
        if not 0 <= neuron_id < self.neuron_count:
            raise NotFound(f"neuron {neuron_id} does not exist; neurons are 0 to {self.neuron_count - 1}")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.row_count:
            raise NotFound(f"row {row} does not exist; rows are 0 to {self.row_count - 1}")
        self._visibility.check(row)
