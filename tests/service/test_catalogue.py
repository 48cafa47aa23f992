"""What is served, by name: ids that differ where answers may."""

from dataclasses import replace

import pytest

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
