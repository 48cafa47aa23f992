"""A service in a process of its own: its addresses, its log as it comes, its end."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.settings import ListenAddress

_HANG_S = 60
VARIABLES = {
    "PHOSPHENE_BUNDLES": "colours=unused",
    "PHOSPHENE_LISTEN": "127.0.0.1:0",
    "PHOSPHENE_METRICS_LISTEN": "127.0.0.1:0",
    "PHOSPHENE_ADMIN_LISTEN": "127.0.0.1:0",
    "PHOSPHENE_DECODE_WORKERS": "1",
}


@dataclass
class OwnProcess:
    """The process; its log is read from the moment it starts, so that it never waits for a reader."""

    child: asyncio.subprocess.Process
    keeps_all: bool = False
    """Whether the lines of answered requests are kept, too."""
    raw: list[bytes] = field(default_factory=list)
    """The lines of its log."""
    events: list[str] = field(default_factory=list)
    """What those lines tell of."""
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def pid(self):
        return self.child.pid

    async def line(self, event, occurrence=1):
        """The line that tells of an event, once it has come so often."""
        async with asyncio.timeout(_HANG_S), self.heard:
            await self.heard.wait_for(lambda: self.events.count(event) >= occurrence or "" in self.events)
        lines = [raw for raw, told in zip(self.raw, self.events, strict=True) if told == event]
        assert len(lines) >= occurrence, self.raw
        return json.loads(lines[occurrence - 1])

    async def addresses(self):
        """Where it answers, shows metrics, and takes orders."""
        ready = await self.line("serving")
        return tuple(_address(ready[name]) for name in ("address", "metrics", "admin"))

    async def end(self):
        """Wait for its end; its exit status."""
        async with asyncio.timeout(_HANG_S):
            return await self.child.wait()

    async def listen(self):
        while data := await self.child.stdout.readline():
            event = json.loads(data)["event"]
            if self.keeps_all or event != "answered":
                await self._tell(data, event)
        await self._tell(b"", "")

    async def _tell(self, data, event):
        async with self.heard:
            self.raw.append(data)
            self.events.append(event)
            self.heard.notify_all()


@asynccontextmanager
async def own_process(*arguments, module="tests.service.world_process", keeps_all=False, **variables):
    """Start a service; it is killed on leaving unless it has ended."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PHOSPHENE_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        env=environment | VARIABLES | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        limit=2**24,
    )
    process = OwnProcess(child, keeps_all)
    listening = asyncio.create_task(process.listen())
    try:
        yield process
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await listening


def _address(text):
    host, _, port = text.rpartition(":")
    return ListenAddress(host=host, port=int(port))
