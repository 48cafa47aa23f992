"""What options of the command mean together: which of them contradict each other, in the words that were typed.

The parser knows what is wrong by itself and which options exclude each other; this is the rest, of which the service
would speak by the names of its fields. Asks nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from phosphene.client.standard_streams import streams_at

__all__ = ["contradiction", "wants_thumbnails"]

# Bounds of the contract.
_IMAGE_LIMIT = 8192
_THUMBNAIL_LIMIT = 1024
_ONLY_LIMIT = 64
_NEAREST_COUNT = 10


def contradiction(args: argparse.Namespace) -> str | None:
    """Return what is wrong with options each of which is right by itself; None where they go together."""
    return next(_contradictions(args), None)


def wants_thumbnails(args: argparse.Namespace) -> bool:
    """Whether the answer is shown with its thumbnails."""
    return args.thumbnails or getattr(args, "html", None) is not None


def _contradictions(args: argparse.Namespace) -> Iterator[str]:
    if args.verb != "top":
        yield from _of_access(args)
    if getattr(args, "thumbnails", False) and not args.json:
        yield "argument --thumbnails: needs --json; a page has them by itself"
    match args.verb:
        case "explain":
            yield from _of_page(args)
            if args.digest_first and args.sha256 is not None:
                yield "argument --digest-first: not allowed with argument --sha256, which sends no image"
            yield from _of_explained_images(args)
        case "neuron":
            yield from _of_page(args)
        case "neurons":
            yield from _of_filter(args)
        case "search":
            yield from _of_image_count(args, args.top * args.exemplars, f"with --top {args.top}")
        case "similar":
            yield from _of_similarity(args)


def _of_access(args: argparse.Namespace) -> Iterator[str]:
    for name in ("ca", "certificate", "key"):
        if getattr(args, name) is not None and not args.tls:
            yield f"argument --{name}: needs --tls"
    for name, other in (("certificate", "key"), ("key", "certificate")):
        if getattr(args, name) is not None and getattr(args, other) is None:
            yield f"argument --{name}: needs --{other}"


def _of_page(args: argparse.Namespace) -> Iterator[str]:
    if args.html is None:
        return
    if args.json and "output" in streams_at(args.html):
        yield "argument --html: not allowed with argument --json where both go to standard output; name another file"
    image = getattr(args, "image", None)
    if image is not None and _is_same_file(args.html, image):
        yield f"argument --html: {str(args.html)!r} is the image, which the page would replace; name another file"


def _of_explained_images(args: argparse.Namespace) -> Iterator[str]:
    # What a bundle turns out not to have is not left out: before it is asked nobody knows.
    by_itself = ["top_images", "similar_images", *(["nearest_neurons"] if args.sha256 is None else [])]
    parts = args.parts or by_itself
    neuron_count = args.top + (_NEAREST_COUNT if "nearest_neurons" in parts else 0)
    image_count = neuron_count * args.exemplars if "top_images" in parts else 0
    image_count += args.similar if "similar_images" in parts else 0
    yield from _of_image_count(args, image_count, f"with --top {args.top} and --similar {args.similar}")


def _of_image_count(args: argparse.Namespace, image_count: int, beside: str) -> Iterator[str]:
    if not wants_thumbnails(args):
        limit, limited = _IMAGE_LIMIT, "the limit"
    elif getattr(args, "html", None) is not None:
        limit, limited = _THUMBNAIL_LIMIT, "the limit with --html"
    else:
        limit, limited = _THUMBNAIL_LIMIT, "the limit with --thumbnails"
    if image_count > limit:
        yield (
            f"argument --exemplars: {args.exemplars} {beside} may list {image_count} images; {limited} is {limit}: "
            "ask for fewer"
        )


def _of_filter(args: argparse.Namespace) -> Iterator[str]:
    if args.sensitive and not args.include_sensitive:
        yield "argument --sensitive: needs --include-sensitive, without which none is listed"
    low, high = args.min_density, args.max_density
    if low is not None and high is not None and high < low:
        yield f"argument --max-density: {high:g} is below --min-density {low:g}; no neuron is both"


def _of_similarity(args: argparse.Namespace) -> Iterator[str]:
    for name in ("neuron", "text"):
        for option in ("only", "by"):
            if getattr(args, name) is not None and getattr(args, option) is not None:
                yield f"argument --{option}: not allowed with argument --{name}; it is for IMAGE or --sha256"
    if args.only is None:
        return
    if args.by == "residual_cosine":
        yield "argument --only: not allowed with --by residual_cosine, which compares no codes"
    if len(args.only) > _ONLY_LIMIT:
        yield f"argument --only: {len(args.only)} neurons; the limit is {_ONLY_LIMIT}"


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
