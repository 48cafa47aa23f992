"""A job in parts: planned once, made by any number of processes, finished once; the same index as from one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.parts import Part, finish_parts, plan_parts, planned, run_part
from index.plan import plan_shards
from index.reader import open_index
from index.workspace import share_workspace
from phosphene.errors import ArtefactMismatch, ArtefactMissing, SettingError
from phosphene.manifest import open_artefact
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import write_corpus
from tests.index.test_build import Fuse, Killed


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("more") / "pictures", 7, seed=3)


def _job(corpus: Path, bundle: Path, out: Path) -> BuildJob:
    return BuildJob(corpus=str(corpus), bundle=bundle, out=out, config=SMALL)


def test_parts_give_the_index_of_one_job(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    job, notes = _job(corpus, bundle, tmp_path / "index"), Notes()
    plan = plan_parts(job, notes)
    assert planned(job.out) == plan
    # The corpus is read for its digest once, and each image once more.
    assert (notes.stages, notes.encoded) == (["digest"], 0)
    assert run_part(job, Part(number=1, count=2), notes) == 1
    assert run_part(job, Part(number=1, count=2), notes) == 1  # Nothing is left to do.
    assert notes.encoded == 16
    assert run_part(job, Part(number=0, count=2), notes) == 2
    assert (notes.encoded, notes.stages.count("digest")) == (40, 1)
    result = finish_parts(job, notes)
    assert (notes.encoded, notes.stages[-1]) == (40, "assemble")
    with open_index(built) as index:
        assert (result.manifest.id, result.plan_id) == (index.id, index.plan_id)
    # Each step may be asked for again.
    assert finish_parts(job, Notes()).was_finished
    assert run_part(job, Part(number=0, count=2), Notes()) == 2
    assert plan_parts(job, Notes()) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_what_no_part_made_is_made_at_the_end(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    job, notes = _job(corpus, bundle, tmp_path / "index"), Notes()
    plan_parts(job, Notes())
    run_part(job, Part(number=2, count=3), Notes())
    assert finish_parts(job, notes).manifest.id == open_artefact(built, kind="index").id
    assert notes.encoded == 32


def test_every_shard_is_in_one_part() -> None:
    for row_count in (1, 7, 64):
        shards = plan_shards(row_count, 4)
        for count in (1, 2, 5, 40):
            parts = [Part(number=number, count=count).of(shards) for number in range(count)]
            assert sorted((shard for part in parts for shard in part), key=lambda shard: shard.number) == list(shards)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/0", "a/b", "1/2/3"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"0 <= NUMBER < COUNT <= 999999, such as 3/8 \(--part\)"):
        Part.parse(text)
    assert Part.parse("3/8") == Part(number=3, count=8)


class Meanwhile(Notes):
    """Lets other steps try their luck while a part is at work."""

    def __init__(self, job: BuildJob) -> None:
        super().__init__()
        self._job = job
        self.tried = False

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] == "encode" and not self.tried:
            self.tried = True
            for step in (build_index, finish_parts, plan_parts):
                with pytest.raises(SettingError, match="another process"):
                    step(self._job, Notes())
            # Another part may: even the same one.
            with share_workspace(self._job.out, device="cpu"):
                pass
            run_part(self._job, Part(number=0, count=2), Notes())


def test_parts_share_the_folder_and_jobs_do_not(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    job = _job(corpus, bundle, tmp_path / "index")
    plan_parts(job, Notes())
    meanwhile = Meanwhile(job)
    run_part(job, Part(number=0, count=2), meanwhile)
    assert meanwhile.tried
    assert list((tmp_path / "index.partial" / "drafts").iterdir()) == []
    assert finish_parts(job, Notes()).manifest.id == open_artefact(built, kind="index").id


def test_another_corpus_or_bundle_than_planned_is_refused(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20)
    job, part = _job(corpus, bundle, tmp_path / "index"), Part(number=0, count=1)
    with pytest.raises(ArtefactMissing, match="index plan"):
        run_part(job, part, Notes())
    plan_parts(job, Notes())
    corpus.write_text(corpus.read_text().replace("red", "blue"))
    with pytest.raises(ArtefactMismatch, match="not the one that was planned"):
        run_part(job, part, Notes())
    with pytest.raises(ArtefactMismatch, match="not the one that was planned"):
        finish_parts(job, Notes())


def test_a_finished_index_of_another_corpus_is_none(
    built: Path, bundle: Path, corpus: Path, more: Path, tmp_path: Path
) -> None:
    job, part = _job(corpus, bundle, tmp_path / "index"), Part(number=0, count=1)
    plan_parts(job, Notes())
    finish_parts(job, Notes())
    other = replace(job, corpus=str(more))
    with pytest.raises(ArtefactMismatch, match=r"not the one that was planned: it lists 7 images, the plan 40"):
        finish_parts(other, Notes())
    with pytest.raises(ArtefactMismatch, match="not the one that was planned"):
        run_part(other, part, Notes())
    # Of an index that grew, the corpus is what was appended.
    grown = replace(other, out=tmp_path / "grown", earlier=built)
    build_index(grown, Notes())
    assert finish_parts(grown, Notes()).was_finished
    with pytest.raises(ArtefactMismatch, match=r"it lists 40 images, the plan 7"):
        finish_parts(replace(grown, corpus=str(corpus)), Notes())


def test_a_job_that_is_not_in_parts_says_what_is_missing(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    job = _job(corpus, bundle, tmp_path / "index")
    with pytest.raises(Killed):
        build_index(job, Fuse("encode", 5))
    with pytest.raises(ArtefactMissing, match=r"digests\.npy is not in 'index\.partial': run `python -m index plan`"):
        run_part(job, Part(number=0, count=1), Notes())


def test_the_commands_tell_what_they_did(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(corpus), "--bundle", str(bundle), "--out", str(tmp_path / "index")]
    assert main(["run-shards", *common, "--part", "0/1"]) == 2
    assert "index plan" in capsys.readouterr().err
    assert main(["plan", *common, "--shard-images", "16", "--batch", "4", "--threads", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["event"], answer["images"], answer["shards"]) == ("planned", 40, 3)
    assert main(["run-shards", *common, "--part", "2/3"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 1
    assert main(["finish", *common, "--ray-address", "auto"]) == 2
    assert "--engine ray" in capsys.readouterr().err
    assert main(["finish", *common]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["event"], answer["images"], answer["was_finished"]) == ("index", 39, False)


@pytest.mark.slow
def test_two_processes_at_once_as_in_a_slurm_array(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path, root: Path
) -> None:
    job = _job(corpus, bundle, tmp_path / "index")
    plan_parts(job, Notes())
    command = [sys.executable, "-m", "index", "run-shards", str(corpus), "--bundle", str(bundle), "--out", str(job.out)]
    running = [subprocess.Popen([*command, "--part", f"{number}/2"], cwd=root) for number in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    notes = Notes()
    assert finish_parts(job, notes).manifest.id == open_artefact(built, kind="index").id
    assert notes.encoded == 0
