"""A vocabulary of the user: read with care, part of the plan, and heard by the neurons whose images it fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.exemplars import ExemplarStore, write_exemplars
from index.image_vectors import ImageVectors
from index.reader import open_index
from index.text_naming import prepared_vocabulary, with_text_names
from index.text_search import mean_embedding
from index.values import NameSource, NeuronName, NeuronRow
from index.vocabulary import read_vocabulary
from phosphene.codes import ImageCode
from phosphene.errors import InputError, ReadoutMissing, SettingError
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.shard_folders import write_shards

WORDS = ("wall", "sea", "moss", "sand")
WIDTH = 32


def test_words_come_once_each_in_order(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("sea\n\n  moss \nsea\r\nrote Beete\n", encoding="utf-8")
    assert read_vocabulary(tmp_path / "words.txt") == ("sea", "moss", "rote Beete")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"sea\n", "holds 1 words; the limits are 2 to 200000"),
        (b"sea\nmoss\n" + b"x" * 257, "line 3 of the vocabulary .* more than 256"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=complaint):
        read_vocabulary(path)


def _row(neuron_id: int, *names: str) -> NeuronRow:
    return NeuronRow(
        neuron_id=neuron_id,
        firing_count=1,
        density=0.1,
        mean=1.0,
        std=0.0,
        maximum=1.0,
        quantiles=(),
        label_entropy=None,
        names=tuple(NeuronName(name=name, score=0.9, margin=0.5, source=NameSource.LABEL) for name in names),
    )


def test_words_are_added_where_they_fit_and_nothing_has_them(tmp_path: Path) -> None:
    """Neuron n fires on images of word n; 3 on all of them; 4 on none. Images and words live in cones of their own."""
    generator = np.random.default_rng(0)
    concepts = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0][: len(WORDS)]
    gaps = 2 * generator.normal(size=(2, WIDTH)) / WIDTH**0.5
    shown = np.arange(240) % len(WORDS)
    embeddings = concepts[shown] + gaps[0] + 0.05 * generator.normal(size=(240, WIDTH))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    codes = [
        ImageCode(
            neuron_ids=np.array([word, 3][: 1 + (word < 3)], np.int32), values=np.ones(1 + (word < 3), np.float32)
        )
        for word in shown
    ]
    shards = write_shards(tmp_path, codes, neuron_count=5, size=100, embeddings=embeddings)
    readable = np.ones(240, dtype=bool)
    write_exemplars(tmp_path, shards, readable, top_count=60, spread_count=4)
    stored = ImageVectors(shards)
    mean = mean_embedding(stored, readable)
    vectors = concepts + gaps[1]
    vocabulary = prepared_vocabulary(
        WORDS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), stored, readable, mean
    )
    rows = [_row(0), _row(1, "rough sea"), _row(2, "stones"), _row(3), _row(4)]
    named = with_text_names(rows, vocabulary, ExemplarStore(tmp_path), stored, mean)
    told = [[(name.name, name.source) for name in row.names] for row in named]
    assert told[0] == [("wall", NameSource.VOCABULARY)]
    assert told[1] == [("rough sea", NameSource.LABEL)]
    assert told[2] == [("stones", NameSource.LABEL), ("moss", NameSource.VOCABULARY)]
    assert told[3] == told[4] == []
    assert named[2].names[1].margin > 0.3


def _job(corpus: Path, bundle: Path, out: Path, words: tuple[str, ...]) -> BuildJob:
    return BuildJob(corpus=str(corpus), bundle=bundle, out=out, config=SMALL, vocabulary=words)


def test_a_vocabulary_is_part_of_the_plan_and_of_the_index(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    ids = set()
    for out, words in (("one", WORDS), ("again", WORDS), ("other", WORDS[:3])):
        result = build_index(_job(corpus, bundle, tmp_path / out, words), Notes())
        assert json.loads((tmp_path / out / "vocabulary.json").read_text()) == list(words)
        ids.add((result.plan_id, result.manifest.id))
    assert len(ids) == 2
    assert not (built / "vocabulary.json").exists()
    with open_index(built) as plain, open_index(tmp_path / "one") as index:
        assert plain.plan_id != index.plan_id
        assert (plain.code(3).values == index.code(3).values).all()


def test_what_the_text_tower_cannot_read_is_refused_before_the_work(
    bundle: Path, patches_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    notes = Notes()
    with pytest.raises(InputError, match="tokens long"):
        build_index(_job(corpus, bundle, tmp_path / "long", ("sea", "circle " * 40)), notes)
    with pytest.raises(ReadoutMissing, match="no text tower"):
        build_index(_job(corpus, patches_bundle, tmp_path / "none", WORDS), notes)
    assert "encode" not in notes.stages


def test_the_command_takes_a_file(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["build", str(corpus), "--bundle", str(bundle), "--batch", "4", "--threads", "1"]
    words = tmp_path / "words.txt"
    assert main([*base, "--out", str(tmp_path / "a"), "--vocabulary", str(words)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    words.write_text("sea\nmoss\n")
    assert main([*base, "--out", str(tmp_path / "a"), "--vocabulary", str(words)]) == 0
    assert json.loads((tmp_path / "a" / "vocabulary.json").read_text()) == ["sea", "moss"]
