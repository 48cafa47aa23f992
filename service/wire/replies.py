"""Answers -> protobuf replies. Decides nothing: every figure comes from the values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import phosphene
from index.values import NameSource, NeuronName, SearchEngine
from phosphene.codes import ImageCode
from phosphene.v1 import explain_pb2, images_pb2, neurons_pb2, values_pb2
from service.generation import Generation
from service.queries import LikeNeuron, LikeText, NeuronSearch
from service.values import (
    ActiveNeuron,
    CodeSearch,
    CorpusImage,
    ExemplarImage,
    Explanation,
    FidelityReport,
    ImageList,
    ImageMatch,
    ImageMetric,
    NeuronList,
    NeuronMatch,
    NeuronProfile,
    NeuronView,
    PatchGrid,
    PatchMap,
    QueriedImage,
)

__all__ = [
    "explain_response",
    "image_response",
    "image_search_response",
    "neuron_list_response",
    "neuron_response",
    "neuron_search_response",
]

_NAME_SOURCES = {
    NameSource.LABEL: values_pb2.NAME_SOURCE_LABEL,
    NameSource.CAPTION: values_pb2.NAME_SOURCE_CAPTION,
    NameSource.VOCABULARY: values_pb2.NAME_SOURCE_VOCABULARY,
}
"""What every index is built with, whatever the service runs."""
_IMAGE_METRICS = {
    ImageMetric.CODE_COSINE: images_pb2.IMAGE_METRIC_CODE_COSINE,
    ImageMetric.ACTIVATION: images_pb2.IMAGE_METRIC_ACTIVATION,
    ImageMetric.EXPRESSION: images_pb2.IMAGE_METRIC_EXPRESSION,
    ImageMetric.CODE_INNER_PRODUCT: images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT,
    ImageMetric.RESIDUAL_COSINE: images_pb2.IMAGE_METRIC_RESIDUAL_COSINE,
    ImageMetric.TEXT_COSINE: images_pb2.IMAGE_METRIC_TEXT_COSINE,
}
_SEARCH_ENGINES = {
    SearchEngine.INDEX: values_pb2.SEARCH_ENGINE_INDEX,
    SearchEngine.QDRANT: values_pb2.SEARCH_ENGINE_QDRANT,
}


def explain_response(generation: Generation, explanation: Explanation) -> explain_pb2.ExplainResponse:
    """The reply to Explain."""
    response = explain_pb2.ExplainResponse(
        hidden_count=generation.hidden_count,
        provenance=_provenance(generation, engine=explanation.engine),
        image=_queried_image(explanation.image),
    )
    if explanation.fidelity is not None:
        response.fidelity.CopyFrom(_fidelity(explanation.fidelity))
    for active in explanation.neurons:
        _write_active_neuron(response.neurons.add(), active)
    if explanation.grid is not None:
        response.grid.CopyFrom(_grid(explanation.grid))
    for near in explanation.nearest_neurons:
        shown = response.nearest_neurons.add(cosine=near.score)
        _write_summary(shown.neuron, near.neuron)
        shown.top_images.extend(_exemplars(near.top_images))
    if explanation.similar_images:
        response.similar_images.extend(_image_matches(explanation.similar_images))
    for name, score in explanation.scores:
        response.scores.add(name=name, score=score)
    if explanation.code is not None:
        response.code.CopyFrom(_code(explanation.code))
    if explanation.code_search is not None:
        response.code_search.CopyFrom(_code_search(explanation.code_search))
    return response


def _code(code: ImageCode) -> explain_pb2.Code:
    return explain_pb2.Code(
        neuron_ids=code.neuron_ids.tolist(), activations=code.values.tolist(), cut_count=code.cut_count
    )


def _write_active_neuron(shown: explain_pb2.ActiveNeuron, active: ActiveNeuron) -> None:
    _write_summary(shown.neuron, active.neuron)
    shown.activation = active.activation
    if active.quantile is not None:
        shown.quantile = active.quantile
    if active.patch_activations:
        shown.patch_activations.extend(active.patch_activations)
    if active.top_images:
        shown.top_images.extend(_exemplars(active.top_images))


def neuron_response(generation: Generation, profile: NeuronProfile) -> neurons_pb2.GetNeuronResponse:
    """The reply to GetNeuron."""
    row = profile.row
    return neurons_pb2.GetNeuronResponse(
        hidden_count=generation.hidden_count,
        provenance=_provenance(generation),
        neuron=_summary(profile.neuron),
        statistics=neurons_pb2.NeuronStatistics(
            firing_count=row.firing_count,
            image_count=profile.image_count,
            mean=row.mean,
            standard_deviation=row.std,
            maximum=row.maximum,
            quantiles=[
                neurons_pb2.Quantile(level=level, activation=activation)
                for level, activation in zip(profile.quantile_levels, row.quantiles, strict=False)
            ],
        ),
        names=[_name(name) for name in row.names],
        top_images=_exemplars(profile.top_images),
        spread_images=_exemplars(profile.spread_images),
        similar_neurons=_neuron_matches(profile.similar_neurons),
        histogram=None
        if profile.histogram is None
        else neurons_pb2.ActivationHistogram(edges=profile.histogram.edges, counts=profile.histogram.counts),
        co_active_neurons=[
            neurons_pb2.CoActiveNeuron(neuron=_summary(other.neuron), npmi=other.npmi, image_count=other.image_count)
            for other in profile.co_active_neurons
        ],
    )


def neuron_list_response(generation: Generation, page: NeuronList) -> neurons_pb2.ListNeuronsResponse:
    """The reply to ListNeurons."""
    return neurons_pb2.ListNeuronsResponse(
        hidden_count=generation.hidden_count,
        provenance=_provenance(generation),
        neurons=[_summary(view) for view in page.neurons],
        next_page_token=page.next_page_token,
        total_count=page.total_count,
    )


def neuron_search_response(
    generation: Generation, search: NeuronSearch, matches: Sequence[NeuronMatch]
) -> neurons_pb2.SearchNeuronsResponse:
    """The reply to SearchNeurons."""
    match search.like:
        case LikeText():
            metric = neurons_pb2.NEURON_METRIC_TEXT_EXEMPLARS
        case LikeNeuron():
            metric = neurons_pb2.NEURON_METRIC_DIRECTIONS
        case _:
            assert_never(search.like)
    return neurons_pb2.SearchNeuronsResponse(
        provenance=_provenance(generation),
        metric=metric,
        neurons=_neuron_matches(matches),
        hidden_count=generation.hidden_count,
    )


def image_search_response(generation: Generation, found: ImageList) -> images_pb2.SearchImagesResponse:
    """The reply to SearchImages."""
    return images_pb2.SearchImagesResponse(
        hidden_count=generation.hidden_count,
        provenance=_provenance(generation, engine=found.encoder_engine),
        metric=_IMAGE_METRICS[found.metric],
        images=_image_matches(found.images),
        total_count=found.total_count,
        code_search=None if found.code_search is None else _code_search(found.code_search),
        recall=found.recall,
        engine=_SEARCH_ENGINES[found.engine],
    )


def image_response(generation: Generation, image: CorpusImage) -> images_pb2.GetImageResponse:
    """The reply to GetImage."""
    return images_pb2.GetImageResponse(provenance=_provenance(generation), image=_corpus_image(image))


def _provenance(generation: Generation, *, engine: str = "") -> values_pb2.Provenance:
    facts, corpus = generation.bundle.facts, generation.corpus
    return values_pb2.Provenance(
        bundle=generation.bundle.name,
        bundle_id=facts.bundle_id,
        code_id=facts.code_id,
        corpus="" if corpus is None else corpus.name,
        index_id="" if corpus is None else corpus.reader.id,
        plan_id="" if corpus is None else corpus.reader.plan_id,
        generation=generation.id,
        encoder=facts.encoder.model,
        encoder_revision=facts.encoder.revision or "",
        site=str(facts.site),
        engine=engine or facts.engine,
        device=facts.device,
        precision=facts.precision,
        service_version=phosphene.__version__,
    )


def _queried_image(image: QueriedImage) -> explain_pb2.QueryImage:
    return explain_pb2.QueryImage(
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        drafted=image.drafted,
        corpus_image=None if image.corpus_image is None else _corpus_image(image.corpus_image),
    )


def _fidelity(report: FidelityReport) -> explain_pb2.Fidelity:
    return explain_pb2.Fidelity(
        fvu=report.fvu,
        explained_variance=1 - report.fvu,
        cosine=report.cosine,
        l0=report.l0,
        cut_count=report.cut_count,
        residual_norm=report.residual_norm,
        token_cut_count=report.token_cut_count,
    )


def _summary(view: NeuronView) -> values_pb2.NeuronSummary:
    summary = values_pb2.NeuronSummary()
    _write_summary(summary, view)
    return summary


def _write_summary(summary: values_pb2.NeuronSummary, view: NeuronView) -> None:
    """Write field by field, and in place: an answer has dozens, and one from arguments takes twice as long or more."""
    summary.neuron_id = view.neuron_id
    row = view.row
    if row is None:
        return
    summary.density = row.density
    if row.alive:
        summary.maximum, summary.mean = row.maximum, row.mean
    if row.label_entropy is not None:
        summary.label_entropy = row.label_entropy
    if row.names:
        _write_name(summary.name, row.names[0])
    if row.monosemanticity is not None:
        summary.monosemanticity = row.monosemanticity
    summary.is_dense, summary.in_dense_cluster = row.is_dense, row.in_dense_cluster
    summary.is_sensitive = view.is_sensitive


def _name(name: NeuronName) -> values_pb2.NeuronName:
    message = values_pb2.NeuronName()
    _write_name(message, name)
    return message


def _write_name(message: values_pb2.NeuronName, name: NeuronName) -> None:
    message.name, message.score, message.margin = name.name, name.score, name.margin
    message.source = _NAME_SOURCES[name.source]


def _corpus_image(image: CorpusImage) -> values_pb2.CorpusImage:
    row = image.image
    return values_pb2.CorpusImage(
        row=row.row,
        sha256=row.sha256,
        uri=row.uri,
        label=row.label or "",
        caption=row.caption or "",
        width=row.width,
        height=row.height,
        thumbnail=image.thumbnail,
    )


def _exemplars(exemplars: Iterable[ExemplarImage]) -> list[values_pb2.Exemplar]:
    return [
        values_pb2.Exemplar(
            image=_corpus_image(exemplar.image),
            activation=exemplar.activation,
            quantile=exemplar.quantile,
            patch_map=_patch_map(exemplar.patch_map),
        )
        for exemplar in exemplars
    ]


def _image_matches(matches: Iterable[ImageMatch]) -> list[values_pb2.ImageMatch]:
    return [
        values_pb2.ImageMatch(
            image=_corpus_image(match.image),
            score=match.score,
            shared_neuron_ids=match.shared_neuron_ids,
            patch_map=_patch_map(match.patch_map),
        )
        for match in matches
    ]


def _code_search(search: CodeSearch) -> values_pb2.CodeSearch:
    return values_pb2.CodeSearch(
        recall=search.recall,
        left_out_neuron_ids=search.left_out_neuron_ids,
        engine=_SEARCH_ENGINES[search.engine],
    )


def _neuron_matches(matches: Iterable[NeuronMatch]) -> list[neurons_pb2.NeuronMatch]:
    return [
        neurons_pb2.NeuronMatch(
            neuron=_summary(match.neuron), score=match.score, top_images=_exemplars(match.top_images)
        )
        for match in matches
    ]


def _patch_map(drawn: PatchMap | None) -> values_pb2.PatchMap | None:
    return None if drawn is None else values_pb2.PatchMap(grid=_grid(drawn.grid), shares=drawn.shares)


def _grid(grid: PatchGrid) -> values_pb2.PatchGrid:
    region = grid.region
    return values_pb2.PatchGrid(
        row_count=grid.row_count,
        column_count=grid.column_count,
        region=values_pb2.ImageRegion(left=region.left, top=region.top, right=region.right, bottom=region.bottom),
    )
