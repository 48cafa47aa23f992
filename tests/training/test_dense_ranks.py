import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from phosphene.errors import DeviceOutOfMemory
from tests.training.dense_in_ranks import RULES, advance, learner_of
from tests.training.test_dense_learner import HE, make_learner, rows
from training.ranks import Ranks


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    out = tmp_path / "end.pt"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.training.dense_in_ranks", str(out)],
        capture_output=True, text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    together = torch.load(out, weights_only=True)
    assert together["count"] == 2
    for index, variant in enumerate(RULES):
        alone = learner_of(variant)
        for found, due in zip(together["reports"][index], advance(alone), strict=True):
            assert found == pytest.approx(due, rel=1e-5)
        for name, value in alone.state().items():
            found = together["states"][index][name]
            if name.endswith("since_fired"):
                assert torch.equal(found, value), (variant, name)
            assert torch.allclose(found.double(), value.detach().double(), atol=2e-5), (variant, name)


def test_memory_that_runs_out_between_ranks_is_no_reason_to_begin_the_step_again() -> None:
    class Full(Ranks):
        def add_tensors(self, *tensors: Tensor) -> None:
            raise torch.OutOfMemoryError

    learner = make_learner(HE, ranks=Full(rank=1, count=2))
    with pytest.raises(DeviceOutOfMemory, match="memory of the device of process 1: use fewer --neurons"):
        learner.step(rows(32))
