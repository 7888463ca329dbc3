"""``${other.key}`` and ``${oc.env:NAME}`` in recipes, resolved by OmegaConf.

Only OmegaConf's own environment and decoding resolvers are allowed, so that a recipe means the same in every process
and runs no code. What comes from the environment may be a secret: :attr:`Resolved.shown` keeps the reference instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from reuse_algos.sections import BROKEN, Faults, join

_INTERPOLATION = re.compile(r"(\\*)\$\{")
_REFERS = re.compile(r"\$\{|^\?\?\?$")  # to another key, or to nothing: ??? is OmegaConf's mark of a missing value
_ALLOWED = ("oc.env", "oc.decode", "oc.select")


SEED = "<seed>"


@dataclass(frozen=True)
class Resolved:
    """The values of a recipe, and what is shown of them.

    Attributes:
        values: The values.
        shown: The same with references to the environment left as they were written.
        unseeded: The same as ``shown`` would be if the recipe's seed were the text ``<seed>``.
    """

    values: dict[str, Any]
    shown: dict[str, Any]
    unseeded: dict[str, Any]


def resolve(raw: dict[str, Any], faults: Faults, *, derived: Collection[str] = ()) -> Resolved:
    """Replace all interpolations; those that cannot be resolved are faults and become ``BROKEN``.

    Args:
        raw: The recipe as it was written.
        faults: Where to note what cannot be resolved.
        derived: Top keys that the author did not write: what they are made from has the fault, not they. Default: none.
    """
    checked = _checked(raw, "", faults)
    escaped = _env_escaped(checked)
    config = OmegaConf.create(checked, flags={"allow_objects": True})
    # What cannot be resolved is noted with the values, and once is enough.
    quiet = Faults(faults.source)
    values = {
        str(key): _item(config, key, child, str(key), quiet if key in derived else faults)
        for key, child in checked.items()
    }
    if escaped == checked:  # nothing refers to the environment
        shown = _plain(config, checked, "", quiet)
    else:
        # The same recipe once more, with references to the environment escaped: these stay texts while all others are
        # resolved.
        config = OmegaConf.create(escaped, flags={"allow_objects": True})
        shown = _plain(config, escaped, "", quiet)
    # Whatever refers to the seed now holds this mark, so two recipes that differ in the seed alone look alike.
    config["seed"] = escaped["seed"] = SEED
    return Resolved(values, shown, _plain(config, escaped, "", quiet))


def _checked(value: Any, path: str, faults: Faults) -> Any:
    """Return the value with texts that OmegaConf cannot parse, or must not resolve, replaced by BROKEN."""
    if isinstance(value, dict):
        return {key: _checked(child, join(path, key), faults) for key, child in value.items()}
    if isinstance(value, list):
        return [_checked(child, join(path, index), faults) for index, child in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        OmegaConf.create({"value": value})
        names = [name for name, _ in _resolvers(value)]
    except GrammarParseError:
        faults.add(path, f"{value!r} is not a well-formed ${{...}}. Write \\${{ for a plain ${{")
        return BROKEN
    for name in names:
        if name not in _ALLOWED:
            what = "a computed name" if "$" in name else repr(name)
            faults.add(path, f"{what} cannot be used in ${{...}}. Allowed are other keys and {', '.join(_ALLOWED)}")
            return BROKEN
    return value


def _resolvers(text: str) -> Iterator[tuple[str, str]]:
    """Yield the resolvers that OmegaConf will call for a text: name and whole call."""
    # By OmegaConf's own grammar: a regular expression would miss nested and escaped calls.
    waiting = [parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext) and (name := node.resolverName()):
            yield name.getText(), node.getText()
        waiting += list(getattr(node, "getChildren", tuple)())


def _shows_environment(text: str) -> bool:
    # oc.decode resolves what the text that it is given holds, so an escaped or composed ${oc.env:...} counts too.
    calls = _resolvers(text)
    return any(name == "oc.env" or (name == "oc.decode" and "$" in call[1:]) for name, call in calls)


def _env_escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _env_escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_env_escaped(child) for child in value]
    if isinstance(value, str) and "${" in value and _shows_environment(value):
        # Backslashes in front are doubled: OmegaConf takes one of each pair away.
        return _INTERPOLATION.sub(lambda found: found[1] * 2 + "\\${", value)
    return value


def _plain(config: DictConfig | ListConfig, written: Any, path: str, faults: Faults) -> Any:
    if isinstance(written, dict):
        return {str(key): _item(config, key, child, join(path, key), faults) for key, child in written.items()}
    return [_item(config, index, child, join(path, index), faults) for index, child in enumerate(written)]


def _item(config: DictConfig | ListConfig, key: Any, written: Any, path: str, faults: Faults) -> Any:
    """Return what ``written`` at ``key`` of its section ``config`` stands for."""
    # Most values stand for themselves, and OmegaConf takes a while over each that it is asked for.
    if written is None or isinstance(written, (bool, int, float)):
        return written
    if isinstance(written, str) and not _REFERS.search(written):
        return written
    try:
        value = config[key]
        if isinstance(value, (DictConfig, ListConfig)):
            # A reference to a whole section: its values are resolved where they stand, not where they are referred
            # to.
            if not isinstance(written, (dict, list, tuple)):
                return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            return _plain(value, written, path, faults)
        return value
    except OmegaConfBaseException as error:
        faults.add(path, _reason(error))
    except RecursionError:
        faults.add(path, "the ${...} refers to itself")
    return BROKEN


def _reason(error: OmegaConfBaseException) -> str:
    text = str(error).splitlines()[0]
    if missing := re.search(r"Interpolation key '(.*)' not found", text):
        return f"there is no key {missing[1]!r} for ${{{missing[1]}}} to take its value from"
    if missing := re.search(r"Environment variable '(.*)' not found", text):
        return f"the environment variable {missing[1]} is not set. Set it, or write ${{oc.env:{missing[1]},default}}"
    if "Missing mandatory value" in text:
        return "missing (the recipe has ??? here). Give it a value"
    if "Recursive" in text or "parent node" in text:
        return "the ${...} refers to itself"
    return f"cannot be resolved: {text}"
