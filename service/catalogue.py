"""The catalogue: what is served, by name; finds the bundle and corpus that a request is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from phosphene.errors import NotFound
from phosphene.manifest import digest_of
from service.discretion import DiscreetReader
from service.generation import Generation, ServedBundle, ServedCorpus, generation_id
from service.queries import Scope

__all__ = ["Catalogue", "Entry"]

Entry = tuple[ServedBundle, tuple[ServedCorpus, ...]]

_NAME_LIMIT_CHARACTERS = 64
"""Of a name in the settings."""


class Catalogue:
    """Bundles with their corpora; of each the first is the default."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Keep the entries in the order of the settings; at least one."""
        self._entries: Mapping[str, Entry] = {entry[0].name: entry for entry in entries}
        self._generation_ids = {bundle.name: generation_id(bundle.facts, corpora) for bundle, corpora in entries}

    @property
    def id(self) -> str:
        """Names everything that is served, in its order: equal ids answer alike."""
        return digest_of([[bundle.name, self._generation_ids[bundle.name]] for bundle, _ in self.entries])

    @property
    def generation_ids(self) -> frozenset[str]:
        """The ids of all its generations, one for each bundle."""
        return frozenset(self._generation_ids.values())

    @property
    def take_down_ids(self) -> frozenset[str]:
        """Names the take-downs that its answers honour."""
        return frozenset().union(*(corpus.reader.take_down_ids for _, corpora in self.entries for corpus in corpora))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every bundle with its corpora, in the order of the settings."""
        return tuple(self._entries.values())

    def entry(self, name: str) -> Entry:
        """A bundle with its corpora, the default for an empty name; raises `NotFound` with those served."""
        wanted = _cut(name) or next(iter(self._entries))
        if wanted not in self._entries:
            raise NotFound(
                f"no bundle {wanted!r} here; served are {', '.join(map(repr, self._entries))}",
                field="bundle",
                name=wanted,
            )
        return self._entries[wanted]

    def generation(self, scope: Scope) -> Generation:
        """What a request names; a corpus without a bundle is one of the default bundle.

        Raises:
            NotFound: a name that is not served; the message lists those that are.
        """
        bundle, corpora = self.entry(scope.bundle)
        corpus = corpora[0] if corpora else None
        if scope.corpus:
            wanted = _cut(scope.corpus)
            corpus = next((entry for entry in corpora if entry.name == wanted), None)
            if corpus is None:
                known = ", ".join(repr(entry.name) for entry in corpora) or "none"
                raise NotFound(
                    f"bundle {bundle.name!r} has no corpus {wanted!r}; its corpora are {known}",
                    field="corpus",
                    name=wanted,
                )
        if corpus is not None and corpus.reader.flags_id and not scope.include_sensitive:
            corpus = replace(corpus, reader=DiscreetReader(corpus.reader))
        return Generation(bundle=bundle, corpus=corpus, id=self._generation_ids[bundle.name])


def _cut(name: str) -> str:
    """A name as it came; one that is longer than any that is served is cut, and matches none."""
    return name if len(name) <= _NAME_LIMIT_CHARACTERS else name[:_NAME_LIMIT_CHARACTERS] + "…"
