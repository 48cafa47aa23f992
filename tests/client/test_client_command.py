"""The command, through its main(): output, exit status, messages."""

import errno
import json
import os
import re
import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import Parse

from phosphene.client.command import main
from phosphene.v1.explain_pb2 import ExplainPart, ExplainResponse
from phosphene.v1.images_pb2 import SearchImagesResponse
from phosphene.v1.models_pb2 import ListModelsResponse
from phosphene.v1.neurons_pb2 import (
    GetNeuronResponse,
    ListNeuronsResponse,
    NeuronOrder,
    NeuronPart,
    SearchNeuronsResponse,
)
from tests.client.fake_service import Failure, FakeService, serving
from tests.client.sample_answers import NEURON_COUNT, drawing, model

SHA256 = "0123456789abcdef" * 4
TOO_LONG = "a" * 300


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(drawing("crimson", "circle", size_px=256))
    return path


def test_explain_prints_tables(service: FakeService, photo: Path, capsys) -> None:
    assert main(["explain", str(photo), "--server", service.address, "--top", "4", "--exemplars", "3"]) == 0
    out, err = capsys.readouterr()
    assert "You can trust this list" in out
    assert "stronger than 99.7 %" in out
    assert "goldenrod things" in out
    assert "encoder tiny-clip, block 5, patches" in out
    assert out.count("█") > 4
    assert err == ""
    request = service.requests[-1]
    assert (request.top_n, request.exemplars_per_neuron, request.include_thumbnails) == (4, 3, False)


def test_texts_of_a_corpus_cannot_steer_the_terminal(service: FakeService, photo: Path, capsys) -> None:
    for words in (
        ["explain", str(photo)],
        ["neuron", "0"],
        ["neurons"],
        ["search", "red"],
        ["similar", str(photo)],
        ["images", "1"],
    ):
        assert main([*words, "--server", service.address]) == 0
        out = capsys.readouterr().out
        assert "alert('caught')" in out
        assert "[bold]" in out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", out)


def test_explain_asks_for_what_the_bundle_can_give(service: FakeService, photo: Path) -> None:
    def parts(*arguments: str) -> set[str]:
        assert main(["explain", *arguments, "--json", "--server", service.address]) == 0
        names = {ExplainPart.Name(part) for part in service.requests[-1].parts}
        return {name.removeprefix("EXPLAIN_PART_").lower() for name in names}

    stored = {"fidelity", "neurons", "top_images", "similar_images"}
    page = photo.with_suffix(".html")
    assert parts(str(photo)) == stored | {"nearest_neurons", "scores"}
    assert parts(str(photo), "--html", str(page)) == stored | {"nearest_neurons", "scores", "patch_activations"}
    assert parts("--sha256", SHA256) == stored
    assert parts(str(photo), "--parts", "code,neurons") == {"code", "neurons"}
    service.model = model(with_corpus=False, patches=False, score_count=0)
    assert parts(str(photo), "--html", str(page)) == {"fidelity", "neurons"}


def test_json_is_the_answer_without_thumbnails(service: FakeService, photo: Path, capsys) -> None:
    assert main(["explain", str(photo), "--json", "--top", "2", "--server", service.address]) == 0
    out, _ = capsys.readouterr()
    answer = Parse(out, ExplainResponse())
    assert len(answer.neurons) == 2
    assert json.loads(out)["neurons"][0]["neuron"]["neuronId"] == 11
    assert "thumbnail" not in out


def test_json_keeps_thumbnails_where_they_are_asked_for(service: FakeService, photo: Path, capsys) -> None:
    arguments = ["explain", str(photo), "--json", "--thumbnails", "--server", service.address]
    assert main(arguments) == 0
    answer = Parse(capsys.readouterr().out, ExplainResponse())
    assert all(shown.image.thumbnail.startswith(b"\xff\xd8") for shown in answer.neurons[0].top_images)


def test_json_of_every_verb_is_its_message(service: FakeService, photo: Path, capsys) -> None:
    def said(*arguments: str) -> str:
        assert main([*arguments, "--json", "--server", service.address]) == 0
        return capsys.readouterr().out

    assert Parse(said("neuron", "0"), GetNeuronResponse()).statistics.firing_count == 37
    assert json.loads(said("neuron", "0"))["neuron"]["neuronId"] == 0
    assert Parse(said("neurons", "--top", "7"), ListNeuronsResponse()).total_count == NEURON_COUNT
    assert len(Parse(said("search", "red stripes", "--top", "3"), SearchNeuronsResponse()).neurons) == 3
    assert len(json.loads(said("similar", "--neuron", "0"))["images"]) == 12
    found = Parse(said("images", "12>0.5 & !55", "--top", "3"), SearchImagesResponse())
    assert (found.total_count, len(found.images)) == (340, 3)
    assert Parse(said("models"), ListModelsResponse()).models[0].bundle == "scenes"


def test_lists_say_how_much_there_is(service: FakeService, capsys) -> None:
    order = ["--order", "density", "--filter", "red", "--alive", "--max-density", "0.5"]
    assert main(["neurons", "--top", "5", *order, "--server", service.address]) == 0
    assert f"5 of {NEURON_COUNT} neurons" in capsys.readouterr().out
    request = service.requests[-1]
    assert request.order == NeuronOrder.NEURON_ORDER_DENSITY
    assert (request.filter.name_contains, request.filter.alive_only, request.filter.max_density) == ("red", True, 0.5)
    assert not request.filter.HasField("min_density")
    assert not request.filter.HasField("in_dense_cluster")
    assert not request.filter.HasField("is_sensitive")
    assert (
        main(["neurons", "--no-dense-cluster", "--sensitive", "--include-sensitive", "--server", service.address]) == 0
    )
    chosen = service.requests[-1].filter
    assert (chosen.HasField("in_dense_cluster"), chosen.in_dense_cluster, chosen.is_sensitive) == (True, False, True)


def test_the_other_verbs_print_tables(service: FakeService, photo: Path, capsys) -> None:
    for words, expected in (
        (["neuron", "42"], "fires on 37 of 4096 images"),
        (["search", "red stripes"], "cosine of text and exemplars"),
        (["search", "--neuron", "3"], "cosine of directions"),
        (["similar", str(photo)], "cosine of codes"),
        (["similar", "--sha256", SHA256], "cosine of codes"),
        (["similar", "--neuron", "3"], "activation"),
        (["similar", "--text", "red stripes"], "cosine with the words"),
        (["similar", str(photo), "--by", "residual_cosine"], "finds 96 % of the nearest"),
        (["similar", str(photo), "--by", "code_inner_product"], "inner product of codes"),
        (["similar", str(photo), "--only", "3", "5"], "part of the cosine of codes from 3, 5"),
        (["images", "12>0.5 & !55"], "Images for 12>0.5 & !55: 12 of 340"),
        (["images", "12"], "sum of activation / largest"),
        (["models"], "scenes: 4096 images, 2 quarantined"),
    ):
        assert main([*words, "--server", service.address]) == 0
        assert expected in capsys.readouterr().out


def test_a_neuron_is_shown_with_its_meaning_its_range_and_its_company(service: FakeService, capsys) -> None:
    assert main(["neuron", "42", "--co-active", "2", "--server", service.address]) == 0
    out = capsys.readouterr().out
    assert "monosemanticity 0.62 (1: its images are all alike)" in out
    assert "dense" not in out
    assert re.search(
        "0 to 3.50 +█{12} 20 *\n3.50 to 7.00 +█{6} +10 *\n7.00 to 10.5 +0 *\n10.5 to 14.0 +█+.? +7 *\n", out
    )
    assert re.search("NPMI +images with both", out)
    assert re.search(r"\n22 .* 0\.750 +30 ", out)
    # They come without exemplars, those of a search with them.
    assert re.search("Neurons like it\nneuron +name +cosine of directions +density *\n", out)
    request = service.requests[-1]
    assert {NeuronPart.NEURON_PART_HISTOGRAM, NeuronPart.NEURON_PART_CO_ACTIVE_NEURONS} <= set(request.parts)
    assert request.co_active_count == 2
    assert main(["search", "red", "--server", service.address]) == 0
    assert re.search("density +exemplars show", capsys.readouterr().out)
    assert main(["neuron", "9", "--server", service.address]) == 0
    assert "dense: so many images share it that it says little of each" in capsys.readouterr().out


def test_similar_images_come_with_what_their_search_misses(service: FakeService, photo: Path, capsys) -> None:
    assert main(["similar", str(photo), "--server", service.address]) == 0
    out = capsys.readouterr().out
    assert "finds 97 % of the nearest images" in out
    assert "do not count: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more." in out
    for asked in (["similar", "--neuron", "3"], ["images", "12"]):
        assert main([*asked, "--server", service.address]) == 0
        out = capsys.readouterr().out
        assert "do not count" not in out
        assert "of the nearest images" not in out


def test_pages_are_written_whole(service: FakeService, photo: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "out.html"
    assert main(["explain", str(photo), "--html", str(page), "--server", service.address]) == 0
    assert f"wrote {page}" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert main(["neuron", "3", "--html", str(page), "--server", service.address]) == 0
    assert "Neuron 3" in page.read_text(encoding="utf-8")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.html", "photo.jpg"]


class ReloadedService(FakeService):
    """A service that switches what it serves after its answer about a neuron, whose numbers then mean others."""

    def SearchNeurons(self, request, context):
        answer = super().SearchNeurons(request, context)
        answer.provenance.generation = "g-2"
        return answer


def test_a_page_mixes_no_two_generations(service: FakeService, tmp_path: Path) -> None:
    page, marks = tmp_path / "out.html", []
    with serving(ReloadedService()) as reloaded:
        for one in (service, reloaded):
            assert main(["neuron", "3", "--html", str(page), "--server", one.address]) == 0
            like = page.read_text(encoding="utf-8").split("Neurons like it")[1].split("Neurons that fire with it")[0]
            marks.append([like.count("<img"), "cosine 0.50" in like])
    assert marks[0][0] > 0
    assert marks == [[marks[0][0], False], [0, True]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "no/such.jpg"], "'no/such.jpg' does not exist"),
        (["explain", "."], "is a folder"),
        (["explain"], "one of the arguments"),
        (["explain", "x.jpg", "--sha256", SHA256], "not allowed with"),
        (["explain", "--sha256", "abc"], "'abc' is not a SHA-256 digest"),
        (["explain", "x.jpg", "--top", "0"], "'0' is not a whole number from 1 to 100"),
        (["explain", "x.jpg", "--top", "101"], "'101' is not a whole number from 1 to 100"),
        (["explain", "x.jpg", "--parts", "neurons,latents"], "unknown part 'latents'"),
        (["explain", "x.jpg", "--html", "no/such/folder/x.html"], "no folder 'no/such/folder'"),
        (["explain", "x.jpg", "--html", "."], "is a folder; name a file"),
        (["neuron", "stripes"], 'use "search"'),
        (["neuron", "-1"], "usage"),
        (["neurons", "--order", "beauty"], "invalid choice"),
        (["neurons", "--max-density", "1.5"], "'1.5' is not in [0, 1]"),
        (["search"], "one of the arguments"),
        (["images"], "EXPRESSION"),
        (["images", "1", "--top", "0"], "'0' is not a whole number from 1 to 100"),
        (["models", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["models", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
        (["models", "--timeout", "1e300"], "'1e300' is not a number of seconds above 0, and 86400 (a day) at most"),
        (["models", "--server", ""], "argument --server: '' is no address; say HOST:PORT"),
        (["models", "--server", "localhost:99999"], "address is 'localhost:99999'; the highest port is 65535"),
        (["models", "--server", "http://localhost:50051"], "address is 'http://localhost:50051', a web page's; say"),
        (["explain", TOO_LONG], "a' cannot be read: File name too long; name a file"),
        (["explain", "x.jpg", "--html", f"{TOO_LONG}/x.html"], "a/x.html': File name too long; name another file"),
        (["explain", "x.jpg", "--html", "a" * 250], "a': File name too long; name another file"),
        (["search", "caf\udce9"], "argument WORDS: b'caf\\xe9' is not UTF-8"),
        (["similar", "--text", "\udce9"], "argument --text: b'\\xe9' is not UTF-8"),
        (["images", "\udce9"], "argument EXPRESSION: b'\\xe9' is not UTF-8"),
        (["neurons", "--filter", "\udce9"], "argument --filter: b'\\xe9' is not UTF-8"),
        (["explain", "--bundle", "\udce9", "x.jpg"], "argument --bundle: b'\\xe9' is not UTF-8"),
        (["explain", "--corpus", "\udce9", "x.jpg"], "argument --corpus: b'\\xe9' is not UTF-8"),
        (["dream"], "invalid choice"),
        ([], "usage"),
    ],
)
def test_what_is_typed_wrong_ends_with_2_before_anything_is_asked(
    service: FakeService, capsys, arguments: list[str], said: str
) -> None:
    if arguments and "--server" not in arguments:
        arguments = [*arguments, "--server", service.address]
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not service.requests


def test_a_path_that_may_not_be_entered_is_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = tmp_path / "closed", Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if closed in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert main(["explain", str(closed / "x.jpg")]) == 2
    assert f"'{closed}/x.jpg' cannot be read: Permission denied; name a file" in capsys.readouterr().err
    assert main(["explain-images", str(closed / "photos")]) == 2
    assert f"'{closed}/photos' cannot be read: Permission denied; give files" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "x.jpg", "--html", str(closed / "x.html")])
    assert f"'{closed}/x.html': Permission denied; name another file" in capsys.readouterr().err


def test_a_file_may_have_a_name_that_is_not_utf_8(service: FakeService, photo: Path, tmp_path: Path, capsys) -> None:
    odd, page = photo.rename(photo.with_name("caf\udce9.jpg")), tmp_path / "out.html"
    assert main(["explain", str(odd), "--html", str(page), "--server", service.address]) == 0
    assert "caf.jpg" in capsys.readouterr().out
    assert "caf.jpg" in page.read_text(encoding="utf-8")


def test_what_is_no_regular_file_is_no_image(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["explain", str(tmp_path / "pipe")]) == 2
    assert "is no regular file; give the path" in capsys.readouterr().err


def test_what_the_service_refuses_ends_with_1(service: FakeService, photo: Path, tmp_path: Path, capsys) -> None:
    def refusal(*arguments: str) -> str:
        assert main([*arguments, "--server", service.address]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("phosphene: ")
        assert err.count("\n") == 1
        return err

    text = tmp_path / "notes.txt"
    text.write_text("no image")
    page = tmp_path / "out.html"
    assert "not an image" in refusal("explain", str(text), "--html", str(page))
    assert not page.exists()
    assert "there is no neuron_id 999" in refusal("neuron", "999")
    assert "there is no bundle nowhere" in refusal("explain", str(photo), "--bundle", "nowhere")
    service.failures.append(Failure(grpc.StatusCode.INTERNAL, "see \x1b[31mr-7\n\nhere"))
    assert "see [31mr-7  here" in refusal("models")


def test_a_page_goes_through_a_pipe_and_leaves_it(service: FakeService, tmp_path: Path, capsys) -> None:
    pipe, pages = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: pages.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    assert main(["neuron", "3", "--html", str(pipe), "--server", service.address]) == 0
    assert pipe.is_fifo()
    reader.join(timeout=10)
    assert pages[0].rstrip().endswith("</html>")
    assert f"wrote {pipe}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [pipe]


def test_no_service_ends_with_1_and_the_remedy(deserted_address: str, capsys) -> None:
    assert main(["models", "--server", deserted_address]) == 1
    err = capsys.readouterr().err
    assert deserted_address in err
    assert "python -m service" in err


def test_a_reader_that_goes_away_is_no_failure(service: FakeService, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = f"{sys.executable} -m phosphene.client neurons --json --top 200 --server {service.address} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""
    assert done.returncode == 0
