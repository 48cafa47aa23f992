"""Residuals made anew in every epoch, with no copy on disk: the encoder runs between the steps of the training.

The images of an epoch come in an order from (seed, epoch), in windows of a fixed number of them; the residuals of a
window are in memory together and are shown in random order. Every window shows exactly as many rows as its images have
tokens: where some are absent (unreadable images, artefact tokens that are left out) others of the window are shown
twice. So the place of every step follows from arithmetic, and to resume anywhere means to encode one window again.
Moments, the limit of artefact tokens and the held-out halves come from images that (seed) fixes. Knows nothing of
autoencoders.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from phosphene.errors import CorpusError, NumericError
from phosphene.manifest import digest_of
from training.artefact_tokens import find_artefact_tokens
from training.growing_shard import kept_residuals, kept_tokens
from training.harvest import HarvestPlan, encoder_errors
from training.pixels import PixelBatch, decoded_batches, decoder_count_for
from training.progress import Progress
from training.source import MIN_IMAGE_COUNT, held_out_count
from training.windows import Window, cut_batches

DEFAULT_BUFFER_VALUES = 64 << 20
"""Values of a window: 256 MiB of float32."""

_SAMPLE_LIMIT_ROWS = 65_536
_LAYOUT = 1  # raised when equal plans give other residuals or another order


class StreamedActivations:
    """The residuals of a corpus at a site, straight from the encoder; an `ActivationSource`."""

    def __init__(
        self,
        plan: HarvestPlan,
        progress: Progress,
        *,
        seed: int,
        leaves_out_artefacts: bool = False,
        buffer_values: int = DEFAULT_BUFFER_VALUES,
    ) -> None:
        """Split the images; encodes nothing yet.

        Args:
            plan: images, encoder, site, batches and tokens; its storage is not used.
            progress: hears of images that are left out.
            seed: decides which images are held out, and the order of the batches.
            leaves_out_artefacts: whether the high-norm artefact tokens are used nowhere. Their limit comes from a
                sample of the training images.
            buffer_values: bound of a window; at least one batch of images.

        Raises:
            CorpusError: too few images.
        """
        images = np.flatnonzero([bool(digest) for digest in plan.digests])
        if len(images) < MIN_IMAGE_COUNT:
            raise CorpusError(
                f"only {len(images)} images of the corpus can be read; the least is {MIN_IMAGE_COUNT}: add images"
            )
        self._plan = plan
        self._progress = progress
        self._seed = seed
        self._leaves_out_artefacts = leaves_out_artefacts
        self._token_count = plan.tokens_per_image
        order = np.random.default_rng([seed, 0]).permutation(images)
        held_out = order[: held_out_count(len(images), self._token_count)]
        self._halves = (np.sort(held_out[::2]), np.sort(held_out[1::2]))
        self._training = np.sort(order[len(held_out) :])
        self.width: int = plan.encoder.site_width(plan.site)
        batch_values = plan.settings.batch_images * self._token_count * self.width
        self._window_images = plan.settings.batch_images * max(1, buffer_values // batch_values)
        self.id = digest_of(
            {
                "plan": plan.id,
                "layout": _LAYOUT,
                "leaves_out_artefacts": leaves_out_artefacts,
                "window_images": self._window_images,
            }
        )
        self.image_count = len(images)
        self.held_out_image_count = len(held_out)
        self.training_count = len(self._training) * self._token_count
        self._known_broken: set[int] = set()
        self._encoded_halves: dict[int, Tensor] = {}
        self._sampled: Tensor | None = None
        self._norm_limit: float | None = None

    def quarantined(self) -> list[dict[str, Any]]:
        """The images whose bytes could not be read when the plan was made.

        One that turns out not to decode is reported as an event when it is met.
        """
        return [{"row": row, "error": "CorpusError"} for row, digest in enumerate(self._plan.digests) if not digest]

    def moments(self) -> tuple[Float[Tensor, " d"], float]:
        """Mean and mean square about it of at most 65,536 training rows: a pass over all would double the work."""
        rows = self.sample(_SAMPLE_LIMIT_ROWS).double()
        mean = rows.mean(dim=0)
        return mean.float(), float((rows - mean).square().mean())

    def held_out(self, half: int) -> Float[Tensor, "rows d"]:
        """Residuals of one half (0 or 1) of the held-out images, in corpus order; encoded once, then kept."""
        if half not in self._encoded_halves:
            self._sample()
            with closing(self._encoded(self._batches(self._halves[half]))) as encoded:
                self._encoded_halves[half] = torch.cat([self._used(rows) for rows in encoded])
        return self._encoded_halves[half]

    def sample(self, limit: int) -> Float[Tensor, "rows d"]:
        """At most `limit` training rows (and at most 65,536), spread over random images, the same in every run."""
        rows = self._sample()
        kept = min(limit, len(rows))
        return rows[torch.arange(kept) * len(rows) // max(kept, 1)]

    def batches(self, batch_rows: int, *, first_step: int) -> Iterator[Float[Tensor, "rows d"]]:
        """Batches from step `first_step` on; see `ActivationSource.batches`.

        Raises:
            NumericError: the encoder gave NaN or infinity; names the image.
            CorpusError: an image changed since the plan was made, or no image of a window can be used.
        """
        self._sample()
        batch_rows = min(batch_rows, self.training_count)
        batches_per_epoch = self.training_count // batch_rows
        epoch, done = divmod(first_step, batches_per_epoch)
        while True:
            windows = self._epoch_windows(epoch, skip=done * batch_rows)
            yield from cut_batches(windows, batch_rows, batches_per_epoch - done)
            epoch, done = epoch + 1, 0

    def _epoch_windows(self, epoch: int, *, skip: int) -> Iterator[Window]:
        images = np.random.default_rng([self._seed, 2, epoch]).permutation(self._training)
        first, skip = divmod(skip, self._window_images * self._token_count)
        starts = range(first * self._window_images, len(images), self._window_images)
        parts = [images[start : start + self._window_images] for start in starts]
        batches = (batch for part in parts for batch in self._batches(part))
        with closing(self._encoded(batches)) as encoded:
            for index, part in enumerate(parts):
                yield self._window(encoded, len(part), seeds=[self._seed, 3, epoch, first + index], skip=skip)
                skip = 0

    def _window(self, encoded: Iterator[_Encoded], image_count: int, *, seeds: list[int], skip: int) -> Window:
        """Fill a window; its last batches are the end of the images that `encoded` gives by now."""
        place_count = image_count * self._token_count
        room = torch.empty(place_count, self.width)
        filled = 0
        for batch in islice(encoded, -(-image_count // self._plan.settings.batch_images)):
            rows = self._used(batch)
            room[filled : filled + len(rows)] = rows
            filled += len(rows)
        if filled == 0:
            raise CorpusError(
                f"not one of {image_count} images in a row can be used, though their bytes can be read: mend the corpus"
            )
        generator = np.random.default_rng(seeds)
        order = np.concatenate([np.arange(filled), generator.integers(filled, size=place_count - filled)])
        return Window(room, torch.from_numpy(generator.permutation(order)[skip:]))

    def _sample(self) -> Tensor:
        """Encode the sample once, and find the limit of artefact tokens in it."""
        if self._sampled is None:
            wanted = -(-_SAMPLE_LIMIT_ROWS // max(1, self._token_count // 4))
            generator = np.random.default_rng([self._seed, 1])
            images = np.sort(generator.permutation(self._training)[:wanted])
            share = min(self._token_count, -(-_SAMPLE_LIMIT_ROWS // len(images)))
            with closing(self._encoded(self._batches(images))) as encoded:
                parts = [rows.thinned(share / self._token_count, generator) for rows in encoded]
            if self._leaves_out_artefacts:
                self._norm_limit = self._find_norm_limit(parts)
            self._sampled = torch.cat([self._used(part) for part in parts])[:_SAMPLE_LIMIT_ROWS]
        return self._sampled

    def _find_norm_limit(self, parts: Sequence[_Encoded]) -> float | None:
        first_patch = self._plan.first_patch
        if first_patch is None:
            return None
        found = find_artefact_tokens(lambda: [part.norms()[part.tokens >= first_patch] for part in parts])
        self._progress.event(
            "artefact tokens", site=str(self._plan.site), share=found.share, count=found.artefact_count
        )
        return found.norm_limit

    def _used(self, encoded: _Encoded) -> Float[Tensor, "rows d"]:
        """The residuals without those of artefact tokens that are left out."""
        first_patch = self._plan.first_patch
        if self._norm_limit is None or first_patch is None:
            return encoded.residuals
        return encoded.residuals[
            torch.from_numpy((encoded.norms() <= self._norm_limit) | (encoded.tokens < first_patch))
        ]

    def _encoded(self, batches: Iterable[Sequence[int]]) -> Generator[_Encoded, None, None]:
        plan = self._plan
        decoded = decoded_batches(plan.images, batches, decoder_count=decoder_count_for(plan.execution))
        with closing(decoded):
            for batch in decoded:
                self._report_broken(batch)
                sound = [slot for slot, row in enumerate(batch.rows) if row not in batch.errors]
                with encoder_errors(plan):
                    residuals = plan.encoder.residuals(torch.from_numpy(batch.pixels), plan.site)
                    kept = kept_tokens(batch.rows, residuals.shape[1], self._token_count, seed=plan.settings.seed)
                    values = kept_residuals(residuals, kept)[sound].cpu()
                _refuse_non_finite(plan, values, [batch.rows[slot] for slot in sound])
                yield _Encoded(values.flatten(0, 1), kept[sound].reshape(-1))

    def _batches(self, images: Int[np.ndarray, " images"]) -> Iterator[list[int]]:
        size = self._plan.settings.batch_images
        return (images[start : start + size].tolist() for start in range(0, len(images), size))

    def _report_broken(self, batch: PixelBatch) -> None:
        found = [row for row in batch.errors if row not in self._known_broken]
        if found:
            self._known_broken.update(found)
            self._progress.event("images left out", unreadable=len(found), first=self._plan.corpus.rows[found[0]].uri)


class _Encoded(NamedTuple):
    """What the encoder made of a batch, unreadable images aside."""

    residuals: Float[Tensor, "rows d"]
    """In float32, on the CPU."""
    tokens: Int[np.ndarray, " rows"]
    """Place of each among the tokens that the site reads of its image."""

    def norms(self) -> Float32[np.ndarray, " rows"]:
        norms: np.ndarray = torch.linalg.vector_norm(self.residuals, dim=1).numpy()
        return norms

    def thinned(self, share: float, generator: np.random.Generator) -> _Encoded:
        """A random share of the rows, rounded up."""
        kept = np.sort(generator.permutation(len(self.tokens))[: math.ceil(share * len(self.tokens))])
        return _Encoded(self.residuals[torch.from_numpy(kept)], self.tokens[kept])


def _refuse_non_finite(plan: HarvestPlan, values: Float[Tensor, "images kept d"], rows: Sequence[int]) -> None:
    broken = torch.nonzero(~values.isfinite().flatten(1).all(dim=1)).flatten().tolist()
    if broken:
        row = rows[broken[0]]
        raise NumericError(
            f"{len(broken)} of {len(rows)} images have NaN or infinity, first image {row} "
            f"({plan.corpus.rows[row].uri!r}) at {plan.site}: use another encoder or site"
        )
