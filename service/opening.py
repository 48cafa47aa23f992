"""Opening the catalogue: the bundles and indexes that the settings name, opened, checked and joined by `code_id`.

Every digest is checked before anything is parsed. An index that was built for other codes than those of the served
bundles is refused at start: its answers would be wrong and look right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import numpy as np

from index.reader import IndexReader, open_index
from phosphene.bundle import PRECISION
from phosphene.errors import ArtefactMismatch, ReadoutMissing
from phosphene.pipeline import Pipeline, open_bundle
from service.catalogue import Catalogue
from service.generation import ModelFacts, ServedBundle, ServedCorpus
from service.lanes import encode_lane, text_lane
from service.settings import ArtefactSettings, EngineSettings, NamedPath

__all__ = ["open_catalogue"]


@asynccontextmanager
async def open_catalogue(artefacts: ArtefactSettings, engine: EngineSettings) -> AsyncIterator[Catalogue]:
    """Open and check everything that is to be served; indexes are closed on leaving.

    Args:
        artefacts: names and folders.
        engine: device and threads of the engines.

    Raises:
        ArtefactError: a bundle or index is missing, damaged or belongs to another.
        EncoderError: an encoder cannot be loaded.
        SettingError: the device is not here.
    """
    with ExitStack() as open_readers:
        yield await asyncio.to_thread(_open, artefacts, engine, open_readers)


def _open(artefacts: ArtefactSettings, engine: EngineSettings, open_readers: ExitStack) -> Catalogue:
    bundles = [
        _served_bundle(entry.name, open_bundle(entry.path, device=engine.device, thread_count=engine.thread_count))
        for entry in artefacts.bundles
    ]
    corpora: dict[str, list[ServedCorpus]] = {bundle.name: [] for bundle in bundles}
    for entry in artefacts.indexes:
        reader = open_readers.enter_context(open_index(entry.path, code_id=None))
        owners = [bundle for bundle in bundles if bundle.facts.code_id == reader.code_id]
        if not owners:
            raise _mismatch(entry, reader, artefacts, bundles)
        for bundle in owners:
            corpora[bundle.name].append(_served_corpus(entry.name, reader))
    return Catalogue([(bundle, tuple(corpora[bundle.name])) for bundle in bundles])


def _served_bundle(name: str, pipeline: Pipeline) -> ServedBundle:
    bundle, engine = pipeline.bundle, pipeline.engine
    no_text_reason = _no_text_reason(pipeline)
    facts = ModelFacts(
        bundle_id=bundle.id,
        code_id=bundle.code_id,
        encoder=bundle.encoder_spec,
        site=bundle.site,
        neuron_count=bundle.sae.neuron_count,
        selection=bundle.sae.selection,
        limits=bundle.limits,
        readout=engine.readout.kind,
        device=str(engine.device),
        precision=PRECISION,
    )
    return ServedBundle(
        name=name,
        facts=facts,
        preprocessing=bundle.preprocessing,
        decoder_bias=bundle.sae.decoder_bias.detach().cpu().numpy().astype(np.float32),
        score_names=engine.score_names,
        encode=encode_lane(engine.run),
        text=None if no_text_reason else text_lane(pipeline.text_vectors),
        no_text_reason=no_text_reason,
    )


def _no_text_reason(pipeline: Pipeline) -> str:
    """Why the bundle turns no words into vectors; empty where it does. An encoder may lack its tokenizer only."""
    try:
        pipeline.text_vectors(["red"])
    except ReadoutMissing as error:
        return str(error)
    return ""


def _served_corpus(name: str, reader: IndexReader) -> ServedCorpus:
    return ServedCorpus(
        name=name,
        reader=reader,
        quarantined_image_count=reader.quarantined_count,
        created_by=reader.created_by,
    )


def _mismatch(
    entry: NamedPath, reader: IndexReader, artefacts: ArtefactSettings, bundles: Sequence[ServedBundle]
) -> ArtefactMismatch:
    served = "; ".join(f"bundle {bundle.name!r} has {bundle.facts.code_id}" for bundle in bundles)
    return ArtefactMismatch(
        f"index {entry.name!r} was built for the code_id {reader.code_id}, and {served}. Serve the bundle that it was "
        f"built for, or build it again: python -m index build CORPUS --bundle {artefacts.bundles[0].path} "
        f"--out {entry.path}.new"
    )
