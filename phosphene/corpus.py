"""A set of images in a fixed order: folder, CSV or Parquet list, WebDataset tars, or any of them behind an fsspec URL.

Listing reads names, labels and captions; the bytes of an image are read one row at a time. Knows nothing of pixels and
imports no torch. What it tells of itself (uris, digest, source) holds no absolute path: the same images in another
place are the same corpus.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from phosphene.corpus_lists import ListedImage, read_list
from phosphene.corpus_rows import PackedRows, Row
from phosphene.corpus_storage import Span, Storage, open_storage
from phosphene.corpus_tars import scan_tar
from phosphene.errors import CorpusError, ImageTooLarge

__all__ = ["Corpus", "Row", "open_corpus"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LIST_SUFFIXES = frozenset({".csv", ".parquet"})
_SHARD_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARD_LIMIT = 1_000_000
_DEFAULT_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Images in order. Safe to share between threads and to send to other processes."""

    rows: PackedRows
    source: str
    """What it was read from, for people: kind and last name, no path."""
    digest: str
    """SHA-256 over (uri, label, caption) of every row in order; see `content_digest` for what the images hold."""
    limit_bytes: int
    storage: Storage = field(repr=False)
    skipped_counts: Mapping[str, int]
    """Files of a folder or of tars that are no images of the corpus, by why they are none; empty for a list, whose rows
    all are."""
    unlistable_folders: tuple[str, ...] = ()
    """Folders within a folder that cannot be listed, each with a slash at its end: rows that are no images."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    @property
    def has_labels(self) -> bool:
        """Whether any image has a label."""
        return any(row.label is not None for row in self.rows)

    @property
    def has_captions(self) -> bool:
        """Whether any image has a caption."""
        return any(row.caption is not None for row in self.rows)

    def read(self, row: int) -> bytes:
        """Read the bytes of one image; never more than one byte beyond the limit.

        Args:
            row: place in the corpus, from 0.

        Raises:
            ImageTooLarge: the file has more than `limit_bytes`.
            CorpusError: the file has gone or cannot be read.
            OSError: this process may open no more files, memory is short, or a remote storage does not answer: nothing
                is said of the file.
        """
        uri = self.rows[row].uri
        span = self.rows.span(row) or Span(file=uri, offset=0, byte_count=None)
        if span.byte_count is not None and span.byte_count > self.limit_bytes:
            raise self._too_large(uri)
        data = self.storage.read(span, self.limit_bytes + 1, shown=uri)
        if len(data) > self.limit_bytes:
            raise self._too_large(uri)
        if span.byte_count is not None and len(data) != span.byte_count:
            raise CorpusError(
                f"{uri!r} holds {len(data)} of {span.byte_count} bytes; the tar has changed: list it anew"
            )
        return data

    def content_digest(self, sha256: Sequence[str]) -> str:
        """Name the corpus with its contents: SHA-256 over `digest` and the digests of its images.

        Args:
            sha256: of each image's bytes, in order and in hexadecimal; empty for one that cannot be read. Fewer than
                there are images name a corpus of which only the first are used.
        """
        whole = hashlib.sha256(self.digest.encode())
        for digest in sha256:
            whole.update(b"\n" + digest.encode())
        return whole.hexdigest()

    def _too_large(self, uri: str) -> ImageTooLarge:
        return ImageTooLarge(
            f"{uri!r} has more than {self.limit_bytes / 2**20:g} MiB; the limit is {self.limit_bytes} bytes; "
            "send a smaller or more strongly compressed file"
        )


def open_corpus(source: str, *, limit_bytes: int = _DEFAULT_LIMIT_BYTES) -> Corpus:
    """List the images of a corpus.

    Args:
        source: one of
            a folder, searched recursively for .jpg, .jpeg, .png and .webp, in the order of the relative paths; the
            label is the first sub-folder; hidden files and `.partial` are left out, links are followed once; a folder
            in it that cannot be listed is a row, which cannot be read, so that what it holds is not missed in silence;
            a folder that has .tar files and no images (what lies in folders there is no part of it), one .tar, or
            `name-{000000..000012}.tar` (WebDataset);
            a .csv or .parquet list with a column file, path, uri or image (relative to the list) and, where there
            are any, label and caption;
            the same as an fsspec URL (`s3://...`, `memory://...`).
        limit_bytes: the largest file that `Corpus.read` returns.

    Raises:
        CorpusError: nothing there, no image in it, or something in it that cannot be understood.
    """
    storage, name = open_storage(source)
    skipped: Mapping[str, int] = {}
    unlistable: Sequence[str] = ()
    suffix = PurePosixPath(name).suffix.lower()
    if _SHARD_RANGE.search(name) and storage.size(name) is None:
        (rows, skipped), kind = _read_tars(storage, _expand_shards(storage, name)), "WebDataset"
    elif not name:
        rows, kind, skipped, unlistable = _read_folder(storage)
    elif suffix == ".tar":
        (rows, skipped), kind = _read_tars(storage, [name]), "WebDataset"
    elif suffix in _LIST_SUFFIXES:
        rows, kind = PackedRows.pack((image, None) for image in read_list(storage, name)), "list"
    else:
        raise CorpusError(
            f"{name!r} is neither a folder nor a .csv, .parquet or .tar file; name the folder that holds the images, "
            "a list of them, or WebDataset tars"
        )
    shown = name or storage.name
    if not rows:
        raise CorpusError(
            f"{kind} {shown!r} holds no image; images end in {', '.join(sorted(IMAGE_SUFFIXES))}: put some there, or "
            "name another source"
        )
    if kind != "folder":
        _refuse_repeats(rows)
    return Corpus(
        rows=rows,
        source=f"{kind} {shown}",
        digest=_digest(rows),
        limit_bytes=limit_bytes,
        storage=storage,
        skipped_counts=skipped,
        unlistable_folders=tuple(unlistable),
    )


def _read_folder(storage: Storage) -> tuple[PackedRows, str, Mapping[str, int], Sequence[str]]:
    listing = storage.files()
    images = [file for file in listing.files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]
    tars = _tars(listing.files, beside_images=bool(images))
    if images and tars:
        raise CorpusError(
            f"folder {storage.name!r} holds {len(images)} images and {len(tars)} tars; it is unclear which are meant: "
            "name the tars (a brace pattern), or a folder with the images alone"
        )
    other_count = len(listing.files) - len(images or tars)
    skipped = Counter(listing.skipped_counts) + Counter({"of other kinds": other_count})
    if tars:  # They lie at the top: what lies deeper is none of the corpus.
        rows, inside = _read_tars(storage, tars)
        return rows, "WebDataset", skipped + inside, ()
    names = sorted([*images, *listing.unlistable])
    rows = PackedRows.pack((ListedImage(uri=name, label=_folder_label(name)), None) for name in names)
    return rows, "folder", skipped, listing.unlistable


def _tars(files: Sequence[str], *, beside_images: bool) -> list[str]:
    """Return the tars at the top; those in capitals where nothing else is an image or a tar."""
    top = [file for file in files if "/" not in file]
    tars = [file for file in top if file.endswith(".tar")]
    return tars if tars or beside_images else [file for file in top if file.lower().endswith(".tar")]


def _folder_label(name: str) -> str | None:
    first, slash, _ = name.partition("/")
    return first if slash and not name.endswith("/") else None


def _expand_shards(storage: Storage, pattern: str) -> list[str]:
    names = [pattern]
    while (match := _SHARD_RANGE.search(names[0])) is not None:
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        if not 0 < (last - first + 1) * len(names) <= _SHARD_LIMIT:
            raise CorpusError(
                f"{pattern!r} names {last - first + 1} x {len(names)} shards; 1 to {_SHARD_LIMIT} are read"
            )
        names = [
            _SHARD_RANGE.sub(f"{number:0{width}d}", name, count=1)
            for name in names
            for number in range(first, last + 1)
        ]
    missing = [name for name in names if storage.size(name) is None]
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(names)} shards of {pattern!r} are missing: {_some(missing)}; fetch them, or name "
            "the range that is there"
        )
    return names


def _read_tars(storage: Storage, names: Sequence[str]) -> tuple[PackedRows, Counter[str]]:
    skipped: Counter[str] = Counter()

    def images() -> Iterator[tuple[ListedImage, Span]]:
        for name in names:
            listing = scan_tar(storage, name, IMAGE_SUFFIXES)
            skipped.update(listing.skipped_counts)
            yield from listing.images

    return PackedRows.pack(images()), skipped


def _refuse_repeats(rows: PackedRows) -> None:
    repeated = rows.repeated_uris()
    if repeated:
        raise CorpusError(
            f"{len(repeated)} images stand there more than once: {_some(repeated)}; keep one row for each image"
        )


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.uri, row.label, row.caption], ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
