"""Names: what neurons are called by another vocabulary; an artefact beside the index that they are of.

A vocabulary changes after a build, so that names by one are kept apart from the index: those of the index from the
corpus's own words, and what the text tower adds of the new words. They stand in place of the index's own names. They
fit every index of the same codes, so that they outlive appends. Made by `index.name_job`; runs no text tower.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from index.neuron_table import NAMES_FIELD, name_records
from index.tables import read_table, write_table
from index.values import NeuronName
from phosphene.artefact_writing import publish
from phosphene.errors import ArtefactDamaged, ArtefactMismatch
from phosphene.manifest import Manifest, find_artefact, open_artefact

__all__ = ["NeuronNames", "find_names", "open_names", "publish_names"]

_NAMES, _WORDS = "names.parquet", "vocabulary.json"
_SCHEMA = pa.schema([pa.field("neuron_id", pa.int32(), nullable=False), NAMES_FIELD])


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronNames:
    """What all neurons are called."""

    id: str
    """Digest of the contents."""
    code_id: str
    """What decides the codes of the index that they were made for: neurons of another one are others."""
    column: pa.ChunkedArray
    """Those of every neuron, ascending, as `index.neuron_table.NAMES_FIELD` says; best first."""


def open_names(path: Path, *, code_id: str | None = None) -> NeuronNames:
    """Open names, every digest checked before anything is parsed.

    Args:
        path: their folder.
        code_id: that of the index that they are for; None accepts any.

    Raises:
        ArtefactError: they are missing, damaged, something else, or of neurons of another code.
    """
    manifest = open_artefact(path, kind="names")
    made_for = str(manifest.config["code_id"])
    if code_id is not None and made_for != code_id:
        raise ArtefactMismatch(
            f"the names {path.name!r} were made for the code_id {made_for}; the index has {code_id}: their neurons are "
            "not the same. Make them for this index: python -m index name INDEX --vocabulary FILE --out NAMES"
        )
    return _read(path, manifest)


def find_names(out: Path, *, inputs: dict[str, str], config: dict[str, object]) -> NeuronNames | None:
    """Return the names that lie at `out`, None where nothing lies there.

    Args:
        out: a folder.
        inputs: what they are to be made from.
        config: what their manifest is to say.

    Raises:
        ArtefactError: other names lie there, something else, or they are damaged.
    """
    found = find_artefact(out, kind="names")
    if found is None:
        return None
    if (found.inputs, found.config) != (inputs, config):
        raise ArtefactMismatch(f"{out} holds other names: choose another --out, or remove it first")
    return _read(out, found)


def publish_names(
    out: Path,
    names: Sequence[tuple[NeuronName, ...]],
    words: Sequence[str],
    *,
    inputs: dict[str, str],
    config: dict[str, object],
) -> NeuronNames:
    """Publish the names of all neurons, ascending, and the vocabulary that they were made with."""
    records = [{"neuron_id": neuron_id, "names": name_records(each)} for neuron_id, each in enumerate(names)]

    def write(folder: Path) -> None:
        write_table(folder / _NAMES, _SCHEMA, [records])
        (folder / _WORDS).write_text(json.dumps(list(words), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    return _read(out, publish(out, kind="names", inputs=inputs, config=config, write=write))


def _read(path: Path, manifest: Manifest) -> NeuronNames:
    table = read_table(path / _NAMES, _SCHEMA)
    if table["neuron_id"].to_pylist() != list(range(table.num_rows)):
        raise ArtefactDamaged(f"{path / _NAMES} does not hold every neuron once: make the names again")
    return NeuronNames(id=manifest.id, code_id=str(manifest.config["code_id"]), column=table[NAMES_FIELD.name])
