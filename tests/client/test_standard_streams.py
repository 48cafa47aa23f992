"""Standard output that is closed, full or read no further: a line on standard error, never a traceback."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse

from phosphene.client import Client
from phosphene.client.command import main
from phosphene.v1.models_pb2 import ListModelsResponse
from tests.client.fake_service import FakeService
from tests.client.sample_answers import drawing

FULL = "phosphene: standard output cannot be written: No space left on device; make room, or send it elsewhere\n"


class Full(io.StringIO):
    """A stream on a full disk: what is written fails when it is flushed, or at once where nothing is held back."""

    def __init__(self, *, holds_back: bool) -> None:
        super().__init__()
        self._holds_back = holds_back

    def write(self, text: str) -> int:
        return len(text) if self._holds_back else self._fail()

    def flush(self) -> None:
        self._fail()

    def _fail(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ran(arguments: str, redirection: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m phosphene.client {arguments} {redirection}"
    # As a shell has it: otherwise nothing would be held back, to fail when the process ends.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, **variables},
    )


@pytest.mark.parametrize("verb", ["models", "models --json", "explain-images {photo} --in-flight 1"])
def test_a_full_output_is_told(service: FakeService, tmp_path: Path, verb: str) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(drawing("crimson", "circle"))
    done = ran(f"{verb.format(photo=photo)} --server {service.address}", "> /dev/full")
    assert done.stderr == FULL
    assert done.returncode == 1


def test_a_closed_output_is_told_before_anything_is_asked(service: FakeService) -> None:
    done = ran(f"models --server {service.address}", ">&-")
    assert done.stderr.startswith("phosphene: standard output is closed")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1
    assert not service.requests


def test_closed_standard_error_is_no_failure(service: FakeService) -> None:
    assert ran(f"models --server {service.address}", "> /dev/null 2>&-").returncode == 0
    assert ran(f"neuron 999 --server {service.address}", "2>&-").returncode == 1


def test_tables_that_are_read_no_further_are_no_failure(service: FakeService) -> None:
    # More than a pipe holds, so that the reader goes while the tables are written.
    done = ran(f"neurons --top 1000 --server {service.address}", "| head -c 1 > /dev/null")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("holds_back", [True, False])
@pytest.mark.parametrize("words", [["--help"], ["explain", "-h"]])
def test_help_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, capsys, words, holds_back: bool) -> None:
    monkeypatch.setattr(sys, "stdout", Full(holds_back=holds_back))
    with pytest.raises(SystemExit, match="1"):
        main(words)
    assert capsys.readouterr().err == FULL


def test_help_into_a_file_that_may_not_grow_is_told(tmp_path: Path) -> None:
    # Python ignores the signal that comes with it; a shell in its place would not.
    program = (
        "import resource, sys; from phosphene.client.command import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); main(['--help'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "help.txt").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, env=environment
        )
    assert done.stderr == (
        "phosphene: standard output cannot be written: File too large; make room, or send it elsewhere\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize(("redirection", "status"), [(">&-", 1), ("| head -n 1 > /dev/null", 0)])
def test_help_that_nobody_reads(redirection: str, status: int) -> None:
    done = ran("explain --help", redirection)
    assert done.returncode == status
    assert done.stderr.count("\n") == status
    assert "standard output is closed" in done.stderr or status == 0


def test_what_is_typed_wrong_is_told_first_where_output_is_closed_too() -> None:
    done = ran("explain", ">&-")
    assert done.returncode == 2
    assert "one of the arguments" in done.stderr


def test_answers_that_cannot_be_written_are_told_wherever_main_writes_them(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "stdout", Full(holds_back=True))
    assert main(["models", "--json", "--server", service.address]) == 1
    assert capsys.readouterr().err == FULL


@pytest.mark.parametrize(("arguments", "status"), [("neuron", 2), ("neuron 999", 1), ("models", 0)])
def test_standard_error_that_is_full_changes_no_status(service: FakeService, arguments: str, status: int) -> None:
    assert ran(f"{arguments} --server {service.address}", "2> /dev/full").returncode == status


def test_an_interrupt_while_the_answer_is_written_is_no_traceback(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unread(io.StringIO):
        """A pipe whose reader takes its time."""

        def flush(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Unread())
    for words in (["models"], ["models", "--json"]):
        try:
            status = main([*words, "--server", service.address])
        except KeyboardInterrupt:
            pytest.fail("the interrupt would end in a traceback")
        assert status == 130


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_utf_8_in_any_locale(service: FakeService, tmp_path: Path, encoding: str) -> None:
    service.model.bundle = "Fußgänger 歩行者"
    done = ran(f"models --json --server {service.address}", f"> {tmp_path / 'models'}", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    said = (tmp_path / "models").read_text(encoding="utf-8")
    with Client(service.address) as client:
        assert list(Parse(said, ListModelsResponse()).models) == client.models()


def test_a_name_that_is_not_utf_8_can_be_read_back_from_json(service: FakeService, tmp_path: Path, capsys) -> None:
    odd = tmp_path / "caf\udce9.jpg"
    odd.write_bytes(drawing("crimson", "circle"))
    assert main(["explain-images", str(odd), "--json-lines", "--server", service.address]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(odd)
