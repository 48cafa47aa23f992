"""Neuron expressions: what is written is what is read, and errors point at their column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.expression import (
    DEPTH_LIMIT,
    LENGTH_LIMIT,
    TERM_LIMIT,
    And,
    Comparison,
    Expression,
    Not,
    Or,
    Term,
    parse_expression,
)
from phosphene.errors import InputError, NotFound

NEURONS = st.integers(0, (1 << 31) - 1)
THRESHOLDS = st.floats(0, 1e300, allow_nan=False) | st.sampled_from([0.0, 0.5, 1.0, 1e-7, 65504.0])


def expressions(
    neurons: st.SearchStrategy[int] = NEURONS, thresholds: st.SearchStrategy[float] = THRESHOLDS
) -> st.SearchStrategy[Expression]:
    """Any expression of at most 16 terms."""
    terms = st.builds(Term, neuron_id=neurons) | st.builds(
        Term, neuron_id=neurons, comparison=st.sampled_from(Comparison), threshold=thresholds
    )

    def around(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(inner, min_size=2, max_size=4).map(tuple)
        return st.builds(Not, part=inner) | st.builds(And, parts=several) | st.builds(Or, parts=several)

    return st.recursive(terms, around, max_leaves=16)


@given(expressions())
def test_what_is_written_is_read(expression: Expression) -> None:
    assert parse_expression(str(expression)) == expression
    tight = str(expression).replace(" ", "")
    assert parse_expression(tight) == expression
    assert parse_expression(f"\t( {expression} ) \n") == expression


def test_an_example_by_hand() -> None:
    expression = parse_expression("12>0.5 & 907 & !55")
    assert expression == And(
        parts=(
            Term(neuron_id=12, comparison=Comparison.GREATER, threshold=0.5),
            Term(neuron_id=907),
            Not(part=Term(neuron_id=55)),
        )
    )
    assert str(expression) == "12>0.5 & 907 & !55"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("1|2&3", "1 | (2 & 3)"),
        ("!1&2", "(!1) & 2"),
        ("!!1", "!(!1)"),
        ("((1))", "1"),
        ("1>0", "1"),
        ("1>=.5", "1 >= 0.5"),
        ("1<2.", "1<2"),
        ("1>5e-1", "1>0.5"),
        ("007", "7"),
    ],
)
def test_ways_to_write_the_same(text: str, same: str) -> None:
    assert parse_expression(text) == parse_expression(same)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column 1 of the expression: the end where a neuron is due: write a neuron id, such as 12"),
        ("12 &", "column 5 of the expression: the end where a neuron is due"),
        ("12 & | 3", "column 6 of the expression: '|' where a neuron is due"),
        ("12 > & 3", "column 6 of the expression: '&' where a threshold is due: write a number of at least 0"),
        ("12 > -1", "column 6 of the expression: '-' means nothing here"),
        ("12 13", "column 4 of the expression: '13' follows a whole expression: join the two with & or |"),
        ("(12 | 3", "column 8 of the expression: the '(' of column 1 is open: close it"),
        ("12)", "column 3 of the expression: ')' closes nothing"),
        ("1.5 & 2", "column 1 of the expression: neuron 1.5 is no whole number"),
        ("1e3", "column 1 of the expression: neuron 1e3 is no whole number"),
        ("1 > 1e999", "column 5 of the expression: 1e999 is too large: activations are at most 65504"),
        ("12 == 3", "column 4 of the expression: '=' means nothing here"),
        ("١٢", "column 1 of the expression: '١' means nothing here"),
        ("1 and 2", "column 3 of the expression: 'a' means nothing here"),
    ],
)
def test_errors_point_at_the_column(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_expression(text)
    assert said in str(caught.value)
    assert caught.value.field == "expression"


@pytest.mark.parametrize("number", ["300", "99999999999999999999999999", "2147483648"])
def test_a_neuron_that_does_not_exist_is_named(number: str) -> None:
    with pytest.raises(NotFound, match=rf"column 5: neuron {number} does not exist; neurons are 0 to 299") as caught:
        parse_expression(f"1 & {number}", neuron_count=300)
    assert caught.value.name == number


def test_limits_are_met_and_kept() -> None:
    longest = "1" + " " * (LENGTH_LIMIT - 1)
    assert parse_expression(longest) == Term(neuron_id=1)
    with pytest.raises(InputError, match=f"{LENGTH_LIMIT + 1} characters; the limit is {LENGTH_LIMIT}"):
        parse_expression(longest + " ")
    parse_expression("&".join(["1"] * TERM_LIMIT))
    with pytest.raises(InputError, match=f"this is term {TERM_LIMIT + 1}; the limit is {TERM_LIMIT}"):
        parse_expression("&".join(["1"] * (TERM_LIMIT + 1)))
    for sign, end in (("(", ")"), ("!", "")):
        parse_expression(sign * DEPTH_LIMIT + "1" + end * DEPTH_LIMIT)
        with pytest.raises(InputError, match=f"the limit is {DEPTH_LIMIT}: write it flatter"):
            parse_expression(sign * 2000 + "1")


@given(st.text(alphabet="0159.e+-<>=&|!() \n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expression = parse_expression(text)
    except InputError:
        return
    assert parse_expression(str(expression)) == expression
