"""Sections of settings: a frozen dataclass, or the mapping that YAML gives for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from reuse_algos.errors import nearest

__all__ = ["section"]

T = TypeVar("T")


def section(cls: type[T], value: T | Mapping[str, Any] | None, where: str) -> T:
    """Return ``value`` as an object of the dataclass ``cls``.

    Args:
        cls: A dataclass whose fields all have defaults.
        value: An object of it, a mapping of its fields, or None for the defaults.
        where: What to call the section in errors, such as ``RunRecorder keys``.

    Raises:
        ValueError: A key is not a field, a value is refused by ``cls``, or ``value`` is of another kind.
    """
    if isinstance(value, cls):
        return value
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a section of settings, not {value!r}")
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in value or {}:
        if key not in fields:
            raise ValueError(f"{where}: there is no setting {key!r}.{nearest(str(key), fields)}")
    try:
        return cls(**(value or {}))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
