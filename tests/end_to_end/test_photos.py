"""Real photos through a real pretrained ViT; skipped where they are not beside the repository."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from examples.demo import Recipe
from phosphene.client import Client
from phosphene.corpus import open_corpus
from phosphene.engine import Want
from phosphene.pipeline import Pipeline, open_bundle
from tests.end_to_end.house import open_house

TOP_IMAGES = 16
PURE_SHARE = 0.75
CLASS_COUNT, PHOTOS_PER_CLASS = 20, 12


def recipe(shared: Path, *fit: str) -> Recipe:
    return Recipe(name="photos", encoder=str(shared / "models" / "deit-tiny-patch16-224"), fit=fit, thread_count=1)


def share_of_pure(top_labels: list[list[str]]) -> float:
    """Return the share of lists in which one label makes up at least 75 %."""
    pure = [
        len(labels) == TOP_IMAGES and Counter(labels).most_common(1)[0][1] >= PURE_SHARE * TOP_IMAGES
        for labels in top_labels
    ]
    return sum(pure) / len(pure)


def residuals_of(pipeline: Pipeline, corpus_path: Path) -> tuple[Float[np.ndarray, "images width"], list[str]]:
    corpus = open_corpus(str(corpus_path))
    rows = range(len(corpus))
    parts = []
    for start in range(0, len(corpus), 32):
        prepared = [pipeline.prepare(corpus.read(row)) for row in rows[start : start + 32]]
        residuals = pipeline.run(prepared, Want(residuals=True)).residuals
        assert residuals is not None
        parts.append(residuals)
    return np.concatenate(parts), [row.label or "" for row in corpus.rows]


def sample_list(shared: Path, folder: Path) -> Path:
    """List some photos of some classes, the leopards among them, in a CSV file."""
    corpus = open_corpus(str(shared / "photos" / "caltech101" / "labels.csv"))
    photos = os.path.relpath(shared / "photos" / "caltech101", folder)
    counts: Counter[str] = Counter()
    lines = ["file,label"]
    for row in corpus.rows:
        label = row.label or ""
        is_listed = label in counts or len(counts) < CLASS_COUNT
        if is_listed and counts[label] < PHOTOS_PER_CLASS:
            counts[label] += 1
            lines.append(f'"{photos}/{row.uri}","{label}"')
    listing = folder / "photos.csv"
    listing.write_text("\n".join(lines) + "\n")
    return listing


@pytest.mark.parametrize("tokens", ["cls", "patches"])
def test_photos_are_explained(shared: Path, tmp_path: Path, tokens: str) -> None:
    corpus = sample_list(shared, tmp_path)
    fit = ("--block", "10", "--tokens", tokens, "--neurons", "384", "--k", "16")
    fit += ("--steps", "200", "--batch", "256")
    fit += ("--tokens-per-image", "16") if tokens == "patches" else ()
    photo = shared / "photos" / "caltech101" / "Leopards" / "image_0150.jpg"
    with open_house(tmp_path, recipe(shared, *fit), corpus) as house, Client(house.address) as client:
        parts = ["fidelity", "neurons", "top_images", "similar_images", "nearest_neurons", "scores"]
        answer = client.explain(photo, parts=parts if tokens == "cls" else [*parts, "patch_activations"])
    assert answer.scores[0].name.startswith(("cheetah", "leopard", "jaguar", "snow leopard"))
    labels = Counter(match.image.label for match in answer.similar_images)
    assert labels.most_common(1)[0][0] == "leopards"
    # Of one photo, after 200 steps on 240 photos: an SAE that had learnt nothing would be at 1.
    assert answer.fidelity.fvu < 0.85
    if tokens == "patches":
        assert (answer.grid.row_count, answer.grid.column_count) == (14, 14)
        assert all(len(active.patch_activations) == 196 for active in answer.neurons)


@pytest.mark.slow
def test_neurons_are_purer_than_coordinates(shared: Path, tmp_path: Path) -> None:
    corpus = shared / "photos" / "caltech101" / "labels.csv"
    fit = ("--block", "10", "--tokens", "cls", "--neurons", "768", "--k", "16")
    with open_house(tmp_path, recipe(shared, *fit), corpus) as house, Client(house.address) as client:
        neuron_labels = [
            [
                exemplar.image.label
                for exemplar in client.neuron(i, parts=["top_images"], exemplar_count=TOP_IMAGES).top_images
            ]
            for i in range(768)
        ]
    residuals, labels = residuals_of(open_bundle(house.bundle), corpus)
    coordinate_labels = [
        [labels[row] for row in np.argsort(-residuals[:, coordinate])[:TOP_IMAGES]]
        for coordinate in range(residuals.shape[1])
    ]
    assert share_of_pure(neuron_labels) >= 2 * share_of_pure(coordinate_labels)
