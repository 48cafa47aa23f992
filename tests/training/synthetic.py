"""Residuals made of known concepts, and harvests of them on disk: what the training tests learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phosphene.artefact_writing import seal
from training.shards import ShardArrays, mark_artefact_tokens, shard_name, write_shard

WIDTH = 16


def mixtures(row_count: int, *, concept_count: int = 24, active_count: int = 2, seed: int = 0) -> np.ndarray:
    """Float32 [rows, 16]: sparse sums of unit directions (the same for every seed), on a large common mean."""
    concepts = np.random.default_rng(99).normal(size=(concept_count, WIDTH))
    concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
    generator = np.random.default_rng(seed)
    strengths = np.zeros((row_count, concept_count))
    for row in strengths:
        row[generator.choice(concept_count, active_count, replace=False)] = generator.uniform(2, 4, active_count)
    return (strengths @ concepts + 5.0).astype(np.float32)


def write_activations(
    folder: Path,
    residuals: np.ndarray,
    *,
    shard_images: int = 64,
    tokens_per_image: int = 1,
    first_patch: int | None = None,
) -> Path:
    """A harvest of these residuals, images in order; from place `first_patch` of each image on they are patches."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    shard_rows = shard_images * tokens_per_image
    names = []
    for index, start in enumerate(range(0, len(residuals), shard_rows)):
        part = residuals[start : start + shard_rows]
        places = np.arange(start, start + len(part), dtype=np.int64)
        arrays = ShardArrays(
            residuals=part,
            image_rows=places // tokens_per_image,
            tokens=(places % tokens_per_image).astype(np.int32),
        )
        names.append(shard_name(index))
        write_shard(partial, names[-1], arrays, plan_id="synthetic", contents_sha256="0" * 64, quarantined=[])
    mark_artefact_tokens(partial, names, first_patch=first_patch)
    seal(partial, folder, kind="activations", inputs={}, config={})
    return folder
