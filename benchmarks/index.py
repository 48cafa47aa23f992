"""How fast and how small is retrieval, beside its peers, and what does a job cost? Run it as `make bench-index`.

Phosphene, exact and by FAISS, scipy, Seismic and Qdrant's engine index the same codes, synthetic ones and those of real
photos, and answer the same queries on one thread, pass after pass in turn; then the strongest images per neuron beside
torch.topk, nearest neurons beside FAISS, the finishing of whole shards, and whole jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.environments import PeerMissing, installed
from benchmarks.figures import musts, not_measured
from benchmarks.index_load import jobs
from benchmarks.index_load.contestant import DEPTH
from benchmarks.index_load.figures import FIGURES, LARGE, SMALL
from benchmarks.index_load.jobs import JOB_FIGURES, JobPlan, measure_jobs
from benchmarks.index_load.peers import PEERS, python_of
from benchmarks.index_load.photos import PhotosMissing, photo_recipe
from benchmarks.index_load.processes import ContestantFailed, Running
from benchmarks.index_load.reads import READ_FIGURES, measure_reads
from benchmarks.index_load.synthetic import Recipe, dense_neurons, load_rows, write_rows
from benchmarks.record import Record
from benchmarks.samples import Samples

FOLDER = Path("build/bench/index")
_PACKAGE = "benchmarks.index_load"
_RECALL = 0.99
_CHECKED_QUERIES = 10
# Cut of the query and heap factor, as Seismic's guide has them; the fastest that reaches the recall counts.
_SEISMIC = [(cut, factor) for cut in (3, 4, 5, 6, 8, 12, 20, 32) for factor in (0.7, 0.9, 1.0)]

console = Console()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure."""

    round_count: int
    """Passes of everybody over the queries, in turn; a figure is made of their medians."""
    sizes: tuple[tuple[int, tuple[str, ...]], ...]
    """Images, and the peers that search them."""
    streamed: tuple[int, int]
    """Images that are streamed through ours, and through torch.topk."""
    jobs: JobPlan
    """Whole shards and jobs."""
    makes_photos: bool
    """Whether the codes of real photos are made where they are not there."""


QUICK = Plan(
    round_count=3,
    sizes=((SMALL, ("scipy", "seismic")), (LARGE, ("scipy",))),
    streamed=(196_608, 2_048),
    jobs=jobs.QUICK,
    makes_photos=False,
)
FULL = Plan(
    round_count=5,
    sizes=((SMALL, PEERS), (LARGE, ("scipy",))),
    streamed=(1_000_000, 8_192),
    jobs=jobs.FULL,
    makes_photos=True,
)


class Bench:
    """Runs the parts and keeps rows and samples."""

    def __init__(self, record: Record, plan: Plan, with_peers: bool) -> None:
        """Measure into `record`."""
        self.samples = Samples()
        self._record, self._plan, self._with_peers = record, plan, with_peers

    def similar(self) -> None:
        """Similar images, at every size."""
        for image_count, peers in self._plan.sizes:
            recipe = Recipe(image_count=image_count)
            console.print(f"{image_count} images, {recipe.query_count} queries")
            write_rows(recipe, FOLDER)
            self._meet(recipe, peers, with_sketch=image_count == LARGE)

    def photos(self) -> None:
        """Similar images among real photos; skipped, with the reason, where there are none."""
        try:
            recipe = photo_recipe(FOLDER, may_make=self._plan.makes_photos)
        except PhotosMissing as missing:
            self.remark(f"real codes: skipped: {missing}")
            return
        self.remark(f"real codes: {recipe.image_count} photos, {recipe.query_count} others as queries")
        self._meet(recipe, PEERS, with_sketch=True)

    def _meet(self, recipe: Recipe, peers: Sequence[str], *, with_sketch: bool) -> None:
        with ExitStack() as stack:
            ours = stack.enter_context(Running("ours", f"{_PACKAGE}.ours", Path(sys.executable), recipe, FOLDER))
            others = self._peers(peers, recipe, stack) if self._with_peers else []
            if with_sketch:
                module = f"{_PACKAGE}.ours_sketch"
                others.append(stack.enter_context(Running("sketch", module, Path(sys.executable), recipe, FOLDER)))
            self._race(recipe, ours, others)

    def _peers(self, names: Sequence[str], recipe: Recipe, stack: ExitStack) -> list[Running]:
        found = []
        for name in PEERS:
            if name in names:
                try:
                    module, python = f"{_PACKAGE}.peer_{name}", python_of(name)
                    found.append(stack.enter_context(Running(name, module, python, recipe, FOLDER)))
                    self._record.peers[name] = installed(python)
                except (PeerMissing, ContestantFailed) as failure:
                    self.remark(f"missing: {name}: {failure}")
        return found

    def _race(self, recipe: Recipe, ours: Running, others: Sequence[Running]) -> None:
        exact = ours.ask()["rows"]
        equal = equal_to_brute_force(recipe, exact[:_CHECKED_QUERIES])
        self.samples.add("equal_to_brute_force", equal)
        settings: dict[str, dict[str, Any]] = {ours.name: {}}
        for other in others:
            settings[other.name] = self._settings(other, exact)
        passes: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
        for _ in range(self._plan.round_count):
            for running in (ours, *others):
                answer = running.ask(**settings[running.name])
                passes[running.name].append(answer)
                for sample in ("wall_s", "cpu_s"):
                    self.samples.add(f"{recipe.image_count}.{running.name}.{sample}", answer[sample])
        for running in (ours, *others):
            for sample, value in running.built.items():
                self.samples.add(f"{recipe.image_count}.{running.name}.{sample}", value)
            found = recall(passes[running.name][-1]["rows"], exact)
            self.samples.add(f"{recipe.image_count}.{running.name}.recall", found)
            self._row(recipe, running, settings[running.name] or notes(running), found)

    def _settings(self, running: Running, exact: list[list[int]]) -> dict[str, Any]:
        """Those with which a peer is fastest at the recall that is asked of it."""
        if running.name != "seismic":
            return {}
        tried = []
        for cut, factor in _SEISMIC:
            setting = {"query_cut": cut, "heap_factor": factor}
            answer = running.ask(**setting)
            tried.append((recall(answer["rows"], exact), answer["cpu_s"], setting))
        good = [(cpu_s, setting) for found, cpu_s, setting in tried if found >= _RECALL]
        if good:
            return min(good, key=lambda pair: pair[0])[1]
        best, _, setting = max(tried, key=lambda triple: triple[0])
        self.remark(f"seismic reaches a recall of {best:.3f} at most, not {_RECALL}")
        return setting

    def streamed(self) -> None:
        """The strongest images of every neuron."""
        recipe = Recipe(image_count=LARGE)
        folder = write_rows(recipe, FOLDER)
        for who, image_count in zip(("ours", "torch"), self._plan.streamed, strict=True):
            for _ in range(min(3, self._plan.round_count)):
                command = ("streamed", who, str(folder), str(recipe.neuron_count), str(image_count))
                answer = run_once(*command)
                self.samples.add(f"tops.{who}.per_cpu_s", answer["per_cpu_s"])
                self.samples.add(f"tops.{who}.per_s", answer["per_s"])
            self.remark(f"top-100 per neuron, {who}: {self.samples[f'tops.{who}.per_s']:.0f} images/s")

    def neurons(self) -> None:
        """Nearest neurons."""
        for neuron_count, width in ((16_384, 768), (65_536, 1_024)):
            rows = {}
            for _ in range(min(3, self._plan.round_count)):
                for who in ("ours", "faiss"):
                    answer = run_once("directions", who, str(neuron_count), str(width), "100")
                    rows[who] = answer["rows"]
                    for sample in ("wall_s", "cpu_s"):
                        self.samples.add(f"neurons.{neuron_count}.{who}.{sample}", answer[sample])
            same = recall(rows["faiss"], rows["ours"])
            times = {who: self.samples[f"neurons.{neuron_count}.{who}.wall_s"] * 1000 for who in rows}
            self.remark(
                f"nearest neuron, {neuron_count} x {width}: {times['ours']:.2f} ms, FAISS {times['faiss']:.2f} ms, "
                f"{same:.4f} of the answers the same"
            )

    def jobs(self) -> None:
        """Whole shards and whole jobs."""
        codes = write_rows(Recipe(image_count=SMALL), FOLDER)
        measure_jobs(self._plan.jobs, codes, run_once, self.samples, self.remark)

    def reads(self) -> None:
        """Codes and thumbnails of random rows."""
        codes = write_rows(Recipe(image_count=SMALL), FOLDER)
        measure_reads(codes, run_once, self.samples, self.remark, min(3, self._plan.round_count))

    def remark(self, text: str) -> None:
        """Say something, and keep it among the rows."""
        console.print(text)
        self._record.rows.append(
            {"images": "", "who": "", "us": "", "CPU us": "", "recall": "", "B/image": "", "build CPU s": "", "": text}
        )

    def _row(self, recipe: Recipe, running: Running, settings: dict[str, Any], found: float) -> None:
        place = f"{recipe.image_count}.{running.name}"
        row = {
            "images": recipe.image_count,
            "who": running.name,
            "us": self.samples[f"{place}.wall_s"] * 1e6,
            "CPU us": self.samples[f"{place}.cpu_s"] * 1e6,
            "recall": found,
            "B/image": running.built["stored_bytes"] / recipe.image_count,
            "build CPU s": running.built["build_cpu_s"],
            "": " ".join(f"{name}={value}" for name, value in settings.items()),
        }
        self._record.rows.append(row)
        console.print(row)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="make bench-index", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer passes, without Qdrant: a few minutes")
    parser.add_argument("--without-peers", action="store_true", help="measure Phosphene alone")
    options = parser.parse_args(arguments)
    record = Record(name="index")
    bench = Bench(record, QUICK if options.quick else FULL, not options.without_peers)
    bench.similar()
    bench.photos()
    bench.streamed()
    bench.neurons()
    bench.reads()
    bench.jobs()
    figures = (*FIGURES, *READ_FIGURES, *JOB_FIGURES)
    record.must |= musts(figures, bench.samples)
    for name in not_measured(figures, bench.samples):
        bench.remark(f"not measured: {name}")
    return record.write()


def notes(running: Running) -> dict[str, Any]:
    """What an approximate contestant says of itself."""
    names = ("probe_count", "candidate_count", "stated_recall")
    return {name: running.built[name] for name in names if name in running.built}


def recall(found: list[list[int]], exact: list[list[int]]) -> float:
    """Share of the exact answers that were found."""
    hits = sum(len(set(mine) & set(theirs)) for mine, theirs in zip(found, exact, strict=True))
    return hits / sum(len(rows) for rows in exact)


def equal_to_brute_force(recipe: Recipe, found: list[list[int]]) -> float:
    """Share of the first queries whose answer is that of all cosines, ties by row."""
    folder = FOLDER / recipe.name
    images, queries = load_rows(folder, "images"), load_rows(folder, "queries")
    is_dense = dense_neurons(images, recipe)
    kept = images.without(is_dense)
    owners = np.repeat(np.arange(kept.row_count), np.diff(kept.offsets))
    values = kept.values.astype(np.float64)
    norms = np.sqrt(np.bincount(owners, weights=values**2, minlength=kept.row_count))
    equal = 0
    for place, rows in enumerate(found):
        part = queries.part(place, place + 1)
        query = np.zeros(recipe.neuron_count)
        query[part.neuron_ids] = part.values
        products = np.bincount(owners, weights=values * query[kept.neuron_ids], minlength=kept.row_count)
        cosines = products / np.where(norms > 0, norms, 1)
        equal += rows == np.lexsort((np.arange(len(cosines)), -cosines))[:DEPTH].tolist()
    return equal / len(found)


def run_once(module: str, *arguments: str) -> dict[str, Any]:
    """Run a part of ours in a process with one thread; its last line is its answer."""
    command = [sys.executable, "-m", f"{_PACKAGE}.{module}", *arguments]
    answer = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    parsed: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return parsed


if __name__ == "__main__":
    sys.exit(main())
