"""What a training run is asked to do and how it resolves to numbers; knows nothing of files or models.

A request leaves things open (`None`); resolving it against the corpus closes them. Only resolved settings enter an
artefact's configuration, so that equal configurations mean equal results.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from phosphene.errors import SettingError
from training.objectives import AUXILIARY_COEFFICIENT
from training.variants import VariantName

_DEFAULT_STEP_COUNT = 2000
_BATCH_ROWS_RANGE = (16, 4096)
_DEAD_AFTER_RANGE = (1024, 10_000_000)
_SHARD_TARGET_BYTES = 64 << 20


class Storage(StrEnum):
    """Number format of activations on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class BiasInit(StrEnum):
    """Where the decoder bias starts."""

    MEAN = "mean"
    GEOMETRIC_MEDIAN = "geometric-median"


@dataclass(frozen=True, kw_only=True)
class SaeRequest:
    """The autoencoder asked for; exactly one of `neuron_count` and `expansion` is given."""

    k: int
    """Active neurons per token."""
    neuron_count: int | None = None
    """Number of neurons."""
    expansion: int | None = None
    """Number of neurons as a multiple of the residual's width."""
    variant: VariantName = VariantName.BATCHTOPK
    """Training rule."""

    def check(self) -> None:
        """Refuse what no residual width can mend.

        Raises:
            SettingError: naming the option, its value, the limit and the remedy.
        """
        if (self.neuron_count is None) == (self.expansion is None):
            raise SettingError("give exactly one of --neurons and --expansion", field="neurons")
        if self.expansion is not None and self.expansion < 1:
            raise SettingError(
                f"--expansion is {self.expansion}; the least is 1: give how many neurons each residual dimension gets",
                field="expansion",
            )
        if self.neuron_count is not None and self.neuron_count < 2:
            raise SettingError(f"--neurons is {self.neuron_count}; the least is 2", field="neurons")
        if self.k < 1:
            raise SettingError(f"--k is {self.k}; the least is 1 active neuron per token", field="k")
        if self.neuron_count is not None and self.k > self.neuron_count:
            raise SettingError(_k_too_large(self.k, self.neuron_count), field="k")

    def resolve(self, width: int) -> SaeSettings:
        """Fix the number of neurons for residuals of this width.

        Raises:
            SettingError: as `check`, and where k exceeds the resolved number of neurons.
        """
        self.check()
        neuron_count = self.neuron_count if self.neuron_count is not None else (self.expansion or 0) * width
        if self.k > neuron_count:
            raise SettingError(_k_too_large(self.k, neuron_count), field="k")
        return SaeSettings(neuron_count=neuron_count, k=self.k, variant=self.variant)


@dataclass(frozen=True, kw_only=True)
class SaeSettings:
    """The autoencoder to train."""

    neuron_count: int
    """Number of neurons."""
    k: int
    """Active neurons per token (on average, for BatchTopK)."""
    variant: VariantName
    """Training rule."""


@dataclass(frozen=True, kw_only=True)
class HarvestSettings:
    """How activations are read off the encoder."""

    batch_images: int = 32
    """Images per forward pass; fixed, because floating-point results depend on it."""
    tokens_per_image: int | None = None
    """Tokens kept of each image, drawn without replacement; None keeps all."""
    storage: Storage = Storage.FLOAT32
    """Number format on disk."""
    image_limit: int | None = None
    """Use only the first so many images of the corpus; None uses all."""
    seed: int = 0
    """Decides which tokens are kept."""

    def check(self) -> None:
        """Refuse values out of bounds.

        Raises:
            SettingError: naming the option, its value and the limit.
        """
        if not 1 <= self.batch_images <= 4096:
            raise SettingError(f"--images-per-batch is {self.batch_images}; it must be from 1 to 4096")
        if self.tokens_per_image is not None and self.tokens_per_image < 1:
            raise SettingError(f"--tokens-per-image is {self.tokens_per_image}; the least is 1")
        if self.image_limit is not None and self.image_limit < 1:
            raise SettingError(f"--limit is {self.image_limit}; the least is 1 image")

    def image_count(self, corpus_count: int) -> int:
        """Images used of a corpus of so many."""
        return corpus_count if self.image_limit is None else min(self.image_limit, corpus_count)

    def shard_images(self, token_count: int, width: int) -> int:
        """Images per shard: whole batches of about 64 MiB, between one batch and 32 of them."""
        image_bytes = token_count * width * (2 if self.storage is Storage.FLOAT16 else 4)
        batch_count = _SHARD_TARGET_BYTES // (image_bytes * self.batch_images)
        return self.batch_images * min(max(batch_count, 1), 32)


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """The optimisation asked for; what is None follows from the number of activations."""

    step_count: int | None = None
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over the training activations, instead of `step_count`."""
    batch_rows: int | None = None
    """Activations per step."""
    learning_rate: float | None = None
    """Peak learning rate of Adam."""
    bias_init: BiasInit = BiasInit.MEAN
    """Where the decoder bias starts."""
    seed: int = 0
    """Decides the held-out images, the initial weights and the order of the data."""

    def check(self) -> None:
        """Refuse values out of bounds.

        Raises:
            SettingError: naming the option, its value and the limit.
        """
        if self.step_count is not None and self.epochs is not None:
            raise SettingError("give at most one of --steps and --epochs", field="steps")
        if self.step_count is not None and self.step_count < 1:
            raise SettingError(f"--steps is {self.step_count}; the least is 1")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise SettingError(f"--epochs is {self.epochs}; it must be greater than 0")
        if self.batch_rows is not None and self.batch_rows < 1:
            raise SettingError(f"--batch is {self.batch_rows}; the least is 1 activation per step")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SettingError(f"--lr is {self.learning_rate}; it must be greater than 0 and finite")

    def resolve(self, row_count: int, sae: SaeSettings) -> TrainingSettings:
        """Fix every number for a corpus that yields so many training activations.

        The learning rate falls with the square root of the number of neurons (Gao et al. 2024, appendix A.3), anchored
        where short runs on small corpora do best.
        """
        self.check()
        batch_rows = self.batch_rows or _power_of_two_below(row_count // 4, *_BATCH_ROWS_RANGE)
        batch_rows = min(batch_rows, row_count)
        if self.epochs is not None:
            step_count = max(1, math.ceil(self.epochs * row_count / batch_rows))
        else:
            step_count = self.step_count or max(_DEFAULT_STEP_COUNT, row_count // batch_rows)
        low, high = _DEAD_AFTER_RANGE
        return TrainingSettings(
            step_count=step_count,
            batch_rows=batch_rows,
            learning_rate=self.learning_rate or 2e-3 * math.sqrt(1024 / sae.neuron_count),
            dead_after_samples=min(max(step_count * batch_rows // 20, low), high),
            bias_init=self.bias_init,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The optimisation to run."""

    step_count: int
    """Optimiser steps."""
    batch_rows: int
    """Activations per step."""
    learning_rate: float
    """Peak learning rate of Adam."""
    dead_after_samples: int
    """A neuron that has not fired on so many activations in a row counts as dead."""
    bias_init: BiasInit
    """Where the decoder bias starts."""
    seed: int
    """Decides the held-out images, the initial weights and the order of the data."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from zero."""
    decay_share: float = 0.4
    """Share of the steps over which the learning rate falls to zero at the end."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient over all weights."""
    auxiliary_coefficient: float = AUXILIARY_COEFFICIENT
    """Weight of the auxiliary loss of dead neurons."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and with how many threads to compute."""

    device: str = "cpu"
    """`cpu` or `cuda[:n]`."""
    thread_count: int = 1
    """CPU threads of torch; results are equal only for equal counts."""

    def check(self) -> None:
        """Refuse values out of bounds; whether the device is here, the engine knows.

        Raises:
            SettingError: naming the option, its value and the limits.
        """
        if not 1 <= self.thread_count <= 1024:
            raise SettingError(f"--threads is {self.thread_count}; it must be from 1 to 1024")


def config_of(settings: SaeSettings | HarvestSettings | TrainingSettings | Execution) -> dict[str, Any]:
    """The settings as plain JSON values."""
    return {
        key: str(value) if isinstance(value, StrEnum) else value for key, value in dataclasses.asdict(settings).items()
    }


def _k_too_large(k: int, neuron_count: int) -> str:
    return (
        f"--k is {k}; the limit is the number of neurons, {neuron_count}: lower --k, or raise --neurons or --expansion"
    )


def _power_of_two_below(value: int, low: int, high: int) -> int:
    return min(max(1 << max(value, 1).bit_length() - 1, low), high)
