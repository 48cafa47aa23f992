"""The training variants: what each is asked for, and which rule it ships with; knows nothing of losses or data.

TopK: Gao et al., "Scaling and evaluating sparse autoencoders" (2024). BatchTopK: Bussmann et al., "BatchTopK sparse
autoencoders" (2024). Matryoshka: Bussmann et al., "Learning multi-level features with Matryoshka sparse autoencoders"
(2025). ReLU: Bricken et al., "Towards monosemanticity" (2023). JumpReLU: Rajamanoharan et al., "Jumping ahead" (2024).
A published code never depends on other images: what selects over a batch ships as JumpReLU with a calibrated threshold.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.selection import JumpReLU, TopK


class VariantName(StrEnum):
    """The names on the command line."""

    TOPK = "topk"
    BATCHTOPK = "batchtopk"
    MATRYOSHKA = "matryoshka"
    RELU = "relu"
    JUMPRELU = "jumprelu"


FIXED_L0 = (VariantName.TOPK, VariantName.BATCHTOPK, VariantName.MATRYOSHKA)
"""The variants that take a number of active neurons; the others take the weight of a penalty."""


class SelectionPrecision(StrEnum):
    """The digits in which candidates for the active neurons are found; weights, values and gradients are float32."""

    FLOAT32 = "float32"
    """Every pre-activation in float32: the selection is exact."""
    BFLOAT16 = "bfloat16"
    """Half the digits, where the processor has instructions for it: a neuron is missed where rounding hides it."""


@dataclass(frozen=True, kw_only=True)
class TopKTraining:
    """The k largest activations of each row."""

    k: int
    """Active neurons per row."""
    precision: SelectionPrecision = SelectionPrecision.FLOAT32
    """Of the search for the active neurons in training."""

    def for_inference(self) -> TopK:
        """The same rule: it never looks at other rows."""
        return TopK(k=self.k)


@dataclass(frozen=True, kw_only=True)
class BatchTopKTraining:
    """The k x rows largest positive activations of the batch."""

    k: int
    """Active neurons per row, on average over the batch."""
    precision: SelectionPrecision = SelectionPrecision.FLOAT32
    """As `TopKTraining`."""

    def for_inference(self, threshold: Float[Tensor, " neurons"]) -> JumpReLU:
        """The row-wise rule with the calibrated threshold of each neuron, in units of the pre-activation."""
        return JumpReLU(threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class MatryoshkaTraining:
    """BatchTopK whose first neurons must also explain the input without the rest: one selection, nested prefixes."""

    k: int
    """Active neurons per row, on average over the batch."""
    prefixes: tuple[int, ...]
    """Neurons of each nested autoencoder, rising; the last is the number of neurons."""
    precision: SelectionPrecision = SelectionPrecision.FLOAT32
    """As `TopKTraining`."""

    def for_inference(self, threshold: Float[Tensor, " neurons"]) -> JumpReLU:
        """As BatchTopK."""
        return JumpReLU(threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class ReluTraining:
    """Every positive activation, kept few by an L1 penalty."""

    l1_coefficient: float
    """Weight of the batch mean of the code's sum."""
    is_error_normalised: bool
    """Whether each row's squared error is divided by the norm of the input (hugofry's recipe) or left alone."""
    has_ghost_gradients: bool
    """Whether neurons that have been dead for a window of steps learn from what is left unexplained."""
    dead_window_steps: int = 64
    """Steps without firing after which a neuron gets ghost gradients."""

    def for_inference(self, neuron_count: int) -> JumpReLU:
        """ReLU: every threshold is 0."""
        return JumpReLU(threshold=torch.zeros(neuron_count))


@dataclass(frozen=True, kw_only=True)
class JumpReluTraining:
    """Activations above a threshold that each neuron learns, kept few by an L0 penalty."""

    l0_coefficient: float
    """Weight of the batch mean of L0."""
    bandwidth: float = 0.03
    """Width of the rectangle kernel of the straight-through estimator, in units of the pre-activation."""
    initial_threshold: float = 0.03
    """Where every threshold starts; > 0."""

    def for_inference(self, threshold: Float[Tensor, " neurons"]) -> JumpReLU:
        """The same rule with the learnt thresholds."""
        return JumpReLU(threshold=threshold)


SparseVariant = TopKTraining | BatchTopKTraining | MatryoshkaTraining
"""Variants with a fixed number of active neurons: none of their steps needs a dense code."""
DenseVariant = ReluTraining | JumpReluTraining
"""Variants in which any number of neurons may be active."""
Variant = SparseVariant | DenseVariant


def name_of(variant: Variant) -> VariantName:
    """The name of a variant on the command line."""
    match variant:
        case TopKTraining():
            return VariantName.TOPK
        case BatchTopKTraining():
            return VariantName.BATCHTOPK
        case MatryoshkaTraining():
            return VariantName.MATRYOSHKA
        case ReluTraining():
            return VariantName.RELU
        case JumpReluTraining():
            return VariantName.JUMPRELU
        case _:
            assert_never(variant)


def penalty_of(variant: Variant) -> float | None:
    """The weight of the penalty that keeps activations few; None where the rule fixes their number."""
    match variant:
        case ReluTraining():
            return variant.l1_coefficient
        case JumpReluTraining():
            return variant.l0_coefficient
        case TopKTraining() | BatchTopKTraining() | MatryoshkaTraining():
            return None
        case _:
            assert_never(variant)


def variant_config(variant: Variant) -> dict[str, Any]:
    """The variant as plain JSON values, its name among them."""
    return {"name": str(name_of(variant))} | {key: _plain(value) for key, value in dataclasses.asdict(variant).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
