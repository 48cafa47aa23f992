"""Opening the catalogue: the bundles and indexes that the settings name, opened, checked and joined by `code_id`.

Every digest is checked before anything is parsed. An index that was built for other codes than those of the served
bundles is refused: its answers would be wrong and look right. Bundles on one encoder share it, and a reload takes over
the encoders of bundles that have not changed.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar, assert_never, cast
from weakref import WeakValueDictionary

import numpy as np

from index.reader import IndexReader, open_index
from index.values import QdrantPlace
from phosphene.bundle import PRECISION, Bundle, load_bundle
from phosphene.current import Member, load_current
from phosphene.engine import Engine, EngineName
from phosphene.engine_shared import SharedEngine, group_bundles, open_shared_engine
from phosphene.errors import ArtefactMismatch, ReadoutMissing, SettingError
from phosphene.manifest import read_manifest
from phosphene.pipeline import Pipeline
from phosphene.readout import ClassifierReadout, NoReadout, SimilarityReadout
from service.catalogue import Catalogue
from service.generation import ModelFacts, ServedBundle, ServedCorpus
from service.observing.model_health import ModelHealth, index_reference
from service.operations import EncodeRoute, encode_operation, text_operation
from service.settings import ArtefactSettings, EngineSettings, NamedPath, QdrantSettings

__all__ = ["CatalogueOpener"]

Opened = TypeVar("Opened")
_NO_QDRANT = QdrantSettings()


class CatalogueOpener:
    """Opens what the settings name, as often as it is asked to."""

    def __init__(
        self,
        artefacts: ArtefactSettings,
        engine: EngineSettings,
        *,
        qdrant: QdrantSettings = _NO_QDRANT,
        on_stage: Callable[[str, float], None] | None = None,
    ) -> None:
        """Keep what to open.

        Args:
            artefacts: names and folders.
            engine: device and threads of the engines.
            qdrant: where codes are searched.
            on_stage: told of the stages of each batch.
        """
        self._artefacts = artefacts
        self._qdrant = qdrant
        self._engine = engine
        self._on_stage = on_stage
        # Held by the catalogues that use them, so that an encoder leaves memory with the last one that does.
        self._engines: WeakValueDictionary[tuple[str, ...], SharedEngine] = WeakValueDictionary()
        self._exported: WeakValueDictionary[tuple[str, str], Engine] = WeakValueDictionary()

    @asynccontextmanager
    async def __call__(self, before: Catalogue | None = None) -> AsyncIterator[Catalogue]:
        """Open and check everything that is to be served; indexes are closed on leaving.

        Args:
            before: what is served meanwhile; its engines are taken over where they are the same.

        Raises:
            ArtefactError: a bundle or index is missing, damaged or belongs to another.
            EncoderError: an encoder cannot be loaded.
            SettingError: the device is not here, an exported engine is not named, or an index is not in Qdrant.
            Unavailable: Qdrant does not answer.
        """
        catalogue, readers = await _in_thread_of_its_own(self._open_all)
        with readers:
            yield catalogue

    def _open_all(self) -> tuple[Catalogue, ExitStack]:
        """The catalogue, and what closes its indexes."""
        with ExitStack() as open_readers:
            catalogue = self._open(open_readers)
            return catalogue, open_readers.pop_all()

    def _open(self, open_readers: ExitStack) -> Catalogue:
        bundle_paths, index_paths, beside = self._named()
        loaded = [(entry.name, load_bundle(entry.path)) for entry in bundle_paths]
        device, qdrant = self._artefacts.index_device, _qdrant_place(self._qdrant)
        readers = [
            (
                entry,
                open_readers.enter_context(
                    open_index(
                        entry.path,
                        tombstones=beside["tombstones"].get(entry.name),
                        flags=beside["flags"].get(entry.name),
                        names=beside["names"].get(entry.name),
                        device=device,
                        qdrant=qdrant,
                    )
                ),
            )
            for entry in index_paths
        ]
        for entry, reader in readers:
            if reader.code_id not in {bundle.code_id for _, bundle in loaded}:
                raise _mismatch(entry, reader, loaded, bundle_paths)
            reader.warm()
        corpora = {
            name: tuple(
                _served_corpus(entry.name, reader) for entry, reader in readers if reader.code_id == bundle.code_id
            )
            for name, bundle in loaded
        }
        bundles = self._served_bundles(loaded, corpora)
        return Catalogue([(bundle, corpora[bundle.name]) for bundle in bundles])

    def _named(self) -> tuple[Sequence[NamedPath], Sequence[NamedPath], Mapping[str, Mapping[str, Path]]]:
        """Bundles, indexes, and by kind what lies beside indexes, by the name of the index."""
        artefacts = self._artefacts
        if artefacts.current is None:
            beside = {
                "tombstones": _by_name(artefacts.tombstones),
                "flags": _by_name(artefacts.flags),
                "names": _by_name(artefacts.names),
            }
            return artefacts.bundles, artefacts.indexes, beside
        current = load_current(artefacts.current)
        beside = {
            "tombstones": _by_name(_paths(current.tombstones)),
            "flags": _by_name(_paths(current.flags)),
            "names": _by_name(_paths(current.names)),
        }
        return _paths(current.bundles), _paths(current.indexes), beside

    def _served_bundles(
        self, loaded: Sequence[tuple[str, Bundle]], corpora: dict[str, tuple[ServedCorpus, ...]]
    ) -> list[ServedBundle]:
        served: dict[int, ServedBundle] = {}
        for group in group_bundles([bundle for _, bundle in loaded]):
            engine = self._shared_engine([loaded[place][1] for place in group])
            operation = encode_operation(engine, bundle_count=len(group))
            for position, place in enumerate(group):
                name, bundle = loaded[place]
                engine_id, exported = self._exported_engine(name, bundle)
                torch_route = EncodeRoute(operation=operation, engine=engine, position=position)
                served[place] = _served_bundle(
                    name,
                    Pipeline(engine.engines[position]),
                    routes=(*exported, torch_route),
                    engine_id=engine_id,
                    corpora=corpora[name],
                )
        return [served[place] for place in range(len(loaded))]

    def _shared_engine(self, bundles: Sequence[Bundle]) -> SharedEngine:
        key = tuple(bundle.id for bundle in bundles)
        engine = self._engines.get(key)
        if engine is None:
            engine = open_shared_engine(
                bundles,
                device=self._engine.device,
                thread_count=self._engine.thread_count,
                on_stage=self._on_stage,
            )
            self._engines[key] = engine
        return engine

    def _exported_engine(self, name: str, bundle: Bundle) -> tuple[str, tuple[EncodeRoute, ...]]:
        """The id of the bundle's exported engine and the way through it; nothing where torch is to run alone."""
        if self._engine.engine == EngineName.TORCH:
            return "", ()
        path = next((entry.path for entry in self._artefacts.engines if entry.name == name), None)
        if path is None:
            raise SettingError(
                f"PHOSPHENE_ENGINE is {self._engine.engine!r} and PHOSPHENE_ENGINES names no engine of bundle "
                f"{name!r}; export one: python -m training export-engine {bundle.path} --out FOLDER"
            )
        key = (bundle.id, read_manifest(path).id)
        engine = self._exported.get(key)
        if engine is None:
            # Only who runs ONNX Runtime loads it.
            from phosphene.engine_onnx import open_onnx_engine

            engine = open_onnx_engine(
                path,
                bundle,
                expected=EngineName(self._engine.engine),
                device=self._engine.device,
                thread_count=self._engine.thread_count,
                may_spin=False,
                on_stage=self._on_stage,
            )
            self._exported[key] = engine
        return key[1], (EncodeRoute(operation=encode_operation(engine), engine=engine, position=0),)


async def _in_thread_of_its_own(open_all: Callable[[], Opened]) -> Opened:
    """Call in a thread that is not waited for once nobody wants the result: what reads files cannot be stopped.

    The loop's own threads are joined before the process ends; this one ends with it.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Opened] = loop.create_future()

    def settle(result: Opened | None, error: BaseException | None) -> None:
        if opened.cancelled():
            return
        if error is not None:
            opened.set_exception(error)
        else:
            opened.set_result(cast(Opened, result))

    def run() -> None:
        result, failure = None, None
        try:
            result = open_all()
        except Exception as error:
            failure = error
        except BaseException as panic:
            # Libraries in Rust raise what is no `Exception`, which would end a service that only reloads.
            failure = RuntimeError(f"a library panicked while artefacts were opened: {panic}")
            failure.__cause__ = panic
        # A loop that has ended has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="phosphene-opener", daemon=True).start()
    return await opened


def _qdrant_place(settings: QdrantSettings) -> QdrantPlace | None:
    if settings.url is None or settings.collection is None:
        return None
    api_key: str | None = None
    if settings.key_file is not None:
        try:
            api_key = settings.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as cause:
            raise SettingError(
                f"PHOSPHENE_QDRANT_KEY_FILE is {str(settings.key_file)!r}, which cannot be read ({cause}); let the "
                "user who runs the service read it, or name another file"
            ) from cause
    return QdrantPlace(url=settings.url, collection=settings.collection, api_key=api_key, timeout_s=settings.timeout_s)


def _paths(members: Sequence[Member]) -> list[NamedPath]:
    return [NamedPath(name=member.name, path=member.path) for member in members]


def _by_name(entries: Sequence[NamedPath]) -> dict[str, Path]:
    return {entry.name: entry.path for entry in entries}


def _served_bundle(
    name: str,
    pipeline: Pipeline,
    *,
    routes: tuple[EncodeRoute, ...],
    engine_id: str,
    corpora: Sequence[ServedCorpus],
) -> ServedBundle:
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
        engine=str(routes[0].engine.name),
        engine_id=engine_id,
    )
    return ServedBundle(
        name=name,
        facts=facts,
        preprocessing=bundle.preprocessing,
        decoder_bias=bundle.sae.decoder_bias.detach().cpu().numpy().astype(np.float32),
        score_names=engine.score_names,
        routes=routes,
        text=None if no_text_reason else text_operation(pipeline.text_vectors),
        no_text_reason=no_text_reason,
        health=ModelHealth(reference=index_reference(corpora[0].reader) if corpora else None),
    )


def _no_text_reason(pipeline: Pipeline) -> str:
    """Why the bundle turns no words into vectors; empty where it does. An encoder may lack its tokenizer only.

    Reads the text tower, and leaves it to the engine's thread to run it.
    """
    try:
        match pipeline.engine.readout:
            case SimilarityReadout() as readout:
                readout.check_texts(["red"])
            case ClassifierReadout() | NoReadout():
                pipeline.text_vectors([])
            case _:
                assert_never(pipeline.engine.readout)
    except ReadoutMissing as error:
        return str(error)
    return ""


def _served_corpus(name: str, reader: IndexReader) -> ServedCorpus:
    return ServedCorpus(
        name=name,
        reader=reader,
        quarantined_image_count=reader.quarantined_count - reader.unlisted_folder_count,
        created_by=reader.created_by,
    )


def _mismatch(
    entry: NamedPath, reader: IndexReader, loaded: Sequence[tuple[str, Bundle]], bundles: Sequence[NamedPath]
) -> ArtefactMismatch:
    served = "; ".join(f"bundle {name!r} has {bundle.code_id}" for name, bundle in loaded)
    return ArtefactMismatch(
        f"index {entry.name!r} was built for the code_id {reader.code_id}, and {served}. Serve the bundle that it was "
        f"built for, or build it again: python -m index build CORPUS --bundle {bundles[0].path} --out {entry.path}.new"
    )
