"""Encoder and SAE of one bundle on one torch device: batches of which every image wants the same.

What `index` and notebooks run. Several bundles on one encoder share a pass in `engine_shared.py`.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from phosphene.bundle import Bundle
from phosphene.codes import TokenCodes, image_codes
from phosphene.device_errors import device_errors
from phosphene.encoder import Encoder, EncoderOutput, Tokens, load_encoder
from phosphene.engine import EngineBatch, Want, open_device
from phosphene.errors import ArtefactMismatch, NumericError, ReadoutMissing
from phosphene.fidelity import fidelities
from phosphene.readout import ClassifierReadout, NoReadout, SimilarityReadout, load_readout
from phosphene.sae import SparseAutoencoder

__all__ = ["TorchEngine"]


class TorchEngine:
    """Encoder and SAE of one bundle on one torch device; not thread-safe: one thread drives it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        thread_count: int | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """Load the encoder that the bundle names and move everything to the device.

        Args:
            bundle: what to run.
            device: a torch device: `cpu`, `cuda`, `cuda:1`.
            thread_count: CPU threads of this process; part of what makes codes bit-equal. None keeps torch's own.
            encoder: the bundle's encoder, where another bundle's engine has loaded it on that device already.

        Raises:
            SettingError: no such device.
            EncoderError: the encoder cannot be loaded.
            ArtefactMismatch: the encoder is not the one that the bundle was made with.
        """
        self.bundle = bundle
        self.device = open_device(device)
        if thread_count is not None:
            torch.set_num_threads(thread_count)
        self.encoder = encoder or load_encoder(
            bundle.encoder_source, revision=bundle.encoder_revision, device=self.device
        )
        if self.encoder.spec.weights_sha256 != bundle.encoder_spec.weights_sha256:
            raise ArtefactMismatch(
                f"encoder {bundle.encoder_spec.model!r} has the digest {self.encoder.spec.weights_sha256}; the bundle"
                f" was made with {bundle.encoder_spec.weights_sha256}: load that revision, or fit a bundle on this one"
            )
        self.readout = load_readout(
            bundle.encoder_source,
            self.encoder,
            revision=bundle.encoder_revision,
            guard=lambda: device_errors(self.device),
        )
        self.sae = _on_device(bundle.sae, self.device).eval()

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
            DeviceOutOfMemory: the batch does not fit; a smaller one may.
            DeviceFailed: the device is lost to this process.
        """
        with device_errors(self.device), torch.inference_mode():
            return self._run(pixels, want or Want())

    def embeddings(self, output: EncoderOutput) -> Float32[Tensor, "images embedding"]:
        """Give projected embeddings at unit norm, on the device.

        Raises:
            ReadoutMissing: the encoder has none.
        """
        if output.embedding is None:
            raise ReadoutMissing(
                f"encoder {self.bundle.encoder_spec.model!r} has no projected embedding; CLIP and SigLIP have one"
            )
        return torch.nn.functional.normalize(output.embedding.float(), dim=-1)

    def scores(self, output: EncoderOutput) -> Float32[Tensor, "images names"]:
        """Give the readout's scores, on the device.

        Raises:
            ReadoutMissing: the encoder has no readout, or the bundle no vocabulary.
        """
        match self.readout:
            case SimilarityReadout():
                if self.bundle.vocabulary is None:
                    raise ReadoutMissing("the bundle has no vocabulary to score against; fit it with --vocabulary FILE")
                return self.readout.scores(output, self.bundle.vocabulary).float()
            case ClassifierReadout():
                return self.readout.scores(output).float()
            case NoReadout():
                raise ReadoutMissing(
                    f"encoder {self.bundle.encoder_spec.model!r} has no text tower and no classifier to score with"
                )

    def not_finite(self) -> NumericError:
        """Say that the residuals are no numbers."""
        return NumericError(
            f"encoder {self.bundle.encoder_spec.model!r} gave NaN or infinity at {self.bundle.site}; its weights or"
            " the device are at fault, not the image"
        )

    def _run(self, pixels: UInt8[np.ndarray, "images 3 height width"], want: Want) -> EngineBatch:
        batch = torch.from_numpy(pixels).to(self.device)
        residuals, output = self._residuals(batch, whole=want.runs_to_end)
        if not bool(torch.isfinite(residuals).all()):
            raise self.not_finite()
        token_codes = self.sae.encode(residuals, limit=self.bundle.limits.token_code_limit)
        return EngineBatch(
            codes=image_codes(token_codes, limit=self.bundle.limits.image_code_limit),
            token_codes=TokenCodes(*(part.cpu() for part in token_codes)) if want.token_codes else None,
            fidelity=fidelities(self.sae, residuals, token_codes) if want.fidelity else None,
            residuals=residuals.mean(dim=1).float().cpu().numpy() if want.residuals else None,
            embeddings=self.embeddings(output).cpu().numpy() if want.embeddings and output else None,
            scores=self.scores(output).cpu().numpy() if want.scores and output else None,
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


def _on_device(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """The autoencoder itself on the CPU, elsewhere a copy: modules move in place, and the bundle's stays on the CPU."""
    if device.type == "cpu":
        return sae
    with device_errors(device, what="the autoencoder", remedy="free some there, or choose another device"):
        return copy.deepcopy(sae).to(device)
