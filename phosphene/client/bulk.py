"""`phosphene explain-images`: many images, one line each as they are ready; asks through `Client.explain_images`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phosphene.client.canonical import json_value
from phosphene.client.options import ExplainImagesOptions
from phosphene.client.sync import Client
from phosphene.client.words import neuron_title, number, plain
from phosphene.errors import ImageUnreadable, PhospheneError
from phosphene.v1.explain_pb2 import ExplainResponse

__all__ = ["Tally", "explain_files", "image_files"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(kw_only=True)
class Tally:
    """What became of the images so far."""

    image_count: int
    """All of them."""
    explained_count: int = 0
    """Those with an explanation."""
    failed_count: int = 0
    """Those with an error."""

    def __str__(self) -> str:
        """Say it in words."""
        unanswered_count = self.image_count - self.explained_count - self.failed_count
        failed = f", {self.failed_count} failed" if self.failed_count else ""
        unanswered = f", {unanswered_count} not answered" if unanswered_count else ""
        return f"{self.explained_count} of {self.image_count} images explained{failed}{unanswered}"


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are named, and those in folders that are named, by suffix and in order of their names.

    Raises:
        ImageUnreadable: a path does not exist, or a folder holds no JPEG, PNG or WebP file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise ImageUnreadable(
                    f"{str(path)!r} does not exist; give files or folders of JPEG, PNG or WebP files", field="image"
                )
            files.append(path)
            continue
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in _SUFFIXES and each.is_file())
        if not found:
            raise ImageUnreadable(
                f"folder {str(path)!r} holds no file that ends in {', '.join(sorted(_SUFFIXES))}", field="image"
            )
        files += found
    return files


def explain_files(
    client: Client,
    files: Sequence[Path],
    tally: Tally,
    *,
    write_line: Callable[[str], None],
    as_json: bool,
    progress: Console | None,
    **options: Unpack[ExplainImagesOptions],
) -> None:
    """Write a line for each file as it is explained, or fails.

    Args:
        client: asks.
        files: what to ask for.
        tally: counted up, so that it holds also where an error is raised.
        write_line: writes a line, which brings no line break of its own.
        as_json: whether each line is a JSON object with `image` and `explanation` or `error`; else it is text.
        progress: where to show how far it is; None: nowhere.
        **options: what to ask.

    Raises:
        PhospheneError: the call failed as a whole.
    """
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    shown = Progress(
        *columns,
        TimeRemainingColumn(),
        console=progress,
        disable=progress is None,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with shown, closing(client.explain_images(files, **options)) as answers:
        task = shown.add_task("", total=len(files), rate="")
        for position, outcome in answers:
            file = files[position]
            match outcome:
                case ExplainResponse():
                    tally.explained_count += 1
                case _:
                    tally.failed_count += 1
            write_line(_json_line(file, outcome) if as_json else _text_line(file, outcome))
            speed = shown.tasks[0].speed
            shown.update(task, advance=1, rate=f"{number(speed)} a second" if speed else "")


def _json_line(file: Path, outcome: ExplainResponse | PhospheneError) -> str:
    said: dict[str, object] = {"image": str(file)}
    match outcome:
        case ExplainResponse():
            said["explanation"] = json_value(outcome)
        case _:
            said["error"] = {"kind": type(outcome).__name__, "message": str(outcome)}
    return json.dumps(said, ensure_ascii=False)


def _text_line(file: Path, outcome: ExplainResponse | PhospheneError) -> str:
    match outcome:
        case ExplainResponse():
            neurons = (f"{neuron_title(each.neuron)} {number(each.activation)}" for each in outcome.neurons)
            return plain(f"{file}: {', '.join(neurons) or 'no neuron fires'}")
        case _:
            return plain(f"{file}: {type(outcome).__name__}: {outcome}")
