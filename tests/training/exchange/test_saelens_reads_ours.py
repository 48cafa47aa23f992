"""What we write, read by the real SAELens in its own environment: same codes.

`make bench-training` makes that environment; elsewhere `python -m venv build/peers/training/saelens`, then torch and
sae-lens.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from phosphene.bundle import save_bundle
from phosphene.codes import CodeLimits
from phosphene.encoder import Family, Site, Tokens, load_encoder
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection, TopK
from tests.families import WIDTH, write_encoder
from training.export import fold
from training.scaling import Scaling
from training.weights import Weights

INTERPRETER = Path("build/peers/training/saelens/bin/python")
"""Where the benchmark of training installs its peers."""
NEURONS = 40


SELECTIONS: dict[str, Selection] = {
    "topk": TopK(4),
    "jumprelu": JumpReLU(torch.linspace(0.1, 0.6, NEURONS)),
    "relu": JumpReLU(torch.zeros(NEURONS)),
}


@pytest.fixture(scope="module")
def interpreter(root: Path) -> Path:
    python = root / INTERPRETER
    if not python.exists():
        pytest.skip(f"no {INTERPRETER}: SAELens is not installed here")
    search = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sae_lens') is None)"
    if subprocess.run([python, "-c", search], check=False).returncode != 0:
        pytest.skip(f"{INTERPRETER} has no sae_lens")
    return python


def trained(selection: Selection) -> SparseAutoencoder:
    """As export makes it: the scaling folded into the weights."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn(NEURONS, WIDTH, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    weights = Weights(
        encoder_weight=directions.T.contiguous() * 0.9,
        encoder_bias=0.1 * torch.randn(NEURONS, generator=generator),
        directions=directions,
        decoder_bias=0.1 * torch.randn(WIDTH, generator=generator),
    )
    return fold(weights, selection, Scaling(mean=torch.randn(WIDTH, generator=generator), scale=2.5))


@pytest.mark.slow
def test_a_bundle_is_an_saelens_folder(interpreter: Path, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder", Family.VIT)
    encoder = load_encoder(str(source))
    site = Site(block=1, tokens=Tokens.CLS)
    residuals = 2 * torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(6))
    np.save(tmp_path / "residuals.npy", residuals.numpy())
    saes = {}
    for name, selection in SELECTIONS.items():
        bundle = save_bundle(
            tmp_path / name,
            encoder=encoder,
            encoder_source=source,
            site=site,
            sae=trained(selection),
            limits=CodeLimits(),
            training={},
        )
        saes[name] = bundle.sae
    script = Path(__file__).parent / "saelens_reads.py"
    folders = [tmp_path / name / "sae" for name in SELECTIONS]
    done = subprocess.run(
        [interpreter, script, tmp_path / "residuals.npy", *folders],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for name, sae in saes.items():
        theirs = np.load(tmp_path / name / "sae" / "theirs.npz")
        assert str(theirs["architecture"]) == ("topk" if name == "topk" else "jumprelu")
        assert {"site", "encoder"} <= set(theirs["metadata"].tolist())
        codes, due = sae.encode(residuals, limit=NEURONS), torch.from_numpy(theirs["codes"])
        dense = torch.zeros(64, NEURONS).scatter_add(1, codes.neuron_ids, codes.values)
        assert torch.equal(dense > 0, due > 0)
        assert bool(((dense - due).abs() <= 1e-5 * due.amax(dim=1, keepdim=True)).all())
        reconstructions = torch.from_numpy(theirs["reconstructions"])
        torch.testing.assert_close(sae.decode(codes), reconstructions, rtol=1e-5, atol=2e-5)
