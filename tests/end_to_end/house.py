"""A whole Phosphene in a folder: bundle, index and a service in its own process, made by the commands of the demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedded.concepts import Factor
from embedded.scenes import render_corpus
from examples.demo import Recipe, build_index, make_bundle, serving
from phosphene.client import Client

Value = tuple[Factor, str]


@dataclass(frozen=True, kw_only=True)
class House:
    """Where its parts lie and how to reach it."""

    corpus: Path
    """Folder or list of images."""
    bundle: Path
    index: Path
    address: str
    """Of the gRPC service."""
    metrics: str
    """Of the Prometheus page."""


@contextmanager
def open_house(folder: Path, recipe: Recipe, corpus: Path) -> Iterator[House]:
    """Train, index and serve; the service ends with the block."""
    bundle, index = folder / "bundle", folder / "index"
    make_bundle(recipe, str(corpus), bundle)
    build_index(recipe, str(corpus), bundle, index)
    with serving(recipe.name, bundle, index, free_ports=True) as (address, metrics):
        yield House(corpus=corpus, bundle=bundle, index=index, address=address, metrics=metrics)


def render(folder: Path, *, first_seed: int, count: int, size_px: int) -> dict[str, frozenset[Value]]:
    """Render scenes; returns what each file shows."""
    render_corpus(folder, first_seed, count, size_px)
    return read_truth(folder)


def read_truth(folder: Path) -> dict[str, frozenset[Value]]:
    """Return what each scene of a rendered corpus shows, by the file's name within the corpus."""
    truth: dict[str, frozenset[Value]] = {}
    for line in (folder / "factors.jsonl").read_text().splitlines():
        scene = json.loads(line)
        shown: set[Value] = {("background", scene["background"]), ("count", scene["count"])}
        for item in scene["objects"]:
            shown |= {(factor, item[factor]) for factor in ("shape", "colour", "texture", "size", "position")}
        truth[scene["file"]] = frozenset(shown)
    return truth


def top_exemplars(client: Client, neuron_ids: set[int], count: int) -> dict[int, list[str]]:
    """Return the uris of each neuron's top images."""
    return {
        neuron_id: [
            exemplar.image.uri
            for exemplar in client.neuron(neuron_id, parts=["top_images"], exemplar_count=count).top_images
        ]
        for neuron_id in sorted(neuron_ids)
    }
