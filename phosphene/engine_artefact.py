"""An exported engine on disk, and the golden codes that prove it: what `training` writes and `engine_onnx.py` opens.

    manifest.json
    graph.onnx, graph.onnx.data      pixels -> token codes, residuals; the weights beside the graph
    golden/*.npy                     images, and the token codes that torch gives them

Knows nothing of ONNX. A file that changed is refused by its digest; a graph that was wrong from the start, or that this
machine runs otherwise, by the golden codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from phosphene.agreement import tokens_differ, top_overlap, value_differences
from phosphene.bundle import Bundle
from phosphene.codes import ImageCode, TokenCodes, image_codes
from phosphene.durable_files import save_array
from phosphene.engine import EngineName
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import Manifest, open_artefact
from phosphene.preprocessing import Preprocessing

__all__ = [
    "GRAPH_NAME",
    "IMAGE_TOLERANCE",
    "TOKEN_TOLERANCE",
    "Golden",
    "Likeness",
    "check_golden",
    "golden_pixels",
    "load_golden",
    "measure",
    "open_exported",
    "save_golden",
]

GRAPH_NAME = "graph.onnx"
IMAGE_TOLERANCE = 1e-5
"""Largest difference of a float32 image code, as a share of its largest activation."""
TOKEN_TOLERANCE = 1e-4
"""The same for a token's code: weak tokens are differences of large residuals, and two libraries round those apart."""

_GOLDEN_IMAGES = 8
_TOP_COUNT = 10
_FOLDER = "golden"
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """Images, and the codes that torch gives them."""

    pixels: UInt8[np.ndarray, "images 3 height width"]
    """The images."""
    codes: TokenCodes
    """Token codes [images, tokens, width], on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near an engine's codes are to the golden ones."""

    image_difference: float
    """Largest difference of a value in an image code, as a share of the image's largest activation."""
    token_difference: float
    """The same over the codes of all tokens."""
    differing_tokens: int
    """Tokens whose codes differ by more than `TOKEN_TOLERANCE`, neurons at the edge of the selection aside."""
    top10_overlap: float
    """Mean share of an image's ten strongest neurons that are among the engine's ten strongest."""

    @property
    def is_float32(self) -> bool:
        """Whether the codes may stand for those of torch."""
        return self.differing_tokens == 0 and self.image_difference <= IMAGE_TOLERANCE

    def __str__(self) -> str:
        return (
            f"gives other codes than torch: image codes differ by up to {self.image_difference:.2g} of the largest "
            f"activation, the tolerance is {IMAGE_TOLERANCE:g}; {self.differing_tokens} golden tokens differ by more "
            f"than {TOKEN_TOLERANCE:g}"
        )


def golden_pixels(preprocessing: Preprocessing) -> UInt8[np.ndarray, "images 3 height width"]:
    """Make images of smooth colours, from broad to fine; the same everywhere."""
    generator = np.random.Generator(np.random.PCG64(0))
    height, width = preprocessing.size.height, preprocessing.size.width
    return np.stack(
        [
            _stretch(generator.integers(0, 256, (3, cells, cells)).astype(np.float64), height, width)
            for cells in np.linspace(2, 16, _GOLDEN_IMAGES).round().astype(int)
        ]
    )


def measure(golden: Golden, found: TokenCodes, bundle: Bundle) -> Likeness:
    """Compare an engine's token codes with the golden ones."""
    due, limit = golden.codes, bundle.limits.image_code_limit
    due_images, found_images = image_codes(due, limit=limit), image_codes(found, limit=limit)
    largest = due.values.amax(dim=(1, 2), keepdim=True).expand(*due.cut_counts.shape, 1)
    with torch.inference_mode():
        return Likeness(
            image_difference=max(map(_image_difference, due_images, found_images)),
            token_difference=float((value_differences(due, found) / largest.clamp_min(_TINY)).max()),
            differing_tokens=int(tokens_differ(due, found, bundle.sae.selection, TOKEN_TOLERANCE * largest).sum()),
            top10_overlap=top_overlap(due_images, found_images, count=_TOP_COUNT),
        )


def check_golden(likeness: Likeness, config: dict[str, Any], *, artefact: str) -> None:
    """Refuse an engine whose codes are not as near to the golden ones as its manifest promises.

    Args:
        likeness: measured here and now.
        config: the manifest's.
        artefact: what to call it.

    Raises:
        ArtefactMismatch: it gives other codes.
    """
    match EngineName(config["engine"]):
        case EngineName.ONNXRUNTIME_INT8:
            floor = config["tolerance"]["top10_overlap"]
            if likeness.top10_overlap < floor:
                raise ArtefactMismatch(
                    f"engine {artefact!r} shares {likeness.top10_overlap:.3f} of the ten strongest neurons with torch; "
                    f"its manifest promises at least {floor:.3f}: export it again on a machine like this one"
                )
        case _:
            if not likeness.is_float32:
                raise ArtefactMismatch(f"engine {artefact!r} {likeness}: export it again, or serve with torch")


def open_exported(path: Path, bundle: Bundle, *, expected: EngineName) -> Manifest:
    """Check an exported engine's files against its manifest, and that it is the bundle's.

    Args:
        path: the artefact's folder.
        bundle: the bundle that it must give the codes of.
        expected: which engine it must be; one with 8-bit weights is never taken for one in float32.

    Raises:
        ArtefactError: missing, damaged, or of another bundle or precision.
    """
    manifest = open_artefact(path, kind="engine")
    remedy = f"python -m training export-engine {bundle.path} --out {path}.new"
    if manifest.inputs.get("code_id") != bundle.code_id:
        raise ArtefactMismatch(
            f"engine {path.name!r} gives codes of the code_id {manifest.inputs.get('code_id')}, and bundle "
            f"{bundle.path.name!r} has {bundle.code_id}: {remedy}"
        )
    if manifest.config["engine"] != expected:
        raise ArtefactMismatch(
            f"engine {path.name!r} is {manifest.config['engine']}, and {expected.value} is due: its codes must not be "
            f"taken for the other's; ask for {manifest.config['engine']}, or: {remedy}"
        )
    return manifest


def save_golden(folder: Path, golden: Golden) -> None:
    """Write golden images and codes into an engine's folder."""
    (folder / _FOLDER).mkdir()
    for name, array in _arrays(golden).items():
        save_array(folder / _FOLDER / name, array)


def load_golden(folder: Path) -> Golden:
    """Read what `save_golden` wrote; the caller has checked the digests."""
    pixels, values, neuron_ids, cut_counts = (np.load(folder / _FOLDER / name, allow_pickle=False) for name in _NAMES)
    codes = TokenCodes(torch.from_numpy(values), torch.from_numpy(neuron_ids), torch.from_numpy(cut_counts))
    return Golden(pixels=pixels, codes=codes)


_NAMES = ("pixels.npy", "values.npy", "neuron_ids.npy", "cut_counts.npy")


def _arrays(golden: Golden) -> dict[str, np.ndarray]:
    return dict(zip(_NAMES, (golden.pixels, *(part.numpy() for part in golden.codes)), strict=True))


def _image_difference(due: ImageCode, found: ImageCode) -> float:
    """Compare the neurons that both codes hold; which ones they hold shows in their tokens."""
    _, in_due, in_found = np.intersect1d(due.neuron_ids, found.neuron_ids, return_indices=True)
    differences = np.abs(due.values[in_due] - found.values[in_found])
    return float(differences.max(initial=0.0) / due.values.max(initial=_TINY))


def _stretch(cells: np.ndarray, height: int, width: int) -> UInt8[np.ndarray, "3 height width"]:
    """Interpolate linearly between cells."""
    count = cells.shape[1]
    rows, columns = np.linspace(0, count - 1, height), np.linspace(0, count - 1, width)
    top, left = np.minimum(rows.astype(int), count - 2), np.minimum(columns.astype(int), count - 2)
    down, right = (rows - top)[None, :, None], (columns - left)[None, None, :]
    tall = cells[:, top] * (1 - down) + cells[:, top + 1] * down
    whole = tall[:, :, left] * (1 - right) + tall[:, :, left + 1] * right
    pixels: UInt8[np.ndarray, "3 height width"] = whole.round().astype(np.uint8)
    return pixels
