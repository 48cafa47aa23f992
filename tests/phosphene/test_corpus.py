"""Corpora: what is listed, in which order and under which names; and what is refused."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.corpus import open_corpus
from phosphene.errors import CorpusError, ImageTooLarge


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_bytes(members: dict[str, bytes], **options: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def uris(source: object) -> list[str]:
    return [row.uri for row in open_corpus(str(source)).rows]


class TestFolder:
    def test_images_in_order_with_the_first_folder_as_label(self, tmp_path):
        put(
            tmp_path,
            {"b/2.PNG": b"2", "b/deep/1.webp": b"1", "a/x.jpeg": b"x", "top.jpg": b"t", "a.txt": b"", "a/n": b""},
        )
        corpus = open_corpus(str(tmp_path))
        assert [(row.row, row.uri, row.label) for row in corpus.rows] == [
            (0, "a/x.jpeg", "a"),
            (1, "b/2.PNG", "b"),
            (2, "b/deep/1.webp", "b"),
            (3, "top.jpg", None),
        ]
        assert [corpus.read(row) for row in range(len(corpus))] == [b"x", b"2", b"1", b"t"]
        assert corpus.has_labels
        assert not corpus.has_captions

    def test_hidden_and_unfinished_files_are_left_out(self, tmp_path):
        put(tmp_path, {"a.jpg": b"", ".b.jpg": b"", ".git/c.jpg": b"", "d.partial/e.jpg": b"", "f.jpg.partial": b""})
        assert uris(tmp_path) == ["a.jpg"]

    def test_links_in_circles_and_pipes_do_not_hang(self, tmp_path):
        put(tmp_path, {"z/a.jpg": b"a"})
        (tmp_path / "z" / "up").symlink_to(tmp_path)
        (tmp_path / "a").symlink_to(tmp_path / "z")
        (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "pipe.jpg")
        assert uris(tmp_path) == ["z/a.jpg"]

    def test_linked_folders_from_elsewhere_are_entered(self, tmp_path):
        put(tmp_path, {"elsewhere/a.jpg": b"a", "here/b.jpg": b"b"})
        (tmp_path / "here" / "more").symlink_to(tmp_path / "elsewhere")
        assert uris(tmp_path / "here") == ["b.jpg", "more/a.jpg"]

    def test_names_with_line_breaks_and_other_scripts(self, tmp_path):
        put(tmp_path, {"a\nb.jpg": b"1", "сад/ö 1.jpg": b"2"})
        corpus = open_corpus(str(tmp_path))
        assert [corpus.read(row) for row in range(2)] == [b"1", b"2"]

    def test_names_that_are_not_utf8_are_refused(self, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"")
        with pytest.raises(CorpusError, match="not UTF-8"):
            open_corpus(str(tmp_path))

    @pytest.mark.parametrize(
        ("files", "message"),
        [({}, "holds no image"), ({"a.txt": b""}, "holds no image"), ({"a.jpg": b"", "b.tar": b""}, "unclear")],
    )
    def test_a_folder_of_nothing_or_of_two_things_is_refused(self, tmp_path, files, message):
        with pytest.raises(CorpusError, match=message):
            open_corpus(str(put(tmp_path, files)))

    @settings(max_examples=25)
    @given(st.sets(st.text("ab/_1", min_size=1, max_size=6).map(lambda text: text.strip("/")).filter(bool), min_size=1))
    def test_order_and_digest_depend_on_the_names_alone(self, tmp_path_factory, names):
        files = sorted({f"{name.replace('//', '/x/')}.jpg".replace("//", "/y/") for name in names})
        folders = [tmp_path_factory.mktemp("corpus") for _ in range(2)]
        for folder, order in zip(folders, (files, files[::-1]), strict=True):
            put(folder, dict.fromkeys(order, b""))
        first, second = (open_corpus(str(folder)) for folder in folders)
        assert [row.uri for row in first.rows] == files
        assert first.digest == second.digest
        (folders[1] / files[0]).rename(folders[1] / "renamed.jpg")
        assert open_corpus(str(folders[1])).digest != first.digest


class TestReading:
    def test_never_more_than_the_limit(self, tmp_path):
        put(tmp_path, {"a.jpg": bytes(100), "b.jpg": bytes(101)})
        corpus = open_corpus(str(tmp_path), limit_bytes=100)
        assert len(corpus.read(0)) == 100
        with pytest.raises(ImageTooLarge, match="100 bytes"):
            corpus.read(1)

    def test_a_file_far_larger_than_memory_is_refused_unread(self, tmp_path):
        put(tmp_path, {"a.jpg": b""})
        os.truncate(tmp_path / "a.jpg", 4 * 2**40)
        with pytest.raises(ImageTooLarge):
            open_corpus(str(tmp_path)).read(0)

    def test_a_file_that_has_gone_is_named_without_its_folder(self, tmp_path):
        put(tmp_path, {"a.jpg": b"", "b.jpg": b""})
        corpus = open_corpus(str(tmp_path))
        (tmp_path / "b.jpg").unlink()
        with pytest.raises(CorpusError, match=r"'b\.jpg' cannot be read") as caught:
            corpus.read(1)
        assert str(tmp_path) not in str(caught.value)

    def test_a_corpus_travels_to_other_processes(self, tmp_path):
        corpus = open_corpus(str(put(tmp_path, {"a.jpg": b"a"})))
        twin = pickle.loads(pickle.dumps(corpus))
        assert twin.read(0) == b"a"
        assert twin.digest == corpus.digest

    def test_nothing_about_it_holds_an_absolute_path(self, tmp_path):
        corpus = open_corpus(str(put(tmp_path / "photos", {"a.jpg": b"a"})))
        assert corpus.source == "folder photos"
        assert str(tmp_path) not in f"{corpus.rows} {corpus!r}"


class TestCsv:
    def test_labels_captions_and_the_rest(self, tmp_path):
        table = 'File,label,caption,split\r\n./a/1.jpg,cat,"a cat, asleep",train\r\na/2.jpg,,,\r\n'
        put(tmp_path, {"a/1.jpg": b"1", "a/2.jpg": b"2", "list.csv": b"\xef\xbb\xbf" + table.encode()})
        corpus = open_corpus(str(tmp_path / "list.csv"))
        first, second = corpus.rows
        assert (first.uri, first.label, first.caption, first.extra) == (
            "a/1.jpg",
            "cat",
            "a cat, asleep",
            {"split": "train"},
        )
        assert (second.uri, second.label, second.caption) == ("a/2.jpg", None, None)
        assert corpus.read(1) == b"2"
        assert corpus.source == "list list.csv"

    @pytest.mark.parametrize("column", ["file", "path", "uri", "image"])
    def test_names_of_the_path_column(self, tmp_path, column):
        put(tmp_path, {"a.jpg": b"", "l.csv": f"{column}\na.jpg\n".encode()})
        assert uris(tmp_path / "l.csv") == ["a.jpg"]

    def test_absolute_paths_may_lead_there_by_a_link(self, tmp_path):
        put(tmp_path, {"disk/photos/a.jpg": b"a", "outside/b.jpg": b"b"})
        (tmp_path / "data").symlink_to(tmp_path / "disk")
        listed = tmp_path / "data" / "photos" / "list.csv"
        listed.write_text(f"file\n{tmp_path}/data/photos/a.jpg\n")
        assert [row.uri for row in open_corpus(str(listed)).rows] == ["a.jpg"]
        listed.write_text(f"file\n{tmp_path}/outside/b.jpg\n")
        with pytest.raises(CorpusError, match="is no path relative to the list"):
            open_corpus(str(listed))

    def test_absolute_paths_below_the_list_become_relative(self, tmp_path):
        put(tmp_path, {"a/b.jpg": b"", "l.csv": f"file\n{tmp_path.resolve()}/a/b.jpg\n".encode()})
        assert uris(tmp_path / "l.csv") == ["a/b.jpg"]

    def test_a_list_may_point_to_a_sibling_folder(self, tmp_path):
        put(tmp_path, {"images/a.jpg": b"a", "lists/l.csv": b"file\n../images/a.jpg\n"})
        corpus = open_corpus(str(tmp_path / "lists" / "l.csv"))
        assert corpus.rows[0].uri == "../images/a.jpg"
        assert corpus.read(0) == b"a"

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (b"", "no column of paths"),
            (b"name,label\na.jpg,x\n", "it has name, label"),
            (b"file\n", "holds no image"),
            (b"file,label\na.jpg\n", "1 cells in line 2, its header 2"),
            (b"file,file\na.jpg,a.jpg\n", "a name of its own"),
            (b"file\nb.jpg\n\nc.jpg\n", r"2 rows .* line 2: no file 'b.jpg'; line 4: no file 'c.jpg'"),
            (b"file\nhttps://host/b.jpg\n", "no path relative to the list"),
            (b"file\n/etc/hostname\n", "no path relative to the list"),
            (b'file,label\n"",x\n', "no path relative to the list"),
            (b"file\na.jpg\n./a.jpg\n", "more than once: 'a.jpg'"),
            (b"file\n\xff.jpg\n", "not UTF-8"),
            (b'file\n"a.jpg\n', "no CSV file"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, table, message):
        put(tmp_path, {"a.jpg": b"", "l.csv": table})
        with pytest.raises(CorpusError, match=message):
            open_corpus(str(tmp_path / "l.csv"))

    def test_the_real_list_of_photos(self, shared):
        corpus = open_corpus(str(shared / "photos" / "caltech101" / "labels.csv"))
        assert len(corpus) > 6000
        assert len({row.label for row in corpus.rows}) > 90
        assert corpus.read(0).startswith(b"\xff\xd8\xff")


class TestParquet:
    def test_labels_captions_and_scalars(self, tmp_path):
        table = pa.table(
            {
                "path": ["a.jpg", "b.jpg"],
                "label": [3, None],
                "caption": ["x", None],
                "box": [[1], [2]],
                "year": [1.5, 2.5],
            }
        )
        pq.write_table(table, put(tmp_path, {"a.jpg": b"a", "b.jpg": b"b"}) / "l.parquet")
        first, second = open_corpus(str(tmp_path / "l.parquet")).rows
        assert (first.uri, first.label, first.caption, first.extra) == ("a.jpg", "3", "x", {"year": "1.5"})
        assert (second.label, second.caption) == (None, None)

    def test_a_csv_and_a_parquet_of_the_same_rows_are_the_same_corpus(self, tmp_path):
        put(tmp_path, {"a.jpg": b"", "b.jpg": b"", "l.csv": b"file,label\nb.jpg,x\na.jpg,\n"})
        pq.write_table(pa.table({"file": ["b.jpg", "a.jpg"], "label": ["x", None]}), tmp_path / "l.parquet")
        assert open_corpus(str(tmp_path / "l.csv")).digest == open_corpus(str(tmp_path / "l.parquet")).digest

    def test_damaged_or_without_paths(self, tmp_path):
        put(tmp_path, {"broken.parquet": b"PAR1 not really"})
        with pytest.raises(CorpusError, match="no Parquet file"):
            open_corpus(str(tmp_path / "broken.parquet"))
        pq.write_table(pa.table({"image": [b"bytes"]}), tmp_path / "bytes.parquet")
        with pytest.raises(CorpusError, match="paths are text"):
            open_corpus(str(tmp_path / "bytes.parquet"))
        pq.write_table(pa.table({"name": ["a"]}), tmp_path / "nameless.parquet")
        with pytest.raises(CorpusError, match="no column of paths"):
            open_corpus(str(tmp_path / "nameless.parquet"))


SAMPLES = {
    "000.jpg": b"first",
    "000.txt": b" a cat \n",
    "000.cls": b"7",
    "dir/001.json": b'{"label": "dog", "caption": "a dog", "year": 1999, "box": [1]}',
    "dir/001.PNG": b"second",
    "002.txt": b"no image",
    "__key__": b"",
}


class TestTars:
    def test_samples_of_one_tar(self, tmp_path):
        corpus = open_corpus(str(put(tmp_path, {"s.tar": tar_bytes(SAMPLES)}) / "s.tar"))
        first, second = corpus.rows
        assert (first.uri, first.label, first.caption) == ("s.tar/000.jpg", "7", "a cat")
        assert (second.uri, second.label, second.caption) == ("s.tar/dir/001.PNG", "dog", "a dog")
        assert second.extra == {"year": "1999"}
        assert [corpus.read(0), corpus.read(1)] == [b"first", b"second"]
        # Whatever lies there is an image, a text of one, or skipped.
        assert corpus.skipped_counts == {"texts without an image": 1, "of other kinds": 1}
        put(tmp_path, {"t.tar": tar_bytes({"t.jpg": b"", "a.txt": b"", "b.json": b"{}"}), "notes.md": b""})
        assert open_corpus(str(tmp_path)).skipped_counts == {"texts without an image": 3, "of other kinds": 2}

    def test_a_folder_and_a_pattern_name_the_same_tars(self, tmp_path):
        for shard in range(12):
            put(tmp_path, {f"s-{shard:03d}.tar": tar_bytes({f"{shard}.jpg": bytes([shard])})})
        folder, pattern = open_corpus(str(tmp_path)), open_corpus(str(tmp_path / "s-{000..011}.tar"))
        assert folder.digest == pattern.digest
        assert [pattern.read(row) for row in range(12)] == [bytes([shard]) for shard in range(12)]
        assert uris(tmp_path / "s-{003..004}.tar") == ["s-003.tar/3.jpg", "s-004.tar/4.jpg"]
        with pytest.raises(CorpusError, match=r"2 of 14 shards .* 's-012\.tar', 's-013\.tar'"):
            open_corpus(str(tmp_path / "s-{000..013}.tar"))
        with pytest.raises(CorpusError, match="shards; 1 to"):
            open_corpus(str(tmp_path / "s-{5..1}.tar"))

    def test_a_large_member_is_not_read(self, tmp_path):
        corpus = open_corpus(str(put(tmp_path, {"s.tar": tar_bytes({"a.jpg": bytes(101)})})), limit_bytes=100)
        with pytest.raises(ImageTooLarge):
            corpus.read(0)

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"a.jpg": b"", "a.png": b""}, "two images under one key"),
            ({"a.jpg": b"", "a.json": b"{"}, "no JSON"),
            ({"a.jpg": b"", "a.json": b"[]"}, "has to be an object"),
            ({"a.jpg": b"", "a.txt": b"\xff"}, "not UTF-8"),
            ({"a.jpg": b"", "a.txt": bytes(2**20 + 1)}, "the limit is 1048576"),
            ({"a.txt": b""}, "holds no image"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, members, message):
        put(tmp_path, {"s.tar": tar_bytes(members)})
        with pytest.raises(CorpusError, match=message):
            open_corpus(str(tmp_path / "s.tar"))

    def test_compressed_cut_off_and_damaged_tars_are_refused(self, tmp_path):
        whole = tar_bytes({"a.jpg": bytes(700), "b.jpg": bytes(700), "c.jpg": bytes(700)})
        for length in (0, 100, 512, 1000, 1536, 2048, 2100, 4608):
            put(tmp_path, {"s.tar": whole[:length]})
            with pytest.raises(CorpusError):
                open_corpus(str(tmp_path / "s.tar"))
        damaged = bytearray(whole)
        damaged[1536] ^= 1
        put(tmp_path, {"s.tar": bytes(damaged)})
        with pytest.raises(CorpusError, match="damaged"):
            open_corpus(str(tmp_path / "s.tar"))
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz"):
            pass
        put(tmp_path, {"s.tar": stream.getvalue()})
        with pytest.raises(CorpusError, match="no uncompressed tar"):
            open_corpus(str(tmp_path / "s.tar"))

    def test_links_and_folders_in_tars_are_passed_over(self, tmp_path):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("p.jpg", tarfile.FIFOTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/hostname"
                tar.addfile(info)
            info = tarfile.TarInfo("./._a.jpg")
            tar.addfile(info)
            tar.addfile(tarfile.TarInfo("./a.jpg"))
        put(tmp_path, {"s.tar": stream.getvalue()})
        assert uris(tmp_path / "s.tar") == ["s.tar/a.jpg"]
        assert open_corpus(str(tmp_path / "s.tar")).skipped_counts == {"links, pipes or devices": 2, "hidden": 1}


class TestUrls:
    @pytest.fixture
    def memory(self):
        filesystem = fsspec.filesystem("memory")
        files = {
            "/box/a/1.jpg": b"1",
            "/box/2.png": bytes(101),
            "/box/.hidden/3.jpg": b"",
            "/box/l.csv": b"file,label\n2.png,x\n",
            "/tars/s-0.tar": tar_bytes(SAMPLES),
        }
        for name, data in files.items():
            filesystem.pipe_file(name, data)
        yield "memory://"
        for name in files:
            filesystem.rm_file(name)

    def test_a_folder(self, memory):
        corpus = open_corpus(memory + "box", limit_bytes=100)
        assert [(row.uri, row.label) for row in corpus.rows] == [("2.png", None), ("a/1.jpg", "a")]
        assert corpus.read(1) == b"1"
        assert corpus.source == "folder box"
        with pytest.raises(ImageTooLarge):
            corpus.read(0)

    def test_lists_and_tars(self, memory):
        listed = open_corpus(memory + "box/l.csv")
        assert [(row.uri, row.label) for row in listed.rows] == [("2.png", "x")]
        assert len(listed.read(0)) == 101
        for source in ("tars", "tars/s-0.tar", "tars/s-{0..0}.tar"):
            corpus = open_corpus(memory + source)
            assert [row.uri for row in corpus.rows] == ["s-0.tar/000.jpg", "s-0.tar/dir/001.PNG"]
            assert corpus.read(1) == b"second"

    def test_the_same_corpus_as_from_a_folder(self, memory, tmp_path):
        put(tmp_path, {"a/1.jpg": b"", "2.png": b""})
        assert open_corpus(memory + "box").digest == open_corpus(f"file://{tmp_path}").digest

    def test_a_file_that_has_gone(self, memory):
        corpus = open_corpus(memory + "box")
        filesystem = fsspec.filesystem("memory")
        kept = filesystem.cat_file("/box/a/1.jpg")
        filesystem.rm_file("/box/a/1.jpg")
        with pytest.raises(CorpusError, match=r"'a/1\.jpg' cannot be read"):
            corpus.read(1)
        filesystem.pipe_file("/box/a/1.jpg", kept)

    def test_nothing_there_and_no_such_scheme(self, memory):
        with pytest.raises(CorpusError, match="does not exist"):
            open_corpus(memory + "nowhere")
        with pytest.raises(CorpusError, match="cannot be reached") as caught:
            open_corpus("gopher://user:secret@host/photos")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "not named"), ("nowhere", "does not exist"), ("a.jpg", "neither a folder nor"), ("pipe", "neither")],
)
def test_sources_that_are_none(tmp_path, monkeypatch, source, message):
    put(tmp_path, {"a.jpg": b""})
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=message):
        open_corpus(source)
