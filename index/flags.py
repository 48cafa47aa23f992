"""Flags: which neurons and images are sensitive; an artefact beside the index that they are of.

What is sensitive changes after a build, so it is named apart from the index: neurons by id, images by the sha256 of
their bytes, as they were found by the lists and patterns of `index.sensitive`. Answers hide both unless they are asked
for. Flags fit every index of the same codes, so that they outlive appends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.arrays import map_array
from index.image_table import ImageTable
from index.members import successors
from index.names import open_names
from index.neuron_table import NeuronTable
from index.plan import stored_shards
from index.sensitive import SensitiveConfig, Unmatched, sensitive_images, sensitive_neurons
from index.shards import open_shards
from index.tables import read_table, write_table
from phosphene.artefact_writing import publish
from phosphene.current import read_current
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged, ArtefactError, ArtefactMismatch, NotFound, SettingError
from phosphene.manifest import find_artefact, is_digest, open_artefact

__all__ = ["FlagResult", "Flags", "check_flags_stay", "flag_index", "open_flags", "read_flag_list", "shortened"]

_NEURONS, _IMAGES = "neurons.npy", "images.parquet"
_SCHEMA = pa.schema([pa.field("sha256", pa.string(), nullable=False)])
_SHOWN = 10
_NEURON_ID = re.compile("[0-9]{1,18}")
_KINDS = {
    "neuron": "neuron_ids",
    "name": "name_patterns",
    "sha256": "image_digests",
    "label": "label_patterns",
    "uri": "uri_patterns",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Flags:
    """What is sensitive."""

    id: str
    """Digest of the contents."""
    code_id: str
    """What decides the codes of the index that they were made for: neurons of another one are others."""
    neuron_ids: tuple[int, ...]
    """Sensitive neurons, ascending."""
    image_digests: tuple[str, ...]
    """sha256 of the bytes of every sensitive image, ascending."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlagResult:
    """What lies at `out` now, and what the lists and patterns found."""

    flags: Flags
    """What is sensitive, what was added to included."""
    neuron_count: int
    """Neurons that are listed or match."""
    image_count: int
    """Images of the index that are listed or match, those with the same bytes once."""
    unmatched: tuple[str, ...]
    """Patterns and digests that nothing in the index has, as a list names them: `label:*weapon*`."""
    was_finished: bool
    """Whether it lay there already."""


def open_flags(path: Path, *, code_id: str | None = None) -> Flags:
    """Open flags, every digest checked before anything is parsed.

    Args:
        path: their folder.
        code_id: that of the index that they are for; None accepts any.

    Raises:
        ArtefactError: they are missing, damaged, something else, or of neurons of another code.
    """
    manifest = open_artefact(path, kind="flags")
    neuron_ids = map_array(path / _NEURONS, np.int32, 1).tolist()
    digests = read_table(path / _IMAGES, _SCHEMA)["sha256"].to_pylist()
    if digests != sorted(set(digests)) or not all(map(is_digest, digests)) or _falls(neuron_ids):
        raise ArtefactDamaged(f"{path} does not hold rising neurons and digests: make the flags again")
    made_for = str(manifest.config["code_id"])
    if code_id is not None and made_for != code_id:
        raise ArtefactMismatch(
            f"the flags {path.name!r} were made for the code_id {made_for}; the index has {code_id}: their neurons are "
            "not the same. Make them for this index: python -m index flag INDEX --out FLAGS"
        )
    return Flags(id=manifest.id, code_id=made_for, neuron_ids=tuple(neuron_ids), image_digests=tuple(digests))


def flag_index(
    index: Path, out: Path, config: SensitiveConfig, *, base: Path | None = None, names: Path | None = None
) -> FlagResult:
    """Publish what is sensitive in an index; run twice, it finds the flags there.

    A digest that no row has is kept: it hides the image once the index is appended to with it. A pattern is not.

    Args:
        index: its folder.
        out: folder of the flags to be.
        config: lists and patterns.
        base: flags to add to.
        names: what neurons are called, where not as the index says.

    Raises:
        ArtefactError: the index or `base` is missing or damaged, or `out` holds something else.
        NotFound: there are patterns alone, and nothing matches any of them.
        SettingError: nothing is named, or a listed neuron does not exist.
    """
    if config == SensitiveConfig():
        raise SettingError(
            "nothing is named; say --neuron, --name-pattern, --sha256, --label-pattern, --uri-pattern or --list"
        )
    manifest = open_artefact(index, kind="index")
    plan = manifest.config["plan"]
    before = None if base is None else open_flags(base, code_id=str(plan["code_id"]))
    named = None if names is None else open_names(names, code_id=str(plan["code_id"]))
    table = NeuronTable(index, None if named is None else named.column)
    called = [[name.name for name in table.neuron(neuron_id).names] for neuron_id in range(table.neuron_count)]
    by_name = Unmatched(config.name_patterns)
    by_name.hear(name for own in called for name in own)
    neuron_ids = set(np.flatnonzero(sensitive_neurons(config, called)).tolist())
    found, unmatched = _image_digests(index, plan, config)
    unmatched = [*(f"name:{pattern}" for pattern in by_name.patterns), *unmatched]
    digests = found | {digest.lower() for digest in config.image_digests}
    if not neuron_ids and not digests:
        raise NotFound(
            f"nothing in {index.name!r} matches {shortened(unmatched)}; look for typing errors (nothing was flagged)"
        )
    neuron_count = len(neuron_ids)
    inputs = {"index": manifest.id} | ({} if named is None else {"names": named.id})
    if before is not None:
        neuron_ids |= set(before.neuron_ids)
        digests |= set(before.image_digests)
        inputs["flags"] = before.id
    flags, was_finished = _save(out, sorted(neuron_ids), sorted(digests), inputs=inputs, code_id=str(plan["code_id"]))
    return FlagResult(
        flags=flags,
        neuron_count=neuron_count,
        image_count=len(found),
        unmatched=tuple(unmatched),
        was_finished=was_finished,
    )


def check_flags_stay(current: Path, indexes: Mapping[str, Path], flags: Mapping[str, Path]) -> None:
    """Refuse a generation that names no flags for an index that had some when it was last named.

    Args:
        current: the file that names the generation so far; where there is none, nothing is checked.
        indexes: name to folder, of the generation to be.
        flags: name of the index to folder, of the generation to be.

    Raises:
        SettingError: flags would be dropped, be the index called another name; or there is no telling.
    """
    if not current.exists():
        return
    try:
        before = read_current(current)
    except ArtefactError as error:
        raise SettingError(f"what is hidden now cannot be told: {error}; or say --put-back where nothing is") from error
    for member in (*before.flags, *before.left_flags):
        for name in successors(before, member.name, indexes):
            if name not in flags:
                raise SettingError(
                    f"index {member.name!r} has flags, and index {name!r} would have none: name some (--flags "
                    f"{name}={member.path}), or say --put-back where that is meant"
                )


def read_flag_list(path: Path) -> SensitiveConfig:
    """Read a list: on each line `neuron`, `name`, `sha256`, `label` or `uri`, a colon, and an id, digest or pattern.

    Spaces, tabs and carriage returns around either are no part of it, be the lines ended by LF or CRLF; nor is a byte
    order mark. A carriage return within a pattern is; one at its end has to be given as `?`.

    Raises:
        SettingError: a line is none of that; all of them in one error.
    """
    try:
        # A name may hold whatever else ends a line for Python.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is no UTF-8 text ({error}); write lines such as label:*weapon*") from error
    named: dict[str, list[Any]] = {field: [] for field in _KINDS.values()}
    wrong: list[int] = []
    for number, line in enumerate(lines, 1):
        kind, colon, what = (part.strip(" \t\r") for part in line.partition(":"))
        if not line.strip():
            continue
        if not colon or not what or kind not in _KINDS or (kind == "neuron" and not _NEURON_ID.fullmatch(what)):
            wrong.append(number)
        else:
            named[_KINDS[kind]].append(int(what) if kind == "neuron" else what)
    if wrong:
        raise SettingError(f"lines {wrong[:10]} of {path} are not KIND:WHAT, KIND one of {', '.join(_KINDS)}")
    return SensitiveConfig(**{field: tuple(values) for field, values in named.items()})


def shortened(unmatched: Sequence[str]) -> str:
    """Name the first few of what nothing matches, for people."""
    shown = ", ".join(repr(each) for each in unmatched[:_SHOWN])
    return shown if len(unmatched) <= _SHOWN else f"{shown} and {len(unmatched) - _SHOWN} more"


def _image_digests(index: Path, plan: dict[str, Any], config: SensitiveConfig) -> tuple[set[str], list[str]]:
    """The digests of sensitive images that rows have, and what no row has; a shard in memory."""
    images = ImageTable(index, open_shards(index, stored_shards(plan)))
    by_label, by_uri = Unmatched(config.label_patterns), Unmatched(config.uri_patterns)
    found: set[str] = set()
    columns = (images.columns(name) for name in ("label", "uri", "sha256"))
    for labels, uris, digests in zip(*columns, strict=True):
        flags = sensitive_images(config, labels=labels, uris=uris, digests=digests)
        found |= {digest for digest, is_sensitive in zip(digests, flags, strict=True) if is_sensitive and digest}
        # A row whose bytes could not be read is in no answer: nothing of it can be hidden.
        by_label.hear(label for label, digest in zip(labels, digests, strict=True) if digest)
        by_uri.hear(uri for uri, digest in zip(uris, digests, strict=True) if digest)
    absent = [digest for digest in dict.fromkeys(map(str.lower, config.image_digests)) if digest not in found]
    return found, [
        *(f"label:{pattern}" for pattern in by_label.patterns),
        *(f"uri:{pattern}" for pattern in by_uri.patterns),
        *(f"sha256:{digest}" for digest in absent),
    ]


def _save(
    out: Path, neuron_ids: list[int], digests: list[str], *, inputs: dict[str, str], code_id: str
) -> tuple[Flags, bool]:
    found = find_artefact(out, kind="flags")
    if found is not None:
        there = open_flags(out)
        if (list(there.neuron_ids), list(there.image_digests), found.inputs) != (neuron_ids, digests, inputs):
            raise ArtefactMismatch(f"{out} holds other flags: choose another --out (and --from {out} to add to them)")
        return there, True

    def write(folder: Path) -> None:
        save_array(folder / _NEURONS, np.array(neuron_ids, dtype=np.int32))
        write_table(folder / _IMAGES, _SCHEMA, [[{"sha256": digest} for digest in digests]])

    config = {"code_id": code_id, "neuron_count": len(neuron_ids), "image_count": len(digests)}
    manifest = publish(out, kind="flags", inputs=inputs, config=config, write=write)
    saved = Flags(id=manifest.id, code_id=code_id, neuron_ids=tuple(neuron_ids), image_digests=tuple(digests))
    return saved, False


def _falls(numbers: list[int]) -> bool:
    return any(first >= second for first, second in zip(numbers, numbers[1:], strict=False))
