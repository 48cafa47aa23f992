"""`python -m training import`: a bundle around an SAE that was trained elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from phosphene.errors import SettingError
from training.command import options as shared
from training.command.requests import site_of
from training.importing import ImportRequest, import_sae
from training.progress import Progress


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument(
        "sae", type=Path, help="SAELens folder, or a torch file of dictionary_learning or Overcomplete"
    )
    shared.add_place(command)
    command.add_argument(
        "--token-code-limit",
        type=shared.whole,
        metavar="NEURONS",
        help="neurons kept for one token, the largest; for SAEs that fix no number of them (default: 64)",
    )


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Do it and say what came out; errors as `training.importing.import_sae`."""
    if options.encoder is None:
        raise SettingError("--encoder is missing: give a folder in the Hugging Face layout, or a hub id")
    request = ImportRequest(
        sae=options.sae,
        encoder=options.encoder,
        revision=options.revision,
        site=site_of(options.block, options.tokens, None),
        out=options.out,
        token_code_limit=options.token_code_limit,
    )
    result = import_sae(request)
    bundle = result.bundle
    progress.event("published" if result.is_new else "already finished", bundle=str(bundle.path), id=bundle.id)
