"""dictionary_learning, as a contestant: `BatchTopKTrainer.update`, its own step, for each batch."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

from torch import Tensor

from benchmarks.training_load.contestant import Task, compete, decay_steps, warm_up_steps

# Its package imports a buffer that reads activations off language models with nnsight; no part of training uses it.
_nnsight = types.ModuleType("nnsight")
_nnsight.LanguageModel = object  # type: ignore[attr-defined]
sys.modules["nnsight"] = _nnsight

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # noqa: E402


class DictionaryLearning:
    """Its trainer with its defaults."""

    def __init__(self, task: Task, rows: Tensor) -> None:
        """Weights from the seed; it follows its threshold from the start, as it does in all but a run's beginning."""
        self._trainer = BatchTopKTrainer(
            steps=task.step_count,
            activation_dim=rows.shape[1],
            dict_size=task.neuron_count,
            k=task.k,
            layer=0,
            lm_name="none",
            lr=task.learning_rate,
            warmup_steps=warm_up_steps(task),
            decay_start=max(warm_up_steps(task) + 1, task.step_count - decay_steps(task)),
            threshold_start_step=0,
            seed=task.seed,
            device="cpu",
        )

    def train(self, batches: Iterator[Tensor]) -> None:
        """See `Contestant.train`."""
        for step, batch in enumerate(batches):
            self._trainer.update(step, batch)

    def weights(self) -> dict[str, Tensor]:
        """See `Contestant.weights`."""
        sae = self._trainer.ae
        return {
            "encoder_weight": sae.encoder.weight.T,
            "encoder_bias": sae.encoder.bias,
            "directions": sae.decoder.weight.T,
            "decoder_bias": sae.b_dec,
        }


if __name__ == "__main__":
    compete(DictionaryLearning)
