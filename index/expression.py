"""Neuron expressions: which neurons an image must fire, and which not; the grammar, its values and its parser.

    expression  = conjunction { "|" conjunction }
    conjunction = factor { "&" factor }
    factor      = "!" factor | "(" expression ")" | term
    term        = neuron [ (">" | ">=" | "<" | "<=") number ]

`12>0.5 & 907 & !55` asks for images on which neuron 12 is above 0.5, 907 fires and 55 does not. A neuron alone means
that it fires (`> 0`); a neuron that does not fire has activation 0, so `12<0.5` holds there too. `&` binds closer than
`|`. `str` of an expression parses to the same expression. Knows nothing of codes or files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never

from phosphene.errors import InputError, NotFound

__all__ = [
    "DEPTH_LIMIT",
    "LENGTH_LIMIT",
    "TERM_LIMIT",
    "And",
    "Comparison",
    "Expression",
    "Not",
    "Or",
    "Term",
    "named_neurons",
    "parse_expression",
]

LENGTH_LIMIT = 2048
"""Characters in an expression."""
TERM_LIMIT = 64
"""Terms in an expression."""
DEPTH_LIMIT = 16
"""Parentheses and `!` around a term."""
_NEURON_LIMIT = 1 << 31
_TOKEN = re.compile(r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<sign>>=|<=|[><&|!()])")
_SPACE = " \t\r\n"
_FIELD = "expression"


class Comparison(StrEnum):
    """How an activation is compared with a threshold."""

    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    LESS = "<"
    LESS_OR_EQUAL = "<="


@dataclass(frozen=True, kw_only=True)
class Term:
    """A condition on one neuron; as it stands, that it fires."""

    neuron_id: int
    """Which neuron, at least 0."""
    comparison: Comparison = Comparison.GREATER
    """How its activation is compared."""
    threshold: float = 0.0
    """With what; at least 0. Unit: activation."""

    def __str__(self) -> str:
        """Return it as it is written."""
        if self.comparison is Comparison.GREATER and self.threshold == 0:
            return str(self.neuron_id)
        return f"{self.neuron_id}{self.comparison.value}{repr(self.threshold).removesuffix('.0')}"


@dataclass(frozen=True, kw_only=True)
class Not:
    """Holds where its part does not."""

    part: Expression
    """What must not hold."""

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"!{_grouped(self.part)}" if isinstance(self.part, And | Or) else f"!{self.part}"


@dataclass(frozen=True, kw_only=True)
class And:
    """Holds where all parts do."""

    parts: tuple[Expression, ...]
    """At least two."""

    def __str__(self) -> str:
        """Return it as it is written."""
        return " & ".join(_grouped(part) if isinstance(part, And | Or) else str(part) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Or:
    """Holds where any part does."""

    parts: tuple[Expression, ...]
    """At least two."""

    def __str__(self) -> str:
        """Return it as it is written."""
        return " | ".join(_grouped(part) if isinstance(part, Or) else str(part) for part in self.parts)


Expression = Term | Not | And | Or
"""What an image must fire."""


def _grouped(part: Expression) -> str:
    return f"({part})"


def parse_expression(text: str, *, neuron_count: int = _NEURON_LIMIT) -> Expression:
    """Read an expression.

    Args:
        text: as a user writes it.
        neuron_count: neurons of the sparse autoencoder; every neuron id must be smaller.

    Raises:
        InputError: it is too long, too deep or not an expression; the message names the column, 1-based.
        NotFound: it names a neuron that does not exist.
    """
    if len(text) > LENGTH_LIMIT:
        raise InputError(
            f"the expression has {len(text)} characters; the limit is {LENGTH_LIMIT}: ask for fewer neurons",
            field=_FIELD,
        )
    parser = _Parser(_tokens(text), neuron_count)
    expression = parser.disjunction(0)
    parser.expect_end()
    return expression


def named_neurons(expression: Expression) -> frozenset[int]:
    """Return the neurons that an expression names."""
    match expression:
        case Term(neuron_id=neuron_id):
            return frozenset({neuron_id})
        case Not(part=part):
            return named_neurons(part)
        case And(parts=parts) | Or(parts=parts):
            return frozenset().union(*map(named_neurons, parts))
        case _:
            assert_never(expression)


class _Token(NamedTuple):
    """A piece of the text; the last one is empty."""

    column: int
    text: str
    is_number: bool


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    while place < len(text):
        if text[place] in _SPACE:
            place += 1
            continue
        match = _TOKEN.match(text, place)
        if match is None:
            raise _error(place + 1, f"{text[place]!r} means nothing here", "write neurons, & | ! ( ) and > >= < <=")
        tokens.append(_Token(place + 1, match.group(), match.lastgroup == "number"))
        place = match.end()
    return [*tokens, _Token(len(text) + 1, "", is_number=False)]


class _Parser:
    """Reads tokens from left to right, one function for each rule of the grammar."""

    def __init__(self, tokens: list[_Token], neuron_count: int) -> None:
        self._tokens = tokens
        self._place = 0
        self._term_count = 0
        self._neuron_count = neuron_count

    def disjunction(self, depth: int) -> Expression:
        parts = [self._conjunction(depth)]
        while self._take("|"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Or(parts=tuple(parts))

    def expect_end(self) -> None:
        token = self._tokens[self._place]
        if token.text == ")":
            raise _error(token.column, "')' closes nothing", "open it with '(' or take it out")
        if token.text:
            raise _error(token.column, f"{token.text!r} follows a whole expression", "join the two with & or |")

    def _conjunction(self, depth: int) -> Expression:
        parts = [self._factor(depth)]
        while self._take("&"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else And(parts=tuple(parts))

    def _factor(self, depth: int) -> Expression:
        token = self._tokens[self._place]
        if depth > DEPTH_LIMIT:
            raise _error(
                token.column, f"{depth} parentheses and '!' are open; the limit is {DEPTH_LIMIT}", "write it flatter"
            )
        if self._take("!"):
            return Not(part=self._factor(depth + 1))
        if self._take("("):
            inner = self.disjunction(depth + 1)
            if not self._take(")"):
                raise _error(self._tokens[self._place].column, f"the '(' of column {token.column} is open", "close it")
            return inner
        return self._term()

    def _term(self) -> Term:
        token = self._tokens[self._place]
        if not token.is_number:
            raise _error(token.column, f"{_shown(token)} where a neuron is due", "write a neuron id, such as 12")
        if not token.text.isdecimal():
            raise _error(token.column, f"neuron {token.text} is no whole number", "write a neuron id, such as 12")
        if len(token.text) > len(str(_NEURON_LIMIT)) or int(token.text) >= self._neuron_count:
            raise NotFound(
                f"column {token.column}: neuron {token.text} does not exist; neurons are 0 to {self._neuron_count - 1}",
                field=_FIELD,
                name=token.text,
            )
        self._term_count += 1
        if self._term_count > TERM_LIMIT:
            raise _error(token.column, f"this is term {self._term_count}; the limit is {TERM_LIMIT}", "ask for fewer")
        self._place += 1
        for comparison in Comparison:
            if self._take(comparison.value):
                return Term(neuron_id=int(token.text), comparison=comparison, threshold=self._threshold())
        return Term(neuron_id=int(token.text))

    def _threshold(self) -> float:
        token = self._tokens[self._place]
        if not token.is_number:
            raise _error(token.column, f"{_shown(token)} where a threshold is due", "write a number of at least 0")
        threshold = float(token.text)
        if not math.isfinite(threshold):
            raise _error(token.column, f"{token.text} is too large", "activations are at most 65504")
        self._place += 1
        return threshold

    def _take(self, sign: str) -> bool:
        taken = self._tokens[self._place].text == sign
        self._place += taken
        return taken


def _shown(token: _Token) -> str:
    return repr(token.text) if token.text else "the end"


def _error(column: int, what: str, remedy: str) -> InputError:
    return InputError(f"column {column} of the expression: {what}: {remedy}", field=_FIELD)
