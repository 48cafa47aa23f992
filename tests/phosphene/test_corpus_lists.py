"""Parquet lists whose further columns hold what Python's own types do not."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phosphene.corpus import open_corpus
from phosphene.errors import CorpusError
from tests.phosphene.test_corpus import put


def listed(folder: Path, column: pa.Array, *, name: str = "taken") -> Path:
    names = [f"{row}.jpg" for row in range(len(column))]
    put(folder, dict.fromkeys(names, b""))
    pq.write_table(pa.table({"file": names, name: column}), folder / "l.parquet")
    return folder / "l.parquet"


def broken_text(*texts: bytes) -> pa.Array:
    return pa.array(texts, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (
            pa.array([1, 1000, None], pa.timestamp("ns")),
            ["1970-01-01 00:00:00.000000001", "1970-01-01 00:00:00.000001", None],
        ),
        (
            pa.array([1, 1000], pa.timestamp("ns", "Europe/Berlin")),
            ["1970-01-01 00:00:00.000000001Z", "1970-01-01 01:00:00.000001+01:00"],
        ),
        (pa.array([1_234_567], pa.timestamp("us", "Mars/Base")), ["1970-01-01 00:00:01.234567Z"]),
        (pa.array([2**40, 2**62], pa.timestamp("ms")), ["2004-11-03 19:53:47.776000", f"{2**62} timestamp[ms]"]),
        (pa.array([1, 86_400 * 10**9], pa.duration("ns")), ["1 duration[ns]", "1 day, 0:00:00"]),
        (pa.array([10**18], pa.duration("s")), ["1000000000000000000 duration[s]"]),
        (pa.array([1, 1000], pa.time64("ns")), ["00:00:00.000000001", "00:00:00.000001"]),
        (pa.array([1, 10**7], pa.date32()), ["1970-01-02", "29349-01-26"]),
    ],
)
def test_times_beyond_those_of_python_are_kept_exactly(tmp_path, column, texts):
    corpus = open_corpus(str(listed(tmp_path, column)))
    assert [row.extra.get("taken") for row in corpus.rows] == texts


def test_times_within_those_of_python_read_as_ever(tmp_path):
    time = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    for value in (
        time,
        time.replace(tzinfo=datetime.UTC),
        time.date(),
        time.time(),
        time - datetime.datetime(2020, 1, 1),
    ):
        (row,) = open_corpus(str(listed(tmp_path, pa.array([value])))).rows
        assert row.extra["taken"] == str(value)


def test_text_that_is_not_utf8_is_refused_by_row_and_column(tmp_path):
    with pytest.raises(
        CorpusError, match=r"row 1, column 'taken' of list 'l\.parquet' is not UTF-8 .*; save it as UTF-8"
    ):
        open_corpus(str(listed(tmp_path, broken_text(b"ok", b"\xff"))))


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16()])
@pytest.mark.parametrize("name", ["label", "caption"])
def test_nan_is_no_label_and_no_caption(tmp_path, kind, name):
    path = listed(tmp_path, pa.array([1.5, float("nan"), None], pa.float64()).cast(kind), name=name)
    assert [getattr(row, name) for row in open_corpus(str(path)).rows] == ["1.5", None, None]


def test_nan_is_a_value_elsewhere(tmp_path):
    (row,) = open_corpus(str(listed(tmp_path, pa.array([float("nan")])))).rows
    assert row.extra == {"taken": "nan"}
