"""What `phosphene explain-images` says of one image, in one line; asks nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from phosphene.client.canonical import json_value
from phosphene.client.options import ExplainPartName
from phosphene.client.words import caption_of, neuron_title, number, plain
from phosphene.errors import PhospheneError
from phosphene.v1.explain_pb2 import ExplainResponse

__all__ = ["json_line", "text_line"]


def json_line(file: Path, outcome: ExplainResponse | PhospheneError) -> str:
    """Return an object with the image and its explanation or error."""
    said: dict[str, object] = {"image": str(file)}
    match outcome:
        case ExplainResponse():
            said["explanation"] = json_value(outcome)
        case _:
            said["error"] = {"kind": type(outcome).__name__, "message": str(outcome)}
    return json.dumps(said, ensure_ascii=False)


def text_line(file: Path, outcome: ExplainResponse | PhospheneError, parts: Sequence[ExplainPartName]) -> str:
    """Return the image and what its explanation says, or its error.

    Args:
        file: the image.
        outcome: what came of it.
        parts: what was asked for, all of it named.
    """
    match outcome:
        case ExplainResponse():
            # Where nothing was asked for that fits on a line, it is what `explain` begins with.
            said = "; ".join(_said(outcome, parts)) or f"{outcome.image.width} × {outcome.image.height} pixels"
            return plain(f"{file}: {said}")
        case _:
            return plain(f"{file}: {type(outcome).__name__}: {outcome}")


def _said(answer: ExplainResponse, parts: Sequence[ExplainPartName]) -> Iterator[str]:
    """Say each part in the order of `explain`; fidelity only where there are no neurons to be read by it."""
    if "neurons" in parts:
        neurons = (f"{neuron_title(each.neuron)} {number(each.activation)}" for each in answer.neurons)
        yield _listed(neurons, "no neuron fires")
    elif "fidelity" in parts:
        yield f"FVU {number(answer.fidelity.fvu)}"
    if "nearest_neurons" in parts:
        nearest = (f"{neuron_title(each.neuron)} {each.cosine:.3f}" for each in answer.nearest_neurons)
        yield f"nearest neurons: {_listed(nearest, 'none')}"
    if "scores" in parts:
        scores = (f"{each.name} {number(each.score)}" for each in answer.scores)
        yield f"scores: {_listed(scores, 'none')}"
    if "similar_images" in parts:
        similar = (f"{caption_of(each.image)} {each.score:.3f}" for each in answer.similar_images)
        yield f"similar images: {_listed(similar, 'none')}"
    if "code" in parts:
        yield f"code of {len(answer.code.neuron_ids)} neurons"


def _listed(items: Iterable[str], otherwise: str) -> str:
    return ", ".join(items) or otherwise
