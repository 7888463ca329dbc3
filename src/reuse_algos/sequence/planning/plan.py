"""From a sequence file to the steps to be trained: each with its name, its recipe and its folder, all checked."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_algos.archive.selection import tags_match
from reuse_algos.errors import RecipeError, SequenceError, nearest
from reuse_algos.recipe.compose import Recipe, compose_recipe
from reuse_algos.recipe.grouping import trained_by
from reuse_algos.recipe.shipped import shipped_recipe
from reuse_algos.recipe.source import leaves, merge_sections, parse_yaml, read_text
from reuse_algos.sections import Faults, join
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.planning.schema import ArmConfig, FirstConfig, SequenceConfig, StepConfig

__all__ = ["Plan", "PlannedStep", "differences", "fingerprint", "plan_sequence", "reuses", "trained_by", "waits_for"]

_OWN_TAGS = ("sequence", "arm", "step")
_OWN_KEYS = ("archive", "run_name", "save_folder", "autoresume", "save_overwrite")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME = 120
_MAX_STEPS = 10_000


@dataclass(frozen=True)
class PlannedStep:
    """One run of the sequence.

    Attributes:
        arm: the arm that it belongs to.
        name: of the step; the same in every arm that has the same steps.
        position: in its arm, from 0.
        point: the values of the grid, by dotted recipe key.
        values: its recipe as it is written to the step's folder, with its ``${...}``.
        recipe: the same, checked.
        folder: of its recipe, log and checkpoints.
        special: whether it is trained by the arm's ``first``.
        harvests: what is harvested of its run.
    """

    arm: str
    name: str
    position: int
    point: dict[str, Any]
    values: dict[str, Any]
    recipe: Recipe
    folder: Path
    special: bool
    harvests: tuple[Harvest, ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        """Of its run."""
        return self.recipe.settings.tags

    @property
    def title(self) -> str:
        """Arm and name, for messages."""
        return f"{self.arm}/{self.name}"


@dataclass(frozen=True)
class Plan:
    """All steps of a sequence in the order in which they are trained.

    Attributes:
        config: the sequence file.
        steps: of all arms: the first step of each arm, then the second of each, and so on; but where a step asks for
            runs of other arms only, and not of its own, these come before it.
    """

    config: SequenceConfig
    steps: list[PlannedStep]

    def of_arm(self, arm: str) -> list[PlannedStep]:
        """The steps of one arm, in order."""
        return [step for step in self.steps if step.arm == arm]

    def needed(self, arms: Collection[str] | None) -> list[int]:
        """Places of the steps of some arms, and of all that they reuse; of all steps for None.

        Raises:
            SequenceError: there is no such arm.
        """
        if arms is None:
            return list(range(len(self.steps)))
        unknown = [arm for arm in arms if arm not in self.config.arms]
        if unknown:
            raise SequenceError(
                f"{self.config.source} has no arm {', '.join(unknown)}.{nearest(unknown[0], self.config.arms)}"
            )
        found: list[int] = []
        for place in reversed(range(len(self.steps))):
            step = self.steps[place]
            if step.arm in arms or any(reuses(self.steps[later], step) for later in found):
                found.append(place)
        return found[::-1]


def plan_sequence(config: SequenceConfig) -> Plan:
    """Expand the grids, read and check every step's recipe.

    Raises:
        RecipeError: with the faults of all recipes; also where a step is to reuse runs of this sequence and none of
            the steps before it can be meant.
    """
    faults = Faults(config.source)
    arms = [list(_planned_arm(config, name, arm, faults)) for name, arm in config.arms.items()]
    steps = [step for row in itertools.zip_longest(*arms) for step in row if step is not None]
    _check_search(config, arms, faults)
    steps = _other_arms_first(steps)
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
    for index, step in enumerate(steps):
        place = join(where, index)
        _check_section(place, step, faults)
        for point in _points(config, arm, step, (at, place), faults):
            title = _step_name(step, point, index)
            if title in seen:
                faults.add(place, f"{name} has two steps of the name {title!r}. Give each a name of its own")
                continue
            if position >= _MAX_STEPS:
                faults.add(at, f"has more than {_MAX_STEPS} steps")
                return
            seen[title] = place
            first = arm.first if position == 0 else None
            here = (join(at, "first"), first) if first is not None else (at, own)
            planned = _planned(config, name, here, (place, step), title, position, point, first is not None, faults)
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
    """Every combination of the values of the arm's (or the sequence's) grid and the step's own."""
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
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _step_name(step: StepConfig, point: Mapping[str, Any], index: int) -> str:
    """Such as ``lr-0.1_seed-2``; values that are no single word or number are told apart by a few digits."""
    parts = [] if step.name is None else [step.name]
    for key, value in point.items():
        text = json.dumps(value) if isinstance(value, (list, dict, bool)) or value is None else str(value)
        short = _UNSAFE.sub("-", text).strip("-")
        if short != text:
            short = f"{short[:24]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        parts.append(f"{key.split('.')[-1]}-{short}")
    return _UNSAFE.sub("-", "_".join(parts))[:_MAX_NAME] or f"step-{index + 1}"


def _planned(
    config: SequenceConfig,
    arm: str,
    own: tuple[str, FirstConfig],
    step: tuple[str, StepConfig],
    name: str,
    position: int,
    point: dict[str, Any],
    special: bool,
    faults: Faults,
) -> PlannedStep | None:
    if own[1].recipe is not None and step[1].recipe is not None:
        paths = f"{join(own[0], 'recipe')} and {join(step[0], 'recipe')}"
        faults.add("", f"{paths} both say what to train. Keep one")
        return None
    chosen = step[1].recipe or own[1].recipe or config.recipe
    if chosen is None:
        faults.add("recipe", f"missing, and {step[0]} of {arm} names none either. Write for example digits/baseline")
        return None
    values = _read_recipe(chosen, config.source, faults)
    if values is None:
        return None
    for overrides in (config.overrides, own[1].overrides, step[1].overrides):
        merge_sections(values, overrides)
    for key, value in point.items():
        merge_sections(values, _as_sections(key, value))
    folder = Path(config.folder) / arm / name
    own_tags = {"sequence": config.name, "arm": arm, "step": name}
    tags = values.get("tags") if isinstance(values.get("tags"), dict) else {}
    values["tags"] = {
        **(tags or {}), "study": config.name, "method": arm,
        **config.tags, **own[1].tags, **step[1].tags, **own_tags,
    }  # fmt: skip
    values |= {
        "archive": config.archive,
        "run_name": f"{config.name}-{arm}-{name}",
        "save_folder": str(folder / "checkpoints"),
        "autoresume": True,
        # A run that was killed may have left a checkpoint that nothing points to yet; it is written again.
        "save_overwrite": True,
        "progress_bar": False,
    }
    values.setdefault("save_num_checkpoints_to_keep", 1)
    values.setdefault("save_interval", "0.1dur")  # every epoch would cost short runs more than it could save them
    try:
        recipe = compose_recipe(values, source=chosen)
    except RecipeError as error:
        for line in str(error).splitlines()[1:]:
            faults.add(f"{arm}/{name}", line.strip())
        return None
    if "run_recorder" not in recipe.settings.callbacks:
        faults.add(f"{arm}/{name}", "callbacks.run_recorder: missing. A step has to be archived")
    return PlannedStep(arm, name, position, point, values, recipe, folder, special)


def _read_recipe(name: str, source: str, faults: Faults) -> dict[str, Any] | None:
    """The values of a recipe that comes with the library, or of a file beside the sequence file."""
    if name.endswith((".yaml", ".yml")):
        path = Path(source).parent / Path(name).expanduser()
    else:
        try:
            path = shipped_recipe(name)
        except RecipeError as error:
            faults.add("recipe", f"{error} A file's name ends with .yaml.")
            return None
    own = Faults(str(path))
    text = read_text(path, own)
    values = None if text is None else parse_yaml(text, own)
    if values is not None and not isinstance(values, dict):
        own.add("", "a recipe must be a mapping of keys, such as max_duration: 40ep")
    for line in own:
        faults.add(str(path), line)
    return None if len(own) else values or {}


def _as_sections(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _check_search(config: SequenceConfig, arms: Sequence[Sequence[PlannedStep]], faults: Faults) -> None:
    if config.search is None or len(faults):
        return
    for steps in arms:
        missing = next((step for step in steps if config.search not in step.point), None)
        if missing is not None:
            known = nearest(config.search, missing.point)
            faults.add("search", f"{config.search!r} is not in the grid of {missing.title}.{known}")


def _check_prior_runs(config: SequenceConfig, before: Sequence[PlannedStep], step: PlannedStep, faults: Faults) -> None:
    """A step that reuses runs of this very sequence needs one before it. Nothing falls back to plain training."""
    for path, query in _queries(step):
        if str(query.get("tags", {}).get("sequence")) != config.name or any(_fits(query, other) for other in before):
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


def _other_arms_first(steps: Sequence[PlannedStep]) -> list[PlannedStep]:
    """The steps in their order, except that one whose query is for runs of other arms comes after all of these.

    A query that also fits steps of its own arm means those before it, whatever comes later.
    """
    asked: dict[str, list[PlannedStep]] = {}
    ordered: list[PlannedStep] = []
    entered: set[int] = set()

    def matches(query: Mapping[str, Any]) -> list[PlannedStep]:
        key = json.dumps([query["tags"], query.get("run_name")], sort_keys=True, default=str)
        if key not in asked:
            asked[key] = [other for other in steps if _fits(query, other)]
        return asked[key]

    def add(step: PlannedStep) -> None:
        if id(step) in entered:
            return
        entered.add(id(step))
        for _, query in _queries(step):
            found = matches(query)
            own = any(other.arm == step.arm for other in found)
            for other in found:
                if not own or (other.arm == step.arm and other.position < step.position):
                    add(other)
        ordered.append(step)

    for step in steps:
        add(step)
    return ordered


def _queries(step: PlannedStep) -> list[tuple[str, dict[str, Any]]]:
    """Where a step's algorithms ask for prior runs, and for which."""
    found = []
    for name, options in step.recipe.settings.algorithms.items():
        asked = options.get("runs")
        for query in asked if isinstance(asked, list) else [asked]:
            if isinstance(query, str):
                query = {"run_name": query}
            if isinstance(query, dict):
                found.append((f"algorithms.{name}.runs", {**query, "tags": query.get("tags") or {}}))
    return found


def _fits(query: Mapping[str, Any], other: PlannedStep) -> bool:
    name = query.get("run_name")
    return tags_match(other.tags, query["tags"]) and (name is None or name == other.recipe.settings.run_name)


def reuses(step: PlannedStep, other: PlannedStep) -> bool:
    """Whether the run of ``other`` is among those that an algorithm of ``step`` asks for."""
    return any(_fits(query, other) for _, query in _queries(step))


def waits_for(step: PlannedStep, other: PlannedStep) -> bool:
    """Whether ``step`` must not be trained at the same time as ``other``, which comes before it in the plan.

    It reuses the run of ``other``, or its own run, if it were there too early, would be reused by it.
    """
    return reuses(step, other) or reuses(other, step)


def fingerprint(record: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with what a recipe trains, and not with where its run goes."""
    return hashlib.sha256(json.dumps(trained_by(record), sort_keys=True).encode()).hexdigest()[:12]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two records of recipes say otherwise about the training, one text for each key."""
    old, new = trained_by(then), trained_by(now)
    return [
        f"{key} was {json.dumps(old[key]) if key in old else 'not set'} and is now "
        f"{json.dumps(new[key]) if key in new else 'not set'}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]
