"""Harvests between the steps of a sequence: planned, done once, before what reuses them, and never half."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.attacks import Attack, pixel_size
from reuse_algos.errors import RecipeError, SequenceError
from reuse_algos.harvest import harvest
from reuse_algos.sequence import Plan, PlannedStep, look_up_states, print_plan, run_sequence
from reuse_algos.sequence.harvest_process import harvest_run
from reuse_algos.sequence.harvests import Harvest
from reuse_algos.sequence.processes import LOG
from sequences import in_process, planned

ATTACK = {"method": "fgsm", "epsilon": "24/255"}
REPLAY = {"runs": {"run_name": "${name}-prior-seed-11"}, "fraction": 0.5, "mode": "replace", "warn_below": 0.0}
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


def harvest_here(step: PlannedStep, run: PriorRun, asked: Harvest, archive: str, lock: int) -> int:
    """Harvests as a process of its own would."""
    del lock
    harvest_run(archive, run.id, asked.signal, asked.config, step.recipe.settings.device)
    return 0


def trained(plan: Plan, said: list[str] | None = None, **options: Any) -> list[str]:
    """States of the steps after a call."""
    say = (lambda line: None) if said is None else said.append
    given = {"runner": in_process, "harvester": harvest_here, **options}
    return [found.state for found in run_sequence(plan, say=say, **given)]


def test_a_run_is_harvested_before_the_step_that_reuses_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.seed=[1]", arms=ARMS)
    assert [step.title for step in plan.steps] == ["prior/seed-11", "replayed/seed-1"]
    said: list[str] = []
    assert trained(plan, said) == ["finished", "finished"]
    archive = RunArchive(tmp_path / "archive")
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
    archive = RunArchive(tmp_path / "archive")
    assert [found.state for found in look_up_states(plan, archive)] == ["to harvest"]
    shown = io.StringIO()
    print_plan(look_up_states(plan, archive), Console(file=shown, width=100))
    text = shown.getvalue()
    assert "el2n, logits" in text
    assert text.splitlines()[-1] == "0 of 1 steps are still to be trained, and 1 to be harvested"
    said: list[str] = []
    assert trained(plan, said) == ["finished"]
    assert said[0] == "[1/1] prior/seed-11: is trained, and is harvested"
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


def test_time_is_up_between_training_and_harvest(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.seed=[1]", arms=arms(adversarial={"attack": ATTACK}))
    said: list[str] = []
    ended: list[str] = []

    def too_long(step: PlannedStep, *arguments: Any) -> int:
        ended.append(step.title)
        time.sleep(1.0)
        return 143  # as of a process that was ended

    assert trained(plan, said, arms=["prior"]) == ["finished", "to do"]
    plan = planned(tmp_path, "grid.seed=[1]", arms=arms(adversarial={"attack": ATTACK}, features={}))
    assert trained(plan, said, time_limit=0.5, harvester=too_long) == ["to harvest", "to do"]
    assert said[-1] == "[1/2] prior/seed-11: trained, but not harvested to the end, as the time is up"
    assert ended == ["prior/seed-11"]
    assert trained(plan, said) == ["finished", "finished"]


def test_processes_harvest_and_say_what_failed(tmp_path: Path) -> None:
    plan = planned(tmp_path, "grid.seed=[1]", arms={"prior": prior(el2n={})})
    states = run_sequence(plan, say=lambda line: None, runner=in_process)
    assert [found.state for found in states] == ["finished"]
    log = (tmp_path / "work/prior/seed-11" / LOG).read_text()
    assert "el2n: 60 rows of 1 views" in log

    plan = planned(tmp_path, "grid.seed=[1]", arms={"prior": prior(el2n={"weights": "best"})})
    with pytest.raises(
        SequenceError, match=r"the harvest of el2n\.best of prior/seed-11 failed \(exit status 1\)"
    ) as raised:
        run_sequence(plan, say=lambda line: None, runner=in_process)
    assert "error: run tiny-prior-seed-11" in str(raised.value)

    def idle(*arguments: Any) -> int:
        return 0

    with pytest.raises(SequenceError, match="ended without an error and without all views"):
        trained(plan, harvester=idle)


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
    with pytest.raises(RecipeError, match=r"logits: needs 3 views of each example, and data\.num_views is 1 in prior"):
        planned(tmp_path, arms=arms(logits={"views": 3}))
    drawn = {"overrides": {"data.augment": "crop_flip"}}
    with pytest.raises(RecipeError, match=r"features: needs numbered views of each example, and data\.num_views is 0"):
        planned(tmp_path, arms={"prior": {**drawn, "harvest": {"features": {}}}})
    harvests = {"features": {"plain": True}, "grand": {}}
    (step, _) = planned(tmp_path, arms={"prior": {**drawn, "harvest": harvests}}).steps
    assert [one.num_views for one in step.harvests] == [1, 1]


@pytest.mark.parametrize(("text", "size"), [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0)])
def test_sizes_are_numbers_or_fractions(text: str, size: float) -> None:
    assert pixel_size(text) == size


@pytest.mark.parametrize("text", ["0", "-8/255", "8/0", "a/b", "", "inf", "1/2/3"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number above 0, such as 0.03 or 8/255"):
        pixel_size(text)
