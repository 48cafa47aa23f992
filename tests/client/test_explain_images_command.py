"""`phosphene explain-images`, through main(): lines, order of files, exit status, what goes where."""

import errno
import io
import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from rich.console import Console

from phosphene.client import Client
from phosphene.client.bulk import Tally, explain_files, image_files
from phosphene.client.command import main
from phosphene.client.image_lines import text_line
from phosphene.v1.explain_pb2 import ExplainPart, ExplainResponse
from tests.client.fake_service import Break, Failure, FakeService
from tests.client.sample_answers import drawing, explanation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in two folders, and a text."""
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a.jpg", "b.PNG", "deep/c.jpeg", "deep/d.webp", "e.jpg")):
        (tmp_path / name).write_bytes(drawing("crimson", "circle", seed=number))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_explained_line_by_line(service: FakeService, folder: Path, capsys) -> None:
    assert main(["explain-images", str(folder), "--server", service.address, "--top", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    names = ["a.jpg", "b.PNG", "deep/c.jpeg", "deep/d.webp", "e.jpg"]
    assert sorted(line.partition(":")[0] for line in lines) == sorted(str(folder / name) for name in names)
    assert all("goldenrod things" in line for line in lines)
    assert err == "phosphene: 5 of 5 images explained\n"
    request = service.messages[0].explain
    assert (list(request.parts), request.top_n) == (
        [ExplainPart.EXPLAIN_PART_FIDELITY, ExplainPart.EXPLAIN_PART_NEURONS],
        2,
    )


def test_json_lines_are_answers_and_errors(service: FakeService, folder: Path, capsys) -> None:
    arguments = [str(folder / "a.jpg"), str(folder / "notes.txt"), "--json-lines", "--parts", "code"]
    assert main(["explain-images", *arguments, "--server", service.address]) == 1
    out, err = capsys.readouterr()
    said = {Path(line["image"]).name: line for line in map(json.loads, out.splitlines())}
    assert ParseDict(said["a.jpg"]["explanation"], ExplainResponse()).neurons
    assert said["notes.txt"]["error"] == {"kind": "InputError", "message": "not an image"}
    assert err == "phosphene: 1 of 2 images explained, 1 failed\n"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("fidelity", "FVU 0.0820"),
        ("scores", "scores: red 24.1, circle 23.1, striped 22.1, <b>big</b> 21.1"),
        ("code", "code of 2 neurons"),
        ("patch_activations", "640 × 480 pixels"),
        ("neurons", "no neuron fires"),
        ("neurons,fidelity,scores", "no neuron fires; scores: red 24.1, circle 23.1, striped 22.1, <b>big</b> 21.1"),
        ("nearest_neurons,similar_images", "nearest neurons: none; similar images: none"),
    ],
)
def test_a_line_says_what_was_asked_for(parts: str, said: str) -> None:
    answer = explanation(neuron_count=0)
    answer.ClearField("nearest_neurons")
    answer.ClearField("similar_images")
    answer.code.neuron_ids.extend([3, 5])
    answer.image.width, answer.image.height, answer.fidelity.fvu = 640, 480, 0.082
    assert text_line(Path("q.png"), answer, parts.split(",")) == f"q.png: {said}"


def test_neurons_are_missed_only_where_they_were_asked_for(service: FakeService, folder: Path, capsys) -> None:
    assert main(["explain-images", str(folder / "a.jpg"), "--parts", "scores", "--server", service.address]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'a.jpg'}: scores: red 24.1, circle 23.1")


@pytest.mark.parametrize("closed", [".", "deep"])
def test_a_folder_that_cannot_be_listed_is_named(
    service: FakeService, folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    real = os.scandir

    def scandir(path: str | Path):
        if Path(path) == folder / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["explain-images", str(folder), "--server", service.address]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"cannot be listed: '{folder / closed}' (Permission denied); make them readable" in err
    assert not service.requests


def test_an_image_that_may_not_be_reached_has_its_line(
    service: FakeService, folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path == folder / "b.PNG":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert main(["explain-images", str(folder), "--server", service.address]) == 1
    out, err = capsys.readouterr()
    assert "b.PNG: ImageUnreadable: " in out
    assert "4 of 5 images explained, 1 failed" in err


def test_digests_go_first_where_that_is_asked(service: FakeService, folder: Path) -> None:
    service.known = set()
    assert main(["explain-images", str(folder / "a.jpg"), "--digest-first", "--server", service.address]) == 0
    assert [message.explain.image.WhichOneof("source") for message in service.messages] == ["sha256", "data"]
    assert main(["explain", str(folder / "a.jpg"), "--digest-first", "--server", service.address]) == 0
    asked = [request.image.WhichOneof("source") for request in service.requests if hasattr(request, "image")]
    assert asked == ["sha256", "data"]


def test_a_call_that_fails_says_how_far_it_came(service: FakeService, folder: Path, capsys) -> None:
    service.breaks.append(Break(2, Failure(grpc.StatusCode.INTERNAL, "see r-7")))
    assert main(["explain-images", str(folder), "--server", service.address]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "INTERNAL: see r-7" in err
    assert err.endswith("phosphene: 2 of 5 images explained, 3 not answered\n")


def test_a_terminal_shows_how_far_it_is(service: FakeService, folder: Path) -> None:
    screen, lines = io.StringIO(), []
    files, tally = image_files([folder]), Tally(image_count=5)
    with Client(service.address) as client:
        progress = Console(file=screen, force_terminal=True, width=80)
        explain_files(client, files, tally, write_line=lines.append, as_json=False, progress=progress)
    assert "5/5" in screen.getvalue()
    assert len(lines) == tally.explained_count == 5


def test_a_reader_that_goes_away_is_no_failure(service: FakeService, folder: Path) -> None:
    arguments = f"explain-images {folder} --in-flight 1 --server {service.address}"
    command = f"{sys.executable} -m phosphene.client {arguments} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_texts_from_outside_stay_on_their_line(service: FakeService, folder: Path, capsys) -> None:
    service.item_failures = {0: deque([Failure(grpc.StatusCode.INVALID_ARGUMENT, "\x1b[31mred\n\nand more")])}
    assert main(["explain-images", str(folder / "a.jpg"), "--server", service.address]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such"], "'no/such' does not exist"),
        (["a" * 300], "a' cannot be read: File name too long; give files or folders that you may read"),
        (["{empty}"], "holds no file that ends in .jpeg, .jpg, .png, .webp"),
        ([], "the following arguments are required: PATH"),
        (["x.jpg", "--in-flight", "0"], "'0' is not a whole number from 1 to 1000"),
        (["{a}", "x.jpg"], "'x.jpg' does not exist"),
        (["{a}", "--token-file", "no/such"], "the token file 'no/such' cannot be read"),
        (["{a}", "--parts", "latents"], "unknown part 'latents'"),
    ],
)
def test_what_is_typed_wrong_asks_nothing(
    service: FakeService, folder: Path, capsys, arguments: list[str], said: str
) -> None:
    (folder / "empty").mkdir()
    typed = [word.format(empty=folder / "empty", a=folder / "a.jpg") for word in arguments]
    try:
        status = main(["explain-images", *typed, "--server", service.address])
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert said in err
    assert not service.requests
