"""A stand-in for a Qdrant server: its REST calls, answered by Qdrant's engine in process, or as a test wants it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import models

from tests.index.qdrant.engine import EngineClient

_COLLECTION = re.compile(r"/collections/([^/]+)(/.*)?")


class RestServer:
    """Answers until closed; `before` sees each (method, path) and may answer (status, JSON); `calls` got past it."""

    def __init__(self) -> None:
        self.before: Callable[[str, str], tuple[int, Any] | None] = lambda method, path: None
        self.calls: list[tuple[str, str]] = []
        self._client = EngineClient()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                status, reply = outer.before(self.command, path) or outer.reply(
                    self.command, path, json.loads(body or b"{}")
                )
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = _answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._client.close()

    def collections(self) -> list[str]:
        """The names of collections."""
        return self._client.collections()

    def describe(self, name: str, changes: dict[str, Any]) -> None:
        """Change what a collection says of itself."""
        self._client.describe(name, changes)

    def reply(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            result = self._result(method, path, body)
            self.calls.append((method, path))
        if result is None:
            return 404, {"status": {"error": f"Not found: {path}"}, "time": 0.0}
        return 200, {"result": result, "status": "ok", "time": 0.0}

    def _result(self, method: str, path: str, body: dict[str, Any]) -> Any:
        client = self._client
        if path == "/aliases":
            return _json(client.get_aliases())
        if path == "/collections/aliases":
            return client.update_collection_aliases(models.ChangeAliasesOperation(**body).actions)
        match = _COLLECTION.fullmatch(path)
        assert match is not None, path
        name, what = match.group(1), match.group(2) or ""
        if what == "/exists":
            return {"exists": client.collection_exists(name)}
        if (method, what) == ("PUT", ""):
            asked = models.CreateCollection(**body)
            return client.create_collection(
                name, vectors_config={}, sparse_vectors_config=asked.sparse_vectors, metadata=asked.metadata
            )
        if not client.collection_exists(name):
            return None
        if (method, what) == ("GET", ""):
            return _json(client.get_collection(name))
        if (method, what) == ("PUT", "/index"):
            client.create_payload_index(name, body["field_name"])
            return {"operation_id": 0, "status": "completed"}
        if (method, what) == ("PUT", "/points"):
            return _json(client.upsert(name, models.PointsList(**body).points))
        if (method, what) == ("POST", "/points"):
            asked = models.PointRequest(**body)
            return [
                _json(record)
                for record in client.retrieve(
                    name, asked.ids, with_payload=asked.with_payload, with_vectors=asked.with_vector
                )
            ]
        if what == "/points/count":
            return _json(client.count(name, models.CountRequest(**body).filter))
        if what == "/points/scroll":
            asked = models.ScrollRequest(**body)
            records, following = client.scroll(name, scroll_filter=asked.filter, limit=asked.limit, with_payload=False)
            return {"points": [_json(record) for record in records], "next_page_offset": following}
        if what == "/points/query":
            asked = models.QueryRequest(**body)
            found = client.query_points(
                name,
                query=asked.query.nearest if isinstance(asked.query, models.NearestQuery) else asked.query,
                using=asked.using,
                query_filter=asked.filter,
                limit=asked.limit,
                with_payload=asked.with_payload,
                with_vectors=asked.with_vector,
            )
            return {"points": [_json(point) for point in found.points]}
        raise AssertionError(f"no such call: {method} {path}")


def _json(value: Any) -> Any:
    return value.model_dump(mode="json")


@contextmanager
def rest_server() -> Iterator[RestServer]:
    server = RestServer()
    try:
        yield server
    finally:
        server.close()
