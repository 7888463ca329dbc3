"""Running a sequence: once, again, after a kill, after a change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from composer import Callback

from compare.synthetic_runs import write_run
from made_sequences import Clock, Here, Mixed, in_process, planned, sequence
from reuse_algos import train
from reuse_algos.archive import RunArchive
from reuse_algos.errors import SequenceError
from reuse_algos.recipe import load_recipe
from reuse_algos.sequence import (
    PlannedStep,
    load_sequence,
    look_up_states,
    plan_sequence,
    run_sequence,
    sequence_report,
)
from reuse_algos.sequence.progress import CHECKPOINTS, LOG, RECIPE, open_for_reading
from reuse_algos.sequence.running.halt import Halt

# Both are Composer's, on resuming behind the last batch of an epoch.
RESUMING = pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")

TIMES = ("train_seconds", "setup_seconds", "harvest_seconds", "cost_seconds")


def table(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what depends on the clock and on the names that runs happen to get."""
    plain = json.loads(json.dumps(report))
    del plain["archive"]
    plain["notes"] = [note for note in plain["notes"] if "-" not in note.split()[-1]]
    for arm in plain["arms"]:
        for costs in (arm["total"], arm["share"], *(step["cost"] for step in arm["steps"])):
            for name in TIMES:
                costs.pop(name, None)
        for step in arm["steps"]:
            del step["run_id"]
            step["prior_runs"] = len(step["prior_runs"])
    return plain


def trained(here: Path, *overrides: str, **keys: Any) -> dict[str, Any]:
    plan = planned(here, *overrides, **keys)
    states = run_sequence(plan, say=lambda line: None, launcher=Here())
    return sequence_report(plan.config, states, RunArchive(plan.config.archive)).to_dict()


def test_each_step_sees_those_before_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    report = trained(tmp_path, "grid.seed=[1,2,3]")
    without, reuse = report["arms"]
    assert [len(step["prior_runs"]) for step in without["steps"]] == [0, 0, 0]
    assert [step["prior_runs"] for step in reuse["steps"]] == [
        [],
        [reuse["steps"][0]["run_id"]],
        sorted(step["run_id"] for step in reuse["steps"][:2]),
    ]
    # 60 images in batches of 20: three steps per epoch; two epochs, or one where the step reuses.
    assert [step["cost"]["steps"] for step in without["steps"] + reuse["steps"]] == [6, 6, 6, 6, 3, 3]
    assert reuse["share"]["steps"] == pytest.approx(12 / 18)
    assert (without["steps"][0]["final"], without["steps"][0]["best"]) == (
        reuse["steps"][0]["final"],
        reuse["steps"][0]["best"],
    )
    run = RunArchive(tmp_path / "archive").run(without["steps"][0]["run_id"])
    assert run.manifest.model is not None
    flops = run.manifest.model.flops_per_example
    assert flops is not None
    assert without["total"]["flops"] == 3 * flops * 60 * 2 * 3
    assert without["total"]["train_seconds"] == pytest.approx(
        sum(run.manifest.cost.train_seconds for run in RunArchive(tmp_path / "archive").runs(tags={"arm": "without"}))
    )
    assert run.final_metric() == without["steps"][0]["final"]
    assert not list(tmp_path.rglob(CHECKPOINTS))

    def never(step: PlannedStep, ranks: int) -> int:
        raise AssertionError(step.title)

    plan = planned(tmp_path, "grid.seed=[1,2,3]")
    said: list[str] = []
    states = run_sequence(plan, say=said.append, launcher=Here(never))
    assert sequence_report(plan.config, states, RunArchive(tmp_path / "archive")).to_dict() == report
    assert all("finished before" in line for line in said)
    assert len(said) == 6


def test_a_step_that_fails_stops_those_that_wait_for_it_and_goes_on_later(tmp_path: Path) -> None:
    calls: list[str] = []

    def failing(step: PlannedStep, ranks: int) -> int:
        calls.append(step.title)
        (step.folder / LOG).write_text("first\nout of memory\n")
        return 137 if len(calls) == 2 else in_process(step, ranks)

    with pytest.raises(SequenceError, match=r"(?s)reuse/seed-1 failed \(exit status 137\).*out of memory") as caught:
        run_sequence(planned(tmp_path), say=lambda line: None, launcher=Here(failing))
    assert "the same command goes on from here" in str(caught.value)
    assert str(caught.value).endswith("goes on from here\nsteps not begun: 1")
    assert calls == ["without/seed-1", "reuse/seed-1", "without/seed-2"]
    run_sequence(planned(tmp_path), say=lambda line: None, launcher=Here(failing))
    assert calls[3:] == ["reuse/seed-1", "reuse/seed-2"]


class Crash(Callback):
    """Dies as a preempted process does."""

    def batch_end(self, state: Any, logger: Any) -> None:
        if int(state.timestamp.batch) == 5:
            raise KeyboardInterrupt


@RESUMING
def test_an_interrupted_step_resumes_and_a_changed_recipe_is_refused(tmp_path: Path) -> None:
    def crashing(step: PlannedStep, ranks: int) -> int:
        if step.title != "without/seed-2":
            return in_process(step, ranks)
        trainer = train.build_trainer(load_recipe(step.folder / RECIPE))
        trainer.state.callbacks.append(Crash())
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer.engine.close()
        raise KeyboardInterrupt

    plan = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_sequence(plan, say=lambda line: None, launcher=Here(crashing))
    states = {found.step.title: found.state for found in look_up_states(plan, open_for_reading(plan.config.archive))}
    assert states == {
        "without/seed-1": "finished",
        "reuse/seed-1": "finished",
        "without/seed-2": "interrupted",
        "reuse/seed-2": "to do",
    }
    with pytest.raises(SequenceError) as caught:
        run_sequence(planned(tmp_path, "overrides.optimizer.lr=0.05"), launcher=Here(crashing))
    text = str(caught.value)
    assert "without/seed-1 is finished (run tiny-without-seed-1" in text
    assert "optimizer.lr was 0.1 and is now 0.05" in text
    assert "without/seed-2 was interrupted, and the recipe has changed since: optimizer.lr was 0.1" in text
    assert "reuse/seed-2" not in text
    # The checkpoint goes with the archive that has the first part of its record.
    with pytest.raises(SequenceError, match=r"without/seed-2 was interrupted.*archive was .*/archive and is now .*/b"):
        run_sequence(planned(tmp_path, f"archive={tmp_path}/b"), launcher=Here(crashing))

    run_sequence(plan, say=lambda line: None, launcher=Here())
    resumed = RunArchive(tmp_path / "archive").runs(tags={"arm": "without", "step": "seed-2"})[0]
    assert resumed.manifest.attempt == 2
    other = tmp_path / "other"
    other.mkdir()
    trained(other)
    straight = RunArchive(other / "archive").runs(tags={"arm": "without", "step": "seed-2"})[0]
    for name, tensor in straight.weights("last").items():
        assert torch.equal(tensor, resumed.weights("last")[name])


def test_steps_out_of_order_and_twice_are_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    archive = RunArchive(tmp_path / "archive", create=True)
    teacher = archive.runs(tags={"arm": "reuse", "step": "seed-1"})[0]
    plain = archive.runs(tags={"arm": "without", "step": "seed-1"})[0]
    copy = RunArchive(tmp_path / "copy", create=True)
    archive.copy_to(copy)
    archive.remove_run(teacher.id, force=True)
    with pytest.raises(SequenceError, match=r"reuse/seed-1 is not finished, but 1 steps that come after it are"):
        run_sequence(planned(tmp_path), launcher=Here())
    # Nothing depends on a plain run.
    copy.copy_to(archive)
    archive.remove_run(plain.id, force=True)
    done = run_sequence(planned(tmp_path), say=lambda line: None, launcher=Here())
    again = next(found.run for found in done if found.step.title == "without/seed-1")
    assert again is not None
    assert again.id != plain.id
    assert again.final_metric() == plain.final_metric()
    copy.copy_to(archive, [plain.id])
    with pytest.raises(SequenceError, match="the archive has 2 finished runs of it"):
        run_sequence(planned(tmp_path), launcher=Here())


@RESUMING
def test_trained_to_the_end_and_never_closed(tmp_path: Path) -> None:
    """A kill between the last checkpoint and the end of the run leaves nothing to train: the run is closed."""
    plan = planned(tmp_path, arms={"without": {}}, grid={"seed": [1]})

    def killed_late(step: PlannedStep, ranks: int) -> int:
        trainer = train.build_trainer(load_recipe(step.folder / RECIPE))

        class Late(Callback):
            def fit_end(self, state: Any, logger: Any) -> None:
                raise KeyboardInterrupt

        trainer.state.callbacks.insert(0, Late())
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer.engine.close()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(plan, say=lambda line: None, launcher=Here(killed_late))
    assert look_up_states(plan, open_for_reading(plan.config.archive))[0].state == "interrupted"
    states = run_sequence(plan, say=lambda line: None, launcher=Here())
    assert states[0].run is not None
    assert (states[0].run.manifest.attempt, states[0].run.manifest.progress.batch) == (2, 6)
    assert states[0].run.weight_names == ["last"]


def test_two_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reuse_algos.sequence.running.lease.RENEW_SECONDS", 0.1)

    def second(step: PlannedStep, ranks: int) -> int:
        with pytest.raises(SequenceError, match="another process is running the sequence"):
            run_sequence(planned(tmp_path), launcher=Here())
        return 1

    with pytest.raises(SequenceError, match="failed"):
        run_sequence(planned(tmp_path), say=lambda line: None, launcher=Here(second))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_and_restarted_gives_the_same_table(tmp_path: Path) -> None:
    """SIGKILL in the middle of a step's training; the step's own process goes too, and the next call goes on."""
    here = tmp_path / "killed"
    here.mkdir()
    epochs = ["overrides.max_duration=10ep", "overrides.data.train_examples=200", "grid.seed=[1]"]
    path = sequence(here)
    words = ["sequence", str(path), *epochs, "--json"]
    code = f"import os, sys; print(os.getpid(), flush=True); from reuse_algos.cli import main; sys.exit(main({words}))"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert first.stdout is not None
    number = int(first.stdout.readline())  # of the fork that runs the sequence
    checkpoints = here / "work/without/seed-1" / CHECKPOINTS
    until = time.monotonic() + 300  # on a loaded machine
    while not list(checkpoints.rglob("*.pt")) and time.monotonic() < until:
        assert first.poll() is None
        time.sleep(0.02)
    children = " ".join(one.read_text() for one in Path(f"/proc/{number}/task").glob("*/children")).split()
    assert len(children) == 1
    os.kill(number, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    until = time.monotonic() + 300  # on a loaded machine
    while _alive(int(children[0])) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(int(children[0]))
    states = look_up_states(plan_sequence(load_sequence(path, epochs)), open_for_reading(str(here / "archive")))
    assert [found.state for found in states] == ["interrupted", "to do"]

    plan, said = plan_sequence(load_sequence(path, epochs)), list[str]()
    states = run_sequence(plan, say=said.append, launcher=Mixed(lambda job: job.step.title == "without/seed-1"))
    assert said[0] == "[1/2] without/seed-1: goes on where it was interrupted"
    assert states[0].run is not None
    assert states[0].run.manifest.attempt == 2
    assert f"archived as {states[0].run.id}" in (here / "work/without/seed-1" / LOG).read_text()
    report = sequence_report(plan.config, states, RunArchive(here / "archive")).to_dict()

    straight = tmp_path / "straight"
    straight.mkdir()
    assert table(report) == table(trained(straight, *epochs))


def images(folder: Path, count: int = 30) -> None:
    """Handwritten digits as a folder of images: three classes, upscaled by the loader."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    taken = dict.fromkeys(range(3), 0)
    for pixels, label in zip(digits.images, digits.target, strict=True):
        if label in taken and taken[label] < count:
            part = "train" if taken[label] < count * 2 // 3 else "val"
            target = folder / part / f"digit-{label}"
            target.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32))
            picture.convert("RGB").save(target / f"{taken[label]:03d}.png")
            taken[label] += 1


def test_transfer_learning_names_a_winner_per_approach(tmp_path: Path) -> None:
    """The shipped file on a folder of real digits, with a small network and weights from a file."""
    from reuse_algos.models import build_model
    from reuse_algos.recipe.shipped import shipped_recipe

    images(tmp_path / "images")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pretrained = build_model("squeezenet1_1", 10, (3, 32, 32)).module
    safetensors.torch.save_file(pretrained.state_dict(), tmp_path / "weights.safetensors")
    overrides = [
        f"archive={tmp_path / 'archive'}",
        f"folder={tmp_path / 'work'}",
        f"overrides.data.root={tmp_path / 'images'}",
        "overrides.data.image_size=32",
        "overrides.data.num_workers=0",
        "overrides.model.name=squeezenet1_1",
        "overrides.model.weights=null",
        f"overrides.model.weights_path={tmp_path / 'weights.safetensors'}",
        "overrides.model.new_head=true",
        "overrides.device=cpu",
        "overrides.precision=fp32",
        "overrides.max_duration=2ep",
        "overrides.scheduler.milestones=[1ep]",
    ]
    plan = plan_sequence(load_sequence(shipped_recipe("sequences/transfer_learning"), overrides))
    rates = {"fine-tuning": [0.001, 0.01, 0.1], "feature-extraction": [1, 0.1, 0.01, 0.001]}
    assert {arm: [step.point["optimizer.lr"] for step in plan.of_arm(arm)] for arm in rates} == rates
    states = run_sequence(plan, say=lambda line: None, launcher=Here())
    report = sequence_report(plan.config, states, RunArchive(plan.config.archive))
    assert report.search is not None
    winners = {arm.arm: arm.winner for arm in report.search.arms}
    for arm in report.arms:
        best = max((step for step in arm.steps if step.final == step.final), key=lambda step: step.final)
        assert winners[arm.name] == best.point["optimizer.lr"]
        assert arm.share == {}
    for found in states:
        assert found.run is not None
        weights = found.run.weights("last")
        same = torch.equal(weights["module.features.3.squeeze.weight"], pretrained.features[3].squeeze.weight)
        assert same == (found.step.arm == "feature-extraction")


def test_growing_data_goes_on_from_the_weights_of_the_step_before(tmp_path: Path) -> None:
    """The shipped file with two sizes: known and new examples, and the first step from nothing."""
    from reuse_algos.recipe.shipped import shipped_recipe

    overrides = [
        f"archive={tmp_path / 'archive'}",
        f"folder={tmp_path / 'work'}",
        "overrides.scheduler=null",
        "overrides.device=cpu",
        "overrides.max_duration=1ep",
        "arms.reuse.overrides.max_duration=1ep",
        "grid.data.train_fraction=[0.25,0.5]",
    ]
    plan = plan_sequence(load_sequence(shipped_recipe("sequences/growing_data"), overrides))
    states = run_sequence(plan, say=lambda line: None, launcher=Here())
    report = sequence_report(plan.config, states, RunArchive(plan.config.archive))
    first, second = report.arms[1].steps
    assert (first.prior_runs, second.prior_runs) == ([], [first.run_id])
    assert [step.cost.samples for step in report.arms[1].steps] == [step.cost.samples for step in report.arms[0].steps]
    sizes = [found.run.manifest.dataset for found in states if found.run is not None]
    numbers = [size.num_examples for size in sizes if size is not None]
    assert numbers[2] == pytest.approx(2 * numbers[0], abs=10)


def test_jobs_side_by_side_keep_the_order_of_what_is_reused(tmp_path: Path) -> None:
    """Plain steps fill the second place; a step starts only behind those it learns from, and before none that it is
    not to see."""
    lock, going, seen = threading.Lock(), set[str](), list[tuple[str, frozenset[str]]]()
    archive_steps: dict[str, set[str]] = {}
    barrier = threading.Barrier(2)

    def recorded(step: PlannedStep, ranks: int) -> int:
        with lock:
            going.add(step.title)
            seen.append((step.title, frozenset(going)))
            runs = RunArchive(tmp_path / "archive").runs()
            archive_steps[step.title] = {f"{run.tags['arm']}/{run.tags['step']}" for run in runs}
        if step.title in ("without/seed-1", "reuse/seed-1"):
            barrier.wait(60)  # both must be there at once
        with lock:
            done = write_run(
                RunArchive(tmp_path / "archive"), None, step.recipe.settings.seed, [0.5], tags=step.tags,
                recipe=step.recipe.record,
            )  # fmt: skip
            assert done is not None
            going.remove(step.title)
        return 0

    plan = planned(tmp_path, "grid.seed=[1,2,3]")
    told: list[str] = []
    states = run_sequence(
        plan,
        jobs=2,
        say=lambda line: None,
        finished=lambda found: told.append(found.step.title),
        launcher=Here(recorded),
    )
    assert max(len(others) for _, others in seen) == 2
    assert all(found.run is not None for found in states)
    assert sorted(told) == sorted(step.title for step in plan.steps)
    for number in (1, 2, 3):
        before = {title for title in archive_steps[f"reuse/seed-{number}"] if title.startswith("reuse")}
        assert before == {f"reuse/seed-{other}" for other in range(1, number)}


def test_time_is_up_and_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = Clock(monkeypatch)

    def slow(step: PlannedStep, ranks: int) -> int:
        calls.append(step.title)
        if len(calls) == 2:
            clock.now += 1.0
            return 143  # as of a process that was ended
        return in_process(step, ranks)

    plan = planned(tmp_path, "grid.seed=[1]")
    said: list[str] = []
    states = run_sequence(plan, time_limit=0.0, say=said.append, launcher=Here(slow))
    assert (calls, said, [found.state for found in states]) == ([], [], ["to do", "to do"])
    states = run_sequence(plan, arms=["without"], say=said.append, launcher=Here(slow))
    assert [found.state for found in states] == ["finished", "to do"]
    states = run_sequence(plan, time_limit=0.5, say=said.append, launcher=Here(slow))
    assert [found.state for found in states] == ["finished", "interrupted"]
    assert said[-1] == "[2/2] reuse/seed-1: interrupted, as the time is up"
    states = run_sequence(plan, say=said.append, launcher=Here(slow))
    assert [found.state for found in states] == ["finished", "finished"]
    assert calls == ["without/seed-1", "reuse/seed-1", "reuse/seed-1"]


def test_a_job_is_cancelled_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Long:
        """A job that ends after so many looks, with status 5."""

        local = True
        cancelled = 0

        def submit(self, job: Any) -> list[int]:
            return [job]

        def wait(self, handle: list[int], timeout: float) -> int | None:
            assert 0.0 <= timeout <= 0.5
            clock.now += timeout
            handle[0] -= 1
            return 5 if handle[0] == 0 else None

        def cancel(self, handle: list[int]) -> None:
            self.cancelled += 1

    for looks, limit, status in ((3, 60.0, 5), (100, 0.75, 143)):
        launcher: Any = Long()
        assert Halt(limit).run(launcher, looks) == status  # type: ignore[arg-type]
        assert launcher.cancelled == 1


def test_arms_that_are_chosen_bring_what_they_reuse(tmp_path: Path) -> None:
    query = {"run_name": "${name}-prior-seed-1\\${seed}"}
    teach = {
        "algorithms": {
            "prior_run_distillation": {"runs": query, "source": "live", "loss": {"name": "mse", "weight": 0.5}}
        }
    }
    arms = {"taught": {"overrides": teach}, "without": {}, "prior": {"grid": {"seed": [11, 12, 13]}}}
    plan = planned(tmp_path, arms=arms)
    states = run_sequence(plan, arms=["taught"], say=lambda line: None, launcher=Here())
    titles = [found.step.title for found in states if found.run is not None]
    assert titles == ["prior/seed-11", "taught/seed-1", "prior/seed-12", "taught/seed-2"]
    with pytest.raises(SequenceError, match=r"has no arm tought.*taught"):
        run_sequence(plan, arms=["tought"], say=lambda line: None, launcher=Here())
    with pytest.raises(SequenceError, match="jobs must be at least 1, not 0"):
        run_sequence(plan, jobs=0, launcher=Here())
