"""What may be typed after `phosphene`; checks it as far as one can without a service, and asks nothing."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from phosphene.client.options import ExplainPartName, ImageSimilarity, NeuronOrderName
from phosphene.client.page_file import check_page_path
from phosphene.client.transport import DEFAULT_ADDRESS
from phosphene.errors import SettingError

__all__ = ["build_parser"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UINT32_LIMIT = 2**32 - 1
_PAGE_LIMIT = 1000
_DAY_S = 24 * 60 * 60
_DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has `verb` and that verb's arguments."""
    parser = argparse.ArgumentParser(
        prog="phosphene", description="Which concepts light up inside a vision model when it looks at an image."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    access = _access_options()
    place = _place_options(access)
    shared = _output_options(place)

    def verb(name: str, said: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        description = f"{said[0].upper()}{said[1:]}."
        made = verbs.add_parser(name, parents=parents, help=said, description=description, allow_abbrev=False)
        # What every argument passes for which no other type is named.
        made.register("type", None, _text)
        return made

    _add_explain(verb("explain", "what lights up on an image", shared))
    _add_explain_images(verb("explain-images", "what lights up on each of many", place))
    _add_neuron(verb("neuron", "what is known of a neuron", shared))
    _add_neurons(verb("neurons", "neurons in an order", shared))
    _add_search(verb("search", "neurons by words, or like another neuron", shared))
    _add_similar(verb("similar", "images like an image, or that excite a neuron", shared))
    _add_images(verb("images", "images that fire as a neuron expression asks", shared))
    verb("models", "the service's bundles and corpora", shared)
    _add_top(verb("top", "the service's metrics, live"))
    _add_admin(verb("admin", "how a replica is; reload or drain it", access))
    return parser


def _access_options() -> argparse.ArgumentParser:
    access = argparse.ArgumentParser(add_help=False)
    access.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds the API token")
    access.add_argument("--tls", action="store_true", help="talk TLS")
    access.add_argument("--ca", type=Path, metavar="FILE", help="PEM file of authorities; gRPC's own if left out")
    access.add_argument("--certificate", type=Path, metavar="FILE", help="PEM file of your own certificate")
    access.add_argument("--key", type=Path, metavar="FILE", help="PEM file of its private key")
    return access


def _place_options(access: argparse.ArgumentParser) -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False, parents=[access])
    place.add_argument(
        "--server", type=_address, default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the service (%(default)s)"
    )
    place.add_argument("--bundle", default="", metavar="NAME", help="a bundle; its default one if left out")
    place.add_argument("--corpus", default="", metavar="NAME", help="a corpus of the bundle; its default one likewise")
    place.add_argument("--include-sensitive", action="store_true", help="show what the service calls sensitive, too")
    place.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="seconds for a call (%(default)s)")
    return place


def _output_options(place: argparse.ArgumentParser) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, parents=[place])
    shared.add_argument("--json", action="store_true", help="print the answer as JSON")
    shared.add_argument("--thumbnails", action="store_true", help="keep thumbnails in the JSON, as base64")
    return shared


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    parser.add_argument("--top", type=_count(100), default=10, metavar="N", help="neurons to list (%(default)s)")
    _add_exemplars(parser)
    parser.add_argument("--similar", type=_count(100), default=12, metavar="N", help="similar images (%(default)s)")
    _add_parts(parser, "all that the bundle can give")
    _add_digest_first(parser)
    _add_page(parser)


def _add_explain_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="JPEG, PNG or WebP files, or folders")
    parser.add_argument("--top", type=_count(100), default=5, metavar="N", help="neurons to list (%(default)s)")
    _add_parts(parser, "fidelity,neurons")
    _add_digest_first(parser)
    parser.add_argument(
        "--in-flight", type=_count(1000), default=32, metavar="N", help="images asked at a time (%(default)s)"
    )
    parser.add_argument("--json-lines", action="store_true", help="print a JSON object for each image, one a line")


def _add_neuron(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("neuron_id", type=_neuron_id, metavar="NEURON", help="its number, from 0")
    _add_exemplars(parser)
    parser.add_argument("--similar", type=_count(100), default=10, metavar="N", help="similar neurons (%(default)s)")
    parser.add_argument("--co-active", type=_count(100), default=10, metavar="N", help="co-active ones (%(default)s)")
    _add_page(parser)


def _add_neurons(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", choices=get_args(NeuronOrderName), default="id", help="the order (%(default)s)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only neurons with a name that contains TEXT")
    parser.add_argument("--min-density", type=_share, metavar="X", help="only neurons at least this dense, 0 to 1")
    parser.add_argument("--max-density", type=_share, metavar="X", help="only neurons at most this dense, 0 to 1")
    parser.add_argument("--alive", action="store_true", help="only neurons that fire in the corpus")
    either = argparse.BooleanOptionalAction
    parser.add_argument("--dense-cluster", action=either, help="only neurons of the dense cluster, or only the others")
    parser.add_argument(
        "--sensitive", action=either, help="only sensitive neurons (with --include-sensitive), or only the others"
    )
    parser.add_argument("--top", type=_count(_PAGE_LIMIT), default=50, metavar="N", help="how many (%(default)s)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", metavar="WORDS", help='such as "red stripes"')
    query.add_argument("--neuron", type=_neuron_id, metavar="NEURON", help="neurons like this one")
    parser.add_argument("--top", type=_count(100), default=10, metavar="N", help="neurons to list (%(default)s)")
    _add_exemplars(parser)


def _add_similar(parser: argparse.ArgumentParser) -> None:
    query = _add_image(parser)
    query.add_argument("--neuron", type=_neuron_id, metavar="NEURON", help="images that excite this neuron")
    query.add_argument("--text", metavar="WORDS", help="images that these words describe")
    parser.add_argument("--by", choices=get_args(ImageSimilarity), help="how an image is compared (code_cosine)")
    parser.add_argument(
        "--only",
        type=_neuron_id,
        nargs="+",
        metavar="NEURON",
        help="neurons that alone count in the similarity of codes",
    )
    parser.add_argument("--top", type=_count(100), default=12, metavar="N", help="images to list (%(default)s)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "expression", metavar="EXPRESSION", help="such as '12>0.5 & 907 & !55': neurons, & | ! ( ) and > >= < <="
    )
    parser.add_argument("--top", type=_count(100), default=12, metavar="N", help="images to list (%(default)s)")


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", type=_url, default=_DEFAULT_METRICS, metavar="URL", help="its metrics page (%(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="show the means since the start, once")
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="seconds between (%(default)s)")
    parser.add_argument("--timeout", type=_seconds, default=5.0, metavar="S", help="seconds for a scrape (%(default)s)")


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "reload", "drain"), help="what to ask of the replica")
    parser.add_argument(
        "--address", type=_address, required=True, metavar="HOST:PORT", help="its admin port (PHOSPHENE_ADMIN_LISTEN)"
    )
    parser.add_argument("--timeout", type=_seconds, default=600.0, metavar="S", help="seconds to wait (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_parts(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--parts",
        type=_parts,
        metavar="PART,...",
        help=f"what to answer, of {', '.join(get_args(ExplainPartName))}; {default} if left out",
    )


def _add_digest_first(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--digest-first", action="store_true", help="ask by digest first, and send only what the service needs"
    )


def _add_image(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    image = parser.add_mutually_exclusive_group(required=True)
    image.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="a JPEG, PNG or WebP file")
    image.add_argument("--sha256", type=_sha256, metavar="DIGEST", help="an image of the corpus, by its digest")
    return image


def _add_exemplars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exemplars", type=_count(128), default=9, metavar="N", help="corpus images for each neuron (%(default)s)"
    )


def _add_page(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", type=_page, metavar="FILE", help="write the answer as a page for a browser")


def _count(limit: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= limit:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to {limit}")
        return int(value)

    return parse


def _neuron_id(value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) > _UINT32_LIMIT:
        raise argparse.ArgumentTypeError(f'{value!r} is not a neuron\'s number; to find neurons by words, use "search"')
    return int(value)


def _seconds(value: str) -> float:
    seconds = _number(value)
    if not 0 < seconds <= _DAY_S:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds above 0, and {_DAY_S} (a day) at most")
    return seconds


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{os.fsencode(value)!r} is not UTF-8; type it as UTF-8") from None
    return value


def _address(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is no address; say HOST:PORT, such as {DEFAULT_ADDRESS}")
    return _text(value)


def _url(value: str) -> str:
    try:
        parts = urlsplit(_text(value))
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise argparse.ArgumentTypeError(f"{value!r} is no address of a page; say http://HOST:PORT/metrics")
    return value


def _share(value: str) -> float:
    share = _number(value)
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"{value!r} is not in [0, 1]")
    return share


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a SHA-256 digest, 64 lowercase hexadecimal digits")
    return value


def _parts(value: str) -> Sequence[str]:
    names, known = value.split(","), get_args(ExplainPartName)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown part {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return names


def _page(value: str) -> Path:
    path = Path(value)
    try:
        check_page_path(path)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path
