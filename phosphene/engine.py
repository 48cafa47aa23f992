"""Runs encoder and SAE on a device: pixels in, codes out, and what else was asked for.

Knows nothing of image formats, files of an index, or gRPC. float32 means float32: TF32 is off on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from phosphene.bundle import Bundle
from phosphene.codes import ImageCode, TokenCodes, image_codes
from phosphene.encoder import EncoderOutput, Tokens, load_encoder
from phosphene.errors import ArtefactMismatch, NumericError, ReadoutMissing, SettingError
from phosphene.fidelity import Fidelity, fidelities
from phosphene.readout import ClassifierReadout, NoReadout, SimilarityReadout, load_readout

__all__ = ["EngineBatch", "TorchEngine", "Want", "open_device"]


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a caller wants beside the image codes; it pays only for that."""

    token_codes: bool = False
    """The codes of every token of the site."""
    fidelity: bool = False
    """How well the codes account for the residuals."""
    residuals: bool = False
    """One residual per image: the site's only token, or the mean over its tokens."""
    embeddings: bool = False
    """The projected embedding, at unit norm. Runs the encoder to its end."""
    scores: bool = False
    """The readout's scores. Runs the encoder to its end."""


@dataclass(frozen=True, kw_only=True)
class EngineBatch:
    """The answer for a batch; every field has one entry per image, in order."""

    codes: list[ImageCode]
    """Image codes."""
    token_codes: TokenCodes | None = None
    """Token codes [images, tokens, width], on the CPU."""
    fidelity: list[Fidelity] | None = None
    """Fidelity records."""
    residuals: Float32[np.ndarray, "images width"] | None = None
    """Residuals, over tokens as `Want.residuals` says."""
    embeddings: Float32[np.ndarray, "images embedding"] | None = None
    """Projected embeddings at unit norm."""
    scores: Float32[np.ndarray, "images names"] | None = None
    """Readout scores; the names are `TorchEngine.score_names`."""


class TorchEngine:
    """Encoder and SAE of one bundle on one torch device; not thread-safe: one thread drives it."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", thread_count: int | None = None) -> None:
        """Load the encoder that the bundle names and move everything to the device.

        Args:
            bundle: what to run.
            device: a torch device: `cpu`, `cuda`, `cuda:1`.
            thread_count: CPU threads of this process; part of what makes codes bit-equal. None keeps torch's own.

        Raises:
            SettingError: no such device.
            EncoderError: the encoder cannot be loaded.
            ArtefactMismatch: the encoder is not the one that the bundle was made with.
        """
        self.bundle = bundle
        self.device = open_device(device)
        if thread_count is not None:
            torch.set_num_threads(thread_count)
        self.encoder = load_encoder(bundle.encoder_source, revision=bundle.encoder_revision, device=device)
        if self.encoder.spec.weights_sha256 != bundle.encoder_spec.weights_sha256:
            raise ArtefactMismatch(
                f"encoder {bundle.encoder_spec.model!r} has the digest {self.encoder.spec.weights_sha256}; the bundle"
                f" was made with {bundle.encoder_spec.weights_sha256}: load that revision, or fit a bundle on this one"
            )
        self.readout = load_readout(bundle.encoder_source, self.encoder, revision=bundle.encoder_revision)
        self.sae = bundle.sae.to(self.device).eval()

    @property
    def score_names(self) -> tuple[str, ...]:
        """What each score is a score of; empty where the bundle has nothing to score against."""
        match self.readout:
            case SimilarityReadout():
                return self.bundle.vocabulary.names if self.bundle.vocabulary else ()
            case ClassifierReadout(names=names):
                return names
            case NoReadout():
                return ()

    @torch.inference_mode()
    def run(self, pixels: UInt8[np.ndarray, "images 3 height width"], want: Want | None = None) -> EngineBatch:
        """Encode a batch; no image's answer depends on another's.

        Args:
            pixels: uint8 [images, 3, height, width], as the bundle's preprocessing makes them.
            want: what to return beside the codes; None is the codes alone.

        Returns:
            One entry per image in every field that was asked for.

        Raises:
            NumericError: the encoder gave NaN or infinity.
            ReadoutMissing: scores or embeddings asked of an encoder that has none.
        """
        want = want or Want()
        batch = torch.from_numpy(pixels).to(self.device)
        residuals, output = self._residuals(batch, whole=want.embeddings or want.scores)
        if not bool(torch.isfinite(residuals).all()):
            raise NumericError(
                f"encoder {self.bundle.encoder_spec.model!r} gave NaN or infinity at {self.bundle.site}; its weights or"
                " the device are at fault, not the image"
            )
        token_codes = self.sae.encode(residuals, limit=self.bundle.limits.token_code_limit)
        return EngineBatch(
            codes=image_codes(token_codes, limit=self.bundle.limits.image_code_limit),
            token_codes=TokenCodes(*(part.cpu() for part in token_codes)) if want.token_codes else None,
            fidelity=fidelities(self.sae, residuals, token_codes) if want.fidelity else None,
            residuals=residuals.mean(dim=1).float().cpu().numpy() if want.residuals else None,
            embeddings=self._embeddings(output) if want.embeddings and output else None,
            scores=self._scores(output) if want.scores and output else None,
        )

    def _residuals(
        self, pixels: UInt8[Tensor, "images 3 height width"], *, whole: bool
    ) -> tuple[Float[Tensor, "images tokens residual"], EncoderOutput | None]:
        site = self.bundle.site
        if not whole:
            return self.encoder.residuals(pixels, site), None
        block = self.encoder.spec.block_count - 1 if site.block is None else site.block
        hidden = self.encoder.hidden(pixels, block)
        output = self.encoder.resume(hidden, block)
        if site.tokens is not Tokens.EMBEDDING:
            return self.encoder.select(hidden, site.tokens), output
        if output.embedding is None:
            raise ReadoutMissing(f"encoder {self.bundle.encoder_spec.model!r} has no projected embedding")
        return output.embedding[:, None], output

    def _embeddings(self, output: EncoderOutput) -> Float32[np.ndarray, "images embedding"]:
        if output.embedding is None:
            raise ReadoutMissing(
                f"encoder {self.bundle.encoder_spec.model!r} has no projected embedding; CLIP and SigLIP have one"
            )
        unit = torch.nn.functional.normalize(output.embedding.float(), dim=-1)
        embeddings: Float32[np.ndarray, "images embedding"] = unit.cpu().numpy()
        return embeddings

    def _scores(self, output: EncoderOutput) -> Float32[np.ndarray, "images names"]:
        match self.readout:
            case SimilarityReadout():
                if self.bundle.vocabulary is None:
                    raise ReadoutMissing("the bundle has no vocabulary to score against; fit it with --vocabulary FILE")
                scores = self.readout.scores(output, self.bundle.vocabulary)
            case ClassifierReadout():
                scores = self.readout.scores(output)
            case NoReadout():
                raise ReadoutMissing(
                    f"encoder {self.bundle.encoder_spec.model!r} has no text tower and no classifier to score with"
                )
        values: Float32[np.ndarray, "images names"] = scores.float().cpu().numpy()
        return values


def open_device(name: str) -> torch.device:
    """Find a device, and turn TF32 off on it.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.

    Raises:
        SettingError: no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as cause:
        raise SettingError(f"device {name!r} is not one; use cpu, cuda or cuda:N", field="device") from cause
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {name!r} is not supported; use cpu, cuda or cuda:N", field="device")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise SettingError(
                f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices are visible; use cpu",
                field="device",
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
