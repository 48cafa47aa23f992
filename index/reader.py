"""The only door to an index for others: opens it, checks it, and answers with the values of `index.values`.

Everything large is memory-mapped and shared by threads; nothing here writes. Knows nothing of gRPC, of images' bytes or
of the encoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from index.directions import DirectionSearch
from index.exemplars import ExemplarStore
from index.expression import parse_expression
from index.expression_evaluation import ExpressionEvaluation
from index.image_table import ImageTable
from index.neighbours import Neighbours
from index.neuron_table import NeuronTable
from index.plan import plan_shards
from index.posting_values import histogram
from index.postings import count_below
from index.shards import open_shards
from index.similar import SimilarImages, search_shards
from index.statistics import QUANTILE_PROBABILITIES
from index.summary import Summary, read_summary
from index.text_search import Embeddings, TextSearch
from index.thumbnails import ThumbnailStore
from index.values import Exemplar, ExemplarKind, ImageRow, NeuronOrder, NeuronRow, SimilarImage
from phosphene.codes import ImageCode
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, NotFound, SettingError, Unanswerable
from phosphene.manifest import Manifest, open_artefact

__all__ = ["IndexReader", "open_index"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def open_index(path: str | Path, *, code_id: str | None = None) -> IndexReader:
    """Open an index, every digest checked before anything is parsed.

    Args:
        path: the index's folder.
        code_id: what the caller's bundle says decides its codes; None accepts any index.

    Returns:
        A reader; use it as a context manager, or close it.

    Raises:
        ArtefactMissing: there is no index, or a file of it is gone.
        ArtefactDamaged: a file differs from the manifest.
        ArtefactMismatch: it is no index, or was built with another `code_id`.
        SchemaUnknown: another version wrote it.
    """
    folder = Path(path)
    manifest = open_artefact(folder, kind="index")
    built_with = str(manifest.config["plan"]["code_id"])
    if code_id is not None and built_with != code_id:
        raise ArtefactMismatch(
            f"index {folder.name!r} was built with code_id {built_with}; the bundle has {code_id}: their neurons are "
            f"not the same. Build one for this bundle: python -m index build CORPUS --bundle BUNDLE --out {folder}-new"
        )
    return IndexReader(folder, manifest)


class IndexReader:
    """An open index. Safe to use from several threads until it is closed."""

    summary: Summary
    """Figures over the whole index."""
    similarity_is_exact: bool
    """Whether `similar_images` equals brute force; else it finds the share `summary.similar_recall` of that."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Map the files; `open_index` has checked them.

        Raises:
            ArtefactDamaged: the files do not fit together.
        """
        self._manifest = manifest
        self.summary = read_summary(folder)
        plan = manifest.config["plan"]
        self._shards = open_shards(folder, plan_shards(int(plan["row_count"]), int(plan["shard_image_count"])))
        self._images = ImageTable(folder, self._shards)
        self._neurons = NeuronTable(folder)
        self._exemplars = ExemplarStore(folder)
        self._thumbnails = ThumbnailStore(self._shards)
        self._directions = DirectionSearch(folder, self._neurons.neuron_count)
        self.similarity_is_exact = int(plan["row_count"]) < int(plan["sketch_from_images"])
        self._similar = SimilarImages(
            folder,
            self._shards,
            left_out_neuron_ids=self.summary.left_out_neuron_ids,
            sketch_seed=None if self.similarity_is_exact else int(plan["sketch_seed"]),
            recall=self.summary.similar_recall,
        )
        self._search_shards = search_shards(self._shards)
        self._expressions = ExpressionEvaluation(
            self._search_shards,
            maxima=self._neurons.maximum,
            excluded_rows=np.flatnonzero(~self._images.readable),
        )
        self._neighbours = Neighbours(folder)
        self._text = (
            TextSearch(folder, Embeddings(self._shards), self._neurons.firing_count > 0, self._images.readable)
            if manifest.config["has_text"]
            else None
        )
        rows = {self.summary.row_count, self._images.row_count, self._shards.row_count}
        neurons = {self.summary.neuron_count, self._neurons.neuron_count, self._shards.neuron_count}
        if len(rows) != 1 or len(neurons) != 1:
            raise ArtefactDamaged(
                f"the files of index {folder.name!r} name {sorted(rows)} rows and {sorted(neurons)} neurons: "
                "build it again"
            )

    def __enter__(self) -> IndexReader:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    def close(self) -> None:
        """Let go of the files and of the FAISS indexes; the reader answers nothing after that."""
        for name in ("_images", "_neurons", "_codes", "_postings", "_exemplars", "_thumbnails", "_directions"):
            self.__dict__.pop(name, None)
        self.__dict__.pop("_similar", None)
        self.__dict__.pop("_text", None)

    @property
    def id(self) -> str:
        """Digest of the contents."""
        return self._manifest.id

    @property
    def plan_id(self) -> str:
        """Digest of what the index was built from, and how."""
        return str(self._manifest.config["plan_id"])

    @property
    def code_id(self) -> str:
        """What decides the codes of the bundle it was built with."""
        return str(self._manifest.config["plan"]["code_id"])

    @property
    def bundle_id(self) -> str:
        """Id of the bundle it was built with."""
        return self._manifest.inputs["bundle"]

    @property
    def created_by(self) -> str:
        """Program and version that built it."""
        return self._manifest.created_by

    @property
    def config(self) -> dict[str, Any]:
        """The plan, as JSON."""
        config: dict[str, Any] = self._manifest.config["plan"]
        return config

    @property
    def row_count(self) -> int:
        """Rows of the corpus, quarantined ones included; a row is smaller than this."""
        return self.summary.row_count

    @property
    def image_count(self) -> int:
        """Images that were indexed: rows that are not quarantined."""
        return self.summary.image_count

    @property
    def quarantined_count(self) -> int:
        """Rows that could not be used."""
        return self.summary.quarantined_count

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return self.summary.neuron_count

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Probabilities of `NeuronRow.quantiles`, ascending."""
        return QUANTILE_PROBABILITIES

    @property
    def similar_recall(self) -> float:
        """Share of the nearest images that `similar_images` finds, measured when the index was built; 1 if exact."""
        return self.summary.similar_recall

    @property
    def left_out_neuron_ids(self) -> tuple[int, ...]:
        """Dense neurons, which do not count in `similar_images`, ascending."""
        return self.summary.left_out_neuron_ids

    @property
    def has_labels(self) -> bool:
        """Whether an image has a label."""
        return self.summary.has_labels

    @property
    def has_text(self) -> bool:
        """Whether neurons and images can be found by a text vector."""
        return self._text is not None

    @property
    def firing_counts(self) -> Int64[np.ndarray, " neurons"]:
        """Images on which each neuron fires."""
        return self._neurons.firing_count

    def neuron(self, neuron_id: int) -> NeuronRow:
        """Return a neuron's figures and names.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._neurons.neuron(neuron_id)

    def list_neurons(
        self,
        order: NeuronOrder = NeuronOrder.NEURON_ID,
        *,
        min_density: float | None = None,
        max_density: float | None = None,
        name_contains: str = "",
        alive_only: bool = False,
    ) -> list[int]:
        """Return the ids of all neurons that pass the filters, in order; see `NeuronTable.in_order`."""
        return self._neurons.in_order(
            order,
            min_density=min_density,
            max_density=max_density,
            name_contains=name_contains,
            alive_only=alive_only,
        )

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> list[Exemplar]:
        """Return up to `count` exemplars, strongest first; each image once; none for a dead neuron.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._exemplars.exemplars(neuron_id, kind, count)

    def images_by_neuron(self, neuron_id: int, count: int) -> list[Exemplar]:
        """Return the images that excite a neuron most: its top exemplars."""
        return self.exemplars(neuron_id, ExemplarKind.TOP, count)

    def quantile(self, neuron_id: int, value: float) -> float:
        """Return the share of the neuron's firing images with a smaller activation, in [0, 1]; exact.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        below, firing = count_below([(shard.postings, shard.codes) for shard in self._shards], neuron_id, value)
        return below / firing if firing else 0.0

    def image(self, row: int) -> ImageRow:
        """Return a row of the corpus.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._images.image(row)

    def row_of(self, sha256: str) -> int | None:
        """Return the row of an indexed image by the digest of its bytes, in hexadecimal; None where there is none."""
        digest = sha256.lower()
        return self._images.row_of(digest) if _DIGEST.fullmatch(digest) else None

    def thumbnail(self, row: int) -> bytes:
        """Return a row's small JPEG; empty for a quarantined row.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._thumbnails.thumbnail(row)

    def code(self, row: int) -> ImageCode:
        """Return a row's stored code; empty for a quarantined row.

        Raises:
            NotFound: no such row.
        """
        self._check_row(row)
        return self._shards.code(row)

    def fvu(self, row: int) -> float:
        """Return the share of a row's residual variance that its code does not explain.

        Raises:
            NotFound: no such row, or a quarantined one.
        """
        self._check_row(row)
        fvu = self._images.fvu(row)
        if fvu is None:
            raise NotFound(f"row {row} is quarantined: {self._images.image(row).quarantine_reason}")
        return fvu

    def similar_images(self, code: ImageCode, count: int, *, exclude_row: int | None = None) -> list[SimilarImage]:
        """Return up to `count` images by descending cosine of codes; those that share no neuron never.

        The neurons of `summary.left_out_neuron_ids` do not count.

        Args:
            code: of any image, live or stored.
            count: at least 1.
            exclude_row: a row to leave out: the query's own.
        """
        return self._similar.nearest(code, count, exclude_row=exclude_row)

    def images_by_expression(self, expression: str, count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, score) of the images that fire as asked, best first; see `index.expression`.

        Raises:
            InputError: the expression is none.
            NotFound: it names an unknown neuron.
        """
        parsed = parse_expression(expression, neuron_count=self.neuron_count)
        rows, scores = self._expressions.best(parsed, count)
        return [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]

    def count_by_expression(self, expression: str) -> int:
        """Return how many images fire as asked. Errors as `images_by_expression`."""
        return self._expressions.count(parse_expression(expression, neuron_count=self.neuron_count))

    def activation_histogram(self, neuron_id: int, edges: Float64[np.ndarray, " edges"]) -> Int64[np.ndarray, " bins"]:
        """Count the images on which a neuron fires, by activation; see `index.posting_values.histogram`.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return histogram(self._search_shards, neuron_id, edges)

    def co_active_neurons(self, neuron_id: int, count: int) -> list[tuple[int, float, int]]:
        """Return up to `count` (other neuron id, normalised PMI, images on which both fire), best first.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._neighbours.of(neuron_id)[:count]

    def nearest_neurons(self, vector: Float32[np.ndarray, " width"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine of its direction with the vector), best first.

        Args:
            vector: in the space of the residuals; for an image, its residual less the decoder bias.
            count: at least 1.

        Raises:
            SettingError: the vector has another width.
        """
        if len(vector) != self._directions.width:
            raise SettingError(f"the vector has {len(vector)} numbers; directions have {self._directions.width}")
        return self._directions.nearest(vector, count)

    def neurons_like(self, neuron_id: int, count: int) -> list[tuple[int, float]]:
        """Return up to `count` other neurons by the cosine of directions, best first.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._directions.like(neuron_id, count)

    def neurons_by_text(self, text_vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` live (neuron id, score) by a vector of the text tower, best first.

        The score is the cosine of the centred text vector with the neuron's centred exemplar embedding.

        Raises:
            Unanswerable: the index holds no embeddings.
            SettingError: the vector has another width.
        """
        return self._text_search(text_vector).neurons(text_vector, count)

    def images_by_text(self, vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (row, cosine of its embedding with the vector), best first.

        Raises:
            Unanswerable: the index holds no embeddings.
            SettingError: the vector has another width.
        """
        return self._text_search(vector).images(vector, count)

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
