"""Corpus x encoder x sites -> residuals on disk, in shards that survive a kill at any moment.

Several sites are read in one pass over the images; each gives the artefact that it would give alone. The plan fixes
which images share a forward pass; an unreadable image leaves zero pixels in its batch and no residuals, and is counted.
A shard is done when its record is there and matches (`shards.py` has the files); running again does what is missing and
ends in the same bytes. While the encoder works, the next images are decoded and the last shard is written. Knows
nothing of autoencoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.artefact_writing import seal
from phosphene.corpus import Corpus
from phosphene.device_errors import device_errors
from phosphene.encoder import Encoder, Site
from phosphene.errors import CorpusError, DeviceOutOfMemory, SettingError
from phosphene.manifest import digest_of, find_artefact, partial_path
from training.artefact_tokens import first_patch_place
from training.execution import Execution
from training.growing_shard import GrowingShard
from training.harvest_settings import HarvestSettings, Storage
from training.pixels import PixelBatch, PlannedImages, decoded_batches, decoder_count_for
from training.places import refuse_too_full
from training.progress import Advance, Progress
from training.settings import config_of
from training.shards import (
    ROW_BYTES,
    is_done,
    mark_artefact_tokens,
    read_records,
    remove_leftovers,
    shard_name,
)

_LAYOUT = 2  # raised when equal plans give another harvest


@dataclass(frozen=True, kw_only=True, eq=False)
class HarvestPlan:
    """What is read, and in which portions."""

    corpus: Corpus
    """The images."""
    digests: Sequence[str]
    """sha256 of the bytes of each image that is used; empty for one that cannot be read."""
    encoder: Encoder
    """The frozen model."""
    site: Site
    """Where in it residuals are read."""
    settings: HarvestSettings
    """Batches, tokens and storage."""
    execution: Execution
    """Device and threads: floating-point results depend on them."""

    @property
    def image_count(self) -> int:
        """Images of the corpus that are used."""
        return len(self.digests)

    @property
    def tokens_per_image(self) -> int:
        """Residuals of each image."""
        token_count = self.encoder.site_token_count(self.site)
        limit = self.settings.tokens_per_image
        return token_count if limit is None else min(limit, token_count)

    @property
    def shard_images(self) -> int:
        """Images per shard."""
        return self.settings.shard_images(self.tokens_per_image, self.encoder.site_width(self.site))

    @property
    def images(self) -> PlannedImages:
        """The images, as the decoder takes them."""
        return PlannedImages(corpus=self.corpus, digests=self.digests, preprocessing=self.encoder.preprocessing)

    @property
    def batches(self) -> Sequence[range]:
        """Corpus rows of the images that share a forward pass; a batch never crosses shards."""
        size = self.settings.batch_images
        starts = range(0, self.image_count, size)
        return [range(start, min(start + size, self.image_count)) for start in starts]

    @property
    def size_bytes(self) -> int:
        """What the harvest takes on disk, shard by shard, less some kB of records."""
        value_bytes = 2 if self.settings.storage is Storage.FLOAT16 else 4
        row_bytes = self.encoder.site_width(self.site) * value_bytes + ROW_BYTES
        return self.image_count * self.tokens_per_image * row_bytes

    @property
    def first_patch(self) -> int | None:
        """Place of the first patch among an image's tokens; None where the site reads no patches."""
        return first_patch_place(self.site, self.encoder.spec.prefix_token_count)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the bytes, beside the corpus and the encoder's weights."""
        return {
            "layout": _LAYOUT,
            "encoder": self.encoder.spec.to_config(),
            "preprocessing": self.encoder.preprocessing.to_config(),
            "site": self.site.to_config(),
            "image_count": self.image_count,
            "shard_images": self.shard_images,
            "settings": config_of(self.settings),
            "execution": config_of(self.execution),
        }

    @property
    def inputs(self) -> dict[str, str]:
        """What it is made from."""
        return {"corpus": self.corpus.content_digest(self.digests), "encoder": self.encoder.spec.weights_sha256}

    @property
    def id(self) -> str:
        """Digest of the plan."""
        return digest_of({"inputs": self.inputs, "config": self.config})


def harvest(plan: HarvestPlan, folder: Path, progress: Progress) -> Path:
    """Read all residuals of one site; see `harvest_sites`.

    Returns:
        The activations artefact.
    """
    return harvest_sites([plan], folder, progress)[0]


def harvest_sites(plans: Sequence[HarvestPlan], folder: Path, progress: Progress) -> list[Path]:
    """Read all residuals of several sites in one pass over the images, or what an earlier run has left to read.

    Args:
        plans: what to read; they differ in site, storage and tokens alone.
        folder: holds one artefact per plan.
        progress: where to report.

    Returns:
        The activations artefacts, in the order of the plans.

    Raises:
        SettingError: the plans do not share their images, encoder or batches, or the disk has no room for them.
        NumericError: the encoder gave NaN or infinity; names shard and row.
        EncoderOutOfMemory: a batch of images does not fit.
        CorpusError: there are no images, or one changed since the plan was made.
        ArtefactDamaged: a finished harvest of a plan lies there and is not sound.
        OSError: no room or no access; nothing half-done is taken for done.
    """
    _refuse_mixed(plans)
    ids = [plan.id for plan in plans]
    harvests = {plan_id: _SiteHarvest(plan, plan_id, folder) for plan_id, plan in zip(ids, plans, strict=True)}
    due = [harvest for harvest in harvests.values() if not harvest.is_finished]
    for harvest in harvests.values():
        if harvest.is_finished:
            progress.event(
                "harvest reused", images=harvest.plan.image_count, residuals_per_image=harvest.plan.tokens_per_image
            )
    if due:
        for harvest in due:
            harvest.open()
        refuse_too_full({folder: sum(harvest.missing_bytes for harvest in due)})
        with progress.stage("harvest", due[0].plan.image_count, "images") as advance:
            _read(due, advance)
        for harvest in due:
            harvest.seal(progress)
    return [harvests[plan_id].target for plan_id in ids]


def quarantined_images(path: Path) -> list[dict[str, Any]]:
    """The unreadable images of a finished harvest: corpus row and error class, in corpus order."""
    return [entry for record in read_records(path) for entry in record.quarantined]


class _SiteHarvest:
    """The harvest of one site: which shards are due, and the one that is growing."""

    def __init__(self, plan: HarvestPlan, plan_id: str, folder: Path) -> None:
        self.plan = plan
        self.plan_id = plan_id
        self.target = folder / self.plan_id[:16]
        self.is_finished = find_artefact(self.target, kind="activations") is not None
        self.missing_bytes = 0
        self._partial = partial_path(self.target)
        self._names = [shard_name(index) for index in range(-(-plan.image_count // plan.shard_images))]
        self._due: set[str] = set()
        self._growing: GrowingShard | None = None

    def open(self) -> None:
        """Make the folder, and find out what an earlier run has left to do."""
        self._partial.mkdir(parents=True, exist_ok=True)
        self._due = {name for name in self._names if not is_done(self._partial, name, self.plan_id)}
        self.missing_bytes = self.plan.size_bytes * len(self._due) // len(self._names)

    def wants(self, batch: Sequence[int]) -> bool:
        """Whether these images belong to a shard that is due."""
        return self._names[batch[0] // self.plan.shard_images] in self._due

    def add(self, batch: PixelBatch, residuals: Float[Tensor, "images site_tokens d"]) -> GrowingShard | None:
        """Take what the encoder made of a batch; gives the shard that it completes."""
        growing = self._growing or self._begin(batch.rows[0])
        self._growing = None if growing.add(batch, residuals) else growing
        return growing if self._growing is None else None

    def write(self, shard: GrowingShard) -> None:
        """Write a full shard; see `GrowingShard.write`."""
        shard.write(self._partial, plan_id=self.plan_id, corpus=self.plan.corpus, site=self.plan.site)

    def seal(self, progress: Progress) -> None:
        """Mark artefact tokens and make the artefact, now that all shards are there."""
        plan = self.plan
        remove_leftovers(self._partial, set(self._names))
        found = mark_artefact_tokens(self._partial, self._names, first_patch=plan.first_patch)
        seal(self._partial, self.target, kind="activations", inputs=plan.inputs, config=plan.config)
        if found.patch_count:
            progress.event("artefact tokens", site=str(plan.site), share=found.share, count=found.artefact_count)
        unreadable = quarantined_images(self.target)
        if unreadable:
            first = plan.corpus.rows[unreadable[0]["row"]].uri
            progress.event("images left out", unreadable=len(unreadable), first=first)

    def _begin(self, first_row: int) -> GrowingShard:
        plan, index = self.plan, first_row // self.plan.shard_images
        return GrowingShard(
            self._names[index],
            range(first_row, min(first_row + plan.shard_images, plan.image_count)),
            token_count=plan.tokens_per_image,
            width=plan.encoder.site_width(plan.site),
            settings=plan.settings,
        )


class EncoderOutOfMemory(DeviceOutOfMemory):
    """A batch of images does not fit, whatever is trained on what the encoder makes of them."""


@contextmanager
def encoder_errors(plan: HarvestPlan) -> Iterator[None]:
    """Tell errors of the encoder's device, with the option that mends them; see `device_errors`.

    Raises:
        EncoderOutOfMemory: the batch did not fit.
        DeviceFailed: CUDA reported an error that sticks to the process.
    """
    device = plan.encoder.device
    elsewhere = "" if device.type == "cpu" else ", or --device cpu"
    remedy = f"use a smaller --images-per-batch, which is {plan.settings.batch_images}{elsewhere}"
    try:
        with device_errors(device, remedy=remedy):
            yield
    except DeviceOutOfMemory as error:
        raise EncoderOutOfMemory(str(error)) from error


def _read(harvests: Sequence[_SiteHarvest], advance: Advance) -> None:
    """Read what is due, in one pass; a full shard is written while the encoder goes on."""
    plan = harvests[0].plan
    batches = [batch for batch in plan.batches if any(harvest.wants(batch) for harvest in harvests)]
    done = plan.image_count - sum(map(len, batches))
    advance(done, "")
    decoded = decoded_batches(plan.images, batches, decoder_count=decoder_count_for(plan.execution))
    with closing(decoded), ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard") as writer:
        writing: Future[None] | None = None
        for batch in decoded:
            wanting = [harvest for harvest in harvests if harvest.wants(batch.rows)]
            sites = [harvest.plan.site for harvest in wanting]
            with encoder_errors(plan):
                residuals = plan.encoder.residuals_at(torch.from_numpy(batch.pixels), sites)
                shards = [harvest.add(batch, found) for harvest, found in zip(wanting, residuals, strict=True)]
            for harvest, full in zip(wanting, shards, strict=True):
                if full is not None:
                    if writing is not None:
                        writing.result()  # at most one full shard waits in memory
                    writing = writer.submit(harvest.write, full)
            done += len(batch.rows)
            advance(done, "")
        if writing is not None:
            writing.result()


def _refuse_mixed(plans: Sequence[HarvestPlan]) -> None:
    if not plans:
        raise SettingError("no site is named to harvest; name at least one")
    first = plans[0]
    if first.image_count == 0:
        raise CorpusError("the corpus has no images to harvest; add some, or name another", field="corpus")
    for plan in plans[1:]:
        shared = {
            "corpus": plan.inputs["corpus"] == first.inputs["corpus"],
            "encoder": plan.encoder.spec == first.encoder.spec,
            "images per batch": plan.settings.batch_images == first.settings.batch_images,
            "device or threads": plan.execution == first.execution,
        }
        other = [name for name, is_same in shared.items() if not is_same]
        if other:
            raise SettingError(
                f"{plan.site} and {first.site} cannot be harvested in one pass: another {', another '.join(other)}; "
                "harvest them one by one"
            )
