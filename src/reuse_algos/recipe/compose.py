"""From a YAML file and overrides to a checked recipe, or to one error that lists all faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.signals.capture import parse_signals
from reuse_algos.data.datasets.load import DataConfig
from reuse_algos.errors import DataError, nearest
from reuse_algos.models import ModelConfig, model_names
from reuse_algos.presets import PRESETS, preset
from reuse_algos.priors.choosing import split_if_empty
from reuse_algos.recipe.fitting import Component, fit_named, fit_options
from reuse_algos.recipe.interpolation import SEED, resolve
from reuse_algos.recipe.registry import Kind, find, names
from reuse_algos.recipe.schema import Settings, check_settings
from reuse_algos.recipe.source import apply_overrides, copied, merge_sections, parse_yaml, read_text
from reuse_algos.sections import BROKEN, Faults, fit_fields, join

_SINGLE: tuple[Kind, ...] = ("optimizer", "scheduler")
_COMPONENTS: tuple[tuple[Kind, str], ...] = (
    ("algorithm", "algorithms"),
    ("callback", "callbacks"),
    ("logger", "loggers"),
)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names, options and types are known to be right.

    Attributes:
        settings: The values.
        record: The same as plain JSON-able data, to print and to archive. Texts that come from the environment stand
            there as ``${oc.env:NAME}``, because they may be secrets.
        source: Where it was read.
        components: The classes that it names with their fitted options, by section: ``optimizer`` and ``scheduler``
            (one or none), ``algorithms``, ``callbacks`` and ``loggers``.
        without_seed: The record with ``<seed>`` for the seed, and wherever ``${seed}`` was written.
    """

    settings: Settings
    record: dict[str, Any]
    source: str
    components: dict[str, list[Component]]
    without_seed: dict[str, Any]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: ``dotted.key=value`` texts, values in YAML; later ones win. A mapping as the value replaces the
            section that was there.

    Raises:
        RecipeError: With all faults, one per line: ``path.to.key: what is wrong``.
    """
    faults = Faults(str(path))
    text = read_text(path, faults)
    raw = parse_yaml(text, faults) if text is not None else None
    if raw is None:
        faults.raise_if_any()
    return _compose({} if raw is None else raw, overrides, faults)


def compose_recipe(values: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str = "recipe") -> Recipe:
    """Compose a recipe of values that are in memory.

    Args:
        values: The recipe's keys.
        overrides: ``dotted.key=value`` texts, values in YAML; later ones win. Default: none.
        source: What the recipe is called in messages. Default: ``recipe``.

    Raises:
        RecipeError: The recipe is wrong. The message has all faults, one per line.
    """
    return _compose(copied(values), overrides, Faults(source))


def _compose(raw: Any, overrides: Iterable[str], faults: Faults) -> Recipe:
    if not isinstance(raw, dict):
        faults.add("", "a recipe must be a mapping of keys, such as max_duration: 40ep")
        faults.raise_if_any()
    # Before presets and defaults, so that an override may name a preset or refer to a default.
    apply_overrides(raw, overrides, faults)
    _write_out_presets(raw.get("algorithms"), faults)
    # A derived name that cannot be resolved has its fault where it is made from.
    derived = {"run_name"} if raw.get("run_name") is None else set()
    _fill_defaults(raw)
    resolved = resolve(raw, faults, derived=derived)
    top = {key: value for key, value in resolved.values.items() if key not in ("data", "model")}
    settings = Settings(**fit_fields(top, Settings, "", faults))
    settings.data = _check_data(resolved.values["data"], faults)
    settings.model = _check_model(resolved.values["model"], faults)
    check_settings(settings, faults)
    # The one key that has no sensible default: it decides what a run costs.
    if "max_duration" not in resolved.values:
        faults.add("max_duration", "missing. Write for example max_duration: 40ep")
    components: dict[str, list[Component]] = {}
    for kind in _SINGLE:
        section = getattr(settings, kind)
        named = isinstance(resolved.values[kind], dict) and fit_named(kind, section, kind, faults)
        components[kind] = [named] if named else []
    for kind, path in _COMPONENTS:
        # The record shows options as they were written; a fitted option may be an object that JSON cannot hold.
        found, options = _fit_components(kind, path, getattr(settings, path), faults)
        components[path] = found
        setattr(settings, path, options)
    # Only now is it known which classes the recipe names, and which of their constructors take an archive.
    if resolved.values["archive"] is None:
        _check_archive_unneeded(components, faults)
    faults.raise_if_any()
    # The record keeps references to the environment as they were written: they may be secrets.
    shown, unseeded = _under_main_names(resolved.shown), _under_main_names(resolved.unseeded)
    record = _record(dataclasses.asdict(settings), shown)
    return Recipe(settings, record, faults.source, components, _where_equal(record, shown, unseeded))


def _write_out_presets(algorithms: Any, faults: Faults) -> None:
    """Put the values of ``preset: same_data`` in its place."""
    # What the recipe writes beside it wins over the preset.
    for name, section in algorithms.items() if isinstance(algorithms, dict) else ():
        if not isinstance(section, dict) or "preset" not in section:
            continue
        path, situation, listed = f"algorithms.{name}.preset", section.pop("preset"), find("algorithm", name)
        offered = [one for one, settings in PRESETS.items() if listed is not None and listed.name in settings]
        if listed is None:
            continue  # the name is the fault, and is noted where names are looked up
        if situation not in offered:
            here = nearest(situation, offered) if isinstance(situation, str) and offered else ""
            faults.add(path, f"there is no preset {situation!r} of {listed.name}.{here}")
            continue
        # The record holds the values: a run stays what it was when a later version changes the preset.
        values = preset(situation)[listed.name]
        merge_sections(values, section)
        algorithms[name] = values


def _fill_defaults(raw: dict[str, Any]) -> None:
    """Put defaults where nothing was written, so that ``${...}`` can refer to them."""
    for field in dataclasses.fields(Settings):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if isinstance(default, dict) and raw.get(field.name) is None:
            raw[field.name] = {}  # a section whose lines are all commented out
        elif default != MISSING and not dataclasses.is_dataclass(default):
            raw.setdefault(field.name, default)
    for section, cls in (("data", DataConfig), ("model", ModelConfig)):
        if raw.get(section) is None:
            raw[section] = {}
        values = raw[section]
        if isinstance(values, dict):
            for key, value in dataclasses.asdict(cls()).items():
                if (section, key) != ("model", "name"):  # the one key of the two that has to be written
                    values.setdefault(key, value)
    model, tags = raw["model"], raw["tags"]
    if raw["run_name"] is None and isinstance(model, dict) and "name" in model:
        method = "${tags.method}-" if isinstance(tags, dict) and "method" in tags else ""
        raw["run_name"] = "${data.name}-${model.name}-" + method + "${seed}"


def _check_data(values: Any, faults: Faults) -> DataConfig:
    # A section with faults is still built from what is right in it, to find the faults between fields as well.
    config = DataConfig(**fit_fields(values, DataConfig, "data", faults))
    try:
        config.check()
    except DataError as error:
        for line in str(error).splitlines():
            # Each line begins with the path of its own field.
            faults.add("", line.removesuffix("."))
    return config


def _check_model(values: Any, faults: Faults) -> ModelConfig:
    config = ModelConfig(**fit_fields(values, ModelConfig, "model", faults))
    name = values.get("name", MISSING) if isinstance(values, dict) else config.name
    if name == MISSING:
        faults.add("model.name", "missing. Write for example model: {name: resnet20}")
    elif name is not BROKEN and config.name not in model_names():
        faults.add("model.name", f"there is no model {config.name!r}.{nearest(config.name, model_names())}")
    return config


def _check_archive_unneeded(components: Mapping[str, list[Component]], faults: Faults) -> None:
    everything = [component for found in components.values() for component in found]
    needing = [one.path for one in everything if one.is_ours and "archive" in one.parameters]
    if needing:
        verb = "needs" if len(needing) == 1 else "need"
        faults.add("archive", f"missing. {' and '.join(needing)} {verb} it. Write for example archive: ./archive")


def _fit_components(
    kind: Kind, path: str, section: dict[str, Any], faults: Faults
) -> tuple[list[Component], dict[str, dict[str, Any]]]:
    """Check a ``{name: {option: ...}, ...}`` section.

    Returns:
        The components with fitted options, and the options as they are written, under main names. Both are without
        what is switched off.
    """
    found: list[Component] = []
    written: dict[str, dict[str, Any]] = {}
    for name, options in section.items():
        here = join(path, name)
        listed = find(kind, name)
        if listed is None:
            faults.add(here, f"there is no {kind} {name!r}.{nearest(name, names(kind))}")
            continue
        # A fault that was noted is not noted twice; false switches an entry off.
        if options is BROKEN or options is False:
            continue
        if options is None or options is True:
            options = {}
        if not isinstance(options, dict):
            faults.add(here, f"must be a section of options, true or false, not {options!r}")
            continue
        # Two names of one class would be two algorithms that undo each other.
        if listed.name in written:
            faults.add(here, f"is another name of {join(path, listed.name)}, which is there too. Keep one")
            continue
        written[listed.name] = options
        fitted = fit_options(listed.cls, options, here, faults, reserved=listed.reserved)
        component = Component(join(path, listed.name), listed.name, listed.cls, fitted)
        if component.is_ours:
            _check_ours(options, here, faults)
        found.append(component)
    return found, written


def _check_ours(options: dict[str, Any], path: str, faults: Faults) -> None:
    """Look inside two options of this library's own classes: a query for prior runs, and the signals to record."""
    if isinstance(runs := options.get("runs"), dict):
        try:
            split_if_empty(runs)
        except ValueError as error:
            faults.add(join(path, "runs.if_empty"), str(error).removeprefix("runs: if_empty "))
        # Checked against the method that will be called with it, so that the two cannot drift apart.
        query = {key: value for key, value in runs.items() if key != "if_empty"}
        fit_options(RunArchive.runs, query, join(path, "runs"), faults, reserved={"self"})
    if isinstance(signals := options.get("signals"), dict):
        try:
            parse_signals(signals)
        except (ValueError, TypeError) as error:
            faults.add(join(path, "signals"), str(error))


def _under_main_names(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of algorithms, callbacks and loggers, each entry under its main name."""
    renamed = dict(shown)
    for kind, path in _COMPONENTS:
        if isinstance(section := shown.get(path), dict):
            renamed[path] = {
                (listed.name if (listed := find(kind, name)) is not None else name): options
                for name, options in section.items()
                if options is not False
            }
    return renamed


def _record(value: Any, shown: Any) -> Any:
    """Return ``value``, with texts as they are in ``shown`` where that has one in the same place."""
    if isinstance(value, dict):
        inner = shown if isinstance(shown, dict) else {}
        return {key: _record(child, inner.get(key)) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        inner = shown if isinstance(shown, list) and len(shown) == len(value) else [None] * len(value)
        return [_record(child, other) for child, other in zip(value, inner, strict=True)]
    # Numbers and truth values of the environment are shown: only texts are taken for secrets.
    return shown if isinstance(value, str) and isinstance(shown, str) else value


def _where_equal(value: Any, shown: Any, unseeded: Any) -> Any:
    """Return ``value`` where ``shown`` and ``unseeded`` are the same, else what ``unseeded`` has there."""
    if isinstance(value, dict) and isinstance(shown, dict) and isinstance(unseeded, dict):
        return {key: _where_equal(child, shown.get(key), unseeded.get(key)) for key, child in value.items()}
    lists = all(isinstance(one, list) for one in (value, shown, unseeded))
    if lists and len(value) == len(shown) == len(unseeded):
        return [_where_equal(*children) for children in zip(value, shown, unseeded, strict=True)]
    if shown == unseeded:
        return value
    return SEED if unseeded is BROKEN else unseeded
