"""What is written of images is read back, whatever it is and however it is cut into shards: properties."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.image_table import ImageRecord, ImageTable, read_quarantined, write_digests
from index.shards import Shards
from index.thumbnails import ThumbnailStore, write_thumbnails
from phosphene.codes import ImageCode
from tests.index.shard_folders import image_record, write_shards

NO_CODE = ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
# Few, and two of them with the same first 8 bytes, which are the key of the search by digest.
DIGESTS = ["a" * 64, "a" * 16 + "b" * 48, "0" * 64, "f" * 64, "7" * 64]


@st.composite
def image_records(draw: st.DrawFn) -> list[ImageRecord]:
    records = []
    for row in range(draw(st.integers(1, 12))):
        is_quarantined = draw(st.booleans()) if row else False
        record = image_record(
            row,
            uri=draw(st.text(min_size=1)),
            sha256=draw(st.sampled_from(DIGESTS if not is_quarantined else [*DIGESTS, ""])),
            byte_count=draw(st.integers(0, 2**63 - 1)),
            width=draw(st.integers(0, 2**31 - 1)),
            height=draw(st.integers(0, 2**31 - 1)),
            label=draw(st.none() | st.text()),
            caption=draw(st.none() | st.text()),
            extra=draw(st.none() | st.text()),
            fvu=None if is_quarantined else draw(st.floats(0, 2.0**100, width=32)),
            quarantine_reason=draw(st.text(min_size=1)) if is_quarantined else None,
        )
        records.append(record)
    return records


def _shards(folder: Path, records: Sequence[ImageRecord], size: int) -> Shards:
    return write_shards(folder, [NO_CODE] * len(records), neuron_count=2, size=size, records=records)


@settings(deadline=None, max_examples=60)
@given(image_records(), st.integers(1, 12))
def test_rows_of_the_image_table(
    tmp_path_factory: pytest.TempPathFactory, records: list[ImageRecord], size: int
) -> None:
    folder = tmp_path_factory.mktemp("images")
    shards = _shards(folder, records, size)
    write_digests(folder, shards)
    table = ImageTable(folder, shards)
    assert [table.record(row) for row in range(table.row_count)] == records
    assert [table.fvu(row) for row in range(table.row_count)] == [record.fvu for record in records]
    for name in vars(records[0]):
        assert table.column(name) == [getattr(record, name) for record in records]
    good = [record for record in records if record.quarantine_reason is None]
    assert np.flatnonzero(table.readable).tolist() == [record.row for record in good]
    seen: set[str] = set()
    for record in good:
        assert bool(table.first_rows()[record.row]) is (record.sha256 not in seen)
        seen.add(record.sha256)
    for digest in DIGESTS:
        assert list(table.rows_of(digest)) == [record.row for record in good if record.sha256 == digest]
        assert table.rows_with([digest]).tolist() == [record.row for record in records if record.sha256 == digest]
    assert table.names_every_image()
    assert [table.rows_that_differ(shard) for shard in shards] == [[] for _ in shards]
    bad = [(record.row, record.uri, record.quarantine_reason) for record in records if record.quarantine_reason]
    assert [row for shard in shards for row in read_quarantined(shard.folder)] == bad


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20), st.integers(1, 20), st.randoms())
def test_thumbnails(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], size: int, chance: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("thumbnails")
    shards = _shards(folder, [image_record(row) for row in range(len(pictures))], size)
    for shard in shards:
        write_thumbnails(shard.folder, pictures[shard.rows.start : shard.rows.stop])
    store = ThumbnailStore(shards)
    for row in chance.choices(range(len(pictures)), k=40):
        assert store.thumbnail(row) == pictures[row]
    for shard in shards:
        own = pictures[shard.rows.start : shard.rows.stop]
        offsets = np.load(shard.folder / "thumbnails" / "offsets.npy")
        assert offsets.tolist() == [sum(map(len, own[:place])) for place in range(len(own) + 1)]
        assert (shard.folder / "thumbnails" / "pictures.jpegs").read_bytes() == b"".join(own)
