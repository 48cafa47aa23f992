"""A state dict out of a torch file: tensors and nothing else. The only place in the project that reads a pickle.

`weights_only` lets no code run; this adds what it does not look at: checksums, and tensors larger than their data.
Knows no format.
"""

from __future__ import annotations

import errno
import pickle
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from phosphene.errors import ArtefactDamaged, ArtefactRefused
from training.exchange.tensors import unreadable


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict, on the CPU.

    Raises:
        ArtefactMissing: the file cannot be opened.
        ArtefactDamaged: it does not parse, or a checksum differs.
        ArtefactRefused: it holds Python objects, or something else than tensors by name.
    """
    _check_sums(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as cause:
        raise unreadable(file, cause) from cause
    except MemoryError:
        raise
    except Exception as cause:  # torch's parser fails in as many ways as there are broken files
        objects = _objects_in(file, cause)
        if objects:
            raise ArtefactRefused(
                f"{file.name} is a pickle of Python objects ({objects}), which run code when they are read; only "
                "tensors are read: load it where you trust it, and save `model.state_dict()` with torch.save"
            ) from cause
        raise ArtefactDamaged(
            f"{file.name} does not parse as a torch file ({type(cause).__name__}); copy it again"
        ) from cause
    if not isinstance(state, dict) or not state:
        raise ArtefactRefused(
            f"{file.name} holds {_kind_of(state)}, and a state dict is due: save `model.state_dict()` with torch.save"
        )
    return {_name(name, file): _tensor(name, value, file) for name, value in state.items()}


def _check_sums(file: Path) -> None:
    # torch.load compares none, and a flipped bit makes other weights.
    try:
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                return
            with zipfile.ZipFile(stream) as archive:
                broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as cause:
        # A broken archive may point to a place before its own beginning, which the system calls invalid.
        if isinstance(cause, OSError) and cause.errno != errno.EINVAL:
            raise unreadable(file, cause) from cause
        raise ArtefactDamaged(f"{file.name} does not parse as a torch file: {cause}; copy it again") from cause
    if broken is not None:
        raise ArtefactDamaged(f"{file.name} is damaged: the checksum of its part {broken!r} differs; copy it again")


def _objects_in(file: Path, cause: Exception) -> str:
    if not isinstance(cause, pickle.UnpicklingError):
        return ""
    try:
        names = get_unsafe_globals_in_checkpoint(file)
    except Exception:  # the layout before torch 1.6, or a pickle that is broken as well
        names = ["of an old layout"] if "unsupported global" in str(cause).lower() else []
    return ", ".join(sorted(names)[:3])


def _name(name: object, file: Path) -> str:
    if not isinstance(name, str):
        raise ArtefactRefused(f"{file.name} names a tensor {name!r}; a state dict has texts as names")
    return name


def _tensor(name: object, value: object, file: Path) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArtefactRefused(
            f"{file.name} holds {_kind_of(value)} at {name!r}, and tensors alone are due: save "
            "`model.state_dict()` with torch.save"
        )
    is_plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_quantized
    if not is_plain or value.device.type != "cpu":
        raise ArtefactRefused(f"{name!r} in {file.name} is not a plain dense tensor; save it as one")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ArtefactDamaged(f"{name!r} in {file.name} claims {tuple(value.shape)} values, more than the file holds")
    return value.detach()


def _kind_of(value: object) -> str:
    return f"a {type(value).__name__}"
