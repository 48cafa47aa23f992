"""The parts of `make bench-training`: the data, the clockwork, the judging, the figures; and our own contestant."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.environments import pins_of
from benchmarks.samples import Samples
from benchmarks.training_load import figures
from benchmarks.training_load.contestant import Task, decay_steps, learning_rate_share, measure, warm_up_steps
from benchmarks.training_load.figures import MAIN, RATES, SMALL, compared, musts, not_measured
from benchmarks.training_load.known_directions import Recipe, draw_rows, frequencies, make_data, make_directions
from benchmarks.training_load.ours import Ours
from benchmarks.training_load.peers import PEERS, PINS
from benchmarks.training_load.quality import fraction_unexplained, judge, mean_max_cosine
from benchmarks.training_load.races import K, Races, Shape, Steps, gemm, ours
from training.learner import learning_rate_at
from training.requests import SaeRequest, TrainingRequest
from training.variants import VariantName
from training.weights import Weights

SMALL_RECIPE = Recipe(width=16, training_rows=512, held_out_rows=256, direction_count=24, mean_active=3.0, seed=4)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_frequencies_follow_zipf_and_add_up_to_the_mean_of_active_directions(exponent):
    often = frequencies(Recipe(width=8, training_rows=1, held_out_rows=1, exponent=exponent))
    assert often.sum() == pytest.approx(20)
    assert often.max() <= 0.5
    ranks = np.arange(1, len(often) + 1)
    free = often < 0.5
    assert np.log(often[free]) + exponent * np.log(ranks[free]) == pytest.approx(
        np.log(often[-1]) + exponent * np.log(len(often))
    )
    assert (np.diff(often) <= 0).all()


def test_more_active_directions_than_the_law_has_are_refused():
    with pytest.raises(ValueError, match="mean_active is 12"):
        frequencies(Recipe(width=8, training_rows=1, held_out_rows=1, direction_count=24, mean_active=12))


def test_rows_are_centred_of_mean_square_one_and_have_the_mean_of_active_directions():
    directions = make_directions(SMALL_RECIPE)
    rows, is_on = draw_rows(SMALL_RECIPE, directions, 40_000, np.random.default_rng(1))
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1, abs=1e-6)
    assert is_on.sum(axis=1).mean() == pytest.approx(3.0, rel=0.02)
    assert is_on.mean(axis=0) == pytest.approx(frequencies(SMALL_RECIPE), abs=0.02)
    assert np.abs(rows.mean(axis=0)).max() < 0.03
    # Known directions overlap at this width; their strengths vary independently, so that variances add up.
    assert float((rows**2).mean()) == pytest.approx(1.0, rel=0.02)


def test_what_the_directions_do_not_explain_is_the_noise():
    recipe = Recipe(width=64, training_rows=1, held_out_rows=1, direction_count=16, mean_active=3.0, noise_share=0.01)
    rows, is_on = draw_rows(recipe, make_directions(recipe), 2000, np.random.default_rng(2))
    # With fewer directions than coordinates, least squares on all of them leaves the noise of the other coordinates.
    basis, _ = np.linalg.qr(make_directions(recipe).T)
    rest = rows - rows @ basis @ basis.T
    assert float((rest**2).sum()) / float((rows**2).sum()) == pytest.approx(0.01 / 1.01 * 48 / 64, rel=0.05)


def test_data_follow_from_the_seed_and_held_out_rows_are_others(tmp_path):
    first, again = make_data(SMALL_RECIPE, tmp_path / "a"), make_data(SMALL_RECIPE, tmp_path / "b")
    other = make_data(Recipe(**{**vars(SMALL_RECIPE), "seed": 5}), tmp_path / "a")
    read = {
        (folder.parent.name, folder.name, name): np.load(folder / f"{name}.npy")
        for folder in (first, again, other)
        for name in ("directions", "training", "held_out")
    }
    assert first.name == again.name != other.name
    for name in ("directions", "training", "held_out"):
        assert (read["a", first.name, name] == read["b", first.name, name]).all()
        assert not (read["a", first.name, name] == read["a", other.name, name]).all()
    assert not (read["a", first.name, "training"][:256] == read["a", first.name, "held_out"]).any()
    assert make_data(SMALL_RECIPE, tmp_path / "a") == first
    assert sorted(path.name for path in first.iterdir()) == ["directions.npy", "held_out.npy", "training.npy"]


def test_mmcs_is_that_of_plain_loops():
    generator = torch.Generator().manual_seed(0)
    known, learnt = torch.randn(7, 5, generator=generator), torch.randn(11, 5, generator=generator)
    learnt[3] = 0
    due = []
    for direction in known.tolist():
        cosines = []
        for row in learnt.tolist():
            norm = math.hypot(*direction) * math.hypot(*row)
            cosines.append(sum(a * b for a, b in zip(direction, row, strict=True)) / norm if norm else 0.0)
        due.append(max(cosines))
    assert mean_max_cosine(known, learnt) == pytest.approx(sum(due) / len(due), abs=1e-6)
    assert mean_max_cosine(known, 3 * known) == pytest.approx(1)


def random_weights(width, neuron_count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Weights(
        encoder_weight=torch.randn(width, neuron_count, generator=generator),
        encoder_bias=torch.randn(neuron_count, generator=generator),
        directions=torch.randn(neuron_count, width, generator=generator),
        decoder_bias=torch.randn(width, generator=generator),
    )


def test_fvu_is_that_of_plain_loops():
    weights, rows = random_weights(4, 9), torch.randn(2050, 4, generator=torch.Generator().manual_seed(1))
    threshold, error, variance = 0.7, 0.0, 0.0
    mean = [sum(column) / len(rows) for column in rows.T.tolist()]
    encoder, directions = weights.encoder_weight.tolist(), weights.directions.tolist()
    bias, centre = weights.encoder_bias.tolist(), weights.decoder_bias.tolist()
    for row in rows.tolist():
        rebuilt = list(centre)
        for neuron in range(9):
            pre = bias[neuron] + sum((row[i] - centre[i]) * encoder[i][neuron] for i in range(4))
            if pre > threshold:
                rebuilt = [value + pre * directions[neuron][i] for i, value in enumerate(rebuilt)]
        error += sum((a - b) ** 2 for a, b in zip(row, rebuilt, strict=True))
        variance += sum((a - b) ** 2 for a, b in zip(row, mean, strict=True))
    assert fraction_unexplained(weights, rows, threshold) == pytest.approx(error / variance, rel=1e-5)


def test_judging_calibrates_on_one_half_and_measures_on_the_other(tmp_path):
    data = make_data(SMALL_RECIPE, tmp_path)
    directions = torch.from_numpy(np.load(data / "directions.npy"))
    weights = Weights(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(24),
        directions=directions,
        decoder_bias=torch.zeros(16),
    )
    np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in weights.tensors().items()})
    quality = judge(tmp_path / "weights.npz", data, 2)
    assert quality.mmcs == pytest.approx(1)
    assert quality.l0 == pytest.approx(2, rel=0.2)
    assert 0 < quality.fvu < 1


def task(**changed):
    settled = {
        "data": "rows.npy",
        "neuron_count": 48,
        "k": 4,
        "batch_rows": 32,
        "untimed_steps": 10,
        "timed_steps": 190,
        "learning_rate": 3e-3,
        "seed": 0,
    }
    return Task(**settled | changed)


def test_the_schedule_of_the_peers_is_that_of_our_trainer():
    asked = task()
    sae = SaeRequest(k=4, neuron_count=48, variant=VariantName.BATCHTOPK).resolve(16)
    settings = TrainingRequest(step_count=200, batch_rows=32, learning_rate=3e-3).resolve(512, sae, width=16)
    for step in range(200):
        assert asked.learning_rate * learning_rate_share(asked, step) == pytest.approx(learning_rate_at(step, settings))
    assert (warm_up_steps(asked), decay_steps(asked)) == (10, 80)


def test_a_task_survives_the_command_line():
    asked = task(variant="topk", weights="there.npz")
    assert Task(**json.loads(asked.to_json())) == asked
    assert asked.step_count == 200


def test_a_contestant_learns_and_leaves_its_weights(tmp_path):
    data = make_data(Recipe(**{**vars(SMALL_RECIPE), "width": 32}), tmp_path)
    file = tmp_path / "weights.npz"
    asked = task(data=str(data / "training.npy"), untimed_steps=5, timed_steps=40, weights=str(file))
    answer = measure(asked, Ours)
    assert answer["samples"] == 40 * 32
    assert answer["wall_s"] > 0
    assert answer["cpu_s"] > 0
    assert answer["fvu_after"] < answer["fvu_before"]
    with np.load(file) as stored:
        shapes = {name: stored[name].shape for name in stored.files}
    assert shapes == {
        "encoder_weight": (32, 48),
        "encoder_bias": (48,),
        "directions": (48, 32),
        "decoder_bias": (32,),
    }


class Recorder:
    """Trains nothing; keeps the batches."""

    def __init__(self, asked, rows):
        self.batches = []

    def train(self, batches):
        self.batches += batches

    def weights(self):
        return {}


def batches_of(asked):
    made = []
    answer = measure(asked, lambda *arguments: made.append(Recorder(*arguments)) or made[-1])
    assert "fvu_after" not in answer
    return made[0].batches


def test_everybody_gets_the_same_batches_and_every_pass_is_shuffled_anew(tmp_path):
    data = make_data(SMALL_RECIPE, tmp_path)
    asked = task(data=str(data / "training.npy"), untimed_steps=2, timed_steps=30)
    first, again = batches_of(asked), batches_of(asked)
    assert len(first) == 32
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    rows = torch.from_numpy(np.load(data / "training.npy"))
    for one_pass in (first[:16], first[16:]):
        assert sorted(torch.cat(one_pass).tolist()) == sorted(rows.tolist())
    assert not (first[0] == first[16]).all()
    other = batches_of(task(data=str(data / "training.npy"), seed=1))
    assert not (first[0] == other[0]).all()


@pytest.mark.slow
def test_contestants_race_and_train_in_processes_of_their_own(tmp_path):
    shape = Shape(name="tiny", recipe=Recipe(**{**vars(SMALL_RECIPE), "width": 32}), neuron_count=64, batch_rows=64)
    said = []
    races = Races(tmp_path, thread_count=1, say=said.append)
    races.race(shape, Steps(untimed=2, ours=30, peers=1), [ours(), gemm()], 1)
    races.train(shape, 40, 3e-3, [(ours(), 3)])
    assert [row["contestant"] for row in races.rows] == ["Phosphene", "GEMM", "Phosphene"]
    assert len(said) == 3
    before, after = (float(value) for value in races.rows[0]["FVU"].split(" -> "))
    assert after < before
    assert races.rows[0]["note"] == ""
    assert races.rows[2]["round or seed"] == 3
    assert races.samples["tiny.0.003.Phosphene.fvu"] > 0
    assert races.samples["tiny.GEMM.per_cpu_s"] > 0
    assert len({tuple(row) for row in races.rows}) == 1


@pytest.mark.slow
def test_phosphene_failing_ends_the_benchmark_and_a_peer_failing_does_not(tmp_path):
    shape = Shape(name="tiny", recipe=SMALL_RECIPE, neuron_count=2)
    races = Races(tmp_path, thread_count=1, say=lambda text: None)
    broken = dataclasses.replace(ours(), name="broken", is_peer=True)
    races.race(shape, Steps(untimed=1, ours=1, peers=1), [broken], 1)
    assert races.rows[0]["note"] == "failed: not compared"
    assert not races.samples.values
    with pytest.raises(RuntimeError, match="neurons"):
        races.race(shape, Steps(untimed=1, ours=1, peers=1), [ours()], 1)


def filled(**changed):
    samples = Samples()
    rates = {"Phosphene": 100, "Phosphene topk": 90, "GEMM": 150, "saelens": 10, "dictionary_learning": 20}
    rates |= {"overcomplete": 25, "sparsify": 30, "sparsify adam": 45}
    for name, rate in (rates | changed).items():
        for sample in ("per_s", "per_cpu_s"):
            samples.add(f"{MAIN}.{name}.{sample}", rate)
        samples.add(f"{MAIN}.{name}.peak_mib", 1000 / rate)
    for fvu, mmcs, l0 in ((0.05, 0.97, 32.1), (0.07, 0.96, 31.6), (0.06, 0.98, 32.0)):
        for metric, value in (("fvu", fvu), ("mmcs", mmcs), ("l0", l0)):
            samples.add(f"{MAIN}.{RATES[-1]:g}.Phosphene.{metric}", value)
            samples.add(f"{SMALL}.0.003.Phosphene.{metric}", value)
    for name, fvu, mmcs in (("saelens", 0.055, 0.9), ("overcomplete", 0.2, 0.975)):
        samples.add(f"{SMALL}.0.003.{name}.fvu", fvu)
        samples.add(f"{SMALL}.0.003.{name}.mmcs", mmcs)
    return samples


def test_speeds_are_ratios_to_the_best_setting_of_each_peer():
    found = musts(filled())
    for unit in ("wall time", "CPU-seconds"):
        assert found[f"float32, against SAELens, {unit} (aim 8)"].value == pytest.approx(10)
        assert found[f"float32, against Overcomplete, {unit} (aim 10)"].value == pytest.approx(4)
        assert found[f"float32, against sparsify, with TopK, {unit} (aim 3)"].value == pytest.approx(2)
    bars = {name: must.bar for name, must in found.items() if name.startswith("float32") and "wall" in name}
    assert sorted(bars.values()) == [1.2, 3.3, 4.5, 5.0]
    assert found["memory above data and torch / dictionary_learning's (aim 0.4)"].value == pytest.approx(0.2)


def test_quality_is_that_of_the_worst_seed():
    found = musts(filled())
    assert found["held-out FVU after 1,000 steps, worst seed (aim 0.05)"].value == 0.07
    assert found["MMCS after 1,000 steps, worst seed (aim 0.985)"].value == 0.96
    l0 = found["L0 / 32 - 1 at the calibrated threshold, worst seed"]
    assert l0.value == pytest.approx(0.0125)
    assert l0.holds


def test_against_the_best_peer_the_seeds_spread_is_allowed():
    found = musts(filled())
    fvu, mmcs = (must for name, must in found.items() if name.startswith("lr 0.003"))
    assert (fvu.value, fvu.bar) == (pytest.approx(0.005), pytest.approx(0.02))
    assert (mmcs.value, mmcs.bar) == (pytest.approx(-0.005), pytest.approx(-0.02))
    assert fvu.holds
    assert mmcs.holds


def test_a_missing_peer_is_neither_beaten_nor_lost_to():
    samples = filled()
    for sample in ("per_s", "per_cpu_s", "peak_mib"):
        del samples.values[f"{MAIN}.saelens.{sample}"]
    missing = not_measured(samples)
    assert "float32, against SAELens, wall time (aim 8)" in missing
    assert "float32, against SAELens, wall time (aim 8)" not in musts(samples)
    assert any(name.startswith("bfloat16") for name in missing)
    assert any(name.startswith("lr 0.001") for name in missing)


def test_every_figure_has_a_name_of_its_own():
    assert max(Counter(figure.name for figure in figures._figures()).values()) == 1
    assert len(not_measured(Samples())) == 8 + 8 + 4 + 4


def test_the_distance_to_the_bare_product_is_told():
    told = compared(filled())
    assert f"{MAIN}: Phosphene takes 1.50x the bare product's time, 1.50x its CPU-seconds" in told
    assert f"{MAIN}: Phosphene topk against sparsify adam: 2.00x in wall time, 2.00x in CPU-seconds" in told


def test_every_peer_has_pins_and_torch_is_pinned_once():
    text = PINS.read_text()
    assert pins_of("torch", text)[0].startswith("torch==")
    for peer in PEERS:
        pins = pins_of(peer, text)
        assert all("==" in pin for pin in pins)
        assert not any(pin.startswith(("torch==", "nvidia", "numpy==")) for pin in pins)
        assert len(set(pins)) == len(pins)
    with pytest.raises(ValueError, match="no '# -- other'"):
        pins_of("other", text)


def test_k_is_that_of_the_bars():
    assert K == 32
