"""Codes of SAEs that the real libraries made, against what those libraries compute (tests/golden/exchange)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.errors import ArtefactRefused
from phosphene.selection import JumpReLU, TopK
from training.exchange import read, read_foreign

GOLDEN = Path(__file__).parents[2] / "golden" / "exchange"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/due.npz"))
NEURONS = 48


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def test_every_library_has_its_cases() -> None:
    counts = {library: sum(case.parent.name == library for case in CASES) for library in ("saelens", "overcomplete")}
    assert counts == {"saelens": 23, "overcomplete": 12}
    assert len(CASES) == 42


@pytest.mark.parametrize("folder", CASES, ids=name_of)
def test_codes_and_reconstructions_are_those_of_the_library(folder: Path) -> None:
    due = {name: torch.from_numpy(value) for name, value in np.load(folder / "due.npz").items()}
    foreign = read(folder)
    assert foreign.library == folder.parent.name
    codes = foreign.sae.encode(due["residuals"], limit=NEURONS)
    dense = torch.zeros(len(due["residuals"]), NEURONS).scatter_add(1, codes.neuron_ids, codes.values)
    largest = due["codes"].amax(dim=1, keepdim=True)
    assert torch.equal(dense > 0, due["codes"] > 0)
    assert bool(((dense - due["codes"]).abs() <= 1e-5 * largest).all())
    torch.testing.assert_close(foreign.sae.decode(codes), due["reconstructions"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("saelens/standard", JumpReLU),
        ("saelens/topk", TopK),
        ("saelens/batchtopk_checkpoint", JumpReLU),
        ("saelens/gated", JumpReLU),
        ("dictionary_learning/topk", TopK),
        ("dictionary_learning/matryoshka", JumpReLU),
        ("overcomplete/batch_topk", JumpReLU),
    ],
)
def test_every_rule_comes_down_to_one_of_two(name: str, rule: type) -> None:
    assert isinstance(read_foreign(GOLDEN / name).selection, rule)


def test_files_that_decide_codes_are_named() -> None:
    assert [file.name for file in read(GOLDEN / "saelens" / "standard").files] == [
        "cfg.json",
        "sae_weights.safetensors",
    ]
    assert "activation_scaler.json" in {file.name for file in read(GOLDEN / "saelens" / "standard_scaled").files}
    found = read(GOLDEN / "dictionary_learning" / "gated")
    assert [file.name for file in found.files] == ["ae.pt", "config.json"]
    assert found.architecture == "GatedAutoEncoder"


@pytest.mark.parametrize("name", ["auto_encoder", "auto_encoder_new", "gated", "jumprelu", "matryoshka"])
def test_a_class_that_its_tensors_tell_needs_no_configuration(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / "dictionary_learning" / name
    (tmp_path / "ae_100.pt").write_bytes((folder / "ae.pt").read_bytes())
    told, untold = read(folder), read(tmp_path / "ae_100.pt")
    assert untold.architecture == told.architecture
    assert torch.equal(untold.sae.encoder_weight, told.sae.encoder_weight)


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_classes_with_the_same_tensors_need_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "ae.pt").write_bytes((GOLDEN / "dictionary_learning" / name / "ae.pt").read_bytes())
    with pytest.raises(ArtefactRefused, match=r"AutoEncoderTopK and of BatchTopKSAE.*config\.json"):
        read(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    (tmp_path / "config.json").write_bytes((GOLDEN / "dictionary_learning" / name / "config.json").read_bytes())
    assert read(tmp_path / "checkpoints" / "ae_100.pt").files[-1].name == "config.json"


def test_the_older_spelling_of_matryoshka_is_read(tmp_path: Path) -> None:
    folder = GOLDEN / "dictionary_learning" / "matryoshka"
    (tmp_path / "ae.pt").write_bytes((folder / "ae.pt").read_bytes())
    text = (folder / "config.json").read_text().replace("Matryoshka", "Matroyshka")
    (tmp_path / "config.json").write_text(text)
    assert "Matroyshka" in text
    assert read(tmp_path).architecture == "MatryoshkaBatchTopKSAE"
