"""Tables, thumbnails and directions: equal content gives equal bytes, and answers match a plain reference."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from index.directions import DirectionSearch, write_directions
from index.image_table import ImageRecord, ImageTable, read_quarantined, write_digests, write_images
from index.neuron_table import NeuronTable, write_neurons
from index.plan import plan_shards
from index.quarantine import write_quarantine
from index.shards import open_shards
from index.thumbnails import ThumbnailStore, write_thumbnails
from index.values import NameSource, NeuronFilter, NeuronName, NeuronOrder, NeuronRow
from phosphene.codes import ImageCode
from phosphene.errors import ArtefactDamaged
from phosphene.manifest import canonical_json
from tests.index.shard_folders import image_record, write_shards


def _record(row: int, *, sha256: str | None = None, reason: str | None = None) -> ImageRecord:
    return image_record(
        row,
        uri=f"class/ä\n {row}.jpg",
        sha256=f"{row:064x}" if sha256 is None else sha256,
        byte_count=100 + row,
        width=0 if reason else 64,
        height=0 if reason else 48,
        label="a" if row % 2 else None,
        fvu=None if reason else 0.25 * row,
        quarantine_reason=reason,
    )


RECORDS = [_record(0), _record(1, reason="not an image"), _record(2), _record(3, sha256=f"{2:064x}"), _record(4)]
EMPTY = ImageCode(neuron_ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))


@pytest.fixture
def images(tmp_path: Path) -> ImageTable:
    for name in ("joined", "again"):
        shards = write_shards(tmp_path / name, [EMPTY] * 5, neuron_count=1, size=2, records=RECORDS)
        write_digests(tmp_path / name, shards)
    return ImageTable(tmp_path / "again", shards)


def test_rows_come_back(images: ImageTable) -> None:
    assert images.row_count == 5
    for record in RECORDS:
        row = images.image(record.row)
        for name in ("row", "uri", "sha256", "label", "caption", "width", "height", "quarantine_reason"):
            assert getattr(row, name) == getattr(record, name)
        assert images.fvu(record.row) == record.fvu
    assert images.readable.tolist() == [True, False, True, True, True]


def test_lines_are_canonical_json(tmp_path: Path) -> None:
    texts = ['"', "\\", "a\nb\t\x00\x1f", "\u2028", "ä", "\U0001f600", "", None]
    records = [
        dataclasses.replace(RECORDS[0], row=row, uri=str(text), label=text, caption=text, extra=text, fvu=fvu)
        for row, (text, fvu) in enumerate(zip(texts, (0.1, 1e-9, 1.0, 0.0, 1e22, 3.5, None, 2.0), strict=True))
    ]
    write_images(tmp_path, records)
    lines = (tmp_path / "image_rows" / "records.jsonl").read_bytes()
    assert lines == b"".join(canonical_json(list(dataclasses.asdict(record).values())) + b"\n" for record in records)


def test_equal_rows_give_equal_bytes(images: ImageTable, tmp_path: Path) -> None:
    shard = ("images.parquet", "image_rows/offsets.npy", "image_rows/records.jsonl")
    for path in ("digests/keys.npy", "digests/rows.npy", *(f"shards/00001/{name}" for name in shard)):
        assert (tmp_path / "joined" / path).read_bytes() == (tmp_path / "again" / path).read_bytes()


def test_a_digest_finds_its_readable_rows(images: ImageTable) -> None:
    assert list(images.rows_of(f"{0:064x}")) == [0]
    assert list(images.rows_of(f"{1:064x}")) == []  # Quarantined.
    assert list(images.rows_of(f"{2:064x}")) == [2, 3]  # Twice in the corpus.
    assert list(images.rows_of(f"{99:064x}")) == []
    assert list(images.rows_of("f" * 64)) == []
    # The same first 16 digits, another rest.
    assert list(images.rows_of("0" * 16 + "f" * 48)) == []


def test_digests_find_all_their_rows_the_quarantined_too(images: ImageTable) -> None:
    digests = {f"{number:064x}" for number in (1, 2, 99)}
    assert images.rows_with(digests).tolist() == [1, 2, 3]
    assert images.rows_with(set()).tolist() == []


def test_the_first_row_of_each_digest_is_known(images: ImageTable) -> None:
    assert images.first_rows().tolist() == [True, True, True, False, True]


def test_quarantined_rows_are_listed(images: ImageTable, tmp_path: Path) -> None:
    shards = sorted((tmp_path / "joined" / "shards").iterdir())
    assert read_quarantined(shards[0]) == [(1, "class/ä\n 1.jpg", "not an image")]
    write_quarantine(tmp_path / "bad.csv", shards)
    with (tmp_path / "bad.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["row", "uri", "reason"], ["1", "class/ä\n 1.jpg", "not an image"]]


def test_a_file_that_is_no_table_is_refused(images: ImageTable, tmp_path: Path) -> None:
    (tmp_path / "again" / "shards" / "00001" / "images.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ArtefactDamaged, match="build the index again"):
        ImageTable(tmp_path / "again", open_shards(tmp_path / "again", plan_shards(5, 2)))


def _neuron(neuron_id: int, **changes: object) -> NeuronRow:
    plain: dict[str, object] = {
        "neuron_id": neuron_id,
        "firing_count": 10,
        "density": 0.1,
        "mean": 1.0,
        "std": 0.5,
        "maximum": 2.0,
        "quantiles": (0.5, 1.0, 2.0),
        "label_entropy": 1.5,
        "names": (),
    }
    return NeuronRow(**plain | changes)  # type: ignore[arg-type]


def _name(name: str, score: float) -> NeuronName:
    return NeuronName(name=name, score=score, margin=0.1, source=NameSource.CAPTION)


NEURONS = [
    _neuron(0, density=0.3, maximum=1.0, mean=0.9, names=(_name("red", 0.4), _name("Big Star", 0.35))),
    _neuron(1, firing_count=0, density=0.0, mean=0.0, std=0.0, maximum=0.0, quantiles=(), label_entropy=None),
    _neuron(2, density=0.3, maximum=9.0, mean=0.1, label_entropy=0.0, in_dense_cluster=True),
    _neuron(3, density=0.01, maximum=3.0, mean=0.2, names=(_name("star", 0.9),)),
]


@pytest.fixture
def neurons(tmp_path: Path) -> NeuronTable:
    write_neurons(tmp_path, NEURONS)
    return NeuronTable(tmp_path)


def test_neurons_come_back(neurons: NeuronTable) -> None:
    assert [neurons.neuron(neuron_id) for neuron_id in range(4)] == NEURONS
    assert [neurons.neuron(neuron_id).alive for neuron_id in range(4)] == [True, False, True, True]


@pytest.mark.parametrize(
    ("order", "due"),
    [
        (NeuronOrder.NEURON_ID, [0, 1, 2, 3]),
        (NeuronOrder.DENSITY, [0, 2, 3, 1]),
        (NeuronOrder.MAXIMUM, [2, 3, 0, 1]),
        (NeuronOrder.MEAN, [0, 3, 2, 1]),
        (NeuronOrder.LABEL_ENTROPY, [2, 0, 3, 1]),
        (NeuronOrder.NAME_SCORE, [3, 0, 1, 2]),
    ],
)
def test_orders(neurons: NeuronTable, order: NeuronOrder, due: list[int]) -> None:
    found = neurons.in_order(order, NeuronFilter())
    assert found == due


@pytest.mark.parametrize(
    ("filters", "due"),
    [
        ({"min_density": 0.01}, [0, 2, 3]),
        # As a request brings them: 0.3 and 0.01 in float32 are not those in float64.
        ({"min_density": float(np.float32(0.3))}, [0, 2]),
        ({"max_density": float(np.float32(0.01))}, [1, 3]),
        ({"name_contains": "red\nbig"}, []),
        ({"min_density": 0.0, "max_density": 0.01}, [1, 3]),
        ({"name_contains": "STAR"}, [0, 3]),
        ({"name_contains": "star", "max_density": 0.1}, [3]),
        ({"alive_only": True}, [0, 2, 3]),
        ({"name_contains": "moon"}, []),
        ({"in_dense_cluster": True}, [2]),
        ({"in_dense_cluster": False, "alive_only": True}, [0, 3]),
        ({"is_sensitive": True}, [1, 3]),
        ({"is_sensitive": False}, [0, 2]),
    ],
)
def test_filters(neurons: NeuronTable, filters: dict[str, object], due: list[int]) -> None:
    filter = NeuronFilter(**filters)  # type: ignore[arg-type]
    assert neurons.in_order(NeuronOrder.NEURON_ID, filter, sensitive_neuron_ids={1, 3}) == due


def test_thumbnails_come_back_across_shards(tmp_path: Path) -> None:
    pictures = [b"one", b"", b"three", b"4", b""]
    shards = write_shards(tmp_path, [EMPTY] * 5, neuron_count=1, size=2)
    for shard in shards:
        write_thumbnails(shard.folder, pictures[shard.rows.start : shard.rows.stop])
    store = ThumbnailStore(shards)
    assert [store.thumbnail(row) for row in range(5)] == pictures
    (shards[0].folder / "thumbnails" / "pictures.jpegs").write_bytes(b"short")
    with pytest.raises(ArtefactDamaged, match="5 B"):
        ThumbnailStore(shards)


def test_directions_equal_brute_force(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(50, 16)).astype(np.float32) * 3
    directions[7] = 0
    write_directions(tmp_path, directions)
    search = DirectionSearch(tmp_path, 50)
    vector = generator.normal(size=16).astype(np.float32)
    lengths = np.linalg.norm(directions, axis=1)
    cosines = directions @ vector / np.where(lengths > 0, lengths, 1) / np.linalg.norm(vector)
    found = search.nearest(vector, 5)
    assert [neuron_id for neuron_id, _ in found] == np.argsort(-cosines)[:5].tolist()
    np.testing.assert_allclose([cosine for _, cosine in found], np.sort(cosines)[::-1][:5], atol=1e-6)
    assert len(search.nearest(vector, 500)) == 50
    like = search.like(3, 4)
    assert 3 not in [neuron_id for neuron_id, _ in like]
    assert len(like) == 4
    assert all(cosine == 0 for _, cosine in search.nearest(np.zeros(16, dtype=np.float32), 3))
    with pytest.raises(ArtefactDamaged, match="50 directions of 51"):
        DirectionSearch(tmp_path, 51)
