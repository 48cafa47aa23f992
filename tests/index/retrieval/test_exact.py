"""Exact search equals brute force, bit for bit, whatever is asked of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.retrieval.exact import ExactSearch, SearchShard
from index.values import CodeMetric
from phosphene.errors import NotFound, NumericError
from tests.index.retrieval.brute_force import Code, brute_force, make_shards

NEURONS = 24
METRICS = list(CodeMetric)
# Few distinct values make ties; the others are the ends of float16 and what lies between.
activations = st.one_of(
    st.sampled_from([0.5, 1.0, 2.0]),
    st.floats(2**-14, 60000.0, width=16),
    st.sampled_from([6e-8, 65504.0]),
)
codes = st.dictionaries(st.integers(0, NEURONS - 1), activations, max_size=10)
neuron_sets = st.sets(st.integers(0, NEURONS - 1))


def search(engine: ExactSearch, query: Code, count: int, **options) -> list[tuple[int, float]]:
    ids, values = np.array(list(query), dtype=np.int32), np.array(list(query.values()), dtype=np.float32)
    rows, scores = engine.nearest(ids, values, count, **options)
    return list(zip(rows.tolist(), scores.tolist(), strict=True))


@st.composite
def corpora(draw) -> tuple[list[Code], list[int]]:
    """Codes, equal ones among them, cut into shards, some of one row or none."""
    some = draw(st.lists(codes, max_size=12))
    again = draw(st.lists(st.sampled_from(some), max_size=12)) if some else []
    everything = draw(st.permutations(some + again))
    cuts = sorted(draw(st.lists(st.integers(0, len(everything)), max_size=3)))
    return everything, np.diff([0, *cuts, len(everything)]).tolist()


@settings(max_examples=250)
@given(
    corpus=corpora(),
    query=codes,
    count=st.integers(1, 30),
    metric=st.sampled_from(METRICS),
    left_out=st.one_of(st.none(), neuron_sets),
    only=st.one_of(st.none(), neuron_sets),
    excluded=st.sets(st.integers(0, 30)),
    threads=st.integers(1, 3),
    id_type=st.sampled_from([np.int32, np.uint16]),
)
def test_equals_brute_force(corpus, query, count, metric, left_out, only, excluded, threads, id_type):
    everything, sizes = corpus
    shards = make_shards(everything, sizes, neuron_count=NEURONS, id_type=id_type)
    found = search(
        ExactSearch(shards, neuron_count=NEURONS, thread_count=threads),
        query,
        count,
        metric=metric,
        left_out=None if left_out is None else np.isin(np.arange(NEURONS), list(left_out)),
        only=None if only is None else np.array(sorted(only), dtype=np.int32),
        excluded_rows=np.array(sorted(excluded), dtype=np.int64),
    )
    expected = brute_force(
        everything, query, count, metric=metric, left_out=left_out or set(), only=only, excluded=excluded
    )
    assert found == expected


def world(row_count: int, *, neuron_count: int, seed: int, spread: float = 0.4) -> list[Code]:
    """Codes in classes over neurons of very unequal density: bounds have something to leave out."""
    generator = np.random.default_rng(seed)
    chances = 1.0 / np.arange(1, neuron_count + 1)
    chances /= chances.sum()
    pools = [generator.choice(neuron_count, 14, replace=False, p=chances) for _ in range(max(1, row_count // 40))]
    out = []
    for _ in range(row_count):
        own = generator.choice(pools[generator.integers(len(pools))], 11, replace=False)
        ids = np.unique(np.concatenate([own, generator.choice(neuron_count, 4, p=chances)]))
        values = generator.lognormal(0, spread, len(ids)) * generator.lognormal(0, spread)
        values = np.clip(values, 1e-6, 60_000).astype(np.float16)
        order = np.argsort(-values, kind="stable")
        out.append(dict(zip(ids[order].tolist(), values[order].tolist(), strict=True)))
    return out


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("seed", "spread"), [(0, 0.2), (1, 0.5), (2, 2.0)])
@pytest.mark.parametrize("sort", [False, True])
def test_equals_brute_force_where_most_postings_are_skipped(metric, seed, spread, sort):
    codes = world(900, neuron_count=400, seed=seed, spread=spread)
    if sort:
        codes.sort(key=lambda code: sorted(code))
    engine = ExactSearch(make_shards(codes, [300, 1, 299, 300], neuron_count=400), neuron_count=400)
    dense = np.arange(400) < 5
    for row in range(0, 900, 60):
        for count in (1, 10, 100):
            expected = brute_force(codes, codes[row], count, metric=metric, left_out=set(range(5)), excluded={row})
            found = search(
                engine, codes[row], count, metric=metric, left_out=dense, excluded_rows=np.array([row], dtype=np.int64)
            )
            assert found == expected


def test_more_rows_than_there_are_come_as_all_that_share_a_neuron():
    codes = [{0: 1.0}, {}, {1: 1.0}, {0: 2.0, 1: 1.0}]
    engine = ExactSearch(make_shards(codes, [2, 2], neuron_count=2), neuron_count=2)
    assert [row for row, _ in search(engine, {0: 1.0}, 1000)] == [0, 3]


def test_equal_scores_go_by_lower_row_across_shards():
    codes = [{0: 3.0, 1: 1.0}] * 9
    engine = ExactSearch(make_shards(codes, [4, 5], neuron_count=2), neuron_count=2)
    assert [row for row, _ in search(engine, {0: 1.0, 1: 1.0}, 6)] == [0, 1, 2, 3, 4, 5]


def test_a_full_shard_of_which_every_row_is_a_candidate():
    codes = [{0: 1.0, 1: 1.0, 2: 1.0}] * 65_536
    engine = ExactSearch(make_shards(codes, [65_536], neuron_count=3), neuron_count=3)
    all_but_one = np.delete(np.arange(65_536), 40_000)
    found = search(engine, {0: 1.0, 1: 2.0, 2: 1.0}, 10, excluded_rows=all_but_one)
    assert [row for row, _ in found] == [40_000]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weak", [10.0**-power for power in (1, 3, 5, 5.5, 6, 6.5, 7, 7.5, 8, 9)])
@pytest.mark.parametrize("strong_rows", [0, 1])
def test_a_weak_neuron_beside_a_strong_one_counts_where_it_alone_is_shared(metric, weak, strong_rows):
    rarely = [{2: 1.0, 0: 6e-8}] * strong_rows
    codes = [{1: 1.0, 2: 0.003}, {1: 1.0, 2: 1.0}, {1: 1.0, 2: 0.003}, *rarely, {1: 1.0}, {1: 1.0}, {1: 1.0}]
    engine = ExactSearch(make_shards(codes, [3, len(codes) - 3], neuron_count=3), neuron_count=3)
    for strong in (1.0, 16.23, 907.0, 65504.0):
        query = {0: float(np.float32(strong)), 1: float(np.float32(strong * weak))}
        for count in (1, 2, 3, 5):
            expected = brute_force(codes, query, count, metric=metric, left_out=set(), excluded=set())
            assert search(engine, query, count, metric=metric) == expected


def test_one_search_leaves_nothing_to_the_next_however_many_there_were():
    codes = world(400, neuron_count=400, seed=8)
    engine = ExactSearch(make_shards(codes, [200, 200], neuron_count=400), neuron_count=400)
    marks = []
    for code in codes[:150]:
        search(engine, code, 5)
        (space,) = engine._workspaces
        # What a later search left would count for the next one.
        assert int(space.accumulator.max()) >> 24 <= int(space.marks[0])
        marks.append(int(space.marks[0]))
    assert marks != sorted(marks)
    for code in codes[:5]:
        assert search(engine, code, 5) == brute_force(
            codes, code, 5, metric=CodeMetric.COSINE, left_out=set(), excluded=set()
        )


def test_an_index_without_rows_answers_with_none():
    assert search(ExactSearch([], neuron_count=3), {0: 1.0}, 5) == []


def test_a_score_over_chosen_neurons_is_their_part_of_the_whole_similarity():
    codes = world(60, neuron_count=50, seed=5)
    engine = ExactSearch(make_shards(codes, [60], neuron_count=50), neuron_count=50)
    whole = dict(search(engine, codes[0], 60))
    halves = [
        dict(search(engine, codes[0], 60, only=np.arange(start, start + 25, dtype=np.int32))) for start in (0, 25)
    ]
    for row, score in whole.items():
        assert halves[0].get(row, 0.0) + halves[1].get(row, 0.0) == pytest.approx(score)


def test_ranked_rows_have_the_scores_of_the_search():
    codes = world(300, neuron_count=80, seed=6)
    engine = ExactSearch(make_shards(codes, [100, 200], neuron_count=80), neuron_count=80)
    query = codes[7]
    ids, values = np.array(list(query), dtype=np.int32), np.array(list(query.values()), dtype=np.float32)
    for options in ({}, {"metric": CodeMetric.INNER_PRODUCT}, {"left_out": np.arange(80) < 3}, {"only": np.arange(40)}):
        rows, scores = engine.nearest(ids, values, 20, **options)
        some = np.random.default_rng(0).permutation(np.unique([*rows, 299, 0, 5, -1]))
        again, same = engine.ranked(ids, values, some, 20, **options)
        assert (again == rows).all()
        assert (same == scores).all()
        again, _ = engine.ranked(ids, values, some, 20, excluded_rows=np.sort(rows[:3]), **options)
        assert (again[:17] == rows[3:]).all()


def test_other_neurons_left_out_change_the_answer_even_in_the_same_array():
    codes = world(200, neuron_count=60, seed=7)
    engine = ExactSearch(make_shards(codes, [200], neuron_count=60), neuron_count=60)
    left_out = np.zeros(60, dtype=bool)
    for dense in ({0, 1}, {2, 3}):
        left_out[:] = np.isin(np.arange(60), list(dense))
        assert search(engine, codes[3], 10, left_out=left_out) == brute_force(codes, codes[3], 10, left_out=dense)


def test_many_threads_ask_at_a_time():
    codes = world(400, neuron_count=100, seed=8)
    engine = ExactSearch(make_shards(codes, [200, 200], neuron_count=100), neuron_count=100)
    expected = [brute_force(codes, code, 10) for code in codes[:60]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda code: search(engine, code, 10), codes[:60])) == expected


def test_arrays_that_are_mapped_for_reading_or_lie_apart_are_read_alike():
    codes = world(100, neuron_count=40, seed=9)
    [shard] = make_shards(codes, [100], neuron_count=40)
    values = np.repeat(shard.values, 2)[::2]
    neuron_ids = shard.neuron_ids.copy()
    neuron_ids.setflags(write=False)
    other = SearchShard(
        start=0, postings=shard.postings, offsets=shard.offsets, neuron_ids=neuron_ids, values=values, norms=shard.norms
    )
    assert search(ExactSearch([other], neuron_count=40), codes[0], 10) == brute_force(codes, codes[0], 10)


def test_a_query_of_too_many_neurons_is_refused():
    engine = ExactSearch(make_shards([{0: 1.0}], [1], neuron_count=40_000), neuron_count=40_000)
    with pytest.raises(ValueError, match="33000 neurons; the limit is 32768"):
        search(engine, dict.fromkeys(range(33_000), 1.0), 1)


ONES = np.ones(2, dtype=np.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_query_without_numbers_is_refused(value):
    engine = ExactSearch(make_shards([{0: 1.0, 1: 2.0}, {1: 3.0}], [2], neuron_count=2), neuron_count=2)
    with pytest.raises(NumericError, match="NaN or infinite"):
        search(engine, {0: value, 1: 1.0}, 2)
    with pytest.raises(NumericError, match="NaN or infinite"):
        engine.ranked(np.array([0]), np.array([value], dtype=np.float32), np.array([0, 1]), 2)


@pytest.mark.parametrize("neuron", [-1, 2, 70_000, 2**32])
def test_a_neuron_of_another_bundle_is_refused(neuron):
    engine = ExactSearch(make_shards([{0: 1.0, 1: 2.0}, {1: 3.0}], [2], neuron_count=2), neuron_count=2)
    for dtype in (np.int32, np.int64) if neuron != 2**32 else (np.int64,):
        ids = np.array([1, neuron], dtype=dtype)
        for ask in (lambda ids: engine.nearest(ids, ONES, 2), lambda ids: engine.ranked(ids, ONES, np.array([0]), 2)):
            with pytest.raises(NotFound, match="those of the index are 0 to 1"):
                ask(ids)
    rows, scores = engine.nearest(np.array([1]), ONES[:1], 2)
    assert (rows.tolist(), scores.tolist()) == ([1, 0], [1.0, pytest.approx(2 / 5**0.5)])


@pytest.mark.parametrize("largest", [1e-45, 6e-8, 65_504.0, 3e38])
def test_the_smallest_and_largest_queries_are_answered(largest):
    codes = [{0: 6e-8}, {0: 65_504.0, 1: 6e-8}, {1: 1.0}, {}]
    engine = ExactSearch(make_shards(codes, [4], neuron_count=2), neuron_count=2)
    for query in ({0: largest}, {0: largest, 1: 1e-3}, {1: largest}):
        assert search(engine, query, 4) == brute_force(codes, query, 4)


def test_one_image_of_one_neuron_is_found():
    engine = ExactSearch(make_shards([{0: 3.0}], [1], neuron_count=1), neuron_count=1)
    assert search(engine, {0: 0.5}, 9) == [(0, 1.0)]
    assert search(engine, {0: 0.5}, 9, excluded_rows=np.array([0])) == []


def test_neurons_and_rows_beyond_sixteen_bits():
    codes = [{(row * 7919) % 70_000: 1.0 + row % 3, 69_999: 0.5} for row in range(65_536 + 300)]
    engine = ExactSearch(make_shards(codes, [65_536, 300], neuron_count=70_000), neuron_count=70_000)
    for row in (0, 65_535, 65_536, 65_800):
        # Half of the neurons are met by another row as well.
        assert search(engine, codes[row], 3) == brute_force(codes, codes[row], 3)
