"""The service put together: what has a thread, a process, a port or a file, opened in order and closed in reverse.

The ports are bound first, so that a taken one is told at once, and answer UNAVAILABLE until what is served is loaded
and warm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from phosphene.engine import Want
from phosphene.errors import Unavailable
from phosphene.image_limits import ImageLimits
from service.answers import Answers, Rooms
from service.batching.admission import Admission, AdmissionLimits
from service.batching.batcher import Batcher
from service.caching.cache import CacheBounds, CodeCache
from service.caching.local_cache import LocalCache
from service.caching.redis_store import RedisStore
from service.callers import Callers, load_tokens
from service.catalogue import Catalogue
from service.claims import Claim
from service.decoding.pool import DecodePool
from service.generations import Generations, Opener
from service.interceptor import AnswerInterceptor
from service.limits import RateLimit, RateLimiter
from service.observing.metric_events import Metrics
from service.observing.metrics_server import MetricsServer
from service.observing.tracing import Tracer, open_tracer
from service.opening import CatalogueOpener
from service.operations import EncodeItem
from service.recovery import watch_stalls
from service.replica import Replica
from service.security import server_credentials
from service.server import (
    ADMIN_METHODS,
    ADMIN_SERVICE,
    MESSAGE_OVERHEAD_BYTES,
    METHODS,
    SERVICE,
    AdminServer,
    Port,
    Server,
)
from service.servicers import AdminServicer, PhospheneServicer
from service.settings import CacheSettings, ListenAddress, Settings
from service.uploads import UploadBudget
from service.workers import WorkerPool

__all__ = ["OnStage", "OpenerFactory", "Running", "catalogue_opener", "image_limits", "open_service"]

OnStage = Callable[[str, float], None]
OpenerFactory = Callable[[Settings, OnStage], Opener]
"""Makes what opens the catalogue; told of each stage of the engine's batches."""

_ADMIN_MESSAGE_LIMIT_BYTES = 2**16
# Nobody's name: a caller's is an address or that of a token.
_OURS = Claim(caller="(warm-up)")


@dataclass(frozen=True, kw_only=True)
class Running:
    """The service, loaded and warm."""

    address: ListenAddress
    """Where it answers."""
    metrics_address: ListenAddress
    """Where its metrics are."""
    admin_address: ListenAddress | None
    """Where operators are answered."""
    server: Server
    """Tells health checks."""
    replica: Replica
    """Takes what operators ask."""
    batcher: Batcher
    """Tells of a failed device."""


def catalogue_opener(settings: Settings, on_stage: OnStage) -> Opener:
    """What opens the artefacts that the settings name."""
    return CatalogueOpener(settings.artefacts, settings.engine, qdrant=settings.qdrant, on_stage=on_stage)


@asynccontextmanager
async def open_service(
    settings: Settings, make_opener: OpenerFactory, *, stop: asyncio.Event, clock: Callable[[], float]
) -> AsyncIterator[Running]:
    """Open the service and begin to answer; on leaving it drains.

    Args:
        settings: all of them.
        make_opener: makes what opens the catalogue.
        stop: set when an operator asks the replica to drain.
        clock: monotonic seconds.

    Raises:
        DeviceFailed: the device failed before anything was served.
        PhospheneError: a setting or an artefact is at fault.
    """
    limits = image_limits(settings)
    metrics = Metrics(methods=(*METHODS, *ADMIN_METHODS), queue_capacity=settings.queue.images)
    callers = Callers(None if settings.security.tokens is None else load_tokens(settings.security.tokens))
    async with AsyncExitStack() as lifetimes:
        enter = lifetimes.enter_async_context
        tracer: Tracer = lifetimes.enter_context(open_tracer(settings.traces_endpoint))

        def on_stage(stage: str, duration_s: float) -> None:
            metrics.stage_done(stage, duration_s)
            tracer.stage(stage, duration_s)

        metrics_server = await enter(MetricsServer(metrics, settings.network.metrics_listen))
        store = await _open_redis(settings.cache, metrics, lifetimes)
        limiter = _limiter(settings, store, clock)
        port = await enter(
            Port(
                settings.network.listen,
                message_limit_bytes=limits.file_bytes + MESSAGE_OVERHEAD_BYTES,
                interceptor=AnswerInterceptor(
                    service=SERVICE,
                    metrics=metrics,
                    clock=clock,
                    identify=callers.identify,
                    limit=None if limiter is None else limiter.check,
                    tracer=tracer,
                ),
                credentials=server_credentials(settings.security),
                connection_streams=settings.network.connection_streams,
                connection_age_s=settings.network.connection_age_s,
            )
        )
        admin_port = await _open_admin_port(settings, callers, metrics, tracer, clock, lifetimes)
        stalls: asyncio.Queue[bool] = asyncio.Queue()
        rooms = await _open_rooms(settings, limits, store, metrics, clock, stalls.put_nowait, lifetimes)
        generations = await enter(
            Generations(
                make_opener(settings, metrics.engine_stage),
                lambda catalogue: _warm(catalogue, rooms.batcher),
                lambda catalogue: _tell(catalogue, metrics),
            )
        )
        answers = Answers(rooms, limits=limits, metrics=metrics, on_stage=on_stage, clock=clock)
        servicer = PhospheneServicer(
            answers,
            generations,
            calls=port.interceptor.calls,
            uploads=UploadBudget(settings.queue.image_bytes, idle_s=settings.queue.upload_idle_s, clock=clock),
            bulk_image_limit=rooms.admission.bulk_image_limit,
            limit=None if limiter is None else limiter.check,
            metrics=metrics,
            on_stage=on_stage,
            clock=clock,
        )
        server = await enter(Server(port, servicer, drain_s=settings.network.drain_s))
        replica = Replica(
            generations=generations,
            admission=rooms.admission,
            batcher=rooms.batcher,
            metrics=metrics,
            is_serving=lambda: server.is_serving,
            stop=stop,
            drain_s=settings.network.drain_s,
        )
        if admin_port is not None:
            await enter(AdminServer(admin_port, AdminServicer(replica)))
        await _load(generations, rooms.batcher)
        await server.say_serving(True)
        watching = asyncio.create_task(
            watch_stalls(
                stalls,
                say_serving=server.say_serving,
                probe=lambda: _probe(generations, rooms.batcher),
                pause_s=settings.engine.stall_s,
            )
        )
        lifetimes.callback(watching.cancel)
        yield Running(
            address=port.address,
            metrics_address=metrics_server.address,
            admin_address=None if admin_port is None else admin_port.address,
            server=server,
            replica=replica,
            batcher=rooms.batcher,
        )


def image_limits(settings: Settings) -> ImageLimits:
    """What an uploaded image may cost: the settings, and the kernel's own bounds for the rest."""
    defaults = ImageLimits()
    return ImageLimits(
        file_bytes=settings.image.limit_bytes,
        pixels=settings.image.limit_pixels,
        webp_pixels=min(defaults.webp_pixels, settings.image.limit_pixels),
    )


async def _open_redis(cache: CacheSettings, metrics: Metrics, lifetimes: AsyncExitStack) -> RedisStore | None:
    if cache.redis_url is None:
        return None
    return await lifetimes.enter_async_context(RedisStore(cache.redis_url, events=metrics))


def _limiter(settings: Settings, store: RedisStore | None, clock: Callable[[], float]) -> RateLimiter | None:
    if not settings.security.rate_per_s:
        return None
    limit = RateLimit(rate_per_s=settings.security.rate_per_s, burst=settings.security.rate_burst)
    return RateLimiter(limit, store=store, clock=clock)


async def _open_admin_port(
    settings: Settings,
    callers: Callers,
    metrics: Metrics,
    tracer: Tracer,
    clock: Callable[[], float],
    lifetimes: AsyncExitStack,
) -> Port | None:
    if settings.network.admin_listen is None:
        return None
    return await lifetimes.enter_async_context(
        Port(
            settings.network.admin_listen,
            message_limit_bytes=_ADMIN_MESSAGE_LIMIT_BYTES,
            interceptor=AnswerInterceptor(
                service=ADMIN_SERVICE, metrics=metrics, clock=clock, identify=callers.identify_admin, tracer=tracer
            ),
            credentials=server_credentials(settings.security),
            setting="PHOSPHENE_ADMIN_LISTEN",
        )
    )


async def _open_rooms(
    settings: Settings,
    limits: ImageLimits,
    store: RedisStore | None,
    metrics: Metrics,
    clock: Callable[[], float],
    on_stall_changed: Callable[[bool], None],
    lifetimes: AsyncExitStack,
) -> Rooms:
    queue, enter = settings.queue, lifetimes.enter_async_context
    batcher = await enter(
        Batcher(
            batch_limit=settings.engine.batch_images,
            queue_limit=queue.images,
            clock=clock,
            events=metrics,
            bulk_share=queue.bulk_share,
            stall_s=settings.engine.stall_s,
            on_stall_changed=on_stall_changed,
        )
    )
    metrics.oldest_read_from(batcher.oldest_s)
    decoders = await enter(
        DecodePool(
            worker_count=queue.decode_worker_count,
            queue_limit=queue.images,
            time_limit_s=queue.decode_limit_s,
            limits=limits,
            clock=clock,
            events=metrics,
            bulk_share=queue.bulk_share,
        )
    )
    lookups = await enter(
        WorkerPool(
            worker_count=queue.decode_worker_count,
            queue_limit=queue.images,
            clock=clock,
            what="look-ups wait for a worker",
            setting="PHOSPHENE_QUEUE_IMAGES",
            bulk_share=queue.bulk_share,
            on_dropped=partial(metrics.dropped, stage="index"),
        )
    )
    cache: CodeCache | None = None
    if settings.cache.limit_bytes or store is not None:
        cache = await enter(
            CodeCache(
                local=LocalCache(limit_bytes=settings.cache.limit_bytes),
                store=store,
                events=metrics,
                bounds=CacheBounds(ttl_s=float(settings.cache.ttl_s)),
            )
        )
    metrics.admission_limits(image_count=queue.images, size_bytes=queue.image_bytes, pixel_count=queue.image_pixels)
    return Rooms(
        admission=Admission(
            limits=AdmissionLimits(images=queue.images, bytes=queue.image_bytes, pixels=queue.image_pixels),
            clock=clock,
            events=metrics,
            engine_wait_s=batcher.answer_s,
            decode_wait_s=decoders.wait_s,
            bulk_share=queue.bulk_share,
        ),
        decoders=decoders,
        batcher=batcher,
        lookups=lookups,
        cache=cache,
        callers_share_codes=settings.security.tokens is None,
    )


async def _load(generations: Generations, batcher: Batcher) -> None:
    """Load what is served first; where the device fails over the warm-up, that is the error: no setting is at fault."""
    try:
        await generations.load()
    except Unavailable:
        if batcher.failure is None:
            raise
        raise batcher.failure from None


async def _warm(catalogue: Catalogue, batcher: Batcher) -> None:
    """Run every operation, so that no caller pays for lazy set-up, and again to learn how long it takes without."""
    await _run_all(catalogue, batcher, is_typical=False)
    await _run_all(catalogue, batcher, is_typical=True)


async def _probe(generations: Generations, batcher: Batcher) -> None:
    with generations.lease() as catalogue:
        await _run_all(catalogue, batcher, is_typical=False)


async def _run_all(catalogue: Catalogue, batcher: Batcher, *, is_typical: bool) -> None:
    """Run every operation once, as a caller among those who wait, whom no share of the bulk lane keeps waiting."""
    for bundle, _ in catalogue.entries:
        size = bundle.preprocessing.size
        grey = np.full((3, size.height, size.width), 128, np.uint8)
        for route in bundle.routes:
            want = Want(fidelity=True, residuals=True, scores=bool(bundle.score_names))
            if not route.engine.can(want):
                want = Want(fidelity=True, residuals=True)
            item = EncodeItem(pixels=grey, request=route.request(want))
            await batcher.run(route.operation, item, claim=_OURS, is_typical=is_typical)
        if bundle.text is not None:
            await batcher.run(bundle.text, "warm", claim=_OURS, is_typical=is_typical)


def _tell(catalogue: Catalogue, metrics: Metrics) -> None:
    """Show what is served from now on."""
    metrics.generation_served(catalogue.id)
    # A process has one device, whichever of its engines is asked; a former generation's must be free to leave memory.
    engine = catalogue.entries[0][0].routes[0].engine
    metrics.device_memory_read_from(lambda: engine.device_memory_bytes)
    for bundle, corpora in catalogue.entries:
        facts = bundle.facts
        metrics.artefact_served(kind="bundle", name=bundle.name, id=facts.bundle_id, code_id=facts.code_id)
        metrics.model_served(bundle.name, bundle.health)
        for corpus in corpora:
            metrics.artefact_served(kind="index", name=corpus.name, id=corpus.reader.id, code_id=corpus.reader.code_id)
            if corpus.reader.tombstones_id:
                metrics.artefact_served(kind="tombstones", name=corpus.name, id=corpus.reader.tombstones_id, code_id="")
