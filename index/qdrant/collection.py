"""One index as a Qdrant collection: names, points, and every call that is made of Qdrant; knows nothing of questions.

A point is an image that can be used; its id is the image's row. It has two sparse vectors over neurons: `activation`,
the stored code, and `unit`, the same at norm 1 without the neurons that similarity leaves out. Its payload has
`sha256`, and `code`: an object {`neuron`, `activation`} for each neuron that fires, which filters read.

Points are written to `NAME-points`; `NAME` becomes its alias when all of them are there. So nobody finds a collection
that is half written. Writes can be repeated without harm, and are not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float32, Int32
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from phosphene.codes import ImageCode
from phosphene.errors import SettingError, Unavailable

__all__ = ["ACTIVATION", "UNIT", "Collection", "Point", "Scored", "open_qdrant"]

ACTIVATION = "activation"
"""The sparse vector of stored activations."""
UNIT = "unit"
"""The sparse vector whose inner products are cosines."""
_POINTS = "-points"
_REFUSALS = (401, 403)


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """What Qdrant holds of one image."""

    row: int
    """Row of the index."""
    sha256: str
    """Digest of the image's bytes."""
    code: ImageCode
    """The stored code."""
    unit_ids: Int32[np.ndarray, " kept"]
    """Its neurons that count in similarity."""
    unit_values: Float32[np.ndarray, " kept"]
    """Their activations over the norm of these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """An image that a search found."""

    row: int
    """Row of the index."""
    score: float
    """Inner product with the query, in float32."""
    code: ImageCode
    """Its stored code, in the order in which the index stores it."""


@contextmanager
def open_qdrant(url: str, *, api_key: str | None = None, timeout_s: int = 30) -> Iterator[QdrantClient]:
    """Open a client, and close it on leaving; nothing is asked of the server yet.

    Args:
        url: such as `https://qdrant.example:6333`.
        api_key: what the server asks for; None: nothing.
        timeout_s: seconds that one call may take.

    Raises:
        SettingError: it is no such URL, or an API key would travel in the clear.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingError(f"{url!r} is no URL of a Qdrant; write one such as http://127.0.0.1:6333")
    if api_key is not None and parts.scheme == "http":
        raise SettingError("an API key would travel in the clear over http; reach Qdrant by https, or without a key")
    client = QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)
    try:
        yield client
    finally:
        client.close()


class Collection:
    """The points of one index, under the name that is their alias."""

    def __init__(self, client: QdrantClient, name: str) -> None:
        """Speak of the collection `name`, which need not exist."""
        self._client = client
        self.name = name

    @property
    def _points(self) -> str:
        return self.name + _POINTS

    def is_published(self) -> bool:
        """Whether all points were written: whether the name stands for them."""
        with _calls(self.name):
            aliases = {alias.alias_name: alias.collection_name for alias in self._client.get_aliases().aliases}
            if self.name in aliases:
                return bool(aliases[self.name] == self._points)
            if self._client.collection_exists(self.name):
                raise SettingError(
                    f"Qdrant has a collection {self.name!r} that `python -m index push` did not make; "
                    "push under another name"
                )
        return False

    def create(self, metadata: dict[str, Any], *, shard_count: int | None, replica_count: int | None) -> None:
        """Make what is missing of the collection that points are written to."""
        params = models.SparseVectorParams(index=models.SparseIndexParams(datatype=models.Datatype.FLOAT32))
        with _calls(self.name):
            if not self._client.collection_exists(self._points):
                self._client.create_collection(
                    self._points,
                    vectors_config={},
                    sparse_vectors_config={ACTIVATION: params, UNIT: params},
                    shard_number=shard_count,
                    replication_factor=replica_count,
                    on_disk_payload=True,
                    metadata=metadata,
                )
            self._client.create_payload_index(
                self._points,
                "code[].neuron",
                field_schema=models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True, range=False),
            )

    def metadata(self) -> dict[str, Any]:
        """What `create` was told."""
        with _calls(self.name):
            return dict(self._client.get_collection(self._points).config.metadata or {})

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return those of some rows that have no point."""
        with _calls(self.name):
            there = self._client.retrieve(self._points, list(rows), with_payload=False, with_vectors=False)
        return sorted(set(rows) - {int(record.id) for record in there})

    def write(self, points: Sequence[Point]) -> None:
        """Write points; returns when they can be found."""
        with _calls(self.name):
            self._client.upsert(self._points, [_struct(point) for point in points], wait=True)

    def differing(self, points: Sequence[Point]) -> list[int]:
        """Return the rows of those points that Qdrant holds otherwise, or not at all."""
        with _calls(self.name):
            records = self._client.retrieve(
                self._points, [point.row for point in points], with_payload=True, with_vectors=True
            )
        held = {record.id: _comparable(record.vector, record.payload) for record in records}
        due = [(point.row, _struct(point)) for point in points]
        return [row for row, struct in due if held.get(row) != _comparable(struct.vector, struct.payload)]

    def publish(self) -> None:
        """Let the name stand for the points."""
        alias = models.CreateAlias(collection_name=self._points, alias_name=self.name)
        with _calls(self.name):
            self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

    def count(self, condition: models.Filter | None = None) -> int:
        """Count the points that meet a condition, exactly."""
        with _calls(self.name, is_answer=True):
            return int(self._client.count(self._points, condition, exact=True).count)

    def search(self, using: str, query: dict[int, float], limit: int, condition: models.Filter | None) -> list[Scored]:
        """Return up to `limit` points by descending inner product; none that shares no neuron with the query."""
        vector = models.SparseVector(indices=list(query), values=list(query.values()))
        with _calls(self.name, is_answer=True):
            found = self._client.query_points(
                self._points,
                query=vector,
                using=using,
                query_filter=condition,
                limit=limit,
                with_payload=False,
                with_vectors=[ACTIVATION],
            ).points
        return [Scored(row=int(point.id), score=float(point.score), code=_code(point.vector)) for point in found]

    def first_rows(self, condition: models.Filter | None, limit: int) -> list[int]:
        """Return the first `limit` rows that meet a condition, rising."""
        with _calls(self.name, is_answer=True):
            records, _ = self._client.scroll(
                self._points, scroll_filter=condition, limit=limit, with_payload=False, with_vectors=False
            )
        return [int(record.id) for record in records]


def _struct(point: Point) -> models.PointStruct:
    ids, activations = point.code.neuron_ids.tolist(), point.code.values.tolist()
    vectors: dict[str, Any] = {}
    if ids:
        vectors[ACTIVATION] = models.SparseVector(indices=ids, values=activations)
    if len(point.unit_ids):
        vectors[UNIT] = models.SparseVector(indices=point.unit_ids.tolist(), values=point.unit_values.tolist())
    code = [{"neuron": neuron, "activation": value} for neuron, value in zip(ids, activations, strict=True)]
    return models.PointStruct(id=point.row, vector=vectors, payload={"sha256": point.sha256, "code": code})


def _comparable(vectors: Any, payload: Any) -> Any:
    """What a point says, rounded: Qdrant may read the last digit of a number otherwise than it was written."""
    parts = {
        name: dict(zip(vector.indices, np.array(vector.values, dtype=np.float16).tolist(), strict=True))
        for name, vector in (vectors or {}).items()
    }
    code = {each.get("neuron"): float(np.float16(each.get("activation"))) for each in (payload or {}).get("code", ())}
    return parts, code, (payload or {}).get("sha256")


def _code(vectors: Any) -> ImageCode:
    vector = vectors[ACTIVATION]
    # What is stored is float16.
    neuron_ids, values = np.array(vector.indices, dtype=np.int32), np.array(vector.values, dtype=np.float16)
    values = values.astype(np.float32)
    order = np.lexsort((neuron_ids, -values))
    return ImageCode(neuron_ids=neuron_ids[order], values=values[order])


@contextmanager
def _calls(name: str, *, is_answer: bool = False) -> Iterator[None]:
    """Say what is wrong in our words; whoever asks for an answer has no say in how Qdrant is reached."""
    try:
        yield
    except ResponseHandlingException as error:
        raise Unavailable(
            f"Qdrant gave no answer about {name!r} ({type(error.source).__name__}: {error.source}); see that it runs "
            "and that its URL is right, and ask again"
        ) from error
    except UnexpectedResponse as error:
        said = error.content.decode("utf-8", "replace")[:300]
        if error.status_code in _REFUSALS:
            refusal = f"Qdrant refuses access to {name!r} ({said}); give the right API key"
            raise (Unavailable(refusal) if is_answer else SettingError(refusal)) from error
        if error.status_code == 404:
            raise Unavailable(
                f"Qdrant no longer has {name!r} ({said}); push the index again: python -m index push"
            ) from error
        raise Unavailable(f"Qdrant answers {error.status_code} about {name!r}: {said}") from error
    except JSONDecodeError as error:
        raise Unavailable(f"what answers about {name!r} is no Qdrant ({error}); see that its URL is right") from error
    except (ApiException, QdrantException) as error:
        raise Unavailable(f"Qdrant does not answer about {name!r} now ({error}); ask again later") from error
