"""CSV and Parquet lists of images: a column of paths, labels and captions if any, the rest kept as text."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from phosphene.corpus_storage import LocalFolder, Storage
from phosphene.errors import CorpusError

__all__ = ["ListedImage", "read_list"]

_PATH_COLUMNS = ("file", "path", "uri", "image")
_WORD_COLUMNS = ("label", "caption")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """What a folder, a list or a tar says about one image."""

    uri: str
    label: str | None = None
    caption: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def read_list(storage: Storage, name: str) -> Iterator[ListedImage]:
    """Yield the images of a list; errors come once it has been read to its end.

    Args:
        storage: the folder that the list lies in and that its paths are relative to.
        name: a .csv (UTF-8, with a header) or .parquet file.

    Raises:
        CorpusError: no column of paths, a malformed row, or listed files that are not there; all bad rows in one.
    """
    is_parquet = PurePosixPath(name).suffix.lower() == ".parquet"
    records = _parquet_records(storage, name) if is_parquet else _csv_records(storage, name)
    faults: list[str] = []
    for place, record in records:
        path = record.pop(_path_column(record, name)) or ""
        uri = _relative(path, storage)
        if uri is None:
            faults.append(f"{place}: {path!r} is no path relative to the list")
        elif isinstance(storage, LocalFolder) and storage.size(uri) is None:
            faults.append(f"{place}: no file {path!r}")
        else:
            label, caption = record.pop("label", None), record.pop("caption", None)
            extra = {column: text for column, text in record.items() if text is not None}
            yield ListedImage(uri=uri, label=label or None, caption=caption or None, extra=extra)
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + (f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")
        raise CorpusError(f"{len(faults)} rows of list {name!r} name no image: {shown}. Mend or remove these rows")


def _csv_records(storage: Storage, name: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    try:
        with io.TextIOWrapper(storage.open(name), encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text, strict=True)
            columns = _columns(next(lines, []), name)
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    raise CorpusError(
                        f"list {name!r} has {len(cells)} cells in line {lines.line_num}, its header {len(columns)}: "
                        "mend the line (a comma inside of a cell needs double quotes around the cell)"
                    )
                yield f"line {lines.line_num}", {column: cell for column, cell in zip(columns, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"list {name!r} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise CorpusError(f"list {name!r} is no CSV file ({error}); save it as comma-separated text") from error
    except OSError as error:
        raise CorpusError(f"list {name!r} cannot be read: {error.strerror or error}") from error


def _parquet_records(storage: Storage, name: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    import pyarrow as pa  # Loaded for Parquet alone: it costs more to import than most lists to read.
    import pyarrow.parquet as pq

    try:
        with storage.open(name) as stream, pq.ParquetFile(stream) as file:
            columns = _columns(file.schema_arrow.names, name)
            kept = [_is_scalar(pa, kind) for kind in file.schema_arrow.types]
            if not kept[columns.index(_path_column(dict.fromkeys(columns), name))]:
                raise CorpusError(
                    f"list {name!r} holds its images as {file.schema_arrow}; paths are text: write a column file"
                )
            place = 0
            for batch in file.iter_batches(
                columns=[n for n, keep in zip(file.schema_arrow.names, kept, strict=True) if keep]
            ):
                names = [column.strip().lower() for column in batch.schema.names]
                texts = [_texts(pa, values, n, place, name) for n, values in zip(names, batch.columns, strict=True)]
                for cells in zip(*texts, strict=True):
                    yield f"row {place}", dict(zip(names, cells, strict=True))
                    place += 1
    except pa.ArrowException as error:
        raise CorpusError(f"list {name!r} is no Parquet file ({error}); write it anew") from error
    except OSError as error:
        raise CorpusError(f"list {name!r} cannot be read: {error.strerror or error}") from error


def _texts(pa: Any, values: Any, column: str, first: int, name: str) -> list[str | None]:
    """Return a column of a batch, whose first row is row `first` of the list; NaN is no label and no caption."""
    try:
        cells = values.to_pylist()
    except (ValueError, OverflowError, LookupError):
        cells = [
            _cell(pa, value, f"row {row}, column {column!r} of list {name!r}")
            for row, value in enumerate(values, first)
        ]
    if column in _WORD_COLUMNS:
        cells = [cell if cell == cell else None for cell in cells]
    return [None if cell is None else str(cell) for cell in cells]


def _cell(pa: Any, value: Any, place: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (ValueError, OverflowError, LookupError):
        return _time(pa, value)


def _time(pa: Any, value: Any) -> str:
    """Write a time that no value of Python holds, exactly: in UTC; as a number with its unit where no clock goes."""
    kind = value.type
    if pa.types.is_timestamp(kind) and kind.tz:
        value = value.cast(pa.timestamp(kind.unit, "UTC"))
    text = str(value.cast(pa.string()).as_py())
    is_number = pa.types.is_duration(kind) or "out of range" in text
    return f"{value.value} {value.type}" if is_number else text


def _is_scalar(pa: Any, kind: Any) -> bool:
    types = pa.types
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _columns(header: list[str], name: str) -> list[str]:
    columns = [column.strip().lower() for column in header]
    _path_column(dict.fromkeys(columns), name)
    if len(set(columns)) < len(columns):
        raise CorpusError(f"list {name!r} has the columns {', '.join(columns)}; give each a name of its own")
    return columns


def _path_column(record: Mapping[str, Any], name: str) -> str:
    for column in _PATH_COLUMNS:
        if column in record:
            return column
    raise CorpusError(
        f"list {name!r} has no column of paths: it has {', '.join(record) or 'none'}; name one of them "
        f"{', '.join(_PATH_COLUMNS[:-1])} or {_PATH_COLUMNS[-1]}"
    )


def _relative(path: str, storage: Storage) -> str | None:
    """Return a listed path relative to the list's folder, None where it is empty, a URL or elsewhere."""
    if not path or "://" in path or "\0" in path:
        return None
    if posixpath.isabs(path):
        if not isinstance(storage, LocalFolder):
            return None
        if not PurePosixPath(path).is_relative_to(storage.root):
            # The root is where the folder really lies; a link may have led there.
            path = posixpath.join(posixpath.realpath(posixpath.dirname(path)), posixpath.basename(path))
        if not PurePosixPath(path).is_relative_to(storage.root):
            return None
        path = str(PurePosixPath(path).relative_to(storage.root))
    return posixpath.normpath(path)
