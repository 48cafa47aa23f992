"""The autoencoder to train and its optimisation, every number fixed; knows nothing of files or models.

Only settings, never requests, enter an artefact's configuration, so that equal configurations mean equal results.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

from training.execution import Execution
from training.harvest_settings import HarvestSettings
from training.objectives import AUXILIARY_COEFFICIENT
from training.variants import (
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    TopKTraining,
    Variant,
    variant_config,
)

DEFAULT_WARMUP_SHARE = 0.05
"""Share of the steps over which the learning rate rises from zero."""
DEFAULT_DECAY_SHARE = 0.4
"""Share of the steps over which the learning rate falls to zero at the end."""
DEFAULT_GRADIENT_CLIP = 1.0
"""Largest norm of the gradient over all weights."""


class BiasInit(StrEnum):
    """Where the decoder bias starts."""

    MEAN = "mean"
    GEOMETRIC_MEDIAN = "geometric-median"


class InputScaling(StrEnum):
    """What residuals go through before they are learnt from; folded into the weights at export."""

    SCALED = "scaled"
    """Centred by the mean of the data and scaled to a mean square of one."""
    RAW = "raw"
    """As the encoder gives them."""


@dataclass(frozen=True, kw_only=True)
class SaeSettings:
    """The autoencoder to train."""

    neuron_count: int
    """Number of neurons."""
    variant: Variant
    """Training rule."""
    inputs: InputScaling = InputScaling.SCALED
    """What residuals go through first."""

    @property
    def k(self) -> int | None:
        """Active neurons per token that the rule aims at; None where it aims at none."""
        match self.variant:
            case TopKTraining(k=k) | BatchTopKTraining(k=k) | MatryoshkaTraining(k=k):
                return k
            case ReluTraining() | JumpReluTraining():
                return None
            case _:
                assert_never(self.variant)


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
    warmup_share: float = DEFAULT_WARMUP_SHARE
    """Share of the steps over which the learning rate rises from zero."""
    decay_share: float = DEFAULT_DECAY_SHARE
    """Share of the steps over which the learning rate falls to zero at the end."""
    gradient_clip: float = DEFAULT_GRADIENT_CLIP
    """Largest norm of the gradient over all weights; infinity clips nothing."""
    auxiliary_coefficient: float = AUXILIARY_COEFFICIENT
    """Weight of the auxiliary loss of dead neurons."""


def config_of(settings: SaeSettings | HarvestSettings | TrainingSettings | Execution) -> dict[str, Any]:
    """The settings as plain JSON values."""
    if isinstance(settings, SaeSettings):
        return {
            "neuron_count": settings.neuron_count,
            "variant": variant_config(settings.variant),
            "inputs": str(settings.inputs),
        }
    return {key: _plain(value) for key, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return None if isinstance(value, float) and math.isinf(value) else value  # JSON knows no infinity
