from pathlib import Path

import pytest

from phosphene.encoder import Site, Tokens
from phosphene.errors import SettingError
from training.engine_export import export_engine
from training.importing import ImportRequest, import_sae
from training.places import bytes_below, refuse_nameless, refuse_too_full, refuse_unwritable


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
