"""Who is who among the processes that torchrun started, and on which GPU; see also test_dense_ranks.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from phosphene.errors import SettingError
from training.ranks import ALONE, gpu_of, open_ranks


class Torch:
    """What torch is asked for by a process that torchrun started on a machine with GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gpu_count: int) -> None:
        self.backend = ""
        self.patience = timedelta()
        self.gpu: int | None = None
        self.is_joined = False
        for name, stand_in in {
            "cuda.device_count": lambda: gpu_count,
            "cuda.set_device": self.set_device,
            "distributed.is_torchelastic_launched": lambda: True,
            "distributed.init_process_group": self.join,
            "distributed.destroy_process_group": self.part,
            "distributed.get_rank": lambda: 3,
            "distributed.get_world_size": lambda: 4,
        }.items():
            monkeypatch.setattr(f"torch.{name}", stand_in)
        monkeypatch.setenv("LOCAL_RANK", "1")

    def set_device(self, gpu: int) -> None:
        assert not self.is_joined
        self.gpu = gpu

    def join(self, backend: str, *, timeout: timedelta, **_: Any) -> None:
        self.backend, self.patience, self.is_joined = backend, timeout, True

    def part(self) -> None:
        self.is_joined = False


def test_a_process_that_nobody_launched_is_alone() -> None:
    with open_ranks("cuda") as ranks:
        assert ranks is ALONE


def test_each_process_takes_the_gpu_of_its_place_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch, gpu_count=2)
    with open_ranks("cuda") as ranks:
        assert (ranks.rank, ranks.count) == (3, 4)
        assert (fake.gpu, fake.backend) == (1, "cpu:gloo,cuda:nccl")
    assert not fake.is_joined


def test_on_the_cpu_no_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch, gpu_count=2)
    with open_ranks("cpu"):
        assert (fake.gpu, fake.backend) == (None, "gloo")


def test_the_others_wait_as_long_as_a_harvest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch, gpu_count=0)
    with open_ranks():
        assert fake.patience >= timedelta(days=7)
    # Whoever counts milliseconds in 32 bits still counts right.
    assert fake.patience / timedelta(milliseconds=1) < 2**31


def test_a_lone_process_may_choose() -> None:
    assert gpu_of("cuda:1", place=0, gpu_count=2) == 1


def test_processes_that_would_share_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torch(monkeypatch, gpu_count=1)
    due = r"more than 1 processes on a machine with 1 GPUs, .*: give torchrun --nproc-per-node 1, or fit --device cpu"
    with pytest.raises(SettingError, match=due), open_ranks("cuda"):
        pass
    assert fake.backend == ""
    fake = Torch(monkeypatch, gpu_count=2)
    due = "--device is cuda:1, one GPU for the 4 processes that torchrun started, .*: say --device cuda, and choose"
    with pytest.raises(SettingError, match=due), open_ranks("cuda:1"):
        pass
    assert not fake.is_joined
