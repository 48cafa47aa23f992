"""A real Prometheus for a test: it scrapes what the test shows, and every scrape is an event to wait for."""

import asyncio
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager

import pytest
import yaml

from tests.deploy.queries import PROMETHEUS

INTERVAL = "250ms"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not on PATH (Debian: apt install prometheus)"
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt install prometheus)"
)


class CountedPage:
    """A page whose every scrape wakes who waits for one."""

    def __init__(self, metrics):
        self._loop = asyncio.get_running_loop()
        self._scraped = asyncio.Event()
        inner = metrics.page

        def page(environ, start_response):
            body = inner(environ, start_response)
            self._loop.call_soon_threadsafe(self._scraped.set)
            return body

        self.page = page

    async def scraped(self):
        """Wait for one more scrape to be answered."""
        self._scraped.clear()
        await asyncio.wait_for(self._scraped.wait(), 30)


class Api:
    """Prometheus' HTTP API."""

    def __init__(self, port):
        self._url = f"http://127.0.0.1:{port}/api/v1"

    async def get(self, path, **parameters):
        """The data of an answer; AssertionError with the reason where there is none."""
        return await asyncio.to_thread(self._get, path, parameters)

    async def query(self, expression):
        """The samples of an instant query."""
        return (await self.get("query", query=expression))["result"]

    def _get(self, path, parameters):
        try:
            with urllib.request.urlopen(
                f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.code} {error.read().decode()}") from None


@asynccontextmanager
async def prometheus(folder, targets):
    """Run Prometheus with the rules of deploy/prometheus over these addresses; its data goes into the folder."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (scrape,) = config["scrape_configs"]
    del scrape["file_sd_configs"]
    scrape["static_configs"] = [{"targets": [str(target) for target in targets]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Api(port)
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait)
