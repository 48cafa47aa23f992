"""The command line of the index: `python -m index build | append | compact | take-down | activate | show | ...`.

python -m index build photos/ --bundle build/bundle --out build/index --workers 2
python -m index run-shards photos/ --bundle build/bundle --out build/index --part 3/8
python -m index append more/ --index build/index --bundle build/bundle --out build/index-2
python -m index show build/index
python -m index verify build/index
python -m index diff build/index build/other-index
python -m index take-down build/index --uri 0007.png --out build/down
python -m index flag build/index --label-pattern '*weapon*' --neuron 12 --out build/flags
python -m index name build/index --bundle build/bundle --vocabulary words.txt --out build/names
python -m index activate build/CURRENT --bundle scenes=build/bundle --index scenes=build/index \
    --tombstones scenes=build/down
python -m index compact build/index --tombstones build/down --out build/index-2
python -m index push build/index --qdrant http://127.0.0.1:6333 --collection scenes
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from index.arguments import index_parser
from index.job_command import run_job
from index.options import refuse_half_characters
from phosphene.errors import PhospheneError, SettingError
from phosphene.freed_memory import keep_freed_memory
from phosphene.open_files import allow_open_files

__all__ = ["main"]

_PLAIN_WIDTH = 120
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 refused, 130 stopped by the user."""
    given = sys.argv[1:] if arguments is None else arguments
    options = index_parser().parse_args(given)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Bars and names need letters that the locale may not have.
    allow_open_files()
    try:
        refuse_half_characters(given)
        match options.command:
            case "build" | "append" | "compact" | "plan" | "run-shards" | "finish":
                _answer(run_job(options))
            case "show":
                _show(options)
            case "verify":
                _verify(options)
            case "diff":
                _diff(options)
            case "take-down":
                _take_down(options)
            case "push":
                _push(options)
            case "flag":
                _flag(options)
            case "name":
                _name(options)
            case _:
                _activate(options)
    except PhospheneError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        sys.stderr.write(f"error: {error.strerror or error}{place}; {_remedy(error)}\n")
        return 2
    except MemoryError as error:
        sys.stderr.write(
            f"error: memory is short ({error or 'no more could be had'}); free some, or try fewer --workers: the same "
            "command goes on from here. A smaller --batch or --shard-images takes less too, and is another plan\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit (ulimit -n)"
        case errno.ENOENT:
            return "name one that is there"
        case errno.EISDIR:
            return "name a file"
        case _:
            return "make room or mend access, or choose another place"


def _show(options: argparse.Namespace) -> None:
    from index.reader import open_index
    from index.show import describe_index

    with open_index(options.index, tombstones=options.tombstones) as index:
        # Off a terminal rich assumes 80 columns, too few for a digest and its name.
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
        console.print(describe_index(options.index, index, name_count=options.names))


def _verify(options: argparse.Namespace) -> None:
    from index.flags import open_flags
    from index.names import open_names
    from index.plan import stored_shards
    from index.progress import open_progress
    from index.tombstones import open_tombstones
    from index.verify import verify_index
    from phosphene.manifest import read_manifest

    found = read_manifest(options.index)
    if found.kind == "tombstones":
        tombstones = open_tombstones(options.index)
        _answer({"event": "verified", "id": tombstones.id, "images": len(tombstones.reasons)})
        return
    if found.kind == "flags":
        flags = open_flags(options.index)
        _answer({"event": "verified", "id": flags.id, "images": len(flags.image_digests)})
        return
    if found.kind == "names":
        names = open_names(options.index)
        _answer({"event": "verified", "id": names.id, "neurons": len(names.column)})
        return
    shards = stored_shards(found.config["plan"]) if found.kind == "index" else ()
    with open_progress(Console(stderr=True)) as progress:
        progress.begin("verify", len(shards), 0, "shards")
        manifest = verify_index(options.index, advance=progress.advance)
    _answer({"event": "verified", "id": manifest.id, "shards": len(shards), "files": len(manifest.files)})


def _diff(options: argparse.Namespace) -> None:
    from index.diff import describe_shifts, neurons_firing_more
    from index.reader import open_index

    with open_index(options.first) as first, open_index(options.second, tombstones=options.tombstones) as second:
        shifts = neurons_firing_more(first, second)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(describe_shifts(shifts, count=options.count))


def _take_down(options: argparse.Namespace) -> None:
    from index.take_down import Request, TakeDownJob, read_requests, take_down

    wrong = [text for text in options.sha256 if not Request(what=text).is_digest]
    if wrong:
        raise SettingError(f"--sha256 takes digests of 64 hexadecimal digits; {wrong} are none")
    requests = [Request(what=what, reason=options.reason) for what in (*options.sha256, *options.uri)]
    requests += read_requests(options.list) if options.list is not None else []
    result = take_down(
        TakeDownJob(
            index=options.index,
            out=options.out,
            requests=requests,
            base=options.base,
            allows_unknown=options.allow_unknown,
        )
    )
    _answer(
        {
            "event": "taken down",
            "out": str(options.out),
            "id": result.tombstones.id,
            "images": len(result.tombstones.reasons),
            "rows": result.row_count,
            "was_finished": result.was_finished,
        }
    )


def _push(options: argparse.Namespace) -> None:
    from index.progress import open_progress
    from index.reader import open_index

    try:
        from index.qdrant.collection import open_qdrant
        from index.qdrant.push import push_index
    except ModuleNotFoundError as error:
        raise SettingError(
            f"{error.name} is not installed, which talks to Qdrant; install requirements/qdrant.txt beside the rest"
        ) from error
    api_key = None if options.api_key_file is None else _read_api_key(options.api_key_file)
    with (
        open_index(options.index) as index,
        open_qdrant(options.qdrant, api_key=api_key, timeout_s=options.timeout_s) as client,
        open_progress(Console(stderr=True)) as progress,
    ):
        progress.begin("push", index.image_count, 0, "images")
        pushed = push_index(
            index,
            client,
            options.collection,
            shard_count=options.shard_number,
            replica_count=options.replication,
            advance=progress.advance,
        )
    _answer(
        {
            "event": "pushed",
            "id": index.id,
            "collection": pushed.collection,
            "points": pushed.point_count,
            "written": pushed.written_count,
        }
    )


def _read_api_key(path: Path) -> str:
    """Return the key that a file holds, white space around it aside; never quotes it. Raises `SettingError`."""
    key = path.read_bytes().decode("ascii", errors="replace").strip()
    if not (key and key.isascii() and key.isprintable()):
        raise SettingError(
            f"--api-key-file {str(path)!r} does not hold one key, printable ASCII characters on one line"
        )
    return key


def _flag(options: argparse.Namespace) -> None:
    from index.flags import flag_index, read_flag_list, shortened
    from index.progress import open_progress
    from index.sensitive import SensitiveConfig

    listed = SensitiveConfig() if options.list is None else read_flag_list(options.list)
    config = SensitiveConfig(
        neuron_ids=(*options.neuron, *listed.neuron_ids),
        name_patterns=(*options.name_pattern, *listed.name_patterns),
        image_digests=(*options.sha256, *listed.image_digests),
        label_patterns=(*options.label_pattern, *listed.label_patterns),
        uri_patterns=(*options.uri_pattern, *listed.uri_patterns),
    )
    result = flag_index(options.index, options.out, config, base=options.base, names=options.names)
    if result.unmatched:
        with open_progress(Console(stderr=True)) as progress:
            progress.say(
                f"nothing in {options.index.name!r} matches {shortened(result.unmatched)}: look for typing errors"
            )
    _answer(
        {
            "event": "flagged",
            "out": str(options.out),
            "id": result.flags.id,
            "neurons": len(result.flags.neuron_ids),
            "images": len(result.flags.image_digests),
            "matched_neurons": result.neuron_count,
            "matched_images": result.image_count,
            "unmatched": list(result.unmatched),
            "was_finished": result.was_finished,
        }
    )


def _name(options: argparse.Namespace) -> None:
    from index.name_job import name_index
    from index.vocabulary import read_vocabulary

    words = read_vocabulary(options.vocabulary)
    names, was_finished = name_index(options.index, options.out, words, bundle=options.bundle, device=options.device)
    _answer(
        {
            "event": "named",
            "out": str(options.out),
            "id": names.id,
            "neurons": sum(bool(each) for each in names.column.to_pylist()),
            "was_finished": was_finished,
        }
    )


def _activate(options: argparse.Namespace) -> None:
    from index.flags import check_flags_stay
    from index.loose_files import refuse_within_artefact
    from index.members import check_members_fit
    from index.take_down import check_nothing_comes_back
    from phosphene.current import hold_current, save_current

    indexes, tombstones = _named_folders(options.index), _named_folders(options.tombstones)
    flags = _named_folders(options.flags)
    bundles, names = _named_folders(options.bundle), _named_folders(options.names)
    refuse_within_artefact(options.current, what="file of the generation")
    check_members_fit(bundles, indexes, {"flags": flags, "names": names})
    with hold_current(options.current):
        if not options.put_back:
            check_flags_stay(options.current, indexes, flags)
            check_nothing_comes_back(options.current, indexes, tombstones)
        current = save_current(
            options.current,
            bundles=bundles,
            indexes=indexes,
            tombstones=tombstones,
            flags=flags,
            names=names,
            puts_back=options.put_back,
        )
    _answer(
        {
            "event": "activated",
            "current": str(options.current),
            "bundles": {member.name: member.id for member in current.bundles},
            "indexes": {member.name: member.id for member in current.indexes},
            "tombstones": {member.name: member.id for member in current.tombstones},
            "flags": {member.name: member.id for member in current.flags},
            "names": {member.name: member.id for member in current.names},
        }
    )


def _named_folders(entries: Sequence[str]) -> dict[str, Path]:
    """Read `NAME=FOLDER` entries; raises `SettingError`."""
    folders: dict[str, Path] = {}
    for entry in entries:
        name, separator, folder = entry.partition("=")
        if not separator or not _NAME.fullmatch(name) or not folder:
            raise SettingError(
                f"{entry!r} must be NAME=FOLDER, the name of 1-64 characters from a-z, 0-9, '.', '_', '-'"
            )
        if name in folders:
            raise SettingError(f"the name {name} is given twice; names must differ")
        folders[name] = Path(folder)
    return folders


def _answer(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
