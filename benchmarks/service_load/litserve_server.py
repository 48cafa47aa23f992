"""LitServe with the stand-in device, as its documentation serves an image model: base64 in JSON, Pillow, batches.

    python -m benchmarks.service_load.litserve_server PORT DEVICE_FILE SETTINGS

Runs in LitServe's environment; SETTINGS is a JSON object with the fields of `peers.LitServeSettings`.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

import litserve as ls
import numpy as np
from PIL import Image

from benchmarks.service_load.device import BATCH_LIMIT, SIZE_PX, StandInDevice


class ImageApi(ls.LitAPI):
    """One image in, its ten neurons out."""

    def __init__(self, device_file: str, **options: Any) -> None:
        """Keep the file of the device; each worker opens it for itself."""
        super().__init__(**options)
        self._device_file = device_file

    def setup(self, device: str) -> None:
        """Open the device."""
        self._stand_in = StandInDevice(self._device_file)

    def decode_request(self, request: dict[str, str]) -> Any:
        """Decode and resize one image."""
        picture = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    def batch(self, inputs: Sequence[Any]) -> Any:
        """Stack the pixels."""
        return np.stack(inputs)

    def predict(self, x: Any) -> list[tuple[int, ...]]:
        """Run the device."""
        return self._stand_in.run(x)

    def unbatch(self, output: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """One answer for each image."""
        return output

    def encode_response(self, output: tuple[int, ...]) -> dict[str, list[float]]:
        """Neurons and activations."""
        return {"neuron_ids": list(output), "activations": [float(value) for value in range(len(output), 0, -1)]}


def main() -> int:
    """Serve until told to stop."""
    port, device_file, settings = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    api = ImageApi(device_file, max_batch_size=BATCH_LIMIT, batch_timeout=settings["batch_timeout_s"])
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=settings["worker_count"],
        timeout=False,
        fast_queue=settings["has_fast_queue"],
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=settings["api_server_count"],
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
