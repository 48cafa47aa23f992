"""Standard output that is closed, full or read no further: a line on standard error, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_service import FakeService
from tests.client.sample_answers import drawing


def ran(arguments: str, redirection: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m phosphene.client {arguments} {redirection}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("verb", ["models", "models --json", "explain-images {photo} --in-flight 1"])
def test_a_full_output_is_told(service: FakeService, tmp_path: Path, verb: str) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(drawing("crimson", "circle"))
    done = ran(f"{verb.format(photo=photo)} --server {service.address}", "> /dev/full")
    assert done.stderr == (
        "phosphene: standard output cannot be written: No space left on device; make room, or send it elsewhere\n"
    )
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
