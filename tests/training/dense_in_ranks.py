"""Train small dense autoencoders in as many processes as torchrun started; the first writes losses and weights.

python -m torch.distributed.run --nproc-per-node 2 -m tests.training.dense_in_ranks OUT
"""

import sys

import torch
import torch.distributed

from tests.training.test_dense_learner import FRY, HE, JUMP, make_learner, plant_dead, rows, snapshot
from training.dense_learner import DenseLearner
from training.ranks import ALONE, Ranks, leave
from training.variants import DenseVariant

STEP_COUNT = 12
RULES: list[DenseVariant] = [FRY, HE, JUMP]


def learner_of(variant: DenseVariant, ranks: Ranks = ALONE) -> DenseLearner:
    """At step zero, with two neurons that have been silent for long."""
    learner = make_learner(variant, ranks=ranks)
    plant_dead(learner, [1, 5])
    if ranks.rank == 1:
        learner.block_rows = 12  # As if the second device had less memory.
    return learner


def advance(learner: DenseLearner, ranks: Ranks = ALONE) -> list[tuple[float, float, int]]:
    """Loss, L0 and dead neurons of every step."""
    found = []
    for batch in rows(64 * STEP_COUNT).split(64):
        report = learner.step(batch[ranks.part(len(batch))])
        found.append((float(report.loss), float(report.l0), report.dead_count))
    return found


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    ranks = Ranks(rank=torch.distributed.get_rank(), count=torch.distributed.get_world_size())
    learners = [learner_of(variant, ranks) for variant in RULES]
    reports = [advance(learner, ranks) for learner in learners]
    if ranks.is_first:
        states = [snapshot(learner) for learner in learners]
        torch.save({"reports": reports, "states": states, "count": ranks.count}, sys.argv[1])
    ranks.wait()
    torch.distributed.destroy_process_group()
    leave(0)
