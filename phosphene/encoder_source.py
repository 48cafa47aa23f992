"""Where an encoder's files lie: a local folder in the Hugging Face layout, or a hub id fetched into one.

Decides which files make up an encoder and refuses the kinds that are never read; knows nothing of what is in the
weights (`encoder_families.py` reads them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from phosphene.errors import ArtefactDamaged, ArtefactRefused, EncoderMissing, SettingError
from phosphene.manifest import digest_of, file_sha256

__all__ = [
    "EncoderSource",
    "encoder_files",
    "find_encoder",
    "read_config",
    "read_preprocessor_config",
    "weight_files",
    "weights_sha256",
]

CONFIG_FILE = "config.json"
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SINGLE_WEIGHT_FILE = "model.safetensors"
WEIGHT_INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DOWNLOADED = (
    CONFIG_FILE,
    *PREPROCESSOR_FILES,
    SINGLE_WEIGHT_FILE,
    WEIGHT_INDEX_FILE,
    "model-?????-of-?????.safetensors",
    *TOKENIZER_FILES,
)


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """A folder that holds an encoder."""

    folder: Path
    """Local folder with `config.json` in it."""
    model: str
    """The hub id, or the name of the folder (never its path: artefacts hold no absolute paths)."""
    revision: str | None
    """The hub's commit where it is known, else the revision asked for; None for a local folder."""


def find_encoder(
    source: str | Path, *, revision: str | None = None, download: Callable[..., str] = snapshot_download
) -> EncoderSource:
    """Find an encoder's folder, fetching it from the hub (or its cache) where `source` is a hub id.

    Args:
        source: A local folder, or a hub id such as `openai/clip-vit-base-patch32`.
        revision: Branch, tag or commit on the hub; a local folder has none.
        download: What fetches a hub id: `huggingface_hub.snapshot_download`, or one with its parameters.

    Raises:
        EncoderMissing: There is no such folder, and the hub cannot give it.
        SettingError: A revision of a local folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise SettingError(
                f"revision is {revision!r} and {folder} is a local folder, which has none; leave the revision out",
                field="revision",
            )
        if not (folder / CONFIG_FILE).is_file():
            raise EncoderMissing(
                f"the encoder folder {folder} has no {CONFIG_FILE}; give a folder in the Hugging Face layout "
                f"({CONFIG_FILE}, {PREPROCESSOR_FILES[0]}, {SINGLE_WEIGHT_FILE})"
            )
        return EncoderSource(folder=folder, model=folder.resolve().name, revision=None)
    if isinstance(source, Path) or _HUB_ID.fullmatch(source) is None:
        raise EncoderMissing(f"there is no encoder folder {source}; give an existing folder or a hub id (owner/name)")
    try:
        fetched = Path(download(source, revision=revision, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub's client lets the errors of its transport through; they share no base class
        raise EncoderMissing(
            f"the encoder {source} (revision {revision or 'main'}) is neither a local folder nor can it be fetched "
            f"from the hub ({type(error).__name__}); download the model elsewhere and give its folder, or point "
            "HF_HOME at a cache that holds it"
        ) from error
    if not (fetched / CONFIG_FILE).is_file():
        raise EncoderMissing(f"{source} on the hub has no {CONFIG_FILE}; it is no model in the Hugging Face layout")
    commit = fetched.name if _COMMIT.fullmatch(fetched.name) else revision
    return EncoderSource(folder=fetched, model=source, revision=commit)


def encoder_files(source: str | Path, *, revision: str | None = None) -> list[Path]:
    """List the local files that make up an encoder: configuration, weights, preprocessor, tokenizer.

    All lie in one folder; a copy of them elsewhere is the same encoder.

    Raises:
        EncoderMissing: As `find_encoder`, or the folder has no weights.
        ArtefactRefused: The weights are pickles.
    """
    folder = find_encoder(source, revision=revision).folder
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    index = [folder / WEIGHT_INDEX_FILE] if (folder / WEIGHT_INDEX_FILE).is_file() else []
    return sorted([*_deciding_files(folder), *index, *tokenizer])


def weight_files(folder: Path) -> list[Path]:
    """List an encoder folder's safetensors files, whether one or several shards, sorted by name.

    Raises:
        EncoderMissing: There are no weights, or a shard is absent.
        ArtefactRefused: The weights are pickles, or the index names files outside the folder.
    """
    if (folder / SINGLE_WEIGHT_FILE).is_file():
        return [folder / SINGLE_WEIGHT_FILE]
    if (folder / WEIGHT_INDEX_FILE).is_file():
        return _shard_files(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ArtefactRefused(
            f"the encoder folder {folder} has its weights only as pickles ({', '.join(pickles)}), which can run code "
            f"and are never read; convert them with safetensors.torch.save_model to {SINGLE_WEIGHT_FILE}"
        )
    raise EncoderMissing(
        f"the encoder folder {folder} has no weights: neither {SINGLE_WEIGHT_FILE} nor {WEIGHT_INDEX_FILE} "
        "(from the hub only safetensors are fetched; pickled weights are never read)"
    )


def weights_sha256(folder: Path) -> str:
    """Digest what decides an encoder's residuals: configuration, preprocessor and weights by name and content.

    Tokenizer files are left out: they change no code. Reads every byte of the weights once.

    Returns:
        The sha256 (hex) of the canonical JSON of `{file name: sha256}`.
    """
    return digest_of({path.name: file_sha256(path) for path in _deciding_files(folder)})


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        ArtefactDamaged: It is not a JSON object.
    """
    return _read_json_object(folder / CONFIG_FILE)


def read_preprocessor_config(folder: Path) -> dict[str, Any]:
    """Read how images are prepared: `preprocessor_config.json`, or `processor_config.json` where that is absent.

    Raises:
        EncoderMissing: There is neither; guessing a size and a mean would change every code.
        ArtefactDamaged: It is not a JSON object.
    """
    return _read_json_object(_preprocessor_file(folder))


def _deciding_files(folder: Path) -> list[Path]:
    return [folder / CONFIG_FILE, _preprocessor_file(folder), *weight_files(folder)]


def _preprocessor_file(folder: Path) -> Path:
    for name in PREPROCESSOR_FILES:
        if (folder / name).is_file():
            return folder / name
    raise EncoderMissing(
        f"the encoder folder {folder} has no {PREPROCESSOR_FILES[0]}, which says how images are resized and "
        "normalised; copy it from the model's page, it is never guessed"
    )


def _shard_files(folder: Path) -> list[Path]:
    weight_map = _read_json_object(folder / WEIGHT_INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ArtefactDamaged(f"{folder / WEIGHT_INDEX_FILE} has no 'weight_map' of file names; restore the file")
    names = sorted(set(weight_map.values()))
    foreign = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    if foreign:
        raise ArtefactRefused(
            f"{folder / WEIGHT_INDEX_FILE} names {', '.join(foreign)}; "
            "shards are .safetensors files that lie beside the index"
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent or not names:
        raise EncoderMissing(f"the encoder folder {folder} lacks {', '.join(absent) or 'weights'}; fetch it again")
    return [folder / name for name in names]


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactDamaged(f"{path} cannot be read as JSON ({type(error).__name__}); restore the file") from error
    if not isinstance(value, dict):
        raise ArtefactDamaged(f"{path} holds a JSON {type(value).__name__}, not an object; restore the file")
    return value
