"""Which format a path is, by the names of its files; opens none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phosphene.errors import ArtefactMissing, ArtefactRefused
from phosphene.sae import CONFIG_NAME, WEIGHTS_NAME

TORCH_SUFFIXES = (".pt", ".pth")

_TRAINER_STATE = "trainer_state.pt"  # lies in SAELens' checkpoints: an optimiser, no SAE
_READ = (
    f"an SAELens folder ({CONFIG_NAME} and {WEIGHTS_NAME}), or a torch file (.pt, .pth) of dictionary_learning or "
    "Overcomplete with its JSON file"
)


@dataclass(frozen=True, kw_only=True)
class SaeLensFolder:
    """A folder in the SAELens layout."""

    folder: Path
    """Where `cfg.json` and `sae_weights.safetensors` are."""


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """A torch file of dictionary_learning or Overcomplete; its tensors tell which."""

    file: Path
    """The state dict."""
    config: Path | None
    """The JSON file that goes with it."""


Source = SaeLensFolder | TorchFile


def recognise(path: Path) -> Source:
    """Tell what lies at a path.

    Raises:
        ArtefactMissing: nothing is there, or half an SAELens folder.
        ArtefactRefused: no format that is read, or several SAEs.
    """
    if path.is_file():
        if path.suffix in TORCH_SUFFIXES:
            return TorchFile(file=path, config=_config_of(path))
        hint = f"; give the folder {str(path.parent)!r}" if path.name in (CONFIG_NAME, WEIGHTS_NAME) else ""
        raise ArtefactRefused(f"{str(path)!r} is no SAE that can be read; read is {_READ}{hint}")
    if not path.is_dir():
        raise ArtefactMissing(f"no SAE folder or file at {str(path)!r}; give {_READ}")
    torch_files = sorted(
        file for file in path.iterdir() if file.suffix in TORCH_SUFFIXES and file.name != _TRAINER_STATE
    )
    of_saelens = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if (path / name).is_file()]
    if len(torch_files) + bool(of_saelens) > 1:
        names = ", ".join([*of_saelens, *(file.name for file in torch_files)][:8])
        raise ArtefactRefused(
            f"{str(path)!r} holds several SAEs ({names}); give the path of one torch file, or a folder with one SAE"
        )
    if torch_files:
        return TorchFile(file=torch_files[0], config=_config_of(torch_files[0]))
    if len(of_saelens) == 1:
        missing = WEIGHTS_NAME if of_saelens == [CONFIG_NAME] else CONFIG_NAME
        raise ArtefactMissing(f"{str(path)!r} holds {of_saelens[0]} and no {missing}; an SAELens folder has both")
    if not of_saelens:
        raise ArtefactRefused(f"{str(path)!r} holds no SAE that can be read; read is {_READ}")
    return SaeLensFolder(folder=path)


def _config_of(file: Path) -> Path | None:
    beside = [file.with_suffix(".json"), file.parent / "config.json"]
    if file.parent.name == "checkpoints":  # where dictionary_learning puts the steps of a run
        beside.append(file.parent.parent / "config.json")
    return next((candidate for candidate in beside if candidate.is_file()), None)
