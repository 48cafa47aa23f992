"""The main job, end to end: images -> SAE -> index -> service -> one image explained.

    make demo                                    rendered scenes and the embedded tiny CLIP
    make demo ONCE=1                             stop after the explanation
    make demo ENCODER=DIR_OR_ID IMAGES=DIR_OR_CSV [TOKENS=patches] [SAE=SAELENS_FOLDER]

Every step is a command that one could type; it is printed before it runs. A step that is done is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from phosphene.corpus import Corpus, Row, open_corpus
from phosphene.encoder import Tokens, load_encoder
from phosphene.errors import CorpusError, ImageError, PhospheneError
from phosphene.images import read_image
from phosphene.manifest import digest_of

ROOT = Path("build/demo")
ADDRESS = ("127.0.0.1", 50051)
METRICS_ADDRESS = ("127.0.0.1", 9464)

SCENE_COUNT = 3000
SCENE_SIZE_PX = 128
FIRST_SCENE_SEED = 1_000_000
QUERY_SCENE_SEED = 1_900_013

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the demo trains on what."""

    name: str
    """Name of bundle and corpus in the service."""
    encoder: str
    """Local folder or hub id."""
    fit: tuple[str, ...]
    """Options of `python -m training fit` (or `import`) beside corpus, encoder and output."""
    sae: str | None = None
    """A folder in the SAELens layout to serve instead of training one."""
    thread_count: int | None = None
    """CPU threads of encoder and training; None leaves the choice to the commands."""

    @property
    def threads(self) -> tuple[str, ...]:
        """The option that says so."""
        return () if self.thread_count is None else ("--threads", str(self.thread_count))


EMBEDDED = Recipe(
    name="scenes",
    encoder="embedded/tiny-clip",
    fit=("--block", "5", "--tokens", "cls", "--neurons", "128", "--k", "20", "--variant", "topk", "--steps", "1000"),
    thread_count=1,  # the tiny encoder's work is too small to be worth dividing
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns a process exit status."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service never outlives us
    try:
        return run(options)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    except subprocess.CalledProcessError as failure:
        console.print(f"[red]demo: this step failed with status {failure.returncode}; its message is above[/]")
        return 1
    except PhospheneError as error:
        console.print(f"[red]demo: {error}[/]")
        return 2


def run(options: argparse.Namespace) -> int:
    """Make what is missing, serve it, explain one image, and go on serving unless told to stop."""
    if options.images is None:
        recipe, folder = EMBEDDED, ROOT
        corpus, query = render_scenes(folder)
    else:
        recipe = own_recipe(options)
        folder = ROOT / digest_of([recipe.encoder, options.images, *recipe.fit, recipe.sae])[:12]
        corpus, query = hold_one_out(options.images, folder)
    bundle, index = folder / "bundle", folder / "index"
    make_bundle(recipe, corpus, bundle)
    build_index(recipe, corpus, bundle, index)
    with serving(recipe.name, bundle, index, free_ports=False) as (address, metrics):
        explain(address, query, folder)
        console.print(f"\nserving [bold]{address}[/], metrics on http://{metrics}/metrics")
        if options.once:
            return 0
        console.print(f"try:  .venv/bin/phosphene explain {query} --server {address}        stop with Ctrl-C")
        wait_for_interrupt()
    return 0


def render_scenes(folder: Path) -> tuple[str, Path]:
    """Render the corpus, and one scene that is not part of it; returns the corpus's list and that scene."""
    for target, seed, count in (
        (folder / "corpus", FIRST_SCENE_SEED, SCENE_COUNT),
        (folder / "query", QUERY_SCENE_SEED, 1),
    ):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            seeds = ("--first-seed", str(seed), "--count", str(count), "--size", str(SCENE_SIZE_PX))
            step("render", "embedded.scenes", "render", str(target), *seeds)
    return str(folder / "corpus" / "captions.csv"), next((folder / "query" / "images").iterdir())


def own_recipe(options: argparse.Namespace) -> Recipe:
    """Choose settings for an encoder that the demo does not know: second-to-last block, 4 neurons per dimension."""
    fit: tuple[str, ...] = ("--tokens", options.tokens)
    if options.tokens != Tokens.EMBEDDING:
        fit += ("--block", str(max(0, load_encoder(options.encoder).spec.block_count - 2)))
    if options.sae is None:
        fit += ("--expansion", "4", "--k", "16")
    if options.tokens in ("patches", "all"):
        fit += ("--tokens-per-image", "32", "--storage", "float16")
    return Recipe(name="photos", encoder=options.encoder, fit=fit, sae=options.sae)


def hold_one_out(images: str, folder: Path) -> tuple[str, Path]:
    """List all images but one, and copy that one; returns the list and the copy.

    Raises:
        CorpusError: nothing there, fewer than two images, or not plain files.
    """
    corpus = open_corpus(images)
    locked = corpus.unlistable_folders
    in_tars = any(corpus.rows.span(row) is not None for row in range(len(corpus)))
    if len(corpus) - len(locked) < 2 or in_tars or "://" in images:
        raise CorpusError(
            f"the demo needs a folder or a CSV list of at least 2 image files; {corpus.source} is not that"
        )
    if locked:
        console.print(f"left out, for they cannot be listed: {', '.join(locked)}", markup=False)
    held_out, data = _readable(corpus)
    root = Path(images) if Path(images).is_dir() else Path(images).parent
    listing, query = folder / "corpus.csv", folder / "query" / Path(held_out.uri).name
    query.parent.mkdir(parents=True, exist_ok=True)
    query.write_bytes(data)
    with listing.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "label", "caption"))
        for row in corpus.rows:
            if row.row != held_out.row and row.uri not in locked:
                writer.writerow((os.path.relpath(root / row.uri, folder), row.label or "", row.caption or ""))
    return str(listing), query


def _readable(corpus: Corpus) -> tuple[Row, bytes]:
    """Return the first image from the middle of the corpus on that decodes."""
    for row in corpus.rows[len(corpus) // 2 :]:
        with suppress(ImageError, CorpusError):
            data = corpus.read(row.row)
            read_image(data)
            return row, data
    raise CorpusError(f"no image in the second half of {corpus.source} can be read; give images in JPEG, PNG or WebP")


def make_bundle(recipe: Recipe, corpus: str, bundle: Path) -> None:
    """Train an SAE on the corpus, or take in the one that was given."""
    if recipe.sae is None:
        options = (*recipe.fit, *recipe.threads)
        step("train", "training", "fit", corpus, "--encoder", recipe.encoder, *options, "--out", str(bundle))
    else:
        step("import", "training", "import", recipe.sae, "--encoder", recipe.encoder, *recipe.fit, "--out", str(bundle))


def build_index(recipe: Recipe, corpus: str, bundle: Path, index: Path) -> None:
    """Index the corpus for the bundle."""
    step("index", "index", "build", corpus, "--bundle", str(bundle), *recipe.threads, "--out", str(index))


@contextmanager
def serving(
    name: str, bundle: Path, index: Path, *, free_ports: bool, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Run the service until the block ends; gives the addresses of gRPC and of the metrics.

    Args:
        name: what requests call bundle and corpus.
        bundle: folder of the bundle.
        index: folder of its index.
        free_ports: whether the system chooses the ports.
        settings: more variables of the service.

    Raises:
        CalledProcessError: the service ended before it was ready.
    """
    variables = {
        "PHOSPHENE_BUNDLES": f"{name}={bundle}",
        "PHOSPHENE_INDEXES": f"{name}={index}",
        "PHOSPHENE_LISTEN": _address(ADDRESS, free=free_ports),
        "PHOSPHENE_METRICS_LISTEN": _address(METRICS_ADDRESS, free=free_ports),
        **(settings or {}),
    }
    command = [sys.executable, "-m", "service"]
    shown = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
    console.print(f"\n[bold cyan]serve[/]  [dim]{shown} python -m service[/]", soft_wrap=True)
    process = subprocess.Popen(
        ["env", *(f"{key}={value}" for key, value in variables.items()), *command], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines, (bundle.parent / "service.log").open("w", encoding="utf-8") as log:
        drain = threading.Thread(target=shutil.copyfileobj, args=(lines, log), daemon=True)
        try:
            addresses = _wait_until_ready(process, lines)
            drain.start()  # a full pipe would stop the service
            yield addresses
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            if drain.is_alive():
                drain.join()


def explain(address: str, query: Path, folder: Path) -> None:
    """Ask the service about one image through the real client; print, and write JSON and HTML."""
    page, answer = folder / "explanation.html", folder / "explanation.json"
    step("explain", "phosphene.client", "explain", str(query), "--server", address, "--html", str(page))
    arguments = [sys.executable, "-m", "phosphene.client", "explain", str(query), "--server", address, "--json"]
    answer.write_text(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout, encoding="utf-8")
    console.print(f"\nwritten: {answer} and {page}")


def step(title: str, module: str, *arguments: str) -> None:
    """Print a command and run it; its output goes where ours goes."""
    console.print(f"\n[bold cyan]{title}[/]  [dim]python -m {module} {shlex.join(arguments)}[/]", soft_wrap=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def wait_for_interrupt() -> None:
    """Sleep until Ctrl-C or SIGTERM."""
    with suppress(KeyboardInterrupt):
        signal.pause()
    console.print("stopping")


def _wait_until_ready(process: subprocess.Popen[str], lines: Iterable[str]) -> tuple[str, str]:
    for line in lines:
        event = json.loads(line)
        if event.get("event") == "serving":
            return event["address"], event["metrics"]
    raise subprocess.CalledProcessError(process.wait(), "python -m service")


def _address(wanted: tuple[str, int], *, free: bool) -> str:
    host, port = wanted
    if not free:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(wanted)
            except OSError:
                console.print(f"port {port} is in use; taking a free one")
                free = True
    return f"{host}:{0 if free else port}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="stop after the explanation (ONCE=1)")
    parser.add_argument("--encoder", help="local folder or hub id (ENCODER=)")
    parser.add_argument("--images", help="folder or CSV list of images (IMAGES=)")
    parser.add_argument("--sae", help="folder in the SAELens layout (SAE=)")
    parser.add_argument("--tokens", default="cls", help="cls, patches, all, mean or embedding (TOKENS=)")
    options = parser.parse_args(arguments)
    if (options.encoder is None) != (options.images is None):
        parser.error("ENCODER and IMAGES go together: give both, or neither for the embedded default")
    if options.sae is not None and options.encoder is None:
        parser.error("SAE needs ENCODER and IMAGES: an SAE belongs to one encoder")
    return options


if __name__ == "__main__":
    sys.exit(main())
