"""What one bundle makes of its images in a shared pass: their codes, and what else each of them wants.

`read_out` gives the device its work and waits for nothing; `SharedRows.rows` is called once the device has done it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from phosphene.codes import TokenCodes, image_codes
from phosphene.encoder import EncoderOutput
from phosphene.engine import EngineRow, Want
from phosphene.engine_device import take_rows, to_host
from phosphene.engine_torch import TorchEngine
from phosphene.fidelity import Fidelity, as_fidelities, fidelity_figures

__all__ = ["SharedRows", "read_out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedRows:
    """One bundle's images of a batch; tensors are on the host, or on their way there."""

    engine: TorchEngine
    """The bundle's engine."""
    wants: Sequence[Want]
    """What each image wants."""
    residuals: Float[Tensor, "images tokens width"]
    """On the device."""
    codes: TokenCodes
    """Token codes; those of `is_tied` are not settled yet."""
    is_tied: Bool[Tensor, " images"]
    """Whether a token's last place is tied."""
    is_finite: Bool[Tensor, " images"]
    """Whether all residuals are numbers."""
    means: Float32[Tensor, "images width"] | None
    """Residuals averaged over tokens, where anyone wants them."""
    fidelity: Float64[Tensor, "measured figures"] | None
    """Figures of the images that want them, in order."""
    scores: Float32[Tensor, "scored names"] | None
    """Scores of the images that want them, in order."""
    embeddings: Float32[Tensor, "embedded width_of_embedding"] | None
    """Embeddings of the images that want them, in order."""

    def rows(self) -> list[EngineRow]:
        """Give each image what it wants; the device has been waited for.

        Raises:
            NumericError: the encoder gave NaN or infinity.
        """
        if not bool(self.is_finite.all()):
            raise self.engine.not_finite()
        limits = self.engine.bundle.limits
        codes = self._settled(limits.token_code_limit)
        values, neuron_ids = codes.values.numpy(), codes.neuron_ids.numpy()
        fidelity: Iterator[Fidelity] = iter(() if self.fidelity is None else as_fidelities(self.fidelity))
        scores, embeddings = _each(self.scores), _each(self.embeddings)
        return [
            EngineRow(
                code=code,
                token_values=values[place] if want.token_codes else None,
                token_neuron_ids=neuron_ids[place] if want.token_codes else None,
                fidelity=next(fidelity) if want.fidelity else None,
                residual=self.means[place].numpy() if want.residuals and self.means is not None else None,
                scores=next(scores) if want.scores else None,
                embedding=next(embeddings) if want.embeddings else None,
            )
            for place, (code, want) in enumerate(
                zip(image_codes(codes, limit=limits.image_code_limit), self.wants, strict=True)
            )
        ]

    def _settled(self, limit: int) -> TokenCodes:
        tied = self.is_tied.nonzero().flatten().tolist()
        if tied:
            settled = self.engine.sae.encode(take_rows(self.residuals, tied), limit=limit)
            for held, part in zip(self.codes, settled, strict=True):
                held[tied] = part.cpu()
        return self.codes


def read_out(
    engine: TorchEngine,
    wants: Sequence[Want],
    residuals: Float[Tensor, "images tokens width"],
    output: EncoderOutput | None,
) -> SharedRows:
    """Give the device the work of one bundle's images.

    Args:
        engine: the bundle's engine.
        wants: what each image wants.
        residuals: at the bundle's site.
        output: of the first images, those that the encoder was run to its end for; scores and embeddings are theirs.

    Raises:
        ReadoutMissing: scores or embeddings asked of an encoder that has none.
    """
    codes, is_tied = engine.sae.encode_ahead(residuals, limit=engine.bundle.limits.token_code_limit)
    fidelity, scores, embeddings = None, None, None
    if measured := [place for place, want in enumerate(wants) if want.fidelity]:
        measured_codes = TokenCodes(*(take_rows(part, measured) for part in codes))
        fidelity = to_host(fidelity_figures(engine.sae, take_rows(residuals, measured), measured_codes))
    if output is not None and (scored := [place for place, want in enumerate(wants) if want.scores]):
        scores = to_host(engine.scores(_part(output, scored)))
    if output is not None and (embedded := [place for place, want in enumerate(wants) if want.embeddings]):
        embeddings = to_host(engine.embeddings(_part(output, embedded)))
    return SharedRows(
        engine=engine,
        wants=wants,
        residuals=residuals,
        codes=TokenCodes(*(to_host(part) for part in codes)),
        is_tied=to_host(is_tied.any(dim=1)),
        is_finite=to_host(residuals.isfinite().flatten(1).all(dim=1)),
        means=to_host(residuals.mean(dim=1).float()) if any(want.residuals for want in wants) else None,
        fidelity=fidelity,
        scores=scores,
        embeddings=embeddings,
    )


def _part(output: EncoderOutput, rows: Sequence[int]) -> EncoderOutput:
    return EncoderOutput(
        last_hidden=take_rows(output.last_hidden, rows),
        pooled=None if output.pooled is None else take_rows(output.pooled, rows),
        embedding=None if output.embedding is None else take_rows(output.embedding, rows),
    )


def _each(tensor: Tensor | None) -> Iterator[Float32[np.ndarray, " figures"]]:
    return iter(()) if tensor is None else iter(tensor.numpy())
