"""docs/artefacts.md says of every file of an index what the file is."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.statistics import QUANTILE_PROBABILITIES


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "artefacts.md").read_text(encoding="utf-8").partition("\n## Index\n")[2]


def test_every_array_has_its_dtype_and_axes(page: str, built: Path, patches_index: Path) -> None:
    described = {
        name: (dtype, len(shape.split(",")) if shape else 0)
        for name, dtype, shape in re.findall(r"^\| `([\w/]+\.npy)` \| (\w+) \| \[([^]]*)\]", page, re.MULTILINE)
    }
    found = {}
    for index in (built, patches_index):
        for path in index.rglob("*.npy"):
            array = np.load(path)
            found[_name(path, index)] = (str(array.dtype), array.ndim)
    assert described == found


def test_every_other_file_is_named(page: str, built: Path) -> None:
    for path in built.rglob("*"):
        if path.is_file() and path.suffix != ".npy" and path.name != "manifest.json":
            assert f"`{_name(path, built)}`" in page


def _name(path: Path, built: Path) -> str:
    """Return a file's name as the page has it: all shards are alike."""
    return re.sub(r"^shards/\d{5}/", "shards/NNNNN/", path.relative_to(built).as_posix())


@pytest.mark.parametrize("name", ["shards/NNNNN/images.parquet", "neurons.parquet"])
def test_every_column_has_its_type(page: str, built: Path, name: str) -> None:
    table = page.partition(f"`{name}`, one record")[2].partition("\n\n|")[2].partition("\n\n")[0]
    described = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?)(?: or null)? \|", table, re.MULTILINE))
    schema = pq.read_schema(built / name.replace("NNNNN", "00001"))
    found = {column.name: re.sub(r"list<\w+: (struct|double).*", r"list of \1", str(column.type)) for column in schema}
    assert described == found


def test_plan_and_summary_keys_are_named(page: str, built: Path) -> None:
    config = json.loads((built / "manifest.json").read_bytes())["config"]
    summary = json.loads((built / "summary.json").read_bytes())
    for key in [*config, *config["plan"], *summary]:
        assert f"`{key}`" in page


def test_quantile_levels_are_those_of_the_page(page: str) -> None:
    assert ", ".join(f"{level:g}" for level in QUANTILE_PROBABILITIES) in page
