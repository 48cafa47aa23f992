import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from phosphene.errors import NumericError
from tests.training.recorded_progress import RecordedProgress
from tests.training.scripted_learner import ScriptedLearner
from tests.training.test_tensorboard import events
from training.checkpoint import CheckpointFolder
from training.curve import Curve
from training.journal import read_journal
from training.metrics import MetricsFile
from training.ranks import ALONE, Ranks
from training.run import Diverged, Run, resume
from training.settings import BiasInit, TrainingSettings

SETTINGS = TrainingSettings(
    step_count=60, batch_rows=8, learning_rate=1e-2, dead_after_samples=64, bias_init=BiasInit.MEAN, seed=0
)


class Job:
    """Runs a scripted learner in a folder, over batches that differ, to its end or to a step."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.progress = RecordedProgress()
        self.metrics_file: MetricsFile | None = None
        self.tensorboard: Path | None = None
        self.ranks = ALONE

    def run(self, *, until: int = SETTINGS.step_count) -> ScriptedLearner:
        learner = ScriptedLearner(**self.options)
        checkpoints = CheckpointFolder(self.folder / "checkpoints", plan_id="p", every_steps=8, time_share=1.0)
        checkpoint = resume(learner, checkpoints, self.progress)
        with Curve(
            "name",
            run="r1",
            step=learner.step_count,
            journal=self.folder / "journal.jsonl",
            tensorboard=self.tensorboard,
            metrics_file=self.metrics_file,
            progress=self.progress,
        ) as curve:
            run = Run(
                learner,
                SETTINGS,
                run_id="r1",
                variance=2.0,
                checkpoint=checkpoint,
                checkpoints=checkpoints,
                curve=curve,
                progress=self.progress,
                ranks=self.ranks,
                clock_s=itertools.count().__next__,
            )
            while not run.is_over and learner.step_count < until:
                run.step(torch.full((8, 4), float(learner.step_count)))
        return learner

    def lines(self) -> list[dict[str, Any]]:
        lines = read_journal(self.folder / "journal.jsonl", run="r1")
        return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in lines]


def average(steps: Iterable[int]) -> float:
    """The moving average of what the scripted learner reports."""
    found = None
    for step in steps:
        found = 1 / step if found is None else 0.99 * found + 0.01 / step
    assert found is not None
    return found


def test_lines_say_where_the_run_stands(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    lines = job.lines()
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[1] == {
        "run": "r1",
        "step": 20,
        "loss": 0.5,
        "fvu": 0.25,
        "l0": 2.0,
        "dead_share": 0.25,
        "learning_rate": 1e-2,
        "skipped_count": 0,
        "sample_count": 160,
        "threshold_ema": pytest.approx(average(range(1, 21))),
    }
    rates = [line["samples_per_s"] for line in read_journal(tmp_path / "journal.jsonl", run="r1")]
    assert rates == [80.0] * 6


@pytest.mark.parametrize("kill_at", [1, 7, 8, 13, 25, 48, 59])
def test_killed_and_resumed_it_counts_and_writes_as_if_undisturbed(tmp_path: Path, kill_at: int) -> None:
    skipped = {3, 4, 12, 30, 31, 32, 57}
    whole, killed = Job(tmp_path / "whole", skipped_steps=skipped), Job(tmp_path / "killed", skipped_steps=skipped)
    due = whole.run()
    killed.run(until=kill_at)
    killed.run(until=kill_at + 5)
    found = killed.run()
    assert torch.equal(found.weights.decoder_bias, due.weights.decoder_bias)
    assert killed.lines() == whole.lines()
    assert whole.lines()[-1]["skipped_count"] == 7
    assert whole.lines()[-1]["threshold_ema"] == pytest.approx(average(set(range(1, 61)) - skipped))


def test_residuals_that_other_processes_learnt_from_are_counted(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.ranks = Ranks(rank=0, count=2)
    job.run()
    assert [line["sample_count"] for line in job.lines()] == [160, 320, 480, 640, 800, 960]
    rates = [line["samples_per_s"] for line in read_journal(tmp_path / "journal.jsonl", run="r1")]
    assert rates == [160.0] * 6


def test_a_skipped_step_has_no_loss(tmp_path: Path) -> None:
    job = Job(tmp_path, skipped_steps={20})
    job.run()
    assert [line["loss"] for line in job.lines()] == [0.5, None, 0.5, 0.5, 0.5, 0.5]
    assert [line["skipped_count"] for line in job.lines()] == [0, 1, 1, 1, 1, 1]


def test_a_batch_from_which_nothing_was_selected_moves_no_average(tmp_path: Path) -> None:
    job = Job(tmp_path, idle_steps=range(1, 15))
    job.run()
    found = [line["threshold_ema"] for line in job.lines()]
    assert found == [None, *(pytest.approx(average(range(15, step + 1))) for step in range(20, 61, 10))]


def test_ten_skipped_steps_in_a_row_end_the_run_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    job = Job(tmp_path, skipped_steps=range(22, 100))
    due = r"10 steps in a row .* of 60; the state after step 24 is kept in .* lower --lr, which is 0.01"
    with pytest.raises(Diverged, match=due) as caught:
        job.run()
    assert isinstance(caught.value, NumericError)
    found, _ = CheckpointFolder(tmp_path / "checkpoints", plan_id="p").load_newest()
    assert found is not None
    assert torch.equal(found.tensors["sum"], torch.full((4,), float(sum(range(21)))))


def test_nine_in_a_row_do_not_even_across_a_kill(tmp_path: Path) -> None:
    job = Job(tmp_path, skipped_steps=range(22, 31))
    job.run(until=26)
    assert job.run().step_count == 60
    longer = Job(tmp_path / "longer", skipped_steps=range(22, 32))
    longer.run(until=26)
    with pytest.raises(Diverged):
        longer.run()


def test_a_loss_that_nobody_skipped_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="the loss is inf at step 30"):
        Job(tmp_path, infinite_steps={30}).run()


def test_a_damaged_checkpoint_is_told_aloud_and_costs_only_time(tmp_path: Path) -> None:
    whole, job = Job(tmp_path / "whole"), Job(tmp_path / "job")
    due = whole.run()
    job.run(until=30)
    state = tmp_path / "job" / "checkpoints" / "step-000000024" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    assert torch.equal(job.run().weights.decoder_bias, due.weights.decoder_bias)
    assert job.progress.named("checkpoint damaged") == [
        {"file": str(state), "reason": "its digest differs from the record's", "falls_back_to_step": 16}
    ]
    assert job.progress.named("resumed") == [{"step": 16}]
    assert job.lines() == whole.lines()


def test_out_of_memory_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path, rows_that_fit=2)
    assert job.run().step_count == 60
    assert job.progress.named("out of memory") == [{"rows_at_once": 2, "batch_rows": 8}]


def test_a_metrics_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.metrics_file = MetricsFile(tmp_path / "gone" / "training.prom")
    (tmp_path / "gone").rmdir()
    assert job.run().step_count == 60
    assert len(job.progress.named("metrics file given up")) == 1


def test_all_curves_are_written_where_asked_for(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.metrics_file = MetricsFile(tmp_path / "training.prom")
    job.tensorboard = tmp_path / "tensorboard"
    job.run(until=30)
    job.run()
    assert 'phosphene_training_step{run="name"} 60.0' in (tmp_path / "training.prom").read_text()
    assert 'phosphene_training_threshold_ema{run="name"} 0.' in (tmp_path / "training.prom").read_text()
    first, second = sorted((tmp_path / "tensorboard" / "name").iterdir())
    assert [event.step for event in events(first) if event.HasField("summary")] == [10, 20, 30]
    lines = {event.step: event.summary.value for event in events(second) if event.HasField("summary")}
    assert sorted(lines) == [30, 40, 50, 60]
    assert "threshold_ema" in {value.tag for value in lines[60]}


def test_a_run_that_is_over_adds_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    lines = job.lines()
    assert job.run().step_count == 60
    assert job.lines() == lines
