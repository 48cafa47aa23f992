"""Takes in an SAE that was trained elsewhere: whatever `training.exchange` reads becomes a bundle.

Knows nothing of formats, nor of corpora: what the SAE is worth on one shows when it is indexed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phosphene.bundle import Bundle, load_bundle, save_bundle
from phosphene.codes import CodeLimits
from phosphene.encoder import Site, load_encoder
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import differences, file_sha256
from phosphene.selection import TopK
from training.exchange import Foreign, read

__all__ = ["ImportRequest", "ImportResult", "import_sae"]


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """One import as it was asked for."""

    sae: Path
    """Folder in the SAELens layout, or a torch file of dictionary_learning or Overcomplete (or its folder)."""
    encoder: str
    """Local folder in the Hugging Face layout, or a hub id."""
    revision: str | None = None
    """Revision of a hub id."""
    site: Site
    """Where in the encoder the SAE was trained to listen; its files do not say so in our terms."""
    out: Path
    """Where the bundle goes."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What `import_sae` ends with."""

    bundle: Bundle
    """The published bundle."""
    is_new: bool
    """False where it had been finished before."""


def import_sae(request: ImportRequest) -> ImportResult:
    """Publish a bundle around an SAE, or find it finished.

    Raises:
        ArtefactError: the SAE cannot be read or is of another width than the site, or `out` holds something else.
        NumericError: a weight is NaN or infinite.
        EncoderError, SiteError: the encoder cannot be loaded or has no such site.
    """
    foreign = read(request.sae)
    encoder = load_encoder(request.encoder, revision=request.revision)
    encoder.check_site(request.site)
    facts = _facts(foreign, request.site, encoder.spec.weights_sha256)
    if request.out.exists():
        bundle = load_bundle(request.out)
        found = bundle.training
        if found != facts:
            lines = "".join(f"\n  {line}" for line in differences(facts, found))
            raise ArtefactMismatch(
                f"{str(request.out)!r} holds another bundle (there -> asked for):{lines}\n"
                "choose another --out, or remove it"
            )
        return ImportResult(bundle=bundle, is_new=False)
    k = foreign.sae.selection.k if isinstance(foreign.sae.selection, TopK) else 0
    bundle = save_bundle(
        request.out,
        encoder=encoder,
        encoder_source=request.encoder,
        site=request.site,
        sae=foreign.sae,
        limits=CodeLimits(image_code_limit=max(CodeLimits().image_code_limit, k)),
        training=facts,
    )
    return ImportResult(bundle=bundle, is_new=True)


def _facts(foreign: Foreign, site: Site, encoder_sha256: str) -> dict[str, Any]:
    return {
        "imported": {
            "library": str(foreign.library),
            "architecture": foreign.architecture,
            "sae": {file.name: file_sha256(file) for file in foreign.files},
            "encoder": encoder_sha256,
            "site": site.to_config(),
        }
    }
