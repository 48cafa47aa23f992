import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.sparse.test_sparse_learner import VARIANTS, batches, kernels
from training.ranks import ALONE, Ranks


@pytest.mark.parametrize("kind", ["kernels", "plain"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "end.pt"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.training.sparse.in_ranks", str(out), kind],
        capture_output=True, text=True, timeout=180, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    together = torch.load(out, weights_only=True)
    assert together["count"] == 2
    for index, variant in enumerate(VARIANTS):
        alone = kernels(variant)
        losses = [float(alone.step(inputs).loss) for inputs in batches(10)]
        assert together["losses"][index] == pytest.approx(losses, rel=1e-5)
        state = alone.state()
        assert torch.equal(together["states"][index]["samples_since_fired"], state["samples_since_fired"])
        for name, value in state.items():
            assert torch.allclose(together["states"][index][name].double(), value.double(), atol=3e-6), name


def test_a_batch_is_parted_whole_and_in_order() -> None:
    rows = list(range(11))
    assert [row for rank in range(3) for row in rows[Ranks(rank=rank, count=3).part(11)]] == rows
    assert rows[ALONE.part(11)] == rows
