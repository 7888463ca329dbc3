"""Sections: small frozen dataclasses of settings, written the same way in Python and in YAML.

Write one dataclass for each kind of a thing, and annotate the constructor's parameter with their union::

    @dataclass(frozen=True)
    class MSE:
        name: ClassVar[str] = "mse"  # how a recipe calls it
        weight: float = 1.0

    class PriorRunDistillation(Algorithm):
        def __init__(self, loss: MSE | KL | str = MSE()) -> None:
            self.loss: MSE | KL = fit_section(MSE | KL, loss, "loss")

Then ``MSE(weight=2.0)``, ``{"name": "mse", "weight": 2.0}`` and ``"mse"`` all give an ``MSE``. Recipes are checked
against the same annotations. The rules:

- In a union the class is chosen by its class-level ``name``. Where a class of the union has one, a text is always such
  a name, so ``str`` in the annotation means "the bare name". A class with ``beside_text: ClassVar[bool] = True`` stands
  beside other texts, which stay as they are: ``weights: Average | str`` takes ``average`` and ``last``.
- A single class needs no name: ``when: Window | None = None`` takes ``{stop: 0.5dur}``.
- A field without a default has to be given. Fields may be sections themselves, lists or mappings of them.
- Check ranges in ``__post_init__`` and raise ``ValueError``: the message is shown behind the section's path.
- ``None`` is accepted only where the annotation says so.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from composer.core import Time

from reuse_algos.errors import RecipeError, nearest

BROKEN: Any = object()
"""Stands where a value could not be resolved; its fault is noted, so nothing more is said about it."""

_UNION = (typing.Union, types.UnionType)
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, set, frozenset)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PLAIN = (str, bool, int, float, list, tuple, dict, types.NoneType)
_INT = re.compile(r"[-+]?[0-9]+")


class Named(typing.Protocol):
    """Builds objects that a recipe writes as ``{name: ..., option: ...}``, such as schedulers."""

    kind: str

    def __call__(self, section: Mapping[str, Any], path: str, faults: Faults) -> Any:
        """Return the object of a section; note faults, and return anything, where it is wrong."""


_Builders = Mapping[type, Named]


class _TimeInWords:
    """Annotation of what takes a Composer time or the text of one, but not a whole number."""


def join(path: str, key: object) -> str:
    """Return ``path.key``, or just the key where the path is empty."""
    return f"{path}.{key}" if path else str(key)


class Faults:
    """The faults of one recipe, raised together.

    Args:
        source: The recipe's file name, or another name by which its author knows it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def add(self, path: str, what: str) -> None:
        """Note that ``path`` (dotted, empty for the whole recipe) is wrong, and how."""
        line = f"{path}: {what}" if path else what
        if line not in self._lines:
            self._lines.append(line)

    def extend(self, other: Faults) -> None:
        """Take over the faults of ``other``."""
        for line in other:
            self.add("", line)

    def raise_if_any(self, what: str = "recipe") -> None:
        """Raise the faults that were noted, if there are any.

        Args:
            what: What is wrong, for the first line of the message. Default: ``recipe``.

        Raises:
            RecipeError: There are faults. The message has the source, their number and one line for each.
        """
        if self._lines:
            count = f"{len(self._lines)} error{'s' if len(self._lines) > 1 else ''}"
            raise RecipeError("\n  ".join([f"{self.source}: {count} in the {what}", *self._lines]))


def fit_section(kinds: Any, value: Any, where: str) -> Any:
    """Return the dataclass that a value stands for; the module's docstring has the rules.

    Args:
        kinds: A dataclass or a union of dataclasses, such as ``MSE | KL`` or ``Window | None``.
        value: One of the dataclasses, a mapping of its fields, or the bare name of one.
        where: What the value is called, for messages: the parameter's name.

    Raises:
        RecipeError: The value does not fit. The message lists all faults, one per line.
    """
    faults = Faults(where)
    fitted = fit(value, kinds, where, faults)
    if len(faults):
        raise RecipeError("\n".join(faults))
    return fitted


def fit(value: Any, hint: Any, path: str, faults: Faults, builders: _Builders = types.MappingProxyType({})) -> Any:
    """Return the value as its annotation says; where it does not fit, note a fault and return it unchanged.

    Numbers in texts become numbers (the environment only has texts), numbers become text where only text will do,
    lists become tuples, names of enum members become members, and mappings become the dataclasses of the annotation.

    Args:
        value: A plain value, or an object of the annotated class already.
        hint: The annotation, evaluated.
        path: Dotted path of the value, for messages.
        faults: Where to note what does not fit.
        builders: Class in an annotation -> what builds its objects from a section. Default: none.
    """
    members = _members(hint, builders)
    if value is BROKEN or members is None or _is_instance(value, hint):
        return value
    sections = [member for member in members if _is_section(member)]
    named = {name: member for member in sections if (name := _name_of(member)) is not None}
    free_text = any(getattr(member, "beside_text", False) for member in sections)
    # A bare name is short for a section of defaults; where text is allowed, only a known name is taken for one.
    if named and isinstance(value, str) and (value in named or not free_text):
        value = {"name": value}
    if sections and isinstance(value, Mapping):
        return _fit_section(value, sections, named, path, faults, builders)
    if named and not free_text:
        members = [member for member in members if member is not str]
    attempts: list[Faults] = []
    # Kinds that take the value as it is come first: "3" stays text where text is allowed.
    for exact in (True, False):
        for member in members:
            own = Faults(faults.source)
            fitted, suits = _fit_one(value, member, path, own, exact, builders)
            if suits and not len(own):
                return fitted
            if suits:
                attempts.append(own)
    if attempts:
        # The faults inside of the first kind that the value suits; of the others they would only add noise.
        faults.extend(attempts[0])
    elif not is_settable(hint, builders):
        faults.add(path, "cannot be set in a recipe")
    else:
        wanted = [f"one of {', '.join(sorted(named))}"] if named else []
        wanted += [_describe(member, builders) for member in members]
        faults.add(path, f"must be {' or '.join(dict.fromkeys(wanted))}, not {_shown(value)}")
    return value


def fit_fields(values: Any, cls: type, path: str, faults: Faults, builders: _Builders | None = None) -> dict[str, Any]:
    """Check a section against the fields of a dataclass; return those that were given and are sound, fitted."""
    if not isinstance(values, Mapping):
        if values is not BROKEN:
            faults.add(path, f"must be a section of keys, not {_shown(values)}")
        return {}
    hints = hints_of(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init and field.metadata.get("written", True)}
    fitted = {}
    for key, value in values.items():
        if key not in known:
            faults.add(join(path, key), f"there is no such key.{nearest(str(key), known)}")
        else:
            # Only fields without a fault are built with: a wrong one would be reported twice, in other words.
            before = len(faults)
            suited = fit(value, hints.get(key, Any), join(path, key), faults, builders or {})
            if suited is not BROKEN and len(faults) == before:
                fitted[key] = suited
    return fitted


@functools.cache  # a sequence checks the same few classes for each of its steps
def hints_of(target: Any) -> Mapping[str, Any]:
    """Return the type hints of a dataclass, a class's constructor or a function.

    Hints that cannot be evaluated are left out, one by one: Composer imports some types for type checkers only.
    """
    holders: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if _is_section(target):
        for cls in reversed(target.__mro__):
            holders.append((inspect.get_annotations(cls), vars(sys.modules[cls.__module__])))
    else:
        function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
        holders.append((getattr(function, "__annotations__", {}), getattr(function, "__globals__", {})))
    hints = {}
    for written, known in holders:
        for name, annotation in written.items():
            holder = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                hints.update(typing.get_type_hints(holder, globalns=known))
            except (NameError, TypeError, AttributeError, SyntaxError):
                continue
    return types.MappingProxyType(hints)


def is_settable(hint: Any, builders: _Builders = types.MappingProxyType({})) -> bool:
    """Return whether a recipe can write something other than null for an annotation."""
    members = _members(hint, builders)
    return members is None or bool(set(members) - {type(None)})


def _fit_section(
    value: Mapping[str, Any],
    sections: list[type],
    named: dict[str, type],
    path: str,
    faults: Faults,
    builders: _Builders,
) -> Any:
    """Build the dataclass that a mapping describes; the mapping itself where it is wrong."""
    values, cls = dict(value), sections[0]
    if named:
        name = values.pop("name", next(iter(named)) if len(sections) == 1 else None)
        if name is BROKEN:
            return value
        if name is None:
            faults.add(join(path, "name"), f"missing. It is one of {', '.join(sorted(named))}")
            return value
        if not isinstance(name, str) or name not in named:
            faults.add(join(path, "name"), f"there is no {name!r}.{nearest(str(name), named)}")
            return value
        cls = named[name]
    fitted = fit_fields(values, cls, path, faults, builders)
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]
    for key in missing:
        faults.add(join(path, key), "missing")
    # The faults of the fields are noted; building would name them a second time.
    if missing or fitted.keys() != values.keys():
        return value
    try:
        return cls(**fitted)
    except (ValueError, TypeError) as error:
        faults.add(path, str(error))
        return value


def _is_section(hint: Any) -> bool:
    return inspect.isclass(hint) and dataclasses.is_dataclass(hint)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _name_of(cls: type) -> str | None:
    """Return the class-level name of a section; a field that is called ``name`` is a setting like any other."""
    name = getattr(cls, "name", None)
    is_field = any(field.name == "name" for field in dataclasses.fields(cls))
    return name if isinstance(name, str) and not is_field else None


def _is_instance(value: Any, hint: Any) -> bool:
    """Return whether Python code passes an object of the annotated class; YAML has plain values only."""
    classes = typing.get_args(hint) if typing.get_origin(hint) in _UNION else (hint,)
    return type(value) not in _PLAIN and any(
        isinstance(value, cls) for cls in classes if inspect.isclass(cls) and not getattr(cls, "_is_protocol", False)
    )


def _members(hint: Any, builders: _Builders) -> list[Any] | None:
    """Return the alternatives of an annotation that a recipe can write; None for one that does not say."""
    if hint is None or hint in (Any, inspect.Parameter.empty, object) or isinstance(hint, (str, typing.TypeVar)):
        return None
    if typing.get_origin(hint) in _UNION:
        members: list[Any] = []
        for argument in typing.get_args(hint):
            inner = _members(argument, builders)
            if inner is None:
                return None
            members += [member for member in inner if member not in members]
        if Time in members:
            # Where a whole number is not taken, one is written as the epochs that it means elsewhere.
            time = Time if int in members else _TimeInWords
            members = [time if member is Time else member for member in members if member not in (str, int)]
        return members
    origin = typing.get_origin(hint) or hint
    writable = origin in (typing.Literal, Time, *_PLAIN, *_LISTS, *_DICTS) or origin in builders
    writable = writable or _is_a(origin, Enum) or _is_a(origin, pathlib.PurePath) or _is_section(origin)
    return [hint] if writable else []


def _is_a(hint: Any, base: type) -> bool:
    return inspect.isclass(hint) and issubclass(hint, base)


def _fit_one(value: Any, hint: Any, path: str, faults: Faults, exact: bool, builders: _Builders) -> tuple[Any, bool]:
    """Return the fitted value, and whether the value is of this kind; note faults inside lists and sections."""
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        # True equals 1 in Python, and a Literal of numbers must not take it.
        return value, any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is type(None):
        return value, value is None
    if origin in (Time, _TimeInWords):
        return (f"{value}ep" if origin is _TimeInWords and type(value) is int else value), _is_time(value)
    if origin in (bool, int, float, str) or _is_a(origin, pathlib.PurePath):
        return _fit_scalar(value, origin if origin in (bool, int, float) else str, exact)
    if _is_a(origin, Enum):
        text = value.lower() if isinstance(value, str) else None
        # By name or value, as Composer's own enums are written both ways.
        found = [member for member in origin if text in (member.name.lower(), str(member.value).lower())]
        return (found[0], True) if found else (value, False)
    if origin is tuple or origin in _LISTS:
        if not isinstance(value, (list, tuple)):
            return value, False
        inner = arguments[:1] or (Any,)
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            inner = arguments
            if len(inner) != len(value):
                return value, False
        hints = inner if len(inner) == len(value) else inner * len(value)
        fitted = [fit(item, hints[i], join(path, i), faults, builders) for i, item in enumerate(value)]
        return (tuple(fitted) if origin is tuple else fitted), True
    if not isinstance(value, Mapping) or _is_section(origin):
        return value, False
    if origin in builders:
        return builders[origin](value, path, faults), True
    inner = arguments[1] if len(arguments) == 2 else Any
    return {key: fit(item, inner, join(path, key), faults, builders) for key, item in value.items()}, True


def _fit_scalar(value: Any, kind: type, exact: bool) -> tuple[Any, bool]:
    if type(value) is kind:
        return value, True
    if not isinstance(value, bool):  # from Python, a number may be NumPy's
        if kind is float and isinstance(value, numbers.Real):
            return float(value), True
        if kind is int and isinstance(value, numbers.Integral):
            return int(value), True
    if exact or isinstance(value, (Mapping, list)) or value is None:
        return value, False
    if kind is str:
        # As YAML writes them, not as Python does.
        return (str(value).lower() if isinstance(value, bool) else str(value)), True
    if kind is int:
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            return int(value), True
        return (int(value), True) if isinstance(value, str) and _INT.fullmatch(value) else (value, False)
    if kind is float and isinstance(value, str):
        try:
            return float(value), True
        except ValueError:
            return value, False
    if kind is bool and value in ("true", "false"):
        return value == "true", True
    return value, False


def _is_time(value: Any) -> bool:
    if isinstance(value, str):
        try:
            Time.from_timestring(value)
        except (ValueError, TypeError, AttributeError):
            return False
        return True
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(hint: Any, builders: _Builders) -> str:
    origin: Any = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values"
    if origin in _LISTS or origin is tuple:
        return "a list"
    if _is_a(origin, Enum):
        return "one of " + ", ".join(repr(str(member.value)) for member in typing.cast(type[Enum], hint))
    if origin in builders:
        return f"a section with the name of a {builders[origin].kind}"
    texts: dict[Any, str] = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number"}
    texts |= {str: "text", **dict.fromkeys((Time, _TimeInWords), "a time such as 1ep, 100ba or 0.5dur")}
    return texts.get(origin, "text" if _is_a(origin, pathlib.PurePath) else "a section of keys")


def _shown(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return "a section" if isinstance(value, Mapping) else "a list"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
