"""What is served -> protobuf: bundles with their corpora and limits, as ListModels and GetModel show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from phosphene.images import ImageLimits
from phosphene.selection import JumpReLU, TopK
from phosphene.v1 import models_pb2, values_pb2
from service.generation import ModelFacts, ServedBundle, ServedCorpus, generation_id

__all__ = ["model"]

_READOUTS = {
    "none": models_pb2.READOUT_KIND_NONE,
    "similarity": models_pb2.READOUT_KIND_SIMILARITY,
    "classifier": models_pb2.READOUT_KIND_CLASSIFIER,
}


def model(bundle: ServedBundle, corpora: Sequence[ServedCorpus], limits: ImageLimits) -> models_pb2.Model:
    """A bundle with its corpora, for ListModels and GetModel."""
    facts = bundle.facts
    match facts.selection:
        case TopK(k=k):
            selection = models_pb2.SELECTION_TOP_K
        case JumpReLU():
            selection, k = models_pb2.SELECTION_JUMP_RELU, 0
        case _:
            assert_never(facts.selection)
    return models_pb2.Model(
        bundle=bundle.name,
        bundle_id=facts.bundle_id,
        code_id=facts.code_id,
        generation=generation_id(facts, corpora),
        encoder=_encoder(facts),
        site=models_pb2.Site(
            block=facts.site.block,
            tokens=facts.site.tokens.value,
            prompt=facts.site.prompt or "",
            text=str(facts.site),
        ),
        neuron_count=facts.neuron_count,
        selection=selection,
        k=k,
        image_code_limit=facts.limits.image_code_limit,
        token_code_limit=facts.limits.token_code_limit,
        readout=_READOUTS[facts.readout],
        score_count=len(bundle.score_names),
        grid=None if facts.grid is None else values_pb2.PatchGrid(row_count=facts.grid[0], column_count=facts.grid[1]),
        corpora=[_corpus(bundle, corpus) for corpus in corpora],
        limits=models_pb2.ImageLimits(
            byte_limit=limits.file_bytes, pixel_limit=limits.pixels, webp_pixel_limit=limits.webp_pixels
        ),
        engine=facts.engine,
        device=facts.device,
    )


def _encoder(facts: ModelFacts) -> models_pb2.EncoderSummary:
    return models_pb2.EncoderSummary(
        family=facts.encoder.family.value,
        model=facts.encoder.model,
        revision=facts.encoder.revision or "",
        weights_sha256=facts.encoder.weights_sha256,
        width=facts.encoder.width,
        block_count=facts.encoder.block_count,
    )


def _corpus(bundle: ServedBundle, corpus: ServedCorpus) -> models_pb2.CorpusSummary:
    return models_pb2.CorpusSummary(
        corpus=corpus.name,
        index_id=corpus.reader.id,
        plan_id=corpus.reader.plan_id,
        image_count=corpus.reader.image_count,
        quarantined_image_count=corpus.quarantined_image_count,
        has_labels=corpus.reader.has_labels,
        text_search=bundle.text is not None and corpus.reader.has_text,
        created_by=corpus.created_by,
        patch_maps=corpus.reader.patch_grid is not None,
    )
