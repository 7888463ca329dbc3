"""The saved report of a W&B project: its plan, and what a server is sent, read from the requests themselves."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compare.asking import compare_runs, select_outcomes
from compare.synthetic_runs import METRIC, write_run
from reuse_algos.archive import RunArchive
from reuse_algos.compare import Comparison, Outcomes
from reuse_algos.compare.show.dashboard import Dashboard, dashboard_of
from reuse_algos.compare.show.saved_report import SavedReport, saved_report_of
from reuse_algos.compare.show.wandb_report import save_report
from reuse_algos.errors import CompareError
from wandb_files import end_wandb

MEAN = [0.30, 0.50, 0.60, 0.66, 0.69, 0.70]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Comparison, Outcomes]:
    archive = RunArchive(tmp_path / "archive", create=True)
    for seed in (1, 2, 3):
        write_run(archive, "baseline", seed, [x + 0.001 * seed for x in MEAN])
        write_run(archive, "**fast** <b>", seed, [x + 0.1 + 0.001 * seed for x in MEAN])
    selection = select_outcomes(archive)
    return compare_runs(archive, selection=selection), selection


@pytest.fixture
def dashboard(made: tuple[Comparison, Outcomes]) -> Dashboard:
    return dashboard_of(*made)


def test_the_plan_names_what_the_runs_hold(made: tuple[Comparison, Outcomes], dashboard: Dashboard) -> None:
    plan = saved_report_of(dashboard, page=True)
    assert plan.title == f"reuse_algos: {METRIC.rsplit('/', 1)[-1]} by tags.method"
    assert plan.archive_id == made[0].archive_id
    assert plan.sentences[:2] == [group.sentence for group in made[0].groups if group.sentence][:2]
    assert plan.sentences[-1].startswith(f"Target: {made[0].target:.6g}")
    found, training = plan.sections
    # Each panel of the comparison shows a value that the comparison's run holds.
    logged = {*dashboard.lines, *dashboard.bars, *(f"tables/{name}" for name in dashboard.tables), "report"}
    assert {panel.key for panel in found.panels} <= logged
    assert {panel.key for panel in found.panels} >= {"curves/steps", "speedup/cost_seconds", "tables/groups", "report"}
    assert [panel.key for panel in training.panels][:2] == [METRIC, METRIC]
    assert training.group_by == ["config.reuse.tags.method"]
    assert "report" not in {panel.key for panel in saved_report_of(dashboard, page=False).sections[0].panels}


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        ("tags.method, recipe.max_duration", ["config.reuse.tags.method", "config.max_duration"]),
        ("seed", ["config.seed"]),
        ("run_name,model.name", ["run.displayName", "config.model.name"]),
    ],
)
def test_grouping_keys_are_those_of_w_and_b(dashboard: Dashboard, group_by: str, names: list[str]) -> None:
    dashboard.config["group_by"] = group_by
    assert saved_report_of(dashboard, page=False).sections[1].group_by == names


class _Server(http.server.ThreadingHTTPServer):
    """The little of W&B's GraphQL server that saving a report asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.views: dict[str, dict[str, Any]] = {}
        self.unknown: list[str] = []
        self.refuse = False

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            key = variables["id"] or f"view{len(self.views)}"
            self.views[key] = {**variables, "id": key, "id_sent": variables["id"]}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            view = {
                "id": key, "type": "runs", "name": "n", "displayName": variables["displayName"], "description": "",
                "project": project, "spec": variables["spec"], "updatedAt": "2026-01-01T00:00:00",
            }  # fmt: skip
            return {"upsertView": {"view": view, "inserted": variables["id"] is None}}
        if "allViews" in query:
            nodes = [
                {"id": v["id"], "name": "n", "displayName": v["displayName"], "description": "", "user": None,
                 "spec": v["spec"], "updatedAt": ""}
                for v in self.views.values()
            ]  # fmt: skip
            edges = [{"node": node, "cursor": node["id"]} for node in nodes]
            return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}
        if "internalId" in query:
            return {"project": {"id": "p", "internalId": "7"}}
        if "models(" in query:
            node = {"id": "p", "name": "proj", "entityName": "team", "createdAt": "", "isBenchmark": False}
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"edges": [{"node": node, "cursor": "p"}], "pageInfo": page}}
        if "viewer" in query or "serverInfo" in query:
            return {"viewer": {"id": "u", "entity": "team", "flags": "{}"}, "serverInfo": {}}
        self.unknown.append(query)
        return {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any] = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        if self.server.refuse and "upsertView" in asked["query"]:
            answer = {"errors": [{"message": "permission denied"}], "data": None}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed")
    end_wandb()
    started = _Server()
    thread = threading.Thread(target=started.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{started.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield started
    started.shutdown()
    started.server_close()
    thread.join()
    end_wandb()


def _save(plan: SavedReport, run_id: str) -> str:
    return save_report(plan, entity="team", project="proj", run_id=run_id)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # W&B leaves its sockets to the garbage collector
def test_a_report_is_made_once_and_then_replaced(dashboard: Dashboard, server: _Server) -> None:
    plan = saved_report_of(dashboard, page=True)
    first = _save(plan, "run1")
    second = _save(plan, "run2")
    assert first == second
    assert "/team/proj/reports/" in first
    assert server.unknown == []
    (view,) = server.views.values()
    assert (view["id_sent"], view["type"], view["displayName"]) == ("view0", "runs", plan.title)

    blocks = json.loads(view["spec"])["blocks"]
    text = json.dumps(blocks)
    assert all(json.dumps(sentence)[1:-1] in text for sentence in plan.sentences)
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == 2
    found, training = (grid["metadata"] for grid in grids)
    (asked,) = found["runSets"][0]["filters"]["filters"]
    assert (asked["key"], asked["value"]) == ({"section": "run", "name": "name"}, "run2")
    (asked,) = training["runSets"][0]["filters"]["filters"]
    assert asked["key"] == {"section": "config", "name": "reuse.value.archive_id"}
    assert asked["value"] == plan.archive_id
    assert training["runSets"][0]["grouping"] == [{"section": "config", "name": "reuse.value.tags.method"}]

    panels = training["panelBankSectionConfig"]["panels"]
    assert [panel["viewType"] for panel in panels] == ["Run History Line Plot"] * 3 + ["Bar Chart"]
    assert [panel["config"]["metrics"] for panel in panels[:2]] == [[METRIC]] * 2
    assert [panel["config"]["xAxis"] for panel in panels[:3]] == ["time/train_seconds", "_step", "_step"]
    places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels]
    assert len(set(places)) == 4
    charts = [panel["config"] for panel in found["panelBankSectionConfig"]["panels"] if panel["viewType"] == "Vega2"]
    assert {chart["panelDefId"] for chart in charts} == {"wandb/lineseries/v0", "wandb/bar/v0"}
    assert f"{next(iter(dashboard.lines))}_table" in json.dumps(charts[0]["userQuery"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_w_and_b_refuses_is_said(dashboard: Dashboard, server: _Server) -> None:
    server.refuse = True
    with pytest.raises(CompareError, match=r"no report was saved in team/proj, W&B said: .*permission denied"):
        _save(saved_report_of(dashboard, page=False), "run1")
    assert server.views == {} or all(view["id_sent"] is None for view in server.views.values())


def test_what_is_missing_is_named(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb_workspaces", "wandb_workspaces.reports", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CompareError, match=r"wandb-workspaces cannot be imported .*reuse-algos\[wandb-report\]"):
        _save(saved_report_of(dashboard, page=False), "run1")
