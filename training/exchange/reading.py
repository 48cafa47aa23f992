"""Reads the SAE at a path, whatever library wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from phosphene.errors import ArtefactRefused
from phosphene.sae import CONFIG_NAME, WEIGHTS_NAME, SparseAutoencoder
from training.exchange.dictionary_learning import is_dictionary_learning, read_dictionary_learning
from training.exchange.folding import assemble
from training.exchange.overcomplete import is_overcomplete, read_overcomplete
from training.exchange.recognition import SaeLensFolder, TorchFile, recognise
from training.exchange.saelens import SCALER_NAME, WHITENING_NAME, read_saelens
from training.exchange.tensors import read_json
from training.exchange.torch_file import read_state


class Library(StrEnum):
    """Where an SAE came from."""

    SAELENS = "saelens"
    DICTIONARY_LEARNING = "dictionary_learning"
    OVERCOMPLETE = "overcomplete"


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreign:
    """An SAE from elsewhere, as ours."""

    sae: SparseAutoencoder
    """Under our inference rule, everything folded."""
    library: Library
    """Which library wrote it."""
    architecture: str
    """What the library calls it."""
    files: tuple[Path, ...]
    """Every file that decided its codes."""


def read_foreign(path: str | Path) -> SparseAutoencoder:
    """The SAE at a path, under our inference rule: its codes are those that the library computes.

    Raises:
        ArtefactError: see `read`.
        NumericError: a weight is NaN or infinite.
    """
    return read(Path(path)).sae


def read(path: Path) -> Foreign:
    """The SAE at a path, and what it was.

    Raises:
        ArtefactMissing: nothing there, or a file of it is not.
        ArtefactDamaged: a file does not parse, or its parts do not fit.
        ArtefactRefused: a format, architecture or option that cannot be honoured exactly, or a pickle with code.
        NumericError: a weight is NaN or infinite.
    """
    match recognise(path):
        case SaeLensFolder(folder=folder):
            parts, architecture = read_saelens(folder)
            names = (CONFIG_NAME, WEIGHTS_NAME, SCALER_NAME, WHITENING_NAME)
            files = tuple(folder / name for name in names if (folder / name).is_file())
            return Foreign(sae=assemble(parts), library=Library.SAELENS, architecture=architecture, files=files)
        case TorchFile() as source:
            return _read_torch(source)
        case other:
            assert_never(other)


def _read_torch(source: TorchFile) -> Foreign:
    state = read_state(source.file)
    config = None if source.config is None else read_json(source.config)
    if is_overcomplete(state):
        library, (parts, architecture) = Library.OVERCOMPLETE, read_overcomplete(state, config)
    elif is_dictionary_learning(state):
        library, (parts, architecture) = Library.DICTIONARY_LEARNING, read_dictionary_learning(state, config)
    else:
        raise ArtefactRefused(
            f"{source.file.name} holds {sorted(state)[:8]}, the tensors of no SAE that can be read; read are those of "
            "dictionary_learning and Overcomplete"
        )
    files = (source.file,) if source.config is None else (source.file, source.config)
    return Foreign(sae=assemble(parts), library=library, architecture=architecture, files=files)
