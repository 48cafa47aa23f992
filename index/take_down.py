"""Takes images down: from digests, or names in the corpus, to tombstones; the index itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from index.image_table import ImageTable
from index.members import successors
from index.plan import stored_shards
from index.shards import open_shards
from index.tombstones import Tombstones, open_tombstones, save_tombstones
from phosphene.current import Member, read_current
from phosphene.errors import ArtefactError, NotFound, SettingError
from phosphene.manifest import is_digest, open_artefact

__all__ = ["Request", "TakeDownJob", "TakeDownResult", "check_nothing_comes_back", "read_requests", "take_down"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to take down."""

    what: str
    """sha256 of its bytes in hexadecimal, or its uri in the index: all images that bear it."""
    reason: str | None = None
    """Why, for whoever asks later."""

    @property
    def is_digest(self) -> bool:
        """Whether `what` is a sha256."""
        return is_digest(self.what.lower())


@dataclass(frozen=True, kw_only=True)
class TakeDownJob:
    """What to take down, and where to say so."""

    index: Path
    """Folder of the index."""
    out: Path
    """Folder of the tombstones to be."""
    requests: Sequence[Request]
    """The images, at least one."""
    base: Path | None = None
    """Tombstones to add to."""
    allows_unknown: bool = False
    """Whether a digest may be in no row: it hides the image once the index is appended to with it."""


@dataclass(frozen=True, kw_only=True)
class TakeDownResult:
    """What lies at `out` now."""

    tombstones: Tombstones
    """The images that are down, those of `base` included."""
    row_count: int
    """Rows of the index that they hide."""
    was_finished: bool
    """Whether it lay there already."""


def read_requests(path: Path) -> list[Request]:
    """Read a list: on each line a sha256 or a uri, and after a tab, where there is one, the reason.

    Where every line feed follows a carriage return, the two end a line; where one does not, a carriage return is part
    of the name that it stands in. A byte order mark is no part of a name.

    Raises:
        SettingError: it is no UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is no UTF-8 text ({error}); write one sha256 or uri on each line") from error
    # A name may hold whatever else ends a line for Python, and begin or end with spaces.
    lines = text.split("\r\n" if text.count("\r\n") == text.count("\n") else "\n")
    parts = [line.partition("\t") for line in lines if line.strip()]
    return [Request(what=_named(what), reason=reason.strip() or None) for what, _, reason in parts]


def _named(text: str) -> str:
    return text.strip() if Request(what=text.strip()).is_digest else text


def take_down(job: TakeDownJob) -> TakeDownResult:
    """Publish the tombstones of a job; run twice, it finds them there.

    Raises:
        NotFound: a uri or digest is in no row, or a uri's bytes could not be read; all of them in one error.
        ArtefactError: the index or `base` is missing or damaged, or `out` holds something else.
        SettingError: there is nothing to take down, or a reason is too long.
    """
    if not job.requests:
        raise SettingError("nothing to take down; name images with --sha256, --uri or --list")
    manifest = open_artefact(job.index, kind="index")
    base = None if job.base is None else open_tombstones(job.base)
    shards = open_shards(job.index, stored_shards(manifest.config["plan"]))
    images = ImageTable(job.index, shards)
    reasons = _resolved(job, images)
    if base is not None:
        reasons = _by_name((*base.reasons.items(), *reasons.items()))
    inputs = {"index": manifest.id} | ({} if base is None else {"tombstones": base.id})
    tombstones, was_finished = save_tombstones(job.out, reasons, inputs=inputs)
    row_count = len(images.rows_with(tombstones.reasons.keys()))
    return TakeDownResult(tombstones=tombstones, row_count=row_count, was_finished=was_finished)


def _resolved(job: TakeDownJob, images: ImageTable) -> dict[str, str | None]:
    """Return the digests that are asked for, with reasons; one pass over the image table, a shard in memory."""
    digests = _by_name((each.what.lower(), each.reason) for each in job.requests if each.is_digest)
    uris = _by_name((each.what, each.reason) for each in job.requests if not each.is_digest)
    found: dict[str, str | None] = {}
    seen: set[str] = set()
    unreadable: set[str] = set()
    for part, owns in zip(images.columns("uri"), images.columns("sha256"), strict=True):
        for uri, digest in zip(part, owns, strict=True):
            if uri in uris:
                seen.add(uri)
                if digest:
                    found[digest] = uris[uri] or found.get(digest)
                else:
                    unreadable.add(uri)
            if digest in digests:
                seen.add(digest)
    unknown = sorted(uris.keys() - seen) + (
        [] if job.allows_unknown else sorted(digest for digest in digests if digest not in seen)
    )
    faults = [f"no row of {job.index.name!r} has {unknown}; look for typing errors"] if unknown else []
    if unreadable:
        faults.append(f"the bytes of {sorted(unreadable)} could not be read, so no answer holds them: leave them out")
    if faults:
        raise NotFound("; ".join(faults) + " (nothing was taken down)")
    return _by_name((*found.items(), *digests.items()))


def _by_name(named: Iterable[tuple[str, str | None]]) -> dict[str, str | None]:
    """Return each name's last reason; who names an image again, and gives none, takes none back."""
    reasons: dict[str, str | None] = {}
    for what, reason in named:
        reasons[what] = reason or reasons.get(what)
    return reasons


def check_nothing_comes_back(current: Path, indexes: Mapping[str, Path], tombstones: Mapping[str, Path]) -> None:
    """Refuse a generation that shows what one before it took down, be its index called another name.

    Args:
        current: the file that names the generation so far; where there is none, nothing is checked.
        indexes: name to folder, of the generation to be.
        tombstones: name of the index to folder, of the generation to be.

    Raises:
        SettingError: images would be shown again, how many and of which index; or what is down cannot be told.
        ArtefactError: an index or tombstones of the generation to be cannot be opened.
    """
    for member, name in _successions(current, indexes):
        down = _down(current, member).keys()
        kept = open_tombstones(tombstones[name]).reasons.keys() if name in tombstones else set()
        manifest = open_artefact(indexes[name], kind="index")
        images = ImageTable(indexes[name], open_shards(indexes[name], stored_shards(manifest.config["plan"])))
        back = sorted({images.image(int(row)).sha256 for row in images.rows_with(down - kept)})
        if back:
            raise SettingError(
                f"{len(back)} images of index {name!r} that are down now would be shown again, such as "
                f"{back[0]}: name tombstones that hold them (--tombstones {name}={member.path}), or say "
                "--put-back where that is meant"
            )


def _successions(current: Path, indexes: Mapping[str, Path]) -> list[tuple[Member, str]]:
    """Return the tombstones of the generation so far, each with the names that its images may be shown under."""
    if not current.exists():
        return []
    try:
        before = read_current(current)
    except ArtefactError as error:
        raise SettingError(f"what is down now cannot be told: {error}; or say --put-back where nothing is") from error
    remembered = (*before.tombstones, *before.left_tombstones)
    return [(member, name) for member in remembered for name in successors(before, member.name, indexes)]


def _down(current: Path, member: Member) -> Mapping[str, str | None]:
    """Return what the generation so far took down, and why."""
    try:
        tombstones = open_tombstones(member.path)
        if tombstones.id == member.id:
            return tombstones.reasons
        fault = f"{member.path} holds tombstones {tombstones.id} now, and {current} names {member.id}"
    except ArtefactError as error:
        fault = str(error)
    raise SettingError(
        f"what is down now of index {member.name!r} cannot be told: {fault}; put its tombstones back, or say "
        "--put-back where nothing is to stay down"
    )
