"""State dicts of Overcomplete's SAEs whose encoder is one linear layer.

What the library keeps outside the state dict (which model it was, k, the running threshold) is read from a JSON file
beside it. Knows nothing of reading torch files. Archetypal dictionaries: Fel et al., "Archetypal SAE" (2025).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.linalg import vector_norm

from phosphene.errors import ArtefactDamaged, ArtefactRefused
from phosphene.selection import JumpReLU, Selection, TopK
from training.exchange.folding import Parts, just_below
from training.exchange.tensors import as_doubles, check_shapes, read_positive, read_whole

_DICTIONARY, _ENCODER, _TIED = "dictionary.", "encoder.", "encoder.tied_to."
_NORM_LAYER_EPSILON = 1e-5
_EPSILON = 1e-8


class Model(StrEnum):
    """The models that are read; those with an archetypal dictionary count as their base."""

    SAE = "SAE"
    TOP_K = "TopKSAE"
    BATCH_TOP_K = "BatchTopKSAE"
    JUMP = "JumpSAE"


class Normalisation(StrEnum):
    """What the dictionary layer does to its weights; Overcomplete's names."""

    L2 = "l2"
    MAX_L2 = "max_l2"
    L1 = "l1"
    MAX_L1 = "max_l1"
    IDENTITY = "identity"


_ARCHETYPAL = {"RATopKSAE": Model.TOP_K, "RAJumpSAE": Model.JUMP}
_KEYS = {"model", "top_k", "running_threshold", "normalization", "delta"}
_BESIDE = (
    'write a JSON file of the same name beside the torch file, such as {"model": "TopKSAE", "top_k": 32} or '
    '{"model": "BatchTopKSAE", "running_threshold": 0.31}'
)


def is_overcomplete(state: dict[str, Tensor]) -> bool:
    """Whether there is a dictionary layer of Overcomplete among the tensors."""
    return any(name.startswith(_DICTIONARY) for name in state)


def read_overcomplete(state: dict[str, Tensor], config: dict[str, Any] | None) -> tuple[Parts, str]:
    """Read a state dict.

    Args:
        state: the tensors by name.
        config: the JSON file beside it, where there is one: `model` (Overcomplete's class), `top_k`,
            `running_threshold`, and where they are not the library's defaults `normalization` and `delta`.

    Returns:
        The autoencoder, and the name of its model.

    Raises:
        ArtefactDamaged: a tensor is missing or has a wrong shape.
        ArtefactRefused: an encoder that is not one linear layer, another model, or a missing word about it.
    """
    words = config or {}
    unknown = sorted(set(words) - _KEYS)
    if unknown:
        raise ArtefactRefused(f"the JSON file beside the torch file holds {unknown}; known are {sorted(_KEYS)}")
    weights = as_doubles(state, source="the state dict")
    model = _model(weights, words)
    directions = _dictionary(weights, words)
    neurons, width = directions.shape
    weight, bias = _encoder(weights, directions)
    if "thresholds" in weights:
        check_shapes({"thresholds": weights["thresholds"]}, {"thresholds": (neurons,)}, source="the JumpSAE")
    parts = Parts(
        encoder_weight=weight,
        encoder_bias=bias,
        directions=directions,
        decoder_bias=torch.zeros(width, dtype=torch.float64),
        selection=_selection(model, weights, words, neurons),
        subtract_decoder_bias=False,
    )
    return parts, str(model)


def _model(weights: dict[str, Tensor], words: dict[str, Any]) -> Model:
    if "Q" in weights:
        raise ArtefactRefused("a QSAE rounds its codes to learnt levels, which neither of our inference rules does")
    name = words.get("model")
    if name is None:
        if "thresholds" in weights:  # no other model has them
            return Model.JUMP
        raise ArtefactRefused(f"the state dict does not say which model of Overcomplete it is: {_BESIDE}")
    model = _ARCHETYPAL.get(str(name)) or next((model for model in Model if model == name), None)
    if model is None:
        raise ArtefactRefused(
            f"Overcomplete's model {name!r} cannot be read; read are {', '.join([*Model, *_ARCHETYPAL])}"
        )
    if (model is Model.JUMP) != ("thresholds" in weights):
        raise ArtefactDamaged(
            f"the JSON file says {name!r}, and the state dict has {'' if 'thresholds' in weights else 'no '}thresholds"
        )
    return model


def _selection(model: Model, weights: dict[str, Tensor], words: dict[str, Any], neurons: int) -> Selection:
    match model:
        case Model.SAE:
            return JumpReLU(torch.zeros(neurons, dtype=torch.float64))
        case Model.TOP_K:
            if "top_k" not in words:
                raise ArtefactRefused(f"the state dict of a TopKSAE does not hold its top_k: {_BESIDE}")
            return TopK(read_whole(words["top_k"], name="top_k", least=1, most=neurons))
        case Model.BATCH_TOP_K:
            if "running_threshold" not in words:
                raise ArtefactRefused(
                    "the state dict of a BatchTopKSAE does not hold its threshold, and without one the code of an "
                    f"image depends on its batch; the model has it as `running_threshold`: {_BESIDE}"
                )
            threshold = read_positive(words["running_threshold"], name="running_threshold", can_be_zero=True)
            return JumpReLU(just_below(torch.full((neurons,), threshold)))
        case Model.JUMP:
            return JumpReLU(just_below(weights["thresholds"].float().exp()))
        case _:
            assert_never(model)


def _dictionary(weights: dict[str, Tensor], words: dict[str, Any]) -> Tensor:
    layer = {name.removeprefix(_DICTIONARY): tensor for name, tensor in weights.items() if name.startswith(_DICTIONARY)}
    source = "Overcomplete's dictionary layer"
    if "_weights" in layer:
        rows = layer["_weights"]
        check_shapes(layer, {"_weights": _matrix(rows, source), "multiplier": ()}, source=source)
        try:
            normalisation = Normalisation(words.get("normalization", Normalisation.L2))
        except ValueError:
            raise ArtefactRefused(
                f"normalization is {words['normalization']!r}; known are {', '.join(Normalisation)}"
            ) from None
        return _normalised(rows, normalisation) * layer["multiplier"].exp()
    if "W" not in layer or "C" not in layer or "Relax" not in layer:
        raise ArtefactDamaged(f"{source} holds {sorted(layer)}, neither `_weights` nor `W`, `C` and `Relax`")
    (neurons, width), (points, _) = _matrix(layer["Relax"], source), _matrix(layer["C"], source)
    shapes: dict[str, tuple[int, ...]] = {"W": (neurons, points), "C": (points, width), "Relax": (neurons, width)}
    check_shapes(layer, shapes | {"multiplier": ()}, source=source)
    delta = read_positive(words.get("delta", 1.0), name="delta", can_be_zero=True)
    return _archetypes(layer, delta) * layer["multiplier"].exp()


def _archetypes(layer: dict[str, Tensor], delta: float) -> Tensor:
    shares = layer["W"].clamp_min(0)
    shares = shares / (shares.sum(dim=1, keepdim=True) + _EPSILON)
    norms = _norms(layer["Relax"], 2).clamp_min(torch.finfo(torch.float64).tiny)
    return shares @ layer["C"] + layer["Relax"] * (delta / norms).clamp_max(1)


def _normalised(rows: Tensor, normalisation: Normalisation) -> Tensor:
    match normalisation:
        case Normalisation.L2:
            return rows / (_norms(rows, 2) + _EPSILON)
        case Normalisation.L1:
            return rows / (_norms(rows, 1) + _EPSILON)
        case Normalisation.MAX_L2:
            return rows / _norms(rows, 2).amax()
        case Normalisation.MAX_L1:
            return rows / _norms(rows, 1).amax()
        case Normalisation.IDENTITY:
            return rows
        case _:
            assert_never(normalisation)


def _norms(rows: Tensor, order: int) -> Tensor:
    norms: Tensor = vector_norm(rows, order, dim=1, keepdim=True)
    return norms


def _encoder(weights: dict[str, Tensor], directions: Tensor) -> tuple[Tensor, Tensor]:
    neurons, width = directions.shape
    layer = {
        name.removeprefix(_ENCODER): tensor
        for name, tensor in weights.items()
        if name.startswith(_ENCODER) and not name.startswith(_TIED)
    }
    other = sorted(name for name in weights if not name.startswith((_ENCODER, _DICTIONARY)) and name != "thresholds")
    if other:
        raise ArtefactRefused(f"the state dict holds {other}, which no model of Overcomplete that is read has")
    zeros = torch.zeros(neurons, dtype=torch.float64)
    if any(name.startswith(_TIED) for name in weights):
        check_shapes(layer, {"bias": (neurons,)} if layer else {}, source="Overcomplete's tied encoder")
        return directions.T, layer.get("bias", zeros)
    if "weight" in layer:
        due: dict[str, tuple[int, ...]] = {"weight": (neurons, width)}
        check_shapes(layer, due | ({"bias": (neurons,)} if "bias" in layer else {}), source="Overcomplete's encoder")
        return layer["weight"].T, layer.get("bias", zeros)
    return _final_block(layer, neurons, width)


def _final_block(layer: dict[str, Tensor], neurons: int, width: int) -> tuple[Tensor, Tensor]:
    deep = sorted({name.split(".")[0] for name in layer if not name.startswith("final_block.")})
    if deep:
        raise ArtefactRefused(
            f"the encoder has {deep} before its last layer; only one linear layer can be read: train with "
            "encoder_module='linear'"
        )
    due: dict[str, tuple[int, ...]] = {"final_block.0.weight": (neurons, width), "final_block.0.bias": (neurons,)}
    linear = {name: tensor for name, tensor in layer.items() if not name.startswith("final_block.1.")}
    norm = {name.removeprefix("final_block.1."): tensor for name, tensor in layer.items() if name not in linear}
    check_shapes(linear, due, source="Overcomplete's encoder")
    weight, bias = linear["final_block.0.weight"].T, linear["final_block.0.bias"]
    if not norm:
        return weight, bias
    if "running_var" not in norm:
        raise ArtefactRefused(
            "the encoder ends in a LayerNorm, which divides every token's pre-activations by a length of their own: "
            "no linear layer does that; train with encoder_module='linear'"
        )
    # BatchNorm at inference: moments of the training data, so one more linear step.
    names = ("weight", "bias", "running_mean", "running_var")
    check_shapes(norm, {name: (neurons,) for name in names} | {"num_batches_tracked": ()}, source="the BatchNorm")
    gain = norm["weight"] / (norm["running_var"] + _NORM_LAYER_EPSILON).sqrt()
    return weight * gain, (bias - norm["running_mean"]) * gain + norm["bias"]


def _matrix(tensor: Tensor, source: str) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise ArtefactDamaged(f"{source} has a tensor of shape {tuple(tensor.shape)} where two axes are due")
    return tensor.shape[0], tensor.shape[1]
