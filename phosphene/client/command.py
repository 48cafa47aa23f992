"""The `phosphene` command: asks a service and shows the answer as tables, JSON or a page.

    phosphene explain photo.jpg --html photo.html
    phosphene explain-images photos/ --json-lines > photos.jsonl
    phosphene neuron 123
    phosphene neurons --order density --filter red
    phosphene search "red stripes"
    phosphene similar photo.jpg
    phosphene images '12>0.5 & 907 & !55'
    phosphene models
    phosphene top --metrics http://127.0.0.1:9464/metrics
    phosphene admin status --address 127.0.0.1:50052

Exit status: 0 with an answer; 1 where the service refuses, fails or is not there, be it for one of many images, or
where standard output or a page cannot be written; 2 where what was typed is wrong, told before anything is asked; 130
where the user interrupts. Answers go to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from rich.console import RenderableType

from phosphene.client.access import AccessOptions, read_token
from phosphene.client.admin import AdminClient
from phosphene.client.arguments import parse_arguments
from phosphene.client.bulk import Tally, explain_files, image_files
from phosphene.client.canonical import to_json
from phosphene.client.option_pairs import wants_thumbnails
from phosphene.client.options import ExplainPartName, ListNeuronsOptions, NeuronPartName, Place, SearchImagesOptions
from phosphene.client.page import explanation_page, neuron_page
from phosphene.client.page_file import write_page
from phosphene.client.requests import read_image
from phosphene.client.standard_streams import (
    answer_console,
    progress_console,
    run_with_output,
    say,
    streams_at,
    write,
    write_utf8,
)
from phosphene.client.sync import Client
from phosphene.client.tables import (
    explanation_view,
    image_search_view,
    models_view,
    neuron_list_view,
    neuron_search_view,
    neuron_view,
)
from phosphene.client.top import run_top
from phosphene.client.words import operation_words
from phosphene.errors import InputError, PhospheneError, SettingError
from phosphene.v1.admin_pb2 import DrainResponse, GetStatusResponse, ReloadResponse
from phosphene.v1.models_pb2 import ListModelsResponse, Model
from phosphene.v1.neurons_pb2 import GetNeuronResponse, NeuronMatch

__all__ = ["main"]

# What a service of an earlier version refuses.
_LATER_NEURON_PARTS: tuple[NeuronPartName, ...] = ("histogram", "co_active_neurons")
_LATER_CHOICES = {"neurons": ("order", "--order"), "images": ("query", "neuron expressions")}
_EXEMPLARS_OF_A_RELATIVE = 5


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """One answer in every form that may be asked for."""

    answer: Message
    """What the service said, for JSON."""
    view: RenderableType
    """The same as tables."""
    page: str | None = None
    """The same as a page; None where none was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: what was typed after `phosphene`; None takes the process's own.

    Raises:
        SystemExit: with 2 where the arguments are wrong, with 0 after `--help`, with 1 where that cannot be written.
    """
    args = parse_arguments(arguments)
    return run_with_output(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    match args.verb:
        case "top":
            return _top(args)
        case "explain-images":
            return _explain_images(args)
        case "admin":
            return _admin(args)
        case _:
            return _answer(args)


def _answer(args: argparse.Namespace) -> int:
    try:
        image = read_image(args.image) if getattr(args, "image", None) is not None else None
        prepared = Client(args.server, timeout_s=args.timeout, **_access(args))
    except InputError as error:
        return _fail(error, 2)
    try:
        with prepared as client:
            reply = _ask(client, args, image)
    except PhospheneError as error:
        return _fail(error, 1, hint=_older_service(error, args.verb))
    return _give(reply, args)


def _explain_images(args: argparse.Namespace) -> int:
    try:
        files = image_files(args.paths)
        prepared = Client(args.server, timeout_s=args.timeout, **_access(args))
    except InputError as error:
        return _fail(error, 2)
    tally = Tally(image_count=len(files))
    status = 0
    try:
        with prepared as client:
            explain_files(
                client,
                files,
                tally,
                write_line=lambda line: (write_utf8 if args.json_lines else write)(f"{line}\n"),
                as_json=args.json_lines,
                progress=progress_console(),
                parts=args.parts or ["fidelity", "neurons"],
                top_n=args.top,
                digest_first=args.digest_first,
                in_flight=args.in_flight,
                **_place(args),
            )
    except PhospheneError as error:
        status = _fail(error, 1)
    except KeyboardInterrupt:
        status = 130
    say(str(tally))
    return status or int(tally.failed_count > 0)


def _admin(args: argparse.Namespace) -> int:
    try:
        prepared = AdminClient(args.address, timeout_s=args.timeout, **_access(args))
    except InputError as error:
        return _fail(error, 2)
    try:
        with prepared as client:
            answer = _operated(client, args.action)
    except PhospheneError as error:
        return _fail(error, 1)
    if args.json:
        write_utf8(to_json(answer))
    else:
        write(f"{operation_words(answer)}\n")
    return 0


def _operated(client: AdminClient, action: str) -> GetStatusResponse | ReloadResponse | DrainResponse:
    match action:
        case "status":
            return client.status()
        case "reload":
            return client.reload()
        case "drain":
            return client.drain()
        case _:
            raise AssertionError(f"the parser knows an action that the command does not: {action}")


def _top(args: argparse.Namespace) -> int:
    try:
        run_top(answer_console(), args.metrics, once=args.once, interval_s=args.interval, timeout_s=args.timeout)
    except PhospheneError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        # How a live view is left.
        return 0
    return 0


def _ask(client: Client, args: argparse.Namespace, image: bytes | None) -> _Reply:
    match args.verb:
        case "explain":
            return _explain(client, args, image)
        case "neuron":
            return _neuron(client, args)
        case "neurons":
            return _neurons(client, args)
        case "search":
            return _search(client, args)
        case "similar":
            return _similar(client, args, image)
        case "images":
            return _images(client, args)
        case "models":
            models = client.models()
            return _Reply(answer=ListModelsResponse(models=models), view=models_view(models))
        case verb:
            raise AssertionError(f"the parser knows a verb that the command does not: {verb}")


def _explain(client: Client, args: argparse.Namespace, image: bytes | None) -> _Reply:
    parts = args.parts or _parts_of(client.model(args.bundle), by_digest=image is None, patches=args.html is not None)
    answer = client.explain(
        image,
        sha256=args.sha256,
        digest_first=args.digest_first,
        parts=parts,
        top_n=args.top,
        exemplars_per_neuron=args.exemplars,
        similar_count=args.similar,
        include_thumbnails=wants_thumbnails(args),
        include_patch_maps=args.html is not None,
        **_place(args),
    )
    title = args.image.name if args.image is not None else f"image {args.sha256[:12]}"
    page = explanation_page(answer, image=image, title=title) if args.html else None
    return _Reply(answer=answer, view=explanation_view(answer, title), page=page)


def _parts_of(model: Model, *, by_digest: bool, patches: bool) -> list[ExplainPartName]:
    """What a bundle can tell of an image: asking for more would be refused."""
    parts: list[ExplainPartName] = ["fidelity", "neurons"]
    if model.corpora:
        parts += ["top_images", "similar_images"]
    if model.corpora and not by_digest:
        parts.append("nearest_neurons")
    if model.score_count and not by_digest:
        parts.append("scores")
    if model.HasField("grid") and patches and not by_digest:
        parts.append("patch_activations")
    return parts


def _neuron(client: Client, args: argparse.Namespace) -> _Reply:
    parts: list[NeuronPartName] = ["top_images", "spread_images", "similar_neurons"]
    try:
        answer = _asked_neuron(client, args, [*parts, *_LATER_NEURON_PARTS])
    except InputError as error:
        if error.field != "parts":
            raise
        # Nobody asked for these parts by name, so an older service's answer without them will do.
        answer = _asked_neuron(client, args, parts)
        left_out = ", ".join(_LATER_NEURON_PARTS)
        if args.html is None or "error" not in streams_at(args.html):
            say(f"the service is older than this command; the answer is without {left_out}")
    page = neuron_page(answer, similar=_relatives(client, args, answer)) if args.html else None
    return _Reply(answer=answer, view=neuron_view(answer), page=page)


def _asked_neuron(client: Client, args: argparse.Namespace, parts: Sequence[NeuronPartName]) -> GetNeuronResponse:
    return client.neuron(
        args.neuron_id,
        parts=parts,
        exemplar_count=args.exemplars,
        similar_count=args.similar,
        co_active_count=args.co_active,
        include_thumbnails=wants_thumbnails(args),
        include_patch_maps=args.html is not None,
        **_place(args),
    )


def _relatives(client: Client, args: argparse.Namespace, answer: GetNeuronResponse) -> Sequence[NeuronMatch]:
    """The neurons like one, with pictures, which the answer about it has not; none where a reload came between."""
    found = client.search_neurons(
        neuron_id=args.neuron_id,
        count=args.similar,
        include_top_images=True,
        exemplars_per_neuron=min(args.exemplars, _EXEMPLARS_OF_A_RELATIVE),
        include_thumbnails=True,
        include_patch_maps=True,
        **_place(args),
    )
    return found.neurons if found.provenance.generation == answer.provenance.generation else ()


def _neurons(client: Client, args: argparse.Namespace) -> _Reply:
    options = ListNeuronsOptions(
        order=args.order,
        name_contains=args.filter,
        alive_only=args.alive,
        bundle=args.bundle,
        corpus=args.corpus,
        include_sensitive=args.include_sensitive,
    )
    if args.min_density is not None:
        options["min_density"] = args.min_density
    if args.max_density is not None:
        options["max_density"] = args.max_density
    if args.dense_cluster is not None:
        options["in_dense_cluster"] = args.dense_cluster
    if args.sensitive is not None:
        options["is_sensitive"] = args.sensitive
    answer = client.neurons_page(page_size=args.top, **options)
    return _Reply(answer=answer, view=neuron_list_view(answer))


def _search(client: Client, args: argparse.Namespace) -> _Reply:
    answer = client.search_neurons(
        args.text,
        neuron_id=args.neuron,
        count=args.top,
        include_top_images=True,
        exemplars_per_neuron=args.exemplars,
        include_thumbnails=wants_thumbnails(args),
        **_place(args),
    )
    title = repr(args.text) if args.text is not None else f"neuron {args.neuron}"
    return _Reply(answer=answer, view=neuron_search_view(answer, title))


def _similar(client: Client, args: argparse.Namespace, image: bytes | None) -> _Reply:
    options: SearchImagesOptions = {
        "bundle": args.bundle,
        "corpus": args.corpus,
        "count": args.top,
        "include_thumbnails": wants_thumbnails(args),
    }
    if args.by is not None:
        options["similarity"] = args.by
    if args.only is not None:
        options["only_neuron_ids"] = args.only
    answer = client.search_images(image, sha256=args.sha256, neuron_id=args.neuron, text=args.text, **options)
    if args.neuron is not None:
        title = f"neuron {args.neuron}"
    elif args.text is not None:
        title = repr(args.text)
    else:
        title = args.image.name if args.image is not None else f"image {args.sha256[:12]}"
    return _Reply(answer=answer, view=image_search_view(answer, title, only_neuron_ids=args.only or ()))


def _images(client: Client, args: argparse.Namespace) -> _Reply:
    answer = client.search_images(
        expression=args.expression, count=args.top, include_thumbnails=wants_thumbnails(args), **_place(args)
    )
    return _Reply(answer=answer, view=image_search_view(answer, args.expression))


def _access(args: argparse.Namespace) -> AccessOptions:
    token = read_token(args.token_file) if args.token_file is not None else None
    return AccessOptions(token=token, tls=args.tls, ca=args.ca, certificate=args.certificate, key=args.key)


def _place(args: argparse.Namespace) -> Place:
    return Place(bundle=args.bundle, corpus=args.corpus, include_sensitive=args.include_sensitive)


def _give(reply: _Reply, args: argparse.Namespace) -> int:
    """Write the page, where one was asked for, and show the answer, even where the page cannot be written."""
    status = 0
    if reply.page is not None:
        streams = streams_at(args.html)
        try:
            write_page(reply.page, args.html)
            if not streams:
                say(f"wrote {args.html}")
        except SettingError as error:
            status = _fail(error, 1)
        if "output" in streams:
            # Tables behind it would spoil it.
            return status
    _show(reply, args)
    return status


def _show(reply: _Reply, args: argparse.Namespace) -> None:
    if args.json:
        write_utf8(to_json(reply.answer, include_thumbnails=args.thumbnails))
    else:
        answer_console().print(reply.view)


def _older_service(error: PhospheneError, verb: str) -> str:
    """What else may be at fault where a service refuses what this command has checked: it may not know it yet."""
    field, what = _LATER_CHOICES.get(verb, ("", ""))
    if not isinstance(error, InputError) or not field or error.field != field:
        return ""
    return f" (the service may be older than this command and know less of {what}: upgrade it, or ask for another)"


def _fail(error: Exception, status: int, *, hint: str = "") -> int:
    say(f"{error}{hint}")
    return status
