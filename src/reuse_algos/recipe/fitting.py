"""Do the options of a section fit a constructor, and which class is it?

The constructors of Composer, torch and this library are checked by the rules of :mod:`reuse_algos.sections`, so that
all faults read alike. An option that is an object of a kind with names, such as a scheduler, is written as its section
is: ``{name: linear, ...}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from composer.optim import ComposerScheduler

from reuse_algos.errors import nearest
from reuse_algos.recipe.registry import Kind, find, names
from reuse_algos.sections import BROKEN, Faults, Named, fit, hints_of, is_settable, join

_EXAMPLES: dict[Kind, str] = {"optimizer": "{name: sgd, lr: 0.1}", "scheduler": "{name: cosine_annealing}"}


@dataclass(frozen=True)
class Component:
    """A class that a recipe names, with its checked options.

    Attributes:
        path: Dotted path of its section in the recipe, for messages.
        name: Its main name.
        cls: The class.
        options: The options that the recipe gives, as the constructor's annotations want them.
    """

    path: str
    name: str
    cls: type
    options: dict[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether the class is one of this library's."""
        return self.cls.__module__.startswith("reuse_algos.")

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the class's constructor."""
        return inspect.signature(self.cls).parameters

    def build(self, **more: Any) -> Any:
        """Return a new object, made of the options and of what the recipe does not give."""
        build: Callable[..., Any] = self.cls
        return build(**self.options, **more)


def fit_named(kind: Kind, section: Mapping[str, Any], path: str, faults: Faults) -> Component | None:
    """Check a ``{name: ..., option: ...}`` section.

    Args:
        kind: Which table its name is looked up in.
        section: The section.
        path: Path of the section.
        faults: Where a missing or unknown name and faulty options are noted.

    Returns:
        The class and its options. None where the name is missing or unknown.
    """
    name = section.get("name")
    if name is BROKEN:
        return None
    if name is None:
        key = path.rpartition(".")[2]
        faults.add(join(path, "name"), f"missing. Write for example {key}: {_EXAMPLES[kind]}")
        return None
    if not isinstance(name, str):
        faults.add(join(path, "name"), f"must be text, not {name!r}")
        return None
    listed = find(kind, name)
    if listed is None:
        faults.add(join(path, "name"), f"there is no {kind} {name!r}.{nearest(name, names(kind))}")
        return None
    options = {key: value for key, value in section.items() if key != "name"}
    fitted = fit_options(listed.cls, options, path, faults, reserved=listed.reserved)
    return Component(path, listed.name, listed.cls, fitted)


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
        target: What will be called with the options.
        options: Option -> value.
        path: Path of the section.
        faults: Where unknown and missing options and wrong values are noted.
        reserved: Parameters that the builder fills in, so a recipe cannot. Default: none.

    Returns:
        The options as keyword arguments.
    """
    name = getattr(target, "__name__", str(target))
    parameters = list(inspect.signature(target).parameters.values())
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    # Some constructors pass further options on; these cannot be checked here.
    open_ended = bool(named) and any(p.kind == p.VAR_KEYWORD for p in parameters)
    hints = hints_of(target)
    fitted = {}
    for key, value in options.items():
        if key in reserved:
            faults.add(join(path, key), "is filled in from the recipe and cannot be set here")
        elif key in named:
            # Without an annotation everything fits: other people's constructors need not have any.
            fitted[key] = fit(value, hints.get(key, Any), join(path, key), faults, BUILDERS)
        elif open_ended:
            fitted[key] = value
        else:
            offered = [key for key in named if key not in reserved and is_settable(hints.get(key), BUILDERS)]
            hint = nearest(key, offered) if offered else " It takes no options."
            faults.add(join(path, key), f"{name} has no such option.{hint}")
    for key, parameter in named.items():
        # torch marks required options of its optimizers by a default of this class.
        required = parameter.default is parameter.empty or type(parameter.default).__name__ == "_RequiredParameter"
        if required and key not in reserved and key not in options:
            faults.add(join(path, key), f"missing. {name} needs it")
    return fitted


class _Scheduler:
    """Builds the scheduler that an option of a constructor asks for."""

    kind: str = "scheduler"

    def __call__(self, section: Mapping[str, Any], path: str, faults: Faults) -> Any:
        before = len(faults)
        component = fit_named("scheduler", section, path, faults)
        # An object of half of its options would be refused once more, for another reason.
        if component is None or len(faults) > before:
            return section
        try:
            return component.build()
        except (ValueError, TypeError) as error:
            faults.add(path, str(error))
            return section


BUILDERS: Mapping[type, Named] = {ComposerScheduler: _Scheduler()}  # type: ignore[dict-item]  # a Protocol is a class
"""What builds the objects of classes that an annotation names and a recipe writes as a section."""
