"""SparseAutoencoder: residuals <-> codes, and its folder in the SAELens layout.

One module for every architecture: how an SAE was trained does not show here, only its selection does. Knows nothing of
encoders or images. Layout: SAELens 6 (`cfg.json`, `sae_weights.safetensors`), so that the field's tools read it. Read
is what is written here; SAEs of other libraries and options come in through `training.exchange`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, assert_never

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phosphene.codes import TokenCodes
from phosphene.errors import ArtefactDamaged, ArtefactMissing, ArtefactRefused, NumericError
from phosphene.selection import JumpReLU, Selection, TopK, select, select_ahead

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "SparseAutoencoder", "load_sae", "sae_config", "save_sae"]

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"

# SAELens takes a folder that does not say so for one of before version 6, and drops its metadata.
_LAYOUT = {"sae_lens_version": "6.0.0"}

# Options of SAELens that change codes, and the values that stand for "nothing left to fold".
_OPTIONS: dict[str, tuple[object, ...]] = {
    "normalize_activations": (None, "none"),
    "reshape_activations": (None, "none"),
    "rescale_acts_by_decoder_norm": (None, False),
    "activation_fn": (None, "relu"),
    "activation_fn_str": (None, "relu"),
}
_DENSE_LIMIT_VALUES = 1 << 25  # 128 MiB of float32 pre-activations at a time


class SparseAutoencoder(nn.Module):
    """An inference-time sparse autoencoder: f = select((x - b_dec) W_enc + b_enc), x^ = f W_dec + b_dec."""

    def __init__(
        self,
        *,
        encoder_weight: Float[Tensor, "width neurons"],
        encoder_bias: Float[Tensor, " neurons"],
        directions: Float[Tensor, "neurons width"],
        decoder_bias: Float[Tensor, " width"],
        selection: Selection,
        subtract_decoder_bias: bool = True,
    ) -> None:
        """Take the weights as they are.

        Args:
            encoder_weight: W_enc [width, neurons].
            encoder_bias: b_enc [neurons].
            directions: W_dec [neurons, width]; a neuron's row is what one unit of its activation adds to a residual.
            decoder_bias: b_dec [width].
            selection: the inference rule.
            subtract_decoder_bias: whether the encoder reads x - b_dec (SAELens: `apply_b_dec_to_input`).

        Raises:
            NumericError: a weight is NaN or infinite.
        """
        super().__init__()
        self.encoder_weight = nn.Parameter(encoder_weight.detach(), requires_grad=False)
        self.encoder_bias = nn.Parameter(encoder_bias.detach(), requires_grad=False)
        self.directions = nn.Parameter(directions.detach(), requires_grad=False)
        self.decoder_bias = nn.Parameter(decoder_bias.detach(), requires_grad=False)
        self.subtract_decoder_bias = subtract_decoder_bias
        self.threshold: Tensor | None
        match selection:
            case TopK(k=k):
                self._k = k
                self.register_buffer("threshold", None)
            case JumpReLU(threshold=threshold):
                self._k = 0
                self.register_buffer("threshold", threshold.detach())
            case _:
                assert_never(selection)
        for name, value in self.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise NumericError(f"SAE weight {name!r} holds NaN or infinity; train or export the SAE again")

    @property
    def width(self) -> int:
        """Width of the residuals that the SAE reads."""
        return self.encoder_weight.shape[0]

    @property
    def neuron_count(self) -> int:
        """Number of neurons."""
        return self.encoder_weight.shape[1]

    @property
    def selection(self) -> Selection:
        """The inference rule, its tensors on this module's device."""
        return TopK(self._k) if self.threshold is None else JumpReLU(self.threshold)

    def pre_activations(self, residuals: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens neurons"]:
        """Return the dense pre-activations of a small block of tokens."""
        centred = residuals - self.decoder_bias if self.subtract_decoder_bias else residuals
        return torch.addmm(self.encoder_bias, centred, self.encoder_weight)

    def encode(self, residuals: Float[Tensor, "*tokens width"], *, limit: int) -> TokenCodes:
        """Return the code of every token.

        Args:
            residuals: [*tokens, width].
            limit: `token_code_limit`.

        Returns:
            Codes with leading shape [*tokens]. Dense values exist only for a block of tokens at a time.
        """
        leading = residuals.shape[:-1]
        parts = [select(self.selection, dense, limit=limit) for dense in self._dense_blocks(residuals)]
        return _join(parts, leading)

    def encode_ahead(
        self, residuals: Float[Tensor, "*tokens width"], *, limit: int
    ) -> tuple[TokenCodes, Bool[Tensor, "*tokens"]]:
        """As `encode`, without waiting for the device.

        Returns:
            Codes, and which tokens' last place was tied: `encode` those again.
        """
        leading = residuals.shape[:-1]
        parts = [select_ahead(self.selection, dense, limit=limit) for dense in self._dense_blocks(residuals)]
        is_tied = torch.cat([tied for _, tied in parts]).reshape(leading)
        return _join([codes for codes, _ in parts], leading), is_tied

    def decode(self, codes: TokenCodes) -> Float[Tensor, "*tokens width"]:
        """Return the reconstruction x^ = sum of value x direction + b_dec, without a dense code."""
        leading, slots = codes.values.shape[:-1], codes.values.shape[-1]
        bags = nn.functional.embedding_bag(
            codes.neuron_ids.reshape(-1, slots),
            self.directions,
            per_sample_weights=codes.values.reshape(-1, slots),
            mode="sum",
        )
        return (bags + self.decoder_bias).reshape(*leading, self.width)

    def _dense_blocks(self, residuals: Float[Tensor, "*tokens width"]) -> Iterator[Float[Tensor, "block neurons"]]:
        flat = residuals.reshape(-1, self.width)
        for part in flat.split(max(1, _DENSE_LIMIT_VALUES // self.neuron_count)):
            yield self.pre_activations(part)


def sae_config(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return what decides the SAE's codes beside its weights, as `cfg.json` spells it."""
    selection = sae.selection
    config: dict[str, Any] = {
        "d_in": sae.width,
        "d_sae": sae.neuron_count,
        "dtype": "float32",
        "apply_b_dec_to_input": sae.subtract_decoder_bias,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    match selection:
        case TopK(k=k):
            return config | {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
        case JumpReLU():
            return config | {"architecture": "jumprelu"}
        case _:
            assert_never(selection)


def save_sae(folder: Path, sae: SparseAutoencoder, *, metadata: dict[str, Any]) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into an existing folder.

    Args:
        folder: where; the caller publishes it atomically (see `phosphene.manifest`).
        sae: what.
        metadata: free JSON about the training; nothing that decides codes.

    Raises:
        OSError: no room or no access.
    """
    tensors: dict[str, Tensor] = {
        "W_enc": sae.encoder_weight,
        "b_enc": sae.encoder_bias,
        "W_dec": sae.directions,
        "b_dec": sae.decoder_bias,
    }
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    config = sae_config(sae) | {"device": "cpu", "metadata": _LAYOUT | metadata}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    try:
        save_file(
            {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()},
            folder / WEIGHTS_NAME,
        )
    except SafetensorError as cause:  # That is how it reports a full disk.
        raise OSError(f"{WEIGHTS_NAME} in {str(folder)!r} cannot be written: {cause}") from cause
    # safetensors keeps its files from everybody but their writer; a service runs as somebody else.
    (folder / WEIGHTS_NAME).chmod((folder / CONFIG_NAME).stat().st_mode)


def load_sae(folder: Path) -> SparseAutoencoder:
    """Read an SAE from a folder in the SAELens layout.

    The caller has checked the digests where a manifest names the files.

    Raises:
        ArtefactMissing: one of the two files is not there.
        ArtefactDamaged: a file does not parse, or a shape differs from the configuration.
        ArtefactRefused: an architecture or option that inference cannot honour exactly.
        NumericError: a weight is NaN or infinite.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ArtefactMissing(
                f"no {name} in the SAE folder {folder.name!r}; an SAELens folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
                " (a torch file comes in through `python -m training import`)"
            )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS_NAME).items()}
    except (ValueError, RecursionError, SafetensorError) as cause:
        raise ArtefactDamaged(f"the SAE in {folder.name!r} does not parse: {cause}; copy it again") from cause
    if not isinstance(config, dict):
        raise ArtefactDamaged(f"{CONFIG_NAME} of the SAE in {folder.name!r} is not a JSON object; copy it again")
    _check_shapes(config, weights)
    return _assemble(config, weights)


def _join(parts: Sequence[TokenCodes], leading: Sequence[int]) -> TokenCodes:
    if len(parts) == 1:
        values, neuron_ids, cut_counts = parts[0]
    else:
        values, neuron_ids, cut_counts = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenCodes(
        values.reshape(*leading, -1), neuron_ids.reshape(*leading, -1), cut_counts.reshape(tuple(leading))
    )


def _assemble(config: dict[str, Any], weights: dict[str, Tensor]) -> SparseAutoencoder:
    options = {key: config[key] for key, read in _OPTIONS.items() if config.get(key) not in read}
    if options:
        raise ArtefactRefused(
            f"the SAE's {CONFIG_NAME} has {options}, which a published SAE has folded into its weights: take it in "
            "with `python -m training import`"
        )
    selection: Selection
    match config.get("architecture"):
        case "topk":
            k = config.get("k")
            if not isinstance(k, int) or not 1 <= k <= config["d_sae"]:
                raise ArtefactDamaged(
                    f"k of a topk SAE is {k!r}; it must be a whole number from 1 to {config['d_sae']}"
                )
            selection = TopK(k)
        case "jumprelu":
            selection = JumpReLU(weights["threshold"])
        case "standard":
            selection = JumpReLU(torch.zeros(config["d_sae"]))
        case other:
            raise ArtefactRefused(
                f"SAE architecture {other!r} is not read here; read are topk, jumprelu and standard, and "
                "`python -m training import` brings others to them"
            )
    return SparseAutoencoder(
        encoder_weight=weights["W_enc"],
        encoder_bias=weights["b_enc"],
        directions=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        selection=selection,
        subtract_decoder_bias=bool(config.get("apply_b_dec_to_input", True)),
    )


def _check_shapes(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    width, neurons = config.get("d_in"), config.get("d_sae")
    if not isinstance(width, int) or not isinstance(neurons, int) or width < 1 or neurons < 1:
        raise ArtefactDamaged(f"d_in and d_sae are {width!r} and {neurons!r}; both must be whole numbers of at least 1")
    due = {"W_enc": (width, neurons), "b_enc": (neurons,), "W_dec": (neurons, width), "b_dec": (width,)}
    if config.get("architecture") == "jumprelu":
        due["threshold"] = (neurons,)
    wrong = [
        f"{name} is {tuple(weights[name].shape) if name in weights else 'missing'}, due {shape}"
        for name, shape in due.items()
        if name not in weights or tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise ArtefactDamaged(f"SAE weights differ from {CONFIG_NAME}: {'; '.join(wrong)}; copy the SAE again")
    unknown = sorted(set(weights) - set(due))
    if unknown:
        raise ArtefactRefused(
            f"SAE weights hold {unknown}, which the architecture {config.get('architecture')!r} does not use"
        )
