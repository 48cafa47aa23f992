"""A real redis-server on a free port of loopback, without a disk, and what listens to a store in tests."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
from dataclasses import dataclass, field

import pytest
import redis

_BINARY = shutil.which("redis-server")


@dataclass
class RedisServer:
    """One server; may be stopped and started again on its port."""

    port: int
    process: subprocess.Popen | None = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        self.process = subprocess.Popen(
            [_BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        self.stop()
        raise RuntimeError("".join(said))

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    @contextlib.contextmanager
    def client(self, password=None):
        with redis.Redis(port=self.port, password=password, socket_timeout=10) as client:
            yield client

    def run(self, *words):
        """One command, as an operator types it."""
        with self.client() as client:
            return client.execute_command(*words)


@contextlib.contextmanager
def running_redis():
    """A server until left; skips the test where there is no redis-server."""
    if _BINARY is None:
        pytest.skip("no redis-server on the PATH: install Debian's package of that name to run the tests of Redis")
    server = RedisServer(port=free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Recorder:
    """What caches and stores tell, and a way to await what they will tell."""

    results: list = field(default_factory=list)
    states: list = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def cache_result(self, result):
        self.results.append(result)

    def circuit_changed(self, state):
        self.states.append(state)
        self.told.set()

    async def state(self, wanted):
        """Return when the circuit is in that state; the bound is against hanging."""
        async with asyncio.timeout(20):
            while not self.states or self.states[-1] != wanted:
                self.told.clear()
                await self.told.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
