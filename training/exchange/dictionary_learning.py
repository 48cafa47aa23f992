"""Files of dictionary_learning: the state dict `ae.pt` with the `config.json` that names its class.

Pach et al., "Sparse autoencoders learn monosemantic features in vision-language models" (2025), publish such files.
Trained on activations divided by their mean norm or not: the library multiplies its biases and thresholds back before
it saves, so that there is nothing left to fold. Knows nothing of reading torch files.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, assert_never

import torch
from torch import Tensor

from phosphene.errors import ArtefactDamaged, ArtefactRefused
from phosphene.selection import JumpReLU, Selection, TopK
from training.exchange.folding import Parts, by_direction_norm, ungate
from training.exchange.tensors import as_doubles, check_shapes, read_whole


class DictionaryClass(StrEnum):
    """The classes of the library that are read."""

    AUTO_ENCODER = "AutoEncoder"
    AUTO_ENCODER_NEW = "AutoEncoderNew"
    GATED = "GatedAutoEncoder"
    JUMP_RELU = "JumpReluAutoEncoder"
    TOP_K = "AutoEncoderTopK"
    BATCH_TOP_K = "BatchTopKSAE"
    MATRYOSHKA = "MatryoshkaBatchTopKSAE"


_LINEAR = {"encoder.weight", "decoder.weight"}
_PLAIN = {"W_enc", "b_enc", "W_dec", "b_dec"}
_NAMES: Mapping[DictionaryClass, set[str]] = {
    DictionaryClass.AUTO_ENCODER: _LINEAR | {"encoder.bias", "bias"},
    DictionaryClass.AUTO_ENCODER_NEW: _LINEAR | {"encoder.bias", "decoder.bias"},
    DictionaryClass.GATED: _LINEAR | {"decoder_bias", "r_mag", "gate_bias", "mag_bias"},
    DictionaryClass.JUMP_RELU: _PLAIN | {"threshold"},
    DictionaryClass.TOP_K: _LINEAR | {"encoder.bias", "b_dec", "k"},
    DictionaryClass.BATCH_TOP_K: _LINEAR | {"encoder.bias", "b_dec", "k", "threshold"},
    DictionaryClass.MATRYOSHKA: _PLAIN | {"k", "threshold", "group_sizes"},
}
_OPTIONAL: Mapping[DictionaryClass, set[str]] = {DictionaryClass.TOP_K: {"threshold"}}
# How the library spelt it when it was new; Pach et al. trained then.
_OLDER_NAMES = {"MatroyshkaBatchTopKSAE": DictionaryClass.MATRYOSHKA}
_UNIT_TOLERANCE = 1e-5


def is_dictionary_learning(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of one of the library's classes."""
    return bool(_fitting(state))


def read_dictionary_learning(state: dict[str, Tensor], config: dict[str, Any] | None) -> tuple[Parts, str]:
    """Read a state dict.

    Args:
        state: the tensors by name.
        config: `config.json`, where there is one.

    Returns:
        The autoencoder, and the name of its class.

    Raises:
        ArtefactDamaged: the state dict is not of the class that the configuration names, or a shape is wrong.
        ArtefactRefused: an unknown class, or a threshold that training never set.
    """
    kind = _class_of(state, config)
    weights = as_doubles(state, source=f"the state dict of the {kind}")
    encoder = weights["W_enc"].T if "W_enc" in weights else weights["encoder.weight"]
    if encoder.ndim != 2:
        raise ArtefactDamaged(f"the encoder of the {kind} has shape {tuple(encoder.shape)}; it must have two axes")
    _check(kind, weights, neurons=encoder.shape[0], width=encoder.shape[1])
    return _parts(kind, weights, config, neurons=encoder.shape[0]), str(kind)


def _parts(kind: DictionaryClass, weights: dict[str, Tensor], config: dict[str, Any] | None, *, neurons: int) -> Parts:
    rule: Selection = JumpReLU(torch.zeros(neurons, dtype=torch.float64))
    match kind:
        case DictionaryClass.AUTO_ENCODER:
            parts = _linear(weights, decoder_bias=weights["bias"], selection=rule)
            return _at_unit_norm(parts)
        case DictionaryClass.AUTO_ENCODER_NEW:
            return _linear(weights, decoder_bias=weights["decoder.bias"], selection=rule, subtract=False)
        case DictionaryClass.GATED:
            parts = _linear(weights, decoder_bias=weights["decoder_bias"], selection=rule)
            return ungate(
                parts, gate_bias=weights["gate_bias"], magnitude_bias=weights["mag_bias"], log_gain=weights["r_mag"]
            )
        case DictionaryClass.JUMP_RELU:
            return _plain(weights, selection=JumpReLU(weights["threshold"]), subtract=False)
        case DictionaryClass.TOP_K:
            return _linear(weights, decoder_bias=weights["b_dec"], selection=TopK(_k(weights, config, neurons)))
        case DictionaryClass.BATCH_TOP_K:
            rule = JumpReLU(_threshold(kind, weights).expand(neurons))
            return _linear(weights, decoder_bias=weights["b_dec"], selection=rule)
        case DictionaryClass.MATRYOSHKA:
            return _plain(weights, selection=JumpReLU(_threshold(kind, weights).expand(neurons)), subtract=True)
        case _:
            assert_never(kind)


def _linear(weights: dict[str, Tensor], *, decoder_bias: Tensor, selection: Selection, subtract: bool = True) -> Parts:
    encoder, decoder = weights["encoder.weight"], weights["decoder.weight"]
    return Parts(
        encoder_weight=encoder.T,
        encoder_bias=weights.get("encoder.bias", torch.zeros(len(encoder), dtype=torch.float64)),
        directions=decoder.T,
        decoder_bias=decoder_bias,
        selection=selection,
        subtract_decoder_bias=subtract,
    )


def _plain(weights: dict[str, Tensor], *, selection: Selection, subtract: bool) -> Parts:
    return Parts(
        encoder_weight=weights["W_enc"],
        encoder_bias=weights["b_enc"],
        directions=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        selection=selection,
        subtract_decoder_bias=subtract,
    )


def _at_unit_norm(parts: Parts) -> Parts:
    # The library's own loader does this to an AutoEncoder, and to no other class.
    norms = parts.directions.norm(dim=1)
    return parts if bool(((norms - 1).abs() <= _UNIT_TOLERANCE).all()) else by_direction_norm(parts)


def _k(weights: dict[str, Tensor], config: dict[str, Any] | None, neurons: int) -> int:
    value = float(weights["k"])
    k = read_whole(int(value) if value.is_integer() else value, name="k", least=1, most=neurons)
    named = _trainer(config).get("k", k)
    if named != k:
        raise ArtefactDamaged(f"k is {k} in the torch file and {named!r} in config.json; copy both again")
    return k


def _threshold(kind: DictionaryClass, weights: dict[str, Tensor]) -> Tensor:
    threshold = weights["threshold"]
    if float(threshold) < 0:
        raise ArtefactRefused(
            f"the threshold of the {kind} is {float(threshold):g}: its training never set it, and without one the "
            "code of an image depends on its batch; train past threshold_start_step, or set the buffer `threshold` "
            "to the least activation that a batch keeps"
        )
    return threshold


def _class_of(state: dict[str, Tensor], config: dict[str, Any] | None) -> DictionaryClass:
    fitting = _fitting(state)
    name = _trainer(config).get("dict_class")
    if name is None:
        if len(fitting) == 1:
            return fitting[0]
        raise ArtefactRefused(
            f"the tensors are those of {' and of '.join(fitting)}, whose codes differ: put the library's config.json "
            f'beside the torch file, or write {{"trainer": {{"dict_class": "{fitting[-1]}"}}}} into one'
        )
    if name not in (*DictionaryClass, *_OLDER_NAMES):
        raise ArtefactRefused(
            f"dict_class {name!r} of config.json cannot be read; read are {', '.join(DictionaryClass)}"
        )
    kind = _OLDER_NAMES.get(name) or DictionaryClass(name)
    if kind not in fitting:
        raise ArtefactDamaged(
            f"config.json names a {kind}, and the torch file holds {sorted(state)} instead of {sorted(_NAMES[kind])}"
        )
    return kind


def _trainer(config: dict[str, Any] | None) -> dict[str, Any]:
    trainer = (config or {}).get("trainer", {})
    return trainer if isinstance(trainer, dict) else {}


def _fitting(state: dict[str, Tensor]) -> list[DictionaryClass]:
    names = set(state)
    return [kind for kind, due in _NAMES.items() if due <= names <= due | _OPTIONAL.get(kind, set())]


def _check(kind: DictionaryClass, weights: dict[str, Tensor], *, neurons: int, width: int) -> None:
    per_neuron, per_coordinate = (neurons,), (width,)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (neurons, width),
        "decoder.weight": (width, neurons),
        "W_enc": (width, neurons),
        "W_dec": (neurons, width),
        "encoder.bias": per_neuron,
        "b_enc": per_neuron,
        "r_mag": per_neuron,
        "gate_bias": per_neuron,
        "mag_bias": per_neuron,
        "bias": per_coordinate,
        "b_dec": per_coordinate,
        "decoder.bias": per_coordinate,
        "decoder_bias": per_coordinate,
        "k": (),
        "threshold": per_neuron if kind is DictionaryClass.JUMP_RELU else (),
    }
    due = {name: shapes[name] for name in weights if name != "group_sizes"}
    sized = {name: tensor for name, tensor in weights.items() if name != "group_sizes"}
    check_shapes(sized, due, source=f"the state dict of the {kind}")
