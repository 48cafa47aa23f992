"""Does an SAE find the concepts that are known to be there? Run it as `make bench-truth`.

Scenes of `embedded/` come with their factors. For each known concept (one value of one factor), the average precision
of the best neuron is compared with that of the best MLP unit of the same block and of the best neuron of an untrained
SAE of the same size and sparsity. The best one is chosen on one half of the held-out scenes and measured on the other,
so that a larger pool of candidates earns nothing by chance. Three seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

import phosphene
from benchmarks.precision import average_precision
from benchmarks.record import Must, Record
from embedded.concepts import FACTORS, Factor, values_of
from examples.demo import EMBEDDED, FIRST_SCENE_SEED
from phosphene.engine import Want
from phosphene.pipeline import Pipeline
from phosphene.sae import SparseAutoencoder
from phosphene.selection import TopK

FOLDER = Path("build/bench/truth")
HELD_OUT_SCENE_SEED = 1_500_000
SCENE_SIZE_PX = 128
SEEDS = (0, 1, 2)
LEAST_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where the SAE is not above both on every seed."""
    parser = argparse.ArgumentParser(prog="make bench-truth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer scenes")
    quick = parser.parse_args(arguments).quick
    train_count, held_out_count = (1500, 600) if quick else (4000, 2000)
    record = Record(name="truth")
    corpus = render("train", FIRST_SCENE_SEED, train_count)
    held_out = render("held-out", HELD_OUT_SCENE_SEED, held_out_count)
    images, concepts, shown = read_truth(held_out)
    for seed in SEEDS:
        bundle = FOLDER / f"bundle-{train_count}-{seed}"
        fit(corpus, bundle, seed)
        pipeline = phosphene.open_bundle(bundle)
        residuals, units = observe(pipeline, images)
        precisions = {
            "SAE": best(activations(pipeline.bundle.sae, residuals), shown),
            "MLP unit": best(units, shown),
            "untrained SAE": best(activations(untrained(pipeline.bundle.sae, residuals, seed), residuals), shown),
        }
        record.rows += summarise(seed, concepts, precisions)
        mean = {name: float(values.mean()) for name, values in precisions.items()}
        for rival in ("MLP unit", "untrained SAE"):
            record.must[f"seed {seed}: mean AP of the SAE, less that of the {rival}"] = Must(
                value=mean["SAE"] - mean[rival], bar=0.0, sense=">="
            )
    return record.write()


def render(name: str, first_seed: int, count: int) -> Path:
    """Render scenes once; returns their folder."""
    folder = FOLDER / f"{name}-{count}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        options = ("--first-seed", str(first_seed), "--count", str(count), "--size", str(SCENE_SIZE_PX))
        subprocess.run([sys.executable, "-m", "embedded.scenes", "render", str(folder), *options], check=True)
    return folder


def fit(corpus: Path, bundle: Path, seed: int) -> None:
    """Train the demo's SAE on the scenes with another seed."""
    options = (
        "--encoder",
        EMBEDDED.encoder,
        *EMBEDDED.fit,
        *EMBEDDED.threads,
        "--seed",
        str(seed),
        "--out",
        str(bundle),
    )
    subprocess.run([sys.executable, "-m", "training", "fit", str(corpus / "captions.csv"), *options], check=True)


def read_truth(folder: Path) -> tuple[list[Path], list[tuple[Factor, str]], Bool[np.ndarray, "images concepts"]]:
    """Return the scenes' files, the concepts, and which scene shows which concept."""
    scenes = [json.loads(line) for line in (folder / "factors.jsonl").read_text().splitlines()]
    concepts = [(factor, value) for factor in FACTORS for value in values_of(factor)]
    shown = np.array([[shows(scene, factor, value) for factor, value in concepts] for scene in scenes])
    half = len(scenes) // 2
    kept = np.minimum(shown[:half].sum(axis=0), shown[half:].sum(axis=0)) >= LEAST_SHOWN
    kept_concepts = [concept for concept, is_kept in zip(concepts, kept, strict=True) if is_kept]
    return [folder / scene["file"] for scene in scenes], kept_concepts, shown[:, kept]


def shows(scene: dict[str, object], factor: Factor, value: str) -> bool:
    """Say whether a line of factors.jsonl shows one value of one factor."""
    objects = scene["objects"]
    assert isinstance(objects, list)
    match factor:
        case "background" | "count":
            return scene[factor] == value
        case _:
            return any(item[factor] == value for item in objects)


@torch.inference_mode()
def observe(
    pipeline: Pipeline, images: Sequence[Path]
) -> tuple[Float[np.ndarray, "images width"], Float[np.ndarray, "images units"]]:
    """Return the residuals at the bundle's site and the MLP units of the same block and tokens."""
    residuals, units = [], []
    site, encoder = pipeline.bundle.site, pipeline.engine.encoder
    assert site.block is not None
    for start in range(0, len(images), 64):
        prepared = [pipeline.prepare(path.read_bytes()) for path in images[start : start + 64]]
        answer = pipeline.run(prepared, Want(residuals=True))
        assert answer.residuals is not None
        residuals.append(answer.residuals)
        pixels = torch.from_numpy(np.stack([image.pixels for image in prepared]))
        units.append(encoder.select(encoder.units(pixels, site.block), site.tokens).amax(dim=1).numpy())
    return np.concatenate(residuals), np.concatenate(units)


@torch.inference_mode()
def activations(
    sae: SparseAutoencoder, residuals: Float[np.ndarray, "images width"]
) -> Float[np.ndarray, "images neurons"]:
    """Spread codes over all neurons: the benchmark ranks every image by every neuron."""
    codes = sae.encode(torch.from_numpy(residuals), limit=sae.neuron_count)
    spread = torch.zeros(len(residuals), sae.neuron_count).scatter_add(-1, codes.neuron_ids, codes.values)
    dense: Float[np.ndarray, "images neurons"] = spread.numpy()
    return dense


def untrained(sae: SparseAutoencoder, residuals: Float[np.ndarray, "images width"], seed: int) -> SparseAutoencoder:
    """Make an SAE of the same size whose directions are random and which keeps as many neurons per image."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(sae.neuron_count, sae.width, generator=generator), dim=1)
    fires = activations(sae, residuals) > 0
    return SparseAutoencoder(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(sae.neuron_count),
        directions=directions,
        decoder_bias=torch.from_numpy(residuals.mean(axis=0)),
        selection=TopK(max(1, round(float(fires.sum(axis=1).mean())))),
    )


def best(
    scores: Float[np.ndarray, "images units"], shown: Bool[np.ndarray, "images concepts"]
) -> Float[np.ndarray, " concepts"]:
    """Choose the best unit for each concept on the first half of the scenes, and measure it on the second."""
    half = len(scores) // 2
    chosen = average_precision(scores[:half], shown[:half]).argmax(axis=0)
    measured = average_precision(scores[half:][:, chosen], shown[half:])
    precisions: Float[np.ndarray, " concepts"] = measured[np.arange(len(chosen)), np.arange(len(chosen))]
    return precisions


def summarise(
    seed: int, concepts: list[tuple[Factor, str]], precisions: dict[str, Float[np.ndarray, " concepts"]]
) -> list[dict[str, object]]:
    """Give one row per factor: the mean over its values."""
    rows: list[dict[str, object]] = []
    for factor in FACTORS:
        of_factor = np.array([concept[0] == factor for concept in concepts])
        if of_factor.any():
            means = {name: float(values[of_factor].mean()) for name, values in precisions.items()}
            rows.append({"seed": seed, "factor": factor, "concepts": int(of_factor.sum()), **means})
    return rows


if __name__ == "__main__":
    sys.exit(main())
