from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.values import NeuronFilter, NeuronOrder
from phosphene.errors import InputError
from service.pages import page_offset, page_token
from service.queries import NeuronListQuery, Scope

QUERY = NeuronListQuery(scope=Scope(), order=NeuronOrder.DENSITY, filter=NeuronFilter(min_density=0.25))


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_a_token_reads_as_its_offset_whatever_the_page_size(offset):
    token = page_token(QUERY, "g", offset)
    assert page_offset(replace(QUERY, page_token=token, page_size=7), "g") == offset


def test_no_token_is_the_first_page():
    assert page_offset(QUERY, "g") == 0


@pytest.mark.parametrize(
    "foreign",
    [
        replace(QUERY, order=NeuronOrder.MAXIMUM),
        replace(QUERY, filter=NeuronFilter(min_density=0.5)),
        replace(QUERY, filter=NeuronFilter(min_density=0.25, alive_only=True)),
        replace(QUERY, filter=NeuronFilter(min_density=0.25, in_dense_cluster=False)),
        replace(QUERY, filter=NeuronFilter(min_density=0.25, is_sensitive=False)),
        replace(QUERY, scope=Scope(corpus="other")),
        replace(QUERY, scope=Scope(bundle="other")),
    ],
)
def test_a_token_of_another_request_is_refused(foreign):
    with pytest.raises(InputError) as caught:
        page_offset(replace(foreign, page_token=page_token(QUERY, "g", 50)), "g")
    assert caught.value.field == "page_token"


def test_a_token_of_another_generation_is_refused():
    with pytest.raises(InputError):
        page_offset(replace(QUERY, page_token=page_token(QUERY, "g", 50)), "h")


@given(st.data())
def test_a_changed_token_is_refused(data):
    token = page_token(QUERY, "g", 50)
    position = data.draw(st.integers(0, len(token) - 2))  # the last character holds spare bits
    other = data.draw(st.sampled_from("ABCDEFghijk0123-_").filter(lambda character: character != token[position]))
    changed = token[:position] + other + token[position + 1 :]
    with pytest.raises(InputError):
        page_offset(replace(QUERY, page_token=changed), "g")


class Endless(str):
    """A text of which no caller has the time to read the whole."""

    __slots__ = ()

    def __add__(self, other):
        raise AssertionError("copied from end to end")

    encode = __add__


def test_a_text_that_is_longer_than_a_token_is_not_read():
    with pytest.raises(InputError):
        page_offset(replace(QUERY, page_token=Endless("A" * 100)), "g")


@given(st.text(min_size=1, max_size=60))
def test_any_other_text_is_refused(text):
    with pytest.raises(InputError):
        page_offset(replace(QUERY, page_token=text), "g")
