"""The autoencoder that training goes on from instead of random weights; knows nothing of optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phosphene.bundle import load_bundle
from phosphene.errors import SettingError
from phosphene.manifest import MANIFEST_NAME, digest_of, file_sha256
from phosphene.sae import SparseAutoencoder
from training.exchange import read


@dataclass(frozen=True, kw_only=True, eq=False)
class Initial:
    """A finished autoencoder."""

    sae: SparseAutoencoder
    """On residuals as the encoder gives them."""
    digest: str
    """Of the files that it was read from."""

    def check(self, *, width: int, neuron_count: int) -> None:
        """Refuse one that does not fit what is asked for.

        Args:
            width: of the residuals at the site.
            neuron_count: neurons asked for.

        Raises:
            SettingError: another width or number of neurons.
        """
        if self.sae.width != width:
            raise SettingError(
                f"--initial reads residuals of width {self.sae.width}, and the site has width {width}: choose the "
                "encoder and site that it was trained at",
                field="initial",
            )
        if self.sae.neuron_count != neuron_count:
            raise SettingError(
                f"--initial has {self.sae.neuron_count} neurons, and {neuron_count} are asked for: give --neurons "
                f"{self.sae.neuron_count}",
                field="initial",
            )


def read_initial(path: Path) -> Initial:
    """The autoencoder of a bundle, or any that `training.exchange` reads.

    Raises:
        ArtefactError: nothing there, or nothing that can be read.
        NumericError: a weight is NaN or infinite.
    """
    if (path / MANIFEST_NAME).is_file():
        bundle = load_bundle(path)
        return Initial(sae=bundle.sae, digest=bundle.code_id)
    foreign = read(path)
    return Initial(sae=foreign.sae, digest=digest_of({file.name: file_sha256(file) for file in foreign.files}))
