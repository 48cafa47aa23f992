import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from phosphene.errors import DeviceFailed, SettingError
from tests.training.recorded_progress import Killed, RecordedProgress
from tests.training.synthetic import mixtures, write_activations
from training.activations import Activations
from training.checkpoint import CheckpointFolder
from training.export import fold
from training.journal import read_journal
from training.learner import Learner
from training.progress import Progress, SilentProgress
from training.ranks import Ranks
from training.scaling import make_scaling
from training.settings import BiasInit, InputScaling, SaeSettings, TrainingSettings
from training.trainer import Diverged, Trained, Trainee, choose_scaling, start, train, train_many
from training.variants import (
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    TopKTraining,
    Variant,
)

CPU = torch.device("cpu")
VARIANTS: dict[str, Variant] = {
    "topk": TopKTraining(k=2),
    "batchtopk": BatchTopKTraining(k=2),
    "matryoshka": MatryoshkaTraining(k=2, prefixes=(12, 48)),
    "relu": ReluTraining(l1_coefficient=1e-2, is_error_normalised=False, has_ghost_gradients=True),
    "jumprelu": JumpReluTraining(l0_coefficient=1e-3),
}
SETTINGS = TrainingSettings(
    step_count=60, batch_rows=64, learning_rate=3e-3, dead_after_samples=512, bias_init=BiasInit.MEAN, seed=0
)


@pytest.fixture(scope="module")
def harvest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_activations(tmp_path_factory.mktemp("harvest") / "a", mixtures(800))


def trainee(folder: Path, name: str = "batchtopk", **changes: Any) -> Trainee:
    settings = dataclasses.replace(SETTINGS, **changes)
    return Trainee(
        name=name,
        run_id=name,
        sae=SaeSettings(neuron_count=48, variant=VARIANTS[name]),
        settings=settings,
        checkpoints=CheckpointFolder(folder / name, plan_id=name, every_steps=15, time_share=1.0),
        journal=folder / f"{name}.jsonl",
    )


def run_one(harvest: Path, one: Trainee, progress: Progress | None = None) -> Trained:
    return train(Activations(harvest, seed=0), one, device=CPU, progress=progress or SilentProgress())


def run_many(harvest: Path, some: list[Trainee], progress: Progress | None = None) -> list[Trained | Diverged]:
    return train_many(Activations(harvest, seed=0), some, device=CPU, progress=progress or SilentProgress())


def equal(first: Trained | Diverged, second: Trained | Diverged) -> bool:
    assert isinstance(first, Trained)
    assert isinstance(second, Trained)
    other = second.weights.tensors()
    return all(torch.equal(value, other[name]) for name, value in first.weights.tensors().items())


def curve(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = read_journal(folder / f"{name}.jsonl", run=name)
    return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in lines]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_killed_anywhere_and_resumed_ends_in_the_same_bits_and_curve(harvest: Path, tmp_path: Path, name: str) -> None:
    whole = run_one(harvest, trainee(tmp_path / "whole", name))
    for kill_at in (10, 20, 50):
        with pytest.raises(Killed):
            run_one(harvest, trainee(tmp_path / "killed", name), RecordedProgress(kill_at=kill_at))
    assert equal(whole, run_one(harvest, trainee(tmp_path / "killed", name)))
    assert curve(tmp_path / "killed", name) == curve(tmp_path / "whole", name)
    assert [line["step"] for line in curve(tmp_path / "whole", name)] == list(range(10, 61, 10))


def test_in_one_pass_each_ends_as_it_would_alone(harvest: Path, tmp_path: Path) -> None:
    together = run_many(harvest, [trainee(tmp_path / "together", name) for name in VARIANTS])
    for name, found in zip(VARIANTS, together, strict=True):
        assert equal(found, run_one(harvest, trainee(tmp_path / "alone", name)))
        assert curve(tmp_path / "together", name) == curve(tmp_path / "alone", name)


def test_one_that_is_ahead_waits_for_the_others(harvest: Path, tmp_path: Path) -> None:
    due = run_many(harvest, [trainee(tmp_path / "whole", name) for name in ("topk", "relu")])
    with pytest.raises(Killed):
        run_one(harvest, trainee(tmp_path / "killed", "topk"), RecordedProgress(kill_at=40))
    progress = RecordedProgress()
    found = run_many(harvest, [trainee(tmp_path / "killed", name) for name in ("topk", "relu")], progress)
    assert progress.named("resumed") == [{"step": 30}]
    assert progress.advances[0][1] == 0
    assert all(equal(*pair) for pair in zip(due, found, strict=True))


def test_one_with_fewer_steps_ends_earlier(harvest: Path, tmp_path: Path) -> None:
    short, long = run_many(harvest, [trainee(tmp_path, "topk", step_count=20), trainee(tmp_path, "batchtopk")])
    assert equal(short, run_one(harvest, trainee(tmp_path / "alone", "topk", step_count=20)))
    assert equal(long, run_one(harvest, trainee(tmp_path / "alone", "batchtopk")))


def test_one_that_diverges_stops_alone(harvest: Path, tmp_path: Path) -> None:
    wild = trainee(tmp_path, "jumprelu", learning_rate=1e38)
    progress = RecordedProgress()
    lost, found = run_many(harvest, [wild, trainee(tmp_path, "relu")], progress)
    assert isinstance(lost, Diverged)
    assert "10 steps in a row" in str(lost)
    assert equal(found, run_one(harvest, trainee(tmp_path / "alone", "relu")))
    assert [fields["run"] for fields in progress.named("diverged")] == ["jumprelu"]
    with pytest.raises(Diverged, match=r"lower --lr, which is 1e\+38, or --sparsity, which is 0.001$"):
        run_one(harvest, trainee(tmp_path / "again", "jumprelu", learning_rate=1e38))
    with pytest.raises(Diverged, match=r"lower --lr, which is 1e\+38$"):
        run_one(harvest, trainee(tmp_path / "again", "batchtopk", learning_rate=1e38))


def test_batches_of_several_sizes_are_refused(harvest: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"share one --batch; these ask for \[32, 64\]"):
        run_many(harvest, [trainee(tmp_path, "topk"), trainee(tmp_path, "relu", batch_rows=32)])


@pytest.mark.parametrize(
    ("batch_rows", "said"),
    [
        (64, "--batch is 64; a batch must be a multiple of the 7 processes that torchrun started"),
        # Unreadable images have no activations, so that there may be fewer than was planned.
        (900, r"--batch is 900, and there are 720 activations to learn from; a batch must be a multiple of the 7"),
    ],
)
def test_batches_that_cannot_be_shared_out_evenly_are_refused(
    harvest: Path, tmp_path: Path, batch_rows: int, said: str
) -> None:
    activations, one = Activations(harvest, seed=0), trainee(tmp_path, batch_rows=batch_rows)
    assert activations.training_count == 720
    with pytest.raises(SettingError, match=said):
        train(activations, one, device=CPU, progress=SilentProgress(), ranks=Ranks(rank=0, count=7))


def test_another_seed_trains_other_weights(harvest: Path, tmp_path: Path) -> None:
    assert not equal(run_one(harvest, trainee(tmp_path / "a")), run_one(harvest, trainee(tmp_path / "b", seed=1)))


def test_training_explains_sparse_mixtures(harvest: Path, tmp_path: Path) -> None:
    run_many(harvest, [trainee(tmp_path, name, step_count=250) for name in ("matryoshka", "relu")])
    for name in ("matryoshka", "relu"):
        lines = curve(tmp_path, name)
        assert lines[-1]["fvu"] < 0.5 * lines[0]["fvu"]


def test_raw_residuals_have_the_same_fvu_as_scaled_ones_at_the_start(harvest: Path, tmp_path: Path) -> None:
    activations = Activations(harvest, seed=0)
    centred = make_scaling(*activations.moments())
    raw = choose_scaling(InputScaling.RAW, centred)
    rows = activations.sample(64)
    assert torch.equal(raw.apply(rows), rows)
    assert choose_scaling(InputScaling.SCALED, centred) is centred
    one = trainee(tmp_path, "relu", step_count=10)
    run_one(harvest, one)
    run_one(
        harvest,
        dataclasses.replace(
            one,
            sae=dataclasses.replace(one.sae, inputs=InputScaling.RAW),
            checkpoints=CheckpointFolder(tmp_path / "raw", plan_id="raw"),
            journal=tmp_path / "raw.jsonl",
        ),
    )
    (scaled,), (unscaled,) = curve(tmp_path, "relu"), read_journal(tmp_path / "raw.jsonl", run="relu")
    assert unscaled["loss"] == pytest.approx(unscaled["fvu"] * centred.scale**2)
    assert 0.1 < unscaled["fvu"] / scaled["fvu"] < 10


def test_training_goes_on_from_other_weights(harvest: Path, tmp_path: Path) -> None:
    activations = Activations(harvest, seed=0)
    first = run_one(harvest, trainee(tmp_path / "first", "topk", step_count=200))
    assert first.own_selection is not None
    initial = fold(first.weights, first.own_selection, first.scaling)
    one = trainee(tmp_path, "topk")
    weights = start(activations, first.scaling, one.sae, one.settings, initial)
    for name, tensor in weights.tensors().items():
        assert torch.allclose(tensor, first.weights.tensors()[name], atol=1e-5), name
    run_one(harvest, dataclasses.replace(trainee(tmp_path / "second", "topk"), initial=initial))
    run_one(harvest, trainee(tmp_path / "third", "topk"))
    going_on, anew = (curve(tmp_path / name, "topk")[0]["fvu"] for name in ("second", "third"))
    assert going_on < 0.5 * anew


def test_the_status_says_what_matters_most_first(harvest: Path, tmp_path: Path) -> None:
    progress = RecordedProgress()
    run_one(harvest, trainee(tmp_path, step_count=10), progress)
    status = progress.advances[-1][2]
    assert [part.split()[0] for part in status.split(", ")] == ["loss", "dead", "L0", "FVU", "threshold"]
    assert "L0 2.0" in status
    some = RecordedProgress()
    run_many(harvest, [trainee(tmp_path, name, step_count=10) for name in ("topk", "relu")], some)
    losses = [curve(tmp_path, name)[-1]["loss"] for name in ("topk", "relu")]
    assert some.advances[-1][2].startswith(f"2 runs, mean loss {sum(losses) / 2:.4f}, dead <= ")


def test_training_without_tritons_kernels_is_told(
    harvest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.trainer.why_plain", lambda device: "RuntimeError: Failed to find C compiler.")
    progress = RecordedProgress()
    some = [trainee(tmp_path, name, step_count=2) for name in ("batchtopk", "topk")]
    run_many(harvest, some, progress)
    told = [fields["reason"] for name, fields in progress.events if name.startswith("Triton's kernels do not run")]
    assert told == ["RuntimeError: Failed to find C compiler."]
    dense = RecordedProgress()
    run_one(harvest, trainee(tmp_path, "relu", step_count=2), dense)
    assert not any(name.startswith("Triton") for name, _ in dense.events)


def test_a_device_that_fails_is_told(harvest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Learner:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr("training.trainer.make_learner", fail)
    with pytest.raises(DeviceFailed, match="illegal memory access was encountered; start it again"):
        run_one(harvest, trainee(tmp_path))
