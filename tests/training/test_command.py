import dataclasses
import io
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phosphene.bundle import load_bundle
from phosphene.encoder import Site, Tokens
from training.__main__ import main
from training.command.fit import request_of
from training.command.main import parser
from training.execution import Execution
from training.harvest_settings import HarvestSettings, Storage
from training.plan import FitRequest, Sources
from training.reading import ReadingSettings
from training.recipes import hugofry_clip_l14_layer22_x64
from training.reports import RunReports
from training.requests import SaeRequest, TrainingRequest
from training.settings import BiasInit, InputScaling
from training.variants import VariantName


def arguments(corpus: Path, encoder: Path, out: Path, *more: str) -> list[str]:
    options: dict[str, object] = {
        "--encoder": encoder,
        "--block": 1,
        "--neurons": 48,
        "--k": 4,
        "--steps": 300,
        "--threads": 1,
        "--out": out,
    }
    return ["fit", str(corpus), *(str(part) for pair in options.items() for part in pair), *more]


def exit_code(command: list[str]) -> int:
    """What the process would end with: argparse leaves by `SystemExit`."""
    try:
        return main(command)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1


def test_the_command_publishes_and_says_so_and_the_second_time_finds_it_finished(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(corpus_folder, encoder_folder, tmp_path / "b")
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    events = list(dict.fromkeys(line["event"] for line in lines))
    assert events == ["digest", "harvest", "train", "calibrated", "published"]
    assert lines[-1]["id"] == load_bundle(tmp_path / "b").id
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(line["event"] for line in lines)) == ["digest", "already finished"]


def test_a_refusal_is_one_message_and_leaves_nothing(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(corpus_folder, encoder_folder, tmp_path / "b", "--block", "9")) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: block 9 does not exist")
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--variant", "topkek"), ("--variant", "'topkek'", "topk, batchtopk, matryoshka, relu, jumprelu")),
        (("--variant", "relu"), ("--k goes with the top-k variants; relu takes --sparsity",)),
        (("--sparsity", "1e-3"), ("--sparsity goes with --variant relu and jumprelu; batchtopk takes --k",)),
        (("--k", "49"), ("--k is 49; the limit is the number of neurons, 48: lower --k, or raise --neurons",)),
        (("--k", "0"), ("--k is 0; the least is 1",)),
        (("--k", "many"), ("--k", "'many'", "give a whole number")),
        (("--neurons", "1"), ("--neurons is 1; the least is 2",)),
        (("--variant", "matryoshka", "--prefixes", "0.5,0.25"), ("--prefixes gives [24, 12, 48] of 48", "must rise")),
        (("--variant", "matryoshka", "--prefixes", "0.5,,1"), ("--prefixes", "'0.5,,1'", "write them with commas")),
        (("--prefixes", "0.5"), ("--prefixes goes with --variant matryoshka, not batchtopk",)),
        (("--ghost-gradients",), ("--ghost-gradients go with --variant relu, not batchtopk",)),
        (("--recipe", "hugo"), ("--recipe", "'hugo'", "hugofry_clip_l14_layer22_x64", "tiny")),
        (("--inputs", "cooked"), ("--inputs", "'cooked'", "scaled, raw")),
        (("--tokens", "words"), ("--tokens", "'words'", "cls, patches, all, mean, embedding")),
        (("--warmup", "-1"), ("--warmup is -1 steps; it must be from 0 to",)),
        (("--decay", "1.5"), ("--decay is 1.5; it is a share of the steps, from 0 to 1",)),
        (("--gradient-clip", "0"), ("--gradient-clip is 0.0; it must be greater than 0",)),
        (("--seed", "-1"), ("--seed is -1; it must be 0 or more",)),
        (("--seed", "9" * 23), (f"--seed is {'9' * 23}; it must be 0 or more and below 2**63",)),
        (("--steps", "9" * 20), (f"--steps is {'9' * 20}; it must be from 1 to 1,000,000,000",)),
        (("--out", ""), ("--out is '.', which names no folder of its own",)),
        (("--out", "/"), ("--out is '/', which names no folder of its own",)),
        (("--epochs", "1"), ("--epochs", "not allowed with argument --steps")),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_remedy(
    corpus_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    messages: tuple[str, ...],
) -> None:
    assert exit_code(arguments(corpus_folder, encoder_folder, tmp_path / "b", *options)) == 2
    shown = capsys.readouterr()
    for message in messages:
        assert message in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--k", "4,,8"), ("--k", "'4,,8'", "'' is none of a whole number", "as in 16,32,64")),
        (("--k", "4;8"), ("--k", "'4;8'", "write them with commas")),
        (("--k", "4,4"), ("--k", "'4,4'", "with '4' twice; give each value once")),
        (("--k", "4,49"), ("--k is 49; the limit is the number of neurons, 48",)),
        (("--lr", "1e-3,fast"), ("--lr", "'1e-3,fast'", "'fast' is none of a number")),
        (("--variant", "topk,sparse"), ("--variant", "'sparse' is none of the variants topk, batchtopk")),
        (("--variant", "relu"), ("--k goes with the top-k variants; relu take --sparsity",)),
        (("--block", "1,x"), ("--block", "'1,x'", "as in 9,10,11")),
    ],
)
def test_a_wrong_list_is_named_with_its_value_and_the_remedy(
    corpus_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    messages: tuple[str, ...],
) -> None:
    command = ["sweep", *arguments(corpus_folder, encoder_folder, tmp_path / "s", *options)[1:]]
    assert exit_code(command) == 2
    shown = capsys.readouterr()
    for message in messages:
        assert message in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--block", "1", "--k", "4"), "give exactly one of --neurons and --expansion"),
        (("--block", "1", "--k", "4", "--expansion", "0"), "--expansion is 0; the least is 1"),
        (("--block", "1", "--neurons", "48"), "--k is missing: --variant batchtopk needs --k"),
        (("--neurons", "48", "--k", "4"), "--block is missing: --tokens cls reads what one of the encoder's blocks"),
        (
            ("--recipe", "he_captioner", "--tokens", "mean"),
            "--block is missing; the recipe he_captioner leaves it open: ",
        ),
        (
            ("--block", "1", "--tokens", "embedding", "--neurons", "48", "--k", "4"),
            "--block is 1, and --tokens embedding",
        ),
    ],
)
def test_what_is_missing_is_named(
    corpus_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    rest = [str(corpus_folder), "--encoder", str(encoder_folder), "--out", str(tmp_path / "b"), *options]
    for command in ("fit", "sweep"):
        assert exit_code([command, *rest]) == 2
        assert f"error: {message}" in capsys.readouterr().err


def test_an_import_without_its_block_says_what_to_give(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["import", "sae", "--encoder", str(encoder_folder), "--out", str(tmp_path / "b")]) == 2
    assert "error: --block is missing: --tokens cls reads what one of" in capsys.readouterr().err


def test_a_locale_without_letters_gets_the_recipes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("training.command.recipes._WIDTH", 60)  # too narrow for the table
    assert main(["recipes"]) == 0
    sys.stdout.flush()
    assert b"he_captioner" in written.getvalue()


def test_short_memory_is_told_with_what_needs_less(
    corpus_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(*parts: object) -> None:
        raise MemoryError("Unable to allocate 3.00 GiB")

    monkeypatch.setattr("training.command.fit.fit", fit)
    assert main(arguments(corpus_folder, encoder_folder, tmp_path / "b")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: memory is short (Unable to allocate 3.00 GiB); free some, or use a smaller --batch")


def test_without_encoder_the_remedy_is_named(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = ["fit", str(corpus_folder), "--out", str(tmp_path / "b")]
    assert exit_code([*bare, "--block", "1", "--k", "4", "--neurons", "48"]) == 2
    assert "--encoder is missing: give a folder" in capsys.readouterr().err
    assert exit_code([*bare, "--recipe", "he_captioner"]) == 2
    assert "--encoder is missing; the recipe he_captioner leaves it open" in capsys.readouterr().err


def test_a_streamed_fit_keeps_no_activations(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(corpus_folder, encoder_folder, tmp_path / "b", "--stream", "--steps", "40")
    assert main(command) == 0
    assert not (tmp_path / "b.work" / "activations").exists()
    assert load_bundle(tmp_path / "b").training["plan"]["reading"] == {
        "is_streamed": True,
        "leaves_out_artefacts": False,
    }
    capsys.readouterr()
    assert main([part for part in command if part != "--stream"]) == 2
    assert "reading.is_streamed: True -> False" in capsys.readouterr().err


def test_a_fit_goes_on_from_a_bundle_without_its_artefact_tokens(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    first = arguments(corpus_folder, encoder_folder, tmp_path / "b", "--tokens", "patches", "--steps", "60")
    assert main([*first, "--leave-out-artefacts"]) == 0
    before = load_bundle(tmp_path / "b").training
    assert before["plan"]["reading"]["leaves_out_artefacts"]
    again = [*first[:-4], *("--tokens", "patches", "--steps", "20", "--lr", "1e-5", "--work", str(tmp_path / "b.work"))]
    again[again.index(str(tmp_path / "b"))] = str(tmp_path / "c")
    assert main([*again, "--from", str(tmp_path / "b")]) == 0
    after = load_bundle(tmp_path / "c").training
    assert after["plan"]["initial"] is not None
    assert after["held_out_quality"]["fvu"] < 1.2 * before["held_out_quality"]["fvu"]


def requested(*options: str) -> FitRequest:
    return request_of(parser().parse_args(["fit", "corpus", "--out", "b", *options]))


def test_a_recipe_gives_what_is_not_given() -> None:
    recipe = hugofry_clip_l14_layer22_x64()
    request = requested("--recipe", recipe.name)
    assert (request.sources.encoder, request.sources.revision) == (recipe.encoder, recipe.revision)
    assert (request.site, request.sae, request.training) == (recipe.site, recipe.sae, recipe.training)


def test_what_is_given_wins_over_the_recipe() -> None:
    recipe = hugofry_clip_l14_layer22_x64()
    request = requested(
        "--recipe", recipe.name, "--neurons", "96", "--no-ghost-gradients", "--epochs", "2", "--lr", "1e-3"
    )
    assert request.sae == dataclasses.replace(recipe.sae, expansion=None, neuron_count=96, has_ghost_gradients=False)
    assert request.training == dataclasses.replace(recipe.training, step_count=None, epochs=2.0, learning_rate=1e-3)


def test_another_variant_than_the_recipes_brings_its_own_sparsity() -> None:
    request = requested("--recipe", "hugofry_clip_l14_layer22_x64", "--variant", "topk", "--k", "8")
    assert request.sae == SaeRequest(expansion=64, k=8, variant=VariantName.TOPK, inputs=InputScaling.RAW)
    request.sae.check()


def test_another_encoder_than_the_recipes_has_another_revision() -> None:
    request = requested("--recipe", "hugofry_clip_l14_layer22_x64", "--encoder", "folder")
    assert (request.sources.encoder, request.sources.revision) == ("folder", None)


@pytest.mark.parametrize(
    ("options", "site"),
    [
        ((), Site(block=22, tokens=Tokens.CLS)),
        (("--block", "11"), Site(block=11, tokens=Tokens.CLS)),
        (("--tokens", "patches"), Site(block=22, tokens=Tokens.PATCHES)),
        (("--tokens", "embedding"), Site(block=None, tokens=Tokens.EMBEDDING)),
    ],
)
def test_block_and_tokens_each_win_over_the_recipes(options: tuple[str, ...], site: Site) -> None:
    assert requested("--recipe", "pach_batchtopk_clip_l14_336", *options).site == site


def test_every_option_reaches_the_request() -> None:
    request = requested(
        *("--encoder", "e", "--revision", "r", "--block", "3", "--tokens", "patches", "--vocabulary", "names.txt"),
        *("--variant", "matryoshka", "--expansion", "4", "--k", "9", "--prefixes", "0.25,0.5", "--inputs", "raw"),
        *("--limit", "50", "--tokens-per-image", "7", "--images-per-batch", "16", "--storage", "float16"),
        *(
            "--steps",
            "11",
            "--batch",
            "12",
            "--lr",
            "0.5",
            "--warmup",
            "3",
            "--decay",
            "0.25",
            "--gradient-clip",
            "inf",
        ),
        *("--bias-init", "geometric-median", "--seed", "5", "--device", "cpu", "--threads", "2"),
        *("--work", "w", "--name", "n", "--from", "sae", "--stream", "--leave-out-artefacts"),
        *("--journal", "j", "--tensorboard", "t", "--metrics-file", "m"),
    )
    assert request == FitRequest(
        sources=Sources(
            corpus="corpus",
            encoder="e",
            revision="r",
            vocabulary=Path("names.txt"),
            initial=Path("sae"),
            reading=ReadingSettings(is_streamed=True, leaves_out_artefacts=True),
        ),
        site=Site(block=3, tokens=Tokens.PATCHES),
        sae=SaeRequest(expansion=4, k=9, variant=VariantName.MATRYOSHKA, prefixes=(0.25, 0.5), inputs=InputScaling.RAW),
        out=Path("b"),
        work=Path("w"),
        harvest=HarvestSettings(batch_images=16, tokens_per_image=7, storage=Storage.FLOAT16, image_limit=50, seed=5),
        training=TrainingRequest(
            step_count=11,
            batch_rows=12,
            learning_rate=0.5,
            warmup_steps=3,
            decay_share=0.25,
            gradient_clip=math.inf,
            bias_init=BiasInit.GEOMETRIC_MEDIAN,
            seed=5,
        ),
        execution=Execution(device="cpu", thread_count=2),
        name="n",
        reports=RunReports(journal=Path("j"), tensorboard=Path("t"), metrics_file=Path("m")),
    )


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_publishes_the_same_bundle(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, root: Path
) -> None:
    whole, killed = tmp_path / "whole" / "b", tmp_path / "killed" / "b"
    commands = {
        out: [sys.executable, "-m", "training", *arguments(corpus_folder, encoder_folder, out)]
        for out in (whole, killed)
    }
    begun_s = time.monotonic()
    subprocess.run(commands[whole], cwd=root, stdout=subprocess.DEVNULL, check=True)
    whole_s = time.monotonic() - begun_s
    random_share = random.Random(0)
    shares = (0.4, *(random_share.uniform(0.3, 0.9) for _ in range(9)))
    kill_count = 0
    # Shares of a whole run, so that they fall into it on a fast machine as on a slow one.
    for limit_s in (*(share * whole_s for share in shares), 600):
        process = subprocess.Popen(commands[killed], cwd=root, stdout=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=limit_s) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kill_count += 1
    assert kill_count > 0
    assert load_bundle(killed).id == load_bundle(whole).id
