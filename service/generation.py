"""What answers a request: one bundle, at most one corpus, and the id of the state that they are in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from phosphene.codes import CodeLimits, ImageCode
from phosphene.encoder import EncoderSpec, Site, Tokens
from phosphene.engine import Want
from phosphene.errors import NotFound, Unanswerable
from phosphene.framing import grid_region
from phosphene.manifest import digest_of
from phosphene.preprocessing import Preprocessing
from phosphene.selection import Selection
from service.batching.batcher import Operation
from service.corpus_reader import CorpusReader
from service.discretion import DiscreetReader
from service.observing.model_health import ModelHealth
from service.operations import EncodeRoute
from service.values import PatchGrid

__all__ = ["Generation", "ModelFacts", "ServedBundle", "ServedCorpus", "generation_id"]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What there is to say of a bundle."""

    bundle_id: str
    """Digest of its contents."""
    code_id: str
    """Digest of everything that decides codes."""
    encoder: EncoderSpec
    """The frozen model."""
    site: Site
    """Where it is listened to."""
    neuron_count: int
    """Neurons of the SAE."""
    selection: Selection
    """Which neurons stay on."""
    limits: CodeLimits
    """How many neurons a code may hold."""
    readout: str
    """`similarity`, `classifier` or `none`."""
    device: str
    """Where it runs: `cpu`, `cuda:0`."""
    precision: str
    """Arithmetic of encoder and SAE: `float32`."""
    engine: str
    """What encodes images, as a rule: `torch`, `onnxruntime`, `onnxruntime-int8`."""
    engine_id: str = ""
    """Digest of the exported engine; empty where torch runs the bundle itself."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the site's patches; None where it has none."""
        return self.encoder.grid if self.site.tokens in (Tokens.PATCHES, Tokens.ALL) else None

    @property
    def patch_offset(self) -> int:
        """Tokens of the site before its first patch."""
        return self.encoder.prefix_token_count if self.site.tokens is Tokens.ALL else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedBundle:
    """A bundle that answers."""

    name: str
    """What requests call it."""
    facts: ModelFacts
    """What there is to say of it."""
    preprocessing: Preprocessing
    """From image to pixels."""
    decoder_bias: Float32[np.ndarray, " width"]
    """What is taken from a residual before it is compared with directions."""
    score_names: tuple[str, ...]
    """What each score is a score of."""
    routes: tuple[EncodeRoute, ...]
    """The ways to its codes, the preferred one first; the last one can give everything that the bundle has."""
    text: Operation[str, Float32[np.ndarray, " embedding"]] | None
    """Turns texts into vectors on the engine thread; None where that cannot be done."""
    no_text_reason: str = ""
    """Why it cannot be done."""
    health: ModelHealth
    """What its live codes look like."""

    def patch_grid(self, *, width: int, height: int) -> PatchGrid | None:
        """The patches of an image of this size; None where the site has none."""
        if self.facts.grid is None:
            return None
        row_count, column_count = self.facts.grid
        region = grid_region(self.preprocessing, self.facts.grid, width=width, height=height)
        return PatchGrid(row_count=row_count, column_count=column_count, region=region)

    def route(self, want: Want) -> EncodeRoute:
        """The first way that can give what is wanted."""
        return next((route for route in self.routes if route.engine.can(want)), self.routes[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedCorpus:
    """An index that answers."""

    name: str
    """What requests call it."""
    reader: CorpusReader
    """What it holds."""
    quarantined_image_count: int
    """Images that could not be used when it was built."""
    created_by: str
    """Program and version that built it."""

    @property
    def state_id(self) -> str:
        """Names all that decides its answers: the index, the tombstones that they honour, flags and names."""
        beside = (("+", self.reader.tombstones_id), ("!", self.reader.flags_id), ("=", self.reader.names_id))
        return self.reader.id + "".join(f"{mark}{each}" for mark, each in beside if each)


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """The bundle and corpus of one request."""

    bundle: ServedBundle
    """Never absent."""
    corpus: ServedCorpus | None
    """None where the bundle has no corpus."""
    id: str
    """Names the state of the bundle and all its indexes."""

    @property
    def reader(self) -> CorpusReader:
        """The corpus's reader; raises `Unanswerable` where there is no corpus."""
        if self.corpus is None:
            raise Unanswerable(
                f"bundle {self.bundle.name!r} has no corpus, which this question needs; build an index "
                "(`python -m index build`) and name it in PHOSPHENE_INDEXES",
                subject=f"bundle {self.bundle.name}",
            )
        return self.corpus.reader

    @property
    def hidden_count(self) -> int:
        """Different neurons and images that its answer has left out so far, because they are sensitive."""
        match self.corpus:
            case ServedCorpus(reader=DiscreetReader() as reader):
                return reader.hidden_count
            case _:
                return 0

    def shown_code(self, code: ImageCode, count: int | None = None) -> ImageCode:
        """A code as an answer may list it, up to `count` neurons of it."""
        match self.corpus:
            case ServedCorpus(reader=DiscreetReader() as reader):
                return reader.shown_code(code, count)
            case _:
                return code

    def own_row(self, sha256: str) -> int | None:
        """The row of the corpus that holds an image; None where there is none, or no corpus."""
        return None if self.corpus is None else self.corpus.reader.row_of(sha256)

    def listed_row(self, sha256: str) -> int | None:
        """The same, for an answer that lists the image of the corpus."""
        match self.corpus:
            case ServedCorpus(reader=DiscreetReader() as reader):
                return reader.listed_row_of(sha256)
            case _:
                return self.own_row(sha256)

    def hides(self, sha256: str) -> bool:
        """Whether an image of the corpus is hidden from this request, because it is sensitive."""
        match self.corpus:
            case ServedCorpus(reader=DiscreetReader() as reader):
                return reader.hides(sha256)
            case _:
                return False

    @property
    def text_operation(self) -> Operation[str, Float32[np.ndarray, " embedding"]]:
        """What turns words into vectors; raises `Unanswerable` where nothing can be searched by words."""
        reader = self.reader
        if self.bundle.text is None:
            raise Unanswerable(
                f"with bundle {self.bundle.name!r} nothing can be searched by words: {self.bundle.no_text_reason}; or "
                "search by an image or by neuron_id",
                subject=f"bundle {self.bundle.name}",
            )
        if not reader.has_text:
            assert self.corpus is not None, "reader has refused a missing corpus"
            raise Unanswerable(
                f"corpus {self.corpus.name!r} was indexed without projected embeddings, so that nothing in it can be "
                "searched by words; build its index again, or search by an image or by neuron_id",
                subject=f"corpus {self.corpus.name}",
            )
        return self.bundle.text

    def check_neuron(self, neuron_id: int, *, field: str = "neuron_id") -> None:
        """Raise `NotFound` unless the bundle has this neuron, and the request may see it."""
        count = self.bundle.facts.neuron_count
        if not 0 <= neuron_id < count:
            raise NotFound(
                f"bundle {self.bundle.name!r} has no neuron {neuron_id}; its neurons are 0 to {count - 1}",
                field=field,
                name=str(neuron_id),
            )
        match self.corpus:
            case ServedCorpus(reader=DiscreetReader() as reader):
                reader.check_neuron(neuron_id, field=field)


def generation_id(facts: ModelFacts, corpora: Iterable[ServedCorpus]) -> str:
    """Digest of a bundle, of what runs it and of all its corpora by name, in their order: the first is the default."""
    engine = [facts.engine, facts.engine_id]
    indexes = [[corpus.name, corpus.state_id] for corpus in corpora]
    return digest_of({"bundle": facts.bundle_id, "engine": engine, "indexes": indexes})
