"""Errors of a torch device in our words: memory that ran out, and a device that is lost to the process."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from phosphene.errors import DeviceFailed, DeviceOutOfMemory

__all__ = ["device_errors", "is_out_of_memory"]

# cuBLAS says that it is not initialised where its workspace did not fit.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_FAILED = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")


@contextmanager
def device_errors(
    device: torch.device, *, what: str = "the batch", remedy: str = "run a smaller one"
) -> Iterator[None]:
    """Tell what less work may mend from what nothing mends; other errors pass as they are.

    Args:
        device: where the work runs.
        what: is put there, for messages.
        remedy: what to do where it does not fit.

    Raises:
        DeviceOutOfMemory: it did not fit.
        DeviceFailed: CUDA reported an error that sticks to the process.
    """
    try:
        yield
    except RuntimeError as cause:
        text = str(cause)
        if is_out_of_memory(cause):
            # The frames that failed hold the batch's tensors, and the error holds the frames.
            traceback.clear_frames(cause.__traceback__)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            raise DeviceOutOfMemory(
                f"{what} does not fit into the memory of {device}: {_first_line(text)}; {remedy}"
            ) from cause
        if any(words in text for words in _FAILED):
            raise DeviceFailed(
                f"the device {device} failed, and stays so for this process: {_first_line(text)}; start it again"
            ) from cause
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library below it, says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
