"""How a client proves who it is, and how it knows the service: API token, TLS, client certificate; makes no calls.

A token travels in the metadata of every call. Whoever reads it can use it, so that without TLS it is sent to this
machine alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.parse import unquote

import grpc

from phosphene.errors import SettingError

__all__ = ["Access", "AccessOptions", "access_to", "is_on_this_machine", "read_token"]

_PORT = re.compile(r":0*([1-9][0-9]{4,5})[0-9]*$")  # The digits that tell whether it is too high.
_PORT_LIMIT = 65535
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


class AccessOptions(TypedDict, total=False):
    """What a client may be given beside an address."""

    token: str | None
    """An API token: 1 to 512 printable ASCII characters. Refused without TLS, unless the service is on this machine."""
    tls: bool
    """Whether to talk TLS; without it everything travels in clear, which is for loopback and trusted networks."""
    ca: str | Path | None
    """PEM file of the authorities that may vouch for the service; those that gRPC brings if left out."""
    certificate: str | Path | None
    """PEM file of the client's own certificate chain, where the service asks for one."""
    key: str | Path | None
    """PEM file of its private key."""
    credentials: grpc.ChannelCredentials | None
    """Channel credentials made elsewhere, instead of `tls` and its files."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a channel and its calls are opened with."""

    credentials: grpc.ChannelCredentials | None
    """Of the channel; None: plaintext."""
    metadata: tuple[tuple[str, str], ...]
    """Of every call."""
    channel_options: tuple[tuple[str, int], ...]
    """Of the channel, beside those of `transport`."""


def access_to(address: str, **options: Unpack[AccessOptions]) -> Access:
    """Check what a client was given for a service, and read its files.

    Args:
        address: where the service is, as gRPC names it.
        **options: see `AccessOptions`.

    Raises:
        SettingError: no address of a service, options that contradict each other, a file that cannot be read or holds
            no PEM, or a token that no metadata can hold or that would travel in clear to another machine.
    """
    _check_address(address)
    credentials = _credentials(**options)
    is_local = is_on_this_machine(address)
    # A proxy of the environment is for the world outside, and knows another machine by this address.
    direct = (("grpc.enable_http_proxy", 0),) if is_local else ()
    token = options.get("token")
    if token is None:
        return Access(credentials=credentials, metadata=(), channel_options=direct)
    if not _TOKEN.fullmatch(token):
        raise SettingError(
            f"token has {len(token)} characters; it must be 1 to 512 printable ASCII characters without spaces",
            field="token",
        )
    if credentials is None and not is_local:
        raise SettingError(
            f"token would travel in clear to {address}, where everybody on the way can read and use it; "
            "talk TLS (tls=True, --tls)",
            field="token",
        )
    return Access(credentials=credentials, metadata=(("authorization", f"Bearer {token}"),), channel_options=direct)


def read_token(path: Path) -> str:
    """Return the token that a file holds, white space around it aside; never quotes it.

    Raises:
        SettingError: the file cannot be read, or does not hold one token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        token = ""
    except OSError as cause:
        raise SettingError(
            f"the token file {str(path)!r} cannot be read: {cause.strerror}; name a file that you may read",
            field="token",
        ) from cause
    if not _TOKEN.fullmatch(token):
        raise SettingError(
            f"the token file {str(path)!r} does not hold one token, 1 to 512 printable ASCII characters on one line",
            field="token",
        )
    return token


def _check_address(address: str) -> None:
    if address.startswith(("http://", "https://")):
        raise SettingError(
            f"address is {address!r}, a web page's; say HOST:PORT, such as localhost:50051", field="address"
        )
    found = None if address.startswith(("unix:", "unix-abstract:")) else _PORT.search(unquote(address))
    # gRPC takes what is left of a higher one after division by 65536, and asks, token and all, whoever listens there.
    if found is not None and int(found[1]) > _PORT_LIMIT:
        raise SettingError(f"address is {address!r}; the highest port is {_PORT_LIMIT}: mend it", field="address")


def _credentials(**options: Unpack[AccessOptions]) -> grpc.ChannelCredentials | None:
    made, ca = options.get("credentials"), options.get("ca")
    certificate, key = options.get("certificate"), options.get("key")
    tls = options.get("tls", False)
    given = [name for name, path in (("ca", ca), ("certificate", certificate), ("key", key)) if path is not None]
    if made is not None:
        if tls or given:
            raise SettingError(
                f"credentials is set beside {', '.join(['tls'] * tls + given)}; give one or the other",
                field="credentials",
            )
        return made
    if not tls:
        if given:
            raise SettingError(f"{given[0]} is set and tls is not; set it too (tls=True, --tls)", field="tls")
        return None
    if (certificate is None) != (key is None):
        raise SettingError("certificate and key go together; set both or neither", field="certificate")
    return grpc.ssl_channel_credentials(
        root_certificates=None if ca is None else _pem("ca", ca, "CERTIFICATE"),
        private_key=None if key is None else _pem("key", key, "PRIVATE KEY"),
        certificate_chain=None if certificate is None else _pem("certificate", certificate, "CERTIFICATE"),
    )


def _pem(name: str, path: str | Path, label: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as cause:
        raise SettingError(
            f"{name} is {str(path)!r}, which cannot be read: {cause.strerror}; name a file that you may read",
            field=name,
        ) from cause
    if b"-----BEGIN " not in data or label.encode() not in data:
        raise SettingError(
            f"{name} is {str(path)!r}, which holds no PEM block of a {label.lower()}; name the file that does",
            field=name,
        )
    return data


def is_on_this_machine(address: str) -> bool:
    """Whether a gRPC target surely stays here; what cannot be told does not."""
    scheme, _, rest = address.partition(":")
    match scheme:
        case "unix" | "unix-abstract":
            return True
        case "dns" | "ipv4" | "ipv6":
            target = rest.removeprefix("///")
        case _:
            target = address
    host = unquote(target)
    if not host.endswith("]") and host.count(":") != 0:
        host = host.rpartition(":")[0]
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
