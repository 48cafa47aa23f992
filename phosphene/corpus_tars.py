"""WebDataset tars: files that share a key are one sample, an image and the .txt, .cls and .json that describe it.

Reads headers and the small describing files, never an image; unpacks nothing.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from phosphene.corpus_lists import ListedImage
from phosphene.corpus_storage import Span, Storage
from phosphene.errors import CorpusError

__all__ = ["TarListing", "scan_tar"]

_TEXT_LIMIT_BYTES = 2**20
_FILE_LIMIT_BYTES = 2**63 - 1
_EXTENSION_LIMIT_BYTES = 2**20
# Headers that extend the next one: tarfile reads what follows them into memory, whatever its size.
_EXTENSIONS = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TarListing:
    """What a tar holds."""

    images: list[tuple[ListedImage, Span]]
    """Its images, in the order of their samples."""
    skipped_counts: Mapping[str, int]
    """What else it holds, folders and the texts of images aside, by why it is left out."""


@dataclass
class _Sample:
    image: Span | None = None
    uri: str = ""
    label: str | None = None
    caption: str | None = None
    described: dict[str, str] = field(default_factory=dict)
    text_count: int = 0


def scan_tar(storage: Storage, name: str, image_suffixes: AbstractSet[str]) -> TarListing:
    """List the images of one tar, and count what else is there.

    Args:
        storage: the folder that the tar lies in.
        name: an uncompressed .tar in it.
        image_suffixes: what the names of images end in, in lower case.

    Raises:
        CorpusError: no plain tar, cut off, a sample with two images, images whose names are not UTF-8, or a description
            that cannot be read.
    """
    samples: dict[str, _Sample] = {}
    skipped: Counter[str] = Counter()
    byte_count = storage.size(name)
    if byte_count is None:
        raise CorpusError(f"tar {name!r} does not exist; name one that does")
    try:
        with storage.open(name) as stream, _open(stream) as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header that it has read
                if member.isdir():
                    continue
                if PurePosixPath(member.name).name.startswith("."):
                    skipped["hidden"] += 1
                    continue
                if not member.isreg():
                    skipped["links, pipes or devices"] += 1
                    continue
                if member.issparse() or member.offset_data + member.size > byte_count:
                    raise CorpusError(f"tar {name!r} is cut off or sparse at {member.name!r}; write it anew")
                if not _add(samples, tar, member, name, image_suffixes):
                    skipped["of other kinds"] += 1
            # tarfile takes a damaged header, or none at all, for the end; the end is a block of zeros.
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise CorpusError(f"tar {name!r} is cut off or damaged at byte {tar.offset}; write it anew")
    except (tarfile.TarError, EOFError) as error:
        raise CorpusError(f"{name!r} is no uncompressed tar ({error}); unpack .gz or .zst, or write it anew") from error
    except OSError as error:
        raise CorpusError(f"tar {name!r} cannot be read: {error.strerror or error}") from error
    if text_count := sum(sample.text_count for sample in samples.values() if sample.image is None):
        skipped["texts without an image"] = text_count
    _refuse_broken_names([sample.uri for sample in samples.values() if sample.image is not None], name)
    images = [(_listed(sample), sample.image) for sample in samples.values() if sample.image is not None]
    return TarListing(images=images, skipped_counts=skipped)


def _open(stream: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape")


class _Header(tarfile.TarInfo):
    """A header, checked as it is read: tarfile follows a negative size backwards, and for ever."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Read one header.

        Raises:
            TarError: it is none, its size is negative, or it extends the next one by more than anybody needs.
        """
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a header has the size {header.size}")
        if header.type in _EXTENSIONS and header.size > _EXTENSION_LIMIT_BYTES:
            raise tarfile.ReadError(
                f"an extended header has {header.size} bytes; the limit is {_EXTENSION_LIMIT_BYTES}"
            )
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        """Read the next header and those that extend it, which have the last word on its size.

        Raises:
            TarError: it is none, cannot be understood, or its file ends before it begins or where none does.
        """
        try:
            header = super().fromtarfile(tar)
        except (ValueError, LookupError, RecursionError) as error:
            raise tarfile.ReadError(f"a header cannot be understood: {error}") from error
        if header.size < 0 or not header.offset_data <= tar.offset <= _FILE_LIMIT_BYTES:
            raise tarfile.ReadError(f"the header of {header.name!r} has the size {header.size}")
        return header


def _add(
    samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, suffixes: AbstractSet[str]
) -> bool:
    """Add a file to its sample; False where it is neither an image nor a text that describes one."""
    folder, slash, base = member.name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    suffix = "." + extension.lower().rpartition(".")[2]
    is_image = suffix in suffixes
    if not is_image and extension not in ("txt", "cls", "json"):
        return False
    sample = samples.setdefault(folder + slash + stem, _Sample())
    if is_image:
        if sample.image is not None:
            raise CorpusError(
                f"tar {name!r} has two images under one key: {sample.uri!r} and {member.name!r}; give each its own key"
            )
        sample.image = Span(file=name, offset=member.offset_data, byte_count=member.size)
        sample.uri = f"{name}/{folder}{slash}{base}"
        return True
    sample.text_count += 1
    text = _text(tar, member, name)
    if suffix == ".txt":
        sample.caption = text
    elif suffix == ".cls":
        sample.label = text
    else:
        sample.described = _described(text, member, name)
    return True


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> str:
    if member.size > _TEXT_LIMIT_BYTES:
        raise CorpusError(
            f"{member.name!r} in tar {name!r} has {member.size} bytes; the limit is {_TEXT_LIMIT_BYTES} for a text"
        )
    stream = tar.extractfile(member)
    assert stream is not None, "a regular file always opens"
    try:
        return stream.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{member.name!r} in tar {name!r} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _described(text: str, member: tarfile.TarInfo, name: str) -> dict[str, str]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{member.name!r} in tar {name!r} is no JSON ({error}); write it anew") from error
    if not isinstance(described, dict):
        raise CorpusError(f"{member.name!r} in tar {name!r} is a {type(described).__name__}; it has to be an object")
    words = {key: str(value) for key, value in described.items() if isinstance(value, str | int | float)}
    broken = [key for key, value in words.items() if not _is_unicode(key + value)]
    if broken:
        raise CorpusError(
            f"{member.name!r} in tar {name!r} has half of a surrogate pair, which is no character, in or under "
            f"{', '.join(map(ascii, broken[:_SHOWN]))}; write it anew"
        )
    return words


def _refuse_broken_names(uris: Sequence[str], name: str) -> None:
    broken = [uri for uri in uris if not _is_unicode(uri)]
    if broken:
        raise CorpusError(
            f"the names of {len(broken)} images in tar {name!r} are not UTF-8: {', '.join(map(ascii, broken[:_SHOWN]))}"
            f"{' and more' if len(broken) > _SHOWN else ''}; rename them"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(sample: _Sample) -> ListedImage:
    described = dict(sample.described)
    label, caption = described.pop("label", None), described.pop("caption", None)
    return ListedImage(
        uri=sample.uri, label=sample.label or label or None, caption=sample.caption or caption or None, extra=described
    )
