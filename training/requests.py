"""The autoencoder and the optimisation that a caller asks for, and how they resolve to numbers.

A request leaves things open (`None`); resolving it against width and number of residuals closes them. Knows nothing of
files or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from phosphene.errors import SettingError
from training.settings import (
    DEFAULT_DECAY_SHARE,
    DEFAULT_GRADIENT_CLIP,
    DEFAULT_WARMUP_SHARE,
    BiasInit,
    InputScaling,
    SaeSettings,
    TrainingSettings,
)
from training.variants import (
    FIXED_L0,
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    SelectionPrecision,
    TopKTraining,
    Variant,
    VariantName,
)

DEFAULT_PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Nested sizes of Matryoshka as shares of the neurons; the whole comes last by itself."""
DEFAULT_L1 = 1e-3
"""Weight of the L1 penalty on inputs of mean square one."""
DEFAULT_L0 = 1e-3
"""Weight of the L0 penalty on inputs of mean square one."""

_NEURON_LIMIT = 2**31 - 1  # codes hold the numbers of neurons in 32 bits, one of them for the sign
_DEFAULT_STEP_COUNT = 2000
_STEP_LIMIT = 10**9
_SEED_LIMIT = 2**63
_BATCH_ROWS_RANGE = (16, 4096)
_DEAD_AFTER_RANGE = (1024, 10_000_000)


@dataclass(frozen=True, kw_only=True)
class SaeRequest:
    """The autoencoder asked for; exactly one of `neuron_count` and `expansion` is given."""

    k: int | None = None
    """Active neurons per token; for the variants that fix it."""
    neuron_count: int | None = None
    """Number of neurons."""
    expansion: int | None = None
    """Number of neurons as a multiple of the residual's width."""
    variant: VariantName = VariantName.BATCHTOPK
    """Training rule."""
    sparsity: float | None = None
    """Weight of the penalty that keeps activations few; for relu and jumprelu."""
    prefixes: tuple[float, ...] | None = None
    """Nested sizes of Matryoshka, rising: shares of the neurons where below 1, numbers of neurons from 1 on."""
    inputs: InputScaling = InputScaling.SCALED
    """What residuals go through first."""
    is_error_normalised: bool = False
    """Whether each row's squared error is divided by the norm of the input; for relu."""
    has_ghost_gradients: bool | None = None
    """Whether neurons dead for a window of steps learn from what is left unexplained; for relu, None is yes."""
    selection_precision: SelectionPrecision = SelectionPrecision.FLOAT32
    """Of the search for the active neurons; for the variants that fix their number."""

    def check(self) -> None:
        """Refuse what no residual width can mend.

        Raises:
            SettingError: naming the option, its value, the limit and the remedy.
        """
        if (self.neuron_count is None) == (self.expansion is None):
            raise SettingError(
                "give exactly one of --neurons and --expansion: how many neurons there are, from 2 on, or how many "
                "each residual dimension gets, from 1 on",
                field="neurons",
            )
        if self.expansion is not None and not 1 <= self.expansion <= _NEURON_LIMIT:
            raise SettingError(
                f"--expansion is {self.expansion}; the least is 1, and the most gives {_NEURON_LIMIT:,} neurons: give "
                "how many neurons each residual dimension gets",
                field="expansion",
            )
        if self.neuron_count is not None and not 2 <= self.neuron_count <= _NEURON_LIMIT:
            raise SettingError(
                f"--neurons is {self.neuron_count}; the least is 2, and the most {_NEURON_LIMIT:,}", field="neurons"
            )
        if self.variant in FIXED_L0:
            self._check_k()
        else:
            self._check_sparsity()
        if self.prefixes is not None and self.variant is not VariantName.MATRYOSHKA:
            raise SettingError(f"--prefixes goes with --variant matryoshka, not {self.variant}", field="prefixes")
        if self.variant is not VariantName.RELU and (self.is_error_normalised or self.has_ghost_gradients is not None):
            raise SettingError(
                f"--normalise-error and --ghost-gradients go with --variant relu, not {self.variant}", field="variant"
            )
        if self.selection_precision is not SelectionPrecision.FLOAT32 and self.variant not in FIXED_L0:
            raise SettingError(
                f"--selection-precision goes with the top-k variants; {self.variant} selects by its thresholds",
                field="selection-precision",
            )

    def resolve(self, width: int) -> SaeSettings:
        """Fix the number of neurons for residuals of this width.

        Raises:
            SettingError: as `check`, and where that number exceeds its limit, or k exceeds it.
        """
        self.check()
        neuron_count = self.neuron_count if self.neuron_count is not None else (self.expansion or 0) * width
        if neuron_count > _NEURON_LIMIT:
            raise SettingError(
                f"--expansion is {self.expansion}, which are {neuron_count:,} neurons for residuals of width {width}; "
                f"the limit is {_NEURON_LIMIT:,}: lower --expansion",
                field="expansion",
            )
        if self.k is not None and self.k > neuron_count:
            raise SettingError(_k_too_large(self.k, neuron_count), field="k")
        return SaeSettings(neuron_count=neuron_count, variant=self._variant(neuron_count), inputs=self.inputs)

    def _check_k(self) -> None:
        if self.sparsity is not None:
            raise SettingError(
                f"--sparsity goes with --variant relu and jumprelu; {self.variant} takes --k", field="sparsity"
            )
        if self.k is None:
            most = "the number of neurons" if self.neuron_count is None else f"{self.neuron_count}, all neurons"
            others = ", ".join(variant for variant in VariantName if variant not in FIXED_L0)
            raise SettingError(
                f"--k is missing: --variant {self.variant} needs --k, the active neurons per token; give a number from "
                f"1 to {most}, or a variant that takes --sparsity ({others})",
                field="k",
            )
        if self.k < 1:
            raise SettingError(f"--k is {self.k}; the least is 1 active neuron per token", field="k")
        if self.neuron_count is not None and self.k > self.neuron_count:
            raise SettingError(_k_too_large(self.k, self.neuron_count), field="k")

    def _check_sparsity(self) -> None:
        if self.k is not None:
            raise SettingError(f"--k goes with the top-k variants; {self.variant} takes --sparsity", field="k")
        if self.sparsity is not None and not 0 <= self.sparsity < math.inf:
            raise SettingError(f"--sparsity is {self.sparsity}; it must be 0 or more and finite", field="sparsity")

    def _variant(self, neuron_count: int) -> Variant:
        k, precision = self.k or 0, self.selection_precision
        match self.variant:
            case VariantName.TOPK:
                return TopKTraining(k=k, precision=precision)
            case VariantName.BATCHTOPK:
                return BatchTopKTraining(k=k, precision=precision)
            case VariantName.MATRYOSHKA:
                prefixes = nested_sizes(self.prefixes or DEFAULT_PREFIXES, neuron_count)
                return MatryoshkaTraining(k=k, prefixes=prefixes, precision=precision)
            case VariantName.RELU:
                coefficient = DEFAULT_L1 if self.sparsity is None else self.sparsity
                return ReluTraining(
                    l1_coefficient=coefficient,
                    is_error_normalised=self.is_error_normalised,
                    has_ghost_gradients=self.has_ghost_gradients is not False,
                )
            case VariantName.JUMPRELU:
                return JumpReluTraining(l0_coefficient=DEFAULT_L0 if self.sparsity is None else self.sparsity)
            case _:
                assert_never(self.variant)


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
    learning_rate_anchor: float | None = None
    """Where `learning_rate` is None: its value at 1,024 neurons, falling with the square root of their number (Gao et
    al. 2024, appendix A.3); None too: it follows from width and steps, see `default_learning_rate`."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises from zero; None is a twentieth of them."""
    decay_share: float | None = None
    """Share of the steps over which the learning rate falls to zero at the end; 0 never lets it fall."""
    gradient_clip: float | None = None
    """Largest norm of the gradient over all weights; infinity clips nothing."""
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
        if self.step_count is not None and not 1 <= self.step_count <= _STEP_LIMIT:
            raise SettingError(f"--steps is {self.step_count}; it must be from 1 to {_STEP_LIMIT:,}", field="steps")
        if self.epochs is not None and not 0 < self.epochs <= _STEP_LIMIT:
            raise SettingError(
                f"--epochs is {self.epochs:g}; it must be greater than 0, and at most {_STEP_LIMIT:,}", field="epochs"
            )
        if self.batch_rows is not None and self.batch_rows < 1:
            raise SettingError(f"--batch is {self.batch_rows}; the least is 1 activation per step")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SettingError(f"--lr is {self.learning_rate}; it must be greater than 0 and finite")
        if not 0 <= self.seed < _SEED_LIMIT:
            raise SettingError(f"--seed is {self.seed}; it must be 0 or more and below 2**63", field="seed")
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= _STEP_LIMIT:
            raise SettingError(
                f"--warmup is {self.warmup_steps} steps; it must be from 0 to {_STEP_LIMIT:,}", field="warmup"
            )
        if self.decay_share is not None and not 0 <= self.decay_share <= 1:
            raise SettingError(f"--decay is {self.decay_share}; it is a share of the steps, from 0 to 1", field="decay")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise SettingError(
                f"--gradient-clip is {self.gradient_clip}; it must be greater than 0 (inf clips nothing)",
                field="gradient-clip",
            )

    def resolve(self, row_count: int, sae: SaeSettings, *, width: int) -> TrainingSettings:
        """Fix every number for a corpus that yields so many training activations of this width.

        Raises:
            SettingError: as `check`, and where the epochs are too many steps.
        """
        self.check()
        batch_rows = self.batch_rows or _power_of_two_below(row_count // 4, *_BATCH_ROWS_RANGE)
        batch_rows = min(batch_rows, row_count)
        if self.epochs is not None:
            step_count = max(1, math.ceil(self.epochs * row_count / batch_rows))
            if step_count > _STEP_LIMIT:
                raise SettingError(
                    f"--epochs is {self.epochs:g}, which are {step_count:,} steps of {batch_rows} activations; the "
                    f"limit is {_STEP_LIMIT:,} steps: lower --epochs, or raise --batch",
                    field="epochs",
                )
        else:
            step_count = self.step_count or max(_DEFAULT_STEP_COUNT, row_count // batch_rows)
        low, high = _DEAD_AFTER_RANGE
        warmup_share = DEFAULT_WARMUP_SHARE if self.warmup_steps is None else min(1.0, self.warmup_steps / step_count)
        return TrainingSettings(
            step_count=step_count,
            batch_rows=batch_rows,
            learning_rate=self._learning_rate(sae.neuron_count, width, step_count),
            dead_after_samples=min(max(step_count * batch_rows // 20, low), high),
            bias_init=self.bias_init,
            seed=self.seed,
            warmup_share=warmup_share,
            decay_share=DEFAULT_DECAY_SHARE if self.decay_share is None else self.decay_share,
            gradient_clip=DEFAULT_GRADIENT_CLIP if self.gradient_clip is None else self.gradient_clip,
        )

    def _learning_rate(self, neuron_count: int, width: int, step_count: int) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        if self.learning_rate_anchor is not None:
            return self.learning_rate_anchor * math.sqrt(1024 / neuron_count)
        return default_learning_rate(width, step_count)


def nested_sizes(prefixes: tuple[float, ...], neuron_count: int) -> tuple[int, ...]:
    """The sizes of Matryoshka's nested autoencoders in neurons, the whole one last.

    Args:
        prefixes: shares of the neurons where below 1, numbers of neurons from 1 on.
        neuron_count: number of neurons of the whole.

    Raises:
        SettingError: the sizes do not rise, or exceed the number of neurons.
    """
    is_number = all(math.isfinite(prefix) and prefix > 0 for prefix in prefixes)
    sizes = [_size(prefix, neuron_count) for prefix in prefixes] if is_number else []
    if sizes and sizes[-1] < neuron_count:
        sizes.append(neuron_count)
    if not sizes or sizes[-1] != neuron_count or sizes != sorted(set(sizes)):
        raise SettingError(
            f"--prefixes gives {sizes or list(prefixes)} of {neuron_count} neurons; sizes must rise up to the number "
            "of neurons: give shares between 0 and 1, or numbers of neurons",
            field="prefixes",
        )
    return tuple(sizes)


def default_learning_rate(width: int, step_count: int) -> float:
    """A peak learning rate for residuals of this width and so many steps.

    From `benchmarks/training_defaults.py`: in 600 steps, for 1,024 to 8,192 neurons, the best of five rates or close to
    it was 4e-3 at a width of 512 and 8e-3 at 128. Longer runs have time for smaller ones.
    """
    return 4e-3 * math.sqrt(512 / max(width, 128)) * math.sqrt(min(1.0, 1000 / step_count))


def _size(prefix: float, neuron_count: int) -> int:
    return max(1, round(prefix * neuron_count)) if prefix < 1 else round(prefix)


def _k_too_large(k: int, neuron_count: int) -> str:
    return (
        f"--k is {k}; the limit is the number of neurons, {neuron_count}: lower --k, or raise --neurons or --expansion"
    )


def _power_of_two_below(value: int, low: int, high: int) -> int:
    return min(max(1 << max(value, 1).bit_length() - 1, low), high)
