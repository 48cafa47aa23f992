"""`phosphene explain-images`: many images, one line each as they are ready; asks through `Client.explain_images`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phosphene.client.image_lines import json_line, text_line
from phosphene.client.options import ExplainImagesOptions
from phosphene.client.paths import kind_of
from phosphene.client.sync import Client
from phosphene.client.words import number
from phosphene.errors import ImageUnreadable
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
        ImageUnreadable: a path does not exist or cannot be reached, or a folder, or one in it, cannot be listed or
            holds no JPEG, PNG or WebP file.
    """
    files: list[Path] = []
    for path in paths:
        try:
            kind = kind_of(path)
        except OSError as error:
            raise ImageUnreadable(
                f"{str(path)!r} cannot be read: {error.strerror}; give files or folders that you may read",
                field="image",
            ) from error
        match kind:
            case "nothing":
                raise ImageUnreadable(
                    f"{str(path)!r} does not exist; give files or folders of JPEG, PNG or WebP files", field="image"
                )
            case "folder":
                files += _files_in(path)
            case _:
                files.append(path)
    return files


def _files_in(folder: Path) -> list[Path]:
    failures: list[OSError] = []
    listed = os.walk(folder, onerror=failures.append)
    found = sorted(path for at, _, names in listed for name in names if _may_be_image(path := Path(at, name)))
    if failures:
        # A walk names the folder that each failure is about.
        said = ", ".join(f"{str(each.filename)!r} ({each.strerror})" for each in failures)
        raise ImageUnreadable(
            f"what these folders hold cannot be listed: {said}; make them readable, or name only what you may read",
            field="image",
        )
    if not found:
        raise ImageUnreadable(
            f"folder {str(folder)!r} holds no file that ends in {', '.join(sorted(_SUFFIXES))}", field="image"
        )
    return found


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() not in _SUFFIXES:
        return False
    try:
        return kind_of(path) == "file"
    except OSError:
        # The line of this file will tell why it cannot be read.
        return True


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
    parts = options["parts"] = tuple(options.get("parts", ())) or ("neurons",)
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
            write_line(json_line(file, outcome) if as_json else text_line(file, outcome, parts))
            speed = shown.tasks[0].speed
            shown.update(task, advance=1, rate=f"{number(speed)} a second" if speed else "")
