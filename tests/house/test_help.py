"""What `--help` prints keeps to the width of a terminal, and options are typed in full."""

import pytest

import index.__main__
import service.__main__
from phosphene.client.arguments import build_parser
from service.variables import VARIABLES
from training.command.main import main as training_main


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_variables_of_the_service_are_folded(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.argv", ["service", "--help"])
    assert service.__main__._command() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
    assert [line.strip() for line in lines if line.startswith("  PHOSPHENE_")] == list(VARIABLES)
    assert sum(line.startswith("      ") for line in lines) > len(VARIABLES)


@pytest.mark.parametrize(
    "words",
    [(), ("explain",), ("similar",), ("images",), ("top",), ("admin",)],
    ids=lambda words: " ".join(words) or "phosphene",
)
def test_the_help_of_the_client_is_folded(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args([*words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[next(n for n, line in enumerate(lines) if not line) + 1].endswith(".")  # what it is for


@pytest.mark.parametrize("main", [index.__main__.main, training_main], ids=["index", "training"])
def test_the_commands_of_the_jobs_are_folded(main, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (index.__main__.main, ["show", "index", "--name", "3"]),
        (training_main, ["fit", "corpus", "--encoder", "e", "--out", "o", "--images", "3"]),
    ],
)
def test_half_an_option_is_no_option(main, words, capsys):
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert f"unrecognized arguments: {words[-2]} 3" in capsys.readouterr().err
