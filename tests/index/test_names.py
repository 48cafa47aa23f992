"""Names beside an index: those that a build with the same vocabulary gives, in place of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.flags import flag_index, open_flags
from index.name_job import name_index
from index.names import open_names
from index.plan import IndexConfig
from index.reader import open_index
from index.sensitive import SensitiveConfig
from index.values import NameSource, NeuronFilter, NeuronOrder
from phosphene.current import load_current
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, NotFound, SettingError
from tests.index.quiet import Notes
from tests.index.small_world import NEURON_COUNT, write_corpus

# Many words, so that some lie near what the exemplars of some neuron share, whatever an untrained text tower says.
WORDS = tuple(
    f"{first} {second}" for first in ("warm", "cold", "old", "new", "far") for second in "abcdefghijklmnopqrst"
)

# Enough exemplars that a name is no chance.
CONFIG = IndexConfig(shard_image_count=32, batch_images=8, thread_count=1, top_count=32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_corpus(tmp_path_factory.mktemp("pictures") / "pictures", 120))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, bundle: Path, pictures: str) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    build_index(BuildJob(corpus=pictures, bundle=bundle, out=out, config=CONFIG), Notes())
    return out


@pytest.fixture(scope="module")
def names(built: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("names") / "names"
    assert not name_index(built, out, WORDS, bundle=bundle)[1]
    return out


def test_they_are_those_that_a_build_with_the_vocabulary_gives(
    built: Path, bundle: Path, pictures: str, names: Path, tmp_path: Path
) -> None:
    job = BuildJob(corpus=pictures, bundle=bundle, out=tmp_path / "index", config=CONFIG, vocabulary=WORDS)
    build_index(job, Notes())
    with open_index(built) as plain, open_index(built, names=names) as index, open_index(job.out) as due:
        assert (plain.names_id, index.names_id) == ("", open_names(names).id)
        added: list[str] = []
        for neuron_id in range(NEURON_COUNT):
            found, wanted = index.neuron(neuron_id), due.neuron(neuron_id)
            assert [(name.name, name.source) for name in found.names] == [
                (name.name, name.source) for name in wanted.names
            ]
            for name, other in zip(found.names, wanted.names, strict=True):
                assert (name.score, name.margin) == pytest.approx((other.score, other.margin), abs=1e-6)
            own = [name for name in found.names if name.source is not NameSource.VOCABULARY]
            assert own == [name for name in plain.neuron(neuron_id).names if name.source is not NameSource.VOCABULARY]
            added += [name.name for name in found.names[len(own) :]]
        for condition in (NeuronFilter(name_contains=added[0]), NeuronFilter(name_contains="RED")):
            assert index.list_neurons(filter=condition) == due.list_neurons(filter=condition)
        assert index.list_neurons(filter=NeuronFilter(name_contains=added[0]))
        assert not plain.list_neurons(filter=NeuronFilter(name_contains=added[0]))
        assert index.list_neurons(NeuronOrder.NAME_SCORE) == due.list_neurons(NeuronOrder.NAME_SCORE)


def test_an_index_that_has_a_vocabulary_goes_by_the_new_one_alone(
    bundle: Path, pictures: str, names: Path, tmp_path: Path
) -> None:
    words = tuple(f"other {word}" for word in WORDS)
    job = BuildJob(corpus=pictures, bundle=bundle, out=tmp_path / "index", config=CONFIG, vocabulary=words)
    build_index(job, Notes())
    name_index(job.out, tmp_path / "names", WORDS, bundle=bundle)
    assert open_names(tmp_path / "names").column == open_names(names).column


def test_names_of_other_neurons_and_damaged_ones_are_refused(
    patches_index: Path, patches_bundle: Path, built: Path, bundle: Path, names: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactMismatch, match="were made for the code_id"):
        open_index(patches_index, names=names)
    with pytest.raises(ArtefactMismatch, match="name the bundle that it was built for"):
        name_index(built, tmp_path / "names", WORDS, bundle=patches_bundle)
    with pytest.raises(SettingError, match="holds no embeddings"):
        name_index(patches_index, tmp_path / "names", WORDS, bundle=patches_bundle)
    assert not (tmp_path / "names").exists()
    name_index(built, tmp_path / "names", WORDS, bundle=bundle)
    with pytest.raises(ArtefactMismatch, match="holds other names"):
        name_index(built, tmp_path / "names", WORDS[:50], bundle=bundle)
    (tmp_path / "names" / "names.parquet").write_bytes(b"")
    with pytest.raises(ArtefactDamaged):
        open_names(tmp_path / "names")


def test_patterns_are_held_against_the_names_that_are_served(built: Path, names: Path, tmp_path: Path) -> None:
    of_vocabulary = SensitiveConfig(name_patterns=tuple({f"{word.split()[0]} ?" for word in WORDS}))
    flag_index(built, tmp_path / "flags", of_vocabulary, names=names)
    called = [
        neuron_id
        for neuron_id, each in enumerate(open_names(names).column.to_pylist())
        if any(name["source"] == "vocabulary" for name in each)
    ]
    assert list(open_flags(tmp_path / "flags").neuron_ids) == called
    assert called
    with pytest.raises(NotFound, match="nothing in 'index' matches"):
        flag_index(built, tmp_path / "plain", of_vocabulary)


def test_what_is_no_terminal_gets_names_in_a_column_of_their_own(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_index(built) as index:
        ranked = map(index.neuron, index.list_neurons(NeuronOrder.NAME_SCORE, NeuronFilter(alive_only=True)))
        named = [neuron for neuron in ranked if neuron.names]
    assert len(named) > 2
    assert main(["show", str(built), "--names", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(next(line for line in lines if line.startswith("best named neurons"))) + 1
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[first : first + 4]]
    assert cells[0][-3:] == ["name", "from", "other names"]
    for cell, neuron in zip(cells[1:3], named, strict=False):
        assert (cell[0], cell[6:8]) == (str(neuron.neuron_id), [neuron.names[0].name, neuron.names[0].source.value])
    assert cells[3] == [""]


def test_the_command_names_verifies_and_activates(
    built: Path, bundle: Path, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out, current = tmp_path / "words.txt", tmp_path / "names", tmp_path / "CURRENT"
    words.write_text("\n".join(WORDS))
    command = ["name", str(built), "--bundle", str(bundle), "--vocabulary", str(words), "--out", str(out)]
    assert [main(command), main(command)] == [0, 0]
    first, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["neurons"] == sum(bool(each) for each in open_names(names).column.to_pylist())
    assert (first["event"], first["id"], first["was_finished"]) == ("named", open_names(names).id, False)
    assert again == first | {"was_finished": True}
    assert main(["verify", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["neurons"] == NEURON_COUNT
    base = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"i={built}"]
    assert main([*base, "--names", f"other={out}"]) == 2
    assert "names are named for ['other']" in capsys.readouterr().err
    assert main([*base, "--names", f"i={out}"]) == 0
    (member,) = load_current(current).names
    assert (member.name, member.id) == ("i", first["id"])
