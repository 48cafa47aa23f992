"""`phosphene explain-images`, through main(): lines, order of files, exit status, what goes where."""

import io
import json
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
from phosphene.v1.explain_pb2 import ExplainPart, ExplainResponse
from tests.client.fake_service import Break, Failure, FakeService
from tests.client.sample_answers import drawing


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
