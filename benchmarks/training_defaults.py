"""Which learning rate is best for which size? `python -m benchmarks.training_defaults`: where the defaults come from.

BatchTopK on sums of known directions, at several widths and numbers of neurons; the loss on held-out rows and how well
the known directions are found, for each learning rate. Writes build/bench/training_defaults.json; the committed one is
in results/.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import Record
from benchmarks.training_load.known_directions import Recipe, make_data
from training.requests import SaeRequest, TrainingRequest
from training.settings import InputScaling, TrainingSettings
from training.sparse.learner import CpuSparseLearner
from training.trainer import make_learner
from training.variants import BatchTopKTraining, Variant
from training.weights import Weights, initial_weights

FOLDER = Path("build/bench/training")
SIZES = ((128, 1024), (128, 4096), (512, 1024), (512, 4096), (512, 8192))
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
STEPS, BATCH_ROWS, K = 600, 512, 32


def main() -> int:
    """Try every rate at every size."""
    record = Record(name="training_defaults")
    record.rows += [measure(width, neuron_count, rate) for width, neuron_count in SIZES for rate in RATES]
    return record.write()


def measure(width: int, neuron_count: int, rate: float) -> dict[str, float]:
    """Train once."""
    recipe = Recipe(
        width=width, training_rows=65_536, held_out_rows=4096, direction_count=min(neuron_count // 2, 4 * width)
    )
    folder = make_data(recipe, FOLDER)
    training, held_out, known = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("training", "held_out", "directions")
    )
    sae = SaeRequest(k=K, neuron_count=neuron_count, inputs=InputScaling.RAW).resolve(width)
    request = TrainingRequest(step_count=STEPS, batch_rows=BATCH_ROWS, learning_rate=rate)
    settings = request.resolve(len(training), sae, width=width)
    weights = initial_weights(training[:16_384], sae, bias_init=settings.bias_init, seed=0)
    learner = make_learner(weights, sae, settings, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    begun_s = time.monotonic()
    for _ in range(STEPS):
        learner.step(training[torch.randint(len(training), (BATCH_ROWS,), generator=generator)])
    found = {
        "width": width,
        "neuron_count": neuron_count,
        "learning_rate": rate,
        "fvu": round(held_out_loss(learner.weights.tensors(), held_out, settings, sae.variant), 5),
        "mmcs": round(float((known @ learner.weights.directions.T).max(dim=1).values.mean()), 4),
        "seconds": round(time.monotonic() - begun_s, 1),
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    return found


def held_out_loss(tensors: dict[str, Tensor], held_out: Tensor, settings: TrainingSettings, variant: Variant) -> float:
    """The loss of one more step that moves nothing."""
    assert isinstance(variant, BatchTopKTraining)
    still = dataclasses.replace(settings, learning_rate=0.0)
    return float(CpuSparseLearner(Weights(**tensors), variant, still, thread_count=1).step(held_out).loss)


if __name__ == "__main__":
    raise SystemExit(main())
