"""What torch is asked to do, watched and disturbed: no operation is hidden from these, whoever asks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal", "repeat_interleave")


class NeverWaits(TorchDispatchMode):
    """Refuses what would wait for a GPU: reading a number, and results whose size the values decide."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert not name.startswith(_WAITING), f"{name} waits for the device"
        if name.startswith(("index", "_index_put")) and isinstance(args[1], list | tuple):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "a mask as an index waits"
        return func(*args, **(kwargs or {}))


class RunsOutOfMemory(TorchDispatchMode):
    """Raises at the operation number `fails_at` that asks for memory, or at one that asks for more than `limit`."""

    def __init__(self, *, fails_at: int = -1, limit_values: int = 1 << 60) -> None:
        super().__init__()
        self._left = fails_at
        self._limit_values = limit_values
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(result.alias_info is None for result in func._schema.returns):
            return func(*args, **(kwargs or {}))
        if self._left == 0:
            raise torch.OutOfMemoryError
        self._left -= 1
        results = func(*args, **(kwargs or {}))
        values = max((leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, Tensor)), default=0)
        if values > self._limit_values:
            raise torch.OutOfMemoryError
        self.largest = max(self.largest, values)
        return results
