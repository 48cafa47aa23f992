"""One answer as one page for a browser; knows nothing of where the answer came from.

`explanation_page` shows an image and what lights up on it; `neuron_page` shows a neuron. Ask for the answer with
`include_thumbnails=True`, or exemplars are shown by their captions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from phosphene.client.page_figures import (
    bar,
    data_uri,
    exemplar_strip,
    facts,
    frame,
    match_strip,
    section,
    text,
)
from phosphene.client.page_maps import heat_map, photo_style
from phosphene.client.words import (
    caption_of,
    code_search_words,
    density_words,
    hidden_words,
    name_evidence,
    neuron_title,
    number,
    percent,
    provenance_words,
    quantile_words,
    verdict,
)
from phosphene.v1.explain_pb2 import ActiveNeuron, ExplainResponse, NearestNeuron
from phosphene.v1.neurons_pb2 import GetNeuronResponse, NeuronMatch
from phosphene.v1.values_pb2 import Exemplar, NeuronSummary

__all__ = ["explanation_page", "neuron_page"]

# Where a service does not say which part a grid covers: up to this ratio of the sides, crop and resize move a patch by
# about its size at most, and a map may lie on the photo.
_SQUARE_RATIO = 1.05


def explanation_page(answer: ExplainResponse, *, image: bytes | None = None, title: str = "") -> str:
    """Return an explanation as one self-contained HTML page.

    Args:
        answer: what the service said. Parts that were not asked for are left out of the page.
        image: the encoded file that was explained; None shows the corpus's thumbnail of it, where there is one.
        title: what to call the image, such as its file name.
    """
    photo = data_uri(image) if image is not None else data_uri(answer.image.corpus_image.thumbnail)
    over_photo = photo is not None and (answer.grid.HasField("region") or _is_square(answer))
    parts = [
        _hero(answer, photo, title),
        _neurons(answer, over_photo=over_photo),
        _similar_images(answer),
        _nearest_neurons(answer),
        _hidden(answer.hidden_count),
    ]
    style = photo_style(photo, answer.grid) if photo is not None and over_photo and _has_patches(answer) else ""
    heading = f"What lights up in {title}" if title else "What lights up"
    return frame(heading, "\n".join(part for part in parts if part), provenance_words(answer.provenance), style=style)


def neuron_page(answer: GetNeuronResponse) -> str:
    """Return what is known of a neuron as one self-contained HTML page."""
    neuron = answer.neuron
    number_and_name = f"Neuron {neuron.neuron_id}"
    if neuron.HasField("name"):
        number_and_name += f": {neuron_title(neuron)}"
    top_lead = "The corpus images that excite it most, strongest first."
    if _is_mapped([answer.top_images]):
        top_lead += " What glows is where it fires."
    parts = [
        _neuron_facts(answer),
        _shown("It fires most on", top_lead, answer.top_images),
        _shown(
            "Its whole range",
            "Images from its strongest to its weakest activation, in even steps of strength as far as there are any: a "
            "neuron with one meaning keeps it to the end.",
            answer.spread_images,
        ),
        _similar_neurons(answer),
        _hidden(answer.hidden_count),
    ]
    return frame(number_and_name, "\n".join(part for part in parts if part), provenance_words(answer.provenance))


def _hero(answer: ExplainResponse, photo: str | None, title: str) -> str:
    image = answer.image
    said = title or (caption_of(image.corpus_image) if image.HasField("corpus_image") else "the image")
    tiny = ' class="tiny"' if max(image.width, image.height) < 160 else ""
    note = f"{image.width} × {image.height} pixels"
    if image.HasField("corpus_image"):
        note += f" · in the corpus: {caption_of(image.corpus_image)}"
    side = _verdict(answer) + _scores(answer)
    if photo is None:
        return f'<p class="lead">{text(note)}</p>\n<div class="side">\n{side}</div>'
    return (
        f'<div class="hero">\n<figure class="card"><img{tiny} src="{photo}" alt="{text(said)}">'
        f'<figcaption>{text(note)}</figcaption></figure>\n<div class="side">\n{side}</div>\n</div>'
    )


def _verdict(answer: ExplainResponse) -> str:
    if not answer.HasField("fidelity"):
        return ""
    fidelity, judged = answer.fidelity, verdict(answer.fidelity)
    pairs = [("variance unexplained (FVU)", number(fidelity.fvu))]
    if fidelity.HasField("cosine"):
        pairs.append(("cosine with the reconstruction", number(fidelity.cosine)))
    if fidelity.HasField("l0"):
        pairs.append(("neurons per token", number(fidelity.l0)))
    return (
        f'<div class="card verdict {judged.grade}"><h3>{text(judged.headline)}</h3>'
        f"<p>{text(judged.reason)}</p>{facts(pairs)}</div>\n"
    )


def _scores(answer: ExplainResponse) -> str:
    if not answer.scores:
        return ""
    items = "".join(
        f"<li><span>{text(score.name)}</span><b>{text(number(score.score))}</b></li>" for score in answer.scores
    )
    return f'<div class="card"><h3>What the model would call it</h3><ol class="scores">{items}</ol></div>\n'


def _neurons(answer: ExplainResponse, *, over_photo: bool) -> str:
    if not answer.neurons:
        return ""
    largest = max(active.activation for active in answer.neurons)
    items = "\n".join(_active_neuron(active, answer, largest, over_photo=over_photo) for active in answer.neurons)
    lead = (
        "Each neuron stands for something that the model tells apart. The bar says how strongly it fires on this "
        "image; the pictures are those of the corpus that excite it most, each with its activation."
    )
    if _has_patches(answer):
        lead += (
            " The maps show the part of the photo that the model was shown."
            if over_photo
            else " The maps cover what the model was shown, the photo resized and cropped, not the whole photo."
        )
    if _is_mapped(active.top_images for active in answer.neurons):
        lead += " On the corpus's pictures, too, what glows is where the neuron fires."
    return section("Its strongest neurons", lead, f'<ol class="neurons">\n{items}\n</ol>')


def _active_neuron(active: ActiveNeuron, answer: ExplainResponse, largest: float, *, over_photo: bool) -> str:
    quantile = active.quantile if active.HasField("quantile") else None
    patches = heat_map(active.patch_activations, answer.grid, over_photo=over_photo) if active.patch_activations else ""
    return (
        f'<li class="card neuron">{_title(active.neuron)}{patches}{bar(active.activation, largest)}'
        f'<p class="said">{text(quantile_words(quantile))} · {text(_density_words(active.neuron))}</p>'
        f"{exemplar_strip(active.top_images)}</li>"
    )


def _similar_images(answer: ExplainResponse) -> str:
    strip = match_strip(answer.similar_images, "cosine of codes")
    lead = "Images of the corpus on which the same neurons fire, with the cosine of the two codes (1 is the same)."
    how = code_search_words(answer.code_search) if answer.HasField("code_search") else ""
    return section("Similar images", f"{lead} {how}".rstrip(), strip) if strip else ""


def _nearest_neurons(answer: ExplainResponse) -> str:
    if not answer.nearest_neurons:
        return ""
    items = "\n".join(_nearest_neuron(nearest) for nearest in answer.nearest_neurons)
    lead = "Neurons whose directions point most along what the model holds of this image, whether they fire or not."
    return section("Nearest neurons", lead, f'<ol class="neurons two">\n{items}\n</ol>')


def _nearest_neuron(nearest: NearestNeuron) -> str:
    said = f"cosine {nearest.cosine:.2f} · {_density_words(nearest.neuron)}"
    strip = exemplar_strip(nearest.top_images)
    return f'<li class="card">{_title(nearest.neuron)}<p class="said">{text(said)}</p>{strip}</li>'


def _neuron_facts(answer: GetNeuronResponse) -> str:
    neuron, statistics = answer.neuron, answer.statistics
    pairs = [
        ("fires on", f"{statistics.firing_count} of {statistics.image_count} images"),
        ("density", percent(neuron.density) if neuron.HasField("density") else "not known"),
    ]
    if statistics.firing_count:
        pairs += [
            ("mean activation", f"{number(statistics.mean)} ± {number(statistics.standard_deviation)}"),
            ("largest", number(statistics.maximum)),
        ]
    if neuron.HasField("monosemanticity"):
        pairs.append(("monosemanticity", f"{neuron.monosemanticity:.2f}"))
    if neuron.HasField("label_entropy"):
        pairs.append(("label entropy", f"{number(neuron.label_entropy)} bits"))
    names = "".join(f"<li>{text(name.name)} <small>{text(name_evidence(name))}</small></li>" for name in answer.names)
    listed = f'<ol class="names">{names}</ol>' if names else '<p class="said">No name was found for it.</p>'
    return (
        f'<div class="two"><div class="card"><h3>Names</h3>{listed}</div>\n'
        f'<div class="card"><h3>Activations</h3>{facts(pairs)}</div></div>'
    )


def _shown(title: str, lead: str, exemplars: Sequence[Exemplar]) -> str:
    strip = exemplar_strip(exemplars)
    return section(title, lead, strip) if strip else ""


def _similar_neurons(answer: GetNeuronResponse) -> str:
    items = "\n".join(_similar_neuron(match) for match in answer.similar_neurons)
    lead = "Neurons with the most similar directions."
    return section("Neurons like it", lead, f'<ol class="neurons two">\n{items}\n</ol>') if items else ""


def _similar_neuron(match: NeuronMatch) -> str:
    said = f"cosine {match.score:.2f} · {_density_words(match.neuron)}"
    strip = exemplar_strip(match.top_images)
    return f'<li class="card">{_title(match.neuron)}<p class="said">{text(said)}</p>{strip}</li>'


def _hidden(count: int) -> str:
    return f'<p class="lead">{text(hidden_words(count))}</p>' if count else ""


def _title(neuron: NeuronSummary) -> str:
    chip = f"neuron {neuron.neuron_id}" if neuron.HasField("name") else "no name"
    return f'<div class="title"><h3>{text(neuron_title(neuron))}</h3><span class="chip">{chip}</span></div>'


def _density_words(neuron: NeuronSummary) -> str:
    return density_words(neuron.density if neuron.HasField("density") else None)


def _has_patches(answer: ExplainResponse) -> bool:
    return any(active.patch_activations for active in answer.neurons)


def _is_mapped(strips: Iterable[Iterable[Exemplar]]) -> bool:
    return any(exemplar.HasField("patch_map") for strip in strips for exemplar in strip)


def _is_square(answer: ExplainResponse) -> bool:
    short, long = sorted((answer.image.width, answer.image.height))
    return short > 0 and long / short <= _SQUARE_RATIO
