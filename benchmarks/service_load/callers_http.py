"""Asks a peer over HTTP; runs in the peers' environments."""

from __future__ import annotations

import base64
from types import TracebackType
from typing import Literal, Self

import aiohttp

from benchmarks.service_load.load import Ended
from benchmarks.service_load.photo_requests import Requests

__all__ = ["HttpCallers"]

_REFUSALS = (429, 503)


class HttpCallers:
    """Callers with as many connections as they need; an async context manager."""

    def __init__(self, address: str, *, body: Literal["base64", "raw"]) -> None:
        """Prepare.

        Args:
            address: host:port.
            body: a JSON object with the image in base64 (LitServe's idiom), or the image itself (Ray Serve's).
        """
        self._url = f"http://{address}/predict"
        self._body = body
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def __aenter__(self) -> Self:
        """Connections open when they are needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close them."""
        await self._session.close()

    async def ask(self, requests: Requests, deadline_s: float, serial: int) -> Ended:
        """Send one request and judge its answer."""
        data = requests.data(serial)
        content = {"data": data} if self._body == "raw" else {"json": {"image": base64.b64encode(data).decode()}}
        limit = aiohttp.ClientTimeout(total=deadline_s)
        try:
            async with self._session.post(self._url, timeout=limit, **content) as response:
                if response.status != 200:
                    return "refused" if response.status in _REFUSALS else "failed"
                neuron_ids = tuple((await response.json())["neuron_ids"])
        except TimeoutError:
            return "expired"
        except aiohttp.ClientError:
            return "failed"
        return "answered" if requests.is_right(serial, neuron_ids) else "wrong"
