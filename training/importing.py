"""Takes in an SAE that was trained elsewhere: whatever `training.exchange` reads becomes a bundle.

Knows nothing of formats, nor of corpora: what the SAE is worth on one shows when it is indexed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

from phosphene.bundle import Bundle, load_bundle, save_bundle
from phosphene.codes import CodeLimits
from phosphene.encoder import Site, load_encoder
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import differences, file_sha256
from phosphene.selection import JumpReLU, Selection, TopK
from training.exchange import Foreign, read
from training.places import refuse_nameless, refuse_taken
from training.plan import WIDEST_TOKEN_CODE

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
    token_code_limit: int | None = None
    """Neurons kept for one token under JumpReLU, the largest; None is the default of `CodeLimits`."""

    def check(self) -> None:
        """Refuse values out of bounds.

        Raises:
            SettingError: naming the option, its value and the limits.
        """
        if self.token_code_limit is not None and not 1 <= self.token_code_limit <= WIDEST_TOKEN_CODE:
            raise SettingError(
                f"--token-code-limit is {self.token_code_limit}; it must be from 1 to {WIDEST_TOKEN_CODE} neurons",
                field="token-code-limit",
            )


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
        SettingError: the token code limit is out of bounds, or the SAE has no use for one, or `out` has no name.
        ArtefactError: the SAE cannot be read or is of another width than the site, or `out` holds something else.
        NumericError: a weight is NaN or infinite.
        EncoderError, SiteError: the encoder cannot be loaded or has no such site.
    """
    request.check()
    refuse_nameless(request.out)
    refuse_taken(request.out, "bundle")
    foreign = read(request.sae)
    limits = _limits(request, foreign.sae.selection)
    encoder = load_encoder(request.encoder, revision=request.revision)
    encoder.check_site(request.site)
    facts = _facts(foreign, request.site, encoder.spec.weights_sha256)
    if request.out.exists():
        bundle = load_bundle(request.out)
        due, found = facts | {"limits": asdict(limits)}, bundle.training | {"limits": asdict(bundle.limits)}
        if found != due:
            lines = "".join(f"\n  {line}" for line in differences(due, found))
            raise ArtefactMismatch(
                f"{str(request.out)!r} holds another bundle (there -> asked for):{lines}\n"
                "choose another --out, or remove it"
            )
        return ImportResult(bundle=bundle, is_new=False)
    bundle = save_bundle(
        request.out,
        encoder=encoder,
        encoder_source=request.encoder,
        site=request.site,
        sae=foreign.sae,
        limits=limits,
        training=facts,
    )
    return ImportResult(bundle=bundle, is_new=True)


def _limits(request: ImportRequest, selection: Selection) -> CodeLimits:
    default, token_limit = CodeLimits(), request.token_code_limit
    match selection:
        case TopK(k=k):
            if token_limit is not None:
                raise SettingError(
                    f"--token-code-limit is {token_limit}, and this SAE keeps the {k} largest neurons of every token: "
                    "leave the option out",
                    field="token-code-limit",
                )
            return CodeLimits(image_code_limit=max(default.image_code_limit, k))
        case JumpReLU():
            return default if token_limit is None else CodeLimits(token_code_limit=token_limit)
        case _:
            assert_never(selection)


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
