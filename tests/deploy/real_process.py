"""`python -m service` over fakes, in a process of its own, for tests of what stands around it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RealProcess:
    address: str
    """`host:port` of gRPC."""
    metrics: str
    """`host:port` of the metrics page."""


@contextmanager
def real_process(root: Path, **variables: str) -> Iterator[RealProcess]:
    """Run it on free ports, and with these settings, until the block ends, and see it drain."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.fake_process", "0"],
        cwd=root,
        env=without_settings()
        | {
            "PHOSPHENE_BUNDLES": "colours=unused",
            "PHOSPHENE_LISTEN": "127.0.0.1:0",
            "PHOSPHENE_METRICS_LISTEN": "127.0.0.1:0",
        }
        | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        events = (json.loads(line) for line in process.stdout)
        ready = next((event for event in events if event["event"] == "serving"), None)
        assert ready is not None, "the process ended before it served; its reason is on stderr"
        yield RealProcess(address=ready["address"], metrics=ready["metrics"])
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def without_settings() -> dict[str, str]:
    """This process's environment without settings of the service."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PHOSPHENE_")}
