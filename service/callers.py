"""Who calls: the name behind an API token, or the address where no tokens are asked for; knows no gRPC.

Tokens are compared as digests, in constant time, against every known one, so that neither the time of an answer nor a
copy of the tokens file gives a token away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from phosphene.errors import PermissionDenied, SettingError, Unauthenticated

__all__ = ["Caller", "Callers", "Token", "load_tokens", "peer_address"]

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<digest>[0-9a-f]{64})(?P<admin>\s+admin)?")
_BEARER = re.compile(r"[Bb]earer (?P<token>[\x21-\x7e]{1,512})")


@dataclass(frozen=True, kw_only=True)
class Token:
    """A known token."""

    name: str
    """Who it was given to."""
    digest: bytes
    """SHA-256 of the token."""
    is_admin: bool
    """Whether it opens AdminService."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks."""

    name: str
    """Name of the token, or the address of the peer."""
    is_admin: bool
    """Whether AdminService may be called."""


class Callers:
    """Knows callers by their tokens."""

    def __init__(self, tokens: Sequence[Token] | None) -> None:
        """Know these tokens; None asks for none: everybody who reaches the port is let in."""
        self._tokens = tokens

    def identify(self, authorization: str | None, peer: str) -> Caller:
        """Tell who calls.

        Args:
            authorization: the metadata of that name, `Bearer TOKEN`.
            peer: the other end of the connection as gRPC names it.

        Raises:
            Unauthenticated: tokens are asked for, and this is none that is known.
        """
        if self._tokens is None:
            return Caller(name=peer_address(peer), is_admin=True)
        given = _BEARER.fullmatch(authorization or "")
        digest = hashlib.sha256(given["token"].encode() if given else b"").digest()
        known = [token for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        if given is None or not known:
            raise Unauthenticated(
                "this service asks for a token and was given "
                + ("one that it does not know" if given else "none")
                + "; send metadata `authorization: Bearer TOKEN`"
            )
        return Caller(name=known[0].name, is_admin=known[0].is_admin)

    def identify_admin(self, authorization: str | None, peer: str) -> Caller:
        """Tell who calls AdminService; raises `Unauthenticated`, and `PermissionDenied` for a token without `admin`."""
        caller = self.identify(authorization, peer)
        if not caller.is_admin:
            raise PermissionDenied(
                f"token {caller.name!r} does not open AdminService; mark it `admin` in PHOSPHENE_TOKENS_FILE"
            )
        return caller


def load_tokens(path: Path) -> tuple[Token, ...]:
    """Read a tokens file: one `name sha256-of-token [admin]` a line; empty lines and lines with `#` first do not count.

    Raises:
        SettingError: the file cannot be read, has no token, or lines that are none; never quotes what a line holds.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingError(
            f"PHOSPHENE_TOKENS_FILE is {str(path)!r}, which cannot be read ({cause}); let the user who runs the "
            "service read it, or name another file"
        ) from cause
    tokens: list[Token] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            faults.append(f"line {number} is not `name sha256-of-token [admin]`")
        elif found["name"] in {token.name for token in tokens}:
            faults.append(f"line {number} gives the name {found['name']} again")
        else:
            digest = bytes.fromhex(found["digest"])
            tokens.append(Token(name=found["name"], digest=digest, is_admin=found["admin"] is not None))
    if faults or not tokens:
        raise SettingError(
            f"PHOSPHENE_TOKENS_FILE is {str(path)!r}: {'; '.join(faults) or 'it holds no token'}; make a digest with "
            "`printf %s TOKEN | sha256sum`"
        )
    return tuple(tokens)


def peer_address(peer: str) -> str:
    """The address of gRPC's name of a peer, without the port: every connection of one machine is one caller."""
    kind, _, rest = peer.partition(":")
    match kind:
        case "ipv4":
            return rest.rpartition(":")[0]
        case "ipv6":
            return unquote(rest).rpartition(":")[0].strip("[]")
        case _:
            return kind or "unknown"
