"""Flags: lists and patterns become neurons and digests beside an index, and its reader hides what they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index.__main__ import main
from index.flags import flag_index, open_flags, read_flag_list
from index.reader import open_index
from index.sensitive import SensitiveConfig
from index.values import ExemplarKind
from phosphene.current import load_current
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, NotFound, SettingError
from tests.index.small_world import NEURON_COUNT

CIRCLES = SensitiveConfig(label_patterns=("CIR*",), neuron_ids=(7, 3))


@pytest.fixture(scope="module")
def flags(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flags") / "flags"
    flag_index(built, out, CIRCLES)
    return out


def test_patterns_and_lists_become_neurons_and_digests(built: Path, flags: Path) -> None:
    with open_index(built) as index:
        circles = {index.image(row).sha256 for row in range(40) if index.image(row).label == "circle"}
        found = open_flags(flags, code_id=index.code_id)
    assert 3 < len(circles) < 36
    assert (found.neuron_ids, found.image_digests) == ((3, 7), tuple(sorted(circles)))


def test_names_digests_and_uris_are_heard_and_added_to(built: Path, flags: Path, tmp_path: Path) -> None:
    with open_index(built) as index:
        named = [n for n in range(NEURON_COUNT) if any("red" in name.name for name in index.neuron(n).names)]
        one = index.image(11).sha256
    config = SensitiveConfig(name_patterns=("*red*",), image_digests=(one.upper(), "0" * 64), uri_patterns=("*20.png",))
    result = flag_index(built, tmp_path / "more", config, base=flags)
    found, before = result.flags, open_flags(flags)
    assert not result.was_finished
    assert set(found.neuron_ids) == {3, 7, *named}
    assert set(before.image_digests) < set(found.image_digests)
    assert {one, "0" * 64} <= set(found.image_digests)
    again = flag_index(built, tmp_path / "more", config, base=flags)
    assert (again.flags.id, again.was_finished) == (found.id, True)
    with pytest.raises(ArtefactMismatch, match="holds other flags"):
        flag_index(built, tmp_path / "more", CIRCLES)


def test_the_reader_hides_sensitive_images_and_keeps_scores(built: Path, flags: Path) -> None:
    with open_index(built, flags=flags) as index, open_index(built) as plain:
        assert (index.flags_id, plain.flags_id) == (open_flags(flags).id, "")
        assert index.sensitive_neuron_ids == {3, 7}
        hidden = {row for row in range(40) if index.is_sensitive(row)}
        # By bytes: a copy under another label is sensitive too.
        circles = {plain.image(row).sha256 for row in range(40) if plain.image(row).label == "circle"}
        assert hidden == {row for row in range(40) if plain.image(row).sha256 in circles}
        view = index.without_sensitive()
        assert view is index.without_sensitive()
        for neuron_id in range(NEURON_COUNT):
            shown = plain.exemplars(neuron_id, ExemplarKind.TOP, 100)
            assert index.exemplars(neuron_id, ExemplarKind.TOP, 100) == shown
            left = [exemplar for exemplar in shown if exemplar.row not in hidden]
            assert view.exemplars(neuron_id, ExemplarKind.TOP, 100) == left
        code = index.code(1)
        similar = [match for match in plain.similar_images(code, 40) if match.row not in hidden]
        assert view.similar_images(code, 40) == similar
        assert similar
        fired = [pair for pair in plain.images_by_expression("8 | 9 | 10", 40) if pair[0] not in hidden]
        assert view.images_by_expression("8 | 9 | 10", 40) == fired
        for row in hidden:
            with pytest.raises(NotFound, match="is sensitive; ask for it with include_sensitive"):
                view.image(row)
            assert view.row_of(plain.image(row).sha256) is None
            assert index.image(row) == plain.image(row)


def test_flags_of_other_neurons_and_damaged_ones_are_refused(
    patches_index: Path, built: Path, flags: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactMismatch, match="made for the code_id"):
        open_index(patches_index, flags=flags)
    found = flag_index(built, tmp_path / "flags", CIRCLES).flags
    array = np.load(tmp_path / "flags" / "neurons.npy")
    array[0] += 1
    np.save(tmp_path / "flags" / "neurons.npy", array)
    with pytest.raises(ArtefactDamaged):
        open_flags(tmp_path / "flags")
    assert found.neuron_ids == (3, 7)


def test_nothing_named_and_unknown_neurons_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing is named"):
        flag_index(built, tmp_path / "flags", SensitiveConfig())
    with pytest.raises(SettingError, match=f"neurons are 0 to {NEURON_COUNT - 1}"):
        flag_index(built, tmp_path / "flags", SensitiveConfig(neuron_ids=(NEURON_COUNT,)))


def test_what_matches_nothing_is_told_and_what_matches_is_counted(
    built: Path, flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_index(built) as index:
        circles = {index.image(row).sha256 for row in range(40) if index.image(row).label == "circle"}
    patterns = ("--label-pattern", "cyrcle", "CIRC*", "--uri-pattern", "none/*", "--name-pattern", "*weapon*")
    command = ["flag", str(built), "--out", str(tmp_path / "more"), "--from", str(flags), *patterns]
    assert main([*command, "--sha256", "0" * 64]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["unmatched"] == ["name:*weapon*", "label:cyrcle", "uri:none/*", f"sha256:{'0' * 64}"]
    assert (told["matched_neurons"], told["matched_images"]) == (0, len(circles))
    assert (told["neurons"], told["images"]) == (2, len(circles) + 1)
    assert "nothing in 'index' matches 'name:*weapon*', 'label:cyrcle'" in json.loads(err)["text"]


def test_patterns_that_all_match_nothing_are_refused(
    built: Path, flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["flag", str(built), "--out", str(tmp_path / "none"), "--from", str(flags)]
    assert main([*command, "--label-pattern", "cyrcle", "--uri-pattern", *(f"{each}.gif" for each in range(12))]) == 2
    told = capsys.readouterr().err
    assert "error: nothing in 'index' matches 'label:cyrcle', 'uri:0.gif'" in told
    assert told.endswith("'uri:8.gif' and 3 more; look for typing errors (nothing was flagged)\n")
    assert not (tmp_path / "none").exists()


def test_a_list_names_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"neuron: 12\nname:*nude*\n\nsha256:{'a' * 64}\nlabel:weapon\nuri:private/*\n")
    assert read_flag_list(path) == SensitiveConfig(
        neuron_ids=(12,),
        name_patterns=("*nude*",),
        image_digests=("a" * 64,),
        label_patterns=("weapon",),
        uri_patterns=("private/*",),
    )
    # What ends a line for Python, and for no editor, is part of a name.
    path.write_text("uri: a\u2028label:b\x0b \r\n", encoding="utf-8")
    assert read_flag_list(path) == SensitiveConfig(uri_patterns=("a\u2028label:b\x0b",))
    path.write_text("neuron:12\nneuron:x\nweapon\nlabel:\nneuron:" + "9" * 5000 + "\n")
    with pytest.raises(SettingError, match=r"lines \[2, 3, 4, 5\]"):
        read_flag_list(path)


def test_the_command_flags_and_activates(
    built: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "flags"
    assert main(["flag", str(built), "--out", str(out), "--neuron", "3", "--label-pattern", "circle"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["neurons"], told["matched_neurons"], told["unmatched"]) == ("flagged", 1, 1, [])
    assert told["matched_images"] == told["images"] > 3
    current = tmp_path / "CURRENT"
    base = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"i={built}"]
    assert main([*base, "--flags", f"other={out}"]) == 2
    assert "flags are named for ['other']" in capsys.readouterr().err
    assert main([*base, "--flags", f"i={out}"]) == 0
    (member,) = load_current(current).flags
    assert (member.name, member.id) == ("i", told["id"])
    capsys.readouterr()
    assert main(base) == 2
    assert "index 'i' has flags, and index 'i' would have none" in capsys.readouterr().err
    assert main([*base[:-1], f"renamed={built}"]) == 2
    assert "index 'i' has flags, and index 'renamed' would have none" in capsys.readouterr().err
    assert main([*base[:-1], f"renamed={built}", "--flags", f"renamed={out}"]) == 0
    assert main(base[:-2]) == 0
    assert main([*base[:-1], f"renamed={built}"]) == 2
    assert main([*base, "--flags", f"i={out}"]) == 0
    capsys.readouterr()
    assert main([*base, "--put-back"]) == 0
    assert load_current(current).flags == ()
    assert main(["verify", str(out)]) == 0


def test_flags_follow_an_index_that_takes_the_name_of_another(
    built: Path, bundle: Path, flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, command = tmp_path / "other", ["activate", str(tmp_path / "CURRENT"), "--bundle", f"b={bundle}"]
    assert main(["compact", str(built), "--out", str(other)]) == 0
    both = ["--index", f"photos={built}", "--index", f"scenes={other}", "--flags", f"photos={flags}"]
    assert main([*command, *both]) == 0
    capsys.readouterr()
    swapped = ["--index", f"photos={other}", "--index", f"scenes={built}", "--flags", f"photos={flags}"]
    assert main([*command, *swapped]) == 2
    assert "index 'photos' has flags, and index 'scenes' would have none" in capsys.readouterr().err
    assert main([*command, *swapped, "--flags", f"scenes={flags}"]) == 0
