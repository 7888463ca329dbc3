"""Sequences on a cluster: Ray with three nodes on this machine, submitit's local executor, and the job that travels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.sequence import run_sequence
from reuse_algos.sequence.launchers import RayLauncher, SlurmLauncher
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.launchers.remote import RemoteJob, one_node, remote_job
from reuse_algos.sequence.running.lease import LeaseKey
from reuse_algos.sequence.running.steps import _write_recipe
from sequences import REUSE, Here, planned

BOTH = {"without": {}, "reuse": REUSE}


def remote(here: Path, *arguments: str, **changes: Any) -> RemoteJob:
    archive = RunArchive(here / "archive", create=True)
    values: dict[str, Any] = {
        "title": "without/seed-1", "arguments": arguments, "folder": str(here), "recipe": "work/recipe.yaml",
        "text": "seed: 1\n", "archive": "archive", "archive_id": archive.archive_id,
    }  # fmt: skip
    return RemoteJob(**{**values, **changes})


def test_a_job_brings_its_recipe_and_returns_its_output(tmp_path: Path) -> None:
    code = "import sys; print(open('work/recipe.yaml').read()); print('problem', file=sys.stderr); sys.exit(7)"
    outcome = remote(tmp_path, "-c", code)()
    assert outcome.status == 7
    assert "seed: 1" in outcome.log
    assert "problem" in outcome.log
    assert (tmp_path / "work/recipe.yaml").read_text() == "seed: 1\n"


def test_what_a_job_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    outcome = remote(tmp_path, "-c", code + "; print(p.pid)")()
    process = Path("/proc") / outcome.log.strip()
    for _ in range(600):  # a signal takes effect when the machine gets round to it
        state = _state(process)
        if state in ("Z", "X", "gone"):
            break
        time.sleep(0.1)
    assert state in ("Z", "X", "gone")


def _state(process: Path) -> str:
    try:
        return (process / "stat").read_text().split(") ")[1][0]
    except OSError:
        return "gone"


def test_an_archive_that_the_node_cannot_see_is_named(tmp_path: Path) -> None:
    code = "open('started', 'w')"
    unseen = remote(tmp_path, "-c", code, archive="elsewhere")()
    assert unseen.status is None
    assert "cannot be seen there" in unseen.log
    other = remote(tmp_path, "-c", code, archive_id="f" * 32)()
    assert other.status is None
    assert "is another archive there" in other.log
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_several_nodes_are_refused_and_missing_engines_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, arms={"without": {"overrides": {"resources": {"nodes": 2}}}})
    job = Job(plan.steps[0], 1, LeaseKey(plan.config.archive, plan.config.name, "token"))
    with pytest.raises(SequenceError, match="asks for 2 nodes"):
        one_node(job)
    plan = planned(tmp_path)
    RunArchive(plan.config.archive, create=True)
    _write_recipe(plan.steps[0])
    made = remote_job(Job(plan.steps[0], 1, LeaseKey(plan.config.archive, plan.config.name, "token")))
    assert made.archive_id == RunArchive(plan.config.archive).archive_id
    assert made.arguments[:2] == ("-m", "reuse_algos.sequence.running.job")
    for name, launcher in (("ray", RayLauncher), ("submitit", lambda: SlurmLauncher(tmp_path))):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(SequenceError, match="pip install 'reuse-algos"):
            launcher()


def table(states: list[Any]) -> dict[str, tuple[float, int]]:
    return {one.step.title: (one.run.final_metric(), one.run.manifest.progress.batch) for one in states}


def trainings(archive: str) -> list[str]:
    return sorted(run.run_name for run in RunArchive(archive).runs(unfinished=True, unhealthy=True))


def test_submitit_trains_what_the_local_launcher_trains(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    expected = run_sequence(planned(here, arms={"without": {}}), launcher=Here(), say=lambda line: None)
    plan = planned(there, arms={"without": {}})
    launcher = SlurmLauncher(there / "slurm", cluster="local")
    found = run_sequence(plan, launcher=launcher, jobs=2, say=lambda line: None)
    assert table(found) == table(expected)
    assert trainings(plan.config.archive) == ["tiny-without-seed-1", "tiny-without-seed-2"]
    assert "archived run" in (found[0].step.folder / "log.txt").read_text()


def test_submitit_names_a_step_that_always_fails(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    plan = planned(tmp_path, "overrides.data.root=./x", arms={"without": {}}, grid={"seed": [1]})
    plan.steps[0].values["data"] = {"name": "npz", "path": "nowhere.npz"}
    launcher = SlurmLauncher(tmp_path / "slurm", cluster="local")
    with pytest.raises(SequenceError, match=r"failed \(exit status 2\)[\s\S]*there is no file nowhere.npz"):
        run_sequence(plan, launcher=launcher, say=lambda line: None)
    assert trainings(plan.config.archive) == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes with one CPU each; the head has none."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_ray_trains_everything_once_though_a_node_is_removed(cluster: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    expected = run_sequence(planned(here, arms=BOTH), launcher=Here(), say=lambda line: None)
    plan = planned(there, arms=BOTH)
    timer = threading.Timer(8.0, lambda: cluster.remove_node(cluster.list_all_nodes()[-1]))
    timer.start()
    found = run_sequence(plan, launcher=RayLauncher(), jobs=2, say=lambda line: None)
    timer.join()
    assert table(found) == table(expected)
    names = trainings(plan.config.archive)
    assert len(names) == len(set(names)) == 4
    assert len([node for node in __import__("ray").nodes() if node["Alive"]]) == 3  # the head and two


def test_ray_names_what_no_node_has(cluster: Any, tmp_path: Path) -> None:
    plan = planned(tmp_path, "overrides.resources.gpus=4", arms={"without": {}})
    with pytest.raises(SequenceError, match="asks for 1 CPUs and 4 GPUs, and no node has them"):
        run_sequence(plan, launcher=RayLauncher(), say=lambda line: None)
