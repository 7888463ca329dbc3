"""From a sequence file to the steps to be trained: each with its name, its recipe and its folder, all checked."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.errors import RecipeError, SequenceError, nearest
from reuse_algos.recipe.source import leaves
from reuse_algos.sections import Faults, join
from reuse_algos.sequence.planning.halving import rungs_of
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.planning.order import fits, other_arms_first, queries_of, reuses
from reuse_algos.sequence.planning.sampling import sampled_points
from reuse_algos.sequence.planning.schema import ArmConfig, FirstConfig, SequenceConfig, StepConfig
from reuse_algos.sequence.planning.step import PlannedStep, Slot, planned_step, step_name

_OWN_TAGS = ("sequence", "arm", "step", "rung")
_OWN_KEYS = ("archive", "run_name", "save_folder", "autoresume", "save_overwrite")
_MAX_STEPS = 10_000


@dataclass(frozen=True)
class Plan:
    """All steps of a sequence in the order in which they are trained.

    Attributes:
        config: The sequence file.
        steps: Of all arms: the first step of each arm, then the second of each, and so on; but where a step asks for
            runs of other arms only, and not of its own, these come before it.
    """

    config: SequenceConfig
    steps: list[PlannedStep]

    def of_arm(self, arm: str) -> list[PlannedStep]:
        """Return the steps of one arm, in order."""
        return [step for step in self.steps if step.arm == arm]

    def needed(self, arms: Collection[str] | None) -> list[int]:
        """Return the places of the steps of some arms, and of all that they reuse; of all steps for None.

        Raises:
            SequenceError: There is no such arm.
        """
        if arms is None:
            return list(range(len(self.steps)))
        unknown = [arm for arm in arms if arm not in self.config.arms]
        if unknown:
            raise SequenceError(
                f"{self.config.source} has no arm {', '.join(unknown)}.{nearest(unknown[0], self.config.arms)}"
            )
        found: list[int] = []
        # From the end, as a step is needed where a later one that is needed reuses it.
        for place in reversed(range(len(self.steps))):
            step = self.steps[place]
            if step.arm in arms or any(reuses(self.steps[later], step) for later in found):
                found.append(place)
        return found[::-1]


def plan_sequence(config: SequenceConfig) -> Plan:
    """Expand the grids, read and check every step's recipe.

    Raises:
        RecipeError: The recipes have faults, or a step is to reuse runs of this sequence and none of the steps before
            it can be meant. The message has all of them.
    """
    faults = Faults(config.source)
    arms = [list(_planned_arm(config, name, arm, faults)) for name, arm in config.arms.items()]
    # Arms take turns, so that a machine that grows slow slows all of them alike.
    steps = [step for row in itertools.zip_longest(*arms) for step in row if step is not None]
    for name, own in zip(config.arms, arms, strict=True):
        if own and not any(step.judged for step in own):
            faults.add(join("arms", name), "has no step that it is judged by. Leave out judge: false of one")
    _check_search(config, arms, faults)
    for own in arms:
        _check_periods(own, faults)
    # After the arms were checked each by itself, in the order in which their author wrote them.
    steps = other_arms_first(steps)
    for index, step in enumerate(steps):
        _check_prior_runs(config, steps[:index], step, faults)
    if len(faults):
        count = f"{len(faults)} error{'s' if len(faults) > 1 else ''}"
        raise RecipeError("\n  ".join([f"{config.source}: {count} in the sequence", *faults]))
    return Plan(config, steps)


def _planned_arm(config: SequenceConfig, name: str, arm: ArmConfig, faults: Faults) -> Iterator[PlannedStep]:
    at = join("arms", name)
    steps, where = (config.steps, "steps") if arm.steps is None else (arm.steps, join(at, "steps"))
    own = FirstConfig(arm.recipe, arm.overrides, arm.tags)
    for path, section in (("", config), (at, own), (join(at, "first"), arm.first)):
        _check_section(path, section, faults)
    seen: dict[str, str] = {}
    position = 0
    halving = config.search.rungs_in(name) if config.search else None
    rungs = [None] if halving is None else rungs_of(halving)
    for rung, (index, step) in itertools.product(rungs, enumerate(steps)):
        place = join(where, index)
        _check_section(place, step, faults)
        for point in _points(config, arm, step, (at, place), faults):
            title = (
                step_name(step, point, index) if rung is None else f"rung-{rung.number}_{step_name(step, point, index)}"
            )
            if title in seen:
                faults.add(place, f"{name} has two steps of the name {title!r}. Give each a name of its own")
                continue
            # Grids multiply: a few long lists make more steps than anybody meant.
            if position >= _MAX_STEPS:
                faults.add(at, f"has more than {_MAX_STEPS} steps")
                return
            seen[title] = place
            first = arm.first if position == 0 else None
            here = (join(at, "first"), first) if first is not None else (at, own)
            slot = Slot(name, title, position, point, here, (place, step), first is not None, rung)
            # Counted although a faulty recipe gives no step: only the first step of an arm may be a special one.
            planned = planned_step(config, slot, faults)
            position += 1
            if planned is not None:
                yield dataclasses.replace(planned, harvests=_harvests(arm, planned, join(at, "harvest"), faults))


def _harvests(arm: ArmConfig, step: PlannedStep, path: str, faults: Faults) -> tuple[Harvest, ...]:
    found = []
    for signal, config in arm.harvest.items():
        try:
            found.append(Harvest.planned(signal, config, step.recipe.settings))
        except ValueError as error:
            faults.add(join(path, signal), f"{error} ({step.title})")
    return tuple(found)


def _check_section(path: str, section: Any, faults: Faults) -> None:
    if section is None:
        return
    for key in _OWN_KEYS:
        if key in section.overrides:
            faults.add(join(join(path, "overrides"), key), "is set by the sequence and cannot be set here")
    for key in _OWN_TAGS:
        if key in section.tags:
            faults.add(join(join(path, "tags"), key), "is set by the sequence and cannot be set here")
    if "tags" in section.overrides:
        faults.add(join(join(path, "overrides"), "tags"), f"write them as {join(path, 'tags')}")


def _points(
    config: SequenceConfig, arm: ArmConfig, step: StepConfig, where: tuple[str, str], faults: Faults
) -> list[dict[str, Any]]:
    """Return every combination of the values of the arm's (or the sequence's) grid and the step's own."""
    of_arm = (config.grid, "grid") if arm.grid is None else (arm.grid, join(where[0], "grid"))
    axes: dict[str, list[Any]] = {}
    for grid, path in (of_arm, (step.grid, join(where[1], "grid"))):
        for key, values in leaves(grid):
            if not isinstance(values, list) or not values:
                faults.add(join(path, key), f"must be a list of values to try, not {values!r}")
            elif key.split(".")[0] in (*_OWN_KEYS, "tags"):
                faults.add(join(path, key), "is set by the sequence and cannot be set here")
            elif key in axes:
                faults.add(join(path, key), "is in the grid of all steps, too. Keep one")
            else:
                axes[key] = values
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    # Each sample stands with every point of the grid, so that arms and seeds are compared on the same values.
    if config.sample is None:
        return points
    drawn = sampled_points(config.sample, "sample", faults)
    for key in {key for point in drawn for key in point} & axes.keys():
        faults.add(join("sample.over", key), "is in the grid, too. Keep one")
    return [{**point, **sample} for point in points for sample in drawn]


def _check_search(config: SequenceConfig, arms: Sequence[Sequence[PlannedStep]], faults: Faults) -> None:
    # Steps with faults are missing here, and would give faults that are not there.
    if config.search is None or len(faults):
        return
    key = config.search.key
    for steps in arms:
        missing = next((step for step in steps if key not in step.point), None)
        if missing is not None:
            faults.add("search", f"{key!r} is not in the grid of {missing.title}.{nearest(key, missing.point)}")
        # Equal budgets would train the same runs twice and drop by chance.
        lengths = {(step.rung, str(step.recipe.settings.max_duration)) for step in steps if step.rung is not None}
        if len({length for _, length in lengths}) < len({rung for rung, _ in lengths}):
            said = ", ".join(length for _, length in sorted(lengths))
            faults.add(
                "search.halving",
                f"rungs of {steps[0].arm} have equal budgets ({said}). Use fewer, or a longer max_duration",
            )


def _check_periods(steps: Sequence[PlannedStep], faults: Faults) -> None:
    """Note arms whose periods go back."""
    # A step would start from a run that has seen what it is judged by.
    last: dict[tuple[str, str], PlannedStep] = {}
    for step in steps:
        rotated = step.recipe.settings.data.rotated
        if rotated is None:
            continue
        # Periods rise among steps that differ in nothing else; another value of the grid begins again.
        alone = {key: value for key, value in step.point.items() if not key.startswith("data.rotated")}
        before = last.get(key := (step.arm, json.dumps(alone, sort_keys=True, default=str)))
        then = before.recipe.settings.data.rotated if before is not None else None
        if before is not None and then is not None and then.period > rotated.period and reuses(step, before):
            faults.add(
                step.title,
                f"periods are out of order: it is trained up to period {rotated.period} and may reuse {before.title}, "
                f"which is trained up to {then.period}. Write the periods in rising order",
            )
        last[key] = step


def _check_prior_runs(config: SequenceConfig, before: Sequence[PlannedStep], step: PlannedStep, faults: Faults) -> None:
    """Note steps that reuse runs of this sequence without one before them."""
    # Nothing falls back to plain training: such a step would fail when its turn comes.
    for path, query in queries_of(step):
        if str(query.get("tags", {}).get("sequence")) != config.name or any(fits(query, other) for other in before):
            continue
        said = ", ".join(f"{key}: {value}" for key, value in query["tags"].items())
        what = f"{path}: no step before it has the tags {{{said}}}, so there is nothing to reuse."
        at = join("arms", step.arm)
        advice = (
            f" Give {at}.first: {{}} to train the first step by the sequence's own recipe, without {at}.overrides"
            if step.position == 0
            else " Change the query or the order of the steps"
        )
        faults.add(step.title, what + advice)
