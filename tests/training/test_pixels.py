import threading
from pathlib import Path

import numpy as np
import pytest

from phosphene.corpus import Corpus, open_corpus
from phosphene.errors import CorpusError
from phosphene.images import ExactSize, Preprocessing, image_sha256, prepare
from tests.training.corpora import corrupt, write_corpus
from training.contents import digest_images
from training.execution import Execution
from training.pixels import PlannedImages, decoded_batches, decoder_count_for
from training.progress import SilentProgress

PREPROCESSING = Preprocessing(
    resize=ExactSize(height=32, width=32),
    crop=None,
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class Watched(Corpus):
    """Remembers which images were read, and how many at the same time."""

    def watch(self) -> None:
        self.__dict__.update(read_rows=[], gate=threading.Lock())

    def read(self, row: int) -> bytes:
        with self.__dict__["gate"]:
            self.__dict__["read_rows"].append(row)
        return super().read(row)


def planned(folder: Path) -> tuple[PlannedImages, list[int]]:
    corpus = open_corpus(str(folder))
    digests = digest_images(corpus, len(corpus), SilentProgress())
    watched = object.__new__(Watched)
    watched.__dict__.update(corpus.__dict__)
    watched.watch()
    return PlannedImages(corpus=watched, digests=digests, preprocessing=PREPROCESSING), watched.__dict__["read_rows"]


@pytest.mark.parametrize("decoder_count", [1, 3])
def test_batches_come_in_order_whatever_the_number_of_threads(tmp_path: Path, decoder_count: int) -> None:
    images, _ = planned(corrupted(tmp_path, 20, 6))
    batches = [[3, 1], [6, 19, 0, 7], [5]]
    found = list(decoded_batches(images, batches, decoder_count=decoder_count))
    assert [list(batch.rows) for batch in found] == batches
    assert [batch.errors for batch in found] == [{}, {6: "ImageUnreadable"}, {}]
    for batch in found:
        for row, pixels, digest in zip(batch.rows, batch.pixels, batch.sha256, strict=True):
            data = images.corpus.read(row)
            assert digest == image_sha256(data)
            due = np.zeros_like(pixels) if row == 6 else prepare(data, PREPROCESSING).pixels
            assert np.array_equal(pixels, due)


def test_no_more_than_two_batches_are_decoded_ahead(tmp_path: Path) -> None:
    images, read_rows = planned(write_corpus(tmp_path / "corpus", 20))
    batches = decoded_batches(images, [[row] for row in range(20)], decoder_count=2)
    assert read_rows == []
    for count in (1, 2, 3):
        next(batches)
        assert set(range(count)) <= set(read_rows) <= set(range(count + 2))
    batches.close()
    assert len(read_rows) <= 5


def test_an_image_that_changed_is_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 8)
    images, _ = planned(folder)
    corrupt(folder, 3)
    batches = decoded_batches(images, [[0, 1], [2, 3], [4, 5]], decoder_count=2)
    assert list(next(batches).rows) == [0, 1]
    with pytest.raises(CorpusError, match="changed while the corpus was being read"):
        next(batches)


def test_at_least_one_thread_decodes_however_busy_the_encoder_keeps_the_cores() -> None:
    assert decoder_count_for(Execution(thread_count=1024)) == 1
    assert 1 <= decoder_count_for(Execution(device="cuda")) <= 16


def corrupted(folder: Path, image_count: int, place: int) -> Path:
    corpus = write_corpus(folder / "corpus", image_count)
    corrupt(corpus, place)
    return corpus
