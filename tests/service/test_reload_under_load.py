"""Reloads while callers ask: nobody notices, each answer is one generation's own; what goes wrong changes nothing."""

import asyncio
import os
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from phosphene.current import save_current
from phosphene.encoder import Family
from phosphene.errors import ArtefactDamaged, ArtefactMismatch
from phosphene.v1 import admin_pb2, admin_pb2_grpc, explain_pb2, service_pb2_grpc, values_pb2
from service.settings import ArtefactSettings
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus
from tests.service.conftest import ANY_PORT, serving, serving_artefacts, settings_with
from tests.service.fingerprints import BROKEN, Worlds, by_bytes, is_of, picture
from tests.service.own_process import own_process
from tests.service.scraping import page

CALLERS = 16
RELOAD = admin_pb2.ReloadRequest()
_GROWTH_LIMIT_BYTES = 24 * 2**20
_HANG_S = 60


class Asking:
    """Callers that ask without end; counts answers, notes which generation gave which content."""

    def __init__(self, stub, worlds):
        self.bundles = {}
        """Bundle of each generation that has answered."""
        self.answer_count = 0
        self._stub = stub
        self._worlds = worlds
        self._number = 0
        self._heard = asyncio.Condition()

    async def __aenter__(self):
        self._callers = [asyncio.create_task(self._ask()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *exit):
        for caller in self._callers:
            caller.cancel()
        ends = await asyncio.gather(*self._callers, return_exceptions=True)
        if exit[0] is None:
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends

    async def more(self, count):
        """Wait for so many more answers; a caller that fails ends the wait."""
        wanted = self.answer_count + count
        async with asyncio.timeout(_HANG_S), self._heard:
            await self._heard.wait_for(lambda: self.answer_count >= wanted or self._has_failed())
        assert not self._has_failed(), [caller.exception() for caller in self._callers if caller.done()]

    def _has_failed(self):
        return any(caller.done() for caller in self._callers)

    async def _ask(self):
        try:
            while True:
                self._number += 1
                one = picture(self._number)
                answer = await self._stub.Explain(by_bytes(one), timeout=_HANG_S)
                assert is_of(answer, one, self._worlds), answer
                generation, bundle = answer.provenance.generation, answer.provenance.bundle_id
                assert self.bundles.setdefault(generation, bundle) == bundle
                self.answer_count += 1
                await self._tell()
        except Exception:
            await self._tell()
            raise

    async def _tell(self):
        async with self._heard:
            self._heard.notify_all()


@asynccontextmanager
async def operated(process):
    """A stub for callers, one for operators, and where the metrics are."""
    address, metrics, admin = await process.addresses()
    async with grpc.aio.insecure_channel(str(address)) as calls, grpc.aio.insecure_channel(str(admin)) as orders:
        yield service_pb2_grpc.PhospheneServiceStub(calls), admin_pb2_grpc.AdminServiceStub(orders), metrics


def resident_bytes(process):
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("reload_count", [50, pytest.param(400, marks=pytest.mark.slow)])
async def test_reloads_under_load_fail_nobody_and_keep_no_memory(reload_count):
    async with own_process(PHOSPHENE_CACHE_BYTES="0") as process, operated(process) as (stub, operator, metrics):
        async with Asking(stub, Worlds().both) as asking:
            for number in range(reload_count):
                if number == reload_count // 4:
                    before_bytes = resident_bytes(process)
                assert (await operator.Reload(RELOAD)).switched
                await asking.more(CALLERS // 2)
        assert sorted(asking.bundles.values()) == ["a" * 64, "d" * 64]
        assert resident_bytes(process) - before_bytes < _GROWTH_LIMIT_BYTES
        found = await page(metrics)
        assert found['phosphene_reloads_total{result="switched"}'] == reload_count
        assert found['phosphene_requests_total{code="OK",method="Explain"}'] >= asking.answer_count
        assert sum(name.startswith("phosphene_generation_info") for name in found) == 1


async def test_a_hangup_reloads_and_nothing_that_goes_wrong_changes_what_is_served(tmp_path):
    named = tmp_path / "named"
    named.write_text("0")
    async with own_process(str(named)) as process, operated(process) as (stub, operator, metrics):
        async with Asking(stub, Worlds().both) as asking:
            await asking.more(CALLERS)
            named.write_text("1")
            process.child.send_signal(signal.SIGHUP)
            await process.line("generation", 2)
            await asking.more(2 * CALLERS)
            assert sorted(asking.bundles.values()) == ["a" * 64, "d" * 64]
            serving_now = (await operator.GetStatus(admin_pb2.GetStatusRequest())).generation
            for occurrence, fault in enumerate(("broken", "defect", "broken"), 1):
                named.write_text(fault)
                process.child.send_signal(signal.SIGHUP)
                await process.line("reload refused", occurrence)
                await asking.more(CALLERS)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await operator.Reload(RELOAD, timeout=_HANG_S)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert str(BROKEN) in caught.value.details()
            assert (await operator.GetStatus(admin_pb2.GetStatusRequest())).generation == serving_now
            assert (await page(metrics))['phosphene_reloads_total{result="refused"}'] == 4
            named.write_text("0")
            assert (await operator.Reload(RELOAD)).switched
            assert not (await operator.Reload(RELOAD, timeout=_HANG_S)).switched
        process.child.send_signal(signal.SIGTERM)
        assert await process.end() == 0


class HeldWorlds(Worlds):
    """Opens once it may."""

    def __init__(self):
        super().__init__()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.is_opening = asyncio.Event()

    def make_opener(self, settings, on_stage):
        open_now = super().make_opener(settings, on_stage)

        @asynccontextmanager
        async def open_later(before):
            self.is_opening.set()
            await self.may_open.wait()
            async with open_now(before) as catalogue:
                yield catalogue

        return open_later

    @property
    def open_count(self):
        """Catalogues that are open now."""
        return sum(world.open_count - world.closed_count for world in self.both)


@asynccontextmanager
async def held():
    """A service whose next reload waits for leave to open, and a stub for operators."""
    worlds = HeldWorlds()
    settings = settings_with(network={"admin_listen": ANY_PORT})
    async with serving(settings=settings, make_opener=worlds.make_opener) as running:
        worlds.may_open.clear()
        worlds.is_opening.clear()
        worlds.switch()
        async with grpc.aio.insecure_channel(str(running.admin_address)) as channel:
            try:
                yield running, worlds, admin_pb2_grpc.AdminServiceStub(channel)
            finally:
                worlds.may_open.set()
    assert worlds.open_count == 0


async def answered_by(running, world, number=7):
    one = picture(number)
    answer = await running.stub.Explain(by_bytes(one), timeout=_HANG_S)
    assert is_of(answer, one, [world])


async def test_a_second_reload_meanwhile_is_told_so(caplog):
    async with held() as (running, worlds, operator):
        first = asyncio.ensure_future(operator.Reload(RELOAD))
        await worlds.is_opening.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator.Reload(RELOAD, timeout=_HANG_S)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        # Whoever sends a signal has nothing but the log.
        assert "reload refused" in caplog.messages
        await answered_by(running, worlds.both[0])
        worlds.may_open.set()
        assert (await first).switched
        await answered_by(running, worlds.both[1])
        assert worlds.open_count == 1


async def test_a_reload_goes_on_when_whoever_asked_for_it_leaves():
    async with held() as (running, worlds, operator):
        call = operator.Reload(RELOAD)
        await worlds.is_opening.wait()
        call.cancel()
        # Another one is told that this one goes on, for as long as it does.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator.Reload(RELOAD, timeout=_HANG_S)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        worlds.may_open.set()
        async with asyncio.timeout(_HANG_S):
            while (await running.stub.Explain(by_bytes(picture(1)))).provenance.bundle_id != worlds.both[1].bundle_id:
                pass
        assert worlds.open_count == 1


async def test_a_generation_is_closed_only_when_its_last_answer_is_made():
    async with held() as (running, worlds, operator):
        worlds.may_open.set()
        old = worlds.both[0]
        old.engine.gate.clear()
        one = picture(3)
        call = asyncio.ensure_future(running.stub.Explain(by_bytes(one), timeout=_HANG_S))
        await asyncio.to_thread(old.engine.entered.acquire)
        reload = asyncio.ensure_future(operator.Reload(RELOAD))
        # The new one is warmed behind the batch that is held, so it cannot answer before that ends.
        old.engine.gate.set()
        assert is_of(await call, one, [old])
        assert (await reload).switched
        await answered_by(running, worlds.both[1])
        assert (old.open_count, old.closed_count) == (1, 1)


async def test_a_full_queue_does_not_stop_a_reload():
    worlds = Worlds()
    # One caller may have four of five in hand.
    settings = settings_with(queue={"images": 5, "decode_worker_count": 1}, engine={"batch_images": 1})
    async with serving(settings=settings, make_opener=worlds.make_opener) as running:
        old = worlds.both[0]
        old.engine.gate.clear()
        calls = [running.stub.Explain(by_bytes(picture(number)), timeout=_HANG_S) for number in range(4)]
        async with asyncio.timeout(_HANG_S):
            while running.batcher.depth < 3:
                await asyncio.sleep(0.01)
        worlds.switch()
        reload = asyncio.create_task(running.replica.reload())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Explain(by_bytes(picture(9)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        old.engine.gate.set()
        assert await reload
        for number, call in enumerate(calls):
            assert is_of(await call, picture(number), [old])


@pytest.fixture(scope="module")
def generations(tmp_path_factory):
    """Two real generations on one encoder, each a bundle with its index, and an image of their corpus."""
    folder = tmp_path_factory.mktemp("generations")
    corpus = write_corpus(folder / "pictures", 8)
    config = IndexConfig(shard_image_count=8, batch_images=4, thread_count=1, top_count=4, spread_count=4)
    made = []
    for seed in (0, 1):
        bundle, index = write_bundle(folder, Family.CLIP, seed=seed), folder / f"index-{seed}"
        build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=index, config=config), Notes())
        made.append(({"scenes": bundle}, {"pictures": index}))
    return made, (folder / "pictures" / "0003.png").read_bytes()


async def test_real_artefacts_are_switched_as_one_and_a_damaged_one_is_not(generations, tmp_path):
    made, data = generations
    current = tmp_path / "CURRENT"

    def name(number):
        bundles, indexes = made[number]
        save_current(current, bundles=bundles, indexes=indexes)

    request = explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=data),
        parts=[explain_pb2.EXPLAIN_PART_CODE, explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES],
    )
    name(0)
    async with serving_artefacts(ArtefactSettings(current=current)) as running:
        answers = []
        for number in (0, 1, 0):
            name(number)
            assert await running.replica.reload() is (len(answers) > 0)
            answers.append(await running.stub.Explain(request))
        first, second, third = answers
        assert first == third
        for id_of in ("bundle_id", "code_id", "index_id", "generation"):
            assert getattr(first.provenance, id_of) != getattr(second.provenance, id_of), id_of
        assert first.code != second.code
        assert first.image.corpus_image.row == second.image.corpus_image.row == 3
        # Each half of it is whole, but they do not belong together.
        save_current(current, bundles=made[1][0], indexes=made[0][1])
        with pytest.raises(ArtefactMismatch):
            await running.replica.reload()
        damaged = tmp_path / "damaged"
        shutil.copytree(made[1][0]["scenes"], damaged)
        save_current(current, bundles={"scenes": damaged}, indexes=made[1][1])
        weights = next(damaged.glob("sae/*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
        with pytest.raises(ArtefactDamaged):
            await running.replica.reload()
        assert await running.stub.Explain(request) == first


async def test_a_hangup_before_it_serves_is_no_end():
    async with own_process() as process:
        await process.line("starting")
        process.child.send_signal(signal.SIGHUP)
        await process.line("serving")
