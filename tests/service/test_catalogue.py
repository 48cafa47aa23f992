"""What is served, by name: ids that differ where answers may."""

from dataclasses import replace

import pytest

from phosphene.errors import NotFound
from service.catalogue import Catalogue
from service.queries import Scope
from tests.fakes import FakeEngine, fake_entry


def run_by(engine, engine_id):
    bundle, corpora = fake_entry(FakeEngine())
    return Catalogue([(replace(bundle, facts=replace(bundle.facts, engine=engine, engine_id=engine_id)), corpora)])


def test_equal_artefacts_are_one_generation():
    one, other = run_by("onnxruntime-int8", "1" * 64), run_by("onnxruntime-int8", "1" * 64)
    assert one.id == other.id
    assert one.generation(Scope()).id == other.generation(Scope()).id


@pytest.mark.parametrize("other", [("onnxruntime-int8", "2" * 64), ("torch", "")])
def test_another_engine_is_another_generation(other):
    """Codes of one 8-bit graph are not those of the next, and are kept by generation."""
    one, changed = run_by("onnxruntime-int8", "1" * 64), run_by(*other)
    assert one.id != changed.id
    assert one.generation(Scope()).id != changed.generation(Scope()).id


def test_another_default_corpus_is_another_generation():
    """A request that names no corpus is answered from it, so equal generations would hide that answers changed."""
    bundle, corpora = fake_entry(FakeEngine(), corpora=("one", "two"))
    before, after = Catalogue([(bundle, corpora)]), Catalogue([(bundle, corpora[::-1])])
    assert before.generation(Scope()).corpus is not after.generation(Scope()).corpus
    assert before.generation(Scope()).id != after.generation(Scope()).id
    assert before.id != after.id


def test_the_default_bundle_counts_in_what_is_served():
    entries = [fake_entry(FakeEngine(), name=name) for name in ("one", "two")]
    assert Catalogue(entries).id != Catalogue(entries[::-1]).id


@pytest.mark.parametrize("field", ["bundle", "corpus"])
def test_a_name_that_is_too_long_is_cut_and_found_nowhere(field):
    longest = "a" * 64
    catalogue = Catalogue([fake_entry(FakeEngine(), name=longest, corpora=(longest,))])
    assert catalogue.generation(Scope(**{field: longest})).bundle.name == longest
    for name in (longest + "a", "a" * 100_000):
        with pytest.raises(NotFound) as refused:
            catalogue.generation(Scope(**{field: name}))
        assert (refused.value.field, refused.value.name) == (field, longest + "…")
        assert len(str(refused.value)) < 400
