"""The same questions to the index and to Qdrant have the same answers: those of brute force over the stored codes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_client.local.payload_filters import check_filter

from index.expression import parse_expression
from index.qdrant.collection import open_qdrant
from index.qdrant.filters import matching
from index.qdrant.push import push_index
from index.qdrant.search import QdrantSearch
from index.qdrant.source import CodeSource
from index.reader import open_index
from phosphene.codes import ImageCode
from phosphene.errors import InputError, NotFound
from tests.index.qdrant.made_up_index import MadeUpIndex
from tests.index.qdrant.rest_server import rest_server
from tests.index.shards import cut_places, sparse_activations
from tests.index.test_expression import expressions

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")


@contextmanager
def pushed(index: CodeSource, *, to_server: bool = True) -> Iterator[QdrantSearch]:
    """Push to Qdrant's engine behind HTTP, or to the imitation of it that qdrant-client has."""
    with ExitStack() as stack:
        if to_server:
            client = stack.enter_context(open_qdrant(stack.enter_context(rest_server()).url))
        else:
            client = QdrantClient(":memory:")
            stack.callback(client.close)
        push_index(index, client, "scenes")
        yield QdrantSearch(client, "scenes", index)


@given(st.floats(0, 70_000), st.sampled_from([">", ">=", "<", "<="]), st.lists(st.integers(1, 0x7BFF), min_size=1))
def test_a_threshold_is_asked_for_halfway_between_two_activations(
    threshold: float, sign: str, patterns: list[int]
) -> None:
    stored = np.array(patterns, dtype=np.uint16).view(np.float16)
    first = float(stored[0])
    for asked in (threshold, first, first * (1 - 1e-6), first * (1 + 1e-6)):
        term = parse_expression(f"7{sign}{asked!r}")
        for activation in stored.astype(np.float64).tolist():
            due = {">": activation > asked, ">=": activation >= asked, "<": activation < asked}.get(
                sign, activation <= asked
            )
            for read in (activation, np.nextafter(activation, 0), np.nextafter(activation, np.inf)):
                payload = {"code": [{"neuron": 7, "activation": float(read)}, {"neuron": 8, "activation": 9e9}]}
                condition = matching(term)
                met = condition if isinstance(condition, bool) else check_filter(condition, payload, 0, {})
                assert met == due


@settings(max_examples=16)
@given(st.data())
def test_similar_images_are_those_of_the_index(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations(max_rows=20))
    rows, neurons = st.integers(0, len(dense) - 1), st.integers(0, dense.shape[1] - 1)
    index = MadeUpIndex(
        dense,
        left_out=data.draw(st.sets(neurons, max_size=2)),
        quarantined=data.draw(st.sets(rows, max_size=3)),
        hidden=data.draw(st.sets(rows, max_size=3)),
        cuts=data.draw(cut_places(len(dense))),
    )
    row, count = data.draw(rows), data.draw(st.integers(1, 50))
    exclude_rows = data.draw(st.sets(rows, max_size=2))
    # A live activation is no float16.
    live = data.draw(st.floats(0.5, 2.0, width=32))
    code = index.code(row)
    code = ImageCode(neuron_ids=code.neuron_ids, values=code.values * np.float32(live))
    with pushed(index, to_server=data.draw(st.sampled_from([False, False, True]))) as qdrant:
        answer = qdrant.similar_images(code, count, exclude_rows=exclude_rows)
    found = [(image.row, image.similarity) for image in answer]
    assert found == index.similar(code, count, exclude_rows)
    assert found == index.brute_force(code, count, exclude_rows)


@settings(max_examples=16)
@given(st.data())
def test_expressions_match_what_they_match_in_the_index(data: st.DataObject) -> None:
    dense = data.draw(sparse_activations(max_rows=20))
    rows = st.integers(0, len(dense) - 1)
    index = MadeUpIndex(
        dense,
        quarantined=data.draw(st.sets(rows, max_size=3)),
        hidden=data.draw(st.sets(rows, max_size=3)),
    )
    stored = [float(value) for value in np.unique(dense)[:50]]
    near = [value * factor for value in stored for factor in (1.0, 1 - 1e-6, 1 + 1e-6)]
    asked = [
        data.draw(expressions(st.integers(0, dense.shape[1] - 1), st.sampled_from(near) | st.floats(0, 1000)))
        for _ in range(4)
    ]
    count = data.draw(st.integers(1, 50))
    with pushed(index, to_server=data.draw(st.sampled_from([False, False, True]))) as qdrant:
        for expression in asked:
            due_rows, due_scores = index.expressions.best(expression, count)
            due = list(zip(due_rows.tolist(), due_scores.tolist(), strict=True))
            assert qdrant.images_by_expression(str(expression), count) == due
            assert qdrant.count_by_expression(str(expression)) == index.expressions.count(expression)


def test_ties_go_by_row_however_many_there_are() -> None:
    dense = np.zeros((300, 4), dtype=np.float16)
    dense[:, 1], dense[::3, 2] = 2, 5
    dense[7] = (0, 2, 0.0001, 0)
    with pushed(MadeUpIndex(dense), to_server=False) as qdrant:
        code = ImageCode(neuron_ids=np.array([1], dtype=np.int32), values=np.ones(1, dtype=np.float32))
        assert [image.row for image in qdrant.similar_images(code, 4)] == [1, 2, 4, 5]
        assert [row for row, _ in qdrant.images_by_expression("1", 3)] == [0, 1, 2]
        assert [row for row, _ in qdrant.images_by_expression("!3", 3)] == [0, 1, 2]


def test_nearly_equal_codes_are_ranked_in_float64() -> None:
    """Cosines that differ by less than float32 can tell, worst first in the order of rows."""
    dense = np.zeros((60, 2), dtype=np.float16)
    dense[:, 0] = 2048
    dense[:, 1] = np.linspace(0.4, 0.2, 60).astype(np.float16)
    index = MadeUpIndex(dense)
    code = ImageCode(neuron_ids=np.array([0], dtype=np.int32), values=np.ones(1, dtype=np.float32))
    assert len({np.float32(cosine) for _, cosine in index.brute_force(code, 60)}) == 1
    with pushed(index) as qdrant:
        found = [(image.row, image.similarity) for image in qdrant.similar_images(code, 5)]
    assert found == index.brute_force(code, 5)
    assert found[0][0] > 50


def test_a_built_index_and_qdrant_answer_alike(built: Path) -> None:
    with open_index(built) as index, pushed(index) as qdrant:
        for row in range(0, index.row_count, 3):
            code = index.code(row)
            for count, exclude_rows in ((1, []), (5, [row, (row + 1) % index.row_count]), (100, [])):
                due = index.similar_images(code, count, exclude_rows=exclude_rows)
                assert qdrant.similar_images(code, count, exclude_rows=exclude_rows) == due
        firing = np.flatnonzero(index.firing_counts)
        first, second, third = (int(neuron_id) for neuron_id in firing[[0, len(firing) // 2, -1]])
        middle = index.neuron(first).quantiles[5]
        for text in (
            f"{first}", f"!{first}", f"{first}>{middle} | {second}", f"{first}>={middle} & !{third}", f"{first}<0.1",
            f"{first}>=0", f"{first}<0", f"!({first} | {second}<={middle})", f"{second} | !{second}",
        ):  # fmt: skip
            assert qdrant.images_by_expression(text, 7) == index.images_by_expression(text, 7)
            assert qdrant.count_by_expression(text) == index.count_by_expression(text)


def test_what_the_index_refuses_qdrant_refuses() -> None:
    index = MadeUpIndex(np.eye(3, dtype=np.float16))
    with pushed(index) as qdrant:
        with pytest.raises(InputError, match="column 3"):
            qdrant.images_by_expression("1 ?", 3)
        with pytest.raises(NotFound, match="neuron 3 does not exist"):
            qdrant.count_by_expression("3")
        nothing = ImageCode(neuron_ids=np.zeros(0, dtype=np.int32), values=np.zeros(0, dtype=np.float32))
        assert qdrant.similar_images(nothing, 3) == []
