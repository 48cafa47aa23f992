"""Parses, calls the job, prints. Exit codes: 0 done, 2 refused (the message says what and the remedy), 130 stopped."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from rich.console import Console

from phosphene.errors import PhospheneError
from training.command import export_engine, fit, import_sae, recipes, sweep
from training.progress import LineProgress, Progress, TerminalProgress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Bars and recipes need letters that the locale may not have.
    progress: Progress = TerminalProgress(Console()) if sys.stdout.isatty() else LineProgress(_write_line)
    try:
        match options.command:
            case "fit":
                fit.run(options, progress)
            case "sweep":
                sweep.run(options, progress)
            case "recipes":
                recipes.run(options)
            case "import":
                import_sae.run(options, progress)
            case _:
                export_engine.run(options, progress)
    except PhospheneError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        sys.stderr.write(
            f"error: {error.strerror or error}{place}; make room or mend access, or choose another --out\n"
        )
        return 2
    except MemoryError as error:
        sys.stderr.write(
            f"error: memory is short ({error or 'no more could be had'}); free some, or use a smaller --batch, fewer "
            "--neurons or a smaller --images-per-batch: with the same options it goes on from here\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Every subcommand with its options."""
    whole = argparse.ArgumentParser(prog="python -m training", description="Makes sparse autoencoders.")
    commands = whole.add_subparsers(required=True, dest="command", metavar="COMMAND")
    fit.add(commands.add_parser("fit", help="train a sparse autoencoder on a corpus and publish a bundle"))
    sweep.add(commands.add_parser("sweep", help="train every combination of settings on one harvest and compare them"))
    recipes.add(commands.add_parser("recipes", help="list the published settings that fit can start from"))
    import_sae.add(commands.add_parser("import", help="publish a bundle around an SAE that another library trained"))
    export_engine.add(commands.add_parser("export-engine", help="write a bundle's graph for ONNX Runtime"))
    for command in commands.choices.values():
        # `--images` is a mistake, and not --images-per-batch.
        command.allow_abbrev = False
    return whole


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
