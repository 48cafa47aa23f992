"""The steps of every answer, in order: resolve, decode, encode, look up; knows no protobuf and no gRPC.

What blocks runs in a worker thread, what needs the device on the engine thread; the event loop only hands over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, assert_never

from phosphene.engine import Want
from phosphene.errors import ImageError
from phosphene.images import ImageLimits, PreparedImage, image_sha256, prepare
from service.batcher import Batcher
from service.catalogue import Catalogue
from service.explain import LiveImage, StoredImage, check_parts, explain, wanted
from service.generation import Generation
from service.lanes import EncodeItem
from service.lookups import (
    corpus_image,
    images_exciting,
    images_like,
    list_neurons,
    neuron_profile,
    neurons_like_neuron,
    neurons_like_text,
    row_of,
)
from service.metrics import Metrics
from service.values import (
    CorpusImage,
    ExplainQuery,
    Explanation,
    ImageBytes,
    ImageDigest,
    ImageList,
    ImageLookup,
    ImageQuery,
    ImageSearch,
    LikeImage,
    LikeNeuron,
    LikeText,
    NeuronList,
    NeuronListQuery,
    NeuronMatch,
    NeuronProfile,
    NeuronQuery,
    NeuronSearch,
)
from service.workers import WorkerPool

__all__ = ["Answers"]

Found = TypeVar("Found")


class Answers:
    """Every answer of the service, each with the generation that it was made from."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        batcher: Batcher,
        decoders: WorkerPool,
        lookups: WorkerPool,
        limits: ImageLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join what answers.

        Args:
            catalogue: bundles and corpora.
            batcher: the engine thread.
            decoders: workers that decode images.
            lookups: workers that read indexes.
            limits: what an uploaded image may cost.
            metrics: told of stages and images.
            clock: monotonic seconds, for stages.
        """
        self.catalogue = catalogue
        self.limits = limits
        self._batcher = batcher
        self._decoders = decoders
        self._lookups = lookups
        self._metrics = metrics
        self._clock = clock

    async def explain(self, query: ExplainQuery, deadline_s: float | None) -> tuple[Generation, Explanation]:
        """What lights up on an image.

        Args:
            query: what to look at, and what to say of it.
            deadline_s: time of the clock after which nobody waits for the answer.

        Raises:
            InputError: a bad image, or a name that is not served.
            Unanswerable: a part that this bundle, corpus or kind of image query cannot give.
            Overloaded: a queue is full.
            DeadlineExpired: the deadline passed.
        """
        generation = self.catalogue.generation(query.scope)
        check_parts(generation, query)
        image = await self._look_at(generation, query.image, wanted(query), deadline_s)
        explanation = await self._look_up(deadline_s, lambda: explain(generation, query, image))
        return generation, explanation

    async def neuron(self, query: NeuronQuery, deadline_s: float | None) -> tuple[Generation, NeuronProfile]:
        """What is known of one neuron; raises `NotFound`, `Unanswerable` without a corpus."""
        generation = self.catalogue.generation(query.scope)
        return generation, await self._look_up(deadline_s, lambda: neuron_profile(generation, query))

    async def neurons(self, query: NeuronListQuery, deadline_s: float | None) -> tuple[Generation, NeuronList]:
        """One page of neurons; raises `InputError` for a foreign page token, `Unanswerable` without a corpus."""
        generation = self.catalogue.generation(query.scope)
        return generation, await self._look_up(deadline_s, lambda: list_neurons(generation, query))

    async def search_neurons(
        self, search: NeuronSearch, deadline_s: float | None
    ) -> tuple[Generation, tuple[NeuronMatch, ...]]:
        """Neurons by meaning; raises `NotFound`, and `Unanswerable` where there is no text search."""
        generation = self.catalogue.generation(search.scope)
        match search.like:
            case LikeNeuron() as like:
                return generation, await self._look_up(
                    deadline_s, lambda: neurons_like_neuron(generation, search, like)
                )
            case LikeText(text=text):
                lane = generation.text_lane
                vector = await self._batcher.run(lane, text, deadline_s=deadline_s)
                return generation, await self._look_up(
                    deadline_s, lambda: neurons_like_text(generation, search, vector)
                )
            case _:
                assert_never(search.like)

    async def search_images(self, search: ImageSearch, deadline_s: float | None) -> tuple[Generation, ImageList]:
        """Images by code or by neuron; raises `NotFound`, `Unanswerable` without a corpus."""
        generation = self.catalogue.generation(search.scope)
        reader = generation.reader
        match search.like:
            case LikeNeuron() as like:
                return generation, await self._look_up(deadline_s, lambda: images_exciting(generation, search, like))
            case LikeImage(image=image):
                looked_at = await self._look_at(generation, image, Want(), deadline_s)
            case _:
                assert_never(search.like)

        def similar() -> ImageList:
            match looked_at:
                case LiveImage(encoded=encoded, sha256=sha256):
                    code, sha, own_row = encoded.code, sha256, reader.row_of(sha256)
                case StoredImage(row=row):
                    code, sha, own_row = reader.code(row), reader.image(row).sha256, row
                case _:
                    assert_never(looked_at)
            images = images_like(
                reader,
                code,
                search.count,
                own_row=own_row,
                own_sha256=sha,
                with_thumbnails=search.with_thumbnails,
            )
            return ImageList(images=images, is_by_neuron=False)

        return generation, await self._look_up(deadline_s, similar)

    async def image(self, lookup: ImageLookup, deadline_s: float | None) -> tuple[Generation, CorpusImage]:
        """One image of the corpus with its thumbnail; raises `NotFound`, `Unanswerable` without a corpus."""
        generation = self.catalogue.generation(lookup.scope)
        reader = generation.reader
        return generation, await self._look_up(
            deadline_s,
            lambda: corpus_image(reader, row_of(generation, lookup.sha256, field="sha256"), with_thumbnail=True),
        )

    async def _look_at(
        self, generation: Generation, query: ImageQuery, want: Want, deadline_s: float | None
    ) -> LiveImage | StoredImage:
        """Encode uploaded bytes, or find the row of a digest."""
        match query:
            case ImageDigest(sha256=sha256):
                return StoredImage(
                    await self._look_up(deadline_s, lambda: row_of(generation, sha256, field="image.sha256"))
                )
            case ImageBytes(data=data):
                prepared, sha256 = await self._decode(generation, data, deadline_s)
            case _:
                assert_never(query)
        encoded = await self._batcher.run(
            generation.bundle.encode, EncodeItem(pixels=prepared.pixels, want=want), deadline_s=deadline_s
        )
        self._metrics.image_encoded(
            l0=len(encoded.code), fvu=None if encoded.fidelity is None else encoded.fidelity.fvu
        )
        return LiveImage(
            sha256=sha256,
            width=prepared.width,
            height=prepared.height,
            drafted=prepared.drafted,
            encoded=encoded,
        )

    async def _decode(self, generation: Generation, data: bytes, deadline_s: float | None) -> tuple[PreparedImage, str]:
        def decode() -> tuple[PreparedImage, str]:
            prepared = prepare(data, generation.bundle.preprocessing, self.limits)
            return prepared, image_sha256(data)

        begun_s = self._clock()
        try:
            prepared, sha256 = await self._decoders.run(decode, deadline_s)
        except ImageError as error:
            error.field = "image.data"
            raise
        self._metrics.stage_done("decode", self._clock() - begun_s)
        self._metrics.image_received(size_bytes=len(data), pixel_count=prepared.width * prepared.height)
        return prepared, sha256

    async def _look_up(self, deadline_s: float | None, function: Callable[[], Found]) -> Found:
        begun_s = self._clock()
        found = await self._lookups.run(function, deadline_s)
        self._metrics.stage_done("explain", self._clock() - begun_s)
        return found
