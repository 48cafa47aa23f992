"""Options that do not go together: told as they were typed, with the usage, before anything is asked."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from phosphene.client.arguments import build_parser
from phosphene.client.command import main
from phosphene.client.option_pairs import contradiction
from phosphene.client.requests import explain_request, image_query, search_neurons_request
from phosphene.errors import InputError
from service.wire.requests import explain_query, neuron_search
from tests.client.fake_service import FakeService
from tests.client.sample_answers import drawing

SHA256 = "0123456789abcdef" * 4
FIELDS = ("only_neuron_ids", "similarity is", "is_sensitive", "max_density", "exemplars_per_neuron", "include_")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "similar --text red --only 3 5",
            "argument --only: not allowed with argument --text; it is for IMAGE or --sha256",
        ),
        ("similar --neuron 3 --only 5", "argument --only: not allowed with argument --neuron"),
        ("similar --neuron 0 --by code_cosine", "argument --by: not allowed with argument --neuron"),
        ("similar --text red --by residual_cosine", "argument --by: not allowed with argument --text"),
        (
            f"similar --sha256 {SHA256} --only 3 --by residual_cosine",
            "argument --only: not allowed with --by residual_c",
        ),
        (
            f"similar --sha256 {SHA256} --only {' '.join(map(str, range(65)))}",
            "argument --only: 65 neurons; the limit is 64",
        ),
        ("neurons --sensitive", "argument --sensitive: needs --include-sensitive, without which none is listed"),
        ("neurons --min-density 0.5 --max-density 0.1", "argument --max-density: 0.1 is below --min-density 0.5"),
        (
            "search red --top 100 --exemplars 82",
            "argument --exemplars: 82 with --top 100 may list 8200 images; the limit is",
        ),
        ("search red --top 100 --exemplars 11 --json --thumbnails", "1100 images; the limit with --thumbnails is 1024"),
        (
            f"explain --sha256 {SHA256} --top 100 --exemplars 82",
            "argument --exemplars: 82 with --top 100 and --similar 12 may list 8212 images; the limit is 8192: ask for",
        ),
        (
            "explain x.jpg --top 100 --exemplars 10 --html page.html",
            "may list 1112 images; the limit with --html is 1024",
        ),
        ("explain x.jpg --top 100 --exemplars 11 --parts top_images --json --thumbnails", "may list 1100 images"),
        ("search red --top 64 --thumbnails", "argument --thumbnails: needs --json; a page has them by itself"),
        ("explain x.jpg --thumbnails --html page.html", "argument --thumbnails: needs --json"),
        (
            f"explain --sha256 {SHA256} --digest-first",
            "argument --digest-first: not allowed with argument --sha256, which sends no image",
        ),
        ("models --ca x.pem", "argument --ca: needs --tls"),
        ("admin status --address 127.0.0.1:1 --key x.pem", "argument --key: needs --tls"),
        ("models --tls --certificate x.pem", "argument --certificate: needs --key"),
        ("explain-images x.jpg --tls --key x.pem", "argument --key: needs --certificate"),
    ],
)
def test_what_does_not_go_together_is_told_as_it_was_typed(service: FakeService, capsys, typed: str, said: str) -> None:
    words = typed.split()
    asked = [] if words[0] == "admin" else ["--server", service.address]
    with pytest.raises(SystemExit, match="2"):
        main([*words, *asked])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: phosphene {words[0]} ")
    assert f"phosphene {words[0]}: error: " in err
    assert said in err
    assert not any(field in err for field in FIELDS)
    assert not service.requests


@pytest.mark.parametrize(
    "typed",
    [
        f"similar --sha256 {SHA256} --only 3 --by code_inner_product",
        f"similar --sha256 {SHA256} --only {' '.join(map(str, range(64)))}",
        "similar --text red --top 100",
        "neurons --sensitive --include-sensitive",
        "neurons --no-sensitive",
        "neurons --min-density 0.5 --max-density 0.5",
        "search red --top 64 --exemplars 128",
        "explain x.jpg --digest-first",
        "search red --top 8 --exemplars 128 --json --thumbnails",
        "explain x.jpg --top 100 --html page.html",
        f"explain --sha256 {SHA256} --top 84 --exemplars 12 --html page.html",
        "explain x.jpg --top 100 --exemplars 128 --parts neurons,nearest_neurons,similar_images",
        "explain x.jpg --top 100 --exemplars 81 --parts top_images,similar_images",
        "models --tls --certificate x.pem --key x.pem",
        "top --once",
    ],
)
def test_what_goes_together_is_left_to_the_service(typed: str) -> None:
    assert contradiction(build_parser().parse_args(typed.split())) is None


def is_taken(read: Callable[[Any], Any], request: Any) -> bool:
    try:
        read(request)
    except InputError:
        return False
    return True


def test_what_goes_together_is_what_the_service_takes() -> None:
    for top, exemplars, thumbnails in product(
        (1, 8, 9, 54, 55, 64, 65, 93, 100), (1, 9, 10, 81, 82, 128), (False, True)
    ):
        counts: dict[str, Any] = {"exemplars_per_neuron": exemplars, "include_thumbnails": thumbnails}
        parts: Any = ["neurons", "top_images", "similar_images", "nearest_neurons"]
        explained = explain_request(image_query(b"x"), parts=parts, top_n=top, similar_count=12, **counts)
        searched = search_neurons_request("x", count=top, include_top_images=True, **counts)
        typed = ["--top", str(top), "--exemplars", str(exemplars), *(["--json", "--thumbnails"] if thumbnails else [])]
        for words, taken in (
            (["explain", "x.jpg"], is_taken(explain_query, explained)),
            (["search", "x"], is_taken(neuron_search, searched)),
        ):
            said = contradiction(build_parser().parse_args([*words, *typed]))
            assert (said is None) == taken


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["search", " "], "argument WORDS: ' ' holds no words"),
        (["search", "a" * 1025], "argument WORDS: it has 1025 characters; the limit is 1024"),
        (["similar", "--text", ""], "argument --text: '' holds no words"),
        (["neurons", "--filter", "a" * 257], "argument --filter: it has 257 characters; the limit is 256"),
        (
            ["similar", "--only", "3,5", "--text", "red"],
            "argument --only: '3,5' is not a neuron's number; type numbers with",
        ),
        (
            ["similar", "--only", "3", "5", "x.jpg"],
            "'x.jpg' is not a neuron's number; type numbers with spaces between",
        ),
        (["models", "--bundle", "scenes"], "unrecognized arguments: --bundle scenes"),
    ],
)
def test_a_value_that_no_service_takes_is_told_as_it_was_typed(service: FakeService, capsys, typed, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*typed, "--server", service.address])
    assert said in capsys.readouterr().err
    assert not service.requests


@pytest.mark.parametrize("by", ["its name", "a link", "another way"])
def test_a_page_does_not_replace_the_image_that_it_is_about(service: FakeService, tmp_path: Path, capsys, by) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(drawing("crimson", "circle"))
    (tmp_path / "link").symlink_to(photo)
    (tmp_path / "folder").mkdir()
    page = {"its name": photo, "a link": tmp_path / "link", "another way": tmp_path / "folder" / ".." / "photo.jpg"}[by]
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["explain", str(photo), "--html", str(page), "--server", service.address])
    assert "is the image, which the page would replace; name another file" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert not service.requests
