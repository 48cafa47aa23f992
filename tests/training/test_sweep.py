import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from phosphene.bundle import load_bundle
from phosphene.encoder import Site, Tokens
from phosphene.errors import CorpusError, DeviceOutOfMemory, NumericError, SettingError, SiteError
from tests.training.corpora import write_corpus
from tests.training.scenes import EMBEDDED_ENCODER, write_scenes
from training.__main__ import main
from training.command.main import parser
from training.command.sweep import request_of
from training.execution import Execution
from training.fit import FitRefused, FitResult
from training.harvest import EncoderOutOfMemory
from training.harvest_settings import HarvestSettings
from training.pareto import Point, draw_pareto, pareto_front
from training.plan import FitRequest, Sources
from training.progress import Progress, SilentProgress
from training.quality import Quality
from training.reading import ReadingSettings
from training.recipes import hugofry_clip_l14_layer22_x64, pach_matryoshka_clip_l14_336
from training.requests import SaeRequest, TrainingRequest
from training.sweep import NothingPublished, Outcome, run_sweep
from training.sweep_grid import Grid, SweepRequest, plan_runs
from training.sweep_table import read_rows, row_of, table_of, with_known_seconds, write_rows
from training.variants import VariantName

SITE = Site(block=5, tokens=Tokens.CLS)


def make_request(out: Path, grid: Grid, **changes: Any) -> SweepRequest:
    request = SweepRequest(
        sources=Sources(corpus="corpus", encoder=str(EMBEDDED_ENCODER)),
        grid=grid,
        sae=SaeRequest(neuron_count=64, k=4),
        training=TrainingRequest(step_count=50),
        harvest=HarvestSettings(),
        execution=Execution(),
        out=out,
    )
    return dataclasses.replace(request, **changes)


def ignore(outcomes: Sequence[Outcome]) -> None:
    pass


def never(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
    raise AssertionError("no run may begin")


def refused(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
    """The job where every autoencoder diverges."""
    quality = Quality(fvu=2.0, explained_variance=-1.0, l0=3.0, dead_share=0.5, row_count=8)
    return [
        FitRefused(out=request.out, error=NumericError(f"loss of {request.out.name}"), training=quality, held_out=None)
        for request in requests
    ]


def test_every_combination_is_one_run_with_a_name_of_its_own(tmp_path: Path) -> None:
    grid = Grid(
        sites=(SITE, dataclasses.replace(SITE, block=4)),
        variants=(VariantName.TOPK, VariantName.RELU),
        neuron_counts=(64, 128),
        ks=(4, 8, 16),
        sparsities=(1e-3,),
        learning_rates=(1e-3, 3e-3),
        seeds=(0, 1),
    )
    runs = plan_runs(make_request(tmp_path, grid))
    assert len(runs) == 2 * (2 * 3 + 2 * 1) * 2 * 2
    assert len({run.name for run in runs}) == len(runs)
    assert runs[0].name == "block5-cls-topk-n64-k4-lr0.001-seed0"
    assert {run.request.work for run in runs} == {tmp_path / "work"}
    dense = [run.request.sae for run in runs if run.request.sae.variant is VariantName.RELU]
    assert {(sae.k, sae.sparsity) for sae in dense} == {(None, 1e-3)}


def test_what_the_lists_leave_open_is_the_bases(tmp_path: Path) -> None:
    (run,) = plan_runs(make_request(tmp_path, Grid(sites=(SITE,))))
    assert run.request.sae == SaeRequest(neuron_count=64, k=4)
    assert run.request.training == TrainingRequest(step_count=50)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"ks": (4, 65)}, "--k is 65; the limit is the number of neurons, 64"),
        ({"expansions": (0,)}, "--expansion is 0; the least is 1"),
        ({"variants": (VariantName.RELU,), "ks": (4,)}, "--k goes with the top-k variants; relu take --sparsity"),
        ({"sparsities": (1e-3,)}, "--sparsity goes with --variant relu and jumprelu; batchtopk take --k"),
        ({"learning_rates": (0.0,)}, "--lr is 0"),
        ({"seeds": (-1,)}, "--seed is -1"),
        ({"seeds": tuple(range(10_001))}, "make 10,001 runs; the limit is 10,000"),
    ],
)
def test_an_impossible_sweep_is_refused_before_any_work(tmp_path: Path, grid: dict[str, Any], message: str) -> None:
    request = make_request(tmp_path, Grid(sites=(SITE,), **grid))
    with pytest.raises(SettingError, match=message):
        run_sweep(request, SilentProgress(), save=ignore, fit_several=never)


def test_what_only_the_encoder_shows_to_be_impossible_is_refused_before_any_work(tmp_path: Path) -> None:
    grid = Grid(sites=(SITE,), expansions=(1, 2), ks=(4, 129))
    with pytest.raises(SettingError, match="--k is 129; the limit is the number of neurons, 128"):
        run_sweep(make_request(tmp_path, grid), SilentProgress(), save=ignore, fit_several=never)
    grid = Grid(sites=(SITE, dataclasses.replace(SITE, block=6)))
    with pytest.raises(SiteError, match="block 6 does not exist"):
        run_sweep(make_request(tmp_path, grid), SilentProgress(), save=ignore, fit_several=never)


@pytest.mark.parametrize("variants", ["relu,topk", "topk,relu"])
def test_a_recipe_holds_for_its_own_variant_and_for_no_other_whatever_their_order(variants: str) -> None:
    command = ["sweep", "corpus", "--recipe", "hugofry_clip_l14_layer22_x64", "--variant", variants, "--k", "4"]
    runs = plan_runs(request_of(parser().parse_args([*command, "--out", "sweep"])))
    saes = {run.request.sae.variant: run.request.sae for run in runs}
    recipe = hugofry_clip_l14_layer22_x64().sae
    assert saes[VariantName.RELU] == recipe
    assert saes[VariantName.TOPK] == SaeRequest(
        variant=VariantName.TOPK, k=4, expansion=recipe.expansion, inputs=recipe.inputs
    )


def test_what_a_recipe_says_of_k_goes_for_all_variants_that_take_one() -> None:
    command = ["sweep", "corpus", "--recipe", "pach_matryoshka_clip_l14_336", "--variant", "matryoshka,batchtopk"]
    matryoshka, batchtopk = plan_runs(request_of(parser().parse_args([*command, "--out", "sweep"])))
    assert matryoshka.request.sae == pach_matryoshka_clip_l14_336().sae
    assert (batchtopk.request.sae.k, batchtopk.request.sae.prefixes) == (matryoshka.request.sae.k, None)


@pytest.mark.parametrize("out", ["photos/red/sweep", "link/sweep"])
def test_a_picture_is_not_drawn_into_the_folder_that_is_learnt_from(tmp_path: Path, out: str) -> None:
    corpus = write_corpus(tmp_path / "photos", 2)
    (tmp_path / "link").symlink_to(corpus)
    grid = Grid(sites=(SITE,), seeds=(0, 1))
    for source in (str(corpus), f"file://{corpus}"):
        request = make_request(tmp_path / out, grid, sources=Sources(corpus=source, encoder=str(EMBEDDED_ENCODER)))
        with pytest.raises(SettingError, match=r"--out .* lies in the corpus 'photos', .* choose a folder outside it"):
            run_sweep(request, SilentProgress(), save=ignore, fit_several=never)


def test_a_damaged_table_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.parquet").write_bytes(b"PAR1")
    command = ["sweep", "no-corpus", "--encoder", str(EMBEDDED_ENCODER), "--block", "5", "--neurons", "64", "--k", "4"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "sweep.parquet' is no table of a sweep" in capsys.readouterr().err


def test_what_befalls_every_run_is_raised_at_once(tmp_path: Path) -> None:
    begun: list[str] = []

    def fit_several(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
        begun.extend(request.out.name for request in requests)
        raise CorpusError("no such corpus")

    request = make_request(tmp_path, Grid(sites=(SITE,), ks=(2, 4)), runs_at_once=1)
    with pytest.raises(CorpusError, match="no such corpus"):
        run_sweep(request, SilentProgress(), save=ignore, fit_several=fit_several)
    assert len(begun) == 1


def test_passes_hold_one_seed_and_at_most_so_many_runs(tmp_path: Path) -> None:
    passes: list[tuple[set[int], int]] = []

    def fit_several(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
        passes.append(({request.training.seed for request in requests}, len(requests)))
        return refused(requests, progress)

    request = make_request(tmp_path, Grid(sites=(SITE,), ks=(2, 4, 8), seeds=(3, 1)), runs_at_once=2)
    rows: list[dict[str, Any]] = []

    def save(outcomes: Sequence[Outcome]) -> None:
        rows[:] = [row_of(outcome) for outcome in outcomes]

    with pytest.raises(NothingPublished):
        run_sweep(request, SilentProgress(), save=save, fit_several=fit_several)
    assert passes == [({3}, 2), ({3}, 1), ({1}, 2), ({1}, 1)]
    assert [(row["k"], row["seed"]) for row in rows] == [(k, seed) for k in (2, 4, 8) for seed in (3, 1)]


def test_every_pass_holds_runs_of_every_site_so_that_images_are_encoded_once(tmp_path: Path) -> None:
    passes: list[list[int | None]] = []

    def fit_several(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
        passes.append([request.site.block for request in requests])
        return refused(requests, progress)

    sites = tuple(dataclasses.replace(SITE, block=block) for block in (3, 4))
    request = make_request(tmp_path, Grid(sites=sites, ks=(2, 4, 8)), runs_at_once=2)
    with pytest.raises(NothingPublished):
        run_sweep(request, SilentProgress(), save=ignore, fit_several=fit_several)
    assert passes == [[3, 3, 4, 4], [3, 4]]


def test_a_sweep_without_a_bundle_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    saved: list[list[dict[str, Any]]] = []

    def save(outcomes: Sequence[Outcome]) -> None:
        saved.append([row_of(outcome) for outcome in outcomes])

    seconds = iter(range(100))
    request = make_request(tmp_path, Grid(sites=(SITE,), ks=(2, 4)), runs_at_once=1)
    with pytest.raises(NothingPublished, match=r"none of the 2 runs was published; the first: loss of .*k2-seed0"):
        run_sweep(request, SilentProgress(), save=save, fit_several=refused, clock_s=lambda: float(next(seconds)))
    assert [len(rows) for rows in saved] == [1, 2]
    for row, k in zip(saved[-1], (2, 4), strict=True):
        assert (row["k"], row["seconds"], row["training_fvu"], row["fvu"]) == (k, 1.0, 2.0, None)
        assert row["bundle"] is None
        assert row["reason"].startswith("loss of")


def test_what_does_not_fit_into_memory_stops_no_other_pass(tmp_path: Path) -> None:
    def fit_several(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
        if requests[0].sae.k == 2:
            raise DeviceOutOfMemory("one row does not fit")
        return refused(requests, progress)

    saved: list[dict[str, Any]] = []

    def save(outcomes: Sequence[Outcome]) -> None:
        saved[:] = [row_of(outcome) for outcome in outcomes]

    request = make_request(tmp_path, Grid(sites=(SITE,), ks=(2, 4)), runs_at_once=1)
    with pytest.raises(NothingPublished):
        run_sweep(request, SilentProgress(), save=save, fit_several=fit_several)
    assert saved[0]["reason"] == "one row does not fit"
    assert saved[1]["reason"].startswith("loss of")


TOGETHER = "; or lower --at-once: 2 autoencoders were trained together"


@pytest.mark.parametrize(
    ("error", "is_streamed", "more"),
    [
        (DeviceOutOfMemory("it does not fit"), False, TOGETHER),
        (EncoderOutOfMemory("it does not fit"), False, ""),
        (EncoderOutOfMemory("it does not fit"), True, TOGETHER),
    ],
)
def test_what_does_not_fit_is_told_with_what_helps(
    tmp_path: Path, error: DeviceOutOfMemory, is_streamed: bool, more: str
) -> None:
    def fit_several(requests: Sequence[FitRequest], progress: Progress) -> list[FitResult | FitRefused]:
        raise error

    saved: list[dict[str, Any]] = []

    def save(outcomes: Sequence[Outcome]) -> None:
        saved[:] = [row_of(outcome) for outcome in outcomes]

    sites = (SITE, dataclasses.replace(SITE, block=4))
    sources = Sources(corpus="corpus", encoder=str(EMBEDDED_ENCODER), reading=ReadingSettings(is_streamed=is_streamed))
    request = make_request(tmp_path, Grid(sites=sites, ks=(2, 4, 8)), runs_at_once=2, sources=sources)
    with pytest.raises(NothingPublished):
        run_sweep(request, SilentProgress(), save=save, fit_several=fit_several)
    reasons = {row["run"]: row["reason"] for row in saved}
    for block in (4, 5):
        assert [reasons[f"block{block}-cls-batchtopk-n64-k{k}-seed0"] for k in (2, 4, 8)] == [
            f"it does not fit{more}",
            f"it does not fit{more}",
            "it does not fit",
        ]


def make_row(run: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run, "block": 5, "tokens": "cls", "variant": "topk", "neurons": 64, "seed": 0}
    return row | values


def test_a_table_survives_the_disk_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    rows = [make_row("a", fvu=0.25, bundle="7f", seconds=2.0), make_row("b", reason="diverged")]
    write_rows(tmp_path / "t.parquet", rows)
    found = read_rows(tmp_path / "t.parquet")
    assert [{key: value for key, value in row.items() if value is not None} for row in found] == rows
    assert read_rows(tmp_path / "none.parquet") == []


def test_a_finished_run_keeps_the_time_it_took() -> None:
    earlier = [make_row("a", bundle="7f", seconds=2.0)]
    rows = [make_row("a", bundle="7f", seconds=None), make_row("b", bundle="8a", seconds=None)]
    assert [row["seconds"] for row in with_known_seconds(rows, earlier)] == [2.0, None]


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [(4.0, 0.5), (8.0, 0.4), (8.0, 0.6), (16.0, 0.45), (32.0, 0.1), (4.0, 0.5)]
    assert pareto_front(points) == [True, True, False, False, True, True]
    assert pareto_front([]) == []


def test_the_picture_is_an_image_of_a_useful_size_and_the_same_every_time() -> None:
    points = [
        Point(curve=f"{variant}, {64 * size} neurons", setting=str(k), rate=1e-3, l0=float(k), fvu=1 / (k * size))
        for variant in ("topk", "relu")
        for size in (1, 2, 4)
        for k in (2, 8, 32)
    ]
    picture = draw_pareto(points, "a sweep")
    assert picture == draw_pareto(points, "a sweep")
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG"
    assert min(image.size) > 600
    assert draw_pareto(points[:1], "one autoencoder")


def test_a_legend_makes_the_picture_larger_and_takes_nothing_from_the_axes() -> None:
    def size(curves: int, letters: int, title: str = "a sweep") -> tuple[int, int]:
        points = [
            Point(curve=f"{number:0{letters}}", setting=str(k), rate=1e-3, l0=float(k), fvu=1 / (k + number))
            for number in range(curves)
            for k in (2, 8, 32)
        ]
        width, height = Image.open(io.BytesIO(draw_pareto(points, title))).size
        return width, height

    few, many, long = size(2, 20), size(40, 20), size(2, 60)
    assert many[0] == few[0]
    assert many[1] > 1.3 * few[1]
    assert long[0] > 1.3 * few[0]
    assert long[1] == few[1]
    assert size(2, 20, "50$ _{a folder$" + "-with-a-long-name" * 12) == few  # no formula, and on several lines


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A sweep of four runs on the embedded encoder, one of which fails, and its command."""
    folder = tmp_path_factory.mktemp("swept")
    corpus = write_scenes(folder / "scenes", 64)
    lists = ["--block", "5", "--expansion", "1", "--k", "4,12", "--variant", "topk", "--lr", "0.003,50"]
    short = ["--steps", "60", "--threads", "1", "--out", str(folder / "out")]
    command = ["sweep", str(corpus), "--encoder", str(EMBEDDED_ENCODER), *lists, *short]
    assert main(command) == 0
    return folder / "out", command


def test_a_sweep_leaves_a_table_a_picture_and_bundles(swept: tuple[Path, list[str]]) -> None:
    out, _ = swept
    rows = pq.read_table(out / "sweep.parquet").to_pylist()
    published = [row for row in rows if row["bundle"] is not None]
    assert [(row["k"], row["learning_rate"]) for row in published] == [(4, 0.003), (12, 0.003)]
    assert [row["k"] for row in rows if row["reason"] is not None] == [4, 12]
    for row in published:
        bundle = load_bundle(out / "bundles" / row["run"])
        assert row["bundle"] == bundle.id
        assert (row["neurons"], row["expansion"], row["variant"]) == (128, 1.0, "topk")
        assert row["fvu"] == bundle.training["held_out_quality"]["fvu"]
        assert row["training_fvu"] == bundle.training["training_quality"]["fvu"]
        assert row["l0"] == row["k"]
        assert json.loads(row["settings"])["training"]["learning_rate"] == row["learning_rate"]
    assert published[1]["fvu"] < published[0]["fvu"]
    with Image.open(out / "pareto.png") as picture:
        assert picture.format == "PNG"
    console = Console(width=200, file=io.StringIO())
    console.print(table_of(rows))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "block5-cls-topk-x1-k12-lr0.003-seed0" in shown
    assert "diverged" in shown


def test_a_sweep_reads_the_corpus_once(swept: tuple[Path, list[str]]) -> None:
    out, _ = swept
    assert len(list((out / "work" / "activations").iterdir())) == 1


def test_a_sweep_goes_on_where_it_was(swept: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, command = swept
    before = pq.read_table(out / "sweep.parquet").to_pylist()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "bundles").rglob("*")}
    longer = [part.replace("4,12", "4,12,24").replace("0.003,50", "0.003") for part in command]
    assert main(longer) == 0
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert "harvest" not in events
    rows = pq.read_table(out / "sweep.parquet").to_pylist()
    assert [row["k"] for row in rows] == [4, 12, 24]
    assert rows[:2] == [row for row in before if row["bundle"] is not None]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
