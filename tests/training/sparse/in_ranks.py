"""Train a small autoencoder in as many processes as torchrun started; the first writes losses and weights.

python -m torch.distributed.run --nproc-per-node 2 -m tests.training.sparse.in_ranks OUT kernels|plain
"""

import sys

import torch
import torch.distributed

from tests.training.sparse.test_sparse_learner import SETTINGS, VARIANTS, batches, start
from training.ranks import Ranks, leave
from training.sparse.learner import CpuSparseLearner
from training.sparse.torch_learner import TorchSparseLearner

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    ranks = Ranks(rank=torch.distributed.get_rank(), count=torch.distributed.get_world_size())
    learners = [
        CpuSparseLearner(start(), variant, SETTINGS, thread_count=1, ranks=ranks)
        if sys.argv[2] == "kernels"
        else TorchSparseLearner(start(), variant, SETTINGS, device=torch.device("cpu"), ranks=ranks)
        for variant in VARIANTS
    ]
    losses = [
        [float(learner.step(inputs[ranks.part(len(inputs))]).loss) for inputs in batches(10)] for learner in learners
    ]
    if ranks.is_first:
        states = [{name: tensor.clone() for name, tensor in learner.state().items()} for learner in learners]
        torch.save({"losses": losses, "states": states, "count": ranks.count}, sys.argv[1])
    ranks.wait()
    torch.distributed.destroy_process_group()
    leave(0)
