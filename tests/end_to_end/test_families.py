"""Every family of encoders the whole way on a folder in the Hugging Face layout: fit, build, Explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from phosphene.encoder import Family, Site, Tokens
from phosphene.v1.explain_pb2 import ExplainPart, ExplainRequest
from phosphene.v1.values_pb2 import ImageQuery
from service.settings import ArtefactSettings, NamedPath
from tests.families import write_encoder
from tests.index.quiet import Notes
from tests.index.small_world import write_corpus
from tests.service.conftest import serving_artefacts
from training.execution import Execution
from training.fit import fit
from training.harvest_settings import HarvestSettings
from training.plan import FitRequest, Sources
from training.progress import LineProgress
from training.requests import SaeRequest, TrainingRequest

IMAGE_COUNT = 48


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of small pictures."""
    return write_corpus(tmp_path_factory.mktemp("families") / "pictures", IMAGE_COUNT)


@pytest.mark.parametrize("family", list(Family))
async def test_fit_build_and_explain(family: Family, pictures: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", family)
    site = Site(block=1, tokens=Tokens.PATCHES) if family is Family.SIGLIP else Site(block=1, tokens=Tokens.CLS)
    request = FitRequest(
        sources=Sources(corpus=str(pictures), encoder=str(encoder)),
        site=site,
        sae=SaeRequest(neuron_count=24, k=4),
        out=tmp_path / "bundle",
        harvest=HarvestSettings(batch_images=8),
        training=TrainingRequest(step_count=30, batch_rows=16, learning_rate=0.013),
        execution=Execution(thread_count=1),
    )
    bundle = fit(request, LineProgress(lambda line: None)).bundle
    config = IndexConfig(shard_image_count=32, batch_images=8, thread_count=1, top_count=10, spread_count=6)
    index = tmp_path / "index"
    build_index(BuildJob(corpus=str(pictures), bundle=bundle.path, out=index, config=config), Notes())
    artefacts = ArtefactSettings(
        bundles=(NamedPath(name="any", path=bundle.path),), indexes=(NamedPath(name="pictures", path=index),)
    )
    parts = ["NEURONS", "FIDELITY", "NEAREST_NEURONS", "TOP_IMAGES", "SIMILAR_IMAGES"]
    parts += ["PATCH_ACTIVATIONS"] if site.tokens is Tokens.PATCHES else []
    async with serving_artefacts(artefacts) as running:
        answer = await running.stub.Explain(
            ExplainRequest(
                image=ImageQuery(data=(pictures.parent / "0000.png").read_bytes()),
                parts=[ExplainPart.Value(f"EXPLAIN_PART_{part}") for part in parts],
            )
        )
    assert answer.provenance.code_id == bundle.code_id
    assert answer.image.corpus_image.row == 0
    assert answer.neurons
    assert answer.neurons[0].activation > 0
    assert answer.neurons[0].top_images
    assert len(answer.nearest_neurons) == 10
    assert answer.similar_images
    assert answer.fidelity.fvu < 1
