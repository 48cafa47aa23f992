"""What may be typed after `phosphene`; checks it as far as one can without a service, and asks nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from phosphene.client.option_pairs import contradiction
from phosphene.client.options import ExplainPartName, ImageSimilarity, NeuronOrderName
from phosphene.client.standard_streams import run_with_output, tell, write
from phosphene.client.transport import DEFAULT_ADDRESS
from phosphene.client.typed_values import (
    address,
    count,
    counting_neuron,
    neuron_id,
    page,
    part_of_name,
    parts,
    seconds,
    sha256,
    share,
    text,
    url,
    words,
)

__all__ = ["build_parser", "parse_arguments"]

_PAGE_LIMIT = 1000
_DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed, `verb` and that verb's arguments; None takes the process's own.

    Raises:
        SystemExit: with 2 where it is wrong, with 0 after help, with 1 where help cannot be written.
    """
    args = build_parser().parse_args(arguments)
    wrong = contradiction(args)
    if wrong is not None:
        args.refuse(wrong)
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has `verb`, that verb's arguments, and `refuse`, which tells what is wrong."""
    parser: argparse.ArgumentParser = _Parser(
        prog="phosphene", description="Which concepts light up inside a vision model when it looks at an image."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    access = _access_options()
    called = _call_options(access)
    place = _place_options(called)
    shared = _output_options(place)

    def verb(name: str, said: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        description = f"{said[0].upper()}{said[1:]}."
        made = verbs.add_parser(name, parents=parents, help=said, description=description, allow_abbrev=False)
        # What every argument passes for which no other type is named.
        made.register("type", None, text)
        made.set_defaults(refuse=made.error)
        return made

    _add_explain(verb("explain", "what lights up on an image", shared))
    _add_explain_images(verb("explain-images", "what lights up on each of many", place))
    _add_neuron(verb("neuron", "what is known of a neuron", shared))
    _add_neurons(verb("neurons", "neurons in an order", shared))
    _add_search(verb("search", "neurons by words, or like another neuron", shared))
    _add_similar(verb("similar", "images like an image, that excite a neuron, or that words describe", shared))
    _add_images(verb("images", "images that fire as a neuron expression asks", shared))
    _add_models(verb("models", "the service's bundles and corpora", called))
    _add_top(verb("top", "the service's metrics, live"))
    _add_admin(verb("admin", "how a replica is; reload or drain it", access))
    return parser


class _Parser(argparse.ArgumentParser):
    """Prints as the rest of the command does: help is an answer, which may be one that cannot be written."""

    def print_help(self, file: Any = None) -> None:
        if file is not None:
            super().print_help(file)
            return

        def print_it() -> int:
            write(self.format_help())
            return 0

        status = run_with_output(print_it)
        if status:
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.prog}: error: {message}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            tell(message)
        sys.exit(status)


def _access_options() -> argparse.ArgumentParser:
    access = argparse.ArgumentParser(add_help=False)
    access.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds the API token")
    access.add_argument("--tls", action="store_true", help="talk TLS")
    access.add_argument("--ca", type=Path, metavar="FILE", help="PEM file of authorities; gRPC's own if left out")
    access.add_argument("--certificate", type=Path, metavar="FILE", help="PEM file of your own certificate")
    access.add_argument("--key", type=Path, metavar="FILE", help="PEM file of its private key")
    return access


def _call_options(access: argparse.ArgumentParser) -> argparse.ArgumentParser:
    called = argparse.ArgumentParser(add_help=False, parents=[access])
    called.add_argument(
        "--server", type=address, default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the service (%(default)s)"
    )
    called.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="S", help="seconds to wait for an answer (%(default)s)"
    )
    return called


def _place_options(called: argparse.ArgumentParser) -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False, parents=[called])
    place.add_argument("--bundle", default="", metavar="NAME", help="a bundle; its default one if left out")
    place.add_argument("--corpus", default="", metavar="NAME", help="a corpus of the bundle; its default one likewise")
    place.add_argument("--include-sensitive", action="store_true", help="show what the service calls sensitive, too")
    return place


def _output_options(place: argparse.ArgumentParser) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, parents=[place])
    _add_json(shared)
    shared.add_argument("--thumbnails", action="store_true", help="keep thumbnails in the JSON, as base64")
    return shared


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_image(parser)
    parser.add_argument("--top", type=count(100), default=10, metavar="N", help="neurons to list (%(default)s)")
    _add_exemplars(parser)
    parser.add_argument("--similar", type=count(100), default=12, metavar="N", help="similar images (%(default)s)")
    _add_parts(parser, "all that the bundle can give")
    _add_digest_first(parser)
    _add_page(parser)


def _add_explain_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="JPEG, PNG or WebP files, or folders")
    parser.add_argument("--top", type=count(100), default=5, metavar="N", help="neurons to list (%(default)s)")
    _add_parts(parser, "fidelity,neurons")
    _add_digest_first(parser)
    parser.add_argument(
        "--in-flight", type=count(1000), default=32, metavar="N", help="images asked at a time (%(default)s)"
    )
    parser.add_argument("--json-lines", action="store_true", help="print a JSON object for each image, one a line")


def _add_neuron(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("neuron_id", type=neuron_id, metavar="NEURON", help="its number, from 0")
    _add_exemplars(parser)
    parser.add_argument("--similar", type=count(100), default=10, metavar="N", help="similar neurons (%(default)s)")
    parser.add_argument("--co-active", type=count(100), default=10, metavar="N", help="co-active ones (%(default)s)")
    _add_page(parser)


def _add_neurons(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", choices=get_args(NeuronOrderName), default="id", help="the order (%(default)s)")
    parser.add_argument(
        "--filter", type=part_of_name, default="", metavar="TEXT", help="only neurons with a name that contains TEXT"
    )
    parser.add_argument("--min-density", type=share, metavar="X", help="only neurons at least this dense, 0 to 1")
    parser.add_argument("--max-density", type=share, metavar="X", help="only neurons at most this dense, 0 to 1")
    parser.add_argument("--alive", action="store_true", help="only neurons that fire in the corpus")
    either = argparse.BooleanOptionalAction
    parser.add_argument("--dense-cluster", action=either, help="only neurons of the dense cluster, or only the others")
    parser.add_argument(
        "--sensitive", action=either, help="only sensitive neurons (with --include-sensitive), or only the others"
    )
    parser.add_argument("--top", type=count(_PAGE_LIMIT), default=50, metavar="N", help="how many (%(default)s)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", type=words, metavar="WORDS", help='such as "red stripes"')
    query.add_argument("--neuron", type=neuron_id, metavar="NEURON", help="neurons like this one")
    parser.add_argument("--top", type=count(100), default=10, metavar="N", help="neurons to list (%(default)s)")
    _add_exemplars(parser)


def _add_similar(parser: argparse.ArgumentParser) -> None:
    query = _add_image(parser)
    query.add_argument("--neuron", type=neuron_id, metavar="NEURON", help="images that excite this neuron")
    query.add_argument("--text", type=words, metavar="WORDS", help="images that these words describe")
    parser.add_argument("--by", choices=get_args(ImageSimilarity), help="how an image is compared (code_cosine)")
    parser.add_argument(
        "--only",
        type=counting_neuron,
        nargs="+",
        metavar="NEURON",
        help="neurons that alone count in the similarity of codes",
    )
    parser.add_argument("--top", type=count(100), default=12, metavar="N", help="images to list (%(default)s)")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "expression", metavar="EXPRESSION", help="such as '12>0.5 & 907 & !55': neurons, & | ! ( ) and > >= < <="
    )
    parser.add_argument("--top", type=count(100), default=12, metavar="N", help="images to list (%(default)s)")


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", type=url, default=_DEFAULT_METRICS, metavar="URL", help="its metrics page (%(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="show the means since the start, once")
    parser.add_argument("--interval", type=seconds, default=2.0, metavar="S", help="seconds between (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds for a scrape (%(default)s)")


def _add_admin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "reload", "drain"), help="what to ask of the replica")
    parser.add_argument(
        "--address", type=address, required=True, metavar="HOST:PORT", help="its admin port (PHOSPHENE_ADMIN_LISTEN)"
    )
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="seconds to wait (%(default)s)")
    _add_json(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.set_defaults(thumbnails=False)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _add_parts(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--parts",
        type=parts,
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
    image.add_argument("--sha256", type=sha256, metavar="DIGEST", help="an image of the corpus, by its digest")
    return image


def _add_exemplars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exemplars", type=count(128), default=9, metavar="N", help="corpus images for each neuron (%(default)s)"
    )


def _add_page(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--html",
        type=page,
        metavar="FILE",
        help="write the answer as a page for a browser, too; to /dev/stdout, the page alone",
    )
