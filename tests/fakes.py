"""Stand-ins that implement the real interfaces: an engine without a model, an index without files.

A fake neuron is a colour: the engine's residual of a quadrant of an image is its mean red, green, blue and brightness,
and the SAE is the identity, so every figure of an answer can be worked out by hand.
"""

from __future__ import annotations

import io
import operator
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy

import numpy as np
import torch
from PIL import Image

from index.expression import And, Comparison, Expression, Not, Or, Term, named_neurons, parse_expression
from index.expression_evaluation import asked_to_fire
from index.values import (
    ALL_NEURONS,
    CodeMetric,
    Exemplar,
    ExemplarKind,
    ImageRow,
    NameSource,
    NeuronFilter,
    NeuronName,
    NeuronOrder,
    NeuronRow,
    SearchEngine,
    SimilarImage,
)
from phosphene.codes import CodeLimits, ImageCode, TokenCodes, image_codes
from phosphene.encoder import EncoderSpec, Family, Site, Tokens
from phosphene.engine import EngineBatch, EngineName, EngineRequest, EngineRow, Want
from phosphene.errors import NotFound, NumericError
from phosphene.fidelity import Fidelity
from phosphene.images import Preprocessing, image_sha256, prepare, thumbnail
from phosphene.preprocessing import ExactSize
from phosphene.selection import TopK
from service.catalogue import Entry
from service.generation import ModelFacts, ServedBundle, ServedCorpus
from service.observing.model_health import ModelHealth, index_reference
from service.operations import EncodeRoute, encode_operation, text_operation

NEURON_COUNT = 6
"""Red, green, blue, brightness, and two that never fire."""
DENSE_CLUSTER = (2, 3)
"""Neurons that are said to be in it."""
DECODER_BIAS = np.array([0.1, 0.1, 0.1, 0.1], np.float32)
SCORE_NAMES = ("dark", "light")
SIZE_PX = 8
_COLOURS = {"red": 0, "green": 1, "blue": 2, "bright": 3}

PREPROCESSING = Preprocessing(
    resize=ExactSize(height=SIZE_PX, width=SIZE_PX),
    resample="bilinear",
    crop=None,
    rescale_factor=1 / 255,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


def png(colour: tuple[int, int, int], *, width: int = 16, height: int = 16) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return stream.getvalue()


class FakeEngine:
    """An engine whose device can be held, and broken for chosen pixels."""

    name = EngineName.TORCH
    device_memory_bytes = 0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batch_sizes: list[int] = []
        self.wants: list[Want] = []
        self.is_poison: Callable[[np.ndarray], bool] = lambda pixels: False
        self.is_nan: Callable[[np.ndarray], bool] = lambda pixels: False
        self.on_stage: Callable[[str, float], None] = lambda stage, duration_s: None

    def run(self, pixels: np.ndarray, want: Want) -> EngineBatch:
        """Encode a batch once the gate is open."""
        self.batch_sizes.append(len(pixels))
        self.entered.release()
        assert self.gate.wait(30)
        if any(self.is_nan(image) for image in pixels):
            raise NumericError("encoder 'fake' gave NaN or infinity")
        if any(self.is_poison(image) for image in pixels):
            raise RuntimeError("secret path /etc/engine exploded")
        residuals = torch.from_numpy(np.stack([_residuals(image) for image in pixels]))
        codes = _token_codes(residuals)
        return EngineBatch(
            codes=image_codes(codes, limit=4),
            token_codes=codes if want.token_codes else None,
            fidelity=[_fidelity(image) for image in residuals] if want.fidelity else None,
            residuals=residuals.mean(dim=1).numpy() if want.residuals else None,
            scores=_scores(residuals) if want.scores else None,
        )

    def forget(self) -> None:
        """Count from here on."""
        self.batch_sizes.clear()
        self.wants.clear()
        while self.entered.acquire(blocking=False):
            pass

    def can(self, want: Want) -> bool:
        """Everything."""
        return True

    def cost(self, request: EngineRequest) -> float:
        """Two blocks, as the encoder has."""
        return 2.0

    def run_rows(self, pixels: np.ndarray, requests: Sequence[EngineRequest]) -> list[EngineRow]:
        """Run a batch for the union of what is wanted, and give each image its own."""
        wants = [request.want for request in requests]
        self.wants += wants
        union = Want(
            token_codes=any(want.token_codes for want in wants),
            fidelity=any(want.fidelity for want in wants),
            residuals=any(want.residuals for want in wants),
            scores=any(want.scores for want in wants),
        )
        batch = self.run(pixels, union)
        for stage in ("encode", "sae"):
            self.on_stage(stage, 0.001)
        return [_row(batch, position, want) for position, want in enumerate(wants)]

    def launch(self, pixels: np.ndarray, requests: Sequence[EngineRequest]) -> Callable[[], list[EngineRow]]:
        """All the work at once, as on a CPU."""
        rows = self.run_rows(pixels, requests)
        return lambda: rows

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The colour that each text names, as a unit vector; any colour for other words."""
        vectors = np.zeros((len(texts), 4), np.float32)
        for row, text in enumerate(texts):
            vectors[row, _COLOURS.get(text, len(text) % 4)] = 1
        return vectors


class FakeReader:
    """An index over a handful of images, everything worked out by brute force."""

    def __init__(
        self,
        images: dict[str, bytes],
        *,
        has_text: bool = True,
        code_id: str = "c" * 64,
        sensitive_neurons: Iterable[int] = (),
        sensitive_rows: Iterable[int] = (),
    ) -> None:
        self.id, self.plan_id, self.code_id = "1" * 64, "2" * 64, code_id
        self.tombstones_id, self.take_down_ids = "", frozenset()
        self.names_id = ""
        self.flags_id = "f" * 64 if sensitive_neurons or sensitive_rows else ""
        self.sensitive_neuron_ids, self.sensitive_rows = frozenset(sensitive_neurons), frozenset(sensitive_rows)
        self.hidden_rows: frozenset[int] = frozenset()
        self.neuron_count = NEURON_COUNT
        self.has_labels, self.has_text = True, has_text
        self.quantile_levels = (0.0, 1.0)
        self.similar_recall, self.left_out_neuron_ids = 1.0, ()
        self.code_engine = SearchEngine.INDEX
        self.residual_recall, self.text_recall = 0.9, 0.8
        self._data = list(images.values())
        self._labels = [name.split("-")[0] for name in images]
        self._uris = [f"{name}.png" for name in images]
        pixels = np.stack([prepare(data, PREPROCESSING).pixels for data in self._data])
        answer = FakeEngine().run(pixels, Want(residuals=True))
        self._codes, self._residuals = answer.codes, answer.residuals

    @property
    def image_count(self) -> int:
        """Images of the corpus."""
        return len(self._data)

    def neuron(self, neuron_id: int) -> NeuronRow:
        """Figures of a neuron."""
        values = [value for _, value in self._firing(neuron_id)]
        return NeuronRow(
            neuron_id=neuron_id,
            firing_count=len(values),
            density=len(values) / self.image_count,
            mean=float(np.mean(values)) if values else 0.0,
            std=float(np.std(values)) if values else 0.0,
            maximum=max(values, default=0.0),
            quantiles=(min(values), max(values)) if values else (),
            label_entropy=1.0 if values else None,
            names=self._names(neuron_id),
            monosemanticity=neuron_id / 10 if len(values) > 1 else None,
            is_dense=len(values) == self.image_count,
            in_dense_cluster=neuron_id in DENSE_CLUSTER,
        )

    def list_neurons(self, order: NeuronOrder, filter: NeuronFilter = ALL_NEURONS) -> list[int]:
        """Neurons that pass the filter, in order."""
        rows = [self.neuron(neuron_id) for neuron_id in range(NEURON_COUNT)]
        kept = [
            row
            for row in rows
            if (filter.min_density is None or np.float32(row.density) >= np.float32(filter.min_density))
            and (filter.max_density is None or np.float32(row.density) <= np.float32(filter.max_density))
            and (not filter.alive_only or row.alive)
            and (not filter.name_contains or any(filter.name_contains.lower() in name.name for name in row.names))
            and filter.in_dense_cluster in (None, row.in_dense_cluster)
            and filter.is_sensitive in (None, row.neuron_id in self.sensitive_neuron_ids)
        ]
        keys = {
            NeuronOrder.DENSITY: lambda row: -row.density,
            NeuronOrder.MAXIMUM: lambda row: -row.maximum,
            NeuronOrder.MONOSEMANTICITY: lambda row: -(-2 if row.monosemanticity is None else row.monosemanticity),
        }
        return [row.neuron_id for row in sorted(kept, key=keys.get(order, lambda row: row.neuron_id))]

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> list[Exemplar]:
        """The strongest images; the spread ones are the same, every other left out."""
        firing = sorted(self._firing(neuron_id), key=lambda pair: -pair[1])
        firing = [pair for pair in firing if pair[0] not in self.hidden_rows]
        chosen = firing if kind is ExemplarKind.TOP else firing[::2]
        return [
            Exemplar(row=row, value=value, quantile=self.quantile(neuron_id, value)) for row, value in chosen[:count]
        ]

    def image(self, row: int) -> ImageRow:
        """A row of the image table."""
        if row in self.hidden_rows:
            raise NotFound(f"row {row} is sensitive")
        return ImageRow(
            row=row,
            uri=self._uris[row],
            sha256=image_sha256(self._data[row]),
            label=self._labels[row],
            caption=None,
            width=16,
            height=16,
        )

    def row_of(self, sha256: str) -> int | None:
        """The first row with this digest."""
        return next(iter(self.rows_of(sha256)), None)

    def rows_of(self, sha256: str) -> list[int]:
        """All rows with this digest."""
        rows = [row for row, data in enumerate(self._data) if image_sha256(data) == sha256]
        return [row for row in rows if row not in self.hidden_rows]

    def is_sensitive(self, row: int) -> bool:
        """Whether it was named."""
        return row in self.sensitive_rows

    def without_sensitive(self) -> FakeReader:
        """The same images, the sensitive ones left out of every list."""
        view = copy(self)
        view.hidden_rows = self.sensitive_rows
        return view

    def is_taken_down(self, sha256: str) -> bool:
        """Nothing is."""
        return False

    def thumbnail(self, row: int) -> bytes:
        """A small JPEG."""
        return thumbnail(self._data[row])

    def code(self, row: int) -> ImageCode:
        """The stored code."""
        return self._codes[row]

    @property
    def patch_grid(self) -> tuple[int, int]:
        """The quadrants."""
        return (2, 2)

    def patch_map(self, row: int, neuron_id: int) -> np.ndarray | None:
        """What the engine says of each quadrant."""
        activation = _dense(self._codes[row])[neuron_id]
        if not activation:
            return None
        tokens = _residuals(prepare(self._data[row], PREPROCESSING).pixels)
        fires = np.array([tokens[place][neuron_id] if neuron_id < 4 else 0.0 for place in range(4)])
        shares = np.where(fires > 0.05, np.clip(np.rint(255 * fires / activation), 1, 255), 0)
        return shares.astype(np.uint8).reshape(2, 2)

    def fvu(self, row: int) -> float:
        """A figure that tells the row."""
        return row / 100

    def quantile(self, neuron_id: int, value: float) -> float:
        """Share of the firing images with a smaller activation."""
        values = [other for _, other in self._firing(neuron_id)]
        return sum(other < value for other in values) / len(values)

    def similar_images(
        self,
        code: ImageCode,
        count: int,
        *,
        exclude_rows: Collection[int] = (),
        metric: CodeMetric = CodeMetric.COSINE,
        neuron_ids: Sequence[int] | None = None,
    ) -> list[SimilarImage]:
        """Similarity of codes, by dense vectors."""
        query = _dense(code)
        length = np.linalg.norm(query)
        if neuron_ids is not None:
            query = np.where(np.isin(np.arange(NEURON_COUNT), neuron_ids), query, 0)
        matches = []
        for row, other in enumerate(self._codes):
            vector = _dense(other)
            norms = length * np.linalg.norm(vector) if metric is CodeMetric.COSINE else 1.0
            similarity = float(query @ vector / max(norms, 1e-9))
            shared = np.argsort(-query * vector, kind="stable")
            if row not in exclude_rows and row not in self.hidden_rows and similarity > 0:
                ids = tuple(int(neuron) for neuron in shared if query[neuron] * vector[neuron] > 0)
                matches.append(SimilarImage(row=row, similarity=similarity, shared_neuron_ids=ids))
        return sorted(matches, key=lambda match: -match.similarity)[:count]

    def residual(self, row: int) -> np.ndarray:
        """What the engine would give for the image."""
        residual = self._residuals[row]
        return residual / max(float(np.linalg.norm(residual)), 1e-9)

    def images_by_residual(
        self, vector: np.ndarray, count: int, *, exclude_rows: Collection[int] = ()
    ) -> list[tuple[int, float]]:
        """Every other image by cosine."""
        query = vector / np.linalg.norm(vector)
        found = [(row, float(self.residual(row) @ query)) for row in range(self.image_count)]
        found = [pair for pair in found if pair[0] not in self.hidden_rows and pair[0] not in exclude_rows]
        return sorted(found, key=lambda pair: -pair[1])[:count]

    def images_by_text(self, vector: np.ndarray, count: int) -> list[tuple[int, float]]:
        """As if words and codes were in one space."""
        codes = np.stack([_dense(code)[: len(vector)] for code in self._codes])
        found = [pair for pair in enumerate((codes @ vector).tolist()) if pair[0] not in self.hidden_rows]
        return sorted(found, key=lambda pair: -pair[1])[:count]

    def images_by_expression(self, expression: str, count: int) -> list[tuple[int, float]]:
        """Every image that matches, scored."""
        parsed = parse_expression(expression, neuron_count=NEURON_COUNT)
        maxima = np.max([_dense(code) for code in self._codes], axis=0)
        asked = [neuron for neuron in asked_to_fire(parsed) if maxima[neuron] > 0]
        found = [
            (row, float(sum(_dense(code)[neuron] / maxima[neuron] for neuron in asked)))
            for row, code in enumerate(self._codes)
            if row not in self.hidden_rows and _holds(parsed, _dense(code))
        ]
        return sorted(found, key=lambda pair: -pair[1])[:count]

    def count_by_expression(self, expression: str) -> int:
        """How many images match."""
        return len(self.images_by_expression(expression, self.image_count))

    def named_neurons(self, expression: str) -> frozenset[int]:
        """The neurons that it names."""
        return named_neurons(parse_expression(expression, neuron_count=NEURON_COUNT))

    def activation_histogram(self, neuron_id: int, edges: np.ndarray) -> np.ndarray:
        """Firing images by activation."""
        return np.histogram([value for _, value in self._firing(neuron_id)], bins=edges)[0]

    def co_active_neurons(self, neuron_id: int, count: int) -> list[tuple[int, float, int]]:
        """Every other neuron that fires on an image with it, those of most images first."""
        rows = {row for row, _ in self._firing(neuron_id)}
        shared = {other: len(rows & {row for row, _ in self._firing(other)}) for other in range(NEURON_COUNT)}
        others = [other for other in sorted(shared, key=lambda other: -shared[other]) if other != neuron_id]
        return [(other, shared[other] / len(rows), shared[other]) for other in others if shared[other]][:count]

    def nearest_neurons(self, vector: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Directions are the unit vectors."""
        cosines = vector / np.linalg.norm(vector)
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(neuron), float(cosines[neuron])) for neuron in order]

    def neurons_like(self, neuron_id: int, count: int) -> list[tuple[int, float]]:
        """Every other neuron, all orthogonal."""
        return [(other, 0.0) for other in range(NEURON_COUNT) if other != neuron_id][:count]

    def neurons_by_text(self, text_vector: np.ndarray, count: int) -> list[tuple[int, float]]:
        """The neuron of the colour first."""
        return self.nearest_neurons(text_vector, count)

    def _names(self, neuron_id: int) -> tuple[NeuronName, ...]:
        words = [word for word, neuron in _COLOURS.items() if neuron == neuron_id]
        return tuple(NeuronName(name=word, score=0.5, margin=0.1, source=NameSource.LABEL) for word in words)

    def _firing(self, neuron_id: int) -> list[tuple[int, float]]:
        return [
            (row, float(value))
            for row, code in enumerate(self._codes)
            for other, value in zip(code.neuron_ids, code.values, strict=True)
            if other == neuron_id
        ]


CORPUS = {
    "red-1": png((250, 10, 10)),
    "red-2": png((200, 0, 0)),
    "green-1": png((10, 240, 10)),
    "blue-1": png((0, 20, 230)),
    "white-1": png((255, 255, 255)),
    "white-2": png((255, 255, 255)),
}


def fake_entry(
    engine: FakeEngine,
    *,
    name: str = "colours",
    corpora: Sequence[str] = ("swatches",),
    has_text_tower: bool = True,
    has_scores: bool = True,
    tokens: Tokens = Tokens.PATCHES,
    reader: FakeReader | None = None,
) -> Entry:
    """A bundle on the engine, with corpora."""
    facts = ModelFacts(
        bundle_id="b" * 64,
        code_id="c" * 64,
        encoder=EncoderSpec(
            family=Family.CLIP,
            model="fake-clip",
            revision=None,
            width=4,
            block_count=2,
            prefix_token_count=0,
            has_cls=False,
            grid=(2, 2),
            embedding_width=4,
            weights_sha256="e" * 64,
        ),
        site=Site(block=1, tokens=tokens),
        neuron_count=NEURON_COUNT,
        selection=TopK(4),
        limits=CodeLimits(image_code_limit=4, token_code_limit=4),
        readout="similarity" if has_text_tower else "none",
        device="cpu",
        precision="float32",
        engine="torch",
    )
    shared_reader = reader if reader is not None else FakeReader(CORPUS)
    bundle = ServedBundle(
        name=name,
        facts=facts,
        preprocessing=PREPROCESSING,
        decoder_bias=DECODER_BIAS,
        score_names=SCORE_NAMES if has_scores else (),
        routes=(EncodeRoute(operation=encode_operation(engine), engine=engine, position=0),),
        text=text_operation(engine.text_vectors) if has_text_tower else None,
        no_text_reason="" if has_text_tower else "encoder 'fake-clip' has no text tower; use another",
        health=ModelHealth(reference=index_reference(shared_reader) if corpora else None),
    )
    return bundle, tuple(
        ServedCorpus(name=corpus, reader=shared_reader, quarantined_image_count=1, created_by="fake 1")
        for corpus in corpora
    )


def _row(batch: EngineBatch, position: int, want: Want) -> EngineRow:
    tokens = batch.token_codes if want.token_codes else None
    return EngineRow(
        code=batch.codes[position],
        token_values=None if tokens is None else tokens.values[position].numpy(),
        token_neuron_ids=None if tokens is None else tokens.neuron_ids[position].numpy(),
        fidelity=batch.fidelity[position] if want.fidelity and batch.fidelity is not None else None,
        residual=batch.residuals[position] if want.residuals and batch.residuals is not None else None,
        scores=batch.scores[position] if want.scores and batch.scores is not None else None,
    )


def _residuals(image: np.ndarray) -> np.ndarray:
    half = SIZE_PX // 2
    quadrants = [image[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    colours = np.stack([quadrant.mean(axis=(1, 2)) / 255 for quadrant in quadrants])
    return np.concatenate([colours, colours.mean(axis=1, keepdims=True)], axis=1).astype(np.float32)


def _token_codes(residuals: torch.Tensor) -> TokenCodes:
    fires = residuals > 0.05
    order = torch.argsort(torch.where(fires, residuals, 0), dim=-1, descending=True, stable=True)
    values = torch.where(fires, residuals, 0).gather(-1, order)
    return TokenCodes(values, torch.where(values > 0, order, 0), torch.zeros(values.shape[:-1], dtype=torch.int64))


def _fidelity(residuals: torch.Tensor) -> Fidelity:
    return Fidelity(
        fvu=0.25, cosine=0.9, l0=float((residuals > 0.05).sum(-1).float().mean()), residual_norm=1.5, cut_count=0
    )


def _scores(residuals: torch.Tensor) -> np.ndarray:
    light = residuals[:, :, 3].mean(dim=1).numpy()
    return np.stack([1 - light, light], axis=1)


def _holds(expression: Expression, activations: np.ndarray) -> bool:
    match expression:
        case Term(neuron_id=neuron_id, comparison=comparison, threshold=threshold):
            compare = {
                Comparison.GREATER: operator.gt,
                Comparison.GREATER_OR_EQUAL: operator.ge,
                Comparison.LESS: operator.lt,
                Comparison.LESS_OR_EQUAL: operator.le,
            }[comparison]
            return bool(compare(activations[neuron_id], threshold))
        case Not(part=part):
            return not _holds(part, activations)
        case And(parts=parts):
            return all(_holds(part, activations) for part in parts)
        case Or(parts=parts):
            return any(_holds(part, activations) for part in parts)


def _dense(code: ImageCode) -> np.ndarray:
    vector = np.zeros(NEURON_COUNT, np.float32)
    vector[code.neuron_ids] = code.values
    return vector
