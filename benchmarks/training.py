"""How fast and how well does Phosphene train an SAE, beside its peers? Run it as `make bench-training`.

Phosphene, SAELens, dictionary_learning, Overcomplete and sparsify train on the same batches of the same activations,
one after another, each in a process of its own, round after round: samples per second of wall and of processor time,
memory, and what the trained weights explain and find of the known directions that the activations are made of.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.environments import PeerMissing, installed
from benchmarks.record import Record
from benchmarks.training_load.figures import (
    BATCHTOPK_PEERS,
    MAIN,
    RATES,
    SMALL,
    compared,
    musts,
    not_measured,
)
from benchmarks.training_load.known_directions import Recipe
from benchmarks.training_load.peers import PEERS, python_of
from benchmarks.training_load.races import Entry, Races, Shape, Steps, gemm, ours, peer
from training.execution import has_bfloat16

FOLDER = Path("build/bench/training")
THREADS = 2
_JUDGED_STEPS = 1000
RECIPE = Recipe(width=512, training_rows=65_536, held_out_rows=16_384)
RACE = Shape(name=MAIN, recipe=RECIPE, neuron_count=8_192)
BESIDE_PEERS = Shape(name=SMALL, recipe=RECIPE, neuron_count=4_096, batch_rows=256)
WIDE = Shape(
    name="768 x 12288", recipe=Recipe(width=768, training_rows=16_384, held_out_rows=1_024), neuron_count=12_288
)
LARGE = Shape(
    name="1024 x 65536", recipe=Recipe(width=1024, training_rows=8_192, held_out_rows=1_024), neuron_count=65_536
)

console = Console()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure."""

    round_count: int
    """Rounds of the race; a figure is made of their medians."""
    race: Steps
    """Steps of the race."""
    others: tuple[tuple[Shape, Steps], ...]
    """Races at other sizes, one round each."""
    seeds: tuple[int, ...]
    """Phosphene's trainings."""
    small_steps: int
    """Steps of the training beside the peers."""
    rates: tuple[float, ...]
    """Its learning rates."""


QUICK = Plan(
    round_count=1,
    race=Steps(untimed=2, ours=10, peers=4),
    others=((WIDE, Steps(untimed=1, ours=4, peers=2)),),
    seeds=(0,),
    small_steps=200,
    rates=RATES[-1:],
)
FULL = Plan(
    round_count=3,
    race=Steps(untimed=3, ours=40, peers=12),
    others=((WIDE, Steps(untimed=2, ours=20, peers=5)), (LARGE, Steps(untimed=1, ours=6, peers=2))),
    seeds=(0, 1, 2),
    small_steps=_JUDGED_STEPS,
    rates=RATES,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="make bench-training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, one seed, fewer steps: a few minutes")
    parser.add_argument("--without-peers", action="store_true", help="measure Phosphene alone")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    record = Record(name="training")
    races = Races(FOLDER, thread_count=min(THREADS, os.cpu_count() or 1), say=console.print)
    peers = [] if options.without_peers else find_peers(races)
    halves = [ours("batchtopk", "bfloat16"), ours("topk", "bfloat16")] if has_bfloat16(torch.device("cpu")) else []
    entries = [ours(), ours("topk"), *halves, gemm(), *peers]
    for round_number in range(1, plan.round_count + 1):
        races.race(RACE, plan.race, entries, round_number)
    for shape, steps in plan.others:
        races.race(shape, steps, entries, 1)
    train(races, plan, peers, halves[:1])
    record.must |= musts(races.samples)
    for line in compared(races.samples):
        races.remark(line)
    for name in not_measured(races.samples):
        is_lacking = name.startswith("bfloat16") and not halves
        why = "this CPU has no bfloat16" if is_lacking else "a contestant is missing, or the plan is the quick one"
        races.remark(f"not measured ({why}): {name}")
    record.rows += races.rows
    record.peers |= {entry.module.rpartition("peer_")[2]: installed(entry.python) for entry in peers}
    return record.write()


def find_peers(races: Races) -> list[Entry]:
    """The peers that can be had here; sparsify with both of its optimisers for single vectors."""
    found = []
    for name in PEERS:
        try:
            python = python_of(name)
        except PeerMissing as missing:
            races.remark(f"missing: {name}: {missing}")
            continue
        found.append(peer(name, python))
        if name == "sparsify":
            found.append(peer(name, python, "adam"))
    return found


def train(races: Races, plan: Plan, peers: Sequence[Entry], halves: Sequence[Entry]) -> None:
    """Train from start to end: Phosphene with every seed, and beside its peers, which have one seed each."""
    entries = [ours(), *halves]
    races.train(RACE, _JUDGED_STEPS, RATES[-1], [(entry, seed) for entry in entries for seed in plan.seeds])
    # A shorter training has rows and no figure: the bars are for a thousand steps.
    is_judged = plan.small_steps == _JUDGED_STEPS
    small = BESIDE_PEERS if is_judged else replace(BESIDE_PEERS, name=f"{SMALL}, {plan.small_steps} steps")
    for rate in plan.rates:
        trainings = [(ours(), seed) for seed in plan.seeds]
        trainings += [(entry, plan.seeds[0]) for entry in peers if entry.name in BATCHTOPK_PEERS]
        races.train(small, plan.small_steps, rate, trainings)


if __name__ == "__main__":
    sys.exit(main())
