"""One house on the embedded default for all end-to-end tests of a run: making it takes most of their time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo import EMBEDDED, FIRST_SCENE_SEED
from phosphene.client import Client
from tests.end_to_end.house import House, Value, open_house, render

SCENE_COUNT = 3000
SCENE_SIZE_PX = 96
HELD_OUT_COUNT = 200
HELD_OUT_SEED = 1_700_000


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where corpus, held-out scenes and artefacts lie."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def corpus_truth(scenes_folder: Path) -> dict[str, frozenset[Value]]:
    """What each scene of the corpus shows."""
    return render(scenes_folder / "corpus", first_seed=FIRST_SCENE_SEED, count=SCENE_COUNT, size_px=SCENE_SIZE_PX)


@pytest.fixture(scope="session")
def held_out_truth(scenes_folder: Path) -> dict[str, frozenset[Value]]:
    """What each held-out scene shows."""
    return render(scenes_folder / "held-out", first_seed=HELD_OUT_SEED, count=HELD_OUT_COUNT, size_px=SCENE_SIZE_PX)


@pytest.fixture(scope="session")
def scenes_house(scenes_folder: Path, corpus_truth: dict[str, frozenset[Value]]) -> Iterator[House]:
    """The embedded default, served."""
    assert corpus_truth
    with open_house(scenes_folder, EMBEDDED, scenes_folder / "corpus" / "captions.csv") as house:
        yield house


@pytest.fixture
def client(scenes_house: House) -> Iterator[Client]:
    """A client of the embedded default."""
    with Client(scenes_house.address) as opened:
        yield opened
