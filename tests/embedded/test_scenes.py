"""The scenes: a seed decides everything, and the ground truth agrees with the pixels and the captions."""

import csv
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from embedded.captions import SceneClaim, claim_scene, distort_claim, prompts, vocabulary_words, word_claim
from embedded.concepts import FACTORS, shown_values, values_of
from embedded.scene_plan import DIAMETERS, SINGLE_OBJECT_MIX, plan_scene
from embedded.scenes import draw_scene, main, render_corpus, render_scene
from embedded.textures import OBJECT_RGB

SEEDS = range(200)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed) for seed in SEEDS]


def test_a_seed_decides_the_whole_scene(scenes):
    for scene in scenes[:40]:
        again = render_scene(scene.seed)
        np.testing.assert_array_equal(again.pixels, scene.pixels)
        assert (again.caption, again.factors) == (scene.caption, scene.factors)
    assert len({scene.pixels.tobytes() for scene in scenes}) == len(scenes)


def test_the_same_scene_at_any_resolution(scenes):
    for scene in scenes[:40]:
        larger = render_scene(scene.seed, 160)
        assert larger.caption == scene.caption
        assert shown_values(larger.factors) == shown_values(scene.factors)
        for small_item, large_item in zip(scene.factors.objects, larger.factors.objects, strict=True):
            difference_px = np.asarray(small_item.box) - np.asarray(large_item.box) * (64 / 160)
            # Thin tips can be lost between pixels of the smaller picture.
            assert np.abs(difference_px).max() <= 2.5
        reduced = np.asarray(Image.fromarray(larger.pixels).resize((64, 64), Image.Resampling.BICUBIC), np.float64)
        assert np.abs(reduced - scene.pixels).mean() < 4


def test_boxes_hold_the_objects_and_nothing_else_differs_from_the_background(scenes):
    for scene in scenes:
        for number, item in enumerate(scene.factors.objects, start=1):
            left, top, right, bottom = item.box
            rows, columns = np.nonzero(scene.object_map == number)
            assert columns.min() >= left
            assert rows.min() >= top
            assert columns.max() < right
            assert rows.max() < bottom
            share = len(rows) / ((right - left) * (bottom - top))
            assert 0.15 < share <= 1
            extent_px = max(right - left, bottom - top)
            assert 0.75 < extent_px / (64 * DIAMETERS[item.size]) < 1.2


def test_objects_have_their_colour_and_hardly_overlap(scenes):
    # An untextured object shows its colour, nearer to it than to any other; a small one is mostly outline.
    names = list(OBJECT_RGB)
    table = np.asarray([OBJECT_RGB[name] for name in names], np.float64)
    checked = 0
    for scene in scenes:
        for number, item in enumerate(scene.factors.objects, start=1):
            shown = scene.object_map == number
            assert shown.sum() > 0.1 * np.prod([item.box[2] - item.box[0], item.box[3] - item.box[1]])
            if item.texture == "solid" and item.size != "small":
                median = np.median(scene.pixels[shown].astype(np.float64), axis=0)
                assert names[int(np.abs(table - median).sum(1).argmin())] == item.colour
                checked += 1
    assert checked > 20


def test_positions_say_where_the_single_object_is():
    for seed in SEEDS:
        scene = render_scene(seed, 64, SINGLE_OBJECT_MIX)
        (item,) = scene.factors.objects
        plan = plan_scene(seed, SINGLE_OBJECT_MIX).objects[0]
        right, down = plan.centre_x - 0.5, plan.centre_y - 0.5
        truth = {"left": -right, "right": right, "top": -down, "bottom": down}
        if item.position == "center":
            assert max(abs(right), abs(down)) < 0.085
        else:
            assert max(truth, key=lambda name: truth[name]) == item.position


def test_every_value_is_shown_and_none_too_often(scenes):
    counts = Counter(pair for scene in scenes for pair in shown_values(scene.factors))
    assert set(counts) == {(factor, value) for factor in FACTORS for value in values_of(factor)}
    plans = [plan_scene(seed) for seed in range(2500)]
    for factor in ("shape", "colour", "texture"):
        for value in values_of(factor):
            share = np.mean([any(getattr(item, factor) == value for item in plan.objects) for plan in plans])
            assert 0.14 < share <= 0.3
    for value in values_of("background"):
        assert 0.12 < np.mean([plan.background == value for plan in plans]) < 0.22
    object_counts = Counter(len(plan.objects) for plan in plans)
    assert object_counts[1] > object_counts[2] > object_counts[3] > 350


def test_captions_name_only_what_the_scene_shows(scenes):
    generator = np.random.default_rng(0)
    owner = {value: factor for factor in FACTORS for value in values_of(factor)}
    for scene in scenes:
        shown = shown_values(scene.factors)
        named = {
            (owner[word], word) for word in scene.caption.replace(",", "").split() if word in owner and word != "one"
        }
        assert named <= shown
        claim = claim_scene(scene.factors, generator)
        assert claim.holds(scene.factors)
        assert claim != SceneClaim()
        near_miss = distort_claim(claim, scene.factors, generator)
        assert not near_miss.holds(scene.factors)
        assert word_claim(near_miss) != word_claim(claim)
    assert len({scene.caption for scene in scenes}) > 130


def test_every_word_is_in_the_vocabulary(scenes):
    words = set(vocabulary_words())
    texts = [scene.caption for scene in scenes] + [text for factor in FACTORS for text in prompts(factor).values()]
    assert {word for text in texts for word in text.replace(",", " ,").split()} <= words


def test_prompts_are_english():
    assert prompts("shape")["star"] == "a star"
    assert prompts("colour")["orange"] == "an orange shape"
    assert prompts("position")["left"] == "a shape on the left"
    assert prompts("background")["sky"] == "a shape, on a sky background"
    assert list(prompts("count").values()) == ["one object", "two objects", "three objects"]


def test_too_small_a_canvas_is_refused():
    with pytest.raises(ValueError, match="16 px or more, not 8"):
        draw_scene(plan_scene(0), 8)


def test_the_command_writes_a_corpus(tmp_path, root):
    folder = tmp_path / "corpus"
    command = [sys.executable, "-m", "embedded.scenes", "render", str(folder)]
    arguments = ["--first-seed", "1000", "--count", "6", "--size", "96"]
    subprocess.run([*command, *arguments], check=True, cwd=root, timeout=60)
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truths = [json.loads(line) for line in (folder / "factors.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [truth["file"] for truth in truths]
    for seed, row, truth in zip(range(1000, 1006), rows, truths, strict=True):
        scene = render_scene(seed, 96)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["file"])), scene.pixels)
        assert row["caption"] == scene.caption
        largest = scene.factors.objects[0]
        assert row["label"] == f"{largest.colour} {largest.shape}"
        assert truth["seed"] == seed
        assert [item["box"] for item in truth["objects"]] == [list(item.box) for item in scene.factors.objects]
    assert not folder.with_name("corpus.partial").exists()


def test_a_whole_corpus_is_left_alone_and_another_refused(tmp_path, capsys):
    folder = tmp_path / "corpus"
    leftover = tmp_path / "corpus.partial"
    leftover.mkdir()
    (leftover / "junk").touch()
    render_corpus(folder, 5, 2, 32)
    assert sorted(path.name for path in folder.iterdir()) == ["captions.csv", "factors.jsonl", "images", "scenes.json"]
    before = (folder / "captions.csv").stat().st_mtime_ns
    arguments = ["render", str(folder), "--first-seed", "5", "--size", "32", "--count"]
    assert main([*arguments, "2"]) == 0
    assert (folder / "captions.csv").stat().st_mtime_ns == before
    assert main([*arguments, "3"]) == 2
    assert "holds something else" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least 1 scene, not 0"):
        render_corpus(tmp_path / "none", 0, 0, 32)
