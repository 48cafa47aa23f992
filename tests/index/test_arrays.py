"""Files that are no arrays, or others than are due, end as damage and in no other way."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.arrays import map_array
from index.row_digests import RowDigests, read_digests, write_digests
from phosphene.errors import ArtefactDamaged, ArtefactMissing


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


WHOLE = _npy(np.arange(64, dtype=np.uint8).reshape(2, 32))


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 3), np.float32)])
def test_arrays_come_back_and_cannot_be_written_to(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "a.npy").write_bytes(_npy(array))
    found = map_array(tmp_path / "a.npy", np.float32, 2)
    assert np.array_equal(found, array)
    assert found.shape == array.shape
    assert not found.flags.writeable


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:40],
        WHOLE[:-1],
        b"PK\3\4 a zip, for numpy",
        b"PK\5\6" + bytes(18),
        WHOLE.replace(b"'shape'", b"9shape'"),
        WHOLE.replace(b"|u1", b"|01"),
        WHOLE.replace(b"(2, 32), }" + b" " * 15, b"(2999999999999999, 32), }"),
        _npy(np.array([["a"]], dtype=object)),
    ],
)
def test_what_is_no_array_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ArtefactDamaged, match="build the index again"):
        map_array(tmp_path / "a.npy", np.uint8, 2)


@given(place=st.integers(0, 127), byte=st.integers(0, 255) | st.sampled_from(b"0123456789(){}[]'\",|<"))
def test_a_damaged_header_is_damage_or_no_matter(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.npy"
    path.write_bytes(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
    with suppress(ArtefactDamaged):
        assert map_array(path, np.uint8, 2).size <= 64


def test_digests_of_a_job_in_parts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "digests.npy"
    with pytest.raises(ArtefactMissing, match="index plan"):
        read_digests(path)
    write_digests(path, RowDigests.of(["ab" * 32, ""]))
    assert [*read_digests(path)] == ["ab" * 32, ""]
    assert [each.name for each in tmp_path.iterdir()] == ["digests.npy"]


def test_digests_are_durable_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        "index.row_digests.sync_path",
        lambda path: synced.append((path.name, sorted(each.name for each in tmp_path.iterdir()))),
    )
    write_digests(tmp_path / "digests.npy", RowDigests.of(["ab" * 32]))
    assert synced == [("digests.npy.draft", ["digests.npy.draft"]), (tmp_path.name, ["digests.npy"])]


@pytest.mark.parametrize("content", [b"", WHOLE[:40], _npy(np.zeros((2, 31), np.uint8)), _npy(np.zeros(32, np.uint8))])
def test_damaged_digests_say_which_command_mends_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digests.npy").write_bytes(content)
    with pytest.raises(ArtefactDamaged, match=r"digests\.npy .*plan"):
        read_digests(tmp_path / "digests.npy")
