"""Compaction: answers are those of the index with tombstones, rows counted anew; what is down is on disk no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.compact import CompactJob, compact_index
from index.image_table import write_digests
from index.plan import IndexConfig
from index.reader import IndexReader, open_index
from index.row_copies import RowCopies
from index.take_down import Request, TakeDownJob, take_down
from index.thumbnails import write_thumbnails
from index.values import ExemplarKind, NeuronFilter
from index.verify import verify_index
from phosphene.artefact_writing import seal
from phosphene.codes import ImageCode
from phosphene.errors import ArtefactMismatch, CorpusError, SchemaUnknown, SettingError
from phosphene.manifest import read_manifest
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.shard_folders import write_shards
from tests.index.small_world import write_corpus
from tests.index.test_build import Fuse, Killed
from tests.index.test_verify import seal_again


@pytest.fixture(scope="module")
def grown(built: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small index and two appends, in shards of 16, 16, 8, 9 and 2 rows."""
    folder, last = tmp_path_factory.mktemp("grown"), built
    for count in (9, 2):
        corpus = write_corpus(folder / f"more-{count}", count, seed=count, corrupt=(1,) if count == 9 else ())
        out = folder / f"index-{count}"
        job = BuildJob(
            corpus=str(corpus), bundle=bundle, out=out, config=IndexConfig(), earlier=last, max_bad_ratio=0.2
        )
        build_index(job, Notes())
        last = out
    return last


@pytest.fixture(scope="module", params=[(5, 6), (0, 17, 41, 50), tuple(range(0, 51, 3))])
def pair(
    request: pytest.FixtureRequest, grown: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[IndexReader, IndexReader]]:
    """The index with tombstones, and compacted."""
    folder = tmp_path_factory.mktemp("compacted")
    down, out = folder / "down", folder / "index"
    _take_down(grown, down, request.param)
    compact_index(CompactJob(index=grown, out=out, tombstones=down), Notes())
    verify_index(out, advance=lambda count: None)
    with open_index(grown, tombstones=down) as tombstoned, open_index(out) as compacted:
        yield tombstoned, compacted


def _take_down(index: Path, down: Path, rows: tuple[int, ...]) -> None:
    with open_index(index) as opened:
        requests = [Request(what=opened.image(row).sha256) for row in rows]
    take_down(TakeDownJob(index=index, out=down, requests=requests))


def _rows(tombstoned: IndexReader) -> list[int]:
    """The rows that are left, in order: their places are their numbers after the compaction."""
    return [row for row in range(tombstoned.row_count) if not tombstoned._visibility.hides(row)]


def test_rows_are_as_they_were_in_full_shards(pair: tuple[IndexReader, IndexReader]) -> None:
    old, new = pair
    rows = _rows(old)
    assert new.row_count == len(rows) == old.row_count - old.taken_down_count
    assert [len(shard.norms) for shard in new._shards] == [16] * (len(rows) // 16) + [len(rows) % 16] * (
        len(rows) % 16 > 0
    )
    for place, row in enumerate(rows):
        before, after = old.image(row), new.image(place)
        assert after.row == place
        assert {**vars(before), "row": place} == vars(after)
        assert new.code(place).neuron_ids.tolist() == old.code(row).neuron_ids.tolist()
        assert new.code(place).values.tolist() == old.code(row).values.tolist()
        assert new.code(place).cut_count == old.code(row).cut_count
        assert new.thumbnail(place) == old.thumbnail(row)
        if before.quarantine_reason is None:
            assert new.fvu(place) == old.fvu(row)
            assert new.row_of(before.sha256) == rows.index(old.row_of(before.sha256))


def test_searches_by_code_are_compared_at_all(pair: tuple[IndexReader, IndexReader]) -> None:
    old, new = pair
    few = old.taken_down_count < 10
    assert (new.left_out_neuron_ids == old.left_out_neuron_ids) is few


def test_answers_are_those_of_the_index_with_tombstones(pair: tuple[IndexReader, IndexReader]) -> None:
    old, new = pair
    rows = _rows(old)
    places = {row: place for place, row in enumerate(rows)}
    # Which neurons are too dense to count is a figure, and made anew.
    for row in rows[::5] if new.left_out_neuron_ids == old.left_out_neuron_ids else []:
        found = [(places[image.row], image.similarity) for image in old.similar_images(old.code(row), 60)]
        assert [(image.row, image.similarity) for image in new.similar_images(old.code(row), 60)] == found
    for neuron in old.list_neurons(filter=NeuronFilter(alive_only=True))[:-1]:
        for text in (str(neuron), f"{neuron} & !{neuron + 1}", f"!{neuron} | {neuron + 1}>0.5"):
            assert new.count_by_expression(text) == old.count_by_expression(text)
            due = [(places[row], score) for row, score in old.images_by_expression(text, 100)]
            assert new.images_by_expression(text, 100) == due
        edges = np.linspace(0, max(old.neuron(neuron).maximum, 1.0), 5)
        assert new.activation_histogram(neuron, edges).tolist() == old.activation_histogram(neuron, edges).tolist()
        assert new.quantile(neuron, 0.5) == old.quantile(neuron, 0.5)
        # The stored ones that are left, and after them those that had no room.
        stored = old.exemplars(neuron, ExemplarKind.TOP, 100)
        shown = new.exemplars(neuron, ExemplarKind.TOP, 100)[: len(stored)]
        assert [(each.row, each.value, each.quantile) for each in shown] == [
            (places[each.row], each.value, each.quantile) for each in stored
        ]
        assert new.neurons_like(neuron, 5) == old.neurons_like(neuron, 5)
    vector = np.random.default_rng(1).standard_normal(20).astype(np.float32)
    due_scores = {places[row]: score for row, score in old.images_by_text(vector, 100)}
    assert dict(new.images_by_text(vector, 100)) == pytest.approx(due_scores, abs=1e-6)


def test_what_was_taken_down_is_on_disk_no_more(built: Path, tmp_path: Path) -> None:
    _take_down(built, tmp_path / "down", (6, 20))
    out = tmp_path / "index"
    compact_index(CompactJob(index=built, out=out, tombstones=tmp_path / "down"), Notes())
    with open_index(built) as index:
        marks = [mark for row in (6, 20) for mark in (index.image(row).sha256.encode(), index.thumbnail(row))]
        marks += [b"0006.png", b"0007.png", b"0020.png"]
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet")
    assert [mark for mark in marks if mark in kept] == []
    assert b"0008.png" in kept
    manifest, before = read_manifest(out), read_manifest(built)
    assert manifest.inputs["index"] == before.id
    assert manifest.config["plan"]["made_from"] == {
        "index": before.id,
        "tombstones": read_manifest(tmp_path / "down").id,
    }
    with open_index(out) as index:
        assert index.take_down_ids == {read_manifest(tmp_path / "down").id}


def test_full_shards_without_take_downs_come_out_bit_for_bit(built: Path, tmp_path: Path) -> None:
    result = compact_index(CompactJob(index=built, out=tmp_path / "index"), Notes())
    assert result.manifest.files == read_manifest(built).files
    assert result.manifest.id != read_manifest(built).id


@pytest.mark.parametrize(("stage", "steps"), [("compact", 2), ("assemble", 4)])
def test_stopped_anywhere_and_run_again_gives_the_same_id(grown: Path, tmp_path: Path, stage: str, steps: int) -> None:
    job = CompactJob(index=grown, out=tmp_path / "index")
    with pytest.raises(Killed):
        compact_index(job, Fuse(stage, steps))
    assert not job.out.exists()
    first = compact_index(job, Notes())
    again = compact_index(job, Notes())
    assert (first.was_finished, again.was_finished) == (False, True)
    other = compact_index(CompactJob(index=grown, out=tmp_path / "other"), Notes())
    assert first.manifest.id == again.manifest.id == other.manifest.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other"]


def test_what_was_compacted_is_appended_to_and_compacted_again(
    grown: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down, first, second, third = (tmp_path / name for name in ("down", "first", "second", "third"))
    _take_down(grown, down, (3, 44))
    assert main(["compact", str(grown), "--tombstones", str(down), "--out", str(first)]) == 0
    more = write_corpus(tmp_path / "more", 3, seed=2)
    append = ["append", str(more), "--index", str(first), "--bundle", str(bundle), "--out", str(second)]
    assert main(append) == 0
    assert main(["compact", str(second), "--out", str(third)]) == 0
    images = [json.loads(line)["images"] for line in capsys.readouterr().out.splitlines()]
    assert images == [47, 50, 50]
    with open_index(second) as old, open_index(third) as new:
        assert len(old._shards) == len(new._shards) + 1
        for row in range(old.row_count):
            assert new.image(row) == old.image(row)


def test_what_cannot_be_compacted_is_refused(built: Path, tmp_path: Path) -> None:
    everything, foreign = tmp_path / "everything", tmp_path / "foreign"
    _take_down(built, everything, tuple(range(40)))
    unknown = [Request(what="ab" * 32)]
    take_down(TakeDownJob(index=built, out=foreign, requests=unknown, allows_unknown=True))
    out = tmp_path / "index"
    with pytest.raises(CorpusError, match="every image of index 'index' was taken down"):
        compact_index(CompactJob(index=built, out=out, tombstones=everything), Notes())
    with pytest.raises(ArtefactMismatch, match="none of the 1 images of tombstones 'foreign'"):
        compact_index(CompactJob(index=built, out=out, tombstones=foreign), Notes())
    with pytest.raises(ArtefactMismatch, match="due is 'tombstones'"):
        compact_index(CompactJob(index=built, out=out, tombstones=built), Notes())
    with pytest.raises(SettingError, match=r"which stays as it is; choose another --out$"):
        compact_index(CompactJob(index=built, out=built), Notes())
    with pytest.raises(SettingError, match="is no index"):
        compact_index(CompactJob(index=built, out=tmp_path), Notes())
    assert not out.exists()


def test_rows_of_files_that_it_does_not_know_are_not_dropped(built: Path, tmp_path: Path) -> None:
    manifest, draft = read_manifest(built), tmp_path / "draft"
    shutil.copytree(built, draft)
    (draft / "manifest.json").unlink()
    np.save(draft / "shards" / "00001" / "more.npy", np.zeros(16))
    seal(draft, tmp_path / "later", kind="index", inputs=manifest.inputs, config=manifest.config)
    with pytest.raises(SchemaUnknown, match=r"hold \['more.npy'\]"):
        compact_index(CompactJob(index=tmp_path / "later", out=tmp_path / "index"), Notes())


def test_patch_maps_and_words_are_taken_along(patches_index: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    """Maps need no encoder, and a vocabulary no text tower: the index keeps its words' vectors."""
    row = 6
    with open_index(patches_index) as index:
        request = Request(what=index.image(row).sha256)
    take_down(TakeDownJob(index=patches_index, out=tmp_path / "down", requests=[request]))
    compact_index(CompactJob(index=patches_index, out=tmp_path / "maps", tombstones=tmp_path / "down"), Notes())
    verify_index(tmp_path / "maps", advance=lambda _: None)
    with open_index(patches_index) as old, open_index(tmp_path / "maps") as new:
        kept = [each for each in range(old.row_count) if old.image(each).sha256 != request.what]
        assert new.row_count == len(kept) < old.row_count
        for place, each in enumerate(kept):
            for neuron_id in old.code(each).neuron_ids[:9].tolist():
                drawn, due = new.patch_map(place, neuron_id), old.patch_map(each, neuron_id)
                assert drawn is not None
                assert due is not None
                assert drawn.tolist() == due.tolist()
    job = BuildJob(
        corpus=str(corpus), bundle=bundle, out=tmp_path / "named", config=SMALL, vocabulary=("sea", "moss", "sand")
    )
    build_index(job, Notes())
    compact_index(CompactJob(index=tmp_path / "named", out=tmp_path / "again"), Notes())
    for name in ("vocabulary.json", "vocabulary.npy", "neurons.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "named" / name).read_bytes()


def test_devices_are_named_once_however_often_an_index_was_compacted(grown: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "index"
    shutil.copytree(grown, copy)
    for number, devices in enumerate(("cpu", "cpu+cuda", "cuda")):
        record = copy / "shards" / f"{number:05d}" / "record.json"
        record.write_bytes(record.read_bytes().replace(b'"device":"cpu"', f'"device":"{devices}"'.encode()))
    seal_again(copy)
    compact_index(CompactJob(index=copy, out=out), Notes())
    assert {json.loads(record.read_bytes())["device"] for record in out.glob("shards/*/record.json")} == {"cpu+cuda"}


@pytest.mark.parametrize(("counts", "kept", "dtype"), [((3, 400), (0,), "uint8"), ((3, 400), (0, 1), "uint16")])
def test_counts_of_cut_activations_are_as_narrow_as_the_rows_that_are_left_need(
    tmp_path: Path, counts: tuple[int, ...], kept: tuple[int, ...], dtype: str
) -> None:
    codes = [
        ImageCode(neuron_ids=np.array([1], np.int32), values=np.array([1.0], np.float32), cut_count=count)
        for count in counts
    ]
    shards = write_shards(tmp_path, codes, neuron_count=4)
    for shard in shards:
        write_thumbnails(shard.folder, [b"jpeg"] * len(codes))
    write_digests(tmp_path, shards)
    chosen = np.isin(np.arange(len(codes)), kept)
    target = tmp_path / "copy"
    target.mkdir()
    RowCopies(tmp_path, shards, chosen).write(target, 0, len(kept))
    found = np.load(target / "codes" / "cut_counts.npy")
    assert (found.dtype.name, found.tolist()) == (dtype, [counts[row] for row in kept])
