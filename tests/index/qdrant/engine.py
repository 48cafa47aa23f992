"""Qdrant's own engine, in process, behind the calls of qdrant-client that the stand-in for a server makes."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

import qdrant_edge as engine
from qdrant_client import QdrantClient, models


class EngineClient:
    """Points of one collection are the engine's, in a folder of their own; names and aliases are the local mode's."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._shard: Any = None
        self._local = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.get_aliases, self.get_collection = self._local.get_aliases, self._local.get_collection
        self.collection_exists = self._local.collection_exists
        self.update_collection_aliases = self._local.update_collection_aliases

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._local.close()
        self._folder.cleanup()

    def collections(self) -> list[str]:
        return [each.name for each in self._local.get_collections().collections]

    def describe(self, name: str, changes: dict[str, Any]) -> None:
        self._local.update_collection(name, metadata=changes)

    def create_collection(self, name: str, **config: Any) -> bool:
        assert self._shard is None, "one collection"
        vectors = {vector: engine.EdgeSparseVectorParams() for vector in config["sparse_vectors_config"]}
        optimizers = engine.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1)
        asked = engine.EdgeConfig(sparse_vectors=vectors, optimizers=optimizers)
        self._shard = engine.EdgeShard.create(self._folder.name, asked)
        return self._local.create_collection(name, **config)

    def create_payload_index(self, name: str, field_name: str, **_: Any) -> None:
        self._shard.update(engine.UpdateOperation.create_field_index(field_name, engine.PayloadSchemaType.Integer))

    def upsert(self, name: str, points: list[models.PointStruct]) -> models.UpdateResult:
        made = [
            engine.Point(
                point.id,
                {key: engine.SparseVector(each.indices, each.values) for key, each in point.vector.items()},
                point.payload,
            )
            for point in points
        ]
        self._shard.update(engine.UpdateOperation.upsert_points(made))
        # Builds the inverted index and the segments that a server would have after a while.
        self._shard.optimize()
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def retrieve(self, name: str, ids: list[int], *, with_payload: Any, with_vectors: Any) -> list[models.Record]:
        return [_record(each) for each in self._shard.retrieve(ids, bool(with_payload), with_vectors or False)]

    def count(self, name: str, condition: models.Filter | None) -> models.CountResult:
        return models.CountResult(count=self._shard.count(engine.CountRequest(exact=True, filter=_filter(condition))))

    def scroll(self, name: str, *, scroll_filter: Any, limit: int, with_payload: bool) -> tuple[list[Any], None]:
        asked = engine.ScrollRequest(limit=limit, filter=_filter(scroll_filter), with_payload=False, with_vector=False)
        return [_record(each) for each in self._shard.scroll(asked)[0]], None

    def query_points(
        self, name: str, *, query: Any, using: str, query_filter: Any, limit: int, with_payload: Any, with_vectors: Any
    ) -> SimpleNamespace:
        by_index = sorted(zip(query.indices, query.values, strict=True))
        vector = engine.SparseVector([index for index, _ in by_index], [value for _, value in by_index])
        found = self._shard.query(
            engine.QueryRequest(
                limit=limit,
                query=engine.Query.Nearest(vector, using=using),
                filter=_filter(query_filter),
                with_vector=with_vectors,
                with_payload=False,
            )
        )
        points = [models.ScoredPoint(version=0, score=each.score, **_record(each).model_dump()) for each in found]
        return SimpleNamespace(points=points)


def _record(each: Any) -> models.Record:
    vectors = {
        key: models.SparseVector(indices=list(vector.indices), values=list(vector.values))
        for key, vector in (each.vector or {}).items()
    }
    return models.Record(id=each.id, payload=each.payload, vector=vectors)


def _filter(condition: models.Filter | None) -> Any:
    if condition is None:
        return None
    must, should, must_not = (
        [_condition(each) for each in part] if part else None
        for part in (condition.must, condition.should, condition.must_not)
    )
    return engine.Filter(must=must, should=should, must_not=must_not)


def _condition(condition: Any) -> Any:
    match condition:
        case models.Filter():
            return _filter(condition)
        case models.HasIdCondition():
            return engine.HasIdCondition(set(condition.has_id))
        case models.NestedCondition():
            return engine.NestedCondition(condition.nested.key, _filter(condition.nested.filter))
        case models.FieldCondition(match=models.MatchValue(value=value)):
            return engine.FieldCondition(condition.key, match=engine.MatchValue(value))
        case models.FieldCondition(match=models.MatchAny(any=values)):
            return engine.FieldCondition(condition.key, match=engine.MatchAny(values))
        case models.FieldCondition(range=models.Range() as range_):
            return engine.FieldCondition(condition.key, range=engine.RangeFloat(gte=range_.gte, gt=range_.gt))
        case _:
            raise AssertionError(condition)
