"""Answers as a service would give them, over a small made-up corpus of drawn shapes; some of its texts are hostile."""

import hashlib
import io
import random

from PIL import Image, ImageDraw

from phosphene.v1.explain_pb2 import ActiveNeuron, ExplainResponse, Fidelity, NearestNeuron, QueryImage, Score
from phosphene.v1.models_pb2 import CorpusSummary, EncoderSummary, ImageLimits, Model, ReadoutKind, Selection, Site
from phosphene.v1.neurons_pb2 import (
    ActivationHistogram,
    CoActiveNeuron,
    GetNeuronResponse,
    NeuronMatch,
    NeuronStatistics,
    Quantile,
)
from phosphene.v1.values_pb2 import (
    CorpusImage,
    Exemplar,
    ImageMatch,
    NameSource,
    NeuronName,
    NeuronSummary,
    PatchGrid,
    Provenance,
)

HOSTILE = "<script>alert('caught')</script>\"><img src=x onerror=alert(1)> \x1b[31mred\x1b[0m [bold]\u202eevil"
COLOURS = ("crimson", "royalblue", "seagreen", "goldenrod", "purple", "darkorange", "teal", "hotpink")
SHAPES = ("circle", "square", "triangle")
NEURON_COUNT = 256


def drawing(colour: str, shape: str, *, size_px: int = 128, seed: int = 0, kind: str = "JPEG") -> bytes:
    """An encoded picture of one shape on a pale ground."""
    chance = random.Random(f"{colour} {shape} {seed}")
    ground = tuple(chance.randint(200, 245) for _ in range(3))
    image = Image.new("RGB", (size_px, size_px), ground)
    pen = ImageDraw.Draw(image)
    left, top = (chance.uniform(0.1, 0.35) * size_px for _ in range(2))
    right, bottom = (start + chance.uniform(0.4, 0.55) * size_px for start in (left, top))
    match shape:
        case "circle":
            pen.ellipse((left, top, right, bottom), fill=colour)
        case "square":
            pen.rectangle((left, top, right, bottom), fill=colour)
        case _:
            pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def corpus_image(row: int, *, thumbnail: bool, colour: str | None = None) -> CorpusImage:
    colour = colour or COLOURS[row % len(COLOURS)]
    shape = SHAPES[row % len(SHAPES)]
    return CorpusImage(
        row=row,
        sha256=hashlib.sha256(str(row).encode()).hexdigest(),
        uri=f"{colour}/{shape}-{row:04}.jpg",
        label=f"{colour} {shape}",
        caption=HOSTILE if row % 5 == 0 else f"a {colour} {shape} on a pale ground",
        width=128,
        height=128,
        thumbnail=drawing(colour, shape, seed=row) if thumbnail else b"",
    )


def neuron_summary(neuron_id: int, *, named: bool = True) -> NeuronSummary:
    summary = NeuronSummary(neuron_id=neuron_id, density=0.004 * (1 + neuron_id % 40), maximum=14.0, mean=5.5)
    summary.label_entropy = 1.25
    summary.monosemanticity, summary.is_dense = 0.625, neuron_id == 9
    if named:
        name = f"{COLOURS[neuron_id % len(COLOURS)]} things" if neuron_id % 7 else HOSTILE
        summary.name.CopyFrom(NeuronName(name=name, score=0.71, margin=0.32, source=NameSource.NAME_SOURCE_CAPTION))
    return summary


def exemplars(neuron_id: int, count: int, *, thumbnails: bool) -> list[Exemplar]:
    colour = COLOURS[neuron_id % len(COLOURS)]
    return [
        Exemplar(
            image=corpus_image(neuron_id + 3 * place, thumbnail=thumbnails, colour=colour),
            activation=13.2 - 0.4 * place,
            quantile=1.0 - 0.01 * place,
        )
        for place in range(count)
    ]


def provenance() -> Provenance:
    return Provenance(
        bundle="scenes",
        bundle_id="b1" * 32,
        code_id="c0" * 32,
        corpus="scenes",
        index_id="1d" * 32,
        plan_id="9a" * 32,
        generation="g-1",
        encoder="tiny-clip",
        site="block 5, patches",
        engine="torch",
        device="cpu",
        precision="float32",
        service_version="0.1.0",
    )


def explanation(
    *,
    neuron_count: int = 6,
    exemplar_count: int = 9,
    thumbnails: bool = True,
    patches: bool = True,
    width: int = 640,
    height: int = 640,
    fvu: float = 0.12,
) -> ExplainResponse:
    chance = random.Random(neuron_count)
    answer = ExplainResponse(
        provenance=provenance(),
        image=QueryImage(sha256="ab" * 32, width=width, height=height),
        fidelity=Fidelity(
            fvu=fvu,
            explained_variance=1 - fvu,
            cosine=0.94,
            l0=16.0,
            residual_norm=21.0,
            cut_count=3,
            token_cut_count=5,
        ),
    )
    for place in range(neuron_count):
        neuron_id = 11 + 10 * place
        active = ActiveNeuron(
            neuron=neuron_summary(neuron_id, named=place != 3),
            activation=12.31 * 0.78**place,
            quantile=max(0.0, 0.997 - 0.11 * place),
            top_images=exemplars(neuron_id, exemplar_count, thumbnails=thumbnails),
        )
        if patches:
            centre_row, centre_column = chance.uniform(1, 6), chance.uniform(1, 6)
            for row in range(8):
                for column in range(8):
                    distance = (row - centre_row) ** 2 + (column - centre_column) ** 2
                    active.patch_activations.append(max(0.0, active.activation * (1 - distance / 9)))
        answer.neurons.append(active)
    if patches:
        answer.grid.CopyFrom(PatchGrid(row_count=8, column_count=8))
    answer.nearest_neurons.extend(
        NearestNeuron(
            neuron=neuron_summary(neuron_id),
            cosine=0.61 - 0.05 * place,
            top_images=exemplars(neuron_id, min(5, exemplar_count), thumbnails=thumbnails),
        )
        for place, neuron_id in enumerate((11, 42, 99, 200))
    )
    answer.similar_images.extend(
        ImageMatch(image=corpus_image(row, thumbnail=thumbnails), score=0.93 - 0.02 * row, shared_neuron_ids=[11, 21])
        for row in range(12)
    )
    answer.scores.extend(
        Score(name=name, score=24.1 - place) for place, name in enumerate(("red", "circle", "striped", "<b>big</b>"))
    )
    return answer


def neuron_answer(neuron_id: int = 42, *, thumbnails: bool = True) -> GetNeuronResponse:
    summary = neuron_summary(neuron_id)
    answer = GetNeuronResponse(
        provenance=provenance(),
        neuron=summary,
        statistics=NeuronStatistics(
            firing_count=37,
            image_count=4096,
            mean=5.5,
            standard_deviation=2.25,
            maximum=14.0,
            quantiles=[Quantile(level=level, activation=14.0 * level) for level in (0.1, 0.5, 0.9)],
        ),
        names=[summary.name, NeuronName(name="round", score=0.4, margin=0.0, source=NameSource.NAME_SOURCE_LABEL)],
        top_images=exemplars(neuron_id, 9, thumbnails=thumbnails),
        spread_images=exemplars(neuron_id + 8, 9, thumbnails=thumbnails),
    )
    answer.similar_neurons.extend(
        NeuronMatch(neuron=neuron_summary(other), score=0.5 - 0.1 * place) for place, other in enumerate((7, 8, 9))
    )
    answer.histogram.CopyFrom(ActivationHistogram(edges=[0.0, 3.5, 7.0, 10.5, 14.0], counts=[20, 10, 0, 7]))
    answer.co_active_neurons.extend(
        CoActiveNeuron(neuron=neuron_summary(other), npmi=0.875 - 0.125 * place, image_count=31 - place)
        for place, other in enumerate((21, 22))
    )
    return answer


def model(*, with_corpus: bool = True, patches: bool = True, score_count: int = 4) -> Model:
    answer = Model(
        bundle="scenes",
        bundle_id="b1" * 32,
        code_id="c0" * 32,
        generation="g-1",
        encoder=EncoderSummary(family="clip", model="tiny-clip", weights_sha256="ee" * 32, width=192, block_count=6),
        site=Site(block=5, tokens="patches", text="block 5, patches"),
        neuron_count=NEURON_COUNT,
        selection=Selection.SELECTION_TOP_K,
        k=16,
        image_code_limit=64,
        token_code_limit=64,
        readout=ReadoutKind.READOUT_KIND_SIMILARITY,
        score_count=score_count,
        limits=ImageLimits(byte_limit=2**24, pixel_limit=50_000_000, webp_pixel_limit=24_000_000),
        engine="torch",
        device="cpu",
    )
    if patches:
        answer.grid.CopyFrom(PatchGrid(row_count=8, column_count=8))
    if with_corpus:
        answer.corpora.append(
            CorpusSummary(
                corpus="scenes",
                index_id="1d" * 32,
                plan_id="9a" * 32,
                image_count=4096,
                quarantined_image_count=2,
                has_labels=True,
                text_search=True,
                created_by="phosphene 0.1.0",
            )
        )
    return answer
