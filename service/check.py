"""`python -m service check`: tries everything that the settings name, and says what would be served.

Opens and checks artefacts, TLS files, tokens, Redis and traces as the service itself does, and has the device encode an
image with every engine. It binds no port and answers nobody. Every subject is tried, whatever became of the others.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from index.values import SearchEngine
from phosphene.engine import Want
from phosphene.errors import PhospheneError, SettingError
from service.caching.circuit import CircuitState
from service.caching.redis_store import RedisStore
from service.callers import Token, load_tokens
from service.catalogue import Catalogue
from service.generation import ServedBundle
from service.generations import Opener
from service.observing.tracing import open_tracer
from service.opening import CatalogueOpener
from service.security import server_credentials
from service.settings import SecuritySettings, Settings, load_settings, without_secret

__all__ = ["check"]


def check(make_opener: Callable[[Settings], Opener] | None = None) -> int:
    """Check the settings of this process's environment.

    Args:
        make_opener: makes what opens the catalogue; None opens what the settings name.

    Returns:
        The exit status: 0 where the service would start, 2 where it would not.
    """
    try:
        settings = load_settings()
    except PhospheneError as error:
        sys.stdout.write(f"FAULT  settings: {error}\n")
        return 2
    # What the service would write into its log is said here in words.
    logging.getLogger("phosphene").addHandler(logging.NullHandler())
    network = settings.network
    admin = "no admin port" if network.admin_listen is None else f"admin on {network.admin_listen}"
    _say("settings", f"listen on {network.listen}, metrics on {network.metrics_listen}, {admin}")
    opener = (
        CatalogueOpener(settings.artefacts, settings.engine, qdrant=settings.qdrant)
        if make_opener is None
        else make_opener(settings)
    )
    return asyncio.run(_check(settings, opener))


async def _check(settings: Settings, opener: Opener) -> int:
    are_well = [
        await _tried("tls", lambda: _tls(settings.security)),
        await _tried("callers", lambda: _callers(settings.security)),
        await _tried("traces", lambda: _traces(settings.traces_endpoint)),
        await _tried("redis", lambda: _redis(settings)),
        await _tried("artefacts", lambda: _artefacts(opener)),
    ]
    return 0 if all(are_well) else 2


async def _tried(subject: str, step: Callable[[], Awaitable[None]]) -> bool:
    try:
        await step()
    except PhospheneError as error:
        sys.stdout.write(f"FAULT  {subject}: {error}\n")
        return False
    return True


async def _tls(security: SecuritySettings) -> None:
    if server_credentials(security) is None or security.certificate is None:
        _say("tls", "none, plaintext")
        return
    # gRPC itself says of files that it refuses no more than that the port cannot be bound.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, security)
    _load_client_ca(context, security)
    asked = "no certificate asked of clients" if security.client_ca is None else "certificates asked of clients (mTLS)"
    _say("tls", f"{security.certificate}, {asked}")


def _load_certificate(context: ssl.SSLContext, security: SecuritySettings) -> None:
    assert security.certificate is not None, "plaintext has none"
    try:
        context.load_cert_chain(security.certificate, security.key, password=lambda: "")
    except ssl.SSLError as cause:
        raise SettingError(
            f"PHOSPHENE_TLS_CERTIFICATE is {str(security.certificate)!r} and PHOSPHENE_TLS_KEY is "
            f"{str(security.key)!r}, which do not go together ({cause.reason or cause}); name a certificate and its "
            "own key, without a password"
        ) from cause


def _load_client_ca(context: ssl.SSLContext, security: SecuritySettings) -> None:
    if security.client_ca is None:
        return
    try:
        context.load_verify_locations(security.client_ca)
    except ssl.SSLError as cause:
        raise SettingError(
            f"PHOSPHENE_TLS_CLIENT_CA is {str(security.client_ca)!r}, which holds a certificate that cannot be read "
            f"({cause.reason or cause}); name a PEM file of whole certificates"
        ) from cause


async def _callers(security: SecuritySettings) -> None:
    tokens = "no tokens" if security.tokens is None else _tokens(load_tokens(security.tokens))
    rate = (
        f"{security.rate_per_s:g} requests a second each, {security.rate_burst} at once"
        if security.rate_per_s
        else "no rate limit"
    )
    _say("callers", f"{tokens}, {rate}")


def _tokens(tokens: Sequence[Token]) -> str:
    return f"{len(tokens)} tokens, {sum(token.is_admin for token in tokens)} of them for operators"


async def _traces(endpoint: str | None) -> None:
    with open_tracer(endpoint):
        _say("traces", "none" if endpoint is None else f"to {without_secret(endpoint)}, which is not asked here")


async def _redis(settings: Settings) -> None:
    if settings.cache.redis_url is None:
        _say("redis", "none; codes are kept in this process" if settings.cache.limit_bytes else "none; no cache at all")
        return
    async with RedisStore(settings.cache.redis_url, events=_Silent()) as store:
        if store.state is CircuitState.CLOSED:
            _say("redis", f"{store} answers")
        else:
            # Not a fault: the service starts and serves without it.
            sys.stdout.write(
                f"WARN   redis: {store} is of no use now ({store.reason}); codes are kept in each process until it is\n"
            )


async def _artefacts(opener: Opener) -> None:
    async with opener(None) as catalogue:
        for bundle, _ in catalogue.entries:
            await asyncio.to_thread(_encode_once, bundle)
        for line in _served(catalogue):
            _say("serve", line)


def _encode_once(bundle: ServedBundle) -> None:
    """Have every engine of a bundle encode a grey image; raises what it would raise for a caller's."""
    size = bundle.preprocessing.size
    grey = np.full((1, 3, size.height, size.width), 128, np.uint8)
    for route in bundle.routes:
        route.engine.run_rows(grey, [route.request(Want())])


def _served(catalogue: Catalogue) -> list[str]:
    lines: list[str] = []
    for bundle, corpora in catalogue.entries:
        facts = bundle.facts
        engines = ", ".join(str(route.engine.name) for route in bundle.routes)
        lines.append(
            f"bundle {bundle.name!r}: {facts.neuron_count} neurons at {facts.site} of {facts.encoder.model}, "
            f"{engines} on {facts.device}, code_id {facts.code_id}"
        )
        lines += [
            f"index {corpus.name!r} of {bundle.name!r}: {corpus.reader.image_count} images, id {corpus.reader.id}"
            + (f", tombstones {corpus.reader.tombstones_id}" if corpus.reader.tombstones_id else "")
            + (f", flags {corpus.reader.flags_id}" if corpus.reader.flags_id else "")
            + (f", names {corpus.reader.names_id}" if corpus.reader.names_id else "")
            + (", codes searched in Qdrant" if corpus.reader.code_engine is SearchEngine.QDRANT else "")
            for corpus in corpora
        ]
    return [*lines, f"generation {catalogue.id}"]


def _say(subject: str, text: str) -> None:
    sys.stdout.write(f"ok     {subject}: {text}\n")


class _Silent:
    def circuit_changed(self, state: str) -> None:
        pass
