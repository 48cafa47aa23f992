"""One decode worker without a pool: what it says, and when it ends by itself."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import ImageError
from phosphene.images import ImageLimits
from service.decoding.messages import (
    ERROR_KINDS,
    REPLY_BYTES,
    DecodeRequest,
    Ready,
    Refused,
    Succeeded,
    pack_reply,
    pack_request,
    unpack_reply,
    unpack_request,
)
from service.decoding.shared_area import SharedArea
from service.decoding.worker import WorkerSettings
from tests.service.decoding.pictures import SMALL, WIDE_PX, wide_picture

ROOT = Path(__file__).resolve().parents[2]
UNSIGNED = st.integers(0, 2**32 - 1)
REPLIES = st.one_of(
    st.just(Ready()),
    st.builds(
        Succeeded,
        format=st.sampled_from(["JPEG", "PNG", "WebP"]),
        drafted=st.booleans(),
        width=UNSIGNED,
        height=UNSIGNED,
    ),
    st.builds(Refused, kind=st.sampled_from(ERROR_KINDS), text_bytes=UNSIGNED),
)
SETTINGS = WorkerSettings(channel=0, area=0, limits=ImageLimits(), alarm_s=30.0, memory_limit_bytes=2**32)


@contextmanager
def worker(settings):
    """A worker that is ready, its socket and its memory."""
    ours, theirs = socket.socketpair()
    with ours, SharedArea.create() as area:
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "service.decoding.worker",
                    replace(settings, channel=theirs.fileno(), area=area.descriptor).to_argument(),
                ],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), area.descriptor),
            )
        with process:
            try:
                assert unpack_reply(ours.recv(REPLY_BYTES, socket.MSG_WAITALL)) == Ready()
                yield process, ours, area
            finally:
                process.kill()


def send_wide_picture(channel, area):
    config, data = json.dumps(SMALL.to_config()).encode(), wide_picture()
    area.reserve(len(config) + len(data))
    area.write(config, data)
    request = DecodeRequest(area_bytes=len(area), config_bytes=len(config), image_bytes=len(data))
    channel.sendall(pack_request(request))


def test_a_worker_ends_when_its_parent_closes_the_socket():
    with worker(SETTINGS) as (process, channel, _):
        channel.close()
        assert process.wait(20) == 0


def test_a_worker_whose_parent_went_in_the_middle_of_a_picture_ends_without_a_word():
    with worker(SETTINGS) as (process, channel, area):
        send_wide_picture(channel, area)
        channel.close()
        assert process.wait(60) == 0


def test_a_picture_that_never_ends_ends_the_worker_when_nobody_kills_it():
    with worker(replace(SETTINGS, alarm_s=0.05)) as (process, channel, area):
        send_wide_picture(channel, area)
        assert channel.recv(REPLY_BYTES) == b""
        assert process.wait(20) == -signal.SIGALRM


def test_a_picture_that_needs_more_memory_than_any_may_ends_the_worker():
    with worker(replace(SETTINGS, memory_limit_bytes=220 * 2**20)) as (process, channel, area):
        send_wide_picture(channel, area)
        assert channel.recv(REPLY_BYTES) == b""
        assert process.wait(20) == 1


def test_the_same_picture_is_decoded_where_there_is_memory():
    with worker(SETTINGS) as (_, channel, area):
        send_wide_picture(channel, area)
        reply = unpack_reply(channel.recv(REPLY_BYTES, socket.MSG_WAITALL))
        assert reply == Succeeded(format="PNG", drafted=False, width=WIDE_PX, height=WIDE_PX)


def test_settings_survive_the_command_line():
    assert WorkerSettings.from_argument(SETTINGS.to_argument()) == SETTINGS


@given(REPLIES)
def test_a_reply_survives_its_message(reply):
    message = pack_reply(reply)
    assert len(message) == REPLY_BYTES
    assert unpack_reply(message) == reply


@given(st.builds(DecodeRequest, area_bytes=UNSIGNED, config_bytes=UNSIGNED, image_bytes=UNSIGNED))
def test_a_request_survives_its_message(request):
    assert unpack_request(pack_request(request)) == request


@given(st.binary(min_size=REPLY_BYTES, max_size=REPLY_BYTES))
def test_whatever_a_worker_says_is_a_reply_or_refused(message):
    try:
        reply = unpack_reply(message)
    except ValueError:
        return
    assert isinstance(reply, Ready | Succeeded | Refused)


def test_every_kind_of_image_error_can_come_back():
    def kinds(error):
        return {error}.union(*(kinds(kind) for kind in error.__subclasses__()))

    assert set(ERROR_KINDS) == kinds(ImageError)


@given(st.lists(st.integers(1, 5 * 2**20), min_size=1, max_size=4))
def test_shared_memory_grows_on_both_sides_and_keeps_its_content(sizes):

    with SharedArea.create() as ours, SharedArea(os.dup(ours.descriptor)) as theirs:
        ours.write(b"first")
        for size_bytes in sizes:
            ours.reserve(size_bytes)
            assert len(ours) >= size_bytes
            theirs.follow(len(ours))
            assert len(theirs) == len(ours)
            assert theirs.read(0, 5) == b"first"
        theirs.write(b"back", b"!")
        assert ours.read(0, 5) == b"back!"
        assert ours.read_writable(4) == b"back"


def test_a_worker_cannot_take_memory_away_from_its_parent():
    with SharedArea.create() as area:
        with pytest.raises(PermissionError):
            os.ftruncate(area.descriptor, 1)
        area.write(b"still here")


def test_shared_memory_is_never_overrun():
    with SharedArea.create() as area, pytest.raises((IndexError, ValueError)):
        area.write(bytes(len(area) + 1))
