"""Sequences on a cluster: Ray with nodes on this machine, submitit's local executor, and the job that travels."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from made_sequences import REUSE, Here, planned
from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import Meeting, Outcome, RemoteJob, launch_arguments
from reuse_algos.sequence import run_sequence
from reuse_algos.sequence.launchers import RayLauncher, SlurmLauncher, ray_tasks
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.running.halt import Halt
from reuse_algos.sequence.running.job import main
from reuse_algos.sequence.running.lease import LeaseKey
from reuse_algos.sequence.running.steps import _write_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from cluster import agent_ports, ray_nodes

BOTH = {"without": {}, "reuse": REUSE}


def remote(here: Path, code: str, **changes: Any) -> RemoteJob:
    values: dict[str, Any] = {
        "title": "without/seed-1", "arguments": ("-S", "-c", code), "folder": str(here / "there"),
        "files": {"work/recipe.yaml": "seed: 1\n"},
    }  # fmt: skip
    return RemoteJob(**{**values, **changes})


@dataclass(frozen=True)
class Code(Job):
    """A job that does not train: it runs a line of Python, which is quick to start."""

    code: str = "pass"

    def arguments(self, archive_id: str | None = None) -> list[str]:
        return ["-S", "-c", self.code]


def job(here: Path, code: str | None = None, ranks: int = 1, **resources: int) -> Job:
    """The job of a planned step; with code, one that runs it."""
    plan = planned(here, arms={"without": {"overrides": {"resources": resources}}}, grid={"seed": [1]})
    RunArchive(plan.config.archive, create=True)
    _write_recipe(plan.steps[0])
    lease = LeaseKey(plan.config.archive, plan.config.name, "token")
    return Job(plan.steps[0], ranks, lease) if code is None else Code(plan.steps[0], ranks, lease, code=code)


def is_gone(number: int | str) -> bool:
    try:
        return (Path("/proc") / str(number) / "stat").read_text().split(") ")[1][0] in ("Z", "X")
    except OSError:
        return True


def wait_for(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What the function returns once it is true: processes need their time."""
    until = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return answer


# The job that travels


def test_a_job_brings_its_recipe_and_returns_its_output(tmp_path: Path) -> None:
    code = "import sys; print(open('work/recipe.yaml').read()); print('problem', file=sys.stderr); sys.exit(7)"
    outcome = remote(tmp_path, code)()
    assert outcome.status == 7
    assert "seed: 1" in outcome.log
    assert "problem" in outcome.log
    assert [path.name for path in (tmp_path / "there/work").iterdir()] == ["recipe.yaml"]
    assert (tmp_path / "there" / "work" / "recipe.yaml").read_text() == "seed: 1\n"


def test_what_a_job_started_ends_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    outcome = remote(tmp_path, code + "; print(p.pid)")()
    wait_for(lambda: is_gone(outcome.log.strip()))


def test_a_folder_that_the_node_cannot_make_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a file")
    outcome = remote(tmp_path, "pass")()
    assert outcome.status is None
    assert "without/seed-1 was not started on" in outcome.log
    assert str(tmp_path / "there") in outcome.log


@pytest.mark.parametrize("known", [True, False])
def test_an_archive_that_the_node_cannot_see_is_named(
    tmp_path: Path, known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job's process looks, before it trains."""
    expected = RunArchive(tmp_path / "archive", create=True).archive_id
    place = tmp_path / ("archive" if known else "elsewhere")
    asked = {"lease": asdict(LeaseKey(str(place), "tiny", "token")), "recipe": str(tmp_path / "none.yaml")}
    assert main([json.dumps({**asked, "archive_id": "f" * 32})], ends=lambda status: None) == 2
    said = capsys.readouterr().err
    assert str(place) in said
    assert ("is another archive" if known else "cannot be seen") in said
    assert "Use a shared folder or an object store" in said
    assert not (tmp_path / "elsewhere").exists()
    if known:  # with the right identity it goes on, to the recipe that is not there
        assert main([json.dumps({**asked, "archive_id": expected})], ends=lambda status: None) == 2
        assert "none.yaml" in capsys.readouterr().err


def test_ranks_are_shared_out_over_the_nodes(tmp_path: Path) -> None:
    assert launch_arguments(1) == []
    assert launch_arguments(4) == ["-m", "composer.cli.launcher", "-n", "4"]
    words = launch_arguments(4, nodes=2, node=1, meeting=Meeting("10.0.0.7", 29500))
    assert " ".join(words) == (
        "-m composer.cli.launcher -n 2 --world_size 4 --node_rank 1 --master_addr 10.0.0.7 --master_port 29500"
    )
    made = job(tmp_path, ranks=4, nodes=2).remote()
    assert (made.ranks, made.nodes) == (4, 2)
    assert made.arguments[:2] == ("-m", "reuse_algos.sequence.running.job")
    assert json.loads(made.arguments[2])["archive_id"] == RunArchive(tmp_path / "archive").archive_id
    with pytest.raises(SequenceError, match=r"asks for 2 nodes, and the sequence has ranks: 3.* multiple of 2"):
        job(tmp_path, ranks=3, nodes=2).remote()


# What is not there


def test_missing_engines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, launcher in (("ray", RayLauncher), ("submitit", lambda: SlurmLauncher(tmp_path))):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SequenceError, match="pip install 'reuse-algos"):
            launcher()
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SequenceError, match="this machine has no sbatch"):
        SlurmLauncher(tmp_path)


def test_no_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **options: Any) -> None:
        raise ConnectionError(f"Could not find any running Ray instance at {address}")

    ray: Any = types.ModuleType("ray")
    ray.init, ray.is_initialized = init, lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    with pytest.raises(SequenceError, match=r"no Ray cluster answers at 10.0.0.7:6379.*Start one \(ray start --head\)"):
        RayLauncher()


class LostError(Exception):
    """What Ray raises for a task whose node died."""


def made_up_ray(ends: dict[str, Any]) -> Any:
    """A module with Ray's calls: tasks that are in ``ends`` have ended, with an outcome or an exception."""

    def wait(tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return [one for one in tasks if one in ends], [one for one in tasks if one not in ends]

    def get(task: str) -> Any:
        if isinstance(ends[task], Exception):
            raise ends[task]
        return ends[task]

    ray: Any = types.ModuleType("ray")
    ray.is_initialized, ray.wait, ray.get, ray.cancel = lambda: True, wait, get, lambda task, force: None
    ray.util = types.SimpleNamespace(remove_placement_group=lambda group: None)
    other = type("Other", (Exception,), {})
    ray.exceptions = types.SimpleNamespace(RayError=LostError, RayTaskError=other, TaskCancelledError=other)
    return ray


@pytest.mark.parametrize("node_died", [True, False])
def test_ranks_that_fail_with_a_dead_node_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node_died: bool
) -> None:
    """The others' connections break before Ray tells of the node; without such news the failure is one."""
    clock = [0.0]
    monkeypatch.setattr(ray_tasks, "monotonic", lambda: clock[0])
    ends: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "ray", made_up_ray(ends))
    launcher, done = RayLauncher(), job(tmp_path, "pass", ranks=2, nodes=2)
    again: list[Any] = []
    monkeypatch.setattr(launcher, "_start", again.append)
    handle = ray_tasks._Started(done, done.remote(), ["first", "second"], group=object())
    assert launcher.wait(handle, 0.1) is None
    ends["first"] = Outcome(1, "Connection closed by peer")
    assert launcher.wait(handle, 0.1) is None
    if node_died:
        ends["second"] = LostError("the node died")
        assert launcher.wait(handle, 0.1) is None
        assert (again, handle.lost, handle.failed_at) == ([handle], 1, None)
        return
    clock[0] = 61.0
    assert launcher.wait(handle, 0.1) == 1
    assert again == []
    assert done.log.read_text() == "Connection closed by peer"


def table(states: list[Any]) -> dict[str, tuple[float, int]]:
    return {one.step.title: (one.run.final_metric(), one.run.manifest.progress.batch) for one in states}


def trainings(archive: str) -> list[str]:
    return sorted(run.run_name for run in RunArchive(archive).runs(unfinished=True, unhealthy=True))


# submitit


def test_submitit_runs_a_job_and_brings_its_output(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    launcher = SlurmLauncher(tmp_path / "slurm", cluster="local")
    done = job(tmp_path, "import sys; print('hello'); sys.exit(7)")
    assert Halt().run(launcher, done) == 7
    assert done.log.read_text() == "hello\n"
    with pytest.raises(SequenceError, match="asks for 2 nodes, and a step runs on one node of a Slurm site"):
        launcher.submit(job(tmp_path, "pass", ranks=2, nodes=2))


@pytest.mark.slow
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


@pytest.mark.slow
def test_submitit_names_a_step_that_always_fails(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    plan = planned(tmp_path, "overrides.data.root=./x", arms={"without": {}}, grid={"seed": [1]})
    plan.steps[0].values["data"] = {"name": "npz", "path": "nowhere.npz"}
    launcher = SlurmLauncher(tmp_path / "slurm", cluster="local")
    with pytest.raises(SequenceError, match=r"failed \(exit status 2\)[\s\S]*there is no file nowhere.npz"):
        run_sequence(plan, launcher=launcher, say=lambda line: None)
    assert trainings(plan.config.archive) == []


# Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each; the head has none."""
    ray = pytest.importorskip("ray")
    with ray_nodes(2) as made:
        ray.init(address=made.address, log_to_driver=False, configure_logging=False)
        yield made
        ray.shutdown()


def node_of(cluster: Any, process: int) -> Any:
    """The node whose worker started a process."""
    parents = [process]
    while parents[-1] > 1:
        parents.append(int(Path(f"/proc/{parents[-1]}/stat").read_text().split(") ")[1].split()[1]))
    (found,) = [node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid in parents]
    return found


LINGER = (
    "import os, pathlib, time; here = pathlib.Path({here!r}); (here / str(os.getpid())).touch()\n"
    "while not (here.parent / 'go').exists(): time.sleep(0.05)\n"
    "print('done')"
)


def test_a_task_whose_node_is_removed_is_done_by_another(cluster: Any, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    lingering = job(tmp_path, LINGER.format(here=str(begun)))
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(Halt().run(RayLauncher(), lingering)))
    thread.start()
    first = int(wait_for(lambda: [path.name for path in begun.iterdir()])[0])
    cluster.remove_node(node_of(cluster, first))
    wait_for(lambda: len(list(begun.iterdir())) == 2)
    (tmp_path / "go").touch()
    thread.join()
    assert statuses == [0]
    assert lingering.log.read_text() == "done\n"


def test_a_task_that_is_cancelled_takes_what_it_started_with_it(cluster: Any, tmp_path: Path) -> None:
    """The job's own process ends through its pipe, as the job of a step does."""
    code = (
        "import os, subprocess, sys, threading, pathlib\n"
        "wait = 'import os; os.read(0, 1); os._exit(1)'\n"
        "other = subprocess.Popen([sys.executable, '-S', '-c', wait])\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getpid()}} {{other.pid}}\\n')\n"
        "os.read(0, 1)"
    )
    launcher = RayLauncher()
    handle = launcher.submit(job(tmp_path, code))
    wait_for(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"))
    assert launcher.wait(handle, 0.1) is None
    launcher.cancel(handle)
    for number in (tmp_path / "pids").read_text().split():
        wait_for(lambda number=number: is_gone(number))
    launcher.cancel(handle)  # nothing where it has ended


def test_a_task_that_fails_by_itself_is_not_repeated(cluster: Any, tmp_path: Path) -> None:
    failing = job(tmp_path, "import sys; print('cause'); sys.exit(7)")
    assert Halt().run(RayLauncher(), failing) == 7
    assert failing.log.read_text() == "cause\n"


def test_ray_names_what_no_node_has(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match="asks for 1 CPUs and 4 GPUs, and no node has them"):
        RayLauncher().submit(job(tmp_path, gpus=4))
    with pytest.raises(SequenceError, match=r"asks for 1 CPUs and 0 GPUs, and . of 9 nodes have them"):
        RayLauncher().submit(job(tmp_path, ranks=9, nodes=9))


def test_a_node_without_the_package_is_named(cluster: Any, tmp_path: Path) -> None:
    import ray

    other = tmp_path / "other" / "reuse_algos"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'reuse_algos'\")")
    ray.shutdown()
    try:
        before = os.environ.get("PYTHONPATH", "")
        there = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(other.parent), before])}}
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False, runtime_env=there)
        with pytest.raises(SequenceError, match=r"could not be started on a node: .*reuse_algos.*Every node needs"):
            Halt().run(RayLauncher(), job(tmp_path, "pass"))
    finally:
        ray.shutdown()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)


@pytest.mark.slow
def test_ray_trains_everything_once_though_a_node_is_removed(cluster: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    expected = run_sequence(planned(here, arms=BOTH), launcher=Here(), say=lambda line: None)
    plan = planned(there, arms=BOTH)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, **agent_ports())
    before = len(cluster.worker_nodes)
    timer = threading.Timer(8.0, lambda: cluster.remove_node(cluster.list_all_nodes()[-1]))
    timer.start()
    found = run_sequence(plan, launcher=RayLauncher(), jobs=2, say=lambda line: None)
    timer.join()
    assert table(found) == table(expected)
    names = trainings(plan.config.archive)
    assert len(names) == len(set(names)) == 4
    assert len(cluster.worker_nodes) == before - 1
