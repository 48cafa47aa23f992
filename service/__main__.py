"""`python -m service`: answers phosphene.v1 over gRPC until SIGTERM or SIGINT.

    PHOSPHENE_BUNDLES=scenes=build/demo/bundle PHOSPHENE_INDEXES=scenes=build/demo/index python -m service

Everything that has a thread, a port or a file is opened here, in order, and closed in reverse. Exit status: 0 after a
drain, 2 where settings, artefacts or ports are at fault.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import numpy as np

import phosphene
from phosphene.engine import Want
from phosphene.errors import PhospheneError
from phosphene.images import ImageLimits
from service.answers import Answers
from service.batcher import Batcher
from service.catalogue import Catalogue
from service.interceptor import AnswerInterceptor
from service.lanes import EncodeItem
from service.logs import log_event, open_logs
from service.metrics import Metrics, MetricsServer
from service.opening import open_catalogue
from service.server import MESSAGE_OVERHEAD_BYTES, METHODS, SERVICE, Port, Server
from service.settings import VARIABLES, ArtefactSettings, EngineSettings, Settings, load_settings
from service.workers import WorkerPool

__all__ = ["Opener", "image_limits", "main"]

Opener = Callable[[ArtefactSettings, EngineSettings], AbstractAsyncContextManager[Catalogue]]


def main(opener: Opener = open_catalogue) -> int:
    """Run the service until it is told to stop.

    Args:
        opener: opens what the settings name.

    Returns:
        The exit status.
    """
    open_logs("info")
    try:
        settings = load_settings()
        open_logs(settings.log_level)
        log_event("starting", version=phosphene.__version__, settings=settings.to_log())
        asyncio.run(_serve(settings, opener))
    except PhospheneError as error:
        log_event("cannot serve", level=logging.ERROR, reason=str(error))
        sys.stderr.write(f"service: {error}\n")
        return 2
    log_event("stopped")
    return 0


async def _serve(settings: Settings, opener: Opener) -> None:
    clock = time.monotonic
    stop = _stop_on_signals()
    limits = image_limits(settings)
    metrics = Metrics(methods=METHODS, queue_capacity=settings.engine.queue_images)
    async with AsyncExitStack() as lifetimes:
        enter = lifetimes.enter_async_context
        metrics_server = await enter(MetricsServer(metrics, settings.network.metrics_listen))
        port = await enter(
            Port(
                settings.network.listen,
                message_limit_bytes=limits.file_bytes + MESSAGE_OVERHEAD_BYTES,
                interceptor=AnswerInterceptor(service=SERVICE, metrics=metrics, clock=clock),
            )
        )
        catalogue = await enter(opener(settings.artefacts, settings.engine))
        batcher = await enter(
            Batcher(
                queue_limit=settings.engine.queue_images,
                batch_limit=settings.engine.batch_images,
                clock=clock,
                events=metrics,
            )
        )
        decoders, lookups = [
            await enter(
                WorkerPool(
                    worker_count=settings.engine.decode_worker_count,
                    queue_limit=settings.engine.queue_images,
                    clock=clock,
                    what=what,
                    setting="PHOSPHENE_QUEUE_IMAGES",
                )
            )
            for what in ("images wait for a decoder", "look-ups wait for a worker")
        ]
        answers = Answers(
            catalogue=catalogue,
            batcher=batcher,
            decoders=decoders,
            lookups=lookups,
            limits=limits,
            metrics=metrics,
            clock=clock,
        )
        server = await enter(Server(port, answers, drain_s=settings.network.drain_s, clock=clock))
        await _warm(catalogue, batcher)
        _count_artefacts(catalogue, metrics)
        await server.open_for_business()
        log_event("serving", address=str(port.address), metrics=str(metrics_server.address))
        await stop.wait()
        log_event("draining", limit_s=settings.network.drain_s)


def image_limits(settings: Settings) -> ImageLimits:
    """What an uploaded image may cost: the settings, and the kernel's own bounds for the rest."""
    defaults = ImageLimits()
    return ImageLimits(
        file_bytes=settings.image.limit_bytes,
        pixels=settings.image.limit_pixels,
        webp_pixels=min(defaults.webp_pixels, settings.image.limit_pixels),
    )


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _warm(catalogue: Catalogue, batcher: Batcher) -> None:
    """Run every lane once, so that the first caller does not pay for lazy set-up."""
    for bundle, _ in catalogue.entries:
        size = bundle.preprocessing.size
        want = Want(fidelity=True, residuals=True, scores=bool(bundle.score_names))
        grey = np.full((3, size.height, size.width), 128, np.uint8)
        await batcher.run(bundle.encode, EncodeItem(pixels=grey, want=want))
        if bundle.text is not None:
            await batcher.run(bundle.text, "warm")


def _count_artefacts(catalogue: Catalogue, metrics: Metrics) -> None:
    for bundle, corpora in catalogue.entries:
        facts = bundle.facts
        metrics.artefact_served(kind="bundle", name=bundle.name, id=facts.bundle_id, code_id=facts.code_id)
        for corpus in corpora:
            metrics.artefact_served(kind="index", name=corpus.name, id=corpus.reader.id, code_id=corpus.reader.code_id)


def _command() -> int:
    """Tell the settings (`--help`), or run; the service takes no other arguments."""
    if len(sys.argv) == 1:
        return main()
    is_help = sys.argv[1:] in (["--help"], ["-h"])
    known = "\n".join(f"  {name}\n      {meaning}" for name, meaning in VARIABLES.items())
    stream = sys.stdout if is_help else sys.stderr
    stream.write(f"python -m service takes no arguments; it is set by variables:\n{known}\n")
    return 0 if is_help else 2


if __name__ == "__main__":
    raise SystemExit(_command())
