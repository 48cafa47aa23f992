"""Every request is counted once as received and once as how it ended, as callers saw it; nothing is left in hand."""

import asyncio
from collections import Counter, defaultdict

import grpc
import grpc.aio
import pytest

from phosphene.v1 import explain_pb2, service_pb2_grpc
from service.observing.metric_labels import outcome_of_code
from tests.service.fingerprints import Worlds, by_bytes, by_digest, picture
from tests.service.own_process import own_process
from tests.service.scraping import page
from tests.service.swarm import GARBAGE, Mix, Swarm

_HANG_S = 60
IN_HAND = (
    'phosphene_queue_depth_items{lane="interactive"}',
    'phosphene_queue_depth_items{lane="bulk"}',
    "phosphene_decode_depth_items",
    "phosphene_admitted_items",
    "phosphene_admitted_bytes",
    "phosphene_admitted_pixels",
    "phosphene_open_streams",
    "phosphene_queue_oldest_seconds",
)


class Books:
    """What the metrics page says of one method."""

    def __init__(self, found, method):
        mine = {name: int(value) for name, value in found.items() if f'method="{method}"' in name}
        self.received = mine[f'phosphene_requests_received_total{{method="{method}"}}']
        self.codes, self.outcomes = Counter(), Counter()
        for name, value in mine.items():
            labels = dict(part.split("=") for part in name[name.index("{") + 1 : -1].replace('"', "").split(","))
            if name.startswith("phosphene_requests_total"):
                self.codes[labels["code"]] += value
            elif name.startswith("phosphene_request_duration_seconds_count"):
                self.outcomes[labels["outcome"]] += value
        self.codes += Counter()
        self.outcomes += Counter()


REASONS = {
    "INTERNAL": ("internal",),
    "INVALID_ARGUMENT": ("invalid",),
    "NOT_FOUND": ("not_found",),
    "RESOURCE_EXHAUSTED": ("overloaded", "rate_limited"),
    "FAILED_PRECONDITION": ("precondition",),
    "UNAVAILABLE": ("unavailable",),
    "UNAUTHENTICATED": ("unauthenticated",),
}
"""What a request that ended in a code is counted as; those of the contract that nobody asks for here are left out."""


def refused(found, *reasons):
    return sum(int(found[f'phosphene_refused_requests_total{{reason="{reason}"}}']) for reason in reasons)


async def settled(metrics):
    """The page once nothing is in hand any more: callers that left may be noticed after they are gone."""
    async with asyncio.timeout(_HANG_S):
        while True:
            found = await page(metrics)
            books = [Books(found, method) for method in ("Explain", "ExplainImages")]
            is_over = all(each.received == each.outcomes.total() for each in books)
            if is_over and not any(found[name] for name in IN_HAND):
                return found, *books


@pytest.mark.parametrize("count", [1500, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_the_books_balance_after_callers_of_every_kind(count):
    async with own_process(PHOSPHENE_QUEUE_IMAGES="512", PHOSPHENE_CACHE_BYTES="65536") as process:
        address, metrics, _ = await process.addresses()
        mix = Mix(pictures=500, leavers=0.2, hurried=0.2, poison=0.05, garbage=0.05)
        async with Swarm(address, Worlds().both, mix) as swarm:
            await swarm.ask(count, singles=24, streams=3)
        told = swarm.told
        assert not told.wrong
        found, single, streams = await settled(metrics)
        for books, seen in ((single, told.single), (streams, told.streams)):
            assert books.received == books.codes.total() == books.outcomes.total()
            by_code = defaultdict(int)
            for code, value in books.codes.items():
                by_code[outcome_of_code(code)] += value
            assert by_code == dict(books.outcomes)
            # Whoever left or was in a hurry cannot know how far the service had come, or whether it ever heard.
            gone = seen["CANCELLED"] + seen["DEADLINE_EXCEEDED"]
            assert seen.total() - gone <= books.received <= seen.total()
            for code in {*seen, *books.codes} - {"CANCELLED", "DEADLINE_EXCEEDED"}:
                assert seen[code] <= books.codes[code] <= seen[code] + gone, code
        ends = single.codes + streams.codes
        for code, reasons in REASONS.items():
            assert refused(found, *reasons) == ends[code], code
        # A deadline that ended the call itself was no refusal.
        assert refused(found, "expired") <= ends["DEADLINE_EXCEEDED"]
        assert set(ends) <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED", *REASONS}


async def test_callers_who_wait_see_exactly_what_is_counted():
    # A full queue refuses only whom the machine lets come fast enough; the rate refuses the last eighty of anybody.
    limits = {"PHOSPHENE_QUEUE_IMAGES": "4", "PHOSPHENE_RATE_PER_S": "0.001", "PHOSPHENE_RATE_BURST": "200"}
    async with own_process(PHOSPHENE_CACHE_BYTES="0", **limits) as process:
        address, metrics, _ = await process.addresses()
        async with grpc.aio.insecure_channel(str(address)) as channel:
            stub = service_pb2_grpc.PhospheneServiceStub(channel)

            async def ends_as(request):
                try:
                    await stub.Explain(request, timeout=_HANG_S)
                except grpc.aio.AioRpcError as error:
                    return error.code().name
                return "OK"

            kinds = (
                lambda number: by_bytes(picture(number)),
                lambda number: by_bytes(picture(number)),
                lambda number: by_bytes(picture(number, is_poison=True)),
                lambda number: by_bytes(GARBAGE),
                lambda number: by_digest(picture(number)),
                lambda number: by_bytes(picture(number), bundle="nobody's"),
                lambda number: explain_pb2.ExplainRequest(),
            )
            requests = [kinds[number % len(kinds)](number) for number in range(40 * len(kinds))]
            seen = Counter(await asyncio.gather(*map(ends_as, requests)))
        assert {"OK", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"} <= set(seen)
        found, single, _ = await settled(metrics)
        assert single.codes == seen
        assert seen["RESOURCE_EXHAUSTED"] >= len(requests) - 200
        for code, reasons in REASONS.items():
            assert refused(found, *reasons) == seen[code]
        total = sum(value for name, value in found.items() if name.startswith("phosphene_refused_requests_total"))
        assert total == len(requests) - seen["OK"]
