"""What decoding and the bare engine cost, in a process of its own and with nothing around them.

    python -m benchmarks.service_load.bare PHOTOS SECONDS [BUNDLE]

Prints one JSON object: per image, the processor time of decoding and of the engine, and the median time of a decode.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import phosphene
from benchmarks.service_load.device import BATCH_LIMIT, batch_s
from benchmarks.service_load.photos import PREPROCESSING
from phosphene.images import PreparedImage, prepare
from phosphene.pipeline import Pipeline

_ENGINE_THREADS = 1


def main() -> int:
    """Measure, and print."""
    photos = [path.read_bytes() for path in sorted((Path(sys.argv[1]) / "small").iterdir())]
    measure_s = float(sys.argv[2])
    pipeline = phosphene.open_bundle(sys.argv[3], thread_count=_ENGINE_THREADS) if len(sys.argv) > 3 else None
    decode = pipeline.prepare if pipeline is not None else lambda data: prepare(data, PREPROCESSING)
    found = decode_cost(photos, decode, measure_s) | {
        "paced_decode_p50_s": paced_decode_p50_s(photos, decode, measure_s),
        "ceiling_decode_cpu_s": ceiling_decode_cpu_s(photos, decode, measure_s),
    }
    if pipeline is not None:
        found["engine_cpu_s"] = engine_cpu_s(pipeline, [decode(photo) for photo in photos], measure_s)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def decode_cost(
    photos: Sequence[bytes], decode: Callable[[bytes], PreparedImage], measure_s: float
) -> dict[str, float]:
    """Decode photo after photo; the first round warms."""
    for photo in photos:
        decode(photo)
    walls_s: list[float] = []
    end_s, cpu_before_s = time.monotonic() + measure_s, time.process_time()
    for photo in cycle(photos):
        begun_s = time.monotonic()
        if begun_s >= end_s:
            break
        decode(photo)
        walls_s.append(time.monotonic() - begun_s)
    cpu_s = time.process_time() - cpu_before_s
    return {"decode_cpu_s": cpu_s / len(walls_s), "decode_p50_s": statistics.median(walls_s)}


def paced_decode_p50_s(photos: Sequence[bytes], decode: Callable[[bytes], PreparedImage], measure_s: float) -> float:
    """The median time of a decode that comes once in a batch of one image: what a pause costs is no server's doing."""
    walls_s: list[float] = []
    end_s = time.monotonic() + measure_s
    for photo in cycle(photos):
        # The pause is what is measured with: caches cool down while a device has the image before.
        time.sleep(batch_s(1))
        begun_s = time.monotonic()
        if begun_s >= end_s:
            return statistics.median(walls_s)
        decode(photo)
        walls_s.append(time.monotonic() - begun_s)
    raise ValueError("there are no photos")


def ceiling_decode_cpu_s(photos: Sequence[bytes], decode: Callable[[bytes], PreparedImage], measure_s: float) -> float:
    """Processor seconds per decode where photos come as each decode worker gets them at the device's ceiling.

    That is its part of a batch one photo after another, once in every full batch's time: when the device answers one
    batch, its callers ask the next. After the pause caches are cold, whoever serves; the pauses are not counted.
    """
    burst_photos = max(1, BATCH_LIMIT // (os.cpu_count() or 1))
    endless = cycle(photos)
    begun_s, burst_count = time.monotonic(), 0
    cpu_before_s = time.process_time()
    while not burst_count or burst_count * batch_s(BATCH_LIMIT) < measure_s:
        for photo in islice(endless, burst_photos):
            decode(photo)
        burst_count += 1
        time.sleep(max(0.0, begun_s + burst_count * batch_s(BATCH_LIMIT) - time.monotonic()))
    return (time.process_time() - cpu_before_s) / (burst_count * burst_photos)


def engine_cpu_s(pipeline: Pipeline, images: Sequence[PreparedImage], measure_s: float) -> float:
    """Processor seconds per image of full batches, one after another."""
    endless = cycle(images)
    pipeline.run(list(islice(endless, BATCH_LIMIT)))
    image_count = 0
    end_s, cpu_before_s = time.monotonic() + measure_s, time.process_time()
    while time.monotonic() < end_s:
        image_count += len(pipeline.run(list(islice(endless, BATCH_LIMIT))).codes)
    return (time.process_time() - cpu_before_s) / image_count


if __name__ == "__main__":
    sys.exit(main())
