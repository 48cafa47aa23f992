"""The shell example, through reflection, against a real process."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def run(root, photo, server, **variables):
    buf = Path(sys.executable).parent / "buf"
    return subprocess.run(
        ["sh", "examples/clients/shell/explain.sh", str(photo), server],
        cwd=root,
        # Not everybody has a home, where buf keeps what it learns.
        env={**os.environ, "BUF": str(buf), "BUF_CACHE_DIR": str(photo.parent / "buf"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_learns_the_contract_and_explains(root, real_service, photo):
    done = run(root, photo, f"http://{real_service}")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [active["neuron"]["name"]["name"] for active in answer["neurons"]] == ["red", "bright"]
    assert answer["fidelity"]["fvu"] == 0.25


def test_it_tells_a_refusal(root, real_service, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    done = run(root, broken, f"http://{real_service}", TOKEN="s3cret")
    assert done.returncode != 0
    assert "invalid_argument" in done.stderr
    assert "s3cret" not in done.stderr


def test_the_line_for_grpcurl_takes_photos_of_any_size(root, tmp_path):
    """As an argument, which Linux bounds at 128 KiB, an image of more than 96 KiB did not reach the program."""
    block = re.search(r"With grpcurl.*?```\n(.*?)```", (root / "examples/clients/README.md").read_text(), flags=re.S)[1]
    grpcurl = tmp_path / "grpcurl"
    grpcurl.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\ncat > message\n')
    grpcurl.chmod(0o755)
    photo = bytes(range(256)) * 2048
    (tmp_path / "PHOTO").write_bytes(photo)
    done = subprocess.run(
        ["sh", "-euc", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *options, server, method = (tmp_path / "arguments").read_text().splitlines()
    assert options == ["-plaintext", "-d", "@"]
    assert (server, method) == ("127.0.0.1:50051", "phosphene.v1.PhospheneService/Explain")
    assert json.loads((tmp_path / "message").read_text()) == {"image": {"data": base64.b64encode(photo).decode()}}


@pytest.mark.slow
def test_a_guarded_process_answers_those_with_its_token(root, guarded_service, certificate, token_file, photo):
    server, token = f"https://{guarded_service}", token_file.read_text().strip()
    done = run(root, photo, server, CA=str(certificate.chain), TOKEN=token)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["neurons"]) == 2
    done = run(root, photo, server, CA=str(certificate.chain))
    assert done.returncode != 0
    assert "unauthenticated" in done.stderr


def test_wrong_arguments_are_told(root, tmp_path, photo):
    for image, server, said in (
        (tmp_path / "none.png", "http://127.0.0.1:1", "cannot read"),
        (photo, "127.0.0.1:1", "say http://HOST:PORT"),
    ):
        done = run(root, image, server)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
