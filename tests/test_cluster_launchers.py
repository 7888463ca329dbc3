"""Sequences on a cluster: Ray with nodes on this machine, submitit's local executor, and the job that travels."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from made_sequences import REUSE, Here, planned
from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.remote_job import Meeting, Outcome, RemoteJob, launch_arguments
from reuse_algos.sequence import run_sequence
from reuse_algos.sequence.launchers import RayLauncher, SlurmLauncher, ray_tasks, slurm
from reuse_algos.sequence.launchers.base import Job
from reuse_algos.sequence.running.halt import Halt
from reuse_algos.sequence.running.job import main
from reuse_algos.sequence.running.lease import LeaseKey
from reuse_algos.sequence.running.steps import _write_recipe
from slurm_site import SlurmSite

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

    def get(tasks: list[str]) -> list[Any]:
        for one in tasks:
            if isinstance(ends[one], Exception):
                raise ends[one]
        return [ends[one] for one in tasks]

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


BARRIER = (
    "import os, pathlib, select; here = pathlib.Path({here!r}); (here / '{name}.pid').write_text(str(os.getpid()))\n"
    "while not (here / 'go').exists():\n"
    "    if select.select([0], [], [], 0.02)[0]: os._exit(1)\n"  # whoever started it is gone
    "print('{name} done')"
)


def submitted_together(launcher: SlurmLauncher, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The handles of jobs that threads of their own submit at the same time, as those of a sequence do."""
    monkeypatch.setattr(slurm, "_GATHER_SECONDS", 2.0)  # for machines with much else to do
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(launcher.submit, jobs))


def lingering(here: Path, name: str, **resources: int) -> Job:
    """A job of its own log that waits for the file ``go``."""
    made = job(here, BARRIER.format(here=str(here), name=name), **resources)
    step = replace(made.step, name=name, folder=here / name)
    _write_recipe(step)
    return replace(made, step=step)


def begun(here: Path, name: str, unlike: int | None = None) -> int:
    """The number of the job's process once it runs, which is another one after it was started again."""
    path = here / f"{name}.pid"
    return int(wait_for(lambda: path.exists() and path.read_text() not in ("", str(unlike)) and path.read_text()))


def test_jobs_that_are_ready_together_are_one_array_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    site = SlurmSite(tmp_path / "site", monkeypatch)
    launcher = SlurmLauncher(tmp_path / "slurm", hours=2.0, parameters={"slurm_partition": "gpu"})
    handles = submitted_together(launcher, [lingering(tmp_path, name, cpus=3) for name in ("a", "b", "c")], monkeypatch)
    assert sorted(handle[0].job_id for handle in handles) == ["1_0", "1_1", "1_2"]
    assert site.calls == ["submitted"]
    flags = {line.removeprefix("#SBATCH --") for line in site.script if line.startswith("#SBATCH")}
    assert {"array=0-2%3", "cpus-per-task=3", "time=120", "nodes=1", "ntasks-per-node=1", "partition=gpu"} <= flags
    assert any(flag.startswith("signal=USR2@") for flag in flags), "so that a task is told before its time is up"
    assert any(flag.startswith("job-name=without-") and flag.endswith("+2") for flag in flags)

    numbers = {name: begun(tmp_path, name) for name in ("a", "b", "c")}
    launcher.cancel(handles[1])
    wait_for(lambda: is_gone(numbers["b"]))
    assert site.calls[1:] == [f"scancel {handles[1][0].job_id}"]
    assert [launcher.wait(handles[0], 0.1), launcher.wait(handles[2], 0.1)] == [None, None], "the others still run"
    assert not is_gone(numbers["a"])
    (tmp_path / "go").touch()
    assert [wait_for(lambda one=one: launcher.wait(one, 1.0) == 0) for one in (handles[0], handles[2])] == [True, True]
    assert [(tmp_path / name / "log.txt").read_text() for name in ("a", "c")] == ["a done\n", "c done\n"]


def test_a_task_of_an_array_that_slurm_preempts_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    site = SlurmSite(tmp_path / "site", monkeypatch)
    launcher = SlurmLauncher(tmp_path / "slurm")
    handles = submitted_together(launcher, [lingering(tmp_path, name) for name in ("a", "b")], monkeypatch)
    first, other = begun(tmp_path, "a"), begun(tmp_path, "b")
    # Slurm signals the task's process, which is the parent of the job's.
    os.kill(parent(first), signal.SIGUSR2)
    wait_for(lambda: is_gone(first))
    begun(tmp_path, "a", unlike=first)
    assert not is_gone(other), "the array's other task goes on"
    assert site.calls == ["submitted", f"scontrol requeue {handles[0][0].job_id}"]
    (tmp_path / "go").touch()
    assert all(wait_for(lambda one=one: launcher.wait(one, 1.0) == 0) for one in handles)
    assert (tmp_path / "a" / "log.txt").read_text() == "a done\n"


def test_jobs_of_other_resources_are_arrays_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    site = SlurmSite(tmp_path / "site", monkeypatch)
    (tmp_path / "go").touch()
    launcher = SlurmLauncher(tmp_path / "slurm")
    handles = submitted_together(launcher, [lingering(tmp_path, "a"), lingering(tmp_path, "b", cpus=2)], monkeypatch)
    assert sorted(handle[0].job_id for handle in handles) == ["1", "2"]
    assert all(wait_for(lambda one=one: launcher.wait(one, 1.0) == 0) for one in handles)
    assert site.calls == ["submitted", "submitted"]


def test_a_submission_that_slurm_refuses_is_told_to_each_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    site = SlurmSite(tmp_path / "site", monkeypatch)
    (site.folder / "sbatch").write_text("#!/bin/bash\necho 'invalid partition specified' >&2; exit 1\n")
    launcher = SlurmLauncher(tmp_path / "slurm")
    for name in ("a", "b"):
        with pytest.raises(SequenceError, match=r"without/. could not be submitted to Slurm: .*invalid partition"):
            launcher.submit(lingering(tmp_path, name))


def parent(process: int) -> int:
    """The process that started a process."""
    return int(Path(f"/proc/{process}/stat").read_text().split(") ")[1].split()[1])


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
def test_a_step_that_slurm_preempts_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    here, there = tmp_path / "here", tmp_path / "there"
    changes = {"max_duration": "60ep", "eval_interval": "30ep", "save_interval": "5ba"}
    plans = []
    for folder in (here, there):
        folder.mkdir()
        plans.append(planned(folder, arms={"without": {"overrides": changes}}))
    expected = run_sequence(plans[0], launcher=Here(), say=lambda line: None)
    site = SlurmSite(tmp_path / "site", monkeypatch)
    found: list[Any] = []
    launcher = SlurmLauncher(there / "slurm")
    work = threading.Thread(
        target=lambda: found.extend(run_sequence(plans[1], launcher=launcher, jobs=2, say=lambda line: None))
    )
    work.start()
    wait_for(lambda: (there / "work/without/seed-1/checkpoints/latest-rank0.pt").exists())
    (training,) = processes_of(str(there / "work/without/seed-1"))
    os.kill(parent(training), signal.SIGUSR2)
    work.join()
    assert len([call for call in site.calls if call.startswith("scontrol requeue")]) == 1
    assert table(found) == table(expected)
    assert trainings(plans[1].config.archive) == ["tiny-without-seed-1", "tiny-without-seed-2"], "none began again"


def processes_of(word: str) -> list[int]:
    """The processes whose arguments have a word in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


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


@pytest.mark.slow
def test_ray_trains_a_step_on_two_nodes(cluster: Any, tmp_path: Path) -> None:
    """The nodes share the step's folder, as those of a cluster do."""
    plan = planned(tmp_path, arms={"without": {"overrides": {"resources": {"nodes": 2}}}}, grid={"seed": [1]}, ranks=2)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, **agent_ports())
    (found,) = run_sequence(plan, launcher=RayLauncher(), say=lambda line: None)
    assert found.run is not None
    assert found.run.manifest.progress.batch == 6
    assert found.run.manifest.environment is not None
    assert found.run.manifest.environment.hardware["world_size"] == 2
    assert trainings(plan.config.archive) == ["tiny-without-seed-1"]
