"""Names that a recipe can use for Composer's, torch's and this library's classes.

A name is the class's own in snake_case, and for Composer also what it calls the module: ``label_smoothing``, ``mixup``
and ``mix_up``, ``lr_monitor``, ``wandb`` and ``wandb_logger``, ``cosine_annealing_with_warmup`` and, as in llm-foundry,
``cosine_with_warmup``. The tables are read off the packages when first asked for, so all of the installed Composer
is there. There are no dotted import paths: a recipe can only name what is listed here.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Literal

import torch
from composer import Algorithm, Callback
from composer.loggers import LoggerDestination
from composer.optim import ComposerScheduler

from reuse_algos.algorithms.base import snake_case

Kind = Literal["algorithm", "callback", "logger", "optimizer", "scheduler"]

OUR_RESERVED = frozenset({"archive", "dataset", "recipe", "run_name", "tags"})
"""Parameters of this library's classes that the builder fills in, where a class has them."""

_SOURCES: dict[str, tuple[type, tuple[str, ...]]] = {
    "algorithm": (Algorithm, ("composer.algorithms", "reuse_algos.algorithms")),
    "callback": (Callback, ("composer.callbacks", "reuse_algos.callbacks")),
    "logger": (LoggerDestination, ("composer.loggers",)),
    "optimizer": (torch.optim.Optimizer, ("torch.optim", "composer.optim")),
    "scheduler": (ComposerScheduler, ("composer.optim",)),  # type: ignore[dict-item]  # a Protocol is a class
}
_BASES = {"Algorithm", "Callback", "ComposerScheduler", "LoggerDestination", "Optimizer", "ReusingAlgorithm"}
_UNFIT = {
    "LBFGS",  # calls a closure several times per step, which Composer's mixed precision does not provide
    "SparseAdam",  # takes sparse gradients only
}
_SUFFIX = {"callback": "_callback", "logger": "_logger", "scheduler": "_scheduler"}


@dataclass(frozen=True)
class Listed:
    """A class that recipes can name.

    Attributes:
        name: Its main name, the one shown in suggestions.
        cls: The class.
        reserved: Parameters of its constructor that a recipe cannot set because the builder does.
    """

    name: str
    cls: type
    reserved: frozenset[str]


def find(kind: Kind, name: str) -> Listed | None:
    """Return the class of that kind and name; None where there is none."""
    return _table(kind).get(name)


def names(kind: Kind) -> list[str]:
    """Return the main names of all classes of a kind, sorted."""
    return sorted({listed.name for listed in _table(kind).values()})


@functools.cache
def _table(kind: str) -> dict[str, Listed]:
    base, packages = _SOURCES[kind]
    table: dict[str, Listed] = {}
    for package in packages:
        module = importlib.import_module(package)
        for attribute in module.__all__:
            cls = getattr(module, attribute)
            if not isinstance(cls, type) or attribute in _BASES | _UNFIT or not _is_kind(cls, base, kind):
                continue
            spellings = _spellings(kind, cls)
            reserved = {"params"} if kind == "optimizer" else set()
            if cls.__module__.startswith("reuse_algos."):
                reserved |= OUR_RESERVED
            for spelling in spellings:
                # The first package that has a name keeps it, in the order of _SOURCES.
                table.setdefault(spelling, Listed(spellings[0], cls, frozenset(reserved)))
    return table


def _is_kind(cls: type, base: type, kind: str) -> bool:
    if kind == "callback" and issubclass(cls, LoggerDestination):
        return False
    return base in cls.__mro__


def _spellings(kind: str, cls: type) -> list[str]:
    """Return all names of a class, the main one first."""
    if kind == "optimizer":
        # Composer's DecoupledSGDW is decoupled_sgdw, which snake_case would not give.
        return [cls.__name__.lower().replace("decoupled", "decoupled_")]
    full = snake_case(cls.__name__)
    suffix = _SUFFIX.get(kind, "")
    short = full.removesuffix(suffix) if suffix else full
    spellings = [short, full]
    parts = cls.__module__.split(".")
    # Composer's own names of its algorithms are those of their modules, such as blurpool.
    if parts[0] == "composer" and kind != "scheduler":
        module = parts[2]
        spellings = [module.removesuffix(suffix) if suffix else module, short, module, full]
    if "annealing_with_warmup" in short:
        spellings.insert(0, short.replace("annealing_", ""))
    return list(dict.fromkeys(spellings))
