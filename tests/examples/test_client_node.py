"""The Node example: its lockfile, and the program against a real process, refusals, tokens and TLS.

It runs where `npm ci` was typed in its folder; `make test-all` types it in a temporary one.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.scripted_service import full

FOLDER = Path("examples/clients/node")
NO_NETWORK = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT")


@pytest.fixture(scope="module", params=["as it is", pytest.param("npm ci", marks=pytest.mark.slow)])
def program(request, root, tmp_path_factory):
    """The program with its packages."""
    if shutil.which("node") is None:
        pytest.skip("no node on PATH")
    if request.param == "as it is":
        if not (root / FOLDER / "node_modules").is_dir():
            pytest.skip(f"no packages in {FOLDER}; install them with `npm ci` there")
        return root / FOLDER / "explain.js"
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(root / FOLDER, copy / FOLDER, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "proto").mkdir()
    shutil.copy(root / "proto/phosphene_v1.binpb", copy / "proto")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=copy / FOLDER, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and NO_NETWORK.search(done.stderr):
        pytest.skip("npm finds no registry")
    assert done.returncode == 0, done.stderr
    return copy / FOLDER / "explain.js"


def run(program, photo, address, *options):
    command = ["node", str(program), str(photo), "--server", address, "--timeout", "10", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_lockfile_pins_every_package_and_names_no_registry(root):
    asked = json.loads((root / FOLDER / "package.json").read_text())
    locked = json.loads((root / FOLDER / "package-lock.json").read_text())["packages"]
    assert locked[""]["dependencies"] == asked["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in asked["dependencies"].values())
    for name, package in locked.items():
        if name:
            assert package["version"], name
            assert package["integrity"].startswith("sha512-"), name
            assert "resolved" not in package, name
    for name, version in asked["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version


def test_against_a_real_process(program, real_service, photo):
    done = run(program, photo, real_service)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0\t0.980\tred", "3\t0.353\tbright", "unexplained variance: 0.250"]


def test_a_full_service_is_asked_again_when_it_says_so(program, service, photo):
    service.failures.append(full(0.4))
    done = run(program, photo, service.address)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 + 1
    assert [request.top_n for request in service.requests] == [5, 5]
    first_s, second_s = service.remaining_s
    assert first_s - second_s >= 0.4  # one deadline for both, and the wait between them


def test_a_wait_beyond_the_deadline_is_told_at_once(program, service, photo):
    service.failures.append(full(30))
    done = run(program, photo, service.address)
    assert done.returncode == 1
    assert done.stderr == "RESOURCE_EXHAUSTED: full\n"
    assert len(service.requests) == 1


@pytest.mark.slow
def test_a_guarded_real_process_answers_those_with_its_token(program, guarded_service, certificate, token_file, photo):
    done = run(program, photo, guarded_service, "--ca", certificate.chain, "--token-file", token_file)
    assert done.returncode == 0, done.stderr
    done = run(program, photo, guarded_service, "--ca", certificate.chain)
    assert done.returncode == 1
    assert done.stderr.startswith("UNAUTHENTICATED: ")


def test_a_token_does_not_leave_the_machine_in_the_clear(program, photo, token_file):
    done = run(program, photo, "phosphene.example:50051", "--token-file", token_file)
    assert done.returncode == 1
    assert "in the clear" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--ca", "nowhere.pem"], "nowhere.pem"), (["--timeout", "soon"], "soon"), (["--nonsense"], "nonsense")],
)
def test_wrong_options_are_told_in_words(program, photo, options, said):
    done = run(program, photo, "127.0.0.1:1", *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert "undefined" not in done.stderr
