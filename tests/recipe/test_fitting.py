"""Plain values against type annotations and constructors."""
# ruff: noqa: UP007, UP045  # Composer writes Union and Optional, so both spellings are tried

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import pytest
import torch
from composer.core import Event, Time
from composer.optim import ComposerScheduler, LinearScheduler

from reuse_algos.recipe.fitting import BUILDERS, fit_options
from reuse_algos.sections import Faults, fit, hints_of

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore


@dataclass
class Inner:
    x: int = 0


def fitted(value, hint):
    faults = Faults("x.yaml")
    result = fit(value, hint, "key", faults, BUILDERS)
    return list(faults) or result


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (1e3, int, 1000),
        ("3", int, 3),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),
        (3, str, "3"),
        (True, str, "true"),
        ("true", bool, True),
        (5, Union[int, str], 5),
        ("5", Union[int, str], "5"),
        (None, Optional[float], None),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([1, 2], tuple[int, ...], (1, 2)),
        (["a"], Sequence[str], ["a"]),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ({"x": "7"}, Inner, Inner(7)),
        ("b", Literal["a", "b"], "b"),
        ("after_load", Event, Event.AFTER_LOAD),
        ("0.5dur", Union[str, int, Time], "0.5dur"),
        (4, Union[str, Time], "4ep"),
        (4, Union[str, int, Time], 4),
        ("a/b", Union[str, pathlib.Path], "a/b"),
        (0.1, Union[float, torch.Tensor], 0.1),
        (None, int | None, None),
        ("x", int | str, "x"),
        (object, Any, object),
    ],
)
def test_values_that_fit(value, hint, result):
    assert fitted(value, hint) == result
    assert type(fitted(value, hint)) is type(result)


@pytest.mark.parametrize(
    ("value", "hint", "what"),
    [
        (1.5, int, "must be a whole number, not 1.5"),
        (True, int, "must be a whole number, not true"),
        (True, float, "must be a number, not true"),
        ("high", float, "must be a number, not 'high'"),
        (1, bool, "must be true or false, not 1"),
        (None, str, "must be text, not null"),
        ({}, Union[int, str], "must be a whole number or text, not a section"),
        ("a", Sequence[str], "must be a list, not 'a'"),
        ([1], tuple[float, float], "must be a list of 2 values, not a list"),
        ([], Mapping[str, int], "must be a section of keys, not a list"),
        ("c", Literal["a", "b"], "must be one of 'a', 'b', not 'c'"),
        ("half", Union[str, Time], "must be a time such as 1ep, 100ba or 0.5dur, not 'half'"),
        ("f", Optional[Callable[[int], int]], "cannot be set in a recipe"),
        ("m", torch.nn.Module, "cannot be set in a recipe"),
        ("linear", ComposerScheduler | None, "must be a section with the name of a scheduler or null, not 'linear'"),
    ],
)
def test_values_that_do_not_fit(value, hint, what):
    assert fitted(value, hint) == [f"key: {what}"]


def test_faults_inside_lists_and_sections_name_their_place():
    assert fitted([1, "x"], list[int]) == ["key.1: must be a whole number, not 'x'"]
    assert fitted({"a": {"x": []}}, dict[str, Inner]) == ["key.a.x: must be a whole number, not a list"]
    assert fitted({"y": 1}, Inner) == ["key.y: there is no such key. Known: x."]


def test_a_scheduler_is_made_of_its_section():
    made = fitted({"name": "linear", "alpha_f": "0.5", "t_max": "0.5dur"}, ComposerScheduler | None)
    assert isinstance(made, LinearScheduler)
    assert (made.alpha_i, made.alpha_f, made.t_max) == (1.0, 0.5, Time.from_timestring("0.5dur"))


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"alpha_f": 0.5}, "key.name: missing. Write for example key: {name: cosine_annealing}"),
        ({"name": "linnear"}, "key.name: there is no scheduler 'linnear'. Did you mean 'linear'"),
        ({"name": "linear", "t_mx": "1ep"}, "key.t_mx: LinearScheduler has no such option. Did you mean 't_max'?"),
        ({"name": "linear", "t_max": "soon"}, "key.t_max: must be a time such as 1ep, 100ba or 0.5dur, not 'soon'"),
        ({"name": "cosine_with_warmup"}, "key.t_warmup: missing. CosineAnnealingWithWarmupScheduler needs it"),
    ],
)
def test_faults_of_a_scheduler_s_section(section, what):
    (fault,) = fitted(section, ComposerScheduler | None)
    assert fault.startswith(what)


class Component:
    def __init__(
        self, needed: float, other: Unknown = None, *, archive: str = "", rate: Optional[float] = None
    ) -> None:
        pass


def test_options_against_a_constructor_all_faults_at_once():
    faults = Faults("x.yaml")
    fit_options(Component, {"rat": 1, "archive": "x"}, "c", faults, reserved={"archive"})
    assert list(faults) == [
        "c.rat: Component has no such option. Did you mean 'rate'?",
        "c.archive: is filled in from the recipe and cannot be set here",
        "c.needed: missing. Component needs it",
    ]


def test_one_name_for_type_checkers_only_does_not_hide_the_other_hints():
    assert set(hints_of(Component)) == {"needed", "archive", "rate", "return"}
    faults = Faults("x.yaml")
    assert fit_options(Component, {"needed": "1", "other": {}}, "c", faults) == {"needed": 1.0, "other": {}}
    assert len(faults) == 0


def test_required_marker_of_composer_and_open_ended_constructors():
    from composer.callbacks import Generate, NaNMonitor
    from composer.optim import DecoupledSGDW

    faults = Faults("x.yaml")
    fit_options(DecoupledSGDW, {}, "optimizer", faults, reserved={"params"})
    fit_options(NaNMonitor, {"x": 1}, "callbacks.nan_monitor", faults)
    assert fit_options(Generate, {"prompts": ["a"], "interval": "1ep", "extra": 1}, "callbacks.generate", faults) == {
        "prompts": ["a"],
        "interval": "1ep",
        "extra": 1,
    }
    assert list(faults) == [
        "optimizer.lr: missing. DecoupledSGDW needs it",
        "callbacks.nan_monitor.x: NaNMonitor has no such option. It takes no options.",
    ]
