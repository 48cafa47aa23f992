"""The Python examples: each against a real process, and both against refusals, tokens and TLS."""

import subprocess
import sys

import grpc
import pytest

from examples.clients.python import explain, explain_async
from examples.clients.python.connection import Connection
from tests.client.fake_service import Failure
from tests.examples.scripted_service import full

PROGRAMS = [explain, explain_async]


def ask(program, photo, service, *options):
    return program.main([str(photo), "--server", service.address, "--timeout", "10", *map(str, options)])


def run(root, module, *arguments):
    command = [sys.executable, "-m", f"examples.clients.python.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)


def test_the_waiting_client_against_a_real_process(root, real_service, photo):
    done = run(root, "explain", photo, "--server", real_service)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0\t0.98\tred", "3\t0.353\tbright", "unexplained variance: 0.25"]


def test_the_asyncio_client_against_a_real_process(root, real_service, photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    done = run(root, "explain_async", photo, broken, photo, "--server", real_service, "--at-once", 2)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["photo.png: red, bright"] * 2
    assert done.stderr.startswith("broken.png: INVALID_ARGUMENT: ")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_service_is_asked_again_when_it_says_so(program, service, photo):
    service.failures.append(full(0.4))
    assert ask(program, photo, service) == 0
    first_s, second_s = service.remaining_s
    assert first_s - second_s >= 0.39  # one deadline for both, and the wait between them


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (full(30), "RESOURCE_EXHAUSTED"),  # longer than the deadline
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED"),  # too large a message stays too large
        (Failure(grpc.StatusCode.INTERNAL), "INTERNAL"),
    ],
)
def test_what_a_repeat_cannot_mend_is_told_at_once(program, failure, code, service, photo, capsys):
    service.failures.append(failure)
    assert ask(program, photo, service) == 1
    assert code in capsys.readouterr().err
    assert len(service.requests) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_leaving_replica_is_asked_again_but_not_for_ever(program, service, photo):
    service.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    assert ask(program, photo, service) == 0
    service.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 9)
    assert ask(program, photo, service) == 1
    assert len(service.requests) == 2 + 4


@pytest.mark.parametrize("program", PROGRAMS)
def test_tls_and_token(program, tls_service, certificate, token_file, photo):
    assert ask(program, photo, tls_service, "--ca", certificate.chain, "--token-file", token_file) == 0
    assert tls_service.metadata[-1]["authorization"] == "Bearer s3cret"


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_guarded_real_process_answers_those_with_its_token(
    program, guarded_service, certificate, token_file, photo, capsys
):
    options = [str(photo), "--server", guarded_service, "--ca", str(certificate.chain)]
    assert program.main([*options, "--token-file", str(token_file)]) == 0
    assert program.main(options) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_certificate_that_nobody_vouches_for_is_refused(program, tls_service, photo):
    assert ask(program, photo, tls_service, "--tls", "--timeout", "2") == 1
    assert not tls_service.requests


def test_a_token_does_not_leave_the_machine_in_the_clear():
    with pytest.raises(ValueError, match="in the clear"):
        Connection(target="phosphene.example:50051", token="s3cret")
    assert Connection(target="phosphene.example:50051", token="s3cret", has_tls=True).metadata


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ca", "nowhere.pem"], "nowhere.pem"),
        (["--token-file", "nowhere.token"], "nowhere.token"),
        (["--server", "phosphene.example:50051", "--token-file", __file__], "in the clear"),
    ],
)
def test_wrong_options_are_told_without_a_traceback(program, options, said, service, photo, capsys):
    with pytest.raises(SystemExit) as left:
        ask(program, photo, service, *options)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert not service.requests


def test_a_file_that_is_not_there_harms_no_other(service, photo, capsys):
    with pytest.raises(SystemExit):
        ask(explain, photo.with_name("none.png"), service)
    assert "none.png" in capsys.readouterr().err
    assert explain_async.main([str(photo.with_name("none.png")), str(photo), "--server", service.address]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("none.png: ")
    assert said.out.startswith("photo.png: ")


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_nobody_asks_nothing_at_once(count, photo, capsys):
    with pytest.raises(SystemExit):
        explain_async.main([str(photo), f"--at-once={count}"])
    assert "--at-once" in capsys.readouterr().err
