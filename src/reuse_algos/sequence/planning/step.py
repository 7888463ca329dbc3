"""One step of a sequence: its name, its recipe and its folder."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_algos.errors import RecipeError
from reuse_algos.recipe.compose import Recipe, compose_recipe
from reuse_algos.recipe.shipped import shipped_recipe
from reuse_algos.recipe.source import copied, merge_sections, parse_yaml, read_text
from reuse_algos.sections import Faults, join
from reuse_algos.sequence.planning.halving import Rung, rung_duration
from reuse_algos.sequence.planning.harvests import Harvest
from reuse_algos.sequence.planning.schema import FirstConfig, SequenceConfig, StepConfig

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME = 120


@dataclass(frozen=True)
class PlannedStep:
    """One run of the sequence.

    Attributes:
        arm: The arm that it belongs to.
        name: Of the step; the same in every arm that has the same steps.
        position: In its arm, from 0.
        point: The values of the grid, by dotted recipe key.
        values: Its recipe as it is written to the step's folder, with its ``${...}``.
        recipe: Its checked recipe.
        folder: Of its recipe, log and checkpoints.
        special: Whether it is trained by the arm's ``first``.
        harvests: What is harvested of its run.
        rung: Round of a search by halving in which it is trained, from 1; None outside of such a search.
        judged: Whether the arm is judged by its metric.
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
    rung: int | None = None
    judged: bool = True

    @property
    def tags(self) -> dict[str, str]:
        """Of its run."""
        return self.recipe.settings.tags

    @property
    def title(self) -> str:
        """Arm and name, for messages."""
        return f"{self.arm}/{self.name}"


def step_name(step: StepConfig, point: Mapping[str, Any], index: int) -> str:
    """Return a name such as ``lr-0.1_seed-2``; values that are not one word or number are told apart by digits."""
    parts = [] if step.name is None else [step.name]
    for key, value in point.items():
        text = json.dumps(value) if isinstance(value, (list, dict, bool)) or value is None else str(value)
        short = _UNSAFE.sub("-", text).strip("-")
        # A shortened value ends in digits of its hash, so that two values never have one name.
        if short != text:
            short = f"{short[:24]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        parts.append(f"{key.split('.')[-1]}-{short}")
    return _UNSAFE.sub("-", "_".join(parts))[:_MAX_NAME] or f"step-{index + 1}"


@dataclass(frozen=True)
class Slot:
    """Where a step belongs, before its recipe is read.

    Attributes:
        arm: Name of the arm.
        name: Of the step.
        position: In its arm, from 0.
        point: The values of the grid, by dotted recipe key.
        own: Path and section of what the arm (or its ``first``) changes.
        step: Path and section of what the step itself changes.
        special: Whether it is trained by the arm's ``first``.
        rung: Round of a search by halving, or None.
    """

    arm: str
    name: str
    position: int
    point: dict[str, Any]
    own: tuple[str, FirstConfig]
    step: tuple[str, StepConfig]
    special: bool
    rung: Rung | None


def planned_step(config: SequenceConfig, slot: Slot, faults: Faults) -> PlannedStep | None:
    """Read and check a step's recipe, with everything that the sequence changes of it; None where it has faults.

    Args:
        config: The sequence file.
        slot: Where the step belongs.
        faults: Where faults are noted.
    """
    arm, name, own, step = slot.arm, slot.name, slot.own, slot.step
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
    # Later ones win: the sequence, the arm, the step, the rung, and last the point.
    of_rung = slot.rung.overrides if slot.rung else {}
    try:
        for overrides in (config.overrides, own[1].overrides, step[1].overrides, of_rung):
            merge_sections(values, overrides)
        for key, value in slot.point.items():
            merge_sections(values, _as_sections(key, value))
    except RecipeError as error:
        faults.add(f"{arm}/{name}", str(error))
        return None
    if slot.rung is not None:
        whole = values.get("max_duration")
        values["max_duration"] = rung_duration(whole, slot.rung)
        if values["max_duration"] is None:
            faults.add(f"{arm}/{name}", f"max_duration: halving needs such as 40ep or 400ba, not {whole!r}")
            return None
    folder = Path(config.folder) / arm / name
    own_tags = {"sequence": config.name, "arm": arm, "step": name}
    own_tags |= {"rung": str(slot.rung.number)} if slot.rung else {}
    tags = values.get("tags") if isinstance(values.get("tags"), dict) else {}
    values["tags"] = {
        **(tags or {}), "study": config.name, "method": arm,
        # So that a comparison knows the baseline of the study without being told.
        **({"role": "baseline"} if arm == config.baseline else {}),
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
    # What the recipe itself says of checkpoints stays.
    values.setdefault("save_num_checkpoints_to_keep", 1)
    values.setdefault("save_interval", "0.1dur")  # every epoch would cost short runs more than it could save them
    try:
        recipe = compose_recipe(values, source=chosen)
    except RecipeError as error:
        # Without the heading, which names the recipe alone.
        for line in str(error).splitlines()[1:]:
            faults.add(f"{arm}/{name}", line.strip())
        return None
    if "run_recorder" not in recipe.settings.callbacks:
        faults.add(f"{arm}/{name}", "callbacks.run_recorder: missing. A step has to be archived")
    # A step that labels a pool has no metric to be judged by.
    rung = slot.rung.number if slot.rung else None
    judged = step[1].judge and recipe.settings.label is None
    return PlannedStep(
        arm, name, slot.position, slot.point, values, recipe, folder, slot.special, rung=rung, judged=judged
    )


def _read_recipe(name: str, source: str, faults: Faults) -> dict[str, Any] | None:
    """Return the values of a recipe that comes with the library, or of a file beside the sequence file."""
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
    values, found = (None, own) if text is None else _parsed(text, str(path))
    for line in found:
        faults.add(str(path), line)
    return None if len(found) else copied(values or {})


@functools.lru_cache(maxsize=16)  # the steps of a sequence have one recipe, or a few
def _parsed(text: str, path: str) -> tuple[Any, Faults]:
    """Return the values of a recipe's text, and what is wrong with it."""
    faults = Faults(path)
    values = parse_yaml(text, faults)
    if values is not None and not isinstance(values, dict):
        faults.add("", "a recipe must be a mapping of keys, such as max_duration: 40ep")
    return values, faults


def _as_sections(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value
