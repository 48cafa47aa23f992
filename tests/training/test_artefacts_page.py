"""docs/artefacts.md says of every file of a training run what is in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from phosphene.encoder import Site, Tokens
from tests.training.recorded_progress import Killed, RecordedProgress
from training.fit import fit
from training.plan import FitRequest, Sources
from training.requests import SaeRequest, TrainingRequest
from training.variants import VariantName

WIDTHS = {"neurons": 48, "width": 32}


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    whole = (root / "docs" / "artefacts.md").read_text(encoding="utf-8")
    return whole.partition("\n## Training runs\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module", params=["batchtopk", "relu", "jumprelu"])
def run(
    request: pytest.FixtureRequest, corpus_folder: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VariantName]:
    """The folder of a run that was killed after a checkpoint."""
    out = tmp_path_factory.mktemp("page") / "b"
    variant = VariantName(request.param)
    asked = FitRequest(
        sources=Sources(corpus=str(corpus_folder), encoder=str(encoder_folder)),
        site=Site(block=1, tokens=Tokens.CLS),
        sae=SaeRequest(k=4 if variant is VariantName.BATCHTOPK else None, neuron_count=48, variant=variant),
        training=TrainingRequest(step_count=400),
        out=out,
    )
    with pytest.raises(Killed):
        fit(asked, RecordedProgress(kill_at=260))
    (folder,) = (out.with_name("b.work") / "training").iterdir()
    return folder, variant


def keys_of(page: str, after: str) -> dict[str, str]:
    """Keys and types of the first table after these words."""
    table = page.partition(after)[2].partition("\n\n|")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", table, re.MULTILINE))


def fits(value: Any, described: str) -> bool:
    if value is None:
        return described.endswith(" or null")
    kinds: dict[str, type | tuple[type, ...]] = {"integer": int, "number": (int, float), "object": dict}
    return isinstance(value, kinds.get(described.removesuffix(" or null"), str))


def check(values: dict[str, Any], described: dict[str, str]) -> None:
    assert values.keys() == described.keys()
    assert [key for key, value in values.items() if not fits(value, described[key])] == []


def names_in(value: Any) -> list[str]:
    return [name for key, part in value.items() for name in [key, *names_in(part)]] if isinstance(value, dict) else []


def test_the_record_has_the_keys_of_the_page(page: str, run: tuple[Path, VariantName]) -> None:
    record = json.loads((run[0] / "run.json").read_bytes())
    check(record, keys_of(page, "\n`run.json`:"))
    config = {key: value for key, value in record["config"].items() if key not in ("inputs", "harvest")}
    config["sae"]["variant"] = {"name": "see training/variants.py for its numbers"}
    missing = [name for name in ["inputs", "harvest", *names_in(config)] if f"`{name}`" not in page]
    assert missing == []


def test_the_curve_has_the_keys_of_the_page(page: str, run: tuple[Path, VariantName]) -> None:
    lines = [json.loads(line) for line in (run[0] / "journal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 261, 10))
    for line in lines:
        check(line, keys_of(page, "\n`journal.jsonl` has"))
    assert (lines[-1]["threshold_ema"] is not None) == (run[1] is VariantName.BATCHTOPK)


def test_a_checkpoint_has_the_keys_and_tensors_of_the_page(page: str, run: tuple[Path, VariantName]) -> None:
    folder, variant = run
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert re.fullmatch(r"step-\d{9}", checkpoint.name)
    assert {path.name for path in checkpoint.iterdir()} == {"checkpoint.json", "state.safetensors"}
    record = json.loads((checkpoint / "checkpoint.json").read_bytes())
    check(record, keys_of(page, "`checkpoint.json`:"))
    for name in [*record["counts"], *record["averages"]]:
        assert f"`{name}`" in page
    title = "The top-k family:" if variant is VariantName.BATCHTOPK else "ReLU and JumpReLU:"
    assert {name: described(tensor) for name, tensor in load_file(checkpoint / "state.safetensors").items()} == {
        name: tensor
        for name, tensor in tensors_of(page, title).items()
        if not name.startswith("threshold") or variant is VariantName.JUMPRELU
    }


def described(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def tensors_of(page: str, title: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by name, every `NAME.part` written out."""
    table = page.partition(f"{title}\n\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (\w+) \| ([^|]+?) \|", table, re.MULTILINE)
    learnt = {name: shape for name, dtype, shape in rows if dtype == "float32" and not name.startswith("NAME.")}
    found = {}
    for name, dtype, shape in rows:
        for each in learnt if name.startswith("NAME.") else [name]:
            axes = re.findall(r"\w+", learnt[each] if shape == "as NAME" else shape)
            found[name.replace("NAME", each)] = (dtype, tuple(WIDTHS[axis] for axis in axes))
    return found
