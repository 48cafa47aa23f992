"""Which artefacts of a generation belong together, and which follow those of the one before: by their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phosphene.bundle import bundle_code_id
from phosphene.current import Current
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import Manifest, read_manifest

__all__ = ["check_members_fit", "successors"]


def check_members_fit(
    bundles: Mapping[str, Path], indexes: Mapping[str, Path], beside: Mapping[str, Mapping[str, Path]]
) -> None:
    """Refuse a generation that no service can serve, before CURRENT names it.

    Args:
        bundles: name to folder.
        indexes: name to folder.
        beside: flags and names, each by the name of the index to folder.

    Raises:
        ArtefactMismatch: an index was built for none of the bundles, or flags or names for other codes than the index.
        ArtefactError: a manifest is missing or damaged.
    """
    served = {name: bundle_code_id(_manifest(folder, "bundle")) for name, folder in bundles.items()}
    built = {name: str(_manifest(folder, "index").config["plan"]["code_id"]) for name, folder in indexes.items()}
    for name, code_id in built.items():
        if code_id not in served.values():
            raise ArtefactMismatch(
                f"index {name!r} was built for the code_id {code_id}, and the bundles have {served}: name the bundle "
                "that it was built for, or build it again"
            )
    for kind, folders in beside.items():
        for name, folder in folders.items():
            made_for = str(_manifest(folder, kind).config["code_id"])
            if name in built and made_for != built[name]:
                raise ArtefactMismatch(
                    f"the {kind} {str(folder)!r} were made for the code_id {made_for}, and index {name!r} has "
                    f"{built[name]}: make them again for this index"
                )


def successors(before: Current, name: str, indexes: Mapping[str, Path]) -> list[str]:
    """Return the names under which a generation may show the images of an index of the one before.

    Args:
        before: the generation before.
        name: of its index.
        indexes: name to folder, of the generation to be.

    Returns:
        Those of `Current.successors`, and the one that the index has moved to, though another index bore it.

    Raises:
        ArtefactError: a manifest is missing or damaged.
    """
    found = before.successors(name, indexes)
    ids = {member.name: member.id for member in before.indexes}
    if name not in ids or (name in indexes and _manifest(indexes[name], "index").id == ids[name]):
        return found
    others = [other for other in indexes if other not in found and ids.get(other) != ids[name]]
    return found + [other for other in others if _manifest(indexes[other], "index").id == ids[name]]


def _manifest(folder: Path, kind: str) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ArtefactMismatch(f"{str(folder)!r} is of kind {manifest.kind!r}; due is {kind!r}")
    return manifest
