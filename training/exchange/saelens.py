"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, as version 6 writes them and as older versions did.

Finished SAEs are read, and the training checkpoints that still lack their folding. Knows nothing of torch files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from phosphene.errors import ArtefactDamaged, ArtefactMissing, ArtefactRefused
from phosphene.sae import CONFIG_NAME, WEIGHTS_NAME
from phosphene.selection import JumpReLU, TopK
from training.exchange.folding import (
    Parts,
    by_direction_norm,
    direction_norms,
    on_unscaled_input,
    on_unwhitened_input,
    ungate,
)
from training.exchange.tensors import (
    as_doubles,
    check_shapes,
    read_json,
    read_positive,
    read_switch,
    read_whole,
    unreadable,
)

SCALER_NAME = "activation_scaler.json"
WHITENING_NAME = "activation_whitening.safetensors"


class Architecture(StrEnum):
    """The architectures that are read; the last two are of checkpoints, and end as jumprelu."""

    STANDARD = "standard"
    TOPK = "topk"
    JUMPRELU = "jumprelu"
    GATED = "gated"
    BATCHTOPK = "batchtopk"
    MATRYOSHKA = "matryoshka_batchtopk"


_OWN_TENSORS: Mapping[Architecture, tuple[str, ...]] = {
    Architecture.STANDARD: ("b_enc",),
    Architecture.TOPK: ("b_enc",),
    Architecture.JUMPRELU: ("b_enc", "threshold"),
    Architecture.GATED: ("b_gate", "b_mag", "r_mag"),
    Architecture.BATCHTOPK: ("b_enc", "topk_threshold"),
    Architecture.MATRYOSHKA: ("b_enc", "topk_threshold"),
}
_REASONS = {
    "abstopk": "its activations may be negative, and a code holds positive ones only",
    "matching_pursuit": "it chooses its neurons one after the other, which no single linear layer can say",
    "temporal": "the code of a token depends on the tokens before it",
    "transcoder": "it writes to another site than it reads",
    "skip_transcoder": "it writes to another site than it reads",
    "jumprelu_transcoder": "it writes to another site than it reads",
    "jumprelu_skip_transcoder": "it writes to another site than it reads",
}


def read_saelens(folder: Path) -> tuple[Parts, str]:
    """Read a folder.

    Returns:
        The autoencoder, and the name of its architecture in SAELens.

    Raises:
        ArtefactMissing: a file is not there, or cannot be opened.
        ArtefactDamaged: a file does not parse, or a shape differs from the configuration.
        ArtefactRefused: an architecture or option that our inference rules cannot honour exactly.
    """
    config = _in_words_of_6(read_json(folder / CONFIG_NAME))
    architecture = _architecture(config["architecture"])
    _refuse_options(config)
    width = read_whole(config.get("d_in"), name="d_in", least=1)
    neurons = read_whole(config.get("d_sae"), name="d_sae", least=1)
    weights = _in_names_of_6(architecture, _read_tensors(folder / WEIGHTS_NAME))
    due: dict[str, tuple[int, ...]] = {"W_enc": (width, neurons), "W_dec": (neurons, width), "b_dec": (width,)}
    due |= {name: () if name == "topk_threshold" else (neurons,) for name in _OWN_TENSORS[architecture]}
    check_shapes(weights, due, source=f"{WEIGHTS_NAME} of an SAELens {architecture} SAE")
    rescales = _rescales(architecture, config)
    parts = _parts(architecture, config, weights, rescales=rescales)
    return _fold(folder, config["normalize_activations"], parts, rescales=rescales), str(architecture)


def _architecture(name: object) -> Architecture:
    try:
        return Architecture(str(name))
    except ValueError:
        reason = _REASONS.get(str(name), f"read are {', '.join(Architecture)}")
        raise ArtefactRefused(f"SAELens architecture {name!r} cannot be read: {reason}") from None


def _parts(architecture: Architecture, config: dict[str, Any], weights: dict[str, Tensor], *, rescales: bool) -> Parts:
    neurons = len(weights["W_dec"])
    zeros = torch.zeros(neurons, dtype=torch.float64)
    parts = Parts(
        encoder_weight=weights["W_enc"],
        encoder_bias=weights.get("b_enc", zeros),
        directions=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        selection=JumpReLU(zeros),
        subtract_decoder_bias=read_switch(config.get("apply_b_dec_to_input", True), name="apply_b_dec_to_input"),
    )
    match architecture:
        case Architecture.STANDARD:
            return parts
        case Architecture.TOPK:
            return replace(parts, selection=TopK(read_whole(config.get("k"), name="k", least=1, most=neurons)))
        case Architecture.JUMPRELU:
            return replace(parts, selection=JumpReLU(weights["threshold"]))
        case Architecture.GATED:
            return ungate(
                parts, gate_bias=weights["b_gate"], magnitude_bias=weights["b_mag"], log_gain=weights["r_mag"]
            )
        case Architecture.BATCHTOPK | Architecture.MATRYOSHKA:
            threshold = weights["topk_threshold"].expand(neurons)
            # Where they rescale, it was measured on activations times the norm of their direction.
            norms = direction_norms(weights["W_dec"])
            return replace(parts, selection=JumpReLU(threshold / norms if rescales else threshold))
        case _:
            assert_never(architecture)


def _fold(folder: Path, normalisation: object, parts: Parts, *, rescales: bool) -> Parts:
    match normalisation:
        case "none":
            folded = parts
        case "expected_average_only_in":
            # Before the rescaling: SAELens too folds the factor into the directions whose norms it then reads.
            folded = on_unscaled_input(parts, _scaling_factor(folder))
        case "covariance_whitening":
            whitening = _whitening(folder, len(parts.decoder_bias))
            # After the rescaling, which goes by the norms that the directions had in training.
            return on_unwhitened_input(by_direction_norm(parts) if rescales else parts, **whitening)
        case "layer_norm" | "constant_norm_rescale":
            raise ArtefactRefused(
                f"normalize_activations is {normalisation!r}: it divides every residual by a length of its own, which "
                "no fixed weights can do; train the SAE with 'none' or 'expected_average_only_in', which are folded"
            )
        case _:
            raise ArtefactRefused(
                f"normalize_activations is {normalisation!r}; read are 'none', 'expected_average_only_in' and "
                "'covariance_whitening'"
            )
    return by_direction_norm(folded) if rescales else folded


def _scaling_factor(folder: Path) -> float:
    if not (folder / SCALER_NAME).is_file():
        raise ArtefactMissing(
            f"normalize_activations is 'expected_average_only_in', and the factor is not in the folder; write it to "
            f'{SCALER_NAME} there as {{"scaling_factor": 1.23}}: the square root of d_in over the mean norm of the '
            "residuals that the SAE was trained on"
        )
    return read_positive(read_json(folder / SCALER_NAME).get("scaling_factor"), name=f"scaling_factor in {SCALER_NAME}")


def _whitening(folder: Path, width: int) -> dict[str, Tensor]:
    if not (folder / WHITENING_NAME).is_file():
        raise ArtefactMissing(
            f"normalize_activations is 'covariance_whitening', and {WHITENING_NAME} is not in the folder: copy it from "
            "the training checkpoint, or save the SAE after SAELens has folded it"
        )
    tensors = _read_tensors(folder / WHITENING_NAME)
    check_shapes(
        tensors, {"mean": (width,), "matrix": (width, width), "inverse_matrix": (width, width)}, source=WHITENING_NAME
    )
    return {"mean": tensors["mean"], "matrix": tensors["matrix"], "inverse": tensors["inverse_matrix"]}


def _rescales(architecture: Architecture, config: dict[str, Any]) -> bool:
    match architecture:
        case Architecture.STANDARD | Architecture.JUMPRELU | Architecture.GATED:
            return False  # SAELens has no such option there, and does not look at it
        case Architecture.TOPK:
            is_default = False
        case Architecture.BATCHTOPK | Architecture.MATRYOSHKA:
            is_default = True
        case _:
            assert_never(architecture)
    name = "rescale_acts_by_decoder_norm"
    return read_switch(config.get(name, is_default), name=name)


def _in_words_of_6(config: dict[str, Any]) -> dict[str, Any]:
    # Before version 6 there was one architecture with an activation function, and a switch for the normalisation.
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    words = config | {"architecture": config.get("architecture", "standard")}
    if activation == "topk":
        arguments = config.get("activation_fn_kwargs")
        k = arguments.get("k") if isinstance(arguments, dict) else config.get("k")
        words |= {"architecture": "topk", "k": k}
    elif activation != "relu":
        raise ArtefactRefused(f"the activation function is {activation!r}; only 'relu' and 'topk' are read")
    match config.get("normalize_activations"):
        case None | False:
            words["normalize_activations"] = "none"
        case True:
            words["normalize_activations"] = "expected_average_only_in"
    hook = config.get("hook_name", config.get("hook_point", ""))
    words["reshape_activations"] = config.get("reshape_activations", "hook_z" if "hook_z" in str(hook) else "none")
    return words


def _in_names_of_6(architecture: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    names = dict(weights)
    if architecture is Architecture.JUMPRELU and "log_threshold" in names:
        names["threshold"] = names.pop("log_threshold").exp()
    if "scaling_factor" in names:
        if not bool((names["scaling_factor"] == 1).all()):
            raise ArtefactRefused(
                "the SAE was fine-tuned with a scaling_factor per neuron, which SAELens 6 does not read either; fold "
                "it into W_dec with the version that wrote it"
            )
        del names["scaling_factor"]
    return names


def _refuse_options(config: dict[str, Any]) -> None:
    reshaping = config["reshape_activations"]
    if reshaping not in ("none", None):
        raise ArtefactRefused(
            f"reshape_activations is {reshaping!r}: the SAE reads the outputs of attention heads, and a site gives "
            "the residual stream"
        )
    if config.get("d_out") not in (None, config.get("d_in")):
        raise ArtefactRefused(f"d_out is {config['d_out']!r} and d_in {config.get('d_in')!r}: transcoders are not read")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb"):  # Whatever keeps safetensors from opening a file, it says that there is none.
            tensors = load_file(file)
    except OSError as cause:
        raise unreadable(file, cause) from cause
    except (ValueError, SafetensorError) as cause:
        raise ArtefactDamaged(f"{file.name} in {file.parent.name!r} does not parse: {cause}; copy it again") from cause
    return as_doubles(tensors, source=file.name)
