"""One small index for the tests that only read."""

from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from phosphene.encoder import Family, Tokens
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus

SMALL = IndexConfig(shard_image_count=16, batch_images=4, thread_count=1, top_count=10, spread_count=6)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures; row 5 is corrupt, row 7 has the bytes of row 6."""
    listed = write_corpus(tmp_path_factory.mktemp("corpus") / "pictures", corrupt=(5,))
    (listed.parent / "0007.png").write_bytes((listed.parent / "0006.png").read_bytes())
    return listed


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, bundle: Path, corpus: Path) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=out, config=SMALL), Notes())
    return out


@pytest.fixture(scope="session")
def patches_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("patches"), Family.VIT, tokens=Tokens.PATCHES)


@pytest.fixture(scope="session")
def patches_index(tmp_path_factory: pytest.TempPathFactory, patches_bundle: Path, corpus: Path) -> Path:
    """The same pictures at a site of 4 x 4 patches."""
    out = tmp_path_factory.mktemp("patches-index") / "index"
    build_index(BuildJob(corpus=str(corpus), bundle=patches_bundle, out=out, config=SMALL), Notes())
    return out
