"""What `push` refuses of what was typed, before it opens an index or asks Qdrant."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.__main__ import main

PUSH = ("push", "no/such/index", "--qdrant", "http://127.0.0.1:1", "--collection", "scenes")


@pytest.mark.parametrize("key", [b"\xff\xfe", "sésame".encode(), b"", b"one\ntwo"])
def test_a_file_without_a_key_is_named_and_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: bytes
) -> None:
    pytest.importorskip("qdrant_client")
    path = tmp_path / "key"
    path.write_bytes(key)
    assert main([*PUSH, "--api-key-file", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: --api-key-file '{path}' does not hold one key, printable ASCII characters on one line\n"
    )


@pytest.mark.parametrize("typed", ["-2", "0", "1.5", "86401", "soon"])
def test_a_call_may_take_a_second_to_a_day(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*PUSH, "--timeout-s", typed])
    assert f"{typed!r} is not a whole number of seconds from 1 to 86400 (a day)" in capsys.readouterr().err
