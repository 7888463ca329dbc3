"""The report as text: what it may contain, what it says, and that names from an archive stay names."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from compare.asking import compare_runs, select_outcomes
from compare.reports import HOSTILE, budgets, plain
from compare.synthetic_runs import METRIC, write_run
from reuse_algos.archive import RunArchive
from reuse_algos.cli import main
from reuse_algos.compare import Outcomes
from reuse_algos.compare.inside import size_maps
from reuse_algos.compare.show.dashboard import dashboard_of
from reuse_algos.compare.show.drawing import drawn_axes, looks_of
from reuse_algos.compare.show.files import PAGES, check_file
from reuse_algos.compare.show.page import embedded_json, headline, report_page, write_report
from reuse_algos.compare.show.page.scales import linear_scale, log_scale
from reuse_algos.compare.show.page.values import visible
from reuse_algos.errors import CompareError

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._in_data = False
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self._in_data = dict(attrs).get("id") == "report-data"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    archive = RunArchive(tmp_path_factory.mktemp("html") / "archive", create=True)
    comparison, selection = plain(archive)
    over_budgets, outcomes = budgets()
    return (
        (comparison, report_page(comparison, selection)),
        (over_budgets, report_page(over_budgets, outcomes)),
    )


@pytest.fixture(params=[0, 1], ids=["plain", "budgets"])
def report(request: pytest.FixtureRequest, both):
    return both[request.param]


def pointer(data, where: str):
    for part in where.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        data = data[int(part) if isinstance(data, list) else part]
    return data


def test_every_number_is_that_of_the_json(report) -> None:
    comparison, text = report
    page = Page(text)
    data = json.loads(page.data)
    assert data["comparison"] == comparison.to_dict()
    numbers = [
        (a["data-json"], a["value" if tag == "data" else "data-value"]) for tag, a in page.elements if "data-json" in a
    ]
    assert len(numbers) > 300
    for where, written in numbers:
        assert pointer(data, where) == json.loads(written), where


def test_what_is_written_is_the_number(report) -> None:
    """Each number's text is a rounding of its value, or says that there is none."""
    _, text = report
    seen = set()
    pattern = r'<data value="([^"]*)" data-json="([^"]*)">([^<]*)</data>'
    for written, where, shown in re.findall(pattern, text):
        if written == "null":
            assert shown in ("not finite", "not known", "∞", "-∞", "never", "?", "-"), (where, shown)
            continue
        value = json.loads(written)
        digits = re.match(r"^([+-]?\$?[\d,.]+(?:e[+-]?\d+)?)( ms| s| min| h|\u00d7)?$", shown)
        if digits is None:
            assert re.match(r"^(at once|\d+ later runs?)$", shown), (where, shown)
            seen.add("runs")
            continue
        number = float(digits[1].replace(",", "").replace("$", ""))
        size = {" ms": 1e-3, " min": 60.0, " h": 3600.0}.get(digits[2] or "", 1.0)
        seen.add(digits[2])
        rounding = 0.006 if digits[2] == "\u00d7" else 6e-5
        assert number * size == pytest.approx(value, rel=0.006, abs=rounding), (where, shown)
    assert {None, " s", " min", "\u00d7", "runs"} <= seen


def test_nothing_is_loaded_and_nothing_else_runs(report) -> None:
    _, text = report
    page = Page(text)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "audio", "video", "image", "use"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag  # the policy would block it
            if name in ("src", "href"):
                assert value == "data:," or str(value).startswith("#"), (tag, value)
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json", None]
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://", re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S))


def test_what_was_read_inside_is_drawn_and_said() -> None:
    comparison, outcomes = budgets()
    alpha = [(step, -0.999) for step in range(1, 9)]
    read = {"instruments/alpha": alpha, "instruments/gradient_sizes/below": [(1, 0.5)]}
    runs = [
        dataclasses.replace(run, readings=read) if run.group == "distilled" and run.budget == "40ep" else run
        for run in outcomes.runs
    ]
    inside = dataclasses.replace(outcomes, runs=runs)
    text = report_page(comparison, inside)
    (chart,) = json.loads(Page(text).data)["readings"]
    assert [one["y"] for one in chart["series"]] == [[-0.999] * 8] * 3
    assert "Inside the runs" in text
    assert text.count("The learning rate is too small") == 3
    assert "Inside the runs" not in report_page(comparison, outcomes)
    lines = dashboard_of(comparison, inside).lines["readings/alpha"].series
    assert len(lines) == 3
    assert all(points == [(float(step), -0.999) for step in range(1, 9)] for points in lines.values())


def test_the_sizes_of_gradients_are_a_map_for_each_run() -> None:
    """Small sizes below, the darker the larger the share; a share that is 0 or not a number leaves its cell empty."""
    comparison, outcomes = budgets()
    read = {
        "instruments/alpha": [(1, 0.0)],
        "instruments/gradient_sizes/1e-1": [(1, 0.0), (5, 0.2), (9, math.nan)],
        "instruments/gradient_sizes/below": [(1, 0.5), (5, 0.4), (9, math.nan)],
        "instruments/gradient_sizes/1e-2": [(1, 0.5), (5, 0.4), (9, math.nan)],
        "instruments/gradient_sizes/<b>": [(1, 0.5)],
    }
    inside = dataclasses.replace(
        outcomes,
        runs=[dataclasses.replace(run, readings=read if run is outcomes.runs[0] else {}) for run in outcomes.runs],
    )
    page = Page(report_page(comparison, inside))
    (found,) = json.loads(page.data)["sizes"]
    assert (found["sizes"], found["steps"]) == (["below", "1e-2", "1e-1"], [1, 5, 9])
    assert found["shares"] == [[0.5, 0.4, None], [0.5, 0.4, None], [0.0, 0.2, None]]
    cells = [a for tag, a in page.elements if tag == "rect" and a["class"] == "cell"]
    places = [(a["x"], a["y"], a["fill-opacity"], a["data-value"]) for a in cells]
    assert places == [
        ("0.000%", "66.667%", "1.000", "0.5"), ("33.333%", "66.667%", "0.800", "0.4"),
        ("0.000%", "33.333%", "1.000", "0.5"), ("33.333%", "33.333%", "0.800", "0.4"),
        ("33.333%", "0.000%", "0.400", "0.2"),
    ]  # fmt: skip
    assert cells[-1]["data-json"] == "/sizes/0/shares/2/1"
    table = dashboard_of(comparison, inside).tables["gradient_sizes"]
    assert table.columns == ["group", "run_id", "step", "size", "share"]
    assert [row[2:] for row in table.rows][6:] == [[1, "1e-1", 0.0], [5, "1e-1", 0.2], [9, "1e-1", None]]
    assert "gradient_sizes" not in dashboard_of(comparison, outcomes).tables


def test_maps_of_many_runs_and_steps_are_thinned_out() -> None:
    _, outcomes = budgets()
    rows = {"instruments/gradient_sizes/below": [(step, step / 1000) for step in range(1, 1001)]}
    groups = {
        name: [dataclasses.replace(outcomes.runs[0], run_id=f"{name}-{k}", readings=rows) for k in range(count)]
        for name, count in (("few", 2), ("many", 30))
    }
    found = size_maps(groups)
    assert [one.run_id for one in found] == ["few-0", "few-1", *(f"many-{k}" for k in range(10))]
    assert len(found[0].steps) == 40
    assert (found[0].steps[0], found[0].steps[-1]) == (1, 1000)
    assert found[0].shares == [[step / 1000 for step in found[0].steps]]


def test_a_reading_between_gaps_is_a_dot() -> None:
    comparison, outcomes = budgets()
    read = {"instruments/noise_scale": [(1, math.inf), (2, 5.0), (3, math.inf)]}
    runs = [dataclasses.replace(run, readings=read if run is outcomes.runs[0] else {}) for run in outcomes.runs]
    text = report_page(comparison, dataclasses.replace(outcomes, runs=runs))
    lines = [str(a["points"]).split() for tag, a in Page(text).elements if tag == "polyline"]
    assert [line[0] for line in lines if len(line) == 2 and line[0] == line[1]], (
        "a line without a length, round at its ends"
    )


def test_hostile_names_stay_names(report) -> None:
    comparison, text = report
    assert HOSTILE in [group.name for group in comparison.groups]
    assert "document.title='owned'</script>" not in text
    assert "\u202e" not in text
    assert "&lt;/script&gt;&lt;script&gt;document.title=" in text
    data = Page(text).data
    assert "<" not in data
    assert "--" not in data or "<!--" not in data
    ids = [a["id"] for _, a in Page(text).elements if "id" in a]
    assert len(set(ids)) == len(ids)
    targets = [str(a["href"])[1:] for tag, a in Page(text).elements if tag == "a"]
    assert set(targets) <= set(ids)


def test_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    comparison, selection = plain(RunArchive(tmp_path / "archive", create=True))
    assert report_page(comparison, selection) == report_page(comparison, selection)
    over_budgets, outcomes = budgets()
    assert report_page(over_budgets, outcomes) == report_page(
        over_budgets, dataclasses.replace(outcomes, runs=outcomes.runs[::-1])
    )


def test_it_says_what_matters(both) -> None:
    (_, first), (budget, second) = both
    words = re.sub(r"<[^>]*>", "", first)
    for expected in (
        "distilled is faster than baseline; for 3 others this was not shown", "not enough runs", "no difference",
        "Control: ", "It did not reach the target within its budget", "has no mean final value", "diverged",
        "weights last, signal logits", "0123456789abcdef", "torch 2.7.0", "name A100", "max_duration: 20ep",
        "each interval holds by itself", "paid back", "not paired", "paired by seed",
    ):  # fmt: skip
        assert expected in words, expected
    words = re.sub(r"<[^>]*>", "", second).replace("&#x27;", "'")
    for expected in (
        "Pareto front", "Dollars", "shared among 5 later runs", "No manifest of this run is at hand", "at most",
        "The training of the prior runs" if budget.count_prior_training else "$2.5 per hour", "not finite", "40ep",
    ):  # fmt: skip
        assert expected in words, expected
    for group in budget.groups:
        if group.name != HOSTILE and not group.is_baseline:
            assert group.sentence in words


def test_a_control_stands_in_the_card_of_its_technique(both) -> None:
    for (_, text), control in zip(both, ("smoothed", "untrained teacher"), strict=True):
        cards = re.findall(r'<li class="card .*?</li>', text, flags=re.S)
        (card,) = [card for card in cards if control in card]
        assert card.index(">distilled<") < card.index(">Control: ") < card.index(f">{control}<")
        assert 'class="card faster">' in card


def test_groups_are_shown_next_to_their_controls() -> None:
    names = ["baseline", "a", "a-control", "b", "lost", "z / 5ep", "zc / 5ep"]
    controls = {"a-control": "b", "lost": "gone", "zc / 5ep": "z"}
    looks = looks_of(SimpleNamespace(groups=[SimpleNamespace(name=n, control_of=controls.get(n)) for n in names]))
    shown = [(look.name, look.colour, look.control, look.technique) for look in looks]
    assert shown == [
        ("baseline", 0, False, None), ("a", 1, False, None), ("b", 2, False, None), ("a-control", 2, True, "b"),
        ("z / 5ep", 3, False, None), ("zc / 5ep", 3, True, "z / 5ep"), ("lost", 4, True, None),
    ]  # fmt: skip
    assert [look.index for look in looks] == [0, 1, 3, 2, 5, 6, 4]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "Only base so far"),
        (["faster"], "g0 is faster than base"),
        (["slower"], "g0 is slower than base"),
        (["no difference"], "No difference between g0 and base was shown"),
        (["not enough runs"], "Not enough runs to tell g0 from base"),
        (["no difference", "slower"], "None of 2 techniques was shown to be faster than base"),
        (["faster", "faster"], "All 2 techniques are faster than base"),
        (["slower", "faster"], "g1 is faster than base; for the other technique this was not shown"),
        (["faster", "faster", "slower"], "2 of 3 techniques are faster than base"),
    ],
)
def test_headlines(said: list[str], words: str) -> None:
    names = [f"g{k}" for k in range(len(said))]
    verdicts = {"base": "baseline", **dict(zip(names, said, strict=True)), "control": "faster"}
    groups = [
        SimpleNamespace(name=name, verdict=verdict, control_of="g0" if name == "control" else None)
        for name, verdict in verdicts.items()
    ]
    comparison = SimpleNamespace(groups=groups, baseline="base")
    assert headline(comparison, looks_of(comparison)).startswith(words)


def test_a_control_that_is_faster_is_a_warning(both) -> None:
    budget, _ = both[1]
    for verdict, warning in (("faster", "The control is faster, too"), ("slower", "The control is faster, though")):
        told = {"distilled": verdict, "untrained teacher": "faster"}
        groups = [dataclasses.replace(group, verdict=told.get(group.name, group.verdict)) for group in budget.groups]
        assert warning in report_page(dataclasses.replace(budget, groups=groups), Outcomes([], METRIC, "max"))
    assert "The control is faster" not in both[1][1]


def test_small_archives(tmp_path: Path) -> None:
    """Only a baseline; one run each; no seconds; no shared evaluations; NaN everywhere; a target."""
    archive = RunArchive(tmp_path / "archive", create=True)
    write_run(archive, "baseline", None, [0.1, 0.2], seconds_per_step=0.0)
    selection = select_outcomes(archive)
    page = report_page(compare_runs(archive, selection=selection), selection)
    assert "Only baseline so far" in page
    Page(page)
    write_run(archive, "quick", 0, [0.1, 0.3], seconds_per_step=0.0)
    write_run(archive, "quick", 1, [0.1, 0.3, 0.3], every=70, seconds_per_step=0.0)
    write_run(archive, "bad", 0, [math.nan, math.nan], seconds_per_step=0.0)
    selection = select_outcomes(archive)
    page = report_page(compare_runs(archive, selection=selection, target=0.2), selection)
    data = json.loads(Page(page).data)
    assert [chart["key"] for chart in data["charts"]] == ["steps"]
    (quick,) = [one for one in data["charts"][0]["series"] if one["name"] == "quick (n=2)"]
    assert quick["x"] == []
    assert "declared in advance" in page
    assert "No recipe was recorded" in page


def test_many_evaluations_are_thinned_for_pointing_but_not_in_the_line(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for seed in range(2):
        write_run(archive, "baseline", seed, [0.1 + 0.001 * k + 0.01 * seed for k in range(200)])
    selection = select_outcomes(archive)
    page = Page(report_page(compare_runs(archive, selection=selection), selection))
    marks = [
        a for tag, a in page.elements if tag == "svg" and str(a.get("data-json")).startswith("/charts/1/series/0/y")
    ]
    assert len(marks) == 40
    # The axis begins at 0.15 - 0.06 * (0.309 - 0.15) = 0.1405, and the mean is 0.105 + 0.001 k.
    assert marks[0]["data-json"] == "/charts/1/series/0/y/36"
    assert marks[-1]["data-json"] == "/charts/1/series/0/y/199"
    lines = [a for tag, a in page.elements if a.get("class") == "line" and tag == "polyline"]
    assert [len(str(a["points"]).split()) for a in lines] == [200, 200]


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = RunArchive(tmp_path / "archive", create=True)
    for seed in range(2):
        for method, speed in (("baseline", 1.0), ("quick", 1.7)):
            for epochs in (5, 10):
                values = [0.3 + 0.01 * seed + 0.03 * speed * k for k in range(epochs)]
                write_run(archive, method, seed, values, recipe={"max_duration": f"{epochs}ep"})
    report = tmp_path / "report.html"
    arguments = ["compare", str(archive.root), "--html", str(report)]
    by_budget = ["--group-by", "tags.method,recipe.max_duration", "--baseline", "baseline / 10ep"]
    for more in (by_budget, ["--budgets", "--price-per-hour", "2"]):
        assert main([*arguments, *more, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        data = json.loads(Page(report.read_text(encoding="utf-8")).data)
        assert data["comparison"] == printed
        assert len(data["runs"]) == 8
    assert main([*arguments, *by_budget]) == 0
    assert f"report: {report}" in capsys.readouterr().out
    assert main(["compare", "nowhere", "--html", "report.pdf"]) == 2
    assert "end the name in .html, .htm" in capsys.readouterr().err


def test_reports_that_can_not_be_written(tmp_path: Path) -> None:
    for name in ("report.pdf", "report", "html"):
        with pytest.raises(CompareError, match=r"end the name in \.html, \.htm"):
            check_file(tmp_path / name, PAGES)
    with pytest.raises(CompareError, match="no folder"):
        write_report("", tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(CompareError, match=r"cannot be written to .*folder\.html"):
        write_report("", tmp_path / "folder.html")
    assert write_report("é", tmp_path / "r.HTML").read_bytes() == "é".encode()


def test_markup_escapes() -> None:
    assert visible("a\x00\x1b\u202e\ud800\tb\n") == "a\\u0000\\u001b\\u202e\\ud800\tb\n"
    hidden = embedded_json({"a": "</script><!--&\ud800\u2028", "b": [math.nan, math.inf, 1.5]})
    assert not set("<>&\u2028") & set(hidden)
    assert json.loads(hidden) == {"a": "</script><!--&\ud800\u2028", "b": [None, None, 1.5]}


def test_scales() -> None:
    scale = linear_scale([0.0, 10.0], from_zero=True, room=0.0)
    assert (scale.low, scale.high, scale.ticks) == (0.0, 10.0, (0.0, 2.0, 4.0, 6.0, 8.0, 10.0))
    assert [scale.place(x) for x in (-1.0, 0.0, 2.5, 99.0)] == [0.0, 0.0, 0.25, 1.0]
    assert linear_scale([0.0, 200.0], from_zero=True, room=0.0, seconds=True).ticks == (0, 60, 120, 180)
    assert linear_scale([math.nan]).low < linear_scale([math.nan]).high
    assert linear_scale([5.0, 5.0]).place(5.0) == 0.5
    scale = log_scale([0.01, 100.0], room=0.0, around=1.0, most=10.0)
    assert (scale.low, scale.high) == (pytest.approx(0.1), pytest.approx(10.0))
    assert [scale.place(x) for x in (0.0, 1.0, math.inf)] == [0.0, pytest.approx(0.5), 1.0]
    assert 1.0 in scale.ticks
    assert log_scale([], around=1.0).place(1.0) == pytest.approx(0.5)
    assert log_scale([50.0, 400.0], seconds=True).ticks == (60, 120, 180, 300)
    for low, high in ((1e-3, 1e5), (1.0, 1.1), (3.0, 4.0), (1e12, 3e12)):
        assert 1 <= len(log_scale([low, high]).ticks) <= 8


def test_the_axis_of_the_verdicts_comes_first() -> None:
    comparison, _ = budgets()
    assert drawn_axes(comparison)[:2] == ["cost_seconds", "steps"]
    assert drawn_axes(dataclasses.replace(comparison, judged_by="flops"))[:2] == ["flops", "cost_seconds"]
    assert "samples" not in drawn_axes(comparison)  # the steps over again
    assert drawn_axes(dataclasses.replace(comparison, judged_by="samples"))[:2] == ["samples", "cost_seconds"]
