"""Does a sequence on a cluster end as it does on one machine, and what does each step cost more there?

    python benchmarks/cluster.py study local       # 24 small trainings, two at a time; the table that counts
    python benchmarks/cluster.py study ray         # three nodes on this machine; faults on purpose, see below
    python benchmarks/cluster.py study submitit    # submitit's local executor
    python benchmarks/cluster.py overhead ray      # jobs that do nothing, with one and two nodes
    python benchmarks/cluster.py overhead submitit
    python benchmarks/cluster.py --summary

A study is a sequence of two arms of twelve seeds on digits: plain, and distilled from the first plain run. Each
training is a process of its own. On Ray a node is removed once six runs are finished, and the driver is killed with
SIGKILL once ten are; the same command then goes on. Counted are trainings by the "archived run" that each writes into
its step's log, and processes of the study that are left 15 seconds after the kill and at the end.

With ``--python COMMAND`` the jobs of a study are started by that command in place of the interpreter: a server of forks
saves each of them the ten seconds of its imports. Records say so.

The overhead of a step is what a job that does nothing takes from its submission until its end is noticed, less what the
same process takes from the local launcher with as many jobs at a time. Every pass is one JSON line in ``--out``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from job_runner import ResultsFile, command_line, surroundings

from reuse_algos.archive import RunArchive
from reuse_algos.errors import ArchiveError
from reuse_algos.sequence import Job, Launcher, LocalLauncher, load_sequence, plan_sequence, run_sequence
from reuse_algos.sequence.launchers import RayLauncher, SlurmLauncher
from reuse_algos.sequence.progress import LOG, RECIPE
from reuse_algos.sequence.running.halt import Halt
from reuse_algos.sequence.running.lease import LeaseKey

OUT = Path(__file__).parent / "results" / "cluster.jsonl"
SEEDS = 12
NODES = 3
NODE_REMOVED_AT, DRIVER_KILLED_AT = 6, 10
EMPTY_JOBS = 24
STARTERS = ("drive local", "default_worker.py", "submitit.core._submit")  # command lines of what starts jobs
# Ray's own time-outs take a node for dead that is only slow, as on a machine with much else to do.
PATIENCE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
QUERY = {"tags": {"sequence": "${name}", "arm": "plain"}, "order": "first"}
DISTILLED = {"runs": QUERY, "source": "cached", "loss": {"name": "mse", "weight": 0.5}}


def study_file(folder: Path) -> Path:
    """Write the sequence file of the study into a folder."""
    path = folder / "sequence.yaml"
    values = {
        "name": "cluster",
        "archive": str(folder / "archive"),
        "folder": str(folder / "work"),
        "recipe": "digits/baseline",
        "overrides": {"max_duration": "2ep", "data.train_examples": 60, "scheduler": None, "device": "cpu"},
        "grid": {"seed": list(range(1, SEEDS + 1))},
        "arms": {
            "plain": {},
            "distilled": {"first": {}, "overrides": {"algorithms": {"prior_run_distillation": DISTILLED}}},
        },
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def drive(launcher: str, file: str, jobs: int) -> None:
    """Run the sequence, as ``reuse-algos sequence`` does; a process of its own, so that it can be killed."""
    plan = plan_sequence(load_sequence(file))
    run_sequence(plan, launcher=make_launcher(launcher, Path(file).parent), jobs=jobs)


def make_launcher(name: str, folder: Path) -> Launcher:
    if name == "ray":
        return RayLauncher()
    return SlurmLauncher(folder / "submitit", cluster="local") if name == "submitit" else LocalLauncher(threads=1)


def study(launcher: str, python: str | None) -> dict[str, Any]:
    """Train the study from an empty archive, and say what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = study_file(folder)
        if python is not None:
            use_python(python, folder)
        began = time.monotonic()
        events: dict[str, Any] = on_ray(file) if launcher == "ray" else {"jobs": 2}
        if launcher != "ray":
            start_driver(launcher, file, events["jobs"]).check_wait()
        seconds = time.monotonic() - began
        time.sleep(15)
        left = {"orphans_at_end": alive(folder), "jobs_are_forks": python is not None}
        return {"launcher": launcher, "seconds": seconds, **events, **found_in(file), **left}


class Driver(subprocess.Popen[bytes]):
    """The process of a driver."""

    def check_wait(self) -> None:
        """Wait for its end, which has to be a good one."""
        if status := self.wait():
            raise RuntimeError(f"the driver failed (exit status {status})")


def start_driver(launcher: str, file: Path, jobs: int, **environment: str) -> Driver:
    command = [sys.executable, __file__, "drive", launcher, str(file), "--jobs", str(jobs)]
    return Driver(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True)


def use_python(command: str, folder: Path) -> None:
    """Let the processes that start jobs start them by a command in place of their interpreter."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        f"if any(word in ' '.join(sys.orig_argv) for word in {STARTERS!r}):\n"
        f"    sys.executable = {command!r}\n"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def agent_ports() -> dict[str, int]:
    """Return free ports for the processes beside a node, which dies where these do not say theirs within 15 seconds."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as open_ones:
        places = [open_ones.enter_context(socket.socket()) for _ in names]
        for place in places:
            place.bind(("", 0))
        return {name: place.getsockname()[1] for name, place in zip(names, places, strict=True)}


@contextlib.contextmanager
def ray_nodes(count: int) -> Iterator[Any]:
    """Start a Ray cluster on this machine: a head without CPUs, and nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.update(PATIENCE)
    head = {"num_cpus": 0, "include_dashboard": False, **agent_ports()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1, **agent_ports())
        cluster.wait_for_nodes(timeout=300)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def on_ray(file: Path) -> dict[str, Any]:
    """Run the study on three nodes; remove one, then kill the driver, then go on."""
    folder = file.parent
    with ray_nodes(NODES) as cluster:
        driver = start_driver("ray", file, NODES, RAY_ADDRESS=cluster.address)
        wait_until(lambda: finished(folder) >= NODE_REMOVED_AT, driver)
        at_removal = finished(folder)
        cluster.remove_node(cluster.list_all_nodes()[-1])
        wait_until(lambda: finished(folder) >= DRIVER_KILLED_AT, driver)
        at_kill = finished(folder)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(15)
        orphans = alive(folder)
        again = time.monotonic()
        start_driver("ray", file, NODES, RAY_ADDRESS=cluster.address).check_wait()
        return {
            "jobs": NODES, "finished_at_removal": at_removal, "finished_at_kill": at_kill,
            "orphans_after_kill": orphans, "seconds_of_second_driver": time.monotonic() - again,
        }  # fmt: skip


def wait_until(done: Callable[[], bool], driver: Driver) -> None:
    while not done():
        if driver.poll() is not None:
            raise RuntimeError(f"the driver ended before its time (exit status {driver.returncode})")
        time.sleep(1)


def finished(folder: Path) -> int:
    """Return how many finished runs the archive has."""
    try:
        return len(RunArchive(folder / "archive", read_only=True).runs())
    except ArchiveError:  # there is none yet
        return 0


def found_in(file: Path) -> dict[str, Any]:
    """Return the study's table, and how often each step was trained to its end."""
    plan = plan_sequence(load_sequence(file))
    runs = RunArchive(plan.config.archive).runs(order="first")
    table = {f"{run.tags['arm']}/{run.tags['step']}": [run.final_metric(), run.manifest.progress.batch] for run in runs}
    begun = len(RunArchive(plan.config.archive).runs(unfinished=True, unhealthy=True))
    trained = {step.title: (step.folder / LOG).read_text().count("archived run") for step in plan.steps}
    return {
        "steps": len(plan.steps), "runs": len(runs), "begun_runs": begun, "most_trainings_of_a_step":
        max(trained.values()), "trainings": sum(trained.values()), "table": dict(sorted(table.items())),
    }  # fmt: skip


def alive(folder: Path) -> int:
    """Return how many processes name the study's folder in their arguments, other than this one."""
    count = 0
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            count += str(folder).encode() in process.read_bytes() and process.parent.name != str(os.getpid())
    return count


@dataclass(frozen=True)
class EmptyJob(Job):
    """A job that does nothing: its process ends at once."""

    def arguments(self, archive_id: str | None = None) -> list[str]:
        """Return what the interpreter is given."""
        return ["-S", "-c", "pass"]


def overhead(kind: str) -> dict[str, Any]:
    """Measure the seconds per empty job by a launcher and by the local one, with one and two at a time."""
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as clusters:
        plan = plan_sequence(load_sequence(study_file(Path(name))))
        RunArchive(plan.config.archive, create=True)
        job = EmptyJob(plan.steps[0], 1, LeaseKey(plan.config.archive, plan.config.name, "none"))
        job.step.folder.mkdir(parents=True)
        (job.step.folder / RECIPE).write_text("seed: 1\n")
        cluster = clusters.enter_context(ray_nodes(1)) if kind == "ray" else None
        for count in (1, 2):
            if cluster is not None and count == 2:
                cluster.add_node(num_cpus=1, **agent_ports())
                cluster.wait_for_nodes(timeout=300)
            launcher = RayLauncher(cluster.address) if cluster is not None else make_launcher(kind, Path(name))
            measured[f"{kind}_{count}"] = _timed(launcher, job, count)
            measured[f"local_{count}"] = _timed(LocalLauncher(), job, count)
            for what in ("per_step", "median"):
                own, local = (measured[f"{one}_{count}"][what] for one in (kind, "local"))
                measured[f"{what}_{count}_overhead"] = own - local
            print(measured, flush=True)
    return {"launcher": kind, "jobs": EMPTY_JOBS, **measured}


def _timed(launcher: Launcher, job: Job, count: int) -> dict[str, float]:
    """Return seconds that each of ``count`` workers takes for a job, over all, and the first and the median job's."""
    seconds: list[float] = []

    def run(_: int) -> None:
        began = time.monotonic()
        assert Halt().run(launcher, job) == 0
        seconds.append(time.monotonic() - began)

    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(EMPTY_JOBS)))
    per_step = (time.monotonic() - began) * count / EMPTY_JOBS
    return {"per_step": per_step, "first": seconds[0], "median": statistics.median(seconds), "most": max(seconds)}


def summarise(out: ResultsFile) -> None:
    """Print what the file says of each study and of the overhead."""
    studies = {one["launcher"]: one for one in out.records(kind="study")}
    for name, one in studies.items():
        same = "local" in studies and one["table"] == studies["local"]["table"]
        print(
            f"{name}: {one['runs']} of {one['steps']} runs in {one['seconds']:.0f} s, {one['trainings']} trainings "
            f"(at most {one['most_trainings_of_a_step']} of a step), {one['orphans_at_end']} processes left; the table "
            f"is {'that of' if same else 'not that of'} the local launcher"
        )
    for one in out.records(kind="overhead"):
        for name in sorted(key for key in one if key.endswith("_overhead")):
            print(f"{one['launcher']} {name}: {one[name]:.2f} s a step (load of the machine {one['load_average']:.0f})")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("study", "overhead", "drive"))
    parser.add_argument("launcher", nargs="?", choices=("local", "ray", "submitit"), default="local")
    parser.add_argument("file", nargs="?", help="of the sequence, for drive")
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time, for drive")
    parser.add_argument("--python", metavar="COMMAND", help="starts the jobs in place of the interpreter")
    parser.add_argument("--out", default=str(OUT))
    parser.add_argument("--summary", action="store_true", help="only show what is in the file")
    options = parser.parse_args(argv)
    if options.what == "drive":
        drive(options.launcher, options.file, options.jobs)
        return 0
    out = ResultsFile(options.out)
    if options.what is not None and not options.summary:
        found = study(options.launcher, options.python) if options.what == "study" else overhead(options.launcher)
        out.append({"kind": options.what, **found, **surroundings(), "command": command_line(__file__)})
    summarise(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
