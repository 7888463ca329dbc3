"""Harvests between the steps of a sequence: planned, done once, before what reuses them, and never half."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from made_sequences import Clock, Here, Mixed, harvest_here, in_process, planned
from reuse_algos.archive import RunArchive
from reuse_algos.errors import RecipeError, SequenceError
from reuse_algos.harvest import harvest
from reuse_algos.sequence import Plan, PlannedStep, look_up_states, print_plan, run_sequence, sequence_report
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.progress import LOG
from reuse_algos.training.attacks import Attack, pixel_size

ATTACK = {"method": "fgsm", "epsilon": "24/255"}
REPLAY = {"runs": {"run_name": "${name}-prior-seed-11"}, "mode": "replace", "perturbations": {"warn_below": 0.0}}
ARMS = {
    "replayed": {"overrides": {"algorithms": {"adversarial_replay": REPLAY}}},
    "prior": {"grid": {"seed": [11]}, "harvest": {"adversarial": {"attack": ATTACK}}},
}


def arms(**harvests: Any) -> dict[str, Any]:
    """The arms with other harvests of the prior run, which captures nothing by itself."""
    return {**ARMS, "prior": prior(**harvests)}


def prior(**harvests: Any) -> dict[str, Any]:
    """Its arm alone."""
    overrides = {"callbacks": {"run_recorder": {"signals": None}}}
    return {"grid": {"seed": [11]}, "overrides": overrides, "harvest": harvests}


def trained(plan: Plan, said: list[str] | None = None, **options: Any) -> list[str]:
    """States of the steps after a call."""
    say = (lambda line: None) if said is None else said.append
    launcher = Here(options.pop("runner", in_process), options.pop("harvester", harvest_here))
    return [found.state for found in run_sequence(plan, say=say, launcher=launcher, **options)]


def test_a_run_is_harvested_before_the_step_that_reuses_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.seed=[1]", arms=ARMS)
    assert [step.title for step in plan.steps] == ["prior/seed-11", "replayed/seed-1"]
    said: list[str] = []
    assert trained(plan, said) == ["finished", "finished"]
    assert said[:2] == ["[1/2] prior/seed-11: starts", "[1/2] prior/seed-11: harvests adversarial"]
    archive = RunArchive(tmp_path / "archive", create=True)
    prior, replayed = (archive.run(f"tiny-{name}") for name in ("prior-seed-11", "replayed-seed-1"))
    (use,) = replayed.manifest.prior_runs
    assert (use.run_id, use.signals) == (prior.id, ["adversarial"])
    assert use.harvest_seconds == sum(one.seconds for one in prior.manifest.harvests) > 0

    # What the sequence harvested is what a harvest by hand makes of the same weights.
    everywhere = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    kept = prior.signal("adversarial").gather(*everywhere)
    harvest(archive, prior.id, signals=["adversarial"], attack=Attack("fgsm", 24 / 255), replace=True, progress=False)
    again = archive.run(prior.id).signal("adversarial").gather(*everywhere)
    assert kept[0].abs().max() > 0
    assert all(torch.equal(old, new) for old, new in zip(kept, again, strict=True))

    # A second call finds everything there.
    def refuse(*arguments: Any) -> int:
        raise AssertionError(arguments)

    assert trained(plan, said, runner=refuse, harvester=refuse) == ["finished", "finished"]
    assert all("finished before" in line for line in said[-2:])


def test_a_harvest_that_is_added_later_is_made_and_a_changed_one_refused(tmp_path: Path) -> None:
    assert trained(planned(tmp_path, "grid.seed=[1]", arms={"prior": prior()})) == ["finished"]
    plan = planned(tmp_path, "grid.seed=[1]", arms={"prior": prior(el2n={}, logits={"top_k": 3})})
    archive = RunArchive(tmp_path / "archive", create=True)
    assert [found.state for found in look_up_states(plan, archive)] == ["to harvest"]
    shown = io.StringIO()
    print_plan(look_up_states(plan, archive), Console(file=shown, width=100))
    text = shown.getvalue()
    assert "el2n, logits" in text
    assert text.splitlines()[-1] == "0 of 1 steps are still to be trained, and 1 to be harvested"
    said: list[str] = []
    assert trained(plan, said) == ["finished"]
    assert said[:3] == [
        "[1/1] prior/seed-11: was trained before",
        "[1/1] prior/seed-11: harvests el2n",
        "[1/1] prior/seed-11: harvests logits",
    ]
    run = archive.run("tiny-prior-seed-11")
    assert {"el2n", "logits"} <= {entry.name for entry in run.manifest.files if entry.kind == "signals"}

    changed = planned(tmp_path, arms=arms(el2n={}, logits={"top_k": 4}))
    with pytest.raises(SequenceError, match=r"harvest\.logits: top_k was 3 and is now 4.*--replace"):
        look_up_states(changed, archive)
    plan = planned(tmp_path, arms=arms(adversarial={"attack": ATTACK}))
    assert trained(plan, arms=["prior"])[0] == "finished"
    other = planned(tmp_path, arms=arms(adversarial={"attack": {**ATTACK, "epsilon": 0.05}, "bits": 4}))
    with pytest.raises(SequenceError, match=r"fgsm\(linf, epsilon=24/255\) and is now fgsm\(linf, .*bits was 2 and is"):
        look_up_states(other, archive)


def test_time_is_up_before_and_in_a_harvest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[str] = []
    ended: list[str] = []

    def slow(step: PlannedStep, ranks: int) -> int:
        status = in_process(step, ranks)
        clock.now += 1.0
        return status

    def too_long(step: PlannedStep, *arguments: Any) -> int:
        ended.append(step.title)
        clock.now += 1.0
        return 143  # as of a process that was ended

    plan = planned(tmp_path, "grid.seed=[1]", arms=arms(adversarial={"attack": ATTACK}, el2n={}))
    assert trained(plan, said, time_limit=0.8, runner=slow, harvester=too_long) == ["to harvest", "to do"]
    assert said[-1] == "[1/2] prior/seed-11: trained, but not harvested to the end, as the time is up"
    assert ended == []
    assert trained(plan, said, time_limit=0.5, harvester=too_long) == ["to harvest", "to do"]
    assert ended == ["prior/seed-11"]
    assert trained(plan, said) == ["finished", "finished"]


def test_a_harvest_that_was_killed_between_views_goes_on(tmp_path: Path) -> None:
    shown = {"augment": "crop_flip", "num_views": 3}
    arm = prior(logits={})
    arm["overrides"] = {**arm["overrides"], "data": shown}
    plan = planned(tmp_path, arms={"prior": arm})
    archive = RunArchive(tmp_path / "archive", create=True)

    def killed(step: PlannedStep, run_id: str, asked: Harvest) -> int:
        harvest(archive, run_id, signals=[asked.signal], views=1, progress=False)
        return -9

    with pytest.raises(SequenceError, match=r"the harvest of logits of prior/seed-11 failed \(exit status -9\)"):
        trained(plan, harvester=killed)
    assert [found.state for found in look_up_states(plan, archive)] == ["to harvest"]
    first = archive.run("tiny-prior-seed-11").manifest
    assert trained(plan) == ["finished"]
    run = archive.run("tiny-prior-seed-11")
    assert run.signal("logits").slots == [0, 1, 2]
    files = {entry.meta["slot"]: entry for entry in run.manifest.files if entry.name == "logits"}
    (before,) = [entry for entry in first.files if entry.name == "logits"]
    assert files[0] == before  # what was there stayed
    assert [harvest.views for harvest in run.manifest.harvests] == [[0], [1, 2]]


@pytest.mark.usefixtures("forked")
def test_processes_harvest_where_the_data_now_lie_and_say_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record keeps ``${oc.env:PLACE}``, which may be a secret; the harvest has to resolve it again."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(80) % 4
    np.savez(tmp_path / "data.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    monkeypatch.setenv("PLACE", str(tmp_path / "data.npz"))
    data = {"name": "npz", "path": "${oc.env:PLACE}", "batch_size": 20, "eval_batch_size": 20, "train_examples": None}
    arm = prior(adversarial={"attack": {**ATTACK, "steps": None}})
    arm["overrides"] = {**arm["overrides"], "data": data}
    plan = planned(tmp_path, arms={"prior": arm})
    monkeypatch.setenv("PLACE", str(tmp_path / "moved.npz"))
    with pytest.raises(
        SequenceError, match=r"harvest of adversarial of prior/seed-11 failed \(exit status 1\)"
    ) as raised:
        run_sequence(plan, say=lambda line: None, launcher=apart(trained_at(monkeypatch, tmp_path / "data.npz")))
    assert "moved.npz" in str(raised.value)
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    states = run_sequence(plan, say=lambda line: None, launcher=apart(in_process))
    assert [found.state for found in states] == ["finished"]
    assert "adversarial: 60 rows of 1 views" in (tmp_path / "work/prior/seed-11" / LOG).read_text()

    def idle(*arguments: Any) -> int:
        return 0

    more = planned(tmp_path, arms={"prior": {**arm, "harvest": {**arm["harvest"], "el2n": {}}}})
    with pytest.raises(SequenceError, match="ended without an error and without all views"):
        trained(more, harvester=idle)


def apart(runner: Callable[..., int]) -> Mixed:
    """A launcher whose harvests are processes."""
    return Mixed(lambda job: job.harvest is not None, Here(runner))


def trained_at(monkeypatch: pytest.MonkeyPatch, place: Path) -> Any:
    """A runner for which the data lie somewhere else."""

    def runner(step: PlannedStep, ranks: int) -> int:
        with monkeypatch.context() as here:
            here.setenv("PLACE", str(place))
            return in_process(step, ranks)

    return runner


def test_a_run_that_diverged_is_not_harvested(tmp_path: Path) -> None:
    """Its model says nothing, and the sequence would stop there for good."""
    arm = prior(el2n={})
    arm["overrides"] = {**arm["overrides"], "optimizer.lr": 1e30}
    said: list[str] = []

    def refuse(*arguments: Any) -> int:
        raise AssertionError(arguments)

    assert trained(planned(tmp_path, arms={"prior": arm}), said, harvester=refuse) == ["finished"]
    assert said[-1] == "[1/1] prior/seed-11: not harvested, since the run is diverged"


def test_a_harvest_that_comes_too_late_for_runs_that_used_less_is_refused(tmp_path: Path) -> None:
    """Half of the steps on captured logits, half on harvested ones, would be two trainings under one name."""
    teach = {"prior_run_distillation": {"runs": {"run_name": "${name}-prior-seed-11"}, "source": "cached"}}
    plain = {"grid": {"seed": [11]}}
    both = {"taught": {"overrides": {"algorithms": teach}}, "prior": plain}
    assert trained(planned(tmp_path, "grid.seed=[1]", arms=both)) == ["finished", "finished"]
    archive = RunArchive(tmp_path / "archive", create=True)
    user = archive.run("tiny-taught-seed-1").id
    late = planned(tmp_path, arms={**both, "prior": {**plain, "harvest": {"logits": {}}}})
    with pytest.raises(SequenceError, match=rf"still to be harvested of logits, and .*\({user}\).*remove these runs"):
        look_up_states(late, archive)
    # Another signal takes nothing from them.
    more = planned(tmp_path, "grid.seed=[1]", arms={**both, "prior": {**plain, "harvest": {"el2n": {}}}})
    assert [found.state for found in look_up_states(more, archive)] == ["to harvest", "finished"]


def test_a_harvest_that_was_made_otherwise_is_refused(tmp_path: Path) -> None:
    shown = {"data": {"augment": "crop_flip", "num_views": 2}}
    arm = {**prior(features={}, adversarial={"attack": ATTACK, "bits": 4}), "overrides": shown}
    assert trained(planned(tmp_path, arms={"prior": arm})) == ["finished"]
    archive = RunArchive(tmp_path / "archive", create=True)

    def refused(match: str, **harvests: Any) -> None:
        with pytest.raises(SequenceError, match=match):
            look_up_states(planned(tmp_path, arms={"prior": {**arm, "harvest": harvests}}), archive)

    refused(r"harvest\.features: plain was False and is now True; views were 2 and are now 1", features={"plain": True})
    refused(r"harvest\.features: views were 2 and are now 1", features={"views": 1})
    refused(r"harvest\.adversarial: bits was 4 and is now 2", adversarial={"attack": ATTACK})
    (found,) = look_up_states(
        planned(tmp_path, arms={"prior": {**arm, "harvest": {"features": {"views": 3}}}}), archive
    )
    assert found.state == "to harvest"


def test_an_arm_pays_for_a_harvest_that_none_of_its_steps_used(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.seed=[1]", arms={**ARMS, "without": {}})
    assert trained(plan) == ["finished"] * 3
    archive = RunArchive(tmp_path / "archive", create=True)
    report = sequence_report(plan.config, look_up_states(plan, archive), archive)
    seconds = sum(one.seconds for one in archive.run("tiny-prior-seed-11").manifest.harvests)
    totals = {arm.name: arm.total for arm in report.arms}
    assert totals["prior"].harvest_seconds == pytest.approx(seconds)
    assert totals["replayed"].harvest_seconds == pytest.approx(seconds)
    assert totals["without"].harvest_seconds == 0.0
    spent = totals["prior"]
    assert spent.cost_seconds == pytest.approx(spent.train_seconds + spent.setup_seconds + seconds)

    # Within one arm it is counted once.
    replay = {**REPLAY, "runs": {"tags": {"sequence": "${name}", "arm": "own"}, "order": "latest", "limit": 1}}
    own = {
        "first": {}, "overrides": {"algorithms": {"adversarial_replay": replay}},
        "harvest": {"adversarial": {"attack": ATTACK}},
    }  # fmt: skip
    plan = planned(tmp_path, name="own", arms={"own": own})
    assert trained(plan) == ["finished", "finished"]
    report = sequence_report(plan.config, look_up_states(plan, archive), archive)
    made = [sum(one.seconds for one in archive.run(f"own-own-seed-{seed}").manifest.harvests) for seed in (1, 2)]
    assert all(made)
    assert report.arms[0].total.harvest_seconds == pytest.approx(sum(made))


def test_every_fault_of_a_harvest_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = {
        "gradients": {},
        "el2n": {"attack": {}, "views": 0},
        "adversarial": {"attack": {"epsilon": "8/0", "norm": "l3", "stepz": 1}, "bits": 3, "top_k": 5},
        "features": {"plain": True, "views": 2},
        "grand": 5,
    }
    with pytest.raises(RecipeError) as raised:
        planned(tmp_path, arms=arms(**wrong))
    at = "arms.prior.harvest."
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    for start in (
        f"{at}gradients: cannot be harvested",
        f"{at}el2n.attack: belongs to adversarial",
        f"{at}el2n.views: must be at least 1, not 0",
        f"{at}adversarial.top_k: belongs to logits",
        f"{at}adversarial.bits: must be one of 2, 4, 8, not 3",
        f"{at}adversarial.attack.epsilon: '8/0' is not a number above 0, such as 0.03 or 8/255",
        f"{at}adversarial.attack.stepz: ",
        f"{at}adversarial.attack.norm: ",
        f"{at}features.plain: goes without views",
        f"{at}grand: ",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 10, lines

    with pytest.raises(
        RecipeError, match=r"harvest\.adversarial\.attack: attack epsilon must be above 0 and at most 1"
    ):
        planned(tmp_path, arms=arms(adversarial={"attack": {"epsilon": 8}}))
    with pytest.raises(RecipeError, match=r"logits: asks for 3 views, and without data\.augment there is one \(prior/"):
        planned(tmp_path, arms=arms(logits={"views": 3}))
    for name in ("best", "ep0001", "../x y"):
        with pytest.raises(RecipeError, match=r"el2n: is of the weights .*, and run_recorder keeps last"):
            planned(tmp_path, arms=arms(el2n={"weights": name}))
    with pytest.raises(RecipeError, match=r"logits: has top_k: 3, and run_recorder captures logits with top_k: None"):
        planned(tmp_path, arms={"prior": {**ARMS["prior"], "harvest": {"logits": {"top_k": 3}}}})
    drawn = {"overrides": {"data.augment": "crop_flip"}}
    with pytest.raises(RecipeError, match=r"features: does not say how many views, and data\.num_views is 0"):
        planned(tmp_path, arms={"prior": {**drawn, "harvest": {"features": {}}}})
    harvests = {"features": {"plain": True}, "grand": {}, "adversarial": {"views": 5}}
    (step, _) = planned(tmp_path, arms={"prior": {**drawn, "harvest": harvests}}).steps
    assert [one.num_views for one in step.harvests] == [1, 1, 5]


@pytest.mark.parametrize(("text", "size"), [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0)])
def test_sizes_are_numbers_or_fractions(text: str, size: float) -> None:
    assert pixel_size(text) == size


@pytest.mark.parametrize("text", ["0", "-8/255", "8/0", "a/b", "", "inf", "1/2/3"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number above 0, such as 0.03 or 8/255"):
        pixel_size(text)
