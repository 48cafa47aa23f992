"""Appends: the earlier index's shards as they are, new ones for the new images, and everything over both put anew."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from index.__main__ import main
from index.build import BuildJob, BuildResult, build_index
from index.plan import IndexConfig, plan_shards
from index.reader import IndexReader, open_index
from index.take_down import Request, TakeDownJob, take_down
from index.values import ExemplarKind
from index.verify import verify_index
from phosphene.encoder import Family
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactMismatch,
    ArtefactMissing,
    CorpusError,
    SchemaUnknown,
    SettingError,
)
from phosphene.manifest import digest_of
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import NEURON_COUNT, write_bundle, write_corpus
from tests.index.test_build import Fuse, Killed


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """21 more pictures; row 2 has the bytes of row 3 of the earlier corpus, row 4 is corrupt."""
    listed = write_corpus(tmp_path_factory.mktemp("more") / "pictures", 21, seed=5, corrupt=(4,))
    (listed.parent / "0002.png").write_bytes((corpus.parent / "0003.png").read_bytes())
    return listed


def _append(more: Path, bundle: Path, built: Path, out: Path) -> BuildResult:
    job = BuildJob(corpus=str(more), bundle=bundle, out=out, config=IndexConfig(), earlier=built)
    return build_index(job, Notes())


@pytest.fixture(scope="module")
def appended(more: Path, bundle: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("appended") / "index"
    before = _contents(built)
    _append(more, bundle, built, out)
    assert _contents(built) == before
    return out


def test_shards_never_cross_segments() -> None:
    rows = [(shard.number, shard.start, shard.stop) for shard in plan_shards(61, 16, earlier=(40, 1))]
    assert rows == [(0, 0, 16), (1, 16, 32), (2, 32, 40), (3, 40, 41), (4, 41, 57), (5, 57, 61)]
    assert plan_shards(40, 16, earlier=()) == plan_shards(40, 16)


def test_earlier_rows_keep_their_numbers_and_shards_and_only_new_rows_are_encoded(
    more: Path, bundle: Path, built: Path, appended: Path, tmp_path: Path
) -> None:
    notes = Notes()
    job = BuildJob(corpus=str(more), bundle=bundle, out=tmp_path / "index", config=SMALL, earlier=built)
    assert build_index(job, notes).manifest.files.keys() > {"shards/00004/record.json"}
    assert notes.encoded == 21
    for path in (built / "shards").rglob("*"):
        if path.is_file():
            assert (tmp_path / "index" / path.relative_to(built)).samefile(path)
    with open_index(built) as old, open_index(appended) as new:
        assert (new.row_count, new.image_count, new.quarantined_count) == (61, 59, 2)
        for row in range(old.row_count):
            assert new.image(row) == old.image(row)
            assert new.code(row).values.tolist() == old.code(row).values.tolist()
            assert new.thumbnail(row) == old.thumbnail(row)
        assert new.image(40).uri == "0000.png"
        assert new.row_of(new.image(42).sha256) == 3
    quarantined = (appended / "quarantine.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in quarantined[1:]] == [["5", "0005.png"], ["44", "0004.png"]]
    verify_index(appended, advance=lambda count: None)


def test_every_answer_is_over_both_and_equal_bytes_count_once(appended: Path) -> None:
    with open_index(appended) as index:
        values = _activations(index)
        first = {index.image(row).sha256: row for row in reversed(range(61))}
        for neuron_id in range(NEURON_COUNT):
            firing = values[neuron_id]
            assert index.neuron(neuron_id).firing_count == len(firing)
            distinct = [row for row in firing if first[index.image(row).sha256] == row]
            due = sorted(distinct, key=lambda row: (-firing[row], row))[:10]
            assert [each.row for each in index.exemplars(neuron_id, ExemplarKind.TOP, 10)] == due
            assert index.count_by_expression(str(neuron_id)) == len(firing)
        found = index.similar_images(index.code(50), 100, exclude_rows=[50])
        assert {image.row // 40 for image in found} == {0, 1}
        twice = index.similar_images(index.code(42), 2, exclude_rows=[42])
        assert max(twice, key=lambda image: (image.similarity, image.row == 3)).row == 3


def test_the_same_append_gives_the_same_id_and_a_finished_one_returns_at_once(
    more: Path, bundle: Path, built: Path, appended: Path, tmp_path: Path
) -> None:
    with open_index(appended) as index:
        due = index.id
    first = _append(more, bundle, built, tmp_path / "index")
    assert (first.manifest.id, first.was_finished) == (due, False)
    again = _append(more, bundle, built, tmp_path / "index")
    assert (again.manifest.id, again.was_finished) == (due, True)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize(("stage", "steps"), [("take over", 2), ("encode", 5), ("assemble", 7)])
def test_stopped_anywhere_and_run_again_gives_the_same_id(
    more: Path, bundle: Path, built: Path, appended: Path, tmp_path: Path, stage: str, steps: int
) -> None:
    out = tmp_path / "index"
    job = BuildJob(corpus=str(more), bundle=bundle, out=out, config=SMALL, earlier=built)
    with pytest.raises(Killed):
        build_index(job, Fuse(stage, steps))
    assert not out.exists()
    # What a kill leaves of a shard that was being taken over.
    draft = out.with_name("index.partial") / "drafts" / "00000"
    if draft.parent.exists():
        draft.mkdir()
        (draft / "record.json").write_text("{")
    notes = Notes()
    with open_index(appended) as index:
        assert build_index(job, notes).manifest.id == index.id
    # The one shard of 16 rows that was finished is not made again.
    assert notes.encoded == {"encode": 5, "assemble": 0}.get(stage, 21)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_without_hard_links_shards_are_copied(
    more: Path,
    bundle: Path,
    built: Path,
    appended: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    def refuse(source: Path, copy: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(copy))

    monkeypatch.setattr(os, "link", refuse)  # As between two file systems, or on one that knows no links.
    with open_index(appended) as index:
        assert _append(more, bundle, built, tmp_path / "index").manifest.id == index.id
    assert (tmp_path / "index" / "shards" / "00000" / "record.json").stat().st_nlink == 1


def test_what_cannot_be_appended_to_is_refused(more: Path, bundle: Path, built: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path, Family.CLIP, seed=7)
    with pytest.raises(ArtefactMismatch, match=r"code_id.*Append with the bundle"):
        _append(more, other, built, tmp_path / "index")
    with pytest.raises(ArtefactMismatch, match="due is 'index'"):
        _append(more, bundle, bundle, tmp_path / "index")
    with pytest.raises(ArtefactMissing):
        _append(more, bundle, tmp_path / "nothing", tmp_path / "index")
    with pytest.raises(SettingError, match=r"which stays as it is; choose another --out$"):
        _append(more, bundle, built, built)
    damaged = tmp_path / "damaged"
    shutil.copytree(built, damaged)
    words = damaged / "shards" / "00001" / "postings" / "words.npy"
    words.write_bytes(words.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ArtefactDamaged, match="shards/00001/postings/words.npy"):
        _append(more, bundle, damaged, tmp_path / "index")
    bad = write_corpus(tmp_path / "bad", 8, corrupt=(0, 2, 4, 6))
    with pytest.raises(CorpusError, match="4 of 8 images cannot be used"):
        _append(bad, bundle, built, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_of_another_layout_is_refused_with_the_remedy(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(built, copy)
    body = json.loads((copy / "manifest.json").read_bytes())
    body.pop("check")
    body["config"]["plan"]["layout"] = 1
    body["id"] = digest_of({key: value for key, value in body.items() if key not in ("id", "created_by")})
    body["check"] = digest_of(body)
    text = json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (copy / "manifest.json").write_text(text)
    with pytest.raises(SchemaUnknown, match="layout 1.*build it again"):
        open_index(copy)


def test_an_append_to_an_append_and_tombstones_from_before_it(
    more: Path, bundle: Path, built: Path, appended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = tmp_path / "down"
    take_down(TakeDownJob(index=built, out=down, requests=[Request(what="0003.png")]))
    out = tmp_path / "index"
    extra = write_corpus(tmp_path / "extra", 3, seed=9)
    command = ["append", str(extra), "--index", str(appended), "--bundle", str(bundle), "--out", str(out)]
    assert main([*command, "--workers", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 62
    with open_index(out, tombstones=down) as index:
        assert index.config["segments"] == [40, 21, 3]
        assert index.config["made_from"].keys() == {"index"}
        assert index.taken_down_count == 2  # In both segments.
        shown = Counter(each.row for neuron in range(NEURON_COUNT) for each in index.images_by_neuron(neuron, 100))
        assert not shown.keys() & {3, 42}
        assert shown.keys() & {61, 62, 63}
    assert main(["show", str(out)]) == 0
    assert "40 + 21 + 3" in capsys.readouterr().out


def _activations(index: IndexReader) -> list[dict[int, float]]:
    found: list[dict[int, float]] = [{} for _ in range(NEURON_COUNT)]
    for row in range(index.row_count):
        code = index.code(row)
        for neuron_id, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True):
            found[neuron_id][row] = value
    return found


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
