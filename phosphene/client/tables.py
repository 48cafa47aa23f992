"""Answers as rich tables for a person at a terminal; knows nothing of the command line or the service.

Every text from outside becomes a `Text` without markup, so that a caption cannot colour or move the cursor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from phosphene.client.columns import Columns
from phosphene.client.words import (
    caption_of,
    code_search_words,
    hidden_words,
    image_metric_words,
    label_summary,
    meaning_words,
    name_evidence,
    neuron_metric_words,
    neuron_title,
    number,
    percent,
    plain,
    provenance_words,
    verdict,
)
from phosphene.v1.explain_pb2 import ActiveNeuron, Code, ExplainResponse, NearestNeuron, Score
from phosphene.v1.images_pb2 import SearchImagesResponse
from phosphene.v1.models_pb2 import CorpusSummary, Model, ReadoutKind
from phosphene.v1.neurons_pb2 import (
    ActivationHistogram,
    CoActiveNeuron,
    GetNeuronResponse,
    ListNeuronsResponse,
    NeuronMatch,
    SearchNeuronsResponse,
)
from phosphene.v1.values_pb2 import CodeSearch, Exemplar, ImageMatch, NeuronSummary, Provenance

__all__ = [
    "explanation_view",
    "image_search_view",
    "models_view",
    "neuron_list_view",
    "neuron_search_view",
    "neuron_view",
]

_BAR_WIDTH = 12
_EIGHTHS = " ▏▎▍▌▋▊▉"
_WORDS = frozenset({"name", "exemplars show", "image", "file", "corpora", "what speaks for it", "encoder", "site"})
_GRADE_STYLES = {"good": "green", "fair": "yellow", "poor": "red"}


def explanation_view(answer: ExplainResponse, title: str) -> RenderableType:
    """Show an explanation: whether to trust it, its neurons, what is near, what is similar, what the model says."""
    image = answer.image
    parts: list[RenderableType] = [Text(f"{plain(title)}: {image.width} × {image.height} pixels", style="bold")]
    if answer.HasField("fidelity"):
        judged = verdict(answer.fidelity)
        line = Text(f"{judged.headline}. ", style=f"bold {_GRADE_STYLES[judged.grade]}")
        parts.append(line.append(f"{judged.reason} (FVU {number(answer.fidelity.fvu)})", style="not bold default"))
    if answer.neurons:
        parts.append(_active_neurons(answer.neurons))
    elif answer.fidelity.HasField("l0") and answer.fidelity.l0 == 0.0:
        parts.append(Text("\nNo neuron fires on this image."))
    if answer.nearest_neurons:
        parts.append(_nearest_neurons(answer.nearest_neurons))
    if answer.scores:
        parts.append(_scores(answer.scores))
    if answer.similar_images:
        parts.append(_images("Similar images", answer.similar_images, "cosine of codes"))
        parts += _code_search(answer.code_search)
    if answer.HasField("code"):
        parts.append(_code(answer.code))
    return Group(*parts, *_hidden(answer.hidden_count), _provenance(answer.provenance))


def neuron_view(answer: GetNeuronResponse) -> RenderableType:
    """Show a neuron: its activations, its names, the images that excite it, neurons like it and with it."""
    neuron, statistics = answer.neuron, answer.statistics
    said = f"fires on {statistics.firing_count} of {statistics.image_count} images"
    if statistics.firing_count:
        said += (
            f", activation {number(statistics.mean)} ± {number(statistics.standard_deviation)}, "
            f"at most {number(statistics.maximum)}"
        )
    heading = Text(f"Neuron {neuron.neuron_id}", style="bold")
    if neuron.HasField("name"):
        heading.append(f": {neuron_title(neuron)}")
    parts: list[RenderableType] = [heading, Text(said)]
    meaning = meaning_words(neuron)
    if meaning:
        parts.append(Text(meaning))
    if answer.HasField("histogram"):
        parts.append(_histogram(answer.histogram))
    if answer.names:
        table = _table("name", "what speaks for it")
        for name in answer.names:
            table.add_row(Text(plain(name.name)), Text(name_evidence(name)))
        parts.append(_titled("Names", table))
    if answer.top_images:
        parts.append(_exemplars("Images that excite it most", answer.top_images))
    if answer.spread_images:
        parts.append(_exemplars("Images over its whole range", answer.spread_images))
    if answer.similar_neurons:
        parts.append(_neuron_matches("Neurons like it", answer.similar_neurons, "cosine of directions"))
    if answer.co_active_neurons:
        parts.append(_co_active(answer.co_active_neurons))
    return Group(*parts, *_hidden(answer.hidden_count), _provenance(answer.provenance))


def neuron_list_view(answer: ListNeuronsResponse) -> RenderableType:
    """Show a page of neurons."""
    table = _table("neuron", "name", "density", "mean", "largest", "label entropy", "monosemanticity")
    for neuron in answer.neurons:
        table.add_row(
            str(neuron.neuron_id),
            _name(neuron),
            _density(neuron),
            number(neuron.mean) if neuron.HasField("mean") else "-",
            number(neuron.maximum) if neuron.HasField("maximum") else "-",
            f"{number(neuron.label_entropy)} bits" if neuron.HasField("label_entropy") else "-",
            f"{neuron.monosemanticity:.2f}" if neuron.HasField("monosemanticity") else "-",
        )
    title = f"{len(answer.neurons)} of {answer.total_count} neurons"
    return Group(_titled(title, table), *_hidden(answer.hidden_count), _provenance(answer.provenance))


def neuron_search_view(answer: SearchNeuronsResponse, title: str) -> RenderableType:
    """Show the neurons that a search found."""
    return Group(
        _neuron_matches(f"Neurons for {plain(title)}", answer.neurons, neuron_metric_words(answer.metric)),
        *_hidden(answer.hidden_count),
        _provenance(answer.provenance),
    )


def image_search_view(
    answer: SearchImagesResponse, title: str, *, only_neuron_ids: Sequence[int] = ()
) -> RenderableType:
    """Show the images that a search found, by all neurons or by what some account for."""
    metric = image_metric_words(answer.metric)
    if only_neuron_ids:
        metric = f"part of the {metric} from {', '.join(map(str, only_neuron_ids))}"
    heading = f"Images for {plain(title)}"
    if answer.HasField("total_count"):
        heading += f": {len(answer.images)} of {answer.total_count}"
    return Group(
        _images(heading, answer.images, metric),
        *_how_found(answer),
        *_hidden(answer.hidden_count),
        _provenance(answer.provenance),
    )


def models_view(models: Sequence[Model]) -> RenderableType:
    """Show every bundle with its corpora."""
    table = _table("bundle", "encoder", "site", "neurons", "readout", "corpora")
    for model in models:
        corpora = [_corpus(corpus) for corpus in model.corpora]
        table.add_row(
            Text(plain(model.bundle)),
            Text(plain(model.encoder.model)),
            Text(plain(model.site.text)),
            str(model.neuron_count),
            _readout(model),
            Text("\n".join(corpora) or "none"),
        )
    return _titled("Bundles (the first is the default)", table)


def _corpus(corpus: CorpusSummary) -> str:
    quarantined = f", {corpus.quarantined_image_count} quarantined" if corpus.quarantined_image_count else ""
    return f"{plain(corpus.corpus)}: {corpus.image_count} images{quarantined}"


def _readout(model: Model) -> str:
    if model.readout not in ReadoutKind.values():
        # That of a service that is newer than this client.
        return f"unknown ({model.readout})"
    return ReadoutKind.Name(model.readout).removeprefix("READOUT_KIND_").lower()


def _active_neurons(neurons: Sequence[ActiveNeuron]) -> Group:
    largest = max(active.activation for active in neurons)
    table = _table("neuron", "name", "activation", "against the corpus", "density", "exemplars show")
    for active in neurons:
        quantile = active.quantile if active.HasField("quantile") else None
        table.add_row(
            str(active.neuron.neuron_id),
            _name(active.neuron),
            _bar(active.activation, largest),
            _against_corpus(quantile),
            _density(active.neuron),
            Text(label_summary(active.top_images) or "-"),
        )
    note = "Against the corpus: of its images on which the neuron fires. Density: the share of images on which it does."
    return Group(_titled("Its strongest neurons", table), Text(note, style="dim"))


def _nearest_neurons(neurons: Sequence[NearestNeuron]) -> Group:
    table = _table("neuron", "name", "cosine", "density", "exemplars show")
    for nearest in neurons:
        table.add_row(
            str(nearest.neuron.neuron_id),
            _name(nearest.neuron),
            f"{nearest.cosine:.3f}",
            _density(nearest.neuron),
            Text(label_summary(nearest.top_images) or "-"),
        )
    return _titled("Nearest neurons by direction", table)


def _neuron_matches(title: str, matches: Sequence[NeuronMatch], metric: str) -> Group:
    shown = [label_summary(match.top_images) for match in matches]
    # Those of a neuron come without exemplars, and a corpus may have no labels.
    table = _table("neuron", "name", metric, "density", *(["exemplars show"] if any(shown) else []))
    for match, labels in zip(matches, shown, strict=True):
        table.add_row(
            str(match.neuron.neuron_id),
            _name(match.neuron),
            f"{match.score:.3f}",
            _density(match.neuron),
            *([Text(labels or "-")] if any(shown) else []),
        )
    return _titled(title, table)


def _histogram(histogram: ActivationHistogram) -> Group:
    table = _table("activation", "images")
    most = max(histogram.counts, default=0)
    for lower, upper, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        table.add_row(f"{number(lower)} to {number(upper)}", _bar(float(count), float(most), said=str(count)))
    return _titled("How strongly it fires", table)


def _co_active(neurons: Iterable[CoActiveNeuron]) -> Group:
    table = _table("neuron", "name", "NPMI", "images with both", "density")
    for other in neurons:
        table.add_row(
            str(other.neuron.neuron_id),
            _name(other.neuron),
            f"{other.npmi:.3f}",
            str(other.image_count),
            _density(other.neuron),
        )
    return _titled("Neurons that fire with it", table)


def _code(code: Code) -> Group:
    table = _table("neuron", "activation")
    for neuron_id, activation in zip(code.neuron_ids, code.activations, strict=False):
        table.add_row(str(neuron_id), number(activation))
    cut = f" (activations cut from it: {code.cut_count})" if code.cut_count else ""
    return _titled(f"Its whole code{cut}", table)


def _how_found(answer: SearchImagesResponse) -> list[RenderableType]:
    """What there is to say of the search; of one by neuron or expression, what made it."""
    if answer.HasField("code_search"):
        return _code_search(answer.code_search)
    recall = answer.recall if answer.HasField("recall") else 1.0
    return _code_search(CodeSearch(recall=recall, engine=answer.engine))


def _code_search(search: CodeSearch) -> list[RenderableType]:
    said = code_search_words(search)
    return [Text(said, style="dim")] if said else []


def _hidden(count: int) -> list[RenderableType]:
    return [Text(f"\n{hidden_words(count)}", style="yellow")] if count else []


def _exemplars(title: str, exemplars: Sequence[Exemplar]) -> Group:
    table = _table("activation", "stronger than", "image")
    largest = max(exemplar.activation for exemplar in exemplars)
    for exemplar in exemplars:
        table.add_row(_bar(exemplar.activation, largest), percent(exemplar.quantile), Text(caption_of(exemplar.image)))
    return _titled(title, table)


def _images(title: str, matches: Iterable[ImageMatch], metric: str) -> Group:
    table = _table(metric, "image", "file")
    for match in matches:
        table.add_row(f"{match.score:.3f}", Text(caption_of(match.image)), Text(plain(match.image.uri)))
    return _titled(title, table)


def _scores(scores: Iterable[Score]) -> Group:
    table = _table("name", "score")
    for score in scores:
        table.add_row(Text(plain(score.name)), number(score.score))
    return _titled("What the model would call it", table)


def _provenance(provenance: Provenance) -> Text:
    said = " · ".join(f"{title} {value}" for title, value in provenance_words(provenance))
    return Text(f"\n{said}", style="dim")


def _table(*columns: str) -> Columns:
    return Columns(*columns, folded=_WORDS)


def _titled(title: str, table: Columns) -> Group:
    return Group(Text(f"\n{title}", style="bold"), table)


def _name(neuron: NeuronSummary) -> Text:
    return Text(neuron_title(neuron)) if neuron.HasField("name") else Text("-")


def _against_corpus(quantile: float | None) -> str:
    if quantile is None:
        return "-"
    if quantile >= 1.0:
        return "stronger than all"
    return f"stronger than {percent(quantile)}" if quantile > 0.0 else "weaker than all"


def _density(neuron: NeuronSummary) -> str:
    return percent(neuron.density) if neuron.HasField("density") else "-"


def _bar(value: float, largest: float, *, said: str | None = None) -> Text:
    eighths = round(8 * _BAR_WIDTH * min(1.0, max(0.0, value / largest))) if largest > 0 else 0
    drawn = ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip()
    return Text(f"{drawn:<{_BAR_WIDTH}} ", style="yellow").append(said or number(value), style="default")
