"""From image bytes to codes, step by step: the first file to read. `index` and `service` both come through here.

    bytes --images--> pixels --encoder--> residuals --sae--> token codes --codes--> image code

In a notebook:

    import phosphene
    pipeline = phosphene.open_bundle("build/demo/bundle")
    code = pipeline.encode(["photo.jpg"])[0]
    dict(zip(code.neuron_ids, code.values))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from phosphene.bundle import Bundle, load_bundle
from phosphene.codes import ImageCode
from phosphene.engine import EngineBatch, Want
from phosphene.engine_torch import TorchEngine
from phosphene.errors import ImageTooLarge, ImageUnreadable, ReadoutMissing
from phosphene.images import ImageLimits, PreparedImage, prepare, prepare_with_thumbnail
from phosphene.readout import SimilarityReadout

__all__ = ["Pipeline", "open_bundle"]

_BATCH_IMAGE_COUNT = 32


class Pipeline:
    """One bundle, ready to run."""

    def __init__(self, engine: TorchEngine, *, limits: ImageLimits | None = None) -> None:
        """Join an engine with the limits on what it is fed.

        Args:
            engine: encoder and SAE on a device.
            limits: bounds on uploaded images; None takes the defaults.
        """
        self.engine = engine
        self.limits = limits or ImageLimits()

    @property
    def bundle(self) -> Bundle:
        """The bundle that is run."""
        return self.engine.bundle

    def prepare(self, data: bytes) -> PreparedImage:
        """Decode, resize and crop one image as the encoder wants it.

        Raises:
            ImageError: not an image, too large, or damaged.
        """
        return prepare(data, self.bundle.preprocessing, self.limits)

    def prepare_with_thumbnail(self, data: bytes, *, thumbnail_px: int) -> tuple[PreparedImage, bytes]:
        """Prepare an image as `prepare` does, and make a thumbnail from the same decoding; errors as there."""
        return prepare_with_thumbnail(data, self.bundle.preprocessing, thumbnail_px=thumbnail_px, limits=self.limits)

    def run(self, prepared: Sequence[PreparedImage], want: Want | None = None) -> EngineBatch:
        """Run one batch of prepared images on the device; see `TorchEngine.run`."""
        return self.engine.run(np.stack([image.pixels for image in prepared]), want)

    def encode(self, images: Sequence[bytes | str | Path]) -> list[ImageCode]:
        """Return the codes of any number of images, given as bytes or as paths.

        Raises:
            ImageError: an image cannot be read; nothing is returned for the others.
        """
        codes: list[ImageCode] = []
        for start in range(0, len(images), _BATCH_IMAGE_COUNT):
            part = images[start : start + _BATCH_IMAGE_COUNT]
            codes += self.run([self.prepare(self._read(image)) for image in part]).codes
        return codes

    def text_vectors(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts embedding"]:
        """Return unit text vectors in the space of the projected embedding.

        Raises:
            ReadoutMissing: the encoder has no text tower.
        """
        match self.engine.readout:
            case SimilarityReadout() as readout:
                return readout.text_vectors(texts)
            case _:
                raise ReadoutMissing(
                    f"encoder {self.bundle.encoder_spec.model!r} has no text tower to compare text with images; use a "
                    "bundle of a CLIP or SigLIP model with both towers"
                )

    def _read(self, image: bytes | str | Path) -> bytes:
        if isinstance(image, bytes):
            return image
        path = Path(image)
        if not path.is_file():
            raise ImageUnreadable(f"no image file at {str(path)!r}; give the path of a JPEG, PNG or WebP file")
        size_bytes = path.stat().st_size
        if size_bytes > self.limits.file_bytes:
            raise ImageTooLarge(
                f"{path.name!r} has {size_bytes} bytes; the limit is {self.limits.file_bytes} bytes "
                "(ImageLimits.file_bytes); save it smaller"
            )
        return path.read_bytes()


def open_bundle(path: str | Path, *, device: str = "cpu", thread_count: int | None = None) -> Pipeline:
    """Open a bundle for use in a notebook or a program.

    Args:
        path: the bundle's folder.
        device: a torch device.
        thread_count: CPU threads of this process; None keeps torch's own.

    Raises:
        ArtefactError: the bundle is missing or damaged.
        EncoderError: its encoder cannot be loaded.
    """
    return Pipeline(TorchEngine(load_bundle(Path(path)), device=device, thread_count=thread_count))
