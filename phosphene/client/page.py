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
    histogram_bars,
    match_strip,
    section,
    text,
)
from phosphene.client.page_maps import framed, heat_map, photo_style, region_of
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
from phosphene.v1.explain_pb2 import ActiveNeuron, ExplainResponse
from phosphene.v1.neurons_pb2 import CoActiveNeuron, GetNeuronResponse, NeuronMatch
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
    over_photo = photo is not None and (region_of(answer.grid) is not None or _is_square(answer))
    parts = [
        _hero(answer, photo, title),
        _neurons(answer, over_photo=over_photo) or _silence(answer),
        _similar_images(answer),
        _nearest_neurons(answer),
        _hidden(answer.hidden_count),
    ]
    style = photo_style(photo, answer.grid) if photo is not None and over_photo and _has_patches(answer) else ""
    heading = f"What lights up in {title}" if title else "What lights up"
    return frame(heading, "\n".join(part for part in parts if part), provenance_words(answer.provenance), style=style)


def neuron_page(answer: GetNeuronResponse, *, similar: Sequence[NeuronMatch] = ()) -> str:
    """Return what is known of a neuron as one self-contained HTML page.

    Args:
        answer: what the service said.
        similar: the neurons like it with their exemplars, as SearchNeurons gives them; those of `answer`, which have
            none, where it is empty.
    """
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
        _similar_neurons(similar or answer.similar_neurons),
        _co_active_neurons(answer.co_active_neurons),
        _hidden(answer.hidden_count),
    ]
    return frame(number_and_name, "\n".join(part for part in parts if part), provenance_words(answer.provenance))


def _hero(answer: ExplainResponse, photo: str | None, title: str) -> str:
    image = answer.image
    said = title or (caption_of(image.corpus_image) if image.HasField("corpus_image") else "the image")
    tiny = " tiny" if max(image.width, image.height) < 160 else ""
    aspect = f' style="--aspect:{image.width / image.height:.4f}"' if image.width and image.height else ""
    region = region_of(answer.grid)
    box = "" if region is None else framed(region)
    note = f"{image.width} × {image.height} pixels"
    if box:
        note += " · in the frame: what the model was shown"
    if image.HasField("corpus_image"):
        note += f" · in the corpus: {caption_of(image.corpus_image)}"
    side = _verdict(answer) + _scores(answer)
    if photo is None:
        return f'<p class="lead">{text(note)}</p>\n<div class="side">\n{side}</div>'
    return (
        f'<div class="hero">\n<figure class="card"><div class="shown{tiny}"{aspect}>'
        f'<img src="{photo}" alt="{text(said)}">{box}</div><figcaption>{text(note)}</figcaption></figure>\n'
        f'<div class="side">\n{side}</div>\n</div>'
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
        f'<div class="card verdict {judged.grade}"><h2>{text(judged.headline)}</h2>'
        f"<p>{text(judged.reason)}</p>{facts(pairs)}</div>\n"
    )


def _scores(answer: ExplainResponse) -> str:
    if not answer.scores:
        return ""
    items = "".join(
        f"<li><span dir=auto>{text(score.name)}</span><b>{text(number(score.score))}</b></li>"
        for score in answer.scores
    )
    lead = "The model's own answer, without the neurons: the higher, the likelier."
    return (
        f'<div class="card"><h2>What the model would call it</h2><p class="said">{text(lead)}</p>'
        f'<ol class="scores">{items}</ol></div>\n'
    )


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
    if _has_patches(answer) or _is_mapped(active.top_images for active in answer.neurons):
        lead += " Point at a map, or touch it, to see the picture without it."
    return section("Its strongest neurons", lead, f'<ol class="neurons">\n{items}\n</ol>')


def _active_neuron(active: ActiveNeuron, answer: ExplainResponse, largest: float, *, over_photo: bool) -> str:
    quantile = active.quantile if active.HasField("quantile") else None
    patches = ""
    if active.patch_activations:
        patches = heat_map(active.patch_activations, answer.grid, over_photo=over_photo, aspect=_aspect(answer))
    return (
        f'<li class="card neuron">{_title(active.neuron)}{patches}{bar(active.activation, largest)}'
        f'<p class="said">{text(quantile_words(quantile))} · {text(_density_words(active.neuron))}</p>'
        f"{exemplar_strip(active.top_images)}</li>"
    )


def _silence(answer: ExplainResponse) -> str:
    if not (answer.fidelity.HasField("l0") and answer.fidelity.l0 == 0.0):
        return ""
    return section("Its strongest neurons", "No neuron fires on this image.", "")


def _similar_images(answer: ExplainResponse) -> str:
    strip = match_strip(answer.similar_images, "cosine of codes")
    lead = "Images of the corpus on which the same neurons fire, with the cosine of the two codes (1 is the same)."
    how = code_search_words(answer.code_search) if answer.HasField("code_search") else ""
    return section("Similar images", f"{lead} {how}".rstrip(), strip) if strip else ""


def _nearest_neurons(answer: ExplainResponse) -> str:
    if not answer.nearest_neurons:
        return ""
    lead = "Neurons whose directions point most along what the model holds of this image, whether they fire or not."
    return _relatives(
        "Nearest neurons",
        lead,
        [
            _relative(nearest.neuron, f"cosine {nearest.cosine:.2f}", nearest.top_images)
            for nearest in answer.nearest_neurons
        ],
        with_pictures=any(nearest.top_images for nearest in answer.nearest_neurons),
    )


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
        pairs.append(("monosemanticity (1: its images are all alike)", f"{neuron.monosemanticity:.2f}"))
    if neuron.HasField("label_entropy"):
        pairs.append(("label entropy (0: they have one label)", f"{number(neuron.label_entropy)} bits"))
    names = "".join(
        f"<li><bdi>{text(name.name)}</bdi> <small>{text(name_evidence(name))}</small></li>" for name in answer.names
    )
    listed = f'<ol class="names">{names}</ol>' if names else '<p class="said">No name was found for it.</p>'
    bars = histogram_bars(answer.histogram) if answer.HasField("histogram") else ""
    said = '<p class="said figures">How many images it fires on, from weak to strong:</p>' if bars else ""
    return (
        f'<div class="two start"><div class="card"><h2>Names</h2>{listed}</div>\n'
        f'<div class="card"><h2>Activations</h2>{facts(pairs)}{said}{bars}</div></div>'
    )


def _shown(title: str, lead: str, exemplars: Sequence[Exemplar]) -> str:
    strip = exemplar_strip(exemplars)
    return section(title, lead, strip) if strip else ""


def _similar_neurons(matches: Sequence[NeuronMatch]) -> str:
    items = [_relative(match.neuron, f"cosine {match.score:.2f}", match.top_images) for match in matches]
    return _relatives(
        "Neurons like it",
        "Neurons with the most similar directions: 1 is the same.",
        items,
        with_pictures=any(match.top_images for match in matches),
    )


def _co_active_neurons(neurons: Sequence[CoActiveNeuron]) -> str:
    items = [
        _relative(other.neuron, f"{other.image_count} images with both, NPMI {other.npmi:.2f}") for other in neurons
    ]
    return _relatives(
        "Neurons that fire with it",
        "Neurons that fire on the same images more often than chance would have it (an NPMI of 1: never apart).",
        items,
        with_pictures=False,
    )


def _relative(neuron: NeuronSummary, how: str, exemplars: Sequence[Exemplar] = ()) -> str:
    said = f"{how} · {_density_words(neuron)}"
    return f'<li class="card">{_title(neuron)}<p class="said">{text(said)}</p>{exemplar_strip(exemplars)}</li>'


def _relatives(title: str, lead: str, items: Sequence[str], *, with_pictures: bool) -> str:
    kind = "two" if with_pictures else "relatives"
    listed = "\n".join(items)
    return section(title, lead, f'<ol class="neurons {kind}">\n{listed}\n</ol>') if items else ""


def _hidden(count: int) -> str:
    return f'<p class="lead">{text(hidden_words(count))}</p>' if count else ""


def _title(neuron: NeuronSummary) -> str:
    chip = f"neuron {neuron.neuron_id}" if neuron.HasField("name") else "no name"
    return f'<div class="title"><h3 dir="auto">{text(neuron_title(neuron))}</h3><span class="chip">{chip}</span></div>'


def _density_words(neuron: NeuronSummary) -> str:
    return density_words(neuron.density if neuron.HasField("density") else None)


def _has_patches(answer: ExplainResponse) -> bool:
    return any(active.patch_activations for active in answer.neurons)


def _is_mapped(strips: Iterable[Iterable[Exemplar]]) -> bool:
    return any(exemplar.HasField("patch_map") for strip in strips for exemplar in strip)


def _aspect(answer: ExplainResponse) -> float:
    """Width / height of what the grid covers."""
    image, region = answer.image, region_of(answer.grid)
    if region is not None and image.width and image.height:
        return image.width * (region.right - region.left) / (image.height * (region.bottom - region.top))
    return 1.0


def _is_square(answer: ExplainResponse) -> bool:
    short, long = sorted((answer.image.width, answer.image.height))
    return short > 0 and long / short <= _SQUARE_RATIO
