"""Client and AsyncClient against a service in this process: what they send, and what they give back."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args

import pytest

from phosphene.client import AdminClient, AsyncClient, Client
from phosphene.client.options import ExplainPartName, NeuronOrderName, NeuronPartName
from phosphene.client.requests import explain_request, image_query
from phosphene.errors import ImageTooLarge, ImageUnreadable, InputError, ServiceError, SettingError
from phosphene.v1.explain_pb2 import ExplainPart
from phosphene.v1.images_pb2 import ImageMetric
from phosphene.v1.neurons_pb2 import NeuronOrder, NeuronPart
from tests.client.fake_service import FakeService
from tests.client.sample_answers import NEURON_COUNT, drawing

SHA256 = "0123456789abcdef" * 4


async def collected(neurons: AsyncIterator[Any]) -> list[int]:
    return [neuron.neuron_id async for neuron in neurons]


def test_explain_sends_what_was_asked_and_nothing_else(client: Client, service: FakeService) -> None:
    image = drawing("crimson", "circle")
    answer = client.explain(image, parts=["neurons", "fidelity"], top_n=3, bundle="scenes")
    request = service.requests[-1]
    assert request.image.data == image
    assert list(request.parts) == [ExplainPart.EXPLAIN_PART_NEURONS, ExplainPart.EXPLAIN_PART_FIDELITY]
    assert (request.bundle, request.corpus, request.top_n) == ("scenes", "", 3)
    assert not request.HasField("nearest_count")
    assert not request.HasField("exemplars_per_neuron")
    assert not request.include_thumbnails
    assert len(answer.neurons) == 3


def test_images_may_be_bytes_paths_or_digests(client: Client, service: FakeService, tmp_path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(drawing("teal", "square", kind="PNG"))
    client.explain(path)
    client.explain(str(path))
    client.explain(sha256=SHA256)
    sources = [request.image for request in service.requests]
    assert sources[0].data == sources[1].data == path.read_bytes()
    assert sources[2].sha256 == SHA256


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda client: client.explain(), InputError, "exactly one"),
        (lambda client: client.explain(b"x", sha256=SHA256), InputError, "exactly one"),
        (lambda client: client.explain(sha256=SHA256.upper()), InputError, "64 lowercase hexadecimal"),
        (lambda client: client.explain("no/such.jpg"), ImageUnreadable, "does not exist"),
        (lambda client: client.explain("."), ImageUnreadable, "is a folder"),
        (lambda client: client.explain(b"x", parts=["latents"]), InputError, "it knows fidelity, neurons"),
        (lambda client: client.explain(b"x", top_n=-1), InputError, "top_n is -1"),
        (lambda client: client.explain(b"x", top_n=True), InputError, "top_n is True"),
        (lambda client: client.neuron(-1), InputError, "neuron_id is -1"),
        (lambda client: client.neuron(2**32), InputError, "neuron_id is 4294967296"),
        (lambda client: client.neuron(1, parts=["unspecified"]), InputError, "it knows top_images"),
        (lambda client: next(client.neurons(order="beauty")), InputError, "order names 'beauty'"),
        (lambda client: client.search_neurons(), InputError, "exactly one"),
        (lambda client: client.search_neurons("red", neuron_id=1), InputError, "exactly one"),
        (lambda client: client.search_images(), InputError, "exactly one"),
        (lambda client: client.search_images(b"x", neuron_id=1), InputError, "exactly one"),
        (lambda client: client.search_images(b"x", expression="1"), InputError, "exactly one"),
        (lambda client: client.search_images(neuron_id=1, expression="1"), InputError, "exactly one"),
        (lambda client: client.neuron(1, bin_count=-1), InputError, "bin_count is -1"),
        (lambda client: client.neuron(1, co_active_count=-1), InputError, "co_active_count is -1"),
        (lambda client: client.image("abc"), InputError, "64 lowercase hexadecimal"),
        (lambda client: client.search_neurons("r\udcffd"), InputError, r"text is 'r\\udcffd', which holds half a"),
        (lambda client: client.search_images(text="\ud83d"), InputError, "text is '.*', which holds half a character"),
        (lambda client: client.search_images(expression="\udc80"), InputError, "expression is"),
        (lambda client: client.explain(b"x", bundle="\udc80"), InputError, "bundle is"),
        (lambda client: client.neuron(1, corpus="\udc80"), InputError, "corpus is"),
        (lambda client: client.model("\udc80"), InputError, "bundle is"),
        (lambda client: client.image("a" * 64, corpus="\udc80"), InputError, "corpus is"),
        (lambda client: next(client.neurons(name_contains="\udc80")), InputError, "name_contains is"),
    ],
)
def test_what_no_request_can_hold_is_refused_before_it_is_sent(
    client: Client, service: FakeService, ask: Callable[[Client], Any], error: type[InputError], said: str
) -> None:
    with pytest.raises(error, match=said):
        ask(client)
    assert not service.requests


def test_an_image_above_the_limit_is_refused_before_it_is_sent(service: FakeService, tmp_path) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(5000))
    with Client(service.address, image_limit_bytes=4096) as client:
        with pytest.raises(ImageTooLarge, match="5003 bytes; the limit is 4096 bytes"):
            client.explain(path)
        with pytest.raises(ImageTooLarge, match="5003 bytes; the limit is 4096 bytes"):
            client.explain(path.read_bytes())
    assert not service.requests


def test_an_image_at_the_limit_passes_both_ends(tmp_path) -> None:
    limit_bytes = 16 * 2**20
    image = drawing("crimson", "circle").ljust(limit_bytes, b"\0")
    assert explain_request(image_query(image)).ByteSize() < limit_bytes + 2**20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timeout_s": 0}, "timeout_s is 0.0; give seconds above 0, and 86400 (a day) at most"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"timeout_s": 1e300}, "timeout_s is 1e+300; give seconds above 0, and 86400 (a day) at most"),
        ({"timeout_s": 1e12}, "timeout_s is 1000000000000.0"),
        ({"timeout_s": 86401}, "timeout_s is 86401.0"),
        ({"retries": -1}, "retries is -1"),
        ({"image_limit_bytes": 0}, "image_limit_bytes is 0; give 1 to 2146435071"),
        ({"image_limit_bytes": 2**31 - 2**20}, "image_limit_bytes is 2146435072; give 1 to 2146435071"),
    ],
)
async def test_what_no_call_can_keep_to_is_refused(settings: dict[str, Any], said: str) -> None:
    kinds: list[Any] = [Client, AsyncClient]
    if "timeout_s" in settings:
        kinds.append(AdminClient)
    for kind in kinds:
        with pytest.raises(SettingError, match=re.escape(said)) as caught:
            kind("127.0.0.1:1", **settings)
        assert caught.value.field == next(iter(settings))


async def test_the_widest_bounds_are_kept(service: FakeService) -> None:
    widest: dict[str, Any] = {"timeout_s": 24 * 60 * 60, "image_limit_bytes": 2**31 - 1 - 2**20}
    with Client(service.address, **widest) as client:
        client.model()
        assert [position for position, _ in client.explain_images([b"\xff\xd8"])] == [0]
    async with AsyncClient(service.address, **widest) as client:
        await client.model()
        assert [position async for position, _ in client.explain_images([b"\xff\xd8"])] == [0]
    assert all(86000 < left_s < 86500 for left_s in (service.remaining_s[0], service.remaining_s[2]))


def test_names_of_choices_are_those_of_the_contract() -> None:
    def names(enum: Any, prefix: str) -> set[str]:
        return {key.removeprefix(prefix).lower() for key in enum.keys()} - {"unspecified"}  # noqa: SIM118

    assert set(get_args(ExplainPartName)) == names(ExplainPart, "EXPLAIN_PART_")
    assert set(get_args(NeuronPartName)) == names(NeuronPart, "NEURON_PART_")
    assert set(get_args(NeuronOrderName)) == names(NeuronOrder, "NEURON_ORDER_")


def test_neuron_zero_is_asked_for_by_name(client: Client, service: FakeService) -> None:
    answer = client.neuron(0, parts=["top_images"], exemplar_count=4)
    assert service.requests[-1].HasField("neuron_id")
    assert service.requests[-1].exemplar_count == 4
    assert answer.neuron.neuron_id == 0
    assert not service.requests[-1].HasField("bin_count")
    client.neuron(0, parts=["histogram", "co_active_neurons"], bin_count=5, co_active_count=3)
    assert (service.requests[-1].bin_count, service.requests[-1].co_active_count) == (5, 3)


def test_neurons_walks_over_all_pages(client: Client, service: FakeService) -> None:
    listed = list(client.neurons(order="density", name_contains="red", min_density=0.0, page_size=100))
    assert [neuron.neuron_id for neuron in listed] == list(range(NEURON_COUNT))
    assert [request.page_token for request in service.requests] == ["", "100", "200"]
    for request in service.requests:
        assert request.order == NeuronOrder.NEURON_ORDER_DENSITY
        assert request.filter.name_contains == "red"
        assert request.filter.HasField("min_density")
        assert not request.filter.HasField("max_density")


def test_neurons_fetches_a_page_only_when_it_is_reached(client: Client, service: FakeService) -> None:
    neurons = client.neurons(page_size=10)
    assert not service.requests
    for _ in range(10):
        next(neurons)
    assert len(service.requests) == 1
    next(neurons)
    assert len(service.requests) == 2


def test_searches_send_their_query(client: Client, service: FakeService) -> None:
    assert len(client.search_neurons("red stripes", count=3).neurons) == 3
    assert service.requests[-1].text == "red stripes"
    assert len(client.search_neurons(neuron_id=0).neurons) == 10
    assert service.requests[-1].WhichOneof("query") == "neuron_id"
    assert len(client.search_images(neuron_id=0, count=2).images) == 2
    assert service.requests[-1].WhichOneof("query") == "neuron_id"
    client.search_images(sha256=SHA256)
    assert service.requests[-1].image.sha256 == SHA256
    assert client.search_images(expression="12>0.5 & 907 & !55").total_count == 340
    assert service.requests[-1].WhichOneof("query") == "expression"
    assert service.requests[-1].expression == "12>0.5 & 907 & !55"
    client.search_images(text="red stripes")
    assert service.requests[-1].text == "red stripes"
    client.search_images(sha256=SHA256, similarity="residual_cosine")
    assert service.requests[-1].similarity == ImageMetric.IMAGE_METRIC_RESIDUAL_COSINE
    client.search_images(sha256=SHA256, only_neuron_ids=[3, 5])
    assert list(service.requests[-1].only_neuron_ids) == [3, 5]
    with pytest.raises(InputError, match="similarity"):
        client.search_images(sha256=SHA256, similarity="taste")


def test_images_and_models(client: Client) -> None:
    assert client.image(SHA256).row == 7
    assert client.thumbnail(SHA256).startswith(b"\xff\xd8")
    assert [model.bundle for model in client.models()] == ["scenes"]
    assert client.model().site.text == "block 5, patches"


def test_every_call_carries_the_deadline(client: Client, service: FakeService) -> None:
    client.model()
    client.explain(b"\xff\xd8")
    assert all(0 < remaining_s <= 10.5 for remaining_s in service.remaining_s)


async def test_the_asynchronous_client_sends_and_gives_the_same(service: FakeService) -> None:
    image = drawing("crimson", "circle")
    asked: list[Callable[[Any], Any | Awaitable[Any]]] = [
        lambda client: client.explain(image, parts=["neurons"], top_n=2),
        lambda client: client.neuron(0, parts=["spread_images"]),
        lambda client: client.neurons_page(order="mean", page_size=3, alive_only=True),
        lambda client: client.search_neurons("red", include_top_images=True, exemplars_per_neuron=2),
        lambda client: client.search_images(image, count=3),
        lambda client: client.search_images(expression="1 & !2", count=3),
        lambda client: client.image(SHA256),
        lambda client: client.thumbnail(SHA256),
        lambda client: client.models(),
        lambda client: client.model(),
    ]
    async with AsyncClient(service.address, timeout_s=10) as asynchronous:
        answers = [await ask(asynchronous) for ask in asked]
        listed = await collected(asynchronous.neurons(page_size=100))
    sent, service.requests = service.requests, []
    with Client(service.address, timeout_s=10) as synchronous:
        assert [ask(synchronous) for ask in asked] == answers
        assert (
            [neuron.neuron_id for neuron in synchronous.neurons(page_size=100)] == listed == list(range(NEURON_COUNT))
        )
    assert listed == list(range(NEURON_COUNT))
    assert service.requests == sent


async def test_a_closed_client_says_so(service: FakeService) -> None:
    client, asynchronous = Client(service.address), AsyncClient(service.address)
    client.close()
    await asynchronous.close()
    said = "the client of .* is closed; open another"
    with pytest.raises(ServiceError, match=said):
        client.models()
    with pytest.raises(ServiceError, match=said):
        client.explain_images([drawing("red", "ring")])
    with pytest.raises(ServiceError, match=said):
        await asynchronous.models()
    with pytest.raises(ServiceError, match=said):
        asynchronous.explain_images([drawing("red", "ring")])
