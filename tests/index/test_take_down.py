"""Taking images down: what the reader answers with tombstones, against brute force over the rows that are left."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.__main__ import main
from index.reader import IndexReader, open_index
from index.take_down import Request, TakeDownJob, read_requests, take_down
from index.tombstones import open_tombstones
from index.values import ExemplarKind, NeuronFilter
from phosphene.current import hold_current, read_current, save_current
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, NotFound, SettingError
from tests.index.small_world import NEURON_COUNT


@pytest.fixture(scope="module")
def whole(built: Path) -> Iterator[IndexReader]:
    with open_index(built) as opened:
        yield opened


@pytest.fixture(scope="module")
def hidden(whole: IndexReader) -> set[int]:
    """Rows that are down: a quarantined one, two with the same bytes, and those that excite some neurons most."""
    alive = whole.list_neurons(filter=NeuronFilter(alive_only=True))
    return {5, 6, 7} | {whole.exemplars(neuron_id, ExemplarKind.TOP, 1)[0].row for neuron_id in alive[::4]}


@pytest.fixture(scope="module")
def down(built: Path, whole: IndexReader, hidden: set[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("down") / "tombstones"
    requests = [Request(what=whole.image(row).sha256, reason="asked for") for row in hidden - {7}]
    result = take_down(TakeDownJob(index=built, out=out, requests=requests))
    assert result.row_count == len(hidden)
    return out


@pytest.fixture(scope="module")
def index(built: Path, down: Path) -> Iterator[IndexReader]:
    with open_index(built, tombstones=down) as opened:
        yield opened


def test_rows_that_were_taken_down_are_refused_by_name(
    index: IndexReader, whole: IndexReader, hidden: set[int]
) -> None:
    for row in range(index.row_count):
        digest = whole.image(row).sha256
        if row in hidden:
            for ask in (index.image, index.thumbnail, index.code, index.fvu):
                with pytest.raises(NotFound, match=f"row {row} was taken down"):
                    ask(row)
            assert index.row_of(digest) is None
            assert index.is_taken_down(digest.upper())
        else:
            assert index.image(row) == whole.image(row)
            assert index.row_of(digest) == row
            assert not index.is_taken_down(digest)
    assert (index.taken_down_count, whole.taken_down_count) == (len(hidden), 0)
    assert index.id == whole.id
    assert index.tombstones_id
    assert whole.tombstones_id == ""


def test_exemplars_and_quantiles_are_those_of_the_rows_that_are_left(
    index: IndexReader, whole: IndexReader, hidden: set[int]
) -> None:
    touched = 0
    for neuron_id in range(NEURON_COUNT):
        values = _activations(whole, neuron_id)
        left = {row: value for row, value in values.items() if row not in hidden}
        touched += len(values) > len(left) > 0
        for kind in ExemplarKind:
            stored = [each.row for each in whole.exemplars(neuron_id, kind, 100) if each.row not in hidden]
            shown = index.exemplars(neuron_id, kind, 100)
            assert [each.row for each in shown] == stored
            for each in shown:
                assert each.value == left[each.row]
                assert each.quantile == sum(value < each.value for value in left.values()) / len(left)
                assert index.quantile(neuron_id, each.value) == each.quantile
            assert [each.row for each in index.exemplars(neuron_id, kind, 1)] == stored[:1]
        if not left:
            assert index.quantile(neuron_id, 1.0) == 0.0
    assert touched > 5


def test_similar_images_are_those_of_the_whole_index_less_the_hidden(
    index: IndexReader, whole: IndexReader, hidden: set[int]
) -> None:
    for row in range(whole.row_count):
        code = whole.code(row)
        due = [image for image in whole.similar_images(code, 100, exclude_rows=[1]) if image.row not in hidden]
        assert index.similar_images(code, 100, exclude_rows=[1]) == due
        assert index.similar_images(code, 3, exclude_rows=[1]) == due[:3]


def test_expressions_and_histograms_count_the_rows_that_are_left(
    index: IndexReader, whole: IndexReader, hidden: set[int]
) -> None:
    reordered = 0
    for first in range(NEURON_COUNT - 1):
        values, others = _activations(whole, first), _activations(whole, first + 1)
        left = {row: value for row, value in values.items() if row not in hidden}
        edges = np.linspace(0, max(values.values(), default=1.0), 4)
        assert index.activation_histogram(first, edges).tolist() == np.histogram(list(left.values()), edges)[0].tolist()
        due = {row: value / max(left.values()) for row, value in left.items() if row not in others}
        found = index.images_by_expression(f"{first} & !{first + 1}", 100)
        assert dict(found) == pytest.approx(due)
        assert index.count_by_expression(f"{first} & !{first + 1}") == len(due)
        assert index.count_by_expression(f"!{first}") == 40 - len(hidden) - len(left)
        reordered += bool(left) and max(left.values()) < max(values.values())
    assert reordered > 2  # Neurons whose strongest image is down.


def test_text_finds_no_image_that_is_down(index: IndexReader, whole: IndexReader, hidden: set[int]) -> None:
    draws = np.random.default_rng(0)
    for ask, width in (("images_by_text", 20), ("images_by_residual", 32)):
        vector = draws.standard_normal(width).astype(np.float32)
        due = {row: score for row, score in getattr(whole, ask)(vector, 100) if row not in hidden}
        assert len(due) == 40 - len(hidden)
        # Other rows beside it may change the last bit of a product.
        assert dict(getattr(index, ask)(vector, 100)) == pytest.approx(due, abs=1e-6)


def test_images_are_named_by_uri_or_in_a_list_and_added_to(
    built: Path, whole: IndexReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"0001.png\tno consent\n\n{whole.image(2).sha256}\n")
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["take-down", str(built), "--out", str(first), "--list", str(listed)]) == 0
    more = ["take-down", str(built), "--out", str(second), "--from", str(first), "--uri", "0003.png", "0001.png"]
    assert main([*more, "--reason", "law"]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["images"], each["rows"], each["was_finished"]) for each in again] == [(2, 2, False), (3, 3, False)]
    digests = {row: whole.image(row).sha256 for row in (1, 2, 3)}
    assert open_tombstones(first).reasons == {digests[1]: "no consent", digests[2]: None}
    reasons = open_tombstones(second).reasons
    assert reasons == {digests[1]: "law", digests[2]: None, digests[3]: "law"}
    assert list(reasons) == sorted(reasons)
    assert main([*more, "--reason", "law"]) == 0  # Twice the same.
    assert json.loads(capsys.readouterr().out)["was_finished"] is True
    assert main([*more, "--reason", "another"]) == 2
    assert "holds other tombstones" in capsys.readouterr().err


def test_an_image_that_is_named_again_keeps_its_reason(built: Path, whole: IndexReader, tmp_path: Path) -> None:
    """By its name and by its digest, twice in a list, or by the names of two rows with the same bytes."""
    digests = {row: whole.image(row).sha256 for row in (1, 2, 6)}
    listed = tmp_path / "list.txt"
    listed.write_text(f"0001.png\tno consent\n{digests[1]}\n0002.png\tlaw\n0002.png\n0006.png\tlaw\n0007.png\n")
    assert main(["take-down", str(built), "--out", str(tmp_path / "down"), "--list", str(listed)]) == 0
    due = {digests[1]: "no consent", digests[2]: "law", digests[6]: "law"}
    assert open_tombstones(tmp_path / "down").reasons == due


def test_names_in_a_list_are_taken_as_they_are(tmp_path: Path) -> None:
    """Of two images whose names differ in a space, the one that is named goes down."""
    listed = tmp_path / "list.txt"
    listed.write_text(f" a.png\n  \na\u2028b.png\x0b\t why \n {'AB' * 32} \n", encoding="utf-8")
    assert read_requests(listed) == [
        Request(what=" a.png"),
        Request(what="a\u2028b.png\x0b", reason="why"),
        Request(what="AB" * 32),
    ]


def test_all_unknown_names_are_named_and_nothing_is_taken_down(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, digest = tmp_path / "down", "ab" * 32
    command = ["take-down", str(built), "--out", str(out), "--uri", "0001.png", "nowhere.png", "--sha256", digest]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert "nowhere.png" in text
    assert digest in text
    assert not out.exists()
    assert main(["take-down", str(built), "--out", str(out), "--sha256", digest]) == 2
    assert main(["take-down", str(built), "--out", str(out), "--sha256", digest, "--allow-unknown"]) == 0
    assert list(open_tombstones(out).reasons) == [digest]
    assert main(["take-down", str(built), "--out", str(tmp_path / "x"), "--sha256", "abc", "xyz"]) == 2
    assert "['abc', 'xyz'] are none" in capsys.readouterr().err
    with pytest.raises(SettingError, match="nothing to take down"):
        take_down(TakeDownJob(index=built, out=tmp_path / "x", requests=[]))
    with pytest.raises(SettingError, match="1000 characters"):
        take_down(TakeDownJob(index=built, out=tmp_path / "x", requests=[Request(what="0001.png", reason="x" * 1001)]))


def test_what_is_no_tombstones_is_refused(built: Path, bundle: Path, down: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMismatch, match="due is 'tombstones'"):
        open_index(built, tombstones=bundle)
    with pytest.raises(ArtefactMismatch, match="due is 'index'"):
        take_down(TakeDownJob(index=down, out=tmp_path / "x", requests=[Request(what="0001.png")]))
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in down.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    table = copy / "tombstones.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtefactDamaged):
        open_index(built, tombstones=copy)


def test_what_is_down_does_not_come_back_unasked(
    built: Path, bundle: Path, down: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    less, current = tmp_path / "less", tmp_path / "CURRENT"
    assert main(["take-down", str(built), "--out", str(less), "--uri", "0006.png"]) == 0
    command = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"photos={built}"]
    assert main([*command, "--tombstones", f"photos={down}"]) == 0
    before = current.read_bytes()
    for fewer in ([], ["--tombstones", f"photos={less}"]):
        capsys.readouterr()
        assert main([*command, *fewer]) == 2
        assert "would be shown again" in capsys.readouterr().err
        assert current.read_bytes() == before
    assert main([*command, "--tombstones", f"photos={down}"]) == 0
    assert main([*command, "--tombstones", f"other={down}"]) == 2
    # Under another name they are the same images; beside the old one they are another index, as before.
    renamed = [*command[:-1], f"renamed={built}"]
    capsys.readouterr()
    assert main(renamed) == 2
    assert "of index 'renamed' that are down now would be shown again" in capsys.readouterr().err
    assert main([*command, "--index", f"renamed={built}", "--tombstones", f"photos={down}"]) == 0
    assert main([*command, "--put-back"]) == 0
    assert main(command) == 0


@pytest.mark.parametrize("stays", [True, False])
def test_what_is_down_does_not_come_back_under_the_name_of_another_index(
    built: Path, bundle: Path, down: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stays: bool
) -> None:
    """Two indexes change names, or one takes that of the other, which had nothing that was down."""
    less, current = tmp_path / "less", tmp_path / "CURRENT"
    assert main(["compact", str(built), "--tombstones", str(down), "--out", str(less)]) == 0
    command = ["activate", str(current), "--bundle", f"b={bundle}"]
    both = ["--index", f"photos={built}", "--index", f"scenes={less}", "--tombstones", f"photos={down}"]
    assert main([*command, *both]) == 0
    kept = ["--index", f"photos={less}", "--tombstones", f"photos={down}"] if stays else []
    moved = [*command, "--index", f"scenes={built}", *kept]
    capsys.readouterr()
    assert main(moved) == 2
    assert "of index 'scenes' that are down now would be shown again" in capsys.readouterr().err
    assert main([*moved, "--tombstones", f"scenes={down}"]) == 0


def test_what_is_down_does_not_come_back_in_two_steps(
    built: Path, bundle: Path, down: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = tmp_path / "CURRENT"
    without = ["activate", str(current), "--bundle", f"b={bundle}"]
    assert main([*without, "--index", f"photos={built}", "--tombstones", f"photos={down}"]) == 0
    assert main(without) == 0
    assert main(without) == 0
    before = current.read_bytes()
    for name in ("photos", "renamed"):
        capsys.readouterr()
        assert main([*without, "--index", f"{name}={built}"]) == 2
        assert f"of index {name!r} that are down now would be shown again" in capsys.readouterr().err
        assert current.read_bytes() == before
    assert main([*without, "--index", f"photos={built}", "--tombstones", f"photos={down}"]) == 0
    assert main(without) == 0
    assert main([*without, "--index", f"photos={built}", "--put-back"]) == 0
    assert main(without) == 0
    assert main([*without, "--index", f"photos={built}"]) == 0


def test_a_take_down_that_somebody_names_meanwhile_is_not_lost(
    built: Path, bundle: Path, down: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = tmp_path / "CURRENT"
    command = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"photos={built}"]
    status: list[int] = []
    other = threading.Thread(target=lambda: status.append(main(command)))
    with hold_current(current):
        other.start()
        other.join(0.3)
        assert other.is_alive()
        save_current(current, bundles={"b": bundle}, indexes={"photos": built}, tombstones={"photos": down})
    other.join(60)
    assert status == [2]
    assert "would be shown again" in capsys.readouterr().err
    assert [member.name for member in read_current(current).tombstones] == ["photos"]


def test_what_is_down_is_known_after_its_bundle_or_index_has_gone(
    built: Path, bundle: Path, down: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CURRENT names a folder that is gone: the service would refuse it, but what is down must not come back."""
    old, marks, current = tmp_path / "old", tmp_path / "marks", tmp_path / "CURRENT"
    shutil.copytree(built, old)
    shutil.copytree(down, marks)
    command = ["activate", str(current), "--bundle", f"b={bundle}", "--index"]
    assert main([*command, f"photos={old}", "--tombstones", f"photos={marks}"]) == 0
    shutil.rmtree(old)
    capsys.readouterr()
    assert main([*command, f"photos={built}"]) == 2
    assert "would be shown again" in capsys.readouterr().err
    shutil.rmtree(marks)
    for text in (None, "{"):
        if text is not None:
            current.write_text(text)
        assert main([*command, f"photos={built}", "--tombstones", f"photos={down}"]) == 2
        assert "cannot be told" in capsys.readouterr().err
    assert main([*command, f"photos={built}", "--tombstones", f"photos={down}", "--put-back"]) == 0


def test_a_quarantined_image_that_is_down_does_not_come_back_either(
    built: Path, bundle: Path, whole: IndexReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down, current = tmp_path / "down", tmp_path / "CURRENT"
    take_down(TakeDownJob(index=built, out=down, requests=[Request(what=whole.image(5).sha256)]))
    command = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"photos={built}"]
    assert main([*command, "--tombstones", f"photos={down}"]) == 0
    assert main(command) == 2
    assert "1 images of index 'photos'" in capsys.readouterr().err


def _activations(index: IndexReader, neuron_id: int) -> dict[int, float]:
    codes = {row: index.code(row) for row in range(index.row_count)}
    return {
        row: float(code.values[code.neuron_ids == neuron_id][0])
        for row, code in codes.items()
        if neuron_id in code.neuron_ids
    }


def test_tombstones_of_an_earlier_version_are_read(root: Path) -> None:
    golden = open_tombstones(root / "tests" / "golden" / "tombstones")
    assert golden.id == "cf44957f0202b42acb0a4a521cfe0fadc8a84ac389c13574271bf1b751a06958"
    assert golden.reasons == {
        f"{1:064x}": "asked for by its owner",
        f"{2:064x}": "no consent",
        f"{10:064x}": None,
    }


def test_a_closed_reader_still_says_what_it_was(built: Path, down: Path) -> None:
    with open_index(built, tombstones=down) as index:
        ids = (index.id, index.tombstones_id, index.take_down_ids)
    assert (index.id, index.tombstones_id, index.take_down_ids) == ids


def test_show_diff_and_verify_know_of_them(
    built: Path, down: Path, hidden: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(built), "--tombstones", str(down)]) == 0
    assert f"{len(hidden)} rows" in capsys.readouterr().out
    assert main(["diff", str(built), str(built), "--tombstones", str(down)]) == 0
    assert main(["verify", str(down)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == len(hidden) - 1
