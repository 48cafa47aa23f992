"""Where and with how many threads to compute; knows nothing of what is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phosphene.errors import SettingError

# As torch names them; the last is Arm's.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and with how many threads to compute."""

    device: str = "cpu"
    """`cpu` or `cuda[:n]`."""
    thread_count: int = 1
    """CPU threads of torch; results are equal only for equal counts."""

    def check(self) -> None:
        """Refuse values out of bounds; whether the device is here, the engine knows.

        Raises:
            SettingError: naming the option, its value and the limits.
        """
        if not 1 <= self.thread_count <= 1024:
            raise SettingError(f"--threads is {self.thread_count}; it must be from 1 to 1024")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in _BFLOAT16_INSTRUCTIONS)


def check_bfloat16(device: torch.device) -> None:
    """Refuse a device that has no bfloat16.

    Raises:
        SettingError: naming the option.
    """
    if not has_bfloat16(device):
        raise SettingError(
            f"--selection-precision is bfloat16, for which {device} has no instructions: use float32",
            field="selection-precision",
        )
