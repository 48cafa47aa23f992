"""A bundle on disk: encoder reference, SAE and readout vocabulary, published and opened as one.

    manifest.json
    encoder/reference.json      model id + revision, or the names of the local files copied in
    encoder/weights/*           those files
    sae/cfg.json, sae/sae_weights.safetensors      SAELens layout
    readout/vocabulary.json, readout/vectors.npy   names and unit text vectors, where the encoder has a text tower

`code_id` digests what decides codes; an index names the `code_id` it was built with and is refused by any other.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phosphene.artefact_writing import publish
from phosphene.codes import CodeLimits
from phosphene.durable_files import save_array
from phosphene.encoder import Encoder, EncoderSpec, Site, encoder_files
from phosphene.errors import ArtefactDamaged, ArtefactMismatch
from phosphene.images import Preprocessing
from phosphene.manifest import Manifest, digest_of, open_artefact
from phosphene.readout import Vocabulary
from phosphene.sae import WEIGHTS_NAME, SparseAutoencoder, load_sae, sae_config, save_sae

__all__ = ["PRECISION", "Bundle", "bundle_code_id", "load_bundle", "save_bundle"]

PRECISION = "float32"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle; its digests have been checked."""

    path: Path
    """Where it lies."""
    manifest: Manifest
    """Its manifest."""
    code_id: str
    """Digest of everything that decides codes."""
    encoder_source: str
    """Local folder or hub id from which to load the encoder."""
    encoder_revision: str | None
    """The hub revision (a commit), None for a local folder."""
    encoder_spec: EncoderSpec
    """What the encoder was when the bundle was made."""
    preprocessing: Preprocessing
    """From image to pixels."""
    site: Site
    """Where in the encoder the SAE listens."""
    sae: SparseAutoencoder
    """The autoencoder, on the CPU."""
    limits: CodeLimits
    """How many neurons a code may hold."""
    vocabulary: Vocabulary | None
    """Names and text vectors that the readout scores an image against."""

    @property
    def id(self) -> str:
        """Digest of the bundle's contents."""
        return self.manifest.id

    @property
    def training(self) -> dict[str, Any]:
        """How the SAE was made and what was measured on held-out residuals."""
        training: dict[str, Any] = self.manifest.config["training"]
        return training


def save_bundle(
    path: Path,
    *,
    encoder: Encoder,
    encoder_source: str | Path,
    site: Site,
    sae: SparseAutoencoder,
    limits: CodeLimits,
    training: dict[str, Any],
    vocabulary: Vocabulary | None = None,
) -> Bundle:
    """Publish a bundle; a local encoder is copied in, one from the hub stays a reference.

    Args:
        path: the bundle's folder; must not exist.
        encoder: the encoder that the residuals came from.
        encoder_source: where it was loaded from: a local folder or a hub id.
        site: where the SAE listens.
        sae: the autoencoder in its inference form.
        limits: the code limits.
        training: JSON: configuration and held-out metrics.
        vocabulary: names and unit text vectors, where the encoder has a text tower.

    Returns:
        The bundle as `load_bundle` reads it.

    Raises:
        SiteError: the encoder has no such site.
        ArtefactMismatch: the SAE's width is not the site's, or `path` exists.
    """
    encoder.check_site(site)
    if sae.width != encoder.site_width(site):
        raise ArtefactMismatch(
            f"the SAE reads residuals of width {sae.width}; {site} of {encoder.spec.model!r} gives"
            f" {encoder.site_width(site)}: train an SAE at this site"
        )
    source = Path(encoder_source).expanduser()  # As `load_encoder` reads it.
    local = source.is_dir()

    def write(partial: Path) -> None:
        _write_encoder(partial / "encoder", source if local else None, encoder.spec)
        (partial / "sae").mkdir()
        save_sae(partial / "sae", sae, metadata={"site": site.to_config(), "encoder": encoder.spec.to_config()})
        if vocabulary is not None:
            _write_vocabulary(partial / "readout", vocabulary)

    config = {
        "encoder": encoder.spec.to_config(),
        "preprocessing": encoder.preprocessing.to_config(),
        "site": site.to_config(),
        "limits": asdict(limits),
        "precision": PRECISION,
        "sae": sae_config(sae),
        "training": training,
    }
    publish(path, kind="bundle", inputs={"encoder": encoder.spec.weights_sha256}, config=config, write=write)
    return load_bundle(path)


def load_bundle(path: Path) -> Bundle:
    """Open a bundle, every digest checked first; the encoder itself is loaded by the engine.

    Raises:
        ArtefactError: missing, damaged, of another kind or schema, or inconsistent.
    """
    manifest = open_artefact(path, kind="bundle")
    config = manifest.config
    sae = load_sae(path / "sae")
    if sae_config(sae) != config["sae"]:
        raise ArtefactDamaged(f"the SAE of bundle {path.name!r} is not the one that its manifest describes")
    reference = json.loads((path / "encoder" / "reference.json").read_text(encoding="utf-8"))
    weights = path / "encoder" / "weights"
    return Bundle(
        path=path,
        manifest=manifest,
        code_id=bundle_code_id(manifest),
        encoder_source=str(weights) if reference["local"] else reference["model"],
        encoder_revision=None if reference["local"] else reference["revision"],
        encoder_spec=EncoderSpec.from_config(config["encoder"]),
        preprocessing=Preprocessing.from_config(config["preprocessing"]),
        site=Site.from_config(config["site"]),
        sae=sae,
        limits=CodeLimits(**config["limits"]),
        vocabulary=_read_vocabulary(path / "readout"),
    )


def bundle_code_id(manifest: Manifest) -> str:
    """Return the digest of everything that decides the codes of a bundle, by its manifest alone."""
    config = manifest.config
    deciding = ("preprocessing", "site", "limits", "precision", "sae")
    encoder = {key: config["encoder"][key] for key in ("family", "weights_sha256")}
    weights = manifest.files[f"sae/{WEIGHTS_NAME}"].sha256
    return digest_of({key: config[key] for key in deciding} | {"encoder": encoder, "sae_weights": weights})


def _write_encoder(folder: Path, source: Path | None, spec: EncoderSpec) -> None:
    folder.mkdir()
    reference: dict[str, Any] = {"local": source is not None, "model": spec.model, "revision": spec.revision}
    (folder / "reference.json").write_text(json.dumps(reference, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if source is not None:
        (folder / "weights").mkdir()
        for file in encoder_files(source):
            shutil.copyfile(file, folder / "weights" / file.name)


def _write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    folder.mkdir()
    text = json.dumps(list(vocabulary.names), indent=2, ensure_ascii=False) + "\n"
    (folder / "vocabulary.json").write_text(text, encoding="utf-8")
    save_array(folder / "vectors.npy", vocabulary.vectors.astype(np.float32))


def _read_vocabulary(folder: Path) -> Vocabulary | None:
    if not folder.is_dir():
        return None
    names = tuple(json.loads((folder / "vocabulary.json").read_text(encoding="utf-8")))
    return Vocabulary(names, np.load(folder / "vectors.npy", allow_pickle=False))
