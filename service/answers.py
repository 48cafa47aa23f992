"""The steps of every answer, in order: resolve, admit, decode, encode, look up; knows no protobuf and no gRPC.

What blocks runs in a worker, what needs the device on the engine's threads; the event loop only hands over. A look-up
takes its place before the device works for it, so that no image is encoded for an answer that is refused. The
catalogue that an answer is made from is handed in, so that no reload comes between two of its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

import numpy as np
from jaxtyping import Float32

from phosphene.engine import Want
from phosphene.errors import ImageError, ImageRequired, NotFound, NumericError
from phosphene.image_headers import image_size
from phosphene.image_limits import ImageLimits, check_file_size, check_pixels
from phosphene.images import image_sha256
from service.alike import images_alike
from service.batching.admission import Admission
from service.batching.batcher import Batcher
from service.caching.cache import CacheKey, CodeCache
from service.caching.coded_image import CodedImage, coded_image_bytes, read_coded_image
from service.catalogue import Catalogue
from service.claims import Claim
from service.decoding.pool import DecodePool
from service.explain import LiveImage, StoredImage, check_parts, explain, needs_pixels, wanted
from service.generation import Generation
from service.lookups import (
    check_sensitive,
    check_taken_down,
    corpus_image,
    images_by_words,
    images_exciting,
    images_firing,
    list_neurons,
    neuron_profile,
    neurons_like_neuron,
    neurons_like_text,
    row_of,
)
from service.observing.metric_events import Metrics
from service.operations import EncodeItem
from service.queries import (
    CodesAlike,
    ExplainQuery,
    ImageBytes,
    ImageDigest,
    ImageLookup,
    ImageQuery,
    ImageSearch,
    ImageUpload,
    LikeExpression,
    LikeImage,
    LikeNeuron,
    LikeText,
    NeuronListQuery,
    NeuronQuery,
    NeuronSearch,
    ResidualsAlike,
)
from service.sent_image import SentImage
from service.values import CorpusImage, Explanation, ImageList, NeuronList, NeuronMatch, NeuronProfile
from service.workers import Place, WorkerPool

__all__ = ["Answers", "Rooms"]

Found = TypeVar("Found")

_HASH_INLINE_BYTES = 2**20
_FIDELITY_SAMPLE = 16


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Where the work of an answer is done."""

    admission: Admission
    """Lets images in."""
    decoders: DecodePool
    """Decodes them."""
    batcher: Batcher
    """Runs the device."""
    lookups: WorkerPool
    """Reads indexes."""
    cache: CodeCache | None
    """Keeps what the device said of an image; None: nothing is kept."""
    callers_share_codes: bool
    """Whether one caller's codes may answer another: not where callers are told apart by tokens."""


class Answers:
    """Every answer of the service, each with the generation that it was made from."""

    def __init__(
        self,
        rooms: Rooms,
        *,
        limits: ImageLimits,
        metrics: Metrics,
        on_stage: Callable[[str, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join what answers.

        Args:
            rooms: where work is done.
            limits: what an uploaded image may cost.
            metrics: told of images.
            on_stage: told of each stage of an answer and its seconds.
            clock: monotonic seconds, for stages.
        """
        self.limits = limits
        self._rooms = rooms
        self._metrics = metrics
        self._on_stage = on_stage
        self._clock = clock
        self._encoded_count = 0

    async def explain(self, catalogue: Catalogue, query: ExplainQuery, claim: Claim) -> tuple[Generation, Explanation]:
        """What lights up on an image.

        Args:
            catalogue: what is served.
            query: what to look at, and what to say of it.
            claim: on whose behalf, and until when.

        Raises:
            InputError: a bad image, or a name that is not served.
            Unanswerable: a part that this bundle, corpus or kind of image query cannot give.
            Overloaded: there is no room, or no answer before the deadline.
            DeadlineExpired: the deadline passed.
        """
        generation = catalogue.generation(query.scope)
        check_parts(generation, query)
        with self._rooms.lookups.place(claim) as place:
            image = await self._look_at(
                generation, query.image, wanted(query.parts), place, needs_pixels=needs_pixels(query.parts)
            )
            if generation.corpus is None:
                # Nothing is read: a hand-over to a worker would cost more than the work.
                return generation, explain(generation, query, image)
            return generation, await self._look_up(place, lambda: explain(generation, query, image))

    async def neuron(self, catalogue: Catalogue, query: NeuronQuery, claim: Claim) -> tuple[Generation, NeuronProfile]:
        """What is known of one neuron; raises `NotFound`, `Unanswerable` without a corpus."""
        generation = catalogue.generation(query.scope)
        return generation, await self._look_up_only(claim, lambda: neuron_profile(generation, query))

    async def neurons(
        self, catalogue: Catalogue, query: NeuronListQuery, claim: Claim
    ) -> tuple[Generation, NeuronList]:
        """One page of neurons; raises `InputError` for a foreign page token, `Unanswerable` without a corpus."""
        generation = catalogue.generation(query.scope)
        return generation, await self._look_up_only(claim, lambda: list_neurons(generation, query))

    async def search_neurons(
        self, catalogue: Catalogue, search: NeuronSearch, claim: Claim
    ) -> tuple[Generation, tuple[NeuronMatch, ...]]:
        """Neurons by meaning; raises `NotFound`, and `Unanswerable` where there is no text search."""
        generation = catalogue.generation(search.scope)
        match search.like:
            case LikeNeuron() as like:
                return generation, await self._look_up_only(
                    claim, lambda: neurons_like_neuron(generation, search, like)
                )
            case LikeText(text=text):
                with self._rooms.lookups.place(claim) as place:
                    vector = await self._read_words(generation, text, place)
                    return generation, await self._look_up(place, lambda: neurons_like_text(generation, search, vector))
            case _:
                assert_never(search.like)

    async def search_images(
        self, catalogue: Catalogue, search: ImageSearch, claim: Claim
    ) -> tuple[Generation, ImageList]:
        """Images like another, by neuron, by expression or by words.

        Raises:
            InputError: a bad image or expression.
            NotFound: an unknown image or neuron.
            Unanswerable: there is no corpus, or nothing that reads words.
        """
        generation = catalogue.generation(search.scope)
        reader = generation.reader
        match search.like:
            case LikeNeuron() as like:
                return generation, await self._look_up_only(claim, lambda: images_exciting(generation, search, like))
            case LikeExpression() as asked:
                return generation, await self._look_up_only(claim, lambda: images_firing(generation, search, asked))
            case LikeText(text=text):
                with self._rooms.lookups.place(claim) as place:
                    vector = await self._read_words(generation, text, place)
                    return generation, await self._look_up(place, lambda: images_by_words(reader, search, vector))
            case LikeImage(image=image, similarity=similarity):
                want = Want(residuals=isinstance(similarity, ResidualsAlike))
                if isinstance(similarity, CodesAlike):
                    for neuron_id in similarity.only_neuron_ids:
                        generation.check_neuron(neuron_id, field="only_neuron_ids")
                with self._rooms.lookups.place(claim) as place:
                    looked_at = await self._look_at(generation, image, want, place, needs_pixels=False)
                    return generation, await self._look_up(
                        place, lambda: images_alike(reader, looked_at, search, similarity)
                    )
            case _:
                assert_never(search.like)

    async def image(self, catalogue: Catalogue, lookup: ImageLookup, claim: Claim) -> tuple[Generation, CorpusImage]:
        """One image of the corpus with its thumbnail; raises `NotFound`, `Unanswerable` without a corpus."""
        generation = catalogue.generation(lookup.scope)
        reader = generation.reader
        return generation, await self._look_up_only(
            claim,
            lambda: corpus_image(reader, row_of(generation, lookup.sha256, field="sha256"), with_thumbnail=True),
        )

    async def _read_words(self, generation: Generation, text: str, place: Place) -> Float32[np.ndarray, " embedding"]:
        """The vector of the text tower; raises `Unanswerable` where there is none."""
        operation = generation.text_operation
        with self._rooms.admission.admit(
            claim=place.claim, size_bytes=0, pixel_count=0, cost=operation.cost(text), is_decoded=True
        ) as admitted:
            place.reserve()
            admitted.decoded()
            return await self._rooms.batcher.run(operation, text, claim=place.claim)

    async def _look_at(
        self, generation: Generation, query: ImageQuery, want: Want, place: Place, *, needs_pixels: bool
    ) -> LiveImage | StoredImage:
        """Find out what the encoder says of an image: from the index, from the cache, or from its bytes."""
        match query:
            case ImageDigest(sha256=sha256):
                return await self._recall(generation, sha256, want, place, needs_pixels=needs_pixels)
            case ImageBytes(data=data):
                try:
                    return await self._encode(generation, data, want, place)
                except ImageError as error:
                    error.field = "image.data"
                    raise
            case ImageUpload():
                raise AssertionError("streams join uploads before they ask")
            case _:
                assert_never(query)

    async def _recall(
        self, generation: Generation, sha256: str, want: Want, place: Place, *, needs_pixels: bool
    ) -> LiveImage | StoredImage:
        """An image by digest: of the corpus, or what the cache keeps for this caller."""
        has_corpus = generation.corpus is not None
        row = await self._look_up(place, lambda: generation.own_row(sha256)) if has_corpus else None
        if row is not None and not needs_pixels:
            return StoredImage(row)
        route = generation.bundle.route(want)
        if self._rooms.cache is not None:
            kept = await self._rooms.cache.get(self._key(generation, sha256, str(route.engine.name), place.claim))
            coded = None if kept is None else _read(kept)
            if coded is not None and coded.row.holds(want):
                return LiveImage(coded, str(route.engine.name))
        if row is not None:
            raise ImageRequired(
                "the index does not store what these parts need; send the image's bytes instead of its digest",
                subject="parts",
            )
        check_taken_down(generation, sha256, field="image.sha256")
        check_sensitive(generation, sha256, field="image.sha256")
        where = "" if generation.corpus is None else f"corpus {generation.corpus.name!r} holds no image with it, and "
        raise NotFound(
            f"no image with the digest {sha256}: {where}the cache keeps none for these parts; send the image's bytes",
            field="image.sha256",
            name=sha256,
        )

    async def _encode(self, generation: Generation, data: bytes, want: Want, place: Place) -> LiveImage:
        """An image by its bytes: what the cache keeps, or what the device says of it now."""
        check_file_size(len(data), self.limits)
        sha256 = image_sha256(data) if len(data) <= _HASH_INLINE_BYTES else await asyncio.to_thread(image_sha256, data)
        engine = str(generation.bundle.route(want).engine.name)
        with SentImage(
            data,
            sha256,
            claim=place.claim,
            admission=self._rooms.admission,
            place=None if generation.corpus is None else place,
        ) as sent:
            if self._rooms.cache is None:
                return LiveImage(await self._ask_device(generation, sent, want), engine)
            return LiveImage(await self._fetch(generation, sent, want, engine, self._rooms.cache), engine)

    async def _fetch(
        self, generation: Generation, sent: SentImage, want: Want, engine: str, cache: CodeCache
    ) -> CodedImage:
        key = self._key(generation, sent.sha256, engine, sent.claim)
        made: list[CodedImage] = []

        async def make() -> bytes:
            made.append(await self._ask_device(generation, sent, want))
            return coded_image_bytes(made[0])

        value, _ = await cache.fetch(key, make, lane=sent.claim.lane, places=sent)
        if made:
            return made[0]
        coded = _read(value)
        if coded is None or not coded.row.holds(want):
            # Kept by a request that wanted something else, or by a replica of another version.
            both = want if coded is None else want | coded.row.want
            coded = await self._ask_device(generation, sent, both)
            await cache.put(key, coded_image_bytes(coded))
        return coded

    def _key(self, generation: Generation, sha256: str, engine: str, claim: Claim) -> CacheKey:
        facts = generation.bundle.facts
        return CacheKey(
            sha256=sha256,
            bundle_id=facts.bundle_id,
            code_id=facts.code_id,
            generation=generation.id,
            engine=engine,
            want="",
            caller="" if self._rooms.callers_share_codes else claim.caller,
        )

    async def _ask_device(self, generation: Generation, sent: SentImage, want: Want) -> CodedImage:
        """Admit, decode and encode one image."""
        bundle, data, claim = generation.bundle, sent.data, sent.claim
        route = bundle.route(want)
        want = self._sampled(want)
        width, height = image_size(data) or (0, 0)
        if width:
            # Before it is admitted: where others leave no room for it, it would be told to come again.
            check_pixels(width, height, self.limits.pixels)
        with sent.admit(pixel_count=width * height, cost=route.cost(want)) as admitted:
            sent.reserve_lookup()
            prepared = await self._timed(
                "decode",
                self._rooms.decoders.prepare(data, bundle.preprocessing, claim=claim, pixel_count=width * height),
            )
            self._metrics.image_received(size_bytes=len(data), pixel_count=prepared.width * prepared.height)
            admitted.decoded()
            item = EncodeItem(pixels=prepared.pixels, request=route.request(want))
            try:
                row = await self._rooms.batcher.run(route.operation, item, claim=claim)
            except NumericError:
                bundle.health.nonfinite()
                raise
        fvu = None if row.fidelity is None else row.fidelity.fvu
        self._metrics.image_encoded(l0=len(row.code), fvu=fvu)
        bundle.health.observe(row.code, fvu)
        return CodedImage(
            sha256=sent.sha256, width=prepared.width, height=prepared.height, drafted=prepared.drafted, row=row
        )

    def _sampled(self, want: Want) -> Want:
        """What is wanted, and fidelity of every so many images, so that the model's health is known without asking."""
        self._encoded_count += 1
        return want if self._encoded_count % _FIDELITY_SAMPLE else replace(want, fidelity=True)

    async def _look_up(self, place: Place, function: Callable[[], Found]) -> Found:
        return await self._timed("index", place.run(function))

    async def _look_up_only(self, claim: Claim, function: Callable[[], Found]) -> Found:
        return await self._timed("index", self._rooms.lookups.run(claim, function))

    async def _timed(self, stage: str, work: Awaitable[Found]) -> Found:
        begun_s = self._clock()
        found = await work
        self._on_stage(stage, self._clock() - begun_s)
        return found


def _read(kept: bytes) -> CodedImage | None:
    """What the cache keeps; None where another version of the service wrote it in a layout of its own."""
    try:
        return read_coded_image(kept)
    except ValueError:
        return None
