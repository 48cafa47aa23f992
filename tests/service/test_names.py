"""Another vocabulary under a running service: a reload shows its names, and says that it is another generation."""

import grpc.aio
import pytest

from index.build import BuildJob, build_index
from index.name_job import name_index
from index.plan import IndexConfig
from phosphene.current import save_current
from phosphene.v1 import admin_pb2, admin_pb2_grpc, neurons_pb2
from service.settings import ArtefactSettings, NamedPath
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus
from tests.service.conftest import ANY_PORT, serving_artefacts, settings_with

WORDS = tuple(
    f"{first} {second}" for first in ("warm", "cold", "old", "new", "far") for second in "abcdefghijklmnopqrst"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bundle, an index, and names beside it."""
    folder = tmp_path_factory.mktemp("names")
    bundle, corpus = write_bundle(folder), write_corpus(folder / "pictures", 120)
    config = IndexConfig(shard_image_count=32, batch_images=8, thread_count=1, top_count=32)
    build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=folder / "index", config=config), Notes())
    names, _ = name_index(folder / "index", folder / "names", WORDS, bundle=bundle)
    word = next(name["name"] for each in names.column.to_pylist() for name in each if name["source"] == "vocabulary")
    called = neurons_pb2.ListNeuronsRequest(filter=neurons_pb2.NeuronFilter(name_contains=word))
    return {"bundle": bundle, "index": folder / "index", "names": folder / "names", "word": word, "called": called}


async def test_a_reload_shows_the_new_names(world, tmp_path):
    current, base = tmp_path / "CURRENT", {"bundles": {"b": world["bundle"]}, "indexes": {"i": world["index"]}}
    save_current(current, **base)
    async with (
        serving_artefacts(
            ArtefactSettings(current=current), settings=settings_with(network={"admin_listen": ANY_PORT})
        ) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as orders,
    ):
        before = await running.stub.ListNeurons(world["called"])
        assert not before.neurons
        save_current(current, **base, names={"i": world["names"]})
        assert (await admin_pb2_grpc.AdminServiceStub(orders).Reload(admin_pb2.ReloadRequest())).switched
        after = await running.stub.ListNeurons(world["called"])
        assert after.neurons
        assert before.provenance.generation != after.provenance.generation
        assert before.provenance.index_id == after.provenance.index_id
        neuron_id = after.neurons[0].neuron_id
        profile = await running.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=neuron_id))
        assert any(name.name == world["word"] for name in profile.names)


async def test_the_setting_names_them_too(world):
    artefacts = ArtefactSettings(
        bundles=(NamedPath(name="b", path=world["bundle"]),),
        indexes=(NamedPath(name="i", path=world["index"]),),
        names=(NamedPath(name="i", path=world["names"]),),
    )
    async with serving_artefacts(artefacts) as running:
        assert (await running.stub.ListNeurons(world["called"])).neurons
