"""What an index compiles at its first question, it has compiled once it is warm."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from tests.index.conftest import SMALL
from tests.index.quiet import Notes

_ASK = """
import sys
from numba.core.dispatcher import Dispatcher
from index.reader import open_index
from index.values import CodeMetric

def compiled():
    kernels = [module for name, module in sys.modules.items() if name.startswith("index.retrieval.")]
    found = [value for module in kernels for value in vars(module).values() if isinstance(value, Dispatcher)]
    return {value.__name__: len(value.signatures) for value in found}

with open_index(sys.argv[1]) as reader:
    opened = compiled()
    reader.warm()
    warm = compiled()
    code = reader.code(0)
    for metric in CodeMetric:
        assert reader.similar_images(code, 5, exclude_rows=[0], metric=metric)
        reader.similar_images(code, 5, metric=metric, neuron_ids=code.neuron_ids[:2].tolist())
    assert reader.without_sensitive().similar_images(code, 5)
    assert reader.neurons_like(0, 3)
    assert reader.nearest_neurons(reader.residual(0), 3)
    assert reader.images_by_expression(f"{code.neuron_ids[0]}>0", 3)
    reader.co_active_neurons(int(code.neuron_ids[0]), 3)
    reader.images_by_neuron(int(code.neuron_ids[0]), 3)
    asked = compiled()
assert asked == warm, {name: count for name, count in asked.items() if count != warm.get(name)}
assert warm != opened
"""


@pytest.fixture(scope="module")
def sketched(tmp_path_factory: pytest.TempPathFactory, bundle: Path, corpus: Path) -> Path:
    out = tmp_path_factory.mktemp("sketched") / "index"
    config = dataclasses.replace(SMALL, sketch_from_images=0)
    build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=out, config=config), Notes())
    return out


@pytest.mark.parametrize("made", ["built", "sketched"])
def test_a_warm_index_compiles_nothing_at_a_question(root: Path, request: pytest.FixtureRequest, made: str) -> None:
    index = request.getfixturevalue(made)
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(index)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
