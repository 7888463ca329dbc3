"""Does a plain value fit a type annotation, and do the options of a section fit a constructor?

One set of rules serves the recipe's own dataclasses and the constructors of Composer, torch and this library, so that
all faults read alike. OmegaConf's own checks stop at the first fault and know nothing of constructors. An option
that is an object of a kind with names, such as a scheduler, is written as its section is: ``{name: linear, ...}``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any

from composer.core import Time
from composer.optim import ComposerScheduler

from reuse_algos.errors import nearest
from reuse_algos.recipe.faults import Faults, join
from reuse_algos.recipe.interpolation import BROKEN
from reuse_algos.recipe.registry import Kind, find, names

__all__ = ["fit", "fit_fields", "fit_named", "fit_options", "hints_of"]

_UNION = (typing.Union, getattr(types, "UnionType", typing.Union))
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection, set, frozenset)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_NAMED: dict[type, Kind] = {ComposerScheduler: "scheduler"}  # type: ignore[dict-item]  # a Protocol is a class
_EXAMPLES: dict[Kind, str] = {"optimizer": "{name: sgd, lr: 0.1}", "scheduler": "{name: cosine_annealing}"}
_INT = re.compile(r"[-+]?[0-9]+")


class _TimeInWords:
    """Annotation of what takes a Composer time or the text of one, and no whole number."""


def fit(value: Any, hint: Any, path: str, faults: Faults) -> Any:
    """The value as the annotation wants it; where it does not fit, a fault is noted and the value returned.

    Numbers in texts become numbers (the environment only has texts), numbers become text where only text will do,
    lists become tuples, and names of enum members become members.
    """
    if value is BROKEN:
        return value
    members = _members(hint)
    if members is None:
        return value
    attempts: list[tuple[Any, Faults]] = []
    for exact in (True, False):
        for member in members:
            own = Faults(faults.source)
            fitted, suits = _fit_one(value, member, path, own, exact)
            if suits and not len(own):
                return fitted
            if suits:
                attempts.append((member, own))
    if attempts:
        faults.extend(attempts[0][1])
        return value
    if not _settable(hint):
        faults.add(path, "cannot be set in a recipe")
    else:
        wanted = list(dict.fromkeys(_describe(member) for member in members))
        faults.add(path, f"must be {' or '.join(wanted)}, not {_shown(value)}")
    return value


def fit_fields(values: Any, cls: type, path: str, faults: Faults) -> dict[str, Any]:
    """Check a section against the fields of a dataclass; returns the fields that were given and are sound, fitted."""
    if not isinstance(values, dict):
        if values is not BROKEN:
            faults.add(path, f"must be a section of keys, not {_shown(values)}")
        return {}
    hints = hints_of(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    fitted = {}
    for key, value in values.items():
        if key not in known:
            faults.add(join(path, key), f"there is no such key.{nearest(key, known)}")
        else:
            before = len(faults)
            suited = fit(value, hints.get(key, Any), join(path, key), faults)
            if suited is not BROKEN and len(faults) == before:
                fitted[key] = suited
    return fitted


def fit_named(kind: Kind, section: Mapping[str, Any], path: str, faults: Faults) -> Callable[..., Any] | None:
    """Check a ``{name: ..., option: ...}`` section.

    Args:
        kind: which table its name is looked up in.
        section: the section.
        path: path of the section.
        faults: where a missing or unknown name and faulty options are noted.

    Returns:
        The class with the options bound to it; what the builder fills in is for the caller to pass. None where there is
        no such name.
    """
    name = section.get("name")
    if name is BROKEN:
        return None
    if name is not None and not isinstance(name, str):
        faults.add(join(path, "name"), f"must be text, not {name!r}")
        return None
    if name is None:
        key = path.rpartition(".")[2]
        faults.add(join(path, "name"), f"missing. Write for example {key}: {_EXAMPLES[kind]}")
        return None
    listed = find(kind, name)
    if listed is None:
        faults.add(join(path, "name"), f"there is no {kind} {name!r}.{nearest(name, names(kind))}")
        return None
    options = {key: value for key, value in section.items() if key != "name"}
    return functools.partial(listed.cls, **fit_options(listed.cls, options, path, faults, reserved=listed.reserved))


def fit_options(
    target: Callable[..., Any],
    options: Mapping[str, Any],
    path: str,
    faults: Faults,
    *,
    reserved: Collection[str] = (),
) -> dict[str, Any]:
    """Check the options of a section against the signature of a constructor or function.

    Args:
        target: what will be called with the options.
        options: option -> value.
        path: path of the section.
        faults: where unknown and missing options and wrong values are noted.
        reserved: parameters that the builder fills in, so a recipe cannot.

    Returns:
        The options as keyword arguments.
    """
    name = getattr(target, "__name__", str(target))
    parameters = list(inspect.signature(target).parameters.values())
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = bool(named) and any(p.kind == p.VAR_KEYWORD for p in parameters)
    hints = hints_of(target)
    offered = [key for key in named if key not in reserved and _settable(hints.get(key))]
    fitted = {}
    for key, value in options.items():
        if key in reserved:
            faults.add(join(path, key), "is filled in from the recipe and cannot be set here")
        elif key in named:
            fitted[key] = fit(value, hints.get(key, Any), join(path, key), faults)
        elif open_ended:
            fitted[key] = value
        else:
            hint = nearest(key, offered) if offered else " It takes no options."
            faults.add(join(path, key), f"{name} has no such option.{hint}")
    for key, parameter in named.items():
        required = parameter.default is parameter.empty or type(parameter.default).__name__ == "_RequiredParameter"
        if required and key not in reserved and key not in options:
            faults.add(join(path, key), f"missing. {name} needs it")
    return fitted


def hints_of(target: Any) -> dict[str, Any]:
    """Type hints of a dataclass, class constructor or function; those that cannot be evaluated are left out.

    Composer imports some types for type checkers only, and one such name must not hide the others.
    """
    if inspect.isclass(target) and dataclasses.is_dataclass(target):
        return typing.get_type_hints(target)
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    hints = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints.update(typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {})))
        except (NameError, TypeError, AttributeError, SyntaxError):
            continue
    return hints


def _members(hint: Any) -> list[Any] | None:
    """The alternatives of an annotation that a recipe can write; None for an annotation that says nothing."""
    if hint is None or hint in (Any, inspect.Parameter.empty, object) or isinstance(hint, (str, typing.TypeVar)):
        return None
    if typing.get_origin(hint) in _UNION:
        members: list[Any] = []
        for argument in typing.get_args(hint):
            inner = _members(argument)
            if inner is None:
                return None
            members += [member for member in inner if member not in members]
        if Time in members:
            # Where no whole number is taken, one is written as the epochs that it means elsewhere.
            time = Time if int in members else _TimeInWords
            members = [time if member is Time else member for member in members if member not in (str, int)]
        return members
    if _writable(hint):
        return [hint]
    return [type(None)] if hint is type(None) else []


def _settable(hint: Any) -> bool:
    members = _members(hint)
    return members is None or bool(set(members) - {type(None)})


def _writable(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal or origin in (bool, int, float, str, tuple, type(None), Time):
        return True
    if origin in _LISTS or origin in _DICTS or origin in _NAMED:
        return True
    return _is_enum(origin) or _is_path(origin) or (inspect.isclass(origin) and dataclasses.is_dataclass(origin))


def _is_enum(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Enum)


def _is_path(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, pathlib.PurePath)


def _fit_one(value: Any, hint: Any, path: str, faults: Faults, exact: bool) -> tuple[Any, bool]:
    """(fitted value, whether the value is of this kind at all); faults inside lists and sections are noted."""
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return value, any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is type(None):
        return value, value is None
    if origin is Time:
        return value, _is_time(value)
    if origin is _TimeInWords:
        return (f"{value}ep" if type(value) is int else value), _is_time(value)
    if origin in (bool, int, float, str) or _is_path(origin):
        return _fit_scalar(value, origin if origin in (bool, int, float) else str, exact)
    if _is_enum(origin):
        found = [
            m for m in origin if isinstance(value, str) and value.lower() in (m.name.lower(), str(m.value).lower())
        ]
        return (found[0], True) if found else (value, False)
    if origin is tuple:
        return _fit_tuple(value, arguments, path, faults)
    if origin in _LISTS:
        if not isinstance(value, (list, tuple)):
            return value, False
        inner = arguments[0] if arguments else Any
        return [fit(item, inner, join(path, index), faults) for index, item in enumerate(value)], True
    if not isinstance(value, dict):
        return value, False
    if origin in _NAMED:
        return _build_named(value, _NAMED[origin], path, faults), True
    if dataclasses.is_dataclass(origin):
        return fit_fields(value, typing.cast(type, origin), path, faults), True
    inner = arguments[1] if len(arguments) == 2 else Any
    return {key: fit(item, inner, join(path, key), faults) for key, item in value.items()}, True


def _build_named(value: dict[str, Any], kind: Kind, path: str, faults: Faults) -> Any:
    before = len(faults)
    build = fit_named(kind, value, path, faults)
    if build is None or len(faults) > before:
        return value
    try:
        return build()
    except (ValueError, TypeError) as error:
        faults.add(path, str(error))
        return value


def _fit_scalar(value: Any, kind: type, exact: bool) -> tuple[Any, bool]:
    if type(value) is kind:
        return value, True
    if kind is float and type(value) is int:
        return float(value), True
    if exact or isinstance(value, (dict, list)) or value is None:
        return value, False
    if kind is str:
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


def _fit_tuple(value: Any, arguments: tuple[Any, ...], path: str, faults: Faults) -> tuple[Any, bool]:
    if not isinstance(value, (list, tuple)):
        return value, False
    if not arguments or arguments[-1] is Ellipsis:
        arguments = (arguments[0] if arguments else Any,) * len(value)
    if len(value) != len(arguments):
        return value, False
    pairs = zip(value, arguments, strict=True)
    return tuple(fit(item, inner, join(path, index), faults) for index, (item, inner) in enumerate(pairs)), True


def _is_time(value: Any) -> bool:
    if isinstance(value, str):
        try:
            Time.from_timestring(value)
        except (ValueError, TypeError, AttributeError):
            return False
        return True
    return isinstance(value, int) and not isinstance(value, bool)


def _describe(hint: Any) -> str:
    origin: Any = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values"
    if origin in _LISTS or origin is tuple:
        return "a list"
    if _is_enum(origin):
        return "one of " + ", ".join(repr(str(member.value)) for member in typing.cast(type[Enum], hint))
    if origin in _NAMED:
        return f"a section with the name of a {_NAMED[origin]}"
    texts: dict[Any, str] = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number"}
    texts |= {str: "text", **dict.fromkeys((Time, _TimeInWords), "a time such as 1ep, 100ba or 0.5dur")}
    return texts.get(origin, "text" if _is_path(origin) else "a section of keys")


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a section" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
