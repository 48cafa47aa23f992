"""`verify` finds contradictions that every digest agrees with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.verify import verify_index
from phosphene.errors import ArtefactDamaged
from phosphene.manifest import FileEntry, Manifest, file_sha256, read_manifest


def seal_again(folder: Path) -> None:
    """Write the digests of what lies there now into the records and the manifest."""
    for record in folder.glob("shards/*/record.json"):
        body = json.loads(record.read_bytes())
        body["files"] = {name: file_sha256(record.parent / name) for name in body["files"]}
        record.write_text(json.dumps(body))
    old = read_manifest(folder)
    files = {name: FileEntry(file_sha256(folder / name), (folder / name).stat().st_size) for name in old.files}
    manifest = Manifest(kind=old.kind, created_by=old.created_by, inputs=old.inputs, config=old.config, files=files)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def _change(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        array = np.load(folder / name)
        change(array)
        np.save(folder / name, array)

    return damage


def _set(place: int, value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[place] = value

    return change


def _swap(one: int, other: int) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[[one, other]] = array[[other, one]]

    return change


def _caption(folder: Path) -> None:
    """Another word of the same length, so that all offsets stay."""
    path = folder / "shards" / "00001" / "image_rows" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"a ', b'"A ')
    path.write_bytes(b"".join(lines))


def _quarantine(folder: Path) -> None:
    path = folder / "quarantine.csv"
    path.write_text(path.read_text().replace("5,0005.png", "6,0006.png"))


def _record(folder: Path) -> None:
    path = folder / "shards" / "00002" / "record.json"
    path.write_text(path.read_text().replace('"rows":[32,40]', '"rows":[0,8]'))


def test_a_sound_index_passes_and_every_shard_is_told(built: Path) -> None:
    told: list[int] = []
    manifest = verify_index(built, advance=told.append)
    assert told == [1, 1, 1]
    assert manifest.kind == "index"


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (_change("shards/00000/codes/offsets.npy", _set(1, 9999)), "00000: codes/offsets.npy does not rise"),
        (_change("shards/00001/codes/neuron_ids.npy", _set(3, 96)), "names neuron 96 of 96"),
        (_change("shards/00001/codes/values.npy", _set(3, 100.0)), "a code is not in order"),
        (_change("shards/00001/codes/values.npy", _set(7, 0.0)), "not above 0"),
        (_change("shards/00001/postings/words.npy", _set(5, 1)), "00001: postings/ is not codes/ turned round"),
        (_change("shards/00002/row_norms.npy", _set(0, 1.0)), "00002: row_norms.npy"),
        (_change("shards/00000/tops/values.npy", _set(2, 3.0)), "00000: tops/"),
        (_change("exemplars/top_values.npy", _set(0, 3.0)), "exemplars/ does not hold what follows"),
        (_change("exemplars/top_rows.npy", _swap(1, 2)), "exemplars/ does not hold what follows"),
        (_change("exemplars/spread_values.npy", _set(3, 3.0)), "exemplars/ does not hold what follows"),
        (_change("exemplars/top_quantiles.npy", _set(1, 0.123)), "exemplars/ does not hold what follows"),
        (_change("digests/rows.npy", _swap(3, 4)), "digests/ does not lead to the rows"),
        (_change("shards/00000/image_rows/offsets.npy", _set(1, 0)), "00000: .*image_rows"),
        (_change("shards/00000/thumbnails/offsets.npy", _set(1, 0)), r"00000: thumbnails/ has one .*\[0"),
        (_caption, r"00001: images\.parquet says something else than image_rows/ of 1 rows, such as 17"),
        (_quarantine, "quarantine.csv lists other rows"),
        (_record, r"record.json is of the rows \[0, 8\]"),
    ],
)
def test_what_digests_agree_with_is_found(
    built: Path, tmp_path: Path, damage: Callable[[Path], None], finding: str
) -> None:
    copy = tmp_path / "index"
    shutil.copytree(built, copy)
    damage(copy)
    seal_again(copy)
    with pytest.raises(ArtefactDamaged, match=finding):
        verify_index(copy, advance=lambda _: None)
