"""Pages: whole, self-contained, escaped, and with everything that the answer holds."""

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest
from PIL import Image

from phosphene.client import explanation_page, neuron_page
from phosphene.client.page_figures import data_uri
from phosphene.v1.explain_pb2 import ExplainResponse
from phosphene.v1.neurons_pb2 import GetNeuronResponse, NeuronMatch
from phosphene.v1.values_pb2 import CodeSearch, ImageRegion, PatchGrid, PatchMap, SearchEngine
from tests.client.sample_answers import HOSTILE, drawing, explanation, neuron_answer

VOID = {"meta", "img", "br", "link"}
ACTIVE = {"script", "link", "iframe", "object", "embed", "form", "base", "a"}


class Reader(HTMLParser):
    """Collects the elements of a page and refuses one that is not well nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words += data

    def count(self, tag: str, kind: str | None = None) -> int:
        return sum(
            name == tag and (kind is None or kind in attributes.get("class", "").split())
            for name, attributes in self.elements
        )


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    photo = drawing("crimson", "circle", size_px=256)
    return {
        "whole": explanation_page(explanation(), image=photo, title=HOSTILE),
        "wide": explanation_page(explanation(width=900, height=500), image=photo, title="wide.jpg"),
        "bare": explanation_page(ExplainResponse()),
        "without thumbnails": explanation_page(explanation(thumbnails=False, patches=False)),
        "neuron": neuron_page(neuron_answer()),
        "bare neuron": neuron_page(GetNeuronResponse()),
    }


def test_nothing_is_loaded_and_nothing_runs(pages: dict[str, str]) -> None:
    for page in pages.values():
        reader = Reader(page)
        assert not {"script", "link", "iframe", "object", "embed", "form", "base", "a"} & {
            t for t, _ in reader.elements
        }
        for tag, attributes in reader.elements:
            assert not [name for name in attributes if name.startswith("on") or name in {"href", "srcset", "action"}]
            assert attributes.get("src", "data:image/").startswith("data:image/"), tag
        assert not re.search(r"url\((?!\"data:image/)", page)
        assert "@import" not in page
        assert "default-src 'none'" in page


def test_hostile_texts_are_shown_as_they_are_written(pages: dict[str, str]) -> None:
    reader = Reader(pages["whole"])
    assert reader.words.count("<script>alert('caught')</script>") >= 3
    assert any("<img src=x onerror=alert(1)>" in attributes.get("title", "") for _, attributes in reader.elements)
    assert "<script" not in pages["whole"]
    assert "<img src=x" not in pages["whole"]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", pages["whole"])
    assert "<b>big</b>" in reader.words


def test_a_page_holds_every_neuron_with_its_bar_and_exemplars(pages: dict[str, str]) -> None:
    answer, reader = explanation(), Reader(pages["whole"])
    assert reader.count("li", "neuron") == len(answer.neurons) == 6
    assert reader.count("div", "bar") == 6
    shots = sum(len(active.top_images) for active in answer.neurons)
    shots += sum(len(nearest.top_images) for nearest in answer.nearest_neurons) + len(answer.similar_images)
    assert reader.count("li", "shot") == shots
    assert reader.count("img") == shots + 1
    assert reader.count("figure", "heat") == 6
    for words in (
        "You can trust this list",
        "account for 88 %",
        "3 weaker neurons count in this, but were cut from the code. 5 activations were cut from its tokens.",
        "stronger than 99.7 % of the images on which it fires",
        "neuron 41",
        "no name",
        "Similar images",
        "Nearest neurons",
        "cosine 0.61",
        "tiny-clip, block 5, patches",
    ):
        assert words in reader.words


def test_bars_are_as_long_as_their_activations(pages: dict[str, str]) -> None:
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%">', pages["whole"])]
    strongest = max(active.activation for active in explanation().neurons)
    expected = [100 * active.activation / strongest for active in explanation().neurons]
    assert widths == pytest.approx(expected, abs=0.06)


def test_maps_lie_on_the_photo_only_where_they_match_it(pages: dict[str, str]) -> None:
    assert pages["whole"].count("photo over") == 6
    assert pages["whole"].count('--photo: url("data:image/jpeg;base64,') == 1
    assert "photo over" not in pages["wide"]
    assert "--photo: url" not in pages["wide"]
    assert "not the whole photo" in Reader(pages["wide"]).words
    reader = Reader(pages["whole"])
    assert sum(tag == "i" and "opacity" in attributes.get("style", "") for tag, attributes in reader.elements) == 6 * 64


def test_a_map_lies_on_the_part_of_the_photo_that_it_covers() -> None:
    answer = explanation(width=200, height=100)
    answer.grid.region.CopyFrom(ImageRegion(left=0.25, top=0.0, right=0.75, bottom=1.0))
    page = explanation_page(answer, image=drawing("crimson", "circle", size_px=64))
    assert page.count("photo over") == 6
    # Twice as wide as what is shown, so that half of it is; its middle in the middle.
    assert "--photo-size: 200.00% 100.00%; --photo-place: 50.00% 0.00%;" in page
    assert "the part of the photo that the model was shown" in Reader(page).words


def test_exemplars_glow_where_the_neuron_fires() -> None:
    answer = neuron_answer()
    shares = bytes([0, 255, 51, 0, 0, 102])
    region = ImageRegion(left=0.25, top=0.0, right=0.75, bottom=1.0)
    for exemplar in answer.top_images[:2]:
        exemplar.image.width, exemplar.image.height = 200, 100
        grid = PatchGrid(row_count=2, column_count=3, region=region)
        exemplar.patch_map.CopyFrom(PatchMap(grid=grid, shares=shares))
    answer.top_images[1].image.thumbnail = b""  # Nothing to lie on.
    page = neuron_page(answer)
    reader = Reader(page)
    assert "What glows is where it fires." in reader.words
    assert reader.count("div", "mapped") == 1
    (drawn,) = [
        attributes["style"] for tag, attributes in reader.elements if "image/png" in attributes.get("style", "")
    ]
    assert drawn.startswith("left:25.00%;top:0.00%;width:50.00%;height:100.00%;")
    # The thumbnail is cut to a square: twice as wide as its frame, its middle in the middle.
    assert 'style="width:200.00%;height:100.00%;left:-50.00%;top:0.00%"' in page
    with Image.open(io.BytesIO(b64decode(drawn.partition("base64,")[2].partition('"')[0]))) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (3, 2))
        assert picture.getchannel("A").tobytes() == bytes(round(0.85 * share) for share in shares)


@pytest.mark.parametrize(
    ("columns", "right", "share_count"), [(3, 1.0, 5), (3, 1.0, 0), (0, 1.0, 0), (3, 0.0, 6)], ids=str
)
def test_a_map_that_is_none_leaves_the_thumbnail_as_it_is(columns: int, right: float, share_count: int) -> None:
    answer = neuron_answer()
    exemplar = answer.top_images[0]
    exemplar.image.width, exemplar.image.height = 200, 100
    grid = PatchGrid(row_count=2, column_count=columns, region=ImageRegion(left=0, top=0, right=right, bottom=1))
    exemplar.patch_map.CopyFrom(PatchMap(grid=grid, shares=bytes(share_count)))
    reader = Reader(neuron_page(answer))
    assert reader.count("div", "mapped") == 0
    assert any(tag == "img" for tag, _ in reader.elements)


@pytest.mark.parametrize(("column", "left"), [(0, "0.00%"), (1, "-33.33%"), (2, "-50.00%"), (5, "-100.00%")])
def test_a_thumbnail_is_cut_where_it_glows(column: int, left: str) -> None:
    answer = neuron_answer()
    exemplar = answer.top_images[0]
    exemplar.image.width, exemplar.image.height = 200, 100
    whole = ImageRegion(left=0.0, top=0.0, right=1.0, bottom=1.0)
    shares = bytearray(12)
    shares[6 + column] = 255
    exemplar.patch_map.CopyFrom(
        PatchMap(grid=PatchGrid(row_count=2, column_count=6, region=whole), shares=bytes(shares))
    )
    # Half of the picture is shown; the sixth of it that glows is within, and what is shown is near the middle.
    assert f'style="width:200.00%;height:100.00%;left:{left};top:0.00%"' in neuron_page(answer)


def test_the_photo_says_which_part_of_it_the_model_saw() -> None:
    answer = explanation(width=200, height=100)
    photo = drawing("crimson", "circle", size_px=64)
    assert "in the frame" not in explanation_page(answer, image=photo)
    answer.grid.region.CopyFrom(ImageRegion(left=0.25, top=0.0, right=0.75, bottom=1.0))
    page = explanation_page(answer, image=photo)
    assert '<i style="left:25.00%;top:0.00%;width:50.00%;height:100.00%"></i>' in page
    assert "in the frame: what the model was shown" in Reader(page).words
    answer.grid.region.CopyFrom(ImageRegion(left=0.0, top=-0.5, right=1.0, bottom=1.5))
    assert "in the frame" not in explanation_page(answer, image=photo)  # padded: all of it was shown


@pytest.mark.parametrize(
    "region",
    [ImageRegion(left=0.0, top=0.5, right=1.0, bottom=0.5), ImageRegion(left=0.5, right=0.5, bottom=1.0)],
    ids=["no height", "no width"],
)
def test_a_region_without_area_counts_as_not_told(region: ImageRegion) -> None:
    answer = explanation(width=200, height=100)
    photo = drawing("crimson", "circle", size_px=64)
    assert not answer.grid.HasField("region")
    untold = explanation_page(answer, image=photo)
    answer.grid.region.CopyFrom(region)
    assert explanation_page(answer, image=photo) == untold


@pytest.mark.parametrize(("width", "aspect"), [(100, "1.0000"), (150, "1.5000"), (900, "2.0000"), (10, "0.5000")])
def test_a_map_has_the_shape_of_what_it_covers(width: int, aspect: str) -> None:
    answer = explanation(width=width, height=100)
    answer.grid.region.CopyFrom(ImageRegion(left=0.0, top=0.0, right=1.0, bottom=1.0))
    page = explanation_page(answer, image=drawing("crimson", "circle", size_px=64))
    assert page.count(f'<figure class="heat" style="--aspect:{aspect}">') == 6


def test_headings_leave_out_no_level(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        levels = [int(tag[1]) for tag, _ in Reader(page).elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), name


def test_a_silent_image_is_said_to_be_one() -> None:
    answer = ExplainResponse()
    answer.fidelity.l0 = 0.0
    assert "No neuron fires on this image." in Reader(explanation_page(answer)).words
    answer.fidelity.l0 = 3.0
    assert "No neuron fires" not in Reader(explanation_page(answer)).words


def test_neurons_like_one_show_their_exemplars_where_those_are_given() -> None:
    answer = neuron_answer()
    like = [NeuronMatch(neuron=match.neuron, score=match.score) for match in answer.similar_neurons]
    like[0].top_images.extend(answer.top_images[:5])
    assert Reader(neuron_page(answer, similar=like)).count("li", "shot") == 18 + 5


def test_parts_that_were_not_asked_for_are_left_out(pages: dict[str, str]) -> None:
    reader = Reader(pages["bare"])
    for words in ("neurons", "Similar images", "trust", "would call it"):
        assert words not in reader.words
    assert reader.count("img") == 0


def test_without_thumbnails_captions_stand_in(pages: dict[str, str]) -> None:
    reader = Reader(pages["without thumbnails"])
    assert reader.count("img") == 0
    assert reader.count("div", "blank") == reader.count("li", "shot") > 50


@pytest.mark.parametrize(
    ("fvu", "grade", "words"),
    [
        (0.05, "good", "account for 95 %"),
        (0.4, "fair", "Read this list as hints"),
        (0.8, "poor", "account for only 2"),
        (1.3, "poor", "worse than saying nothing"),
    ],
)
def test_the_verdict_follows_the_fidelity(fvu: float, grade: str, words: str) -> None:
    reader = Reader(explanation_page(explanation(fvu=fvu)))
    assert reader.count("div", grade) == 1
    assert words in reader.words


def test_a_neuron_page_shows_its_range_and_relatives(pages: dict[str, str]) -> None:
    reader = Reader(pages["neuron"])
    assert reader.count("li", "shot") == reader.count("img") == 18
    for words in ("Neuron 42", "37 of 4096 images", "Its whole range", "Neurons like it", "round"):
        assert words in reader.words
    for words in ("3.50 to 7.0010", "10.5 to 14.07", "Neurons that fire with it", "31 images with both, NPMI 0.88"):
        assert words in reader.words
    assert "0 of 0 images" in Reader(pages["bare neuron"]).words


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_images_are_told_by_content(kind: str, name: str) -> None:
    uri = data_uri(drawing("teal", "square", kind=kind))
    assert uri is not None
    assert uri.startswith(f"data:image/{name};base64,")


def test_what_is_no_image_is_not_embedded() -> None:
    assert data_uri(b"<svg onload=alert(1)>") is None
    assert data_uri(b"") is None


def test_a_page_says_what_the_search_for_similar_images_missed() -> None:
    answer = explanation()
    assert "of the nearest images" not in Reader(explanation_page(answer)).words
    answer.code_search.CopyFrom(
        CodeSearch(recall=0.97, left_out_neuron_ids=[3, 17], engine=SearchEngine.SEARCH_ENGINE_QDRANT)
    )
    words = Reader(explanation_page(answer)).words
    assert "Such a search finds 97 % of the nearest images." in words
    assert "Neurons that fire on too many images do not count: 3, 17." in words
    assert "Qdrant found them" in words
