"""What a comparison looks like: on a terminal, and as a picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from compare.asking import compare_runs, select_outcomes
from compare.synthetic_runs import noisy, write_run
from reuse_algos.archive import PriorUse, RunArchive
from reuse_algos.compare.estimates.interval import Speedup
from reuse_algos.compare.show.drawing import Chart, Look, Series, y_values
from reuse_algos.compare.show.figures import chart_figure, comparison_figure, plot_comparison
from reuse_algos.compare.show.page.svg import plot_of
from reuse_algos.compare.show.page.values import Numbers
from reuse_algos.compare.show.terminal import comparison_table, runs_table
from reuse_algos.compare.show.words import format_seconds, format_speedup
from reuse_algos.errors import CompareError

X = np.arange(1, 21) / 20
NAMES = ("baseline", "distilled from five prior runs", "$cost$_[bold]", "_null")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    archive = RunArchive(tmp_path_factory.mktemp("runs") / "archive", create=True)
    rng = np.random.default_rng(0)
    prior = [write_run(archive, "baseline", seed, noisy(rng, 0.3 + 0.4 * X)) for seed in range(3)]
    use = PriorUse(run_id=prior[0], algorithm="prior_run_distillation", harvest_seconds=20.0)
    for seed in range(3):
        write_run(archive, NAMES[1], seed, noisy(rng, 0.3 + 0.7 * X), prior_runs=[use])
        write_run(archive, NAMES[2], seed, [*noisy(rng, 0.3 + 0.1 * X[:-1]), math.nan], health="diverged")
    write_run(archive, NAMES[3], 0, 0.32 + 0.4 * X)
    return archive


def text(renderable, width: int = 100) -> str:
    console = Console(width=width, markup=False, highlight=False, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_fits_a_hundred_columns_and_says_it_all(archive: RunArchive) -> None:
    shown = text(comparison_table(compare_runs(archive)))
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "…" not in shown
    one_line = " ".join(shown.split())
    for expected in (
        "metrics/eval/MulticlassAccuracy at least 0.70", "mean final value of baseline", "95 % intervals", "faster",
        "no difference", "not enough", "target not", "<= 1.00\u00d7", "1/1", "3/3", "0/3", "Pays back",
        "after 1 later run [", "paired by seed", "Welch", "diverged", "Note: Too few runs for a claim: _null (n=1)",
    ):  # fmt: skip
        assert expected in one_line, expected
    assert "$cost$_[bold]" in one_line  # markup in names is shown, not obeyed
    given = " ".join(text(comparison_table(compare_runs(archive, target=0.69))).split())
    assert "(given)" in given
    assert "Each run's own cost to the target" in given


def test_runs_table(archive: RunArchive) -> None:
    runs = archive.runs(unhealthy=True)
    shown = text(runs_table(runs, [run.final_metric() for run in runs], None))
    for run in runs:
        assert run.id in shown.replace("\n", "") or len(run.id) > 30
    assert "diverged" in shown
    assert "not finite" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (0.0123, "12.3 ms"), (1.0, "1 s"), (119.0, "119 s"), (150.0, "2.5 min"), (9000.0, "2.5 h"),
     (1e8, "27778 h"), (math.nan, "?"), (math.inf, "?")],
)  # fmt: skip
def test_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_speedups() -> None:
    assert format_speedup(None) == "-"
    assert format_speedup(Speedup(2.0, 1.5, math.inf, "", "faster")) == "2.00\u00d7 [1.50, \u221e]"
    assert format_speedup(Speedup(2.0, 0.0, 2.5, "<=", "no difference")) == "at most 2.00\u00d7 [0, 2.50]"
    assert format_speedup(Speedup(2.0, 0.0, math.inf, "", "not enough runs")) == "not known", "one run shows none"
    assert format_speedup(Speedup(2.0, 0.0, math.inf, "?", "no difference")) == "not known"


def test_the_figure_shows_the_data(archive: RunArchive) -> None:
    selection = select_outcomes(archive)
    comparison = compare_runs(archive, selection=selection)
    (axes,) = comparison_figure(comparison, selection).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    mean = lines["baseline (n=3)"]
    outcomes = selection.groups["baseline"]
    np.testing.assert_allclose(mean.get_ydata(), np.mean([o.curve.values for o in outcomes], axis=0))
    np.testing.assert_allclose(mean.get_xdata(), outcomes[0].curve.steps * 0.1)
    # Harvest comes before the first step.
    assert lines["distilled from five prior runs (n=3)"].get_xdata()[0] == pytest.approx(10 + 20)
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert len(dots) == sum(group.to_target.reached for group in comparison.groups)
    assert dots[0].get_xdata()[0] == pytest.approx(200)
    assert len(axes.get_lines()) == 10 + 4 + len(dots) + 1
    assert "seconds" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_a_plot_is_written_by_its_extension(archive: RunArchive, tmp_path: Path, kind: str, magic: bytes) -> None:
    selection = select_outcomes(archive)
    path = plot_comparison(compare_runs(archive, selection=selection), selection, tmp_path / f"plot.{kind}")
    assert path.read_bytes().startswith(magic)


def test_plots_that_can_not_be_written(archive: RunArchive, tmp_path: Path) -> None:
    selection = select_outcomes(archive)
    comparison = compare_runs(archive, selection=selection)
    for name in ("plot.gif", "plot", "png"):
        with pytest.raises(CompareError, match=r"end the name in \.png, \.pdf, \.svg"):
            plot_comparison(comparison, selection, tmp_path / name)
    with pytest.raises(CompareError, match="there is no folder"):
        plot_comparison(comparison, selection, tmp_path / "nowhere" / "plot.png")


def test_runs_without_seconds_or_shared_steps_are_drawn_too(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    write_run(archive, "baseline", 0, [0.1, 0.2], seconds_per_step=0.0)
    write_run(archive, "quick", 0, [0.1, 0.3], seconds_per_step=0.0)
    write_run(archive, "quick", 1, [0.1, 0.3, 0.3], every=70, seconds_per_step=0.0)
    selection = select_outcomes(archive)
    (axes,) = comparison_figure(compare_runs(archive, selection=selection, target=0.2), selection).axes
    assert axes.get_xlabel() == "steps"
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [100, 200])


def test_the_y_axis_shows_where_the_groups_differ() -> None:
    """It holds what follows the first quarter of the evaluations, and nothing decides it but the data."""
    lower = [0.10, 0.50, 0.85, 0.90, 0.92, 0.93, 0.94, 0.945]
    upper = [y + 0.01 for y in lower]
    steps = [float(k) for k in range(1, 9)]
    series = [
        Series(
            name, Look(k, name, k), steps, ys, low=[0.0] * 8, high=[1.0] * 8, labels=[""] * 8, line=True, band=True,
            runs=[{"run_id": "r", "x": steps, "y": ys}],
        )
        for k, (name, ys) in enumerate({"baseline": lower, "better": upper}.items())
    ]  # fmt: skip
    chart = Chart("steps", "t", "x", "y", series, log=False, level=0.94)
    room = 0.06 * (0.955 - 0.85)
    ends = (0.85 - room, 0.955 + room)
    (axes,) = chart_figure(chart).axes
    assert axes.get_ylim() == pytest.approx(ends)
    plot = plot_of(chart, Numbers({"chart": {"series": [{"y": lower}, {"y": upper}]}}), "chart")
    for view in plot.series:
        assert len(view.marks) == 6, "points that lie outside cannot be pointed at"
        first = float(view.lines[0][0].split()[0].split(",")[1])
        assert first > 1000, "the line comes from below the picture instead of running along its edge"
    last = [float(view.marks[-1].y.rstrip("%")) for view in plot.series]
    assert last[0] - last[1] == pytest.approx(100 * 0.01 / (ends[1] - ends[0]), abs=1e-2)

    # A loss falls: then the axis is cut at its top.
    falling = [Series("a", Look(0, "a", 0), steps, [1.0 - y for y in lower], line=True, band=True)]
    assert y_values(Chart("steps", "t", "x", "y", falling, log=False)) == pytest.approx([1.0 - y for y in lower[2:]])
    # Points of budgets are results: all of them count, with their intervals.
    points = [Series("a", Look(0, "a", 0), [1.0, 2.0], [0.3, 0.9], low=[0.2, 0.8], high=[0.4, 1.0], line=True)]
    held = y_values(Chart("steps", "t", "x", "y", points, log=True))
    assert (min(held), max(held)) == (0.2, 1.0)
