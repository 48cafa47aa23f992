"""The command line of training.

    python -m training fit CORPUS --encoder DIR --block B --neurons N --k K --out BUNDLE
    python -m training import SAE --encoder DIR --block B --out BUNDLE
    python -m training export-engine BUNDLE --out FOLDER [--int8]

Parses, calls the job, prints. Exit codes: 0 done, 2 refused (the message says what and the remedy), 130 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from phosphene.encoder import Site, Tokens
from phosphene.errors import PhospheneError
from training.engine_export import EngineExport, export_engine
from training.fit import FitResult, fit
from training.importing import ImportRequest, ImportResult, import_sae
from training.plan import FitRequest, Sources
from training.progress import LineProgress, Progress, TerminalProgress
from training.settings import (
    BiasInit,
    Execution,
    HarvestSettings,
    SaeRequest,
    Storage,
    TrainingRequest,
)
from training.variants import VariantName


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    progress: Progress = TerminalProgress(Console()) if sys.stdout.isatty() else LineProgress(_write_line)
    try:
        match options.command:
            case "import":
                _report_import(import_sae(_import_request(options)), progress)
            case "export-engine":
                _report_export(export_engine(options.bundle, options.out, is_int8=options.int8), progress)
            case _:
                _report(fit(_request(options), progress), progress)
    except PhospheneError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        sys.stderr.write(
            f"error: {error.strerror or error}{place}; make room or mend access, or choose another --out\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Makes sparse autoencoders.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_import(commands.add_parser("import", help="publish a bundle around an SAE in the SAELens layout"))
    _add_export(commands.add_parser("export-engine", help="write a bundle's graph for ONNX Runtime"))
    command = commands.add_parser(
        "fit",
        help="train a sparse autoencoder on a corpus and publish a bundle",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("corpus", help="folder of images, CSV or Parquet list, or WebDataset tars")
    _add_place(command)
    command.add_argument("--work", type=Path, help="folder for activations and checkpoints (default: OUT.work)")
    command.add_argument("--name", help="a name for people (default: the name of OUT)")
    command.add_argument("--vocabulary", type=Path, help="file of names, one per line (default: the corpus's labels)")
    _add_sae(command.add_argument_group("autoencoder"))
    _add_harvest(command.add_argument_group("activations"))
    _add_training(command.add_argument_group("optimisation"))
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument("sae", type=Path, help="folder with cfg.json and sae_weights.safetensors")
    _add_place(command)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, help="the bundle's folder")
    command.add_argument("--out", type=Path, required=True, help="the engine's folder")
    command.add_argument(
        "--int8", action="store_true", help="8-bit weights: faster on the CPU, codes near those of float32 only"
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--encoder", required=True, help="folder in the Hugging Face layout, or a hub id")
    command.add_argument("--revision", help="revision of a hub id")
    command.add_argument("--block", type=int, help="0-based block to listen at; none for --tokens embedding")
    command.add_argument("--tokens", type=Tokens, choices=list(Tokens), default=Tokens.CLS, help="tokens to read")
    command.add_argument("--out", type=Path, required=True, help="the bundle's folder")


def _add_sae(group: argparse._ArgumentGroup) -> None:
    size = group.add_mutually_exclusive_group(required=True)
    size.add_argument("--neurons", type=int, help="number of neurons")
    size.add_argument("--expansion", type=int, help="neurons per residual dimension")
    group.add_argument("--k", type=int, required=True, help="active neurons per token")
    group.add_argument(
        "--variant", type=VariantName, choices=list(VariantName), default=VariantName.BATCHTOPK, help="training rule"
    )


def _add_harvest(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--limit", type=int, help="use only the first so many images")
    group.add_argument("--tokens-per-image", type=int, help="keep so many tokens of each image (default: all)")
    group.add_argument("--images-per-batch", type=int, default=32, help="images per forward pass")
    group.add_argument(
        "--storage", type=Storage, choices=list(Storage), default=Storage.FLOAT32, help="number format on disk"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="optimiser steps (default: 2000, or one epoch where that is more)")
    length.add_argument("--epochs", type=float, help="passes over the activations")
    group.add_argument("--batch", type=int, help="activations per step (default: from the corpus)")
    group.add_argument("--lr", type=float, help="peak learning rate (default: from the number of neurons)")
    group.add_argument(
        "--bias-init", type=BiasInit, choices=list(BiasInit), default=BiasInit.MEAN, help="start of the decoder bias"
    )
    group.add_argument("--seed", type=int, default=0, help="decides split, start and order")
    group.add_argument("--device", default="cpu", help="cpu or cuda[:N]")
    group.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads; results depend on it")


def _request(options: argparse.Namespace) -> FitRequest:
    return FitRequest(
        sources=Sources(
            corpus=options.corpus, encoder=options.encoder, revision=options.revision, vocabulary=options.vocabulary
        ),
        site=Site(block=options.block, tokens=options.tokens),
        sae=SaeRequest(neuron_count=options.neurons, expansion=options.expansion, k=options.k, variant=options.variant),
        out=options.out,
        work=options.work,
        harvest=HarvestSettings(
            batch_images=options.images_per_batch,
            tokens_per_image=options.tokens_per_image,
            storage=options.storage,
            image_limit=options.limit,
            seed=options.seed,
        ),
        training=TrainingRequest(
            step_count=options.steps,
            epochs=options.epochs,
            batch_rows=options.batch,
            learning_rate=options.lr,
            bias_init=options.bias_init,
            seed=options.seed,
        ),
        execution=Execution(device=options.device, thread_count=options.threads),
        name=options.name,
    )


def _import_request(options: argparse.Namespace) -> ImportRequest:
    return ImportRequest(
        sae=options.sae,
        encoder=options.encoder,
        revision=options.revision,
        site=Site(block=options.block, tokens=options.tokens),
        out=options.out,
    )


def _report_import(result: ImportResult, progress: Progress) -> None:
    bundle = result.bundle
    progress.event("published" if result.is_new else "already finished", bundle=str(bundle.path), id=bundle.id)


def _report_export(result: EngineExport, progress: Progress) -> None:
    measured = result.manifest.config["measured"]
    progress.event(
        "published" if result.is_new else "already finished",
        path=str(result.path),
        engine=result.manifest.config["engine"],
        id=result.manifest.id,
        image_difference=measured["image_difference"],
        top10_overlap=measured["top10_overlap"],
    )


def _report(result: FitResult, progress: Progress) -> None:
    bundle, quality = result.bundle, result.bundle.training["held_out_quality"]
    progress.event(
        "published" if result.is_new else "already finished",
        bundle=str(bundle.path),
        id=bundle.id,
        fvu=quality["fvu"],
        explained_variance=quality["explained_variance"],
        l0=quality["l0"],
        dead_share=bundle.training["training_quality"]["dead_share"],
        quarantined=len(bundle.training["quarantined"]),
    )


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
