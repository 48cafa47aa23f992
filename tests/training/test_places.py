import os
from pathlib import Path

import pytest

from phosphene.artefact_writing import publish
from phosphene.encoder import Site, Tokens
from phosphene.errors import ArtefactMismatch, SettingError
from training.engine_export import export_engine
from training.importing import ImportRequest, import_sae
from training.places import bytes_below, refuse_nameless, refuse_taken, refuse_too_full, refuse_unwritable


def test_a_place_that_can_be_made_passes_and_nothing_stays(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b", "--out")
    refuse_unwritable(tmp_path, "--work")
    refuse_unwritable(tmp_path / "file", "--journal", is_file=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingError, match="--out .* cannot be made: .*file' is no folder"):
        refuse_unwritable(tmp_path / "file" / "b", "--out")
    with pytest.raises(SettingError, match="--work .* is a file; give the name of a folder"):
        refuse_unwritable(tmp_path / "file", "--work")
    with pytest.raises(SettingError, match="--journal .* is a folder; give the name of a file"):
        refuse_unwritable(tmp_path, "--journal", is_file=True)


@pytest.mark.parametrize("option", ["--journal", "--metrics-file"])
def test_a_pipe_where_a_file_is_to_be_is_refused(tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(SettingError, match=f"{option} .*{name}' is no regular file, which alone can be replaced"):
            refuse_unwritable(tmp_path / name, option, is_file=True)


def test_a_link_to_a_file_is_judged_by_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file" / "b")
    with pytest.raises(SettingError, match="--journal .*link' cannot be made: .*file' is no folder"):
        refuse_unwritable(tmp_path / "link", "--journal", is_file=True)
    (tmp_path / "good").symlink_to(tmp_path / "new" / "b")
    refuse_unwritable(tmp_path / "good", "--journal", is_file=True)


def test_a_place_where_something_else_lies_or_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    refuse_taken(tmp_path / "new", "bundle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactMismatch, match="empty' exists and is no bundle: choose another --out"):
        refuse_taken(tmp_path / "empty", "bundle")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SettingError, match="link' is a symbolic link"):
        refuse_taken(tmp_path / "link", "bundle")
    publish(tmp_path / "flags", kind="flags", inputs={}, config={}, write=lambda folder: None)
    with pytest.raises(SettingError, match="flags', which is an artefact of kind 'flags' and holds nothing else"):
        refuse_taken(tmp_path / "flags" / "bundle", "bundle")


def test_a_read_only_file_system_is_refused() -> None:
    # Even root can make no files there.
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(SettingError, match=r"--out '/proc/self/fdinfo/b' cannot be written: .*choose another place"):
        refuse_unwritable(Path("/proc/self/fdinfo/b"), "--out")


def test_a_disk_too_full_is_refused_with_what_is_needed_and_left(tmp_path: Path) -> None:
    needs = {tmp_path / "work": 3_000_000_000, tmp_path / "out": 1_000_000_000}
    with pytest.raises(SettingError, match="has 3.50 GB left; this job needs about 4.00 GB there: make room"):
        refuse_too_full(needs, free_bytes=lambda folder: 3_500_000_000)
    refuse_too_full(needs, free_bytes=lambda folder: 4_500_000_000)
    refuse_too_full({tmp_path: 1})


def test_bytes_below_a_folder(tmp_path: Path) -> None:
    assert bytes_below(tmp_path / "none") == 0
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    assert bytes_below(tmp_path) == 3


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_place_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(SettingError, match="--out is '[./]', which names no folder of its own: give the name of a new"):
        refuse_nameless(Path(path))
    refuse_nameless(Path("bundle"))
    with pytest.raises(SettingError, match="--out is '[./]'"):
        export_engine(Path("bundle"), Path(path))
    with pytest.raises(SettingError, match="--out is '[./]'"):
        import_sae(
            ImportRequest(sae=Path("sae"), encoder="encoder", site=Site(block=0, tokens=Tokens.CLS), out=Path(path))
        )
