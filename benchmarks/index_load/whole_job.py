"""A whole index job: its share of work beside the bare encoder, and its memory; prints one line of JSON.

Each runs in a process of its own:
`python -m benchmarks.index_load.whole_job share IMAGES`: photos of 300 x 200, a DeiT-tiny with random weights.
`python -m benchmarks.index_load.whole_job memory IMAGES`: tiny pictures through a stand-in encoder, in shards of 2,000.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from index.ahead import blocks_ahead
from index.build import BuildJob, build_index
from index.plan import IndexConfig
from index.progress import LineProgress
from phosphene.bundle import save_bundle
from phosphene.codes import CodeLimits
from phosphene.corpus import open_corpus
from phosphene.encoder import Family, load_encoder
from phosphene.freed_memory import keep_freed_memory
from phosphene.pipeline import open_bundle
from phosphene.sae import SparseAutoencoder
from phosphene.selection import TopK
from phosphene.site import Site, Tokens
from tests.families import save_model, write_encoder

__all__ = ["memory", "share", "write_photos"]

_BATCH = 32
_TURN = 8 * _BATCH
_MEMORY_SHARD = 2_000
_DISTINCT_PICTURES = 64


def write_photos(folder: Path, count: int, *, size: tuple[int, int], quality: int) -> None:
    """Write JPEGs with the detail of photos: smooth shades, edges and grain; a comment makes each file another one."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(min(count, _DISTINCT_PICTURES)):
        shades = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = generator.normal(0, 8, (size[1], size[0], 3))
        pictures.append(Image.fromarray(np.clip(np.asarray(shades) + grain, 0, 255).astype(np.uint8)))
    for number in range(count):
        stream = io.BytesIO()
        pictures[number % len(pictures)].save(stream, "JPEG", quality=quality, comment=str(number).encode())
        (folder / f"{number:07d}.jpg").write_bytes(stream.getvalue())


def share(bundle: Path, photos: Path, out: Path) -> dict[str, float]:
    """CPU-seconds of a job, and of bare encoders that take turns with it, in processes of their own.

    One is as anybody would run it; the other keeps the memory that it frees, as the job does. The machine's pace drifts
    within minutes: after every few batches the job waits for the others to do as many images.
    """
    context = multiprocessing.get_context("spawn")
    turns = _Turns()
    for name, keeps_memory in (("bare_cpu_s", False), ("kept_bare_cpu_s", True)):
        ours, theirs = context.Pipe()
        context.Process(target=bare, args=(bundle, photos, theirs, keeps_memory), daemon=True).start()
        ours.recv()  # It has loaded the bundle, which is no part of its figure.
        turns.add(name, ours)
    keep_freed_memory()  # As `python -m index` does.
    before_s = time.process_time()
    config = IndexConfig(batch_images=_BATCH, thread_count=1)
    build_index(BuildJob(corpus=str(photos), bundle=bundle, out=out, config=config), turns)
    return {"job_cpu_s": time.process_time() - before_s, **turns.cpu_s}


class _Turns(LineProgress):
    """A job's progress, which lets bare encoders do what the job has just done."""

    def __init__(self) -> None:
        super().__init__(sys.stderr.write)
        self._others: dict[str, Connection] = {}
        self._is_encoding = False
        self._seen = self._waiting = self._image_count = 0
        self.cpu_s: dict[str, float] = {}

    def add(self, name: str, connection: Connection) -> None:
        self._others[name], self.cpu_s[name] = connection, 0.0

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        super().begin(title, total, done, unit)
        self._is_encoding, self._image_count = title == "encode", total

    def advance(self, count: int) -> None:
        super().advance(count)
        if not self._is_encoding:
            return
        self._waiting += count
        if self._waiting >= _TURN or self._seen + self._waiting == self._image_count:
            for name, connection in self._others.items():
                connection.send(range(self._seen, self._seen + self._waiting))
                self.cpu_s[name] += connection.recv()
            self._seen, self._waiting = self._seen + self._waiting, 0


def bare(bundle: Path, photos: Path, connection: Connection, keeps_memory: bool) -> None:
    """Read, decode and encode rows as they are asked for, and nothing else; answers with CPU-seconds."""
    if keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(1)
    pipeline, corpus = open_bundle(bundle, thread_count=1), open_corpus(str(photos))
    encoder, site = pipeline.engine.encoder, pipeline.bundle.site
    with ThreadPoolExecutor(1) as decoders, torch.inference_mode():
        connection.send(0.0)
        while True:
            asked = connection.recv()
            before_s = time.process_time()
            rows = [range(start, min(start + _BATCH, asked.stop)) for start in range(asked.start, asked.stop, _BATCH)]
            for batch in blocks_ahead(rows, lambda row: pipeline.prepare(corpus.read(row)).pixels, decoders):
                encoder.residuals(torch.from_numpy(np.stack(batch)), site)
            connection.send(time.process_time() - before_s)


def memory(bundle: Path, photos: Path, out: Path) -> dict[str, float]:
    """The most memory that the process of a job ever had, in bytes."""
    keep_freed_memory()  # As `python -m index` does.
    config = IndexConfig(shard_image_count=_MEMORY_SHARD, batch_images=_BATCH, thread_count=1, top_count=32)
    build_index(BuildJob(corpus=str(photos), bundle=bundle, out=out, config=config), LineProgress(sys.stderr.write))
    # Not ru_maxrss: it begins with the memory of whoever started this process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"peak_bytes": next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024}


def _write_bundle(folder: Path, source: Path, *, neuron_count: int, active: int) -> Path:
    encoder = load_encoder(source)
    site = Site(block=encoder.spec.block_count - 1, tokens=Tokens.CLS)
    width = encoder.site_width(site)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(neuron_count, width, generator=generator), dim=1)
    sae = SparseAutoencoder(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(neuron_count),
        directions=directions,
        decoder_bias=torch.zeros(width),
        selection=TopK(active),
    )
    target = folder / "bundle"
    save_bundle(target, encoder=encoder, encoder_source=source, site=site, sae=sae, limits=CodeLimits(), training={})
    return target


def _deit_tiny(folder: Path) -> Path:
    transformers.set_seed(0)
    config = transformers.DeiTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=10
    )
    save_model(folder / "deit", transformers.DeiTForImageClassificationWithTeacher(config), image_px=224)
    return folder / "deit"


def main() -> None:
    """Do one of them once and say what it took."""
    what, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="build/bench") as scratch:
        folder = Path(scratch)
        if what == "memory":
            bundle = _write_bundle(folder, write_encoder(folder / "small", Family.CLIP), neuron_count=1_024, active=16)
            write_photos(folder / "photos", count, size=(24, 24), quality=50)
            answer = memory(bundle, folder / "photos", folder / "index")
        else:
            bundle = _write_bundle(folder, _deit_tiny(folder), neuron_count=16_384, active=32)
            write_photos(folder / "photos", count, size=(300, 200), quality=90)
            answer = share(bundle, folder / "photos", folder / "index")
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
