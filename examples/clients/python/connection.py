"""How to reach a service: its address, TLS, a token, keepalive, replicas in turn. Makes no calls."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import grpc

__all__ = ["Connection", "add_options", "connection_of"]

_LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
_MESSAGE_LIMIT_BYTES = 17 * 2**20


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the service is and how one is let in."""

    target: str = "127.0.0.1:50051"
    """`host:port`; `dns:///name:port` for every replica behind a name."""
    has_tls: bool = False
    """Whether the server speaks TLS."""
    ca: Path | None = None
    """PEM file of the authority behind the server's certificate; None: those that the system trusts."""
    certificate: Path | None = None
    """PEM file of this client's own certificate, for a server that asks for one (mTLS)."""
    key: Path | None = None
    """PEM file of its private key."""
    token: str | None = None
    """API token; None: the service asks for none."""

    def __post_init__(self) -> None:
        """Refuse to send a secret in the clear.

        Raises:
            ValueError: a token, no TLS, and a server that is not on this machine.
        """
        if self.token is not None and not self.has_tls and not self.target.startswith(_LOOPBACK):
            raise ValueError(f"a token for {self.target} would travel in the clear; use TLS (--tls, --ca)")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def options(self) -> list[tuple[str, int | str]]:
        """Channel arguments of gRPC, for both kinds of channel."""
        return [
            ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
            # A connection that died without a word is found within 70 seconds. Servers take more frequent pings, and
            # pings without a call under way, for abuse.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 0),
            # One connection to each address of the name, calls in turn.
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ]

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials for a secure channel; None: plaintext."""
        if not self.has_tls:
            return None
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what both programs take."""
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="the service (%(default)s)")
    parser.add_argument("--tls", action="store_true", help="TLS, with the authorities that the system trusts")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="TLS, with this authority")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="TLS, with this client's certificate (mTLS)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds an API token")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for an answer (%(default)s)")


def connection_of(options: argparse.Namespace) -> Connection:
    """Return the connection that the options describe.

    Raises:
        OSError: a file cannot be read.
        ValueError: see `Connection`.
    """
    return Connection(
        target=options.server,
        has_tls=options.tls or options.ca is not None or options.certificate is not None,
        ca=options.ca,
        certificate=options.certificate,
        key=options.key,
        token=None if options.token_file is None else options.token_file.read_text().strip(),
    )


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
