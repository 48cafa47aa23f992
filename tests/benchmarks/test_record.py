"""benchmarks/record.py: what a record says of the machine, of versions, and of the bars."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.environments import installed
from benchmarks.record import Must, Record, processor_ticks

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "OUTPUT", tmp_path)
    return tmp_path


def test_a_record_tells_the_machine_our_versions_and_those_of_the_peers(output):
    peers = {"somebody": installed(Path(sys.executable))}
    assert Record(name="x", rows=[{"a": 1}], peers=peers).write() == 0
    environment = json.loads((output / "x.json").read_text())["environment"]
    assert environment["cores"] >= 1
    assert environment["versions"]["numba"] == version("numba")
    assert environment["peers"]["somebody"]["numpy"] == version("numpy")


def test_a_missed_bar_is_the_exit_status(output):
    must = {"good": Must(value=2, bar=1, sense=">="), "bad": Must(value=2, bar=1, sense="<=")}
    assert Record(name="x", must=must).write() == 1
    written = json.loads((output / "x.json").read_text())["must"]
    assert [written[name]["holds"] for name in ("good", "bad")] == [True, False]


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (1.3, None, "holds"),
        (1.2, None, "MISSED"),
        (1.2, 1.2, "MISSED, bound 1.200"),
        (1.18, 1.2, "MISSED, bound 1.200"),
        (1.2, 1.26, "MISSED"),
        (1.3, 1.3, "holds"),
    ],
)
def test_a_bar_beyond_everybodys_reach_is_missed_and_says_what_can_be_reached(value, bound, verdict):
    must = Must(value=value, bar=1.25, sense=">=", bound=bound)
    assert must.verdict == verdict
    assert must.holds is (verdict == "holds")


def test_no_figure_is_folded_and_a_remark_is_a_line(output, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {f"figure {number}": f"{number}.123456" for number in range(14)}
    remark = dict.fromkeys(row, "") | {"figure 0": "[somebody]", "figure 13": "a sentence " * 5}
    assert Record(name="x", rows=[row, remark]).write() == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(all(value in line for value in row.values()) for line in lines)
    assert f"[somebody]: {'a sentence ' * 5}".rstrip() in [line.rstrip() for line in lines]


def test_time_that_other_guests_took_is_told(output, capsys, monkeypatch):
    stat = [["cpu  100 0 50 800 0 0 0 50 30 0", "cpu0 1 2 3"], ["cpu  150 0 70 900 0 0 10 70 60 0", "cpu0 1 2 3"]]
    before, after = map(processor_ticks, stat)
    assert (before.total, after.total) == (1000, 1200)
    assert after.stolen_share(before) == pytest.approx(0.1)
    assert processor_ticks([]).stolen_share(processor_ticks([])) == 0.0
    monkeypatch.setattr(record, "processor_ticks", lambda lines: after)
    Record(name="x", started_ticks=before).write()
    assert "10% of the processors' time went to other guests" in capsys.readouterr().out
    assert json.loads((output / "x.json").read_text())["environment"]["stolen_share"] == 0.1
    Record(name="x", started_ticks=after).write()
    assert "other guests" not in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_every_committed_record_tells_its_machine_and_versions(file):
    environment = json.loads(file.read_text())["environment"]
    assert {"cpu", "cores", "memory_gib", "versions", "commit", "load_average"} <= environment.keys()
