"""How close does the service come to what its device and its decoders can do? Run it as `make bench-service`.

Phosphene's own serving process, LitServe and Ray Serve serve the same stand-in device (20 ms + 5 ms per image, 16
images at most: 160 images/s at best) one after another, round after round, under the same load. Beside them: a real
encoder, the cache, the time to start, and what decoding large JPEGs at a part of their size does to codes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.environments import PeerMissing, installed
from benchmarks.figures import musts, not_measured
from benchmarks.record import Must, Record
from benchmarks.service_load.bundles import DEIT, TINY_CLIP, make_bundle
from benchmarks.service_load.draft import draft_report
from benchmarks.service_load.figures import FIGURES, compared
from benchmarks.service_load.peers import RaySettings, litserve_settings, ray_settings
from benchmarks.service_load.photos import Size, make_photos
from benchmarks.service_load.processes import redis_server
from benchmarks.service_load.rounds import Opponent, Plan, Rounds
from benchmarks.service_load.servers import Server, ServerSilent, litserve, ray_serve, seconds_to_ready

FOLDER = Path("build/bench/service")
QUICK = Plan(round_count=1, window_s=4.0, one_caller_s=2.0)
FULL = Plan(round_count=3, window_s=8.0, one_caller_s=4.0)

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="make bench-service", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, few settings of the peers: at most 4 minutes")
    parser.add_argument("--without-peers", action="store_true", help="measure Phosphene alone")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    record = Record(name="service")
    photos = make_photos(FOLDER / "photos")
    rounds = Rounds(plan, photos=photos, logs=FOLDER / "logs", say=console.print)
    opponents = [] if options.without_peers else find_opponents(rounds, quick=options.quick)
    for _ in range(plan.round_count):
        bare(rounds, photos)
        rounds.run(opponents)
    beside(rounds, photos)
    record.must |= musts(FIGURES, rounds.samples)
    record.must["wrong or failed answers of Phosphene"] = Must(value=rounds.bad_count, bar=0, sense="<=")
    for line in compared(rounds.samples):
        rounds.remark("comparison without a bar", line)
    for name in not_measured(FIGURES, rounds.samples):
        rounds.remark("not measured", name)
    record.rows += rounds.rows
    record.peers |= {opponent.server.name: installed(opponent.server.python) for opponent in opponents}
    return record.write()


def find_opponents(rounds: Rounds, *, quick: bool) -> list[Opponent]:
    """The peers at their best settings; the quick run tries none and takes those that have been the best.

    Each is met twice. LitServe: with one worker, which keeps one copy of the model on the device as Phosphene does, and
    with its best number of workers, each of which keeps its own. Ray Serve: as its guide writes a batched model, and at
    its best with threads and several batches at a time.
    """
    opponents = []
    tried = litserve_settings(quick=quick)
    singles = [settings for settings in tried if settings.worker_count == 1]
    several = [settings for settings in tried if settings.worker_count > 1]
    if single := best_of(rounds, singles, litserve, "small", quick=quick):
        opponents.append(Opponent(server=single, name="litserve-single", has_overload=True))
    if best := best_of(rounds, several, litserve, "large", quick=quick):
        opponents.append(Opponent(server=best, name="litserve", sizes=("small", "large"), has_overload=True))
    if guide := best_of(rounds, [RaySettings(has_thread=False)], ray_serve, "small", quick=True):
        opponents.append(Opponent(server=guide, name="ray-guide"))
    if ray := best_of(rounds, ray_settings(quick=quick), ray_serve, "small", quick=quick):
        opponents.append(Opponent(server=ray, name="ray", sizes=("small", "large")))
    return opponents


def best_of(
    rounds: Rounds, tried: Sequence[Any], server: Callable[[Any], Server], size: Size, *, quick: bool
) -> Server | None:
    """The fastest of some settings at 32 callers; None where the peer is missing."""
    try:
        servers = [server(settings) for settings in tried]
    except PeerMissing as missing:
        console.print(f"[yellow]missing[/] {server.__name__}: {missing}")
        return None
    return servers[0] if quick else max(servers, key=lambda one: rounds.trial(one, size))


def bare(rounds: Rounds, photos: Path, bundle: Path | None = None) -> None:
    """Measure what decoding, and the engine of a bundle, cost with nothing around them."""
    arguments = (str(photos), str(rounds.plan.one_caller_s), *([] if bundle is None else [str(bundle)]))
    command = (sys.executable, "-m", "benchmarks.service_load.bare", *arguments)
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name, value in found.items():
        rounds.samples.add(name if bundle is None else f"real.{name}", value)


def beside(rounds: Rounds, photos: Path) -> None:
    """Measure what has no peer: Redis, the real encoder, drafting, the start; what cannot be had is said."""
    small, large = [[path.read_bytes() for path in sorted((photos / size).iterdir())] for size in ("small", "large")]
    clip = make_bundle(TINY_CLIP, FOLDER / "tiny-clip", small)
    for _ in range(rounds.plan.round_count):
        rounds.samples.add("cold_start_s", seconds_to_ready(clip, logs=FOLDER / "logs"))
    try:
        with redis_server(FOLDER / "logs" / "redis.log") as url:
            rounds.redis(url)
    except (FileNotFoundError, ServerSilent) as reason:
        console.print(f"[yellow]missing[/] Redis: {reason}")
    if not DEIT.encoder.is_dir():
        console.print(f"[yellow]missing[/] real encoder: no {DEIT.encoder}")
        return
    deit = make_bundle(DEIT, FOLDER / "deit", small)
    rounds.remark(f"draft decoding, {DEIT.encoder.name}", draft_report(deit, large))
    for _ in range(rounds.plan.round_count):
        bare(rounds, photos, deit)
        rounds.real_encoder(deit)


if __name__ == "__main__":
    sys.exit(main())
