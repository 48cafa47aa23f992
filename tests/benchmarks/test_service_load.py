"""The parts of `make bench-service`: the stand-in device, the load, the figures; and our server under it."""

import asyncio
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.figures import musts, not_measured
from benchmarks.samples import Samples
from benchmarks.service_load.device import (
    BATCH_LIMIT,
    CEILING_PER_S,
    NEURON_COUNT,
    SIZE_PX,
    StandInDevice,
    batch_s,
    fingerprint,
)
from benchmarks.service_load.draft import compare, undraftable
from benchmarks.service_load.figures import FIGURES
from benchmarks.service_load.load import Tally, closed_loop, open_loop, quantile
from benchmarks.service_load.peers import CONSTRAINTS, litserve_settings, ray_settings
from benchmarks.service_load.photo_requests import Requests, with_serial
from benchmarks.service_load.photos import PREPROCESSING, due, large_photos, make_photos
from benchmarks.service_load.processes import is_alive, read_stat, running, says, tree_pids
from benchmarks.service_load.servers import Phase, ours, serving
from phosphene.codes import ImageCode
from phosphene.images import prepare


def jpeg(seed=0, *, width=96, height=64):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(stream, "JPEG")
    return stream.getvalue()


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (3, SIZE_PX, SIZE_PX), np.uint8)


@pytest.fixture
def device(tmp_path):
    with StandInDevice(tmp_path / "device") as opened:
        yield opened


def test_batches_run_one_after_another_also_from_another_process_handle(device, tmp_path):
    # Ten seconds of work: none of the others finds the device idle, however slow this machine is.
    first_s = [device.submit(16) for _ in range(100)][-1]
    with StandInDevice(tmp_path / "device") as other:
        second_s = other.submit(4)
    assert second_s - first_s == pytest.approx(batch_s(4))
    assert device.submit(1) - second_s == pytest.approx(batch_s(1))


def test_an_idle_device_begins_at_once(device):
    before_s = time.monotonic()
    assert device.submit(1) - before_s >= batch_s(1)


@pytest.mark.parametrize("count", [0, BATCH_LIMIT + 1])
def test_the_device_takes_no_other_batch(device, count):
    with pytest.raises(ValueError, match="1 to 16"):
        device.submit(count)


def test_the_ceiling_is_that_of_full_batches():
    assert batch_s(16) == pytest.approx(0.1)
    assert pytest.approx(160) == CEILING_PER_S


@given(st.integers(0, 2**32))
def test_a_fingerprint_is_ten_neurons_one_of_each_ten(seed):
    found = fingerprint(pixels(seed))
    assert [neuron // 10 for neuron in found] == list(range(10))
    assert max(found) < NEURON_COUNT


def test_a_fingerprint_tells_pixels_and_their_layout():
    image = pixels(1)
    assert fingerprint(image) == fingerprint(image.transpose(1, 2, 0).copy().transpose(2, 0, 1))
    assert fingerprint(image) != fingerprint(pixels(2))


def test_a_run_answers_for_each_image(device):
    batch = np.stack([pixels(seed) for seed in range(3)])
    assert device.run(batch) == [fingerprint(image) for image in batch]


@given(st.integers(0, 2**63))
def test_a_serial_number_changes_the_file_and_not_the_picture(serial):
    data = jpeg()
    numbered = with_serial(data, serial)
    assert numbered != data
    assert (prepare(numbered, PREPROCESSING).pixels == prepare(data, PREPROCESSING).pixels).all()


def test_serial_numbers_make_files_differ():
    assert len({with_serial(jpeg(), serial) for serial in range(50)}) == 50
    with pytest.raises(ValueError, match="not a JPEG"):
        with_serial(b"\x89PNG", 1)


def test_requests_judge_answers_by_the_photo_that_was_sent(tmp_path):
    photos = [jpeg(seed) for seed in range(3)]
    (tmp_path / "small").mkdir()
    for number, photo in enumerate(photos):
        (tmp_path / "small" / f"{number}.jpg").write_bytes(photo)
    (tmp_path / "expected.json").write_text(json.dumps({"small": [due(photo) for photo in photos]}))
    requests = Requests.read(tmp_path, size="small", decoding="whole")
    answers = [fingerprint(prepare(requests.data(serial), PREPROCESSING).pixels) for serial in range(6)]
    assert all(requests.is_right(serial, answer) for serial, answer in enumerate(answers))
    assert not requests.is_right(1, answers[0])
    later = Requests.read(tmp_path, size="small", decoding="whole", series=2)
    assert not {later.data(serial) for serial in range(6)} & {requests.data(serial) for serial in range(6)}
    assert later.is_right(1, answers[1])
    repeated = Requests.read(tmp_path, size="small", decoding="whole", is_repeated=True)
    assert repeated.data(0) == repeated.data(7) == photos[0]
    assert repeated.is_right(7, answers[0])
    anything = Requests.read(tmp_path, size="small", decoding=None)
    assert anything.is_right(0, (1,))
    assert not anything.is_right(0, ())


def test_a_photo_of_three_megapixels_is_drafted_and_its_png_is_not(tmp_path):
    sources = []
    for seed in range(3):
        sources.append(tmp_path / f"{seed}.jpg")
        sources[-1].write_bytes(jpeg(seed))
    (photo,) = large_photos(sources, 1)
    drafted, whole = prepare(photo, PREPROCESSING), prepare(undraftable(photo), PREPROCESSING)
    assert drafted.width * drafted.height == 3 * 2**20
    assert drafted.drafted
    assert not whole.drafted
    assert due(photo) == {"drafted": fingerprint(drafted.pixels), "whole": fingerprint(whole.pixels)}


async def test_a_closed_loop_has_one_request_of_each_caller_under_way():
    under_way, most, serials, edges = 0, 0, [], []

    async def ask(deadline_s, serial):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        serials.append(serial)
        await asyncio.sleep(0.002)
        under_way -= 1
        return "wrong" if serial % 2 else "answered"

    tally = await closed_loop(
        ask, callers=4, deadline_s=1, warm_s=0.02, measure_s=0.2, on_edge=lambda: edges.append(len(serials))
    )
    assert most == 4
    assert serials == list(range(len(serials)))
    counted = len(tally.latencies_s["answered"]) + len(tally.latencies_s["wrong"])
    assert 0 < counted < len(serials)
    assert len(edges) == 2


async def test_an_open_loop_sends_whether_or_not_answers_come():
    never = asyncio.Event()

    async def ask(deadline_s, serial):
        try:
            async with asyncio.timeout(deadline_s):
                await never.wait()
        except TimeoutError:
            return "expired"

    tally = await open_loop(ask, rate_per_s=200, deadline_s=0.5, warm_s=0.1, measure_s=0.2)
    assert {kind: len(found) for kind, found in tally.latencies_s.items()} == {"expired": 40}


async def test_a_request_that_could_not_be_sent_in_time_is_expired():
    asked = []

    async def ask(deadline_s, serial):
        asked.append(serial)
        time.sleep(0.05)  # the generator itself is held up
        return "answered"

    tally = await open_loop(ask, rate_per_s=100, deadline_s=0.02, warm_s=0, measure_s=0.2)
    assert len(asked) < 20
    assert len(tally.latencies_s["expired"]) == 20 - len(asked)


@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values, share):
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-9)


def test_a_window_without_answers_has_a_summary():
    summary = Tally(wall_s=2.0).summary()
    assert summary["answered"] == summary["refused"] == 0
    assert summary["p50_ms"] == 2000


def test_the_command_of_a_process_may_hold_anything():
    fields = " ".join(["S", "42", *["0"] * 9, "100", "50", "30", "20", "0"])
    parent, seconds = read_stat(f"7 (a) (b c) {fields}")
    assert parent == 42
    assert seconds == pytest.approx(2.0 * 100 / 100, rel=0.99)


def test_a_tree_holds_its_children_until_they_end():
    start = "p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0)"
    command = f"import subprocess, sys; {start}; print(p.pid); p.wait()"
    process = subprocess.Popen(
        [sys.executable, "-uc", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    assert {process.pid, child} <= set(tree_pids(process.pid))
    assert is_alive(child)
    process.communicate("\n")
    assert not is_alive(child)


def test_what_runs_ends_with_its_children(tmp_path):
    # The child notices the end of its parent, and nothing before.
    child = "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)"
    command = f"import signal, subprocess; {child}; print('ready', flush=True); signal.pause()"
    log = tmp_path / "log"
    with running((sys.executable, "-c", command), log=log, is_heard=True) as process:
        assert says(process, b"ready", limit_s=60, log=log)
        pids = tree_pids(process.pid)
        assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert log.read_text() == "ready\n"


def test_a_process_that_ends_without_a_word_is_told(tmp_path):
    log = tmp_path / "log"
    command = "import sys; print('no', flush=True); sys.stdin.read(); sys.stderr.write('reason')"
    with running((sys.executable, "-c", command), log=log, is_heard=True) as process:
        assert not says(process, b"ready", limit_s=60, log=log)
    assert log.read_text() in ("no\nreason", "reasonno\n")


def test_every_figure_needs_its_samples_and_holds_on_its_side():
    samples = Samples()
    assert musts(FIGURES, samples) == {}
    assert not_measured(FIGURES, samples) == [figure.name for figure in FIGURES]
    for value in (120.0, 150.0, 152.0):
        samples.add("ours.per_s", value)
    samples.add("litserve-single.per_s", 100.0)
    found = musts(FIGURES, samples)
    assert {name: must.value for name, must in found.items()} == {
        "served / ceiling, 32 callers (aim 0.97)": pytest.approx(150 / 160),
        "against LitServe with one copy of the model, 32 callers (aim its bound)": pytest.approx(1.5),
    }
    assert all(must.holds for must in found.values())
    assert len(not_measured(FIGURES, samples)) == len(FIGURES) - 2


def test_a_miss_against_litserve_tells_what_a_full_device_would_give():
    samples = Samples()
    samples.add("ours.per_s", 160.0)
    samples.add("litserve-single.per_s", 130.0)
    found = musts(FIGURES, samples)["against LitServe with one copy of the model, 32 callers (aim its bound)"]
    assert not found.holds
    assert found.verdict == "MISSED, bound 1.231"


def test_nothing_is_infinitely_better():
    samples = Samples()
    samples.add("ours.overload.per_s", 150.0)
    samples.add("litserve.overload.per_s", 0.0)
    assert musts(FIGURES, samples)["goodput against LitServe's at 2x overload (aim 10)"].value == 150


def test_codes_are_compared_over_all_neurons_and_over_those_that_both_hold():
    reference = ImageCode(neuron_ids=np.array([3, 1, 7], np.int32), values=np.array([3, 2, 1], np.float32))
    same = compare(reference, reference)
    assert (same.top_overlap, same.relative_l2, same.shared_l2) == (1, 0, 0)
    code = ImageCode(neuron_ids=np.array([3, 1, 8], np.int32), values=np.array([3, 2, 1], np.float32))
    moved = compare(code, reference)
    assert moved.top_overlap == pytest.approx(2 / 3)
    assert moved.relative_l2 == pytest.approx((2 / 14) ** 0.5)
    assert moved.shared_l2 == 0


def test_peers_are_pinned_and_their_settings_differ():
    pins = [line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    assert {"litserve==0.2.19", "ray==2.60.0"} <= set(pins)
    assert all("==" in pin for pin in pins if pin)
    for quick in (True, False):
        litserve, ray = litserve_settings(quick=quick), ray_settings(quick=quick)
        assert len({settings.to_json() for settings in (*litserve, *ray)}) == len(litserve) + len(ray)
        assert {settings.worker_count for settings in litserve} == {1, 2}


def test_what_runs_in_the_peers_environments_needs_nothing_of_ours():
    names = ("device", "generator", "load", "photo_requests", "processes")
    imports = "; ".join(f"import benchmarks.service_load.{name}" for name in names)
    ours_alone = "{'phosphene', 'service', 'torch', 'grpc', 'PIL', 'jaxtyping', 'rich'}"
    command = f"import sys; {imports}; sys.exit(str({ours_alone} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stderr.strip() == ""


@pytest.mark.slow
def test_our_server_answers_rightly_under_load(tmp_path):
    photos = make_photos(tmp_path / "photos")
    with serving(ours(), photos=photos, logs=tmp_path) as server:
        for size in ("small", "large"):
            found = server.ask(Phase(callers=4, measure_s=1.0, size=size))
            assert found["answered"] > 0
            assert (found["wrong"], found["failed"]) == (0, 0)
        assert found["server_cpu_s"] > 0
    assert not is_alive(server.pid)
