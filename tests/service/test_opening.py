"""The real thing: bundles and indexes from disk, opened, refused where they must be, and asked over a real channel."""

import asyncio
import os
import shutil
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from phosphene.encoder import Family, Tokens
from phosphene.errors import ArtefactDamaged, ArtefactError, ArtefactMismatch, ArtefactMissing, SettingError
from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, values_pb2
from service.catalogue import Catalogue
from service.opening import CatalogueOpener
from service.settings import ArtefactSettings, EngineSettings, NamedPath
from tests.fakes import FakeEngine, fake_entry
from tests.index.quiet import Notes
from tests.index.small_world import NEURON_COUNT, write_bundle, write_corpus
from tests.service.conftest import logged, serving, serving_artefacts

ENGINE = EngineSettings(device="cpu", thread_count=1)
ALL_PARTS = [number for number in explain_pb2.ExplainPart.values() if number]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bundle on CLIP's patches, another on its class token, and an index of the first."""
    folder = tmp_path_factory.mktemp("world")
    corpus = write_corpus(folder / "pictures", 12)
    paths = {
        "folder": folder,
        "bundle": write_bundle(folder, Family.CLIP, tokens=Tokens.PATCHES),
        "other": write_bundle(folder, Family.DINOV2, seed=1, tokens=Tokens.CLS),
        "index": folder / "index",
    }
    config = IndexConfig(shard_image_count=16, batch_images=4, thread_count=1, top_count=10, spread_count=6)
    build_index(BuildJob(corpus=str(corpus), bundle=paths["bundle"], out=paths["index"], config=config), Notes())
    return paths


def artefacts(bundles, indexes=()):
    return ArtefactSettings(
        bundles=tuple(NamedPath(name=name, path=path) for name, path in bundles),
        indexes=tuple(NamedPath(name=name, path=path) for name, path in indexes),
    )


async def opened(*settings):
    async with CatalogueOpener(artefacts(*settings), ENGINE)() as catalogue:
        return catalogue.entries


async def test_real_artefacts_answer_alike_by_bytes_and_by_digest(world):
    both = artefacts([("clip", world["bundle"]), ("dino", world["other"])], [("pictures", world["index"])])
    async with serving_artefacts(both) as running:
        stub = running.stub
        models = (await stub.ListModels(models_pb2.ListModelsRequest())).models
        assert [(model.bundle, len(model.corpora)) for model in models] == [("clip", 1), ("dino", 0)]
        assert models[0].neuron_count == NEURON_COUNT
        assert models[0].corpora[0].text_search
        assert models[0].corpora[0].image_count == 12
        data = (world["folder"] / "pictures" / "0003.png").read_bytes()
        live = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=data), parts=ALL_PARTS[:6] + ALL_PARTS[7:])
        answer = await stub.Explain(live)
        assert answer.image.corpus_image.row == 3
        assert len(answer.neurons) == 10
        assert len(answer.neurons[0].patch_activations) == answer.grid.row_count * answer.grid.column_count
        peaks = [max(active.patch_activations) for active in answer.neurons]
        assert peaks == pytest.approx([active.activation for active in answer.neurons])
        assert len(answer.nearest_neurons) == 10
        assert -1 <= answer.nearest_neurons[0].cosine <= 1
        assert answer.similar_images
        assert 3 not in [match.image.row for match in answer.similar_images]
        stored = await stub.Explain(
            explain_pb2.ExplainRequest(
                image=values_pb2.ImageQuery(sha256=answer.image.sha256),
                parts=[explain_pb2.EXPLAIN_PART_CODE, explain_pb2.EXPLAIN_PART_FIDELITY],
            )
        )
        live_code = dict(zip(answer.code.neuron_ids, answer.code.activations, strict=True))
        stored_code = dict(zip(stored.code.neuron_ids, stored.code.activations, strict=True))
        assert stored_code.keys() == live_code.keys()
        assert stored_code == {neuron: pytest.approx(value, rel=2e-3) for neuron, value in live_code.items()}
        assert stored.fidelity.fvu == pytest.approx(answer.fidelity.fvu, rel=2e-3)


async def test_bundles_on_one_encoder_share_its_pass_and_answer_for_themselves(world):
    class_token = write_bundle(world["folder"] / "twin", Family.CLIP, seed=3, tokens=Tokens.CLS)
    both = artefacts([("patches", world["bundle"]), ("class", class_token)], [("pictures", world["index"])])
    data = (world["folder"] / "pictures" / "0003.png").read_bytes()

    def asking(bundle):
        image = values_pb2.ImageQuery(data=data)
        return explain_pb2.ExplainRequest(bundle=bundle, image=image, parts=[explain_pb2.EXPLAIN_PART_CODE])

    async with CatalogueOpener(both, ENGINE)() as catalogue:
        operations = {bundle.routes[0].operation for bundle, _ in catalogue.entries}
        assert len(operations) == 1
    async with serving_artefacts(both) as running:
        shared = await asyncio.gather(*(running.stub.Explain(asking(name)) for name in ("patches", "class") * 4))
    alone = []
    for name, path in (("patches", world["bundle"]), ("class", class_token)):
        async with serving_artefacts(artefacts([(name, path)])) as running:
            alone.append(await running.stub.Explain(asking(name)))
    for answer, due in zip(shared, alone * 4, strict=True):
        assert answer.provenance.bundle == due.provenance.bundle
        assert list(answer.code.neuron_ids) == list(due.code.neuron_ids)
        assert list(answer.code.activations) == pytest.approx(list(due.code.activations), rel=1e-4)
    assert list(shared[0].code.neuron_ids) != list(shared[1].code.neuron_ids)


async def test_real_searches_answer(world):
    one = artefacts([("clip", world["bundle"])], [("pictures", world["index"])])
    async with serving_artefacts(one) as running:
        stub = running.stub
        listed = await stub.ListNeurons(
            neurons_pb2.ListNeuronsRequest(
                order=neurons_pb2.NEURON_ORDER_DENSITY,
                filter=neurons_pb2.NeuronFilter(alive_only=True),
                page_size=3,
            )
        )
        best = listed.neurons[0].neuron_id
        densities = [summary.density for summary in listed.neurons]
        assert densities == sorted(densities, reverse=True)
        profile = await stub.GetNeuron(
            neurons_pb2.GetNeuronRequest(neuron_id=best, parts=[1, 2, 3], include_thumbnails=True)
        )
        assert profile.statistics.firing_count == round(profile.neuron.density * 12)
        assert [quantile.level for quantile in profile.statistics.quantiles][-1] == 1
        assert profile.statistics.quantiles[-1].activation == pytest.approx(profile.statistics.maximum)
        assert profile.top_images[0].image.thumbnail.startswith(b"\xff\xd8")
        by_text = await stub.SearchNeurons(neurons_pb2.SearchNeuronsRequest(text="a red circle", count=5))
        assert len(by_text.neurons) == 5
        scores = [match.score for match in by_text.neurons]
        assert scores == sorted(scores, reverse=True)
        by_neuron = await stub.SearchImages(images_pb2.SearchImagesRequest(neuron_id=best, count=3))
        assert [match.image.row for match in by_neuron.images] == [
            exemplar.image.row for exemplar in profile.top_images[:3]
        ]


async def test_a_bundle_says_why_it_reads_no_words(world):
    (clip, _), (dino, _) = await opened([("clip", world["bundle"]), ("dino", world["other"])])
    assert clip.text is not None
    assert dino.text is None
    assert "text" in dino.no_text_reason


@contextmanager
def text_towers_run():
    """The threads on which text towers run meanwhile."""
    threads = []

    def note(module, _):
        if type(module).__name__ == "CLIPTextModelWithProjection":
            threads.append(threading.current_thread().name)

    hook = register_module_forward_pre_hook(note)
    try:
        yield threads
    finally:
        hook.remove()


async def test_no_thread_but_the_engine_s_runs_a_text_tower(world):
    one = artefacts([("clip", world["bundle"])], [("pictures", world["index"])])
    with text_towers_run() as threads:
        (clip, _), *_ = await opened([("clip", world["bundle"])])
        assert clip.text is not None
        assert not threads
        async with serving_artefacts(one) as running:
            await running.stub.SearchNeurons(neurons_pb2.SearchNeuronsRequest(text="a red circle", count=5))
    assert len(threads) == 3  # the warm-up has two rounds
    assert set(threads) == {"phosphene-engine"}


def test_a_loop_ends_while_artefacts_are_being_opened(tmp_path):
    # Whoever opens a pipe that nobody writes to waits in the system, where no exception reaches.
    current = tmp_path / "CURRENT"
    os.mkfifo(current)
    writing = []

    async def give_up():
        opening = asyncio.create_task(CatalogueOpener(ArtefactSettings(current=current), ENGINE)().__aenter__())
        writing.append(await asyncio.to_thread(os.open, current, os.O_WRONLY))
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    running = threading.Thread(target=asyncio.run, args=(give_up(),), daemon=True)
    running.start()
    running.join(60)
    is_over = not running.is_alive()
    os.close(writing[0])
    assert is_over


class Panic(BaseException):
    """What a library in Rust raises where it gives up: no `Exception`."""


class PanickingPath(type(Path())):
    """A file over which a library gives up."""

    def read_text(self, *args, **options):
        raise Panic("called `Option::unwrap()` on a `None` value")


async def test_a_reload_over_which_a_library_panics_changes_nothing():
    engine = FakeEngine()
    broken = CatalogueOpener(ArtefactSettings(current=PanickingPath("CURRENT")), ENGINE)

    @asynccontextmanager
    async def open_entries(before):
        if before is None:
            yield Catalogue([fake_entry(engine)])
        else:
            async with broken(before) as catalogue:
                yield catalogue

    with logged() as lines:
        async with serving(engine=engine, make_opener=lambda settings, on_stage: open_entries) as running:
            with pytest.raises(ArtefactError, match="nothing was switched"):
                await running.replica.reload()
            assert (await running.stub.GetModel(models_pb2.GetModelRequest())).model.bundle == "colours"
        (refused,) = [line for line in lines() if line["event"] == "reload refused"]
    assert "Option::unwrap()" in refused["traceback"]


async def test_an_index_of_another_bundle_is_refused_with_both_ids_and_the_remedy(world):
    with pytest.raises(ArtefactMismatch) as caught:
        await opened([("dino", world["other"])], [("pictures", world["index"])])
    entries = await opened([("clip", world["bundle"]), ("dino", world["other"])])
    for bundle, _ in entries:
        assert bundle.facts.code_id in str(caught.value)
    assert "python -m index build" in str(caught.value)


async def test_what_is_not_there_is_named(world):
    with pytest.raises(ArtefactMissing, match="nowhere"):
        await opened([("clip", world["folder"] / "nowhere")])
    with pytest.raises(ArtefactMissing, match="nowhere"):
        await opened([("clip", world["bundle"])], [("pictures", world["folder"] / "nowhere")])


@pytest.mark.parametrize("which", ["bundle", "index"])
async def test_one_flipped_bit_in_any_file_is_refused(world, tmp_path, which):
    names = sorted(str(path.relative_to(world[which])) for path in world[which].rglob("*") if path.is_file())
    for number, name in enumerate(names):
        if name == "manifest.json":
            continue
        copy = tmp_path / str(number)
        shutil.copytree(world[which], copy, copy_function=shutil.os.link)
        damaged = bytearray((copy / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (copy / name).unlink()
        (copy / name).write_bytes(damaged)
        with pytest.raises(ArtefactDamaged):
            await opened([("clip", copy if which == "bundle" else world["bundle"])], [("p", copy)])


async def test_a_device_that_is_not_here_is_named(world):
    with pytest.raises(SettingError, match="cuda:9"):
        async with CatalogueOpener(artefacts([("clip", world["bundle"])]), EngineSettings(device="cuda:9"))():
            pass
