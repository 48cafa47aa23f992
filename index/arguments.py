"""What `python -m index` takes: its commands and their options; imports nothing that a job needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from index.job_command import add_job_commands
from index.options import new_folder, row_count, seconds

__all__ = ["index_parser"]


def index_parser() -> argparse.ArgumentParser:
    """Make what reads the command line; the command's name is in `command`."""
    parser = argparse.ArgumentParser(prog="python -m index", description="Precompute what a bundle says of a corpus.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_job_commands(commands)
    show = commands.add_parser("show", help="print what is in an index")
    show.add_argument("index", type=Path)
    show.add_argument("--tombstones", type=Path, help="what was taken down from it")
    show.add_argument("--names", type=row_count, default=20, help="named neurons to list (%(default)s)")
    verify = commands.add_parser("verify", help="check every file of an index, and that they say the same")
    verify.add_argument("index", type=Path)
    diff = commands.add_parser("diff", help="list the neurons that fire more in another index of the same bundle")
    diff.add_argument("first", type=Path)
    diff.add_argument("second", type=Path)
    diff.add_argument("--tombstones", type=Path, help="what was taken down from the second: no exemplar of the list")
    diff.add_argument("--count", type=row_count, default=20, help="neurons to list (%(default)s)")
    down = commands.add_parser("take-down", help="name images that no answer may show any more")
    down.add_argument("index", type=Path)
    down.add_argument("--out", type=new_folder, required=True, help="folder of the tombstones to be")
    down.add_argument("--from", dest="base", type=Path, help="tombstones to add to")
    down.add_argument("--sha256", nargs="+", default=[], metavar="HEX", help="images by the digest of their bytes")
    down.add_argument("--uri", nargs="+", default=[], metavar="NAME", help="images by their name in the index")
    down.add_argument("--list", type=Path, help="file with a sha256 or uri on each line, then a tab and the reason")
    down.add_argument("--reason", help="why, of images named by --sha256 and --uri")
    down.add_argument("--allow-unknown", action="store_true", help="take digests that are in no row, for later appends")
    push = commands.add_parser("push", help="write the codes of an index to Qdrant, or what is missing of them")
    push.add_argument("index", type=Path)
    push.add_argument("--qdrant", metavar="URL", required=True, help="such as http://127.0.0.1:6333")
    push.add_argument("--collection", metavar="NAME", required=True, help="the index's id is put behind it")
    push.add_argument("--shard-number", type=int, help="parts of the collection; Qdrant's choice unless said")
    push.add_argument("--replication", type=int, help="copies of each part; Qdrant's choice unless said")
    push.add_argument("--api-key-file", type=Path, help="file with the key that Qdrant asks for, in one line")
    push.add_argument("--timeout-s", type=seconds, default=60, help="seconds that one call may take (%(default)s)")
    flag = commands.add_parser("flag", help="say which neurons and images are sensitive: hidden unless asked for")
    flag.add_argument("index", type=Path)
    flag.add_argument("--out", type=new_folder, required=True, help="folder of the flags to be")
    flag.add_argument("--from", dest="base", type=Path, help="flags to add to")
    flag.add_argument("--neuron", nargs="+", type=int, default=[], metavar="ID", help="neurons by id")
    flag.add_argument("--name-pattern", nargs="+", default=[], metavar="PATTERN", help="neurons by name, as *nude*")
    flag.add_argument("--sha256", nargs="+", default=[], metavar="HEX", help="images by the digest of their bytes")
    flag.add_argument("--label-pattern", nargs="+", default=[], metavar="PATTERN", help="images by label")
    flag.add_argument("--uri-pattern", nargs="+", default=[], metavar="PATTERN", help="images by their name")
    flag.add_argument("--list", type=Path, help="file with KIND:WHAT on each line (neuron, name, sha256, label, uri)")
    flag.add_argument("--names", type=Path, help="what neurons are called (default: as the index says)")
    name = commands.add_parser("name", help="name neurons by another vocabulary; the index stays what it is")
    name.add_argument("index", type=Path)
    name.add_argument("--bundle", type=Path, required=True, help="the one that the index was built for")
    name.add_argument("--vocabulary", type=Path, required=True, help="file of words, one a line")
    name.add_argument("--out", type=new_folder, required=True, help="folder of the names to be")
    name.add_argument("--device", default="cpu", help="where the text tower runs (%(default)s)")
    activate = commands.add_parser("activate", help="name the generation that a service serves after its next reload")
    activate.add_argument("current", type=Path, help="the file that PHOSPHENE_CURRENT names")
    activate.add_argument(
        "--bundle", metavar="NAME=FOLDER", action="append", required=True, help="the first is the default"
    )
    activate.add_argument(
        "--index", metavar="NAME=FOLDER", action="append", default=[], help="of the bundle that it was built for"
    )
    activate.add_argument(
        "--tombstones", metavar="NAME=FOLDER", action="append", default=[], help="by the name of their index"
    )
    activate.add_argument(
        "--flags", metavar="NAME=FOLDER", action="append", default=[], help="by the name of their index"
    )
    activate.add_argument(
        "--names", metavar="NAME=FOLDER", action="append", default=[], help="by the name of their index"
    )
    activate.add_argument("--put-back", action="store_true", help="show again what is down or hidden now")
    for command in commands.choices.values():
        # What is half typed is a mistake, and not whatever begins so.
        command.allow_abbrev = False
    return parser
