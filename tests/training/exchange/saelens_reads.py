"""Run by the interpreter of an environment with SAELens: loads SAE folders and encodes residuals with each.

python saelens_reads.py RESIDUALS.npy FOLDER...      (writes theirs.npz into every folder)
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE

if __name__ == "__main__":
    residuals = torch.from_numpy(np.load(sys.argv[1]))
    for folder in map(Path, sys.argv[2:]):
        sae = SAE.load_from_disk(folder)
        codes = sae.encode(residuals)
        np.savez(
            folder / "theirs.npz",
            codes=codes.detach().numpy(),
            reconstructions=sae.decode(codes).detach().numpy(),
            architecture=sae.cfg.architecture(),
            metadata=sorted(sae.cfg.metadata.keys()),
        )
