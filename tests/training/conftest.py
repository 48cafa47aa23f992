"""One small corpus and one random encoder with a text tower, shared by the tests of harvest, plan and fit."""

from pathlib import Path

import pytest

from phosphene.encoder import Family
from tests.families import write_encoder
from tests.training.corpora import write_corpus


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images in four labels; not to be changed."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "colours", 96)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights, width 32, 3 blocks, 16 patches."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "clip", Family.CLIP)
