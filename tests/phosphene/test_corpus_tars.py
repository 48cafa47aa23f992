"""Tars that are damaged, hostile, or whose names and texts are no Unicode: refused by name, in bounded time."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from phosphene.corpus import open_corpus
from phosphene.errors import CorpusError
from tests.phosphene.test_corpus import put, tar_bytes, uris


def member(name: str, data: bytes = b"", *, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One member as a tar of GNU holds it, whatever its header says of its size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def pax(name: str, fields: dict[str, str]) -> bytes:
    info = tarfile.TarInfo(name)
    info.pax_headers = fields
    return info.tobuf(tarfile.PAX_FORMAT)


END = bytes(2 * tarfile.BLOCKSIZE)


def refused(folder: Path, content: bytes, message: str) -> str:
    put(folder, {"s.tar": content})
    with pytest.raises(CorpusError, match=message) as caught:
        open_corpus(str(folder / "s.tar"))
    return str(caught.value)


class TestHeaders:
    @pytest.mark.parametrize("size", [-1, -512, -1024, -(2**40)])
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"?"])
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_negative_size_ends_the_listing(self, tmp_path, size, kind, place):
        refused(
            tmp_path, member("a.jpg", b"a") * place + member("b.jpg", size=size, kind=kind) + END, r"'s\.tar'.*size"
        )

    @pytest.mark.parametrize("size", ["-1", "-512", "-1536", "-99999999999"])
    def test_so_does_one_in_an_extended_header(self, tmp_path, size):
        refused(tmp_path, member("a.jpg", b"a") + pax("b.jpg", {"size": size}) + END, r"'s\.tar'")

    @pytest.mark.parametrize(
        "content",
        [
            pax(".b.jpg", {"size": str(10**40)}) + END,
            pax("b.jpg", {"GNU.sparse.map": "x"}) + END,
            pax("b.jpg", {"GNU.sparse.size": "x"}) + END,
            pax("b.jpg", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
            member("l", b"name\0", kind=tarfile.GNUTYPE_LONGNAME) * 2000,
        ],
    )
    def test_headers_that_make_no_sense_are_no_fault_of_the_program(self, tmp_path, content):
        refused(tmp_path, member("a.jpg", b"a") + content, r"'s\.tar'")
        refused(tmp_path, content, r"'s\.tar'")

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, b"g", b"X"])
    def test_one_that_would_fill_the_memory_is_refused_unread(self, tmp_path, kind):
        long = member("l", size=2**20 + 1, kind=kind)
        (tmp_path / "s.tar").write_bytes(member("a.jpg", b"a") + long)
        os.truncate(tmp_path / "s.tar", 2**34)  # Sparse: what is read of it would be in memory.
        tracemalloc.start()
        try:
            with pytest.raises(CorpusError, match="an extended header has 1048577 bytes; the limit is 1048576"):
                open_corpus(str(tmp_path / "s.tar"))
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_headers_that_were_read_are_not_kept(self, tmp_path):
        fields = {"comment": "x" * 2**19}
        content = b"".join(pax(f"{number}.txt", fields) for number in range(40)) + member("a.jpg", b"a") + END
        put(tmp_path, {"s.tar": content})
        tracemalloc.start()
        try:
            corpus = open_corpus(str(tmp_path / "s.tar"))
            assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
        finally:
            tracemalloc.stop()
        assert [row.uri for row in corpus.rows] == ["s.tar/a.jpg"]

    def test_an_extended_header_may_give_the_size(self, tmp_path):
        content = pax("ä.jpg", {"size": "3"}) + b"abc" + bytes(509) + member("b.jpg", b"b") + END
        corpus = open_corpus(str(put(tmp_path, {"s.tar": content}) / "s.tar"))
        assert [(row.uri, corpus.read(row.row)) for row in corpus.rows] == [
            ("s.tar/ä.jpg", b"abc"),
            ("s.tar/b.jpg", b"b"),
        ]


class TestNames:
    def test_images_whose_names_are_not_utf8_are_refused_and_named(self, tmp_path):
        content = tar_bytes(
            {"dir/é.jpg": b"", "ü.png": b"", "a.jpg": b""}, format=tarfile.GNU_FORMAT, encoding="latin-1"
        )
        said = refused(tmp_path, content, "the names of 2 images in tar 's.tar' are not UTF-8.*rename them")
        assert r"s.tar/dir/\udce9.jpg" in said

    def test_those_of_other_files_do_not_matter(self, tmp_path):
        names = {"é.md": b"", "é.txt": b"", "a.jpg": b""}
        content = tar_bytes(names, format=tarfile.GNU_FORMAT, encoding="latin-1")
        assert uris(put(tmp_path, {"s.tar": content}) / "s.tar") == ["s.tar/a.jpg"]

    @pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_those_of_all_scripts_are_read(self, tmp_path, form):
        content = tar_bytes({"сад/ö\r\n1.jpg": b""}, format=form, encoding="utf-8")
        assert uris(put(tmp_path, {"s.tar": content}) / "s.tar") == ["s.tar/сад/ö\r\n1.jpg"]


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "field"),
        [
            (r'{"caption": "x \ud83d y"}', "'caption'"),
            (r'{"label": "\udc00"}', "'label'"),
            (r'{"k\ud83d": 1}', r"'k\\ud83d'"),
            (r'{"note": "\ude00\ud83d"}', "'note'"),
        ],
    )
    def test_half_a_character_is_refused_and_named(self, tmp_path, text, field):
        said = refused(tmp_path, tar_bytes({"a.jpg": b"", "a.json": text.encode()}), "surrogate pair")
        assert "'a.json' in tar 's.tar'" in said
        assert field.replace("\\\\", "\\") in said

    def test_a_byte_order_mark_is_no_part_of_them(self, tmp_path):
        mark = b"\xef\xbb\xbf"
        texts = {"a.jpg": b"", "a.cls": mark + b"3", "a.txt": mark + b"a cat", "a.json": mark + b'{"n": 1}'}
        (row,) = open_corpus(str(put(tmp_path, {"s.tar": tar_bytes(texts)}) / "s.tar")).rows
        assert (row.label, row.caption, row.extra) == ("3", "a cat", {"n": "1"})

    def test_whole_ones_are_read_and_what_is_not_kept_does_not_matter(self, tmp_path):
        described = json.dumps({"caption": "😀", "n": 1, "on": True, "box": ["\ud83d"], "no\ud83d": None})
        (row,) = open_corpus(
            str(put(tmp_path, {"s.tar": tar_bytes({"a.jpg": b"", "a.json": described.encode()})}) / "s.tar")
        ).rows
        assert (row.caption, row.extra) == ("😀", {"n": "1", "on": "True"})


def test_tars_in_capitals_are_tars_where_nothing_else_is(tmp_path):
    put(tmp_path, {"S.TAR": tar_bytes({"a.jpg": b"a"}), "notes.md": b""})
    assert uris(tmp_path) == ["S.TAR/a.jpg"]
    put(tmp_path, {"b.jpg": b"b"})
    assert uris(tmp_path) == ["b.jpg"]
    (tmp_path / "b.jpg").unlink()
    put(tmp_path, {"t.tar": tar_bytes({"c.jpg": b"c"})})
    assert uris(tmp_path) == ["t.tar/c.jpg"]
