"""The only door to an index for others: opens it, checks it, and answers with the values of `index.values`.

Everything large is memory-mapped and shared by threads; nothing here writes. Knows nothing of gRPC, of images' bytes or
of the encoder.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path

from index.flags import open_flags
from index.image_answers import ImageAnswers
from index.names import open_names
from index.neuron_answers import NeuronAnswers
from index.tombstones import open_tombstones
from index.values import QdrantPlace
from index.visibility import Hidden
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import open_artefact
from phosphene.open_files import shortage_explained

__all__ = ["IndexReader", "open_index"]


def open_index(
    path: str | Path,
    *,
    code_id: str | None = None,
    tombstones: Path | None = None,
    flags: Path | None = None,
    names: Path | None = None,
    device: str = "cpu",
    qdrant: QdrantPlace | None = None,
) -> IndexReader:
    """Open an index, every digest checked before anything is parsed.

    Args:
        path: the index's folder.
        code_id: what the caller's bundle says decides its codes; None accepts any index.
        tombstones: folder of the tombstones that its answers honour; None: every image is shown.
        flags: folder of the flags that say what is sensitive; None: nothing is.
        names: folder of the names that neurons go by; None: by those of the index.
        device: where FAISS searches images: `cpu`, or `cuda:N` with a FAISS that has GPUs.
        qdrant: where `python -m index push` has written it, to find similar codes and what expressions ask for there;
            None: here.

    Returns:
        A reader; use it as a context manager, or close it.

    Raises:
        ArtefactMissing: there is no index, or a file of it is gone.
        ArtefactDamaged: a file differs from the manifest.
        ArtefactMismatch: it is no index, or was built with another `code_id`.
        SchemaUnknown: another version wrote it.
        SettingError: it has more shards than this process may open files for, or the device is not here, or cannot hold
            the index, or it was not pushed to this Qdrant.
        Unavailable: Qdrant does not answer.
    """
    folder = Path(path)
    manifest = open_artefact(folder, kind="index")
    built_with = str(manifest.config["plan"]["code_id"])
    if code_id is not None and built_with != code_id:
        raise ArtefactMismatch(
            f"index {folder.name!r} was built with code_id {built_with}; the bundle has {code_id}: their neurons are "
            f"not the same. Build one for this bundle: python -m index build CORPUS --bundle BUNDLE --out {folder}-new"
        )
    with shortage_explained(f"index {folder.name!r}"):
        reader = IndexReader(
            folder,
            manifest,
            None if tombstones is None else open_tombstones(tombstones),
            None if flags is None else open_flags(flags, code_id=built_with),
            None if names is None else open_names(names, code_id=built_with),
            device=device,
        )
    if qdrant is not None:
        try:
            reader._ask_qdrant(qdrant)
        except BaseException:
            reader.close()
            raise
    return reader


class IndexReader(NeuronAnswers, ImageAnswers):
    """An open index, a context manager that closes it. Safe to use from several threads until then."""

    _without_sensitive: IndexReader | None = None

    def __enter__(self) -> IndexReader:
        """Return the reader."""
        return self

    def warm(self) -> None:
        """Ask once what is slow when it is first asked: loops that are compiled then, and norms that are read then."""
        self._directions.warm()
        if self._qdrant is None:
            self._similar.warm()

    def _ask_qdrant(self, place: QdrantPlace) -> None:
        """Find similar codes, and what expressions ask for, in Qdrant from now on.

        Raises:
            SettingError: the index was not pushed there, or what talks to Qdrant is not installed.
            ArtefactError: what lies there is another index, or damaged.
            Unavailable: Qdrant does not answer.
        """
        try:
            from index.qdrant.collection import open_qdrant
            from index.qdrant.search import QdrantSearch
        except ModuleNotFoundError as error:
            raise SettingError(
                f"{error.name} is not installed, which talks to Qdrant; install requirements/qdrant.txt beside the rest"
            ) from error
        client = self._lifetime.enter_context(open_qdrant(place.url, api_key=place.api_key, timeout_s=place.timeout_s))
        self._qdrant = QdrantSearch(client, place.collection, self)

    def without_sensitive(self) -> IndexReader:
        """Return the same index with sensitive images hidden; scores and figures stay. It closes with this one."""
        if self._without_sensitive is None:
            hidden = Hidden(rows=self._sensitive_rows, why="is sensitive; ask for it with include_sensitive")
            view = copy(self)
            view._visibility = self._visibility.with_hidden(hidden)
            view._expressions = self._expressions.without(view._visibility.excluded_rows)
            view._qdrant = None if self._qdrant is None else self._qdrant.showing(view)
            self._without_sensitive = view
        return self._without_sensitive
