"""Sections of settings: dataclass, mapping and bare name give the same object, and all faults are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from composer.core import Time

from reuse_algos.errors import RecipeError, ReuseAlgosError
from reuse_algos.sections import BROKEN, Faults, fit, fit_section

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore


@dataclass(frozen=True)
class MSE:
    name: ClassVar[str] = "mse"
    weight: float = 1.0


@dataclass(frozen=True)
class KL:
    name: ClassVar[str] = "kl"
    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")


@dataclass(frozen=True)
class Window:
    start: str | Time | None = None
    stop: str | Time | None = None
    every_n_batches: int = 1


@dataclass(frozen=True)
class Sample:
    name: ClassVar[str] = "sample"
    size: int
    when: Window = Window()
    losses: list[MSE | KL] = field(default_factory=list)
    order: Literal["first", "best"] = "first"


@dataclass(frozen=True)
class ByName:
    """A field called name is a setting like any other."""

    name: str = "digits"
    odd: Unknown = None


LOSS = MSE | KL


@pytest.mark.parametrize(
    ("kinds", "value", "wanted"),
    [
        (LOSS, KL(temperature=2.0), KL(temperature=2.0)),
        (LOSS, {"name": "kl", "temperature": 2}, KL(temperature=2.0)),
        (LOSS, {"name": "mse", "weight": "0.5"}, MSE(weight=0.5)),
        (LOSS, "mse", MSE()),
        (MSE | KL | str, "kl", KL()),
        (MSE | KL | str, {"name": "kl"}, KL()),
        (LOSS | None, None, None),
        (MSE, {"weight": 2}, MSE(2.0)),
        (MSE, {"name": "mse"}, MSE()),
        (Window, {}, Window()),
        (Window | None, {"stop": "0.5dur", "every_n_batches": 4}, Window(stop="0.5dur", every_n_batches=4)),
        (Window, {"start": 3}, Window(start="3ep")),
        (Window, {"start": Time.from_timestring("2ba")}, Window(start=Time.from_timestring("2ba"))),
        (ByName, {"name": "cifar10"}, ByName("cifar10")),
        (ByName | str, "cifar10", "cifar10"),
        (
            Sample,
            {"size": 2, "when": {"stop": "4ep"}, "losses": ["mse", {"name": "kl", "weight": 0}, MSE(3.0)]},
            Sample(2, Window(stop="4ep"), [MSE(), KL(weight=0.0), MSE(3.0)]),
        ),
        (Mapping[str, LOSS], {"a": "mse", "b": KL()}, {"a": MSE(), "b": KL()}),
    ],
)
def test_every_spelling_gives_the_dataclass(kinds: Any, value: Any, wanted: Any) -> None:
    assert fit_section(kinds, value, "loss") == wanted


def test_the_same_object_comes_back() -> None:
    loss = KL()
    assert fit_section(LOSS, loss, "loss") is loss


@pytest.mark.parametrize(
    ("kinds", "value", "faults"),
    [
        (LOSS, "msa", ["loss.name: there is no 'msa'. Did you mean 'mse'?"]),
        (LOSS | str, "msa", ["loss.name: there is no 'msa'. Did you mean 'mse'?"]),
        (LOSS, {"weight": 1.0}, ["loss.name: missing. It is one of kl, mse"]),
        (LOSS, {"name": 3}, ["loss.name: there is no 3. Known: kl, mse."]),
        (LOSS, None, ["loss: must be one of kl, mse or a section of keys, not null"]),
        (LOSS, 2.0, ["loss: must be one of kl, mse or a section of keys, not 2.0"]),
        (LOSS, Window(), ["loss: must be one of kl, mse or a section of keys, not Window(start=None"]),
        (MSE, {"name": "kl"}, ["loss.name: there is no 'kl'. Known: mse."]),
        (LOSS, {"name": "kl", "temperature": 0}, ["loss: temperature must be above 0, not 0.0"]),
        (
            LOSS,
            {"name": "kl", "temperture": 1.0, "weight": "much"},
            [
                "loss.temperture: there is no such key. Did you mean 'temperature'?",
                "loss.weight: must be a number, not 'much'",
            ],
        ),
        (
            Sample,
            {"when": {"every_n_batches": 1.5, "stop": "soon"}, "losses": ["mse", "kll"], "order": "last"},
            [
                "loss.when.every_n_batches: must be a whole number, not 1.5",
                "loss.when.stop: must be a time such as 1ep, 100ba or 0.5dur or null, not 'soon'",
                "loss.losses.1.name: there is no 'kll'. Did you mean 'kl'?",
                "loss.order: must be one of 'first', 'best', not 'last'",
                "loss.size: missing",
            ],
        ),
    ],
)
def test_all_faults_at_once(kinds: Any, value: Any, faults: list[str]) -> None:
    with pytest.raises(ReuseAlgosError) as caught:
        fit_section(kinds, value, "loss")
    assert isinstance(caught.value, (RecipeError, ValueError))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(faults)
    assert all(line.startswith(fault) for line, fault in zip(lines, faults, strict=True)), lines


def test_nothing_more_is_said_about_what_could_not_be_resolved() -> None:
    faults = Faults("x.yaml")
    fit({"name": BROKEN, "weight": "x"}, LOSS, "loss", faults)
    fit({"name": "kl", "weight": BROKEN}, LOSS, "loss", faults)
    fit(BROKEN, LOSS, "loss", faults)
    assert list(faults) == []
