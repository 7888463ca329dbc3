"""A recipe as people read it: YAML of all of it, or of what differs from the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from reuse_algos.recipe.schema import Settings


def yaml_text(record: Mapping[str, Any]) -> str:
    """Return a recipe as YAML that trains again, without a line break at the end.

    Args:
        record: As :class:`~reuse_algos.recipe.compose.Recipe` or a manifest has it.
    """
    return yaml.safe_dump(dict(record), sort_keys=False, allow_unicode=True, default_flow_style=False).rstrip()


def without_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults of a recipe; names are kept, as they say what the rest is about.

    Args:
        record: As :class:`~reuse_algos.recipe.compose.Recipe` or a manifest has it.
    """
    return _without(record, dataclasses.asdict(Settings()))


def _without(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        default = defaults.get(key, dataclasses.MISSING)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = _without(value, default), {}
        if value != default or key == "name":
            kept[key] = value
    return kept
