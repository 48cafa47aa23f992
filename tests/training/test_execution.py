import pytest
import torch

from phosphene.errors import SettingError
from training.execution import check_bfloat16, has_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "has_it"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_told_by_the_processors_instructions(
    capabilities: dict[str, bool], has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16(CPU) is has_it
    if has_it:
        check_bfloat16(CPU)
    else:
        with pytest.raises(SettingError, match="--selection-precision is bfloat16, for which cpu has no instructions"):
            check_bfloat16(CPU)
