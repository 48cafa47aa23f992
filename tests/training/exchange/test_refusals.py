"""What cannot be read with the same codes is refused, and the message says what, why and what helps."""

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from phosphene.errors import ArtefactDamaged, ArtefactMissing, ArtefactRefused, NumericError, PhospheneError
from tests.unprivileged import public_folder, without_rights
from training.exchange import read
from training.exchange.tensors import read_json
from training.exchange.torch_file import read_state

GOLDEN = Path(__file__).parents[2] / "golden" / "exchange"


class Evil:
    """Unpickled with trust, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


def copy(name: str, target: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, target, dirs_exist_ok=True))


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_state(file: Path, **changes: object) -> None:
    state = torch.load(file, weights_only=True) | changes
    torch.save({name: value for name, value in state.items() if value is not None}, file)


# -- access


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """The system opens nothing further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("saelens/standard", "cfg.json"),
        ("saelens/standard", "sae_weights.safetensors"),
        ("dictionary_learning/topk", "ae.pt"),
        ("dictionary_learning/topk", "config.json"),
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(open_folder: Path, fixture: str, name: str) -> None:
    file = copy(fixture, open_folder) / name
    open_folder.chmod(0o755)
    file.chmod(0)
    with (
        without_rights(open_folder),
        pytest.raises(ArtefactMissing, match=f"{name}' cannot be read: .*; let the user who runs"),
    ):
        read(open_folder)
    file.chmod(0o644)
    assert read(open_folder).sae.width > 0


@pytest.mark.parametrize("reads", [read_state, read_json])
def test_what_keeps_a_file_from_being_opened_is_said(tmp_path: Path, reads: Callable[[Path], object]) -> None:
    file = tmp_path / "file"
    with pytest.raises(ArtefactMissing, match="file' cannot be read: No such file .*; put it back"):
        reads(file)
    file.touch()
    with no_more_files(), pytest.raises(ArtefactMissing, match="Too many open files; mend the disk"):
        reads(file)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that opens and cannot be read")
def test_a_disk_that_gives_an_error_is_not_a_damaged_file() -> None:
    # The page at address 0, which no process has: reading it is an input/output error.
    with pytest.raises(ArtefactMissing, match="Input/output error; mend the disk"):
        read_state(Path("/proc/self/mem"))


# -- recognition


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no SAE folder or file"):
        read(tmp_path / "nowhere")


def test_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "sae.onnx").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "sae.onnx"):
        with pytest.raises(ArtefactRefused, match=r"no SAE that can be read; read is an SAELens folder .* torch file"):
            read(path)


def test_half_a_folder_and_one_of_its_files(tmp_path: Path) -> None:
    folder = copy("saelens/standard", tmp_path)
    with pytest.raises(ArtefactRefused, match="give the folder"):
        read(folder / "cfg.json")
    (folder / "cfg.json").unlink()
    with pytest.raises(ArtefactMissing, match="sae_weights.safetensors and no cfg.json"):
        read(folder)


def test_several_saes(tmp_path: Path) -> None:
    copy("saelens/standard", tmp_path)
    copy("dictionary_learning/gated", tmp_path)
    with pytest.raises(ArtefactRefused, match=r"several SAEs \(cfg.json, sae_weights.safetensors, ae.pt\)"):
        read(tmp_path)
    assert read(tmp_path / "ae.pt").library == "dictionary_learning"


def test_the_optimiser_in_a_checkpoint_of_saelens_is_no_second_sae(tmp_path: Path) -> None:
    folder = copy("saelens/batchtopk_checkpoint", tmp_path)
    (folder / "trainer_state.pt").write_bytes(b"x")
    assert read(folder).library == "saelens"


# -- torch files


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name, options in {"new.pt": {}, "old.pt": {"_use_new_zipfile_serialization": False}}.items():
        torch.save({"encoder.weight": Evil(mark)}, tmp_path / name, **options)
        with pytest.raises(ArtefactRefused, match=r"pickle of Python objects .* run code .* `model\.state_dict\(\)`"):
            read(tmp_path / name)
        assert not mark.exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4), tmp_path / "model.pt")
    with pytest.raises(ArtefactRefused, match=r"torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([torch.ones(2)], ArtefactRefused, "holds a list, and a state dict is due"),
        ({}, ArtefactRefused, "state dict is due"),
        ({"state_dict": {"W_enc": torch.ones(2)}}, ArtefactRefused, "holds a dict at 'state_dict'"),
        ({3: torch.ones(2)}, ArtefactRefused, "names a tensor 3"),
        ({"a": torch.ones(2, device="meta")}, ArtefactRefused, "not a plain dense tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, ArtefactRefused, "not a plain dense tensor"),
        ({"a": torch.ones(1).expand(1 << 40)}, ArtefactDamaged, "more than the file holds"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, ArtefactRefused, "tensors of no SAE"),
    ],
)
def test_a_torch_file_with_something_else(
    tmp_path: Path, value: object, error: type[PhospheneError], message: str
) -> None:
    torch.save(value, tmp_path / "sae.pt")
    with pytest.raises(error, match=message):
        read(tmp_path)


def test_a_flipped_bit_among_the_weights_is_seen(tmp_path: Path) -> None:
    file = copy("dictionary_learning/gated", tmp_path) / "ae.pt"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ArtefactDamaged, match="checksum"):
        read(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_broken_file_is_damaged_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["dictionary_learning/gated", "overcomplete/jump", "saelens/jumprelu"]))
    folder = copy(name, tmp_path / name)
    file = data.draw(st.sampled_from(sorted(file for file in folder.iterdir() if file.name != "due.npz")))
    raw = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[position] = data.draw(st.integers(0, 255))
        file.write_bytes(raw)
    else:
        file.write_bytes(raw[:position])
    with contextlib.suppress(PhospheneError):
        read(folder)


# -- SAELens


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("standard", {"architecture": "abstopk"}, ArtefactRefused, "may be negative"),
        ("standard", {"architecture": "matching_pursuit"}, ArtefactRefused, "one after the other"),
        ("standard", {"architecture": "temporal"}, ArtefactRefused, "tokens before it"),
        ("standard", {"architecture": "jumprelu_transcoder"}, ArtefactRefused, "another site"),
        ("standard", {"architecture": "crosscoder"}, ArtefactRefused, "read are standard, topk, jumprelu, gated"),
        ("standard", {"architecture": ["standard"]}, ArtefactRefused, "cannot be read"),
        ("standard", {"architecture": "gated"}, ArtefactDamaged, "b_gate is missing"),
        ("jumprelu", {"architecture": "standard"}, ArtefactRefused, "threshold"),
        ("standard", {"normalize_activations": "layer_norm"}, ArtefactRefused, "length of its own"),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, ArtefactRefused, "length of its own"),
        ("standard", {"normalize_activations": "zscore"}, ArtefactRefused, "'zscore'"),
        ("standard", {"normalize_activations": True}, ArtefactMissing, "activation_scaler.json"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, ArtefactMissing, '"scaling_factor": 1.23'),
        ("standard", {"normalize_activations": "covariance_whitening"}, ArtefactMissing, "activation_whitening"),
        ("standard", {"reshape_activations": "hook_z"}, ArtefactRefused, "attention heads"),
        ("standard", {"d_out": 32}, ArtefactRefused, "transcoders"),
        ("standard", {"activation_fn": "tanh-relu"}, ArtefactRefused, "tanh-relu"),
        ("standard", {"apply_b_dec_to_input": "false"}, ArtefactDamaged, "true or false"),
        ("topk", {"rescale_acts_by_decoder_norm": 1}, ArtefactDamaged, "true or false"),
        ("topk", {"k": 0}, ArtefactDamaged, "k is 0; it must be a whole number from 1 to 48"),
        ("topk", {"k": 49}, ArtefactDamaged, "from 1 to 48"),
        ("topk", {"k": True}, ArtefactDamaged, "k is True"),
        ("topk", {"d_in": 17}, ArtefactDamaged, r"W_enc is \(16, 48\), due \(17, 48\)"),
        ("topk", {"d_sae": None}, ArtefactDamaged, "d_sae is None"),
    ],
)
def test_an_saelens_configuration(
    tmp_path: Path, name: str, changes: dict[str, object], error: type[PhospheneError], message: str
) -> None:
    folder = copy(f"saelens/{name}", tmp_path)
    change_json(folder / "cfg.json", **changes)
    with pytest.raises(error, match=message):
        read(folder)


@pytest.mark.parametrize("factor", [None, 0, -1.0, "0.5", float("inf"), float("nan"), 10**400])
def test_a_scaling_factor_that_is_none(tmp_path: Path, factor: object) -> None:
    folder = copy("saelens/standard_scaled", tmp_path)
    change_json(folder / "activation_scaler.json", scaling_factor=factor)
    with pytest.raises(ArtefactDamaged, match="greater than 0"):
        read(folder)


def test_fine_tuning_factors_are_dropped_where_they_are_one_and_refused_elsewhere(tmp_path: Path) -> None:
    folder = copy("saelens/standard", tmp_path)
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"scaling_factor": torch.ones(48)}, folder / "sae_weights.safetensors")
    assert read(folder).architecture == "standard"
    save_file(weights | {"scaling_factor": torch.full((48,), 1.1)}, folder / "sae_weights.safetensors")
    with pytest.raises(ArtefactRefused, match="fine-tuned"):
        read(folder)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    folder = copy("saelens/standard", tmp_path)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_enc"][3, 3] = float("nan")
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(NumericError, match="encoder_weight"):
        read(folder)


# -- dictionary_learning


@pytest.mark.parametrize(
    ("name", "trainer", "error", "message"),
    [
        ("topk", {"dict_class": "IdentityDict"}, ArtefactRefused, "IdentityDict"),
        ("topk", {"dict_class": ["AutoEncoderTopK"]}, ArtefactRefused, "cannot be read"),
        ("topk", {"dict_class": "GatedAutoEncoder"}, ArtefactDamaged, "names a GatedAutoEncoder"),
        ("topk", {"dict_class": "AutoEncoderTopK", "k": 6}, ArtefactDamaged, "5 in the torch file and 6"),
        ("topk", "AutoEncoderTopK", ArtefactRefused, "dict_class"),
    ],
)
def test_a_configuration_of_dictionary_learning(
    tmp_path: Path, name: str, trainer: object, error: type[PhospheneError], message: str
) -> None:
    folder = copy(f"dictionary_learning/{name}", tmp_path)
    change_json(folder / "config.json", trainer=trainer)
    with pytest.raises(error, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("batch_topk", {"threshold": torch.tensor(-1.0)}, ArtefactRefused, "threshold_start_step"),
        ("matryoshka", {"threshold": torch.tensor(-1.0)}, ArtefactRefused, "never set it"),
        ("batch_topk", {"threshold": torch.tensor(float("nan"))}, NumericError, "threshold"),
        ("batch_topk", {"threshold": None}, ArtefactDamaged, "BatchTopKSAE"),
        ("topk", {"k": torch.tensor(0)}, ArtefactDamaged, "k is 0"),
        ("topk", {"k": torch.tensor(float("nan"))}, ArtefactDamaged, "k is nan"),
        ("topk", {"b_dec": torch.zeros(15)}, ArtefactDamaged, r"b_dec is \(15,\), due \(16,\)"),
        ("topk", {"encoder.weight": torch.zeros(48)}, ArtefactDamaged, "two axes"),
        ("gated", {"r_mag": torch.zeros(48, dtype=torch.complex64)}, ArtefactRefused, "complex"),
        ("gated", {"extra": torch.zeros(48)}, ArtefactRefused, "tensors of no SAE"),
    ],
)
def test_a_state_dict_of_dictionary_learning(
    tmp_path: Path, name: str, changes: dict[str, object], error: type[PhospheneError], message: str
) -> None:
    folder = copy(f"dictionary_learning/{name}", tmp_path)
    change_state(folder / "ae.pt", **changes)
    with pytest.raises(error, match=message):
        read(folder)


# -- Overcomplete


@pytest.mark.parametrize(
    ("name", "words", "error", "message"),
    [
        ("topk", {}, ArtefactRefused, "does not say which model"),
        ("topk", {"model": "TopKSAE"}, ArtefactRefused, "does not hold its top_k"),
        ("topk", {"model": "TopKSAE", "top_k": 49}, ArtefactDamaged, "from 1 to 48"),
        ("topk", {"model": "BatchTopKSAE"}, ArtefactRefused, "does not hold its threshold"),
        ("topk", {"model": "BatchTopKSAE", "running_threshold": -1}, ArtefactDamaged, "of at least 0"),
        ("topk", {"model": "MpSAE", "top_k": 5}, ArtefactRefused, "MpSAE"),
        ("topk", {"model": "JumpSAE"}, ArtefactDamaged, "no thresholds"),
        ("jump", {"model": "TopKSAE", "top_k": 5}, ArtefactDamaged, "has thresholds"),
        ("topk", {"model": "TopKSAE", "k": 5}, ArtefactRefused, r"\['k'\]"),
        ("topk", {"model": "TopKSAE", "top_k": 5, "normalization": "l3"}, ArtefactRefused, "l3"),
        ("topk", {"model": "TopKSAE", "top_k": 5, "normalization": []}, ArtefactRefused, "known are l2"),
        ("archetypal_topk", {"model": "RATopKSAE", "top_k": 5, "delta": "x"}, ArtefactDamaged, "delta"),
    ],
)
def test_words_beside_a_state_dict_of_overcomplete(
    tmp_path: Path, name: str, words: dict[str, object], error: type[PhospheneError], message: str
) -> None:
    folder = copy(f"overcomplete/{name}", tmp_path)
    (folder / "sae.json").write_text(json.dumps(words))
    with pytest.raises(error, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("topk", {"Q": torch.zeros(4)}, ArtefactRefused, "QSAE"),
        ("topk", {"extra": torch.zeros(4)}, ArtefactRefused, "extra"),
        ("topk", {"encoder.mlp_blocks.0.0.weight": torch.zeros(16, 16)}, ArtefactRefused, "only one linear layer"),
        ("topk", {"encoder.resnet_blocks.0.conv1.weight": torch.zeros(3)}, ArtefactRefused, "only one linear layer"),
        ("topk_batchnorm", {"encoder.final_block.1.running_var": None}, ArtefactRefused, "LayerNorm"),
        ("topk", {"encoder.final_block.0.weight": None}, ArtefactDamaged, "missing"),
        ("topk", {"dictionary._weights": torch.zeros(48)}, ArtefactDamaged, "two axes"),
        ("topk", {"dictionary._weights": None}, ArtefactDamaged, "neither"),
        ("topk_tied", {"encoder.bias": torch.zeros(3)}, ArtefactDamaged, r"bias is \(3,\)"),
        ("topk_untied", {"encoder.weight": torch.zeros(3, 16)}, ArtefactDamaged, r"weight is \(3, 16\)"),
        ("jump", {"thresholds": torch.zeros(3)}, ArtefactDamaged, "thresholds"),
    ],
)
def test_a_state_dict_of_overcomplete(
    tmp_path: Path, name: str, changes: dict[str, object], error: type[PhospheneError], message: str
) -> None:
    folder = copy(f"overcomplete/{name}", tmp_path)
    change_state(folder / "sae.pt", **changes)
    with pytest.raises(error, match=message):
        read(folder)


def test_a_jump_sae_says_itself_what_it_is(tmp_path: Path) -> None:
    folder = copy("overcomplete/jump", tmp_path)
    (folder / "sae.json").unlink()
    assert read(folder).architecture == "JumpSAE"


def test_random_values_in_a_configuration_never_end_in_another_error(tmp_path: Path) -> None:
    odd: list[object] = [None, True, -1, 0, 3, 1e300, "x", [], [1], {}, {"k": 3}]
    for name, file in {
        "saelens/topk_rescaled_scaled": "cfg.json",
        "saelens/batchtopk_checkpoint": "cfg.json",
        "saelens/topk_before_6": "cfg.json",
        "dictionary_learning/batch_topk": "config.json",
        "overcomplete/archetypal_topk": "sae.json",
    }.items():
        folder = copy(name, tmp_path / name)
        words = json.loads((folder / file).read_text())
        for key in [*words, "scaling_factor", "normalization"]:
            for value in odd:
                (folder / file).write_text(json.dumps(words | {key: value}))
                with contextlib.suppress(PhospheneError):
                    read(folder)
