"""From a sequence file to checked values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.archive.signals.packed import BITS
from reuse_algos.errors import nearest
from reuse_algos.harvest import HARVESTABLE
from reuse_algos.recipe.interpolation import resolve
from reuse_algos.recipe.source import apply_overrides, parse_yaml, read_text
from reuse_algos.sections import BROKEN, Faults, fit_fields, join
from reuse_algos.sequence.planning.schema import (
    ArmConfig,
    FirstConfig,
    HalvingConfig,
    HarvestConfig,
    SampleConfig,
    SearchConfig,
    SequenceConfig,
    StepConfig,
)
from reuse_algos.training.attacks import Attack, pixel_size

_MAX_RANKS = 1024


def load_sequence(path: str | Path, overrides: Iterable[str] = (), *, archive: str | None = None) -> SequenceConfig:
    """Read a sequence file.

    Args:
        path: The YAML file.
        overrides: ``dotted.key=value`` texts that change the sequence file's values, as in recipes:
            ``grid.seed=[1,2]``, ``overrides.max_duration=5ep``.
        archive: Folder or URL in place of the file's, also wherever the file says ``${archive}``.

    Raises:
        RecipeError: With all faults, one per line. The recipes that it names are not read yet.
    """
    faults = Faults(str(path))
    text = read_text(path, faults)
    raw = None if text is None else parse_yaml(text, faults)
    if raw is not None and not isinstance(raw, dict):
        faults.add("", "a sequence must be a mapping of keys, such as name: five-seeds")
    faults.raise_if_any()
    raw = raw or {}
    _nest_all(raw)
    # Before and after: overrides are found in nested sections, and may bring dotted keys.
    apply_overrides(raw, overrides, faults)
    _nest_all(raw)
    if archive is not None:
        raw["archive"] = archive
    for name, default in (("archive", "./archive"), ("folder", "./sequences/${name}")):
        # Before references are resolved, as the file may ask for ${folder}.
        raw[name] = default if raw.get(name) is None else raw[name]
    if raw.get("name") is None:
        faults.add("name", "missing. Write for example name: five-seeds")
        # Else every ${name} would be reported as well.
        raw["name"] = "nameless"
    # Texts from the environment may be secrets: they stay references, for the recipe to resolve.
    resolved = resolve(raw, faults)
    shown = {key: BROKEN if resolved.values[key] is BROKEN else value for key, value in resolved.shown.items()}
    for name in ("name", "archive", "folder"):
        shown[name] = resolved.values[name]
    config = _fitted(shown, faults)
    config.source = str(path)
    _check(config, faults)
    faults.raise_if_any()
    return config


def _nest_all(raw: dict[str, Any]) -> None:
    """Write dotted keys such as ``optimizer.lr: 0.1`` as sections in every ``overrides`` and ``grid``."""
    # Both ways of writing them mean the same, and key=value on the command line finds sections only.
    arms = raw.get("arms")
    holders: list[Any] = [raw, *_dicts(raw.get("steps"))]
    for arm in arms.values() if isinstance(arms, dict) else []:
        if isinstance(arm, dict):
            holders += [arm, arm.get("first"), *_dicts(arm.get("steps"))]
    for holder in holders:
        if isinstance(holder, dict):
            for key in ("overrides", "grid"):
                if isinstance(section := holder.get(key), dict):
                    holder[key] = _nested(section)


def _dicts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _nested(section: dict[str, Any]) -> dict[str, Any]:
    """Nest keys with dots at the top of a section."""
    # At the top only: further down a key may itself have dots, such as the pattern of a parameter group.
    nested: dict[str, Any] = {}
    for path, value in section.items():
        *parents, last = str(path).split(".")
        here = nested
        for parent in parents:
            child = here.get(parent)
            here[parent] = here = child if isinstance(child, dict) else {}
        both = isinstance(here.get(last), dict) and isinstance(value, dict)
        here[last] = {**here[last], **value} if both else value
    return nested


def _fitted(values: dict[str, Any], faults: Faults) -> SequenceConfig:
    plain = {key: value for key, value in values.items() if key not in ("steps", "arms", "search", "sample")}
    # Fields that the library fills in itself, such as where the file was read.
    unwritten = {f.name for f in dataclasses.fields(SequenceConfig) if not f.metadata.get("written", True)}
    for key in unwritten & plain.keys():
        faults.add(key, f"there is no such key.{nearest(key, _keys(SequenceConfig))}")
        del plain[key]
    config = SequenceConfig(**_fit(plain, SequenceConfig, "", faults))
    if values.get("steps") is not None:
        config.steps = _steps(values["steps"], "steps", faults)
    if values.get("sample") is not None:
        config.sample = SampleConfig(**_fit(values["sample"], SampleConfig, "sample", faults))
    if values.get("search") is not None:
        config.search = _search(values["search"], faults)
    arms = values.get("arms")
    if isinstance(arms, dict):
        config.arms = {str(name): _arm(arm, join("arms", name), faults) for name, arm in arms.items()}
    elif arms is not None and arms is not BROKEN:
        faults.add("arms", "must be a section: the name of each arm, and what is special about it")
    return config


def _keys(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.metadata.get("written", True)]


def _fit(values: Any, cls: type, path: str, faults: Faults) -> dict[str, Any]:
    """Return the fields of a section; a null counts as left out."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if value is not None or key not in _keys(cls)}
    return fit_fields(values, cls, path, faults)


def _search(value: Any, faults: Faults) -> SearchConfig:
    section = dict(value) if isinstance(value, dict) else {"key": value}
    halving = section.pop("halving", None)
    config = SearchConfig(**_fit(section, SearchConfig, "search", faults))
    if not config.key and value is not BROKEN:
        faults.add("search.key", "missing. Write for example search: {key: optimizer.lr, halving: {rungs: 3}}")
    if halving is not None:
        path = "search.halving"
        config.halving = found = HalvingConfig(**_fit(halving, HalvingConfig, path, faults))
        found.later = _nested(found.later)
        for key, least in (("rungs", 2), ("eta", 2)):
            if getattr(found, key) < least:
                faults.add(join(path, key), f"must be at least {least}, not {getattr(found, key)}")
    return config


def _steps(values: Any, path: str, faults: Faults) -> list[StepConfig]:
    if not isinstance(values, list) or not values:
        if values is not BROKEN:
            faults.add(path, "must be a list of steps, with at least one")
        return []
    return [StepConfig(**_fit(value or {}, StepConfig, join(path, i), faults)) for i, value in enumerate(values)]


def _arm(value: Any, path: str, faults: Faults) -> ArmConfig:
    value = {} if value is None else value
    if not isinstance(value, dict):
        if value is not BROKEN:
            faults.add(path, f"must be a section of keys, not {value!r}")
        return ArmConfig()
    inner = {key: value[key] for key in ("first", "steps", "harvest") if key in value}
    arm = ArmConfig(**_fit({key: v for key, v in value.items() if key not in inner}, ArmConfig, path, faults))
    if inner.get("first") is not None:
        arm.first = FirstConfig(**_fit(inner["first"], FirstConfig, join(path, "first"), faults))
    if inner.get("steps") is not None:
        arm.steps = _steps(inner["steps"], join(path, "steps"), faults)
    if inner.get("harvest") is not None:
        arm.harvest = _harvest(inner["harvest"], join(path, "harvest"), faults)
    return arm


def _harvest(values: Any, path: str, faults: Faults) -> dict[str, HarvestConfig]:
    if not isinstance(values, dict):
        if values is not BROKEN:
            faults.add(path, "must be a section: the name of each signal, and how it is harvested")
        return {}
    harvests = {}
    for signal, value in values.items():
        here = join(path, signal)
        if signal not in HARVESTABLE:
            faults.add(here, f"cannot be harvested.{nearest(str(signal), HARVESTABLE)}")
            continue
        config = HarvestConfig(**_fit({} if value is None else value, HarvestConfig, here, faults))
        _check_harvest(signal, config, here, faults)
        harvests[signal] = config
    return harvests


def _check_harvest(signal: str, config: HarvestConfig, path: str, faults: Faults) -> None:
    """Note settings of another signal, and settings out of range."""
    # A harvest comes after hours of training, so its faults are looked for before.
    others = {"attack": "adversarial", "bits": "adversarial", "top_k": "logits", "plain": "features"}
    for key, owner in others.items():
        if getattr(config, key) not in (None, False) and signal != owner:
            faults.add(join(path, key), f"belongs to {owner}")
    if config.plain and config.views is not None:
        faults.add(join(path, "plain"), "goes without views")
    for key in ("views", "top_k", "batch_size"):
        value = getattr(config, key)
        if isinstance(value, int) and value < 1:
            faults.add(join(path, key), f"must be at least 1, not {value}")
    if config.bits is not None and config.bits not in BITS:
        faults.add(join(path, "bits"), f"must be one of {', '.join(map(str, BITS))}, not {config.bits}")
    if config.attack is not None:
        config.attack = _attack(config.attack, join(path, "attack"), faults)


def _attack(values: dict[str, Any], path: str, faults: Faults) -> dict[str, Any]:
    """Return the checked fields of an attack; fractions become numbers, and null counts as left out."""
    known = len(faults)
    given = dict(values)
    for key in ("epsilon", "step_size"):
        if isinstance(text := given.get(key), str):
            try:
                given[key] = pixel_size(text)
            except ValueError as error:
                faults.add(join(path, key), str(error))
                del given[key]
    fitted = _fit(given, Attack, path, faults)
    if len(faults) == known:
        try:
            Attack(**fitted)
        except ValueError as error:
            faults.add(path, str(error))
    return fitted


def _check(config: SequenceConfig, faults: Faults) -> None:
    if not is_safe_name(config.name):
        faults.add(
            "name", f"must be letters, digits and ._- only, beginning with a letter or digit, not {config.name!r}"
        )
    if not 1 <= config.ranks <= _MAX_RANKS:
        faults.add("ranks", f"must be between 1 and {_MAX_RANKS}, not {config.ranks}")
    if not config.arms and not len(faults):
        faults.add("arms", "missing. Write for example arms: {without: {}, reuse: {overrides: {...}}}")
    for arm in config.arms:
        if not is_safe_name(arm):
            faults.add(join("arms", arm), "must be letters, digits and ._- only, beginning with a letter or digit")
    if config.baseline is not None and config.baseline not in config.arms:
        faults.add("baseline", f"there is no arm {config.baseline!r}.{nearest(config.baseline, config.arms)}")
    halving = config.search.halving if config.search else None
    for arm in (halving.arms or []) if halving else []:
        if arm not in config.arms:
            faults.add("search.halving.arms", f"there is no arm {arm!r}.{nearest(arm, config.arms)}")
    # The name that all shipped files give to the arm that reuses nothing.
    if config.baseline is None and "without" in config.arms:
        config.baseline = "without"
