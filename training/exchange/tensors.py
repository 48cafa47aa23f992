"""What the readers of every format ask of their files: that they open, JSON objects, values in bounds, due shapes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from phosphene.errors import ArtefactDamaged, ArtefactMissing, ArtefactRefused


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtefactMissing: the file cannot be opened.
        ArtefactDamaged: it does not parse, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as cause:
        raise unreadable(file, cause) from cause
    except (ValueError, RecursionError) as cause:
        raise ArtefactDamaged(f"{file.name} in {file.parent.name!r} does not parse: {cause}; copy it again") from cause
    if not isinstance(value, dict):
        raise ArtefactDamaged(f"{file.name} in {file.parent.name!r} is not a JSON object; copy it again")
    return value


def unreadable(file: Path, cause: OSError) -> ArtefactMissing:
    """What to raise where the system does not give a file, which says nothing of what is in it."""
    match cause:
        case FileNotFoundError():
            remedy = "put it back, or give another path"
        case PermissionError():
            remedy = "let the user who runs this read it"
        case _:
            remedy = "mend the disk or its connection, and try again"
    return ArtefactMissing(f"{str(file)!r} cannot be read: {cause.strerror or cause}; {remedy}")


def as_doubles(tensors: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The tensors in float64, which every rewrite runs in.

    Raises:
        ArtefactRefused: a tensor of complex numbers.
    """
    complex_ones = sorted(name for name, tensor in tensors.items() if tensor.is_complex())
    if complex_ones:
        raise ArtefactRefused(f"{source} holds complex numbers in {complex_ones}; an SAE has real weights")
    return {name: tensor.double() for name, tensor in tensors.items()}


def read_whole(value: object, *, name: str, least: int, most: int | None = None) -> int:
    """A whole number of a configuration.

    Raises:
        ArtefactDamaged: something else, or out of bounds.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ArtefactDamaged(f"{name} is {value!r}; it must be a whole number {bounds}")
    return value


def read_positive(value: object, *, name: str, can_be_zero: bool = False) -> float:
    """A finite number of a configuration that is greater than 0.

    Raises:
        ArtefactDamaged: something else.
    """
    # JSON has whole numbers that no float holds.
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= sys.float_info.max:
        number = float(value)
        if number > 0 or (can_be_zero and number == 0):
            return number
    raise ArtefactDamaged(
        f"{name} is {value!r}; it must be a number {'of at least' if can_be_zero else 'greater than'} 0"
    )


def read_switch(value: object, *, name: str) -> bool:
    """A true or false of a configuration.

    Raises:
        ArtefactDamaged: something else.
    """
    if not isinstance(value, bool):
        raise ArtefactDamaged(f"{name} is {value!r}; it must be true or false")
    return value


def check_shapes(tensors: dict[str, Tensor], due: dict[str, tuple[int, ...]], *, source: str) -> None:
    """Refuse what is missing, of another shape, or not asked for.

    Args:
        tensors: by name.
        due: shape of every tensor that the autoencoder uses.
        source: what holds them, for the message.

    Raises:
        ArtefactDamaged: a tensor is missing or of another shape.
        ArtefactRefused: a tensor that the autoencoder does not use.
    """
    wrong = [
        f"{name} is {tuple(tensors[name].shape) if name in tensors else 'missing'}, due {shape}"
        for name, shape in due.items()
        if name not in tensors or tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise ArtefactDamaged(f"{source}: {'; '.join(wrong)}; copy the SAE again")
    unknown = sorted(set(tensors) - set(due))
    if unknown:
        raise ArtefactRefused(f"{source} holds {unknown}, which this kind of SAE does not use")
