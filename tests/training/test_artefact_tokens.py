import numpy as np
import pytest

from phosphene.encoder import Site, Tokens
from training.artefact_tokens import find_artefact_tokens, first_patch_place, lower_median


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1001])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_median_is_the_sorted_one_however_the_values_are_cut(count: int, scale: float) -> None:
    values = (np.random.default_rng(count).exponential(size=count) * scale).astype(np.float32)
    values[: count // 5] = 0
    due = np.sort(values)[(count - 1) // 2]
    for size in (1, 7, count):
        parts = [values[start : start + size] for start in range(0, count, size)]
        assert lower_median(lambda parts=parts: parts) == due


def test_norms_beyond_six_deviations_are_marked() -> None:
    generator = np.random.default_rng(0)
    norms = generator.normal(50, 2, 10_000).astype(np.float32)
    norms[::100] = generator.uniform(200, 400, 100)
    found = find_artefact_tokens(lambda: np.array_split(norms, 7))
    median = np.median(norms)
    mad = np.median(np.abs(norms - median))
    assert found.median == pytest.approx(median, rel=1e-3)
    assert found.norm_limit == pytest.approx(median + 6 * mad, rel=1e-3)
    assert (found.patch_count, found.artefact_count, found.share) == (10_000, 100, 0.01)


def test_where_half_of_the_norms_are_alike_or_there_are_none_nothing_is_marked() -> None:
    assert find_artefact_tokens(lambda: [np.array([2, 2, 2, 9], np.float32)]).norm_limit is None
    none = find_artefact_tokens(lambda: [])
    assert (none.norm_limit, none.share) == (None, 0.0)


def test_only_patches_can_be_artefacts() -> None:
    places = {tokens: first_patch_place(Site(block=0, tokens=tokens), 5) for tokens in (Tokens.PATCHES, Tokens.ALL)}
    assert places == {Tokens.PATCHES: 0, Tokens.ALL: 5}
    for tokens in (Tokens.CLS, Tokens.MEAN):
        assert first_patch_place(Site(block=0, tokens=tokens), 5) is None
    assert first_patch_place(Site(block=None, tokens=Tokens.EMBEDDING), 5) is None
