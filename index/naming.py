"""First names for neurons, from the labels and captions of their top exemplars; unnamed where nothing fits.

A term (a label value, a caption word, two neighbouring caption words) is scored by how much larger its share among a
neuron's exemplars is than in the corpus: the difference of the two shares, which asks for lift and coverage at once.
Lift alone prefers words that one exemplar has by accident; the share alone prefers words that every caption has. Knows
nothing of files or activations beyond the weights it is given.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from index.values import NameSource, NeuronName

__all__ = [
    "NAME_EXEMPLAR_COUNT",
    "Term",
    "effective_count",
    "name_neuron",
    "overlap",
    "term_shares",
    "terms_of",
    "trust_in",
]

Term = tuple[NameSource, str]
"""A candidate name: where it comes from, and the words."""

NAME_EXEMPLAR_COUNT = 32
"""Top exemplars that a name is judged on."""
_NAME_LIMIT = 3
_LEAST_SCORE = 0.3
_LEAST_LIFT = 1.5
_LEAST_DEVIATIONS = 4.0
_PRIOR_EXEMPLARS = 2.0
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "by",
        "for",
        "from",
        "has",
        "have",
        "her",
        "his",
        "in",
        "into",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "than",
        "that",
        "the",
        "their",
        "there",
        "these",
        "this",
        "those",
        "to",
        "with",
    ]
)


def terms_of(label: str | None, caption: str | None) -> frozenset[Term]:
    """Return the terms of one image; function words neither stand alone nor in a pair."""
    terms: set[Term] = set()
    # A label of blanks says nothing.
    if label and (name := label.replace("_", " ").strip()):
        terms.add((NameSource.LABEL, name))
    words = _WORD.findall(caption.lower()) if caption else []
    for place, word in enumerate(words):
        if word in _FUNCTION_WORDS:
            continue
        terms.add((NameSource.CAPTION, word))
        if place + 1 < len(words) and words[place + 1] not in _FUNCTION_WORDS:
            terms.add((NameSource.CAPTION, f"{word} {words[place + 1]}"))
    return frozenset(terms)


def term_shares(images: Iterable[frozenset[Term]]) -> dict[Term, float]:
    """Return each term's share of the images, in (0, 1]."""
    counts: Counter[Term] = Counter()
    image_count = 0
    for terms in images:
        counts.update(terms)
        image_count += 1
    return {term: count / image_count for term, count in counts.items()}


def name_neuron(
    exemplars: Sequence[frozenset[Term]], weights: Sequence[float], shares: Mapping[Term, float]
) -> tuple[NeuronName, ...]:
    """Name a neuron by its top exemplars.

    Args:
        exemplars: the terms of each exemplar.
        weights: the activation of each, greater than 0.
        shares: each term's share of the corpus (or of a sample of it).

    Returns:
        Up to three names, best first, none a part of another; empty where the best is weak: a score below 0.3, a lift
        below 1.5, or a share that chance alone might give (less than 4 standard deviations above the corpus's).
    """
    scores = _scores(exemplars, weights, shares)
    ranked = sorted(scores, key=lambda term: (-round(scores[term], 9), -len(term[1].split()), term))
    named: list[NeuronName] = []
    for term in ranked:
        if len(named) == _NAME_LIMIT:
            break
        if any(overlap(term[1], name.name) for name in named) or not _is_strong(
            term, scores[term], exemplars, weights, shares
        ):
            continue
        rivals = (scores[other] for other in ranked if other[0] == term[0] and not overlap(other[1], term[1]))
        margin = scores[term] - max(0.0, next(rivals, 0.0))
        named.append(NeuronName(name=term[1], score=scores[term], margin=margin, source=term[0]))
    return tuple(named)


def _scores(
    exemplars: Sequence[frozenset[Term]], weights: Sequence[float], shares: Mapping[Term, float]
) -> dict[Term, float]:
    mass: defaultdict[Term, float] = defaultdict(float)
    for terms, weight in zip(exemplars, weights, strict=True):
        for term in terms:
            mass[term] += weight
    total, trust = sum(weights), trust_in(weights)
    return {term: trust * (mass[term] / total - shares.get(term, 0.0)) for term in mass}


def trust_in(weights: Sequence[float]) -> float:
    """Return by how much a score is shrunk: few exemplars prove little, so the corpus counts as two more of them."""
    return effective_count(weights) / (effective_count(weights) + _PRIOR_EXEMPLARS) if sum(weights) > 0 else 0.0


def effective_count(weights: Sequence[float]) -> float:
    """Return how many exemplars of equal weight would scatter as much."""
    return sum(weights) ** 2 / sum(weight**2 for weight in weights)


def _is_strong(
    term: Term,
    score: float,
    exemplars: Sequence[frozenset[Term]],
    weights: Sequence[float],
    shares: Mapping[Term, float],
) -> bool:
    share = max(shares.get(term, 0.0), 1e-9)
    deviation = (share * (1 - share) / effective_count(weights)) ** 0.5
    bearers = sum(term in terms for terms in exemplars)
    return (
        bearers >= 3
        and score >= _LEAST_SCORE
        and score + share >= _LEAST_LIFT * share
        and score >= _LEAST_DEVIATIONS * deviation
    )


def overlap(first: str, second: str) -> bool:
    """Tell whether one name's words are among the other's, letter case aside."""
    words, others = set(first.lower().split()), set(second.lower().split())
    return words <= others or others <= words
