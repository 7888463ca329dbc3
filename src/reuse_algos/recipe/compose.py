"""From a YAML file and overrides to a checked recipe, or to one error that lists all faults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks.signal_capture import parse_signals
from reuse_algos.data.datasets import DataConfig
from reuse_algos.errors import DataError, nearest
from reuse_algos.models import ModelConfig, model_names
from reuse_algos.recipe.faults import Faults, join
from reuse_algos.recipe.fitting import fit_fields, fit_named, fit_options
from reuse_algos.recipe.interpolation import BROKEN, resolve
from reuse_algos.recipe.registry import Kind, find, names
from reuse_algos.recipe.schema import Settings, check_settings
from reuse_algos.recipe.source import apply_overrides, parse_yaml, read_text

__all__ = ["Recipe", "compose_recipe", "load_recipe", "under_main_names"]

_COMPONENTS: tuple[tuple[Kind, str], ...] = (
    ("algorithm", "algorithms"),
    ("callback", "callbacks"),
    ("logger", "loggers"),
)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose names, options and types are known to be right.

    Attributes:
        settings: the values.
        record: the same as plain JSON-able data, to print and to archive. Texts that come from the environment stand
            there as ``${oc.env:NAME}``, because they may be secrets.
        source: where it was read.
        written: the values as they were written, with overrides and defaults, before ``${...}`` was resolved.
    """

    settings: Settings
    record: dict[str, Any]
    source: str
    written: dict[str, Any]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` texts, values in YAML; later ones win. A mapping as the value replaces the
            section that was there.

    Raises:
        RecipeError: with all faults, one per line: ``path.to.key: what is wrong``.
    """
    faults = Faults(str(path))
    text = read_text(path, faults)
    raw = parse_yaml(text, faults) if text is not None else None
    if raw is None:
        faults.raise_if_any()
    return _compose({} if raw is None else raw, overrides, faults)


def compose_recipe(values: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str = "recipe") -> Recipe:
    """The same for values that are in memory.

    Raises:
        RecipeError: as :func:`load_recipe`.
    """
    return _compose(_copied(values), overrides, Faults(source))


def _compose(raw: Any, overrides: Iterable[str], faults: Faults) -> Recipe:
    if not isinstance(raw, dict):
        faults.add("", "a recipe must be a mapping of keys, such as max_duration: 40ep")
        faults.raise_if_any()
    apply_overrides(raw, overrides, faults)
    derived = {"run_name"} if raw.get("run_name") is None else set()
    _fill_defaults(raw)
    resolved = resolve(raw, faults, derived=derived)
    top = {key: value for key, value in resolved.values.items() if key not in ("data", "model")}
    settings = Settings(**fit_fields(top, Settings, "", faults))
    settings.data = _check_data(resolved.values["data"], faults)
    settings.model = _check_model(resolved.values["model"], faults)
    check_settings(settings, faults)
    if "max_duration" not in resolved.values:
        faults.add("max_duration", "missing. Write for example max_duration: 40ep")
    if isinstance(resolved.values["optimizer"], dict):
        fit_named("optimizer", settings.optimizer, "optimizer", faults)
    if settings.scheduler is not None:
        fit_named("scheduler", settings.scheduler, "scheduler", faults)
    for kind, path in _COMPONENTS:
        checked = _check_components(kind, path, getattr(settings, path), faults)
        setattr(settings, path, checked)
    if resolved.values["archive"] is None:
        _check_archive_unneeded(settings, faults)
    faults.raise_if_any()
    record = _record(dataclasses.asdict(settings), under_main_names(resolved.shown))
    return Recipe(settings, record, faults.source, raw)


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
    config = DataConfig(**fit_fields(values, DataConfig, "data", faults))
    try:
        config.check()
    except DataError as error:
        for line in str(error).splitlines():
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


def _check_archive_unneeded(settings: Settings, faults: Faults) -> None:
    needing = []
    for kind, path in _COMPONENTS:
        for name in getattr(settings, path):
            listed = find(kind, name)
            if listed and "archive" in listed.reserved and "archive" in inspect.signature(listed.cls).parameters:
                needing.append(join(path, name))
    if needing:
        verb = "needs" if len(needing) == 1 else "need"
        faults.add("archive", f"missing. {' and '.join(needing)} {verb} it. Write for example archive: ./archive")


def _check_components(kind: Kind, path: str, section: dict[str, Any], faults: Faults) -> dict[str, dict[str, Any]]:
    """Check a ``{name: {option: ...}, ...}`` section; the same under main names, without what is switched off."""
    checked: dict[str, dict[str, Any]] = {}
    for name, options in section.items():
        here = join(path, name)
        listed = find(kind, name)
        if listed is None:
            faults.add(here, f"there is no {kind} {name!r}.{nearest(name, names(kind))}")
            continue
        if options is BROKEN or options is False:
            continue
        if options is None or options is True:
            options = {}
        if not isinstance(options, dict):
            faults.add(here, f"must be a section of options, true or false, not {options!r}")
            continue
        if listed.name in checked:
            faults.add(here, f"is another name of {join(path, listed.name)}, which is there too. Keep one")
            continue
        checked[listed.name] = options
        fit_options(listed.cls, options, here, faults, reserved=listed.reserved)
        if listed.cls.__module__.startswith("reuse_algos."):
            _check_ours(options, here, faults)
    return checked


def _check_ours(options: dict[str, Any], path: str, faults: Faults) -> None:
    """Look inside two options of this library's own classes: a query for prior runs, and the signals to record."""
    if isinstance(runs := options.get("runs"), dict):
        fit_options(RunArchive.runs, runs, join(path, "runs"), faults, reserved={"self"})
    if isinstance(signals := options.get("signals"), dict):
        try:
            parse_signals(signals)
        except (ValueError, TypeError) as error:
            faults.add(join(path, "signals"), str(error))


def under_main_names(shown: dict[str, Any]) -> dict[str, Any]:
    """The sections of algorithms, callbacks and loggers with each entry under the name that the settings have it by."""
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
    """``value``, with texts as they are in ``shown`` where that has one in the same place."""
    if isinstance(value, dict):
        inner = shown if isinstance(shown, dict) else {}
        return {key: _record(child, inner.get(key)) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        inner = shown if isinstance(shown, list) and len(shown) == len(value) else [None] * len(value)
        return [_record(child, other) for child, other in zip(value, inner, strict=True)]
    return shown if isinstance(value, str) and isinstance(shown, str) else value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copied(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(child) for child in value]
    return value
