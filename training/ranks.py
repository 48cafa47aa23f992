"""Several processes that train one autoencoder, each on its part of every batch; knows nothing of autoencoders.

Started by `torchrun`, which says to torch who is who. What crosses between processes is summed or gathered in the order
of ranks, so that every process computes the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from jaxtyping import Num
from torch import Tensor

from phosphene.engine import open_device
from phosphene.errors import SettingError

__all__ = ["ALONE", "Ranks", "gpu_of", "leave", "open_ranks"]

# All wait while the first one harvests, which may take days. For a process that died nobody waits so long: torchrun
# ends the others.
_PATIENCE = timedelta(days=7)


class Ranks:
    """This process among those that train together; with one of them nothing is sent."""

    def __init__(self, *, rank: int, count: int) -> None:
        """Be number `rank` of `count`; more than one needs `torch.distributed` to be initialised."""
        self.rank = rank
        self.count = count

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them made."""
        return self.rank == 0

    def part(self, row_count: int) -> slice:
        """This process's rows of a batch: contiguous, in the order of ranks."""
        return slice(row_count * self.rank // self.count, row_count * (self.rank + 1) // self.count)

    def total(self, value: float) -> float:
        """The sum of one number over the processes."""
        if self.count == 1:
            return value
        sent = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(sent)
        return float(sent)

    def least(self, value: float) -> float:
        """The smallest of one number over the processes."""
        if self.count == 1:
            return value
        sent = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(sent, op=torch.distributed.ReduceOp.MIN)
        return float(sent)

    def add(self, *arrays: Num[np.ndarray, ...]) -> None:
        """Replace each array by its sum over the processes, in place."""
        if self.count > 1:
            for array in arrays:
                torch.distributed.all_reduce(torch.from_numpy(array))

    def gather(self, values: Num[np.ndarray, " values"]) -> list[Any]:
        """The values of every process, by rank; they may differ in number."""
        if self.count == 1:
            return [values]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, values)
        return gathered

    def tell(self, value: Any) -> Any:
        """What the first process has to say, to all of them; what the others give is not looked at."""
        if self.count == 1:
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def add_tensors(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def gather_tensor(self, values: Num[Tensor, " values"]) -> Num[Tensor, " all_values"]:
        """The values of every process in the order of ranks; each gives equally many."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        torch.distributed.all_gather(parts, values)
        return torch.cat(parts)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


def leave(status: int) -> NoReturn:
    """End a process that `torchrun` started, its work done, without unwinding it; any other ends as usual.

    Now and then the backend's own threads abort a process that unwinds, though the group is gone: torchrun would call
    finished work failed.
    """
    if not torch.distributed.is_torchelastic_launched():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


ALONE = Ranks(rank=0, count=1)
"""One process."""


@contextmanager
def open_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """The processes that `torchrun` started, joined until the block is left; one process where it started none.

    Args:
        device: what all of them were told: with `cuda`, each gets a GPU of its own, and `cuda` means that one.

    Raises:
        SettingError: no such device, or not for so many processes.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        yield ALONE
        return
    is_cuda = open_device(device).type == "cuda"
    if is_cuda:
        place = torch.distributed.get_node_local_rank()
        torch.cuda.set_device(gpu_of(device, place=place, gpu_count=torch.cuda.device_count()))
    # NCCL sends what lies on GPUs, gloo everything else.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=_PATIENCE)
    try:
        ranks = Ranks(rank=torch.distributed.get_rank(), count=torch.distributed.get_world_size())
        _refuse_shared_gpu(device, ranks.count)
        yield ranks
    finally:
        torch.distributed.destroy_process_group()


def gpu_of(device: str, *, place: int, gpu_count: int) -> int:
    """The GPU of a process.

    Args:
        device: `cuda`, or `cuda:N` for a lone process.
        place: of the process among those of its machine, from 0.
        gpu_count: GPUs that they see.

    Raises:
        SettingError: no GPU is left for it.
    """
    _, _, number = device.partition(":")
    if number:
        return int(number)
    if place >= gpu_count:
        raise SettingError(
            f"torchrun started more than {gpu_count} processes on a machine with {gpu_count} GPUs, and each needs its "
            f"own: give torchrun --nproc-per-node {gpu_count}, or fit --device cpu",
            field="device",
        )
    return place


def _refuse_shared_gpu(device: str, count: int) -> None:
    if count > 1 and ":" in device:
        raise SettingError(
            f"--device is {device}, one GPU for the {count} processes that torchrun started, and each needs its own: "
            "say --device cuda, and choose with CUDA_VISIBLE_DEVICES which GPUs they see",
            field="device",
        )
