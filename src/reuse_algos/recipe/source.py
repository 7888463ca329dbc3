"""From YAML text and ``key=value`` overrides to one plain mapping.

YAML is read by the rules of YAML 1.2 (``no`` is text, ``1e-4`` is a number) and without any tag that builds something
other than text, numbers, booleans, null, lists and mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from reuse_algos.errors import RecipeError, nearest
from reuse_algos.sections import Faults, join

_MAX_NODES = 100_000
_OWN_OPTIONS = ("optimizer", "scheduler")  # what they take depends on their name, unlike in data and model
_NAMED = {"algorithms", "callbacks", "loggers"}
# An entry without a value has its defaults; over options it reads as if it took the entry out.
_NULL = "null over an entry with options: write false to leave it out, or {} and its options to set them again"
_SEGMENT = re.compile(r"[^\s.=]+")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar rules of YAML 1.2 instead of 1.1."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  # PyYAML's own class attribute, filled below


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), list(_first))


def read_text(path: str | Path, faults: Faults) -> str | None:
    """Return the text of a recipe file; a file that cannot be read is a fault (and None)."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        neighbours = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        faults.add("", "there is no such file." + nearest(str(path), neighbours))
    except UnicodeDecodeError as error:
        faults.add("", f"is not UTF-8 text ({error.reason} at byte {error.start})")
    except OSError as error:
        faults.add("", f"cannot be read: {error.strerror}")
    return None


def parse_yaml(text: str, faults: Faults) -> Any:
    """Return the plain value of a YAML text, None for an empty one and for one that cannot be used at all.

    Duplicate keys, keys that are not text, foreign tags and anchors that contain themselves are faults.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        inspection = _Inspection(faults)
        size = inspection.visit(node, "")
        # A few nested anchors can stand for billions of values.
        if size > _MAX_NODES:
            faults.add("", f"has more than {_MAX_NODES} values once its anchors are written out")
        elif not inspection.unusable:
            return copied(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        faults.add("", f"{where}not valid YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError) as error:
        faults.add("", f"not valid YAML: {' '.join(str(error).split())}")
    except RecursionError:
        faults.add("", "not valid YAML: nested too deeply")
    finally:
        if loader is not None:
            loader.dispose()
    return None


class _Inspection:
    """A walk over YAML nodes, before anything is built from them."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.unusable = False
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def visit(self, node: yaml.Node, path: str) -> int:
        """Note what is wrong below ``node``, and return how many values it stands for with its anchors written out."""
        # An alias is the same node: it is checked once, and counts as many values each time.
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        if id(node) in self._open:
            self._refuse(path, "an anchor that contains itself")
            return 0
        # Tags could build objects of any class.
        if node.tag not in _PLAIN_TAGS:
            self._refuse(path, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed. Write plain values")
            return 0
        # Nodes on the way down: to meet one of them again means an anchor inside itself.
        self._open.add(id(node))
        size = 1
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TAG + "str", _TAG + "merge"):
                    shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    self._refuse(path, f"the key on line {line} ({shown}) is not text. Put it in quotes")
                    continue
                if key.value in lines:
                    both = f"lines {lines[key.value]} and {line}" if lines[key.value] != line else f"line {line}"
                    self.faults.add(join(path, key.value), f"given twice ({both}). Keep one")
                lines[key.value] = line
                size += self.visit(value, path if key.tag == _TAG + "merge" else join(path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            size += sum(self.visit(child, join(path, index)) for index, child in enumerate(node.value))
        self._open.discard(id(node))
        self._sizes[id(node)] = size
        return size

    def _refuse(self, path: str, what: str) -> None:
        self.faults.add(path, what)
        self.unusable = True


def copied(value: Any) -> Any:
    """Return a copy in plain mappings and lists, in which two aliases of an anchor are two objects."""
    if isinstance(value, Mapping):
        return {str(key): copied(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(child) for child in value]
    return value


def apply_overrides(values: dict[str, Any], overrides: Iterable[str], faults: Faults) -> None:
    """Set ``dotted.path=value`` pairs in place; the values are YAML, and a mapping replaces what was there.

    Sections on the way are made where they are missing. A malformed override is a fault.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(_SEGMENT.fullmatch(key) for key in keys):
            faults.add(repr(override), "is not a key=value override. Write for example optimizer.lr=0.05")
            continue
        own = Faults(faults.source)
        value = parse_yaml(text, own)
        for line in own:
            faults.add(repr(override), f"the value is wrong: {line}")
        if not len(own):
            _set(values, keys, value, override, faults)


def leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of all that is not a section, or is an empty one."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, join(path, key))
        else:
            yield join(path, key), value


def merge_sections(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Write sections of a recipe over those of ``values``, in place, key by key.

    An ``optimizer`` or ``scheduler`` of another ``name`` takes the old one's place: it has options of its own.

    Raises:
        RecipeError: An algorithm, callback or logger with options becomes null.
    """
    for path in sorted(_NAMED & overrides.keys()):
        for name, value in (overrides[path] or {}).items() if isinstance(overrides[path], Mapping) else ():
            if value is None and _has_options(values.get(path), name):
                raise RecipeError(f"{join(path, name)}: {_NULL}")
    for key, value in overrides.items():
        here = values.get(key)
        if key in _OWN_OPTIONS and isinstance(value, Mapping) and isinstance(here, dict):
            values[key] = here if value.get("name", here.get("name")) == here.get("name") else {}
    _merge(values, overrides)


def _has_options(section: Any, name: str) -> bool:
    return isinstance(section, Mapping) and isinstance(section.get(name), Mapping) and bool(section[name])


def _merge(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            here = values.get(key)
            values[key] = inner = dict(here) if isinstance(here, dict) else {}
            _merge(inner, value)
        else:
            values[key] = [*value] if isinstance(value, list) else value


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str, faults: Faults) -> None:
    here: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not (key.isascii() and key.isdigit() and int(key) < len(here)):
                where = ".".join(keys[:depth])
                faults.add(repr(override), f"{where} is a list of {len(here)}, and {key!r} is not a position in it")
                return
            place: Any = int(key)
        else:
            place = key
        if last:
            if value is None and depth == 1 and keys[0] in _NAMED and _has_options(values.get(keys[0]), key):
                faults.add(repr(override), _NULL)
                return
            here[place] = value
            return
        child = here[place] if isinstance(here, list) else here.get(place)
        if child is None or child is True:  # an algorithm that was switched on without options now gets some
            child = here[place] = {}
        if not isinstance(child, (dict, list)):
            faults.add(repr(override), f"{'.'.join(keys[: depth + 1])} is {child!r}, which has nothing inside it")
            return
        here = child
