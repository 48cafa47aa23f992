"""`activate` names no generation that every service would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.__main__ import main
from phosphene.artefact_writing import publish
from phosphene.manifest import read_manifest


def remade(source: Path, target: Path, **config: object) -> Path:
    """The same artefact by its manifest, but for what its configuration says."""
    manifest = read_manifest(source)

    def copy(folder: Path) -> None:
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((source / name).read_bytes())

    merged = {**manifest.config, **config}
    publish(target, kind=manifest.kind, inputs=manifest.inputs, config=merged, write=copy)  # type: ignore[arg-type]
    return target


def test_an_index_of_another_bundle_is_refused(
    built: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = remade(bundle, tmp_path / "other", precision="float64")
    current = tmp_path / "CURRENT"
    assert main(["activate", str(current), "--bundle", f"b={other}", "--index", f"i={built}"]) == 2
    assert "index 'i' was built for the code_id" in capsys.readouterr().err
    assert not current.exists()
    both = ["--bundle", f"b={other}", "--bundle", f"c={bundle}"]
    assert main(["activate", str(current), *both, "--index", f"i={built}"]) == 0


def test_flags_of_other_codes_are_refused(
    built: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, current = tmp_path / "flags", tmp_path / "CURRENT"
    assert main(["flag", str(built), "--out", str(flags), "--neuron", "3"]) == 0
    foreign = remade(flags, tmp_path / "foreign", code_id="0" * 64)
    command = ["activate", str(current), "--bundle", f"b={bundle}", "--index", f"i={built}", "--flags"]
    assert main([*command, f"i={foreign}"]) == 2
    assert f"made for the code_id {'0' * 64}" in capsys.readouterr().err
    assert main([*command, f"i={bundle}"]) == 2
    assert "is of kind 'bundle'; due is 'flags'" in capsys.readouterr().err
    assert main([*command, f"i={flags}"]) == 0
    assert json.loads(current.read_text())["indexes"]["i"]["flags"]
