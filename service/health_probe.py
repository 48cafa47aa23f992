"""`python -m service.health_probe`: asks the service on this machine for its health, as a container's health check.

Exit status 0: SERVING. 1: anything else, with the reason on stderr. Reads the settings that the service reads, so that
it finds port and certificates by itself; imports no torch, because it starts anew every few seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from phosphene.errors import SettingError
from service.settings import ListenAddress, Settings, load_settings

__all__ = ["DEFAULT_TIMEOUT_S", "Target", "main", "probe", "target_of"]

DEFAULT_TIMEOUT_S = 4.0
"""Seconds to wait for an answer; a container's own limit is above it, so that the reason is told."""
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to ask, and how to be let in."""

    address: ListenAddress
    """The server's port on this machine."""
    certificate: Path | None = None
    """PEM file of the certificate that the server shows; None: plaintext."""
    key: Path | None = None
    """PEM file of its private key, shown with it where the server asks its clients for one; None: it does not."""
    server_name: str | None = None
    """A name that the certificate is for; None: it is for the address."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe the service that the environment describes; returns a process exit status."""
    options = _parse(arguments)
    try:
        fault = probe(target_of(load_settings(), server_name=options.server_name), timeout_s=options.timeout)
    except (SettingError, OSError) as error:
        fault = str(error)
    if fault is not None:
        sys.stderr.write(f"health probe: {fault}\n")
        return 1
    return 0


def target_of(settings: Settings, *, server_name: str | None = None) -> Target:
    """Return what to probe for a service with these settings.

    Raises:
        SettingError: the service listens on a port that nobody else can know.
    """
    listen, security = settings.network.listen, settings.security
    if listen.port == 0:
        raise SettingError(f"PHOSPHENE_LISTEN is {listen}, whose port is chosen at start; name one to be probed")
    return Target(
        address=ListenAddress(host=_LOOPBACK.get(listen.host, listen.host), port=listen.port),
        certificate=security.certificate,
        key=security.key if security.client_ca is not None else None,
        server_name=server_name,
    )


def probe(target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> str | None:
    """Return None where the service says SERVING within `timeout_s`, else what it does instead."""
    with _channel(target) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as failure:
            return f"{target.address} answers {failure.code().name}: {failure.details()}"
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        return f"{target.address} says {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"
    return None


def _channel(target: Target) -> grpc.Channel:
    # A proxy of the environment is for the world outside, never for this machine.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if target.certificate is None:
        return grpc.insecure_channel(str(target.address), options=options)
    chain = target.certificate.read_bytes()
    key = None if target.key is None else target.key.read_bytes()
    if target.server_name is not None:
        options.append(("grpc.ssl_target_name_override", target.server_name))
    # The certificate that the server was given vouches for itself: no authority needs to be known here.
    credentials = grpc.ssl_channel_credentials(
        root_certificates=chain, private_key=key, certificate_chain=None if key is None else chain
    )
    return grpc.secure_channel(str(target.address), credentials, options=options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.health_probe", description=__doc__)
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS", help="how long to wait (%(default)s)"
    )
    parser.add_argument("--server-name", metavar="NAME", help="a name in the certificate, where the service has TLS")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
