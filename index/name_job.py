"""Names the neurons of a finished index by another vocabulary; the index stays what it is.

Runs the bundle's text tower over the words alone, and reads the embeddings of exemplars and of a sample of images:
seconds, where a build takes days. The names are those that a build with this vocabulary would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from index.bundle_parts import LoadedBundle
from index.exemplars import ExemplarStore
from index.image_table import ImageTable
from index.image_vectors import EMBEDDINGS_FILE, ImageVectors
from index.names import NeuronNames, find_names, publish_names
from index.neuron_table import NeuronTable
from index.plan import stored_shards
from index.shards import open_shards
from index.text_naming import prepared_vocabulary, with_text_names
from index.text_search import read_image_mean
from index.values import NameSource, NeuronRow
from index.vocabulary import vocabulary_digest
from phosphene.bundle import load_bundle
from phosphene.engine_torch import TorchEngine
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import open_artefact
from phosphene.open_files import shortage_explained
from phosphene.pipeline import Pipeline

__all__ = ["name_index"]


def name_index(
    index: Path, out: Path, words: Sequence[str], *, bundle: Path, device: str = "cpu"
) -> tuple[NeuronNames, bool]:
    """Publish what the neurons of an index are called by a vocabulary; run twice, it finds the names there.

    Args:
        index: its folder.
        out: folder of the names to be.
        words: at least two, all different; see `index.vocabulary.read_vocabulary`.
        bundle: folder of the bundle that the index was built for.
        device: where its text tower runs.

    Returns:
        What lies at `out` now, and whether it lay there before.

    Raises:
        ArtefactError: index or bundle is missing, damaged or another's, or `out` holds something else.
        SettingError: the index holds no embeddings, because the encoder has no text tower.
        InputError: a word is longer than the text tower reads.
        ReadoutMissing: the bundle has no tokenizer.
    """
    manifest, loaded = open_artefact(index, kind="index"), load_bundle(bundle)
    plan = manifest.config["plan"]
    if loaded.code_id != plan["code_id"]:
        raise ArtefactMismatch(
            f"index {index.name!r} was built with code_id {plan['code_id']}; bundle {bundle.name!r} has "
            f"{loaded.code_id}: name the bundle that it was built for"
        )
    if not manifest.config["has_text"]:
        raise SettingError(
            f"index {index.name!r} holds no embeddings, because its encoder has no text tower; a vocabulary names "
            "neurons of CLIP and SigLIP bundles only"
        )
    inputs = {"bundle": loaded.id, "index": manifest.id}
    config: dict[str, object] = {"code_id": loaded.code_id, "vocabulary_digest": vocabulary_digest(words)}
    found = find_names(out, inputs=inputs, config=config)
    if found is not None:
        return found, True
    pipeline = Pipeline(TorchEngine(loaded, device=device, thread_count=int(plan["thread_count"])))
    with shortage_explained(f"index {index.name!r}"):
        rows = _named(index, plan, LoadedBundle(pipeline, words))
    return publish_names(out, [row.names for row in rows], words, inputs=inputs, config=config), False


def _named(index: Path, plan: dict[str, object], bundle: LoadedBundle) -> list[NeuronRow]:
    """The rows of all neurons: the names from the corpus's words as they are, those by the text tower anew."""
    found = bundle.vocabulary()
    assert found is not None, "there are words"
    shards = open_shards(index, stored_shards(plan))
    embeddings, image_mean = ImageVectors(shards, EMBEDDINGS_FILE), read_image_mean(index)
    vocabulary = prepared_vocabulary(*found, embeddings, ImageTable(index, shards).readable, image_mean)
    table = NeuronTable(index)
    rows = [_without_vocabulary(table.neuron(neuron_id)) for neuron_id in range(table.neuron_count)]
    return with_text_names(rows, vocabulary, ExemplarStore(index), embeddings, image_mean)


def _without_vocabulary(row: NeuronRow) -> NeuronRow:
    return replace(row, names=tuple(name for name in row.names if name.source is not NameSource.VOCABULARY))
