"""Ray Serve with the stand-in device, as its documentation batches requests: `@serve.batch` over an HTTP body.

    python -m benchmarks.service_load.ray_server PORT DEVICE_FILE SETTINGS

Runs in Ray's environment; SETTINGS is a JSON object with the fields of `peers.RaySettings`.
"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve
from starlette.requests import Request

from benchmarks.service_load.device import BATCH_LIMIT, SIZE_PX, StandInDevice

_OBJECT_STORE_BYTES = 256 * 2**20


def decoded(data: bytes) -> Any:
    """Decode and resize one image."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def deployment(settings: dict[str, Any]) -> Any:
    """The deployment that these settings describe."""

    @serve.deployment(
        num_replicas=settings["replica_count"],
        max_ongoing_requests=settings["ongoing_limit"],
        ray_actor_options={"num_cpus": 0.1},
    )
    class ImageModel:
        """One image in, its ten neurons out."""

        def __init__(self, device_file: str) -> None:
            self._device = StandInDevice(device_file)

        @serve.batch(  # type: ignore[untyped-decorator]
            max_batch_size=BATCH_LIMIT,
            batch_wait_timeout_s=settings["batch_wait_s"],
            max_concurrent_batches=settings["concurrent_batches"],
        )
        async def predict(self, images: list[bytes]) -> list[tuple[int, ...]]:
            if settings["has_thread"]:
                return await asyncio.to_thread(self._run, images)
            return self._run(images)

        def _run(self, images: list[bytes]) -> list[tuple[int, ...]]:
            return self._device.run(np.stack([decoded(image) for image in images]))

        async def __call__(self, request: Request) -> dict[str, list[float]]:
            neuron_ids = await self.predict(await request.body())
            activations = [float(value) for value in range(len(neuron_ids), 0, -1)]
            return {"neuron_ids": list(neuron_ids), "activations": activations}

    return ImageModel


def main() -> int:
    """Serve until told to stop."""
    port, device_file, settings = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1")
    serve.start(
        http_options={"host": "127.0.0.1", "port": port, "access_log": False}, logging_config={"log_level": "WARNING"}
    )
    serve.run(deployment(settings).bind(device_file), name="images", route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
