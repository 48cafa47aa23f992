import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observing.logs import log_event, new_request_id, open_logs, request_id


@pytest.fixture
def lines():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    open_logs("info", stream)
    yield lambda: stream.getvalue().splitlines()
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_one_json_object_with_its_request(lines):
    token = request_id.set("abc")
    log_event("answered", code="OK", duration_ms=1.5)
    request_id.reset(token)
    (line,) = map(json.loads, lines())
    assert (line["event"], line["level"], line["request_id"], line["code"]) == ("answered", "info", "abc", "OK")
    assert line["duration_ms"] == 1.5


def test_control_characters_and_newlines_stay_inside_the_line(lines):
    log_event("note", text='a\n{"event":"forged"}\x1b[31m\x7f\u2028')
    (line,) = lines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["text"].startswith("a\n")


def test_a_traceback_is_a_field(lines):
    try:
        raise RuntimeError("inner")
    except RuntimeError as error:
        log_event("defect", level=logging.ERROR, error=error)
    (line,) = map(json.loads, lines())
    assert "inner" in line["traceback"]
    assert line["level"] == "error"


@given(st.none() | st.text(max_size=80))
def test_request_ids_are_always_plain(offered):
    identity = new_request_id(offered)
    assert 1 <= len(identity) <= 64
    assert all(character.isascii() and (character.isalnum() or character in "._-") for character in identity)
    if offered == identity:
        assert offered
