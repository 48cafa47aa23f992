"""Pushing an index: kill-safe, idempotent, never seen by halves, refused where it would mix two indexes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from index.__main__ import main
from index.qdrant.collection import open_qdrant
from index.qdrant.push import push_index
from index.qdrant.search import QdrantSearch
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, SettingError, Unavailable
from tests.index.qdrant.made_up_index import MadeUpIndex
from tests.index.qdrant.rest_server import RestServer, rest_server

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
NAME = "scenes-" + "a" * 16


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def server() -> Iterator[RestServer]:
    with rest_server() as server:
        yield server


def some_index(row_count: int = 600, **changes: object) -> MadeUpIndex:
    generator = np.random.default_rng(0)
    dense = generator.gamma(2.0, 1.0, (row_count, 12)) * (generator.random((row_count, 12)) < 0.3)
    dense[3] = 0
    return MadeUpIndex(dense.astype(np.float16), **{"quarantined": (5,), "left_out": (1,), **changes})  # type: ignore[arg-type]


def test_a_point_holds_what_the_index_stores(client: QdrantClient) -> None:
    index = some_index(8)
    assert push_index(index, client, "scenes").point_count == 7
    points = {point.id: point for point in client.scroll(NAME, limit=100, with_vectors=True)[0]}
    assert sorted(points) == [0, 1, 2, 3, 4, 6, 7]
    for row, point in points.items():
        due = {int(neuron): float(index.dense[row, neuron]) for neuron in np.flatnonzero(index.dense[row])}
        assert point.payload is not None
        assert {each["neuron"]: each["activation"] for each in point.payload["code"]} == due
        assert point.payload["sha256"] == f"{row:064x}"
        assert isinstance(point.vector, dict)
        if due:
            held = point.vector["activation"]
            assert dict(zip(held.indices, held.values, strict=True)) == due
        kept = {neuron: value for neuron, value in due.items() if neuron != 1}
        if kept:
            norm = np.linalg.norm(list(kept.values()))
            unit = point.vector["unit"]
            assert dict(zip(unit.indices, unit.values, strict=True)) == pytest.approx(
                {neuron: value / norm for neuron, value in kept.items()}, rel=1e-6
            )


def test_a_second_push_writes_nothing(client: QdrantClient) -> None:
    index = some_index()
    assert push_index(index, client, "scenes").written_count == 599
    assert push_index(index, client, "scenes").written_count == 0


def test_over_http_with_shards_and_replicas(server: RestServer) -> None:
    index = some_index()
    with open_qdrant(server.url) as client:
        push_index(index, client, "scenes", shard_count=4, replica_count=2)
        qdrant = QdrantSearch(client, "scenes", index)
        code = index.code(10)
        found = [(image.row, image.similarity) for image in qdrant.similar_images(code, 9, exclude_rows=[10])]
        assert found == index.brute_force(code, 9, [10])
        assert qdrant.count_by_expression("2>1.5 & !3") == sum(
            value > 1.5 and other == 0 for value, other in index.dense[:, 2:4]
        )
        assert qdrant.images_by_expression("!2 & !4", 3)[0] == (3, 0.0)


def test_killed_at_any_call_it_goes_on_and_is_never_seen_by_halves(server: RestServer) -> None:
    index, allowed = some_index(), 0
    with open_qdrant(server.url) as client:
        while True:
            left = allowed

            def dies(method: str, path: str) -> tuple[int, dict[str, str]] | None:
                nonlocal left
                left -= 1
                return (503, {"status": "gone"}) if left < 0 else None

            server.before = dies
            try:
                push_index(index, client, "scenes")
            except Unavailable:
                server.before = lambda method, path: None
                # The last call publishes: before it, nothing is found.
                with pytest.raises(SettingError, match="no finished collection"):
                    QdrantSearch(client, "scenes", index)
                allowed += 1
                continue
            break
        assert allowed > 5
        server.before = lambda method, path: None
        assert QdrantSearch(client, "scenes", index).count_by_expression("2 | !2") == 599
        written = [call for call in server.calls if call == ("PUT", f"/collections/{NAME}-points/points")]
        # Three batches, each once.
        assert len(written) == 3


def test_two_indexes_go_by_one_name(client: QdrantClient) -> None:
    first, second = some_index(20), some_index(30, id_="b" * 64)
    for index in (first, second):
        push_index(index, client, "scenes")
    for index in (first, second):
        assert QdrantSearch(client, "scenes", index).count_by_expression("0 | !0") == index.image_count


def test_the_collection_of_another_index_is_refused(client: QdrantClient) -> None:
    index = some_index(20)
    push_index(index, client, "scenes")
    other = some_index(20, id_="a" * 16 + "b" * 48)
    with pytest.raises(ArtefactMismatch, match="index_id is aaaaaaaaaaaaaaaaaaaa.*due aaaaaaaaaaaaaaaabbbb"):
        QdrantSearch(client, "scenes", other)
    with pytest.raises(ArtefactMismatch, match="is another index"):
        push_index(other, client, "scenes")
    with pytest.raises(SettingError, match="no finished collection 'photos-aaaa"):
        QdrantSearch(client, "photos", index)


def test_points_that_somebody_changed_are_found(client: QdrantClient) -> None:
    index = some_index(20)
    push_index(index, client, "scenes")
    client.upsert(NAME + "-points", [models.PointStruct(id=0, vector={}, payload={})])
    with pytest.raises(ArtefactDamaged, match=r"other codes than the index for rows \[0\]"):
        push_index(index, client, "scenes")
    client.upsert(NAME + "-points", [models.PointStruct(id=77, vector={}, payload={})])
    with pytest.raises(ArtefactDamaged, match="counts 20 points; the index has 19 images"):
        push_index(index, client, "scenes")


def test_a_collection_of_others_is_left_alone(client: QdrantClient) -> None:
    client.create_collection(NAME, vectors_config={})
    with pytest.raises(SettingError, match="did not make; push under another name"):
        push_index(some_index(20), client, "scenes")
    client.create_collection("photos-" + "a" * 16 + "-points", vectors_config={}, sparse_vectors_config={})
    with pytest.raises(ArtefactMismatch, match="does not say which index it holds"):
        push_index(some_index(20), client, "photos")


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a" * 101, "ä"])
def test_bad_names_are_refused(client: QdrantClient, name: str) -> None:
    with pytest.raises(SettingError, match="must be 1-100 characters"):
        push_index(some_index(8), client, name)


@pytest.mark.parametrize("url", ["", "127.0.0.1:6333", "ftp://host", "http://", "http://host:notaport", ":memory:"])
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingError, match="is no URL of a Qdrant"), open_qdrant(url):
        pass


def test_a_key_does_not_travel_in_the_clear() -> None:
    with pytest.raises(SettingError, match="in the clear"), open_qdrant("http://qdrant.example:6333", api_key="secret"):
        pass


def test_a_server_that_is_away_or_refuses_is_named(server: RestServer) -> None:
    index = some_index(20)
    with open_qdrant(server.url) as client:
        push_index(index, client, "scenes")
        qdrant = QdrantSearch(client, "scenes", index)
        for status, words in (
            (401, "give the right API key"),
            (404, "push the index again"),
            (500, "answers 500"),
        ):
            server.before = lambda method, path, status=status: (status, {"status": {"error": "no"}})
            with pytest.raises(Unavailable, match=words):
                qdrant.count_by_expression("2")
        server.before = lambda method, path: (401, {"status": {"error": "no"}})
        with pytest.raises(SettingError, match="give the right API key"):
            push_index(index, client, "scenes")
        server.before = lambda method, path: None
    with open_qdrant("http://127.0.0.1:9") as client, pytest.raises(Unavailable, match="Connection refused.*runs"):
        push_index(index, client, "scenes")


def test_the_command_pushes_and_says_what_it_did(
    server: RestServer, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["push", str(built), "--qdrant", server.url, "--collection", "photos", "--shard-number", "2"]
    for written in (39, 0):
        assert main(asked) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["points"], said["written"], said["event"]) == (39, written, "pushed")
        assert said["collection"] == f"photos-{said['id'][:16]}"
    for number in ("0", "4294967296"):
        assert main([*asked[:-1], number]) == 2
        assert f"--shard-number is {number}; the limits are 1 to 4,294,967,295" in capsys.readouterr().err
    assert main(["push", str(built), "--qdrant", "here", "--collection", "photos"]) == 2
    assert "'here' is no URL of a Qdrant" in capsys.readouterr().err
