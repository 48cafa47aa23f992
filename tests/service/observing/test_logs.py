import asyncio
import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observing.logs import log_event, log_soon, new_request_id, open_logs, request_id


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


async def test_lines_of_requests_are_written_together_soon(lines):
    for number in range(3):
        request_id.set(f"id-{number}")
        log_soon("answered", number=number)
    assert lines() == []
    request_id.set("later")
    async with asyncio.timeout(10):
        while not lines():
            await asyncio.sleep(0.01)
    written = [json.loads(line) for line in lines()]
    assert [(line["event"], line["level"], line["request_id"], line["number"]) for line in written] == [
        ("answered", "info", f"id-{number}", number) for number in range(3)
    ]
    assert sorted(line["time"] for line in written) == [line["time"] for line in written]
    log_soon("answered", number=3)
    async with asyncio.timeout(10):
        while len(lines()) < 4:
            await asyncio.sleep(0.01)


async def test_what_is_written_at_once_comes_behind_what_was_gathered(lines):
    log_soon("answered")
    log_event("defect", level=logging.ERROR)
    assert [json.loads(line)["event"] for line in lines()] == ["answered", "defect"]


async def test_the_end_of_the_process_loses_no_line(lines):
    log_soon("answered")
    logging.getLogger().handlers[0].flush()  # as `logging.shutdown` does
    assert [json.loads(line)["event"] for line in lines()] == ["answered"]


class FullStream(io.StringIO):
    """A disk without room, or a pipe whose reader has gone."""

    def write(self, _):
        raise OSError("no room")


async def test_a_stream_that_takes_nothing_fails_nobody_who_writes(capsys):
    root, service = logging.getLogger(), logging.getLogger("phosphene.service")
    before, level, own_level = root.handlers[:], root.level, service.level
    open_logs("info", FullStream())
    try:
        log_soon("answered")
        log_event("defect")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        service.setLevel(own_level)
    assert "no room" in capsys.readouterr().err


def test_without_an_event_loop_a_line_is_written_at_once(lines):
    log_soon("answered")
    assert [json.loads(line)["event"] for line in lines()] == ["answered"]


async def test_lines_below_the_level_are_not_gathered():
    root, service = logging.getLogger(), logging.getLogger("phosphene.service")
    before, level, own_level = root.handlers[:], root.level, service.level
    stream = io.StringIO()
    open_logs("warning", stream)
    try:
        log_soon("answered")
        root.handlers[0].flush()
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        service.setLevel(own_level)
    assert stream.getvalue() == ""


@given(st.none() | st.text(max_size=80))
def test_request_ids_are_always_plain(offered):
    identity = new_request_id(offered)
    assert 1 <= len(identity) <= 64
    assert all(character.isascii() and (character.isalnum() or character in "._-") for character in identity)
    if offered == identity:
        assert offered
