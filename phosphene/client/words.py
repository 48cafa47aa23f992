"""The figures of an answer in words, for tables and pages alike; knows nothing of how they are shown.

Everything that comes from a corpus (names, labels, captions, addresses) passes `plain` before a person sees it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import floor
from typing import Literal, assert_never

from phosphene.v1.admin_pb2 import DrainResponse, GetStatusResponse, ReloadResponse
from phosphene.v1.explain_pb2 import Fidelity
from phosphene.v1.images_pb2 import ImageMetric
from phosphene.v1.neurons_pb2 import NeuronMetric
from phosphene.v1.values_pb2 import (
    CodeSearch,
    CorpusImage,
    Exemplar,
    NameSource,
    NeuronName,
    NeuronSummary,
    Provenance,
    SearchEngine,
)

__all__ = [
    "Verdict",
    "caption_of",
    "code_search_words",
    "density_words",
    "hidden_words",
    "image_metric_words",
    "label_summary",
    "meaning_words",
    "name_evidence",
    "neuron_metric_words",
    "neuron_title",
    "number",
    "operation_words",
    "percent",
    "plain",
    "provenance_words",
    "quantile_words",
    "verdict",
]


_LINE_BREAKS = "\t\n\v\f\r\u0085\u2028\u2029"
# A neuron that fires on this share of a corpus tells its images apart by strength alone.
_COMMONPLACE = 0.9
_SHOWN_NEURONS = 8
_UNSHOWN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs"})
_JOINERS = "\u200c\u200d"
# Letters of scripts that join them, vowel signs and all, are neither ASCII nor pictures.
_LOOSE_JOINERS = re.compile("(?<![\u0600-\u0dff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0600-\u0dff])|[\u200c\u200d]{2,}")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether to trust an explanation."""

    grade: Literal["good", "fair", "poor"]
    """For colour: trust it, take it as hints, do not rely on it."""
    headline: str
    """The answer in a few words."""
    reason: str
    """What was measured, in a sentence or two."""


def plain(text: str) -> str:
    """Return `text` on one line, without control, format (bidirectional ones too) or unassigned characters.

    What joins or parts two letters stays: without it, words of Persian or Hindi are misspelt.
    """
    kept = "".join(
        char
        for char in (" " if char in _LINE_BREAKS else char for char in text)
        if char in _JOINERS or unicodedata.category(char) not in _UNSHOWN
    )
    return _LOOSE_JOINERS.sub("", kept).strip()


def number(value: float) -> str:
    """Return a figure with three significant digits."""
    if value == 0.0 or abs(value) >= 999.5:  # What is rounded to 1000 has four.
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage; neither 0 % nor 100 % unless it is exactly that."""
    if share <= 0.0 or share >= 1.0:
        return f"{100.0 * share:.0f} %"
    if share < 0.0001:
        return "< 0.01 %"
    if share < 0.1:
        return f"{100.0 * share:.2g} %"
    # Rounded down, so that no share claims more than it is; float32 noise aside.
    return f"{floor(100.0 * share + 1e-4)} %" if share < 0.99 else f"{floor(1000.0 * share + 1e-3) / 10.0:.1f} %"


def quantile_words(quantile: float | None) -> str:
    """Say how strong an activation is among those of the corpus; None where the corpus cannot tell."""
    if quantile is None:
        return "no corpus image to compare with"
    if quantile <= 0.0:
        return "weaker than every corpus image on which it fires"
    if quantile >= 1.0:
        return "stronger than every corpus image on which it fires"
    return f"stronger than {percent(quantile)} of the images on which it fires"


def density_words(density: float | None) -> str:
    """Say how common a neuron is in the corpus; None where there is no corpus."""
    if density is None:
        return "no corpus"
    if density <= 0.0:
        return "never fires in the corpus"
    if density >= _COMMONPLACE:
        return f"fires on {percent(density)} of images, so that it says little by itself"
    return f"fires on {percent(density)} of images"


def neuron_title(neuron: NeuronSummary) -> str:
    """Return a neuron's best name, or its number where it has none."""
    name = plain(neuron.name.name) if neuron.HasField("name") else ""
    return name or f"neuron {neuron.neuron_id}"


def name_evidence(name: NeuronName) -> str:
    """Say what speaks for a name."""
    source = {
        NameSource.NAME_SOURCE_LABEL: "label",
        NameSource.NAME_SOURCE_CAPTION: "caption",
        NameSource.NAME_SOURCE_VOCABULARY: "vocabulary",
    }.get(name.source, "name")
    return f"{source}, {name.score:.2f} above the corpus, {name.margin:.2f} above the next"


def caption_of(image: CorpusImage) -> str:
    """Return what is said of a corpus image: label and caption, or where it lies."""
    said = [plain(text) for text in (image.label, image.caption) if text]
    return " · ".join(text for text in said if text) or plain(image.uri)


def label_summary(exemplars: Iterable[Exemplar], *, limit: int = 2) -> str:
    """Return the most frequent labels of some exemplars, or captions where they have no labels: "cat ×5, dog ×2"."""
    texts = (plain(exemplar.image.label or exemplar.image.caption) for exemplar in exemplars)
    counts = Counter(text for text in texts if text).most_common(limit)
    return ", ".join(text if count == 1 else f"{text} ×{count}" for text, count in counts)


def verdict(fidelity: Fidelity) -> Verdict:
    """Say whether the neurons tell enough of what the encoder sees for the rest of the answer to be trusted.

    The grades are rules of thumb on the explained variance (1 - FVU): from 0.8 on the list can be read as it stands,
    from 0.5 on as hints.
    """
    explained = 1.0 - fidelity.fvu
    cut = _cuts(fidelity)
    if explained >= 0.8:
        return Verdict(
            grade="good",
            headline="You can trust this list",
            reason=f"Its neurons account for {percent(explained)} of what the encoder holds of this image.{cut}",
        )
    if explained >= 0.5:
        return Verdict(
            grade="fair",
            headline="Read this list as hints",
            reason=f"Its neurons account for {percent(explained)} of what the encoder holds of this image; "
            f"the rest is not told here.{cut}",
        )
    if explained > 0.0:
        return Verdict(
            grade="poor",
            headline="Do not rely on this list",
            reason=f"Its neurons account for only {percent(explained)} of what the encoder holds of this image; "
            f"most of it is not told here.{cut}",
        )
    return Verdict(
        grade="poor",
        headline="Do not rely on this list",
        reason="Its neurons describe this image worse than saying nothing would: it is unlike what they were "
        f"trained on.{cut}",
    )


def image_metric_words(metric: ImageMetric.ValueType) -> str:
    """Name what the score of an image measures."""
    return {
        ImageMetric.IMAGE_METRIC_CODE_COSINE: "cosine of codes",
        ImageMetric.IMAGE_METRIC_ACTIVATION: "activation",
        ImageMetric.IMAGE_METRIC_EXPRESSION: "sum of activation / largest",
        ImageMetric.IMAGE_METRIC_CODE_INNER_PRODUCT: "inner product of codes",
        ImageMetric.IMAGE_METRIC_RESIDUAL_COSINE: "cosine of residuals",
        ImageMetric.IMAGE_METRIC_TEXT_COSINE: "cosine with the words",
    }.get(metric, "score")


def code_search_words(search: CodeSearch) -> str:
    """Say what a search for similar images misses and leaves out, and what made it; empty where it is exact.

    That is: over all neurons, and by the index itself.
    """
    said = []
    if search.recall < 1.0:
        said.append(f"Such a search finds {percent(search.recall)} of the nearest images.")
    if search.left_out_neuron_ids:
        shown = ", ".join(str(neuron_id) for neuron_id in search.left_out_neuron_ids[:_SHOWN_NEURONS])
        more = len(search.left_out_neuron_ids) - _SHOWN_NEURONS
        rest = f" and {more} more" if more > 0 else ""
        said.append(f"Neurons that fire on too many images do not count: {shown}{rest}.")
    if search.engine == SearchEngine.SEARCH_ENGINE_QDRANT:
        said.append("Qdrant found them, from the codes of the index.")
    return " ".join(said)


def hidden_words(count: int) -> str:
    """Say how much an answer hides; empty where it is nothing."""
    if not count:
        return ""
    what = "1 neuron or image is" if count == 1 else f"{count} neurons and images are"
    return f"{what} hidden as sensitive; --include-sensitive (include_sensitive) shows them."


def meaning_words(neuron: NeuronSummary) -> str:
    """Say whether a neuron shows one thing, as far as that is known; empty where nothing is."""
    said = []
    if neuron.HasField("monosemanticity"):
        said.append(f"monosemanticity {neuron.monosemanticity:.2f} (1: its images are all alike)")
    if neuron.is_dense:
        said.append("dense: so many images share it that it says little of each")
    return ", ".join(said)


def neuron_metric_words(metric: NeuronMetric.ValueType) -> str:
    """Name what the score of a neuron measures."""
    return {
        NeuronMetric.NEURON_METRIC_TEXT_EXEMPLARS: "cosine of text and exemplars",
        NeuronMetric.NEURON_METRIC_TEXT_DIRECTION: "cosine of text and direction",
        NeuronMetric.NEURON_METRIC_DIRECTIONS: "cosine of directions",
    }.get(metric, "score")


def provenance_words(provenance: Provenance) -> list[tuple[str, str]]:
    """Return what an answer was made from, as pairs of a title and a text; what was not used is left out."""
    revision = f" @ {plain(provenance.encoder_revision)}" if provenance.encoder_revision else ""
    pairs = [
        ("encoder", f"{plain(provenance.encoder)}{revision}, {plain(provenance.site)}"),
        ("bundle", f"{plain(provenance.bundle)} ({provenance.bundle_id[:12]})"),
        ("corpus", f"{plain(provenance.corpus)} ({provenance.index_id[:12]})" if provenance.corpus else "none"),
        ("code", provenance.code_id[:12]),
        ("computed", f"{plain(provenance.engine)} on {plain(provenance.device)}, {plain(provenance.precision)}"),
        ("service", plain(provenance.service_version)),
    ]
    return [(title, text) for title, text in pairs if text]


def operation_words(answer: GetStatusResponse | ReloadResponse | DrainResponse) -> str:
    """Say what a replica answered to its operator."""
    match answer:
        case GetStatusResponse():
            state = "serving" if answer.serving else "not serving"
            return (
                f"{state} generation {plain(answer.generation)}, version {plain(answer.service_version)}: "
                f"{answer.accepted_image_count} images in hand ({answer.accepted_image_bytes} bytes), "
                f"a new one would wait {number(answer.wait_s)} s"
            )
        case ReloadResponse():
            what = "switched to" if answer.switched else "nothing has changed, still serving"
            return f"{what} generation {plain(answer.generation)}"
        case DrainResponse():
            return f"draining; accepted work may take {number(answer.limit_s)} s"
        case _:
            assert_never(answer)


def _cuts(fidelity: Fidelity) -> str:
    # They are in the codes of the tokens, by which fidelity is measured, and not in that of the image.
    image = tokens = ""
    if fidelity.cut_count == 1:
        image = " 1 weaker neuron counts in this, but was cut from the code."
    elif fidelity.cut_count:
        image = f" {fidelity.cut_count} weaker neurons count in this, but were cut from the code."
    if fidelity.token_cut_count == 1:
        tokens = " 1 activation was cut from its tokens."
    elif fidelity.token_cut_count:
        tokens = f" {fidelity.token_cut_count} activations were cut from its tokens."
    return image + tokens
