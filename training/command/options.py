"""Options that several subcommands share, and how their texts are read; knows nothing of requests or jobs.

Every option is None where it was not given, so that a recipe's value stays and the jobs' own defaults hold.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from phosphene.encoder import Tokens
from training.harvest_settings import Storage
from training.settings import BiasInit, InputScaling
from training.variants import SelectionPrecision

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


def choice_of(names: type[E]) -> Callable[[str], E]:
    """A reader of one of these names."""

    def read(text: str) -> E:
        try:
            return names(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it is {text!r}; choose one of {', '.join(names)}") from None

    return read


def list_of(read_one: Callable[[str], T], what: str, example: str) -> Callable[[str], tuple[T, ...]]:
    """A reader of values with commas between them; none may be there twice.

    Args:
        read_one: reads one value; raises `ValueError` or `ArgumentTypeError`.
        what: the values in words.
        example: a list that is right.
    """

    def read(text: str) -> tuple[T, ...]:
        values: list[T] = []
        for part in text.split(","):
            try:
                value = read_one(part.strip())
            except (ValueError, argparse.ArgumentTypeError):
                raise argparse.ArgumentTypeError(
                    f"it is {text!r}, and {part!r} is none of {what}; write them with commas, as in {example}"
                ) from None
            if value in values:
                raise argparse.ArgumentTypeError(f"it is {text!r}, with {part.strip()!r} twice; give each value once")
            values.append(value)
        return tuple(values)

    return read


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give a whole number") from None


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give a number") from None


def add_place(command: argparse.ArgumentParser) -> None:
    """Which encoder, where in it, and where the result goes."""
    add_encoder(command)
    command.add_argument("--block", type=whole, help="0-based block to listen at; none for --tokens embedding")
    add_tokens(command)
    add_out(command, "the bundle's folder")


def add_encoder(command: argparse.ArgumentParser) -> None:
    """Which encoder."""
    command.add_argument("--encoder", help="folder in the Hugging Face layout, or a hub id")
    command.add_argument("--revision", help="revision of a hub id")


def add_tokens(command: argparse.ArgumentParser) -> None:
    """Which tokens of the block."""
    names = ", ".join(Tokens)
    command.add_argument("--tokens", type=choice_of(Tokens), help=f"tokens to read: {names} (default: cls)")


def add_out(command: argparse.ArgumentParser, what: str) -> None:
    """Where the result goes."""
    command.add_argument("--out", type=Path, required=True, help=what)


def add_initial(command: argparse.ArgumentParser) -> None:
    """What to go on from."""
    command.add_argument(
        "--initial",
        "--from",
        type=Path,
        metavar="SAE",
        help="go on from this bundle or SAE (any format that `import` reads) instead of random weights",
    )


def add_rule(group: argparse._ArgumentGroup) -> None:
    """What the autoencoder is, beside its variant, its size and its sparsity."""
    group.add_argument(
        "--prefixes",
        type=list_of(float, "a share or number of neurons", "0.0625,0.25"),
        metavar="LIST",
        help="nested sizes of matryoshka, rising: shares below 1, numbers of neurons from 1 on "
        "(default: 0.0625,0.125,0.25,0.5)",
    )
    group.add_argument(
        "--inputs",
        type=choice_of(InputScaling),
        help="scaled: centred and of unit mean square; raw: as the encoder gives them (default: scaled)",
    )
    group.add_argument(
        "--normalise-error",
        action=argparse.BooleanOptionalAction,
        help="whether each row's squared error is divided by the norm of its input (relu; default: no)",
    )
    group.add_argument(
        "--ghost-gradients",
        action=argparse.BooleanOptionalAction,
        help="whether dead neurons learn from what is left unexplained (relu; default: yes)",
    )
    group.add_argument(
        "--selection-precision",
        type=choice_of(SelectionPrecision),
        help="digits in which active neurons are searched for: float32; or bfloat16, which is faster on processors "
        "that have it (top-k variants; default: float32)",
    )


def add_harvest(group: argparse._ArgumentGroup) -> None:
    """How residuals are read off the encoder."""
    group.add_argument("--limit", type=whole, help="use only the first so many images")
    group.add_argument("--tokens-per-image", type=whole, help="keep so many tokens of each image (default: all)")
    group.add_argument("--images-per-batch", type=whole, help="images per forward pass (default: 32)")
    group.add_argument(
        "--storage",
        type=choice_of(Storage),
        help=f"number format on disk: {', '.join(Storage)} (default: {Storage.FLOAT32})",
    )


def add_reading(group: argparse._ArgumentGroup) -> None:
    """Which residuals are trained on, and whether they are kept."""
    group.add_argument(
        "--leave-out-artefacts",
        action="store_true",
        help="use no patch token whose norm exceeds the median by more than 6 MAD",
    )
    group.add_argument(
        "--stream", action="store_true", help="keep no activations on disk: run the encoder anew in every epoch"
    )


def add_length(group: argparse._ArgumentGroup) -> None:
    """How long and in which portions to train."""
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole, help="optimiser steps (default: 2000, or one epoch where that is more)")
    length.add_argument("--epochs", type=number, help="passes over the activations")
    group.add_argument("--batch", type=whole, help="activations per step (default: from the corpus)")


def add_schedule(group: argparse._ArgumentGroup) -> None:
    """How the optimisation starts and ends."""
    group.add_argument("--warmup", type=whole, metavar="STEPS", help="steps of rising rate (default: a twentieth)")
    group.add_argument(
        "--decay", type=number, metavar="SHARE", help="share of the steps of falling rate (default: 0.4)"
    )
    group.add_argument("--gradient-clip", type=number, metavar="NORM", help="largest norm (default: 1; inf: none)")
    group.add_argument(
        "--bias-init",
        type=choice_of(BiasInit),
        help=f"start of the decoder bias: {', '.join(BiasInit)} (default: {BiasInit.MEAN})",
    )


def add_reports(group: argparse._ArgumentGroup) -> None:
    """Where the curves go, beside the bar."""
    group.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard event files there")
    group.add_argument(
        "--metrics-file", type=Path, metavar="FILE", help="keep a Prometheus textfile there (node_exporter's collector)"
    )


def add_execution(group: argparse._ArgumentGroup) -> None:
    """Where to compute."""
    count = os.cpu_count() or 1
    group.add_argument("--device", default="cpu", help="cpu (default) or cuda[:N]")
    group.add_argument(
        "--threads", type=whole, default=count, help=f"CPU threads; results depend on it (default: {count})"
    )
