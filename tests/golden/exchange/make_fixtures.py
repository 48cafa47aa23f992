"""Makes the SAEs of this folder with the libraries that they come from, and writes down what those compute.

    python make_fixtures.py saelens | dictionary_learning | overcomplete

Each in an environment of its own, torch for CPU first:

    saelens              pip install torch sae-lens
    dictionary_learning  pip install torch numpy einops tqdm; pip install --no-deps dictionary-learning
    overcomplete         pip install torch numpy einops scipy scikit-learn scikit-image opencv-python-headless
                         "matplotlib<3.9" pillow; pip install --no-deps overcomplete

Every case is a folder as the library writes it, with `due.npz`: residuals, codes and reconstructions. Phosphene is
not imported. `versions.json` says what made it.
"""

import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

WIDTH, NEURONS, ROWS = 16, 48, 24
HERE = Path(__file__).parent


def fill(module: nn.Module, seed: int) -> None:
    """Give every weight a value at which a wrong reading shows: no zero bias, no unit norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                gains = 0.4 + 1.6 * torch.rand(weight.shape[0], 1, generator=generator)
                weight.copy_(0.35 * noise * gains)
            else:
                weight.copy_(0.3 * noise.abs() if "threshold" in name else 0.3 * noise)


def residuals(seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(ROWS, WIDTH, generator=generator) + torch.randn(WIDTH, generator=generator)


def write_due(folder: Path, inputs: torch.Tensor, codes: torch.Tensor, reconstructions: torch.Tensor) -> None:
    codes = codes.detach()
    active = (codes > 0).sum(dim=1).float().mean()
    assert 0 < active < NEURONS - 1, f"{folder}: {active} neurons on average say nothing"
    np.savez_compressed(
        folder / "due.npz",
        residuals=inputs.numpy(),
        codes=codes.numpy(),
        reconstructions=reconstructions.detach().numpy(),
    )


def write_versions(library: str, package: str) -> None:
    made_with = {package: version(package), "torch": torch.__version__.split("+")[0]}
    (HERE / library / "versions.json").write_text(json.dumps(made_with, indent=2) + "\n")


def stand_in(name: str, **contents: object) -> None:
    """Let a library import what none of its SAEs uses."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules.setdefault(name, module)


def make_saelens() -> None:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAE
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
    from safetensors.torch import save_file

    out = HERE / "saelens"
    inputs = residuals()
    sizes = {"d_in": WIDTH, "d_sae": NEURONS}
    scaler = ActivationScaler(scaling_factor=0.37)
    generator = torch.Generator().manual_seed(9)
    matrix = torch.randn(WIDTH, WIDTH, generator=generator).double() / 4 + torch.eye(WIDTH).double()
    whitener = ActivationScaler(
        whitening=ActivationWhitening(
            mean=torch.randn(WIDTH, generator=generator).double(),
            matrix=matrix,
            inverse_matrix=torch.linalg.inv(matrix),
        )
    )

    def fold(sae: SAE) -> None:
        match sae.cfg.normalize_activations:
            case "expected_average_only_in":
                sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            case "covariance_whitening":
                whitening = whitener.whitening
                sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)

    def put(name: str, sae: SAE, seed: int) -> None:
        folder = out / name
        fill(sae, seed)
        sae.save_model(folder)
        due = SAE.load_from_disk(folder, dtype="float32")
        if sae.cfg.normalize_activations == "expected_average_only_in":
            scaler.save(str(folder / "activation_scaler.json"))
        if sae.cfg.normalize_activations == "covariance_whitening":
            whitener.save(str(folder / "activation_scaler.json"))
        fold(due)
        codes = due.encode(inputs)
        write_due(folder, inputs, codes, due.decode(codes))

    put("standard", StandardSAE(StandardSAEConfig(**sizes)), 1)
    put("standard_uncentred", StandardSAE(StandardSAEConfig(**sizes, apply_b_dec_to_input=False)), 2)
    put("topk", TopKSAE(TopKSAEConfig(**sizes, k=5)), 3)
    put("topk_rescaled", TopKSAE(TopKSAEConfig(**sizes, k=5, rescale_acts_by_decoder_norm=True)), 4)
    put("jumprelu", JumpReLUSAE(JumpReLUSAEConfig(**sizes)), 5)
    put("jumprelu_bfloat16", JumpReLUSAE(JumpReLUSAEConfig(**sizes, dtype="bfloat16")), 6)
    put("gated", GatedSAE(GatedSAEConfig(**sizes)), 7)
    put("gated_uncentred", GatedSAE(GatedSAEConfig(**sizes, apply_b_dec_to_input=False)), 8)
    scaled, whitened = "expected_average_only_in", "covariance_whitening"
    put("standard_scaled", StandardSAE(StandardSAEConfig(**sizes, normalize_activations=scaled)), 9)
    put("jumprelu_scaled", JumpReLUSAE(JumpReLUSAEConfig(**sizes, normalize_activations=scaled)), 10)
    topk = {"k": 5, "rescale_acts_by_decoder_norm": True}
    put("topk_rescaled_scaled", TopKSAE(TopKSAEConfig(**sizes, **topk, normalize_activations=scaled)), 11)
    put("topk_rescaled_whitened", TopKSAE(TopKSAEConfig(**sizes, **topk, normalize_activations=whitened)), 12)
    options = {"apply_b_dec_to_input": False, "normalize_activations": whitened}
    put("gated_uncentred_whitened", GatedSAE(GatedSAEConfig(**sizes, **options)), 13)

    def put_training(name: str, sae: BatchTopKTrainingSAE, seed: int) -> None:
        fill(sae, seed)
        sae.topk_threshold = torch.tensor(1.1, dtype=torch.float64)
        sae.save_model(out / f"{name}_checkpoint")
        if sae.cfg.normalize_activations == scaled:
            scaler.save(str(out / f"{name}_checkpoint" / "activation_scaler.json"))
        fold(sae)
        sae.save_inference_model(out / name)
        due = SAE.load_from_disk(out / name)
        codes = due.encode(inputs)
        for folder in (out / name, out / f"{name}_checkpoint"):
            write_due(folder, inputs, codes, due.decode(codes))

    put_training("batchtopk", BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=5)), 14)
    put_training(
        "batchtopk_scaled",
        BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=5, normalize_activations=scaled)),
        15,
    )
    plain = BatchTopKTrainingSAEConfig(**sizes, k=5, rescale_acts_by_decoder_norm=False, normalize_activations=scaled)
    put_training("batchtopk_unrescaled_scaled", BatchTopKTrainingSAE(plain), 16)
    nested = MatryoshkaBatchTopKTrainingSAEConfig(**sizes, k=5, matryoshka_widths=[12, 24])
    put_training("matryoshka", MatryoshkaBatchTopKTrainingSAE(nested), 17)

    def put_old(name: str, words: dict[str, object], seed: int) -> None:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        shape = StandardSAE(StandardSAEConfig(**sizes))
        fill(shape, seed)
        save_file(shape.state_dict(), folder / "sae_weights.safetensors")
        config = {**sizes, "dtype": "torch.float32", "device": "cpu", "hook_point": "blocks.1.hook_resid_pre", **words}
        (folder / "cfg.json").write_text(json.dumps(config))
        due = SAE.load_from_disk(folder)
        codes = due.encode(inputs)
        write_due(folder, inputs, codes, due.decode(codes))

    put_old("standard_before_6", {"normalize_activations": False, "activation_fn_str": "relu"}, 18)
    put_old("topk_before_6", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, 19)
    write_versions("saelens", "sae-lens")


def make_dictionary_learning() -> None:
    stand_in("nnsight", LanguageModel=object)
    stand_in("datasets", load_dataset=None)
    stand_in("zstandard")
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    inputs = residuals()
    makers = {
        "auto_encoder": lambda: AutoEncoder(WIDTH, NEURONS),
        "auto_encoder_new": lambda: AutoEncoderNew(WIDTH, NEURONS),
        "gated": lambda: GatedAutoEncoder(WIDTH, NEURONS),
        "jumprelu": lambda: JumpReluAutoEncoder(WIDTH, NEURONS),
        "topk": lambda: AutoEncoderTopK(WIDTH, NEURONS, 5),
        "batch_topk": lambda: BatchTopKSAE(WIDTH, NEURONS, 5),
        "matryoshka": lambda: MatryoshkaBatchTopKSAE(WIDTH, NEURONS, 5, [12, 12, 24]),
    }
    for seed, (name, make) in enumerate(makers.items(), start=1):
        folder = HERE / "dictionary_learning" / name
        folder.mkdir(parents=True, exist_ok=True)
        sae = make()
        fill(sae, seed)
        if hasattr(sae, "k"):
            sae.threshold = torch.tensor(0.9)
        torch.save({key: value.cpu() for key, value in sae.state_dict().items()}, folder / "ae.pt")
        trainer = {"dict_class": type(sae).__name__, "activation_dim": WIDTH, "dict_size": NEURONS}
        if hasattr(sae, "k"):
            trainer["k"] = 5
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": WIDTH}}))
        due, _ = load_dictionary(str(folder), "cpu")
        codes = due.encode(inputs.clone())
        write_due(folder, inputs, codes, due.decode(codes))
    write_versions("dictionary_learning", "dictionary-learning")


def make_overcomplete() -> None:
    stand_in("timm")
    stand_in("torchvision", transforms=types.SimpleNamespace())
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, RAJumpSAE, RATopKSAE, TopKSAE

    inputs = residuals()
    points = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(7))
    makers = {
        "topk": (lambda: TopKSAE(WIDTH, NEURONS, top_k=5), {"top_k": 5}),
        "topk_max_l2": (
            lambda: TopKSAE(
                WIDTH, NEURONS, top_k=5, dictionary_params={"normalization": "max_l2", "use_multiplier": True}
            ),
            {"top_k": 5, "normalization": "max_l2"},
        ),
        "topk_l1": (
            lambda: TopKSAE(WIDTH, NEURONS, top_k=5, dictionary_params={"normalization": "l1"}),
            {"top_k": 5, "normalization": "l1"},
        ),
        "topk_max_l1": (
            lambda: TopKSAE(WIDTH, NEURONS, top_k=5, dictionary_params={"normalization": "max_l1"}),
            {"top_k": 5, "normalization": "max_l1"},
        ),
        "relu_identity": (
            lambda: SAE(WIDTH, NEURONS, dictionary_params={"normalization": "identity"}),
            {"normalization": "identity"},
        ),
        "topk_tied": (lambda: TopKSAE(WIDTH, NEURONS, top_k=5).tied(bias=True), {"top_k": 5}),
        "topk_untied": (lambda: TopKSAE(WIDTH, NEURONS, top_k=5).untied(bias=False), {"top_k": 5}),
        "topk_batchnorm": (lambda: TopKSAE(WIDTH, NEURONS, top_k=5, encoder_module="mlp_bn_1"), {"top_k": 5}),
        "batch_topk": (lambda: BatchTopKSAE(WIDTH, NEURONS, top_k=5), {"running_threshold": 0.8}),
        "jump": (lambda: JumpSAE(WIDTH, NEURONS), {}),
        "archetypal_topk": (
            lambda: RATopKSAE(WIDTH, NEURONS, points, top_k=5, delta=0.6),
            {"top_k": 5, "delta": 0.6},
        ),
        "archetypal_jump": (lambda: RAJumpSAE(WIDTH, NEURONS, points), {}),
    }
    for seed, (name, (make, words)) in enumerate(makers.items(), start=1):
        folder = HERE / "overcomplete" / name
        folder.mkdir(parents=True, exist_ok=True)
        sae = make()
        fill(sae, seed)
        if "batchnorm" in name:
            sae.encoder(residuals(8))  # moves the running moments
            sae.encoder(residuals(9))
        torch.save(sae.state_dict(), folder / "sae.pt")
        (folder / "sae.json").write_text(json.dumps({"model": type(sae).__name__, **words}))
        due = make()
        due.load_state_dict(torch.load(folder / "sae.pt", weights_only=True))
        if isinstance(due, BatchTopKSAE):
            due.running_threshold = torch.tensor(words["running_threshold"])
        due.eval()
        _, codes = due.encode(inputs)
        write_due(folder, inputs, codes, due.decode(codes))
    write_versions("overcomplete", "overcomplete")


if __name__ == "__main__":
    makers = {
        "saelens": make_saelens,
        "dictionary_learning": make_dictionary_learning,
        "overcomplete": make_overcomplete,
    }
    (HERE / sys.argv[1]).mkdir(exist_ok=True)
    makers[sys.argv[1]]()
