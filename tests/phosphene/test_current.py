import json
import shutil
from pathlib import Path

import pytest

from phosphene.artefact_writing import publish
from phosphene.current import load_current, save_current
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactError,
    ArtefactMismatch,
    ArtefactMissing,
    SchemaUnknown,
    SettingError,
)


def artefact(path, *, kind, text="a"):
    publish(path, kind=kind, inputs={}, config={}, write=lambda partial: (partial / "x").write_text(text))
    return path


@pytest.fixture
def house(tmp_path):
    bundles = {"b": artefact(tmp_path / "b1", kind="bundle"), "a": artefact(tmp_path / "b2", kind="bundle", text="2")}
    indexes = {"photos": artefact(tmp_path / "i1", kind="index")}
    return tmp_path / "CURRENT", bundles, indexes


def test_what_is_saved_is_loaded_in_order(house):
    path, bundles, indexes = house
    saved = save_current(path, bundles=bundles, indexes=indexes)
    loaded = load_current(path)
    assert [(entry.name, entry.id) for entry in loaded.bundles] == [(entry.name, entry.id) for entry in saved.bundles]
    assert [entry.name for entry in loaded.bundles] == ["b", "a"]
    assert loaded.indexes[0].path.resolve() == indexes["photos"]


def test_folders_are_found_from_wherever_the_file_is_moved_with_them(house, tmp_path, monkeypatch):
    path, bundles, indexes = house
    save_current(path, bundles=bundles, indexes=indexes)
    moved = tmp_path.parent / (tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert load_current(moved / "CURRENT").bundles[0].path.resolve() == moved / "b1"


def test_a_link_is_not_replaced_by_a_file(house, tmp_path):
    current, bundles, indexes = house
    save_current(current, bundles=bundles, indexes=indexes)
    before = current.read_bytes()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "CURRENT").symlink_to(current)
    with pytest.raises(SettingError, match=f"link; name the file '{current}' itself"):
        save_current(tmp_path / "here" / "CURRENT", bundles=bundles, indexes={})
    assert current.read_bytes() == before
    assert (tmp_path / "here" / "CURRENT").is_symlink()


def test_a_folder_that_holds_something_else_by_now_is_refused(house, tmp_path):
    path, bundles, indexes = house
    save_current(path, bundles=bundles, indexes=indexes)
    (tmp_path / "b1").rename(tmp_path / "old")
    with pytest.raises(ArtefactMissing):
        load_current(path)
    artefact(tmp_path / "b1", kind="bundle", text="other")
    with pytest.raises(ArtefactMismatch, match="holds the bundle"):
        load_current(path)


def test_what_is_not_published_is_not_named(house, tmp_path):
    path, bundles, indexes = house
    save_current(path, bundles=bundles, indexes=indexes)
    before = path.read_bytes()
    for wrong in (tmp_path / "none", indexes["photos"]):
        with pytest.raises(ArtefactError):
            save_current(path, bundles={"x": wrong}, indexes={})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ArtefactDamaged),
        ("[]", SchemaUnknown),
        ('{"schema": 3, "bundles": {}, "indexes": {}}', SchemaUnknown),
        ('{"schema": 1, "bundles": {}, "indexes": {}, "names": {}}', SchemaUnknown),
        ('{"schema": 1, "bundles": {}, "indexes": {}}', ArtefactDamaged),
        ('{"schema": 1, "bundles": {"a": "b1"}, "indexes": {}}', ArtefactDamaged),
        (json.dumps({"schema": 1, "bundles": [1], "indexes": {}}), ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": []}), ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": {"a": "tombstones"}}), ArtefactDamaged),
        (
            json.dumps({"schema": 2, "bundles": {}, "indexes": {"a": {"folder": "a", "id": "", "flags": 1}}}),
            ArtefactDamaged,
        ),
        ("[" * 100_000, ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": {}, "left": []}), ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": {}, "left": {"a": 1}}), ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": {}, "left": {"a": {"tombstones": {}}}}), ArtefactDamaged),
        (json.dumps({"schema": 2, "bundles": {}, "indexes": {}, "left": {"a": {"names": {}}}}), SchemaUnknown),
    ],
)
def test_a_file_that_does_not_parse_is_refused(tmp_path, text, error):
    path = Path(tmp_path / "CURRENT")
    path.write_text(text)
    with pytest.raises(error):
        load_current(path)


def test_what_is_down_of_an_index_outlives_generations_without_the_index(house, tmp_path):
    path, bundles, indexes = house
    down, flags = artefact(tmp_path / "down", kind="tombstones"), artefact(tmp_path / "flags", kind="flags")
    beside = {"tombstones": {"photos": down}, "flags": {"photos": flags}}
    save_current(path, bundles=bundles, indexes=indexes, **beside)
    for _ in range(2):
        save_current(path, bundles=bundles, indexes={})
        shutil.rmtree(down, ignore_errors=True)
        # Nobody is served from it, so nobody misses the folder.
        current = load_current(path)
        assert [member.name for member in current.left_tombstones] == ["photos"]
        assert [member.path.resolve() for member in current.left_flags] == [flags]
        assert current.tombstones == current.flags == ()
    with_it = save_current(path, bundles=bundles, indexes=indexes, flags={"photos": flags})
    assert with_it.left_tombstones == with_it.left_flags == ()
    assert "left" not in json.loads(path.read_text())


def test_what_is_put_back_is_forgotten(house, tmp_path):
    path, bundles, indexes = house
    down = artefact(tmp_path / "down", kind="tombstones")
    save_current(path, bundles=bundles, indexes=indexes, tombstones={"photos": down})
    assert save_current(path, bundles=bundles, indexes={}, puts_back=True).left_tombstones
    assert not save_current(path, bundles=bundles, indexes={"new": indexes["photos"]}, puts_back=True).left_tombstones


def test_tombstones_belong_to_an_index_that_is_named(house, tmp_path):
    path, bundles, indexes = house
    down = artefact(tmp_path / "down", kind="tombstones")
    save_current(path, bundles=bundles, indexes=indexes, tombstones={"photos": down})
    (member,) = load_current(path).tombstones
    assert (member.name, member.path.resolve()) == ("photos", down)
    with pytest.raises(SettingError, match="other"):
        save_current(path, bundles=bundles, indexes=indexes, tombstones={"other": down})
    with pytest.raises(ArtefactMismatch, match="due is 'tombstones'"):
        save_current(path, bundles=bundles, indexes=indexes, tombstones={"photos": indexes["photos"]})
    (down / "x").unlink()
    down.rename(tmp_path / "gone")
    with pytest.raises(ArtefactMissing):
        load_current(path)


def test_what_an_entry_says_beyond_what_is_known_is_refused(house):
    path, bundles, indexes = house
    save_current(path, bundles=bundles, indexes=indexes)
    document = json.loads(path.read_text())
    document["indexes"]["photos"]["hidden"] = {}
    path.write_text(json.dumps(document))
    with pytest.raises(SchemaUnknown, match="hidden"):
        load_current(path)


def test_a_file_of_the_first_schema_is_read(house, root):
    path, bundles, indexes = house
    saved = save_current(path, bundles=bundles, indexes=indexes)
    golden = json.loads((root / "tests" / "golden" / "current-1.json").read_text())
    for kind in ("bundles", "indexes"):
        for member in getattr(saved, kind):
            golden[kind][member.name]["id"] = member.id
    path.write_text(json.dumps(golden))
    loaded = load_current(path)
    assert [member.id for member in loaded.bundles + loaded.indexes] == [
        member.id for member in saved.bundles + saved.indexes
    ]
    assert loaded.tombstones == ()
