"""Artefacts are whole or absent, and no flipped bit goes unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.artefact_writing import publish
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactMismatch,
    ArtefactMissing,
    ArtefactRefused,
    SchemaUnknown,
    SettingError,
)
from phosphene.manifest import (
    FileEntry,
    Manifest,
    canonical_json,
    differences,
    digest_of,
    find_artefact,
    open_artefact,
    partial_path,
)
from tests.unprivileged import public_folder, without_rights


def write(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "a.npy").write_bytes(b"some array")
    (folder / "inner" / "b.json").write_bytes(b"{}")


def make(path: Path, **config: object) -> Manifest:
    return publish(path, kind="index", inputs={"bundle": "0" * 64}, config={"seed": 1, **config}, write=write)


def forge(path: Path, body: dict[str, object]) -> None:
    """Write a manifest whose own check holds, as another program might."""
    body.pop("check", None)
    body["check"] = digest_of(body)
    (path / "manifest.json").write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def test_what_was_published_opens_and_nothing_is_left_over(tmp_path: Path) -> None:
    manifest = make(tmp_path / "x")
    assert open_artefact(tmp_path / "x", kind="index") == manifest
    assert set(manifest.files) == {"a.npy", "inner/b.json"}
    assert not partial_path(tmp_path / "x").exists()


def test_the_id_depends_on_contents_and_configuration_alone(tmp_path: Path) -> None:
    assert make(tmp_path / "x").id == make(tmp_path / "other name").id
    assert make(tmp_path / "y", seed=2).id != make(tmp_path / "z", seed=3).id


def test_every_flipped_bit_of_every_file_is_seen(tmp_path: Path) -> None:
    make(tmp_path / "x")
    for file in sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << (position % 8)
            file.write_bytes(bytes(flipped))
            with pytest.raises((ArtefactDamaged, ArtefactMissing, SchemaUnknown)):
                open_artefact(tmp_path / "x", kind="index")
        file.write_bytes(whole)
    open_artefact(tmp_path / "x", kind="index")


@pytest.mark.parametrize("text", ['{"check": "x", "a": NaN}', '{"check": "x", "a": "\\ud800"}', "[" * 100_000])
def test_what_was_never_written_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtefactDamaged):
        open_artefact(tmp_path, kind="index")


def test_an_interrupted_write_leaves_no_artefact_and_blocks_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "x", kind="index", inputs={}, config={}, write=fail)
    assert find_artefact(tmp_path / "x", kind="index") is None
    with pytest.raises(ArtefactMissing, match="unfinished"):
        open_artefact(tmp_path / "x", kind="index")
    assert make(tmp_path / "x").id == make(tmp_path / "undisturbed").id


def test_what_an_unfinished_job_has_done_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "x.partial" / "index").mkdir(parents=True)
    for name in ("plan.json", "index/shard"):
        (tmp_path / "x.partial" / name).write_text("hours of work")
    with pytest.raises(SettingError, match=r"'x\.partial' holds what an unfinished job has done: .* another name"):
        make(tmp_path / "x")
    assert (tmp_path / "x.partial" / "index" / "shard").read_text() == "hours of work"


def test_a_finished_artefact_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ArtefactMismatch):
        make(tmp_path / "x")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ArtefactMismatch, match="'index'"):
        open_artefact(tmp_path / "x", kind="bundle")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / "a.npy").unlink()
    with pytest.raises(ArtefactMissing, match=r"a\.npy"):
        open_artefact(tmp_path / "x", kind="index")


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def test_files_that_may_not_be_read_are_named_and_not_called_damaged(public: Path) -> None:
    make(public / "x")
    for path in [public / "x", *(public / "x").rglob("*")]:
        path.chmod(0o755)  # whatever the umask is
    (public / "x" / "a.npy").chmod(0)
    (public / "x" / "inner").chmod(0)
    with (
        without_rights(public),
        pytest.raises(ArtefactMissing, match=r"cannot be read: \['a.npy', 'inner/b.json'\].*a\+rX"),
    ):
        open_artefact(public / "x", kind="index")
    (public / "x").chmod(0)
    with without_rights(public), pytest.raises(ArtefactMissing, match=r"cannot be read: \['manifest.json'\].*a\+rX"):
        open_artefact(public / "x", kind="index")
    for folder in [public / "x", public / "x" / "inner"]:
        folder.chmod(0o755)


@pytest.mark.parametrize("change", [{"schema": 3}, {"extra": 1}, {"files": {"a.npy": {"md5": "x"}}}])
def test_an_unknown_form_is_an_error_not_a_guess(tmp_path: Path, change: dict[str, object]) -> None:
    make(tmp_path / "x")
    forge(tmp_path / "x", json.loads((tmp_path / "x" / "manifest.json").read_text()) | change)
    with pytest.raises(SchemaUnknown):
        open_artefact(tmp_path / "x", kind="index")


@pytest.mark.parametrize(
    ("kind", "schema", "remedy"), [("index", 1, "run the job"), ("index", 3, "upgrade"), ("bundle", 2, "upgrade")]
)
def test_every_kind_has_its_own_schema_and_an_error_names_the_remedy(
    tmp_path: Path, kind: Literal["index", "bundle"], schema: int, remedy: str
) -> None:
    make(tmp_path / "x")
    forge(tmp_path / "x", json.loads((tmp_path / "x" / "manifest.json").read_text()) | {"kind": kind, "schema": schema})
    with pytest.raises(SchemaUnknown, match=f"has schema {schema}; this version reads .*{remedy}"):
        open_artefact(tmp_path / "x", kind=kind)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "./a", "weights.pt", "model.bin", "x.pkl"])
def test_paths_that_leave_the_folder_and_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    manifest = Manifest(kind="index", created_by="t", inputs={}, config={}, files={name: FileEntry("0" * 64, 1)})
    (tmp_path / "x" / "manifest.json").write_bytes(manifest.to_bytes())
    with pytest.raises(ArtefactRefused):
        open_artefact(tmp_path / "x", kind="index")


def test_links_do_not_enter_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtefactRefused):
        publish(
            tmp_path / "x",
            kind="index",
            inputs={},
            config={},
            write=lambda folder: (folder / "link").symlink_to(tmp_path),
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_survives_a_round_trip(value: object) -> None:
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


def test_differences_name_the_keys() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == ["b.c: 3 -> 2", "d: 4 -> None"]


def test_a_file_that_no_manifest_names_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / ".DS_Store").write_bytes(b"what file managers leave behind")
    open_artefact(tmp_path / "x", kind="index")
    (tmp_path / "x" / "inner" / "vocabulary.json").write_bytes(b"[]")
    with pytest.raises(ArtefactRefused, match=r"inner/vocabulary\.json.*remove"):
        open_artefact(tmp_path / "x", kind="index")


def test_two_writers_of_one_artefact_do_not_meet(tmp_path: Path) -> None:
    def write_while_another_begins(folder: Path) -> None:
        write(folder)
        with pytest.raises(SettingError, match="another process"):
            make(tmp_path / "x")
        assert (folder / "a.npy").is_file()

    publish(tmp_path / "x", kind="index", inputs={}, config={}, write=write_while_another_begins)
    open_artefact(tmp_path / "x", kind="index")


def test_no_artefact_is_made_where_it_would_ruin_another_or_could_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path / "a" / "inner")
    for place, why in [
        (tmp_path / "a" / "b", "lies in"),
        (tmp_path / "a" / "inner" / "b", "lies in"),
        (Path("b"), "lies in"),
        (tmp_path / "link", "symbolic link"),
        (tmp_path / "dangling", "symbolic link"),
        (Path("/"), "name a folder in it|name one in it"),
    ]:
        with pytest.raises(SettingError, match=why):
            make(place)
    with pytest.raises(SettingError, match="lies in"):
        find_artefact(Path("b"), kind="index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "dangling", "empty", "link"]
    open_artefact(tmp_path / "a", kind="index")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an application of another kind"}')
    make(tmp_path / "web" / "a")


@pytest.mark.parametrize("path", [".", "..", "", "/"])
def test_a_path_without_a_name_is_no_artefact_either(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises((ArtefactMissing, SettingError)):
        open_artefact(Path(path), kind="index")
