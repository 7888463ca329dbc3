"""Running a user's code without moving a random generator."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_MOST_PARTS = 64  # a list of transforms is short; a list of file names is long and holds no generator
_DEPTH, _MOST_SEEN = 8, 10_000  # objects of users may be large, and refer to each other
_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, numpy and random inside the block; put them back afterwards.

    GPU generators are left alone. The states are put back on an exception too.

    Args:
        seed: int64.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        # Not torch.manual_seed: that would reseed every GPU as well, and nothing would put those back.
        torch.default_generator.manual_seed(seed)
        bits = seed & ((1 << 64) - 1)
        # numpy is seeded by words of 32 bits.
        np.random.seed([bits & 0xFFFFFFFF, bits >> 32])
        random.seed(bits)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def undisturbed(*owners: Any) -> Iterator[None]:
    """Put the generators that some objects own back to where they were before the block.

    The global generators are not among them, see :func:`seeded_rng`.

    Args:
        owners: Datasets, collate functions, transforms. Generators are looked for in their attributes, in lists and
            mappings of those, in closures, and in the globals that their functions name.
    """
    # A dataset whose transform has a generator of its own would otherwise train on other numbers because it was read
    # once more for a check.
    put_back = [_restorer(one) for one in _generators(owners)]
    try:
        yield
    finally:
        for restore in put_back:
            restore()


def _restorer(generator: Any) -> Callable[[], Any]:
    """Return a function that brings a generator back to its present state."""
    if isinstance(generator, np.random.Generator):
        bits, kept = generator.bit_generator, generator.bit_generator.state
        return lambda: setattr(bits, "state", kept)
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    state = generator.get_state()
    # A torch generator hands out a copy of its state, and so does numpy's RandomState.
    return lambda: generator.set_state(state)


def _generators(owners: tuple[Any, ...]) -> list[Any]:
    """Return the generators that can be reached from some objects, each once."""
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def visit(part: Any, depth: int) -> None:
        # An object may lead to the whole program, so this looks nearby only.
        if id(part) in seen or depth > _DEPTH or len(seen) > _MOST_SEEN:
            return
        seen.add(id(part))
        if isinstance(part, _KINDS):
            found[id(part)] = part
            return
        for inner in _parts(part):
            visit(inner, depth + 1)

    for owner in owners:
        visit(owner, 0)
    return list(found.values())


def _parts(owner: Any) -> list[Any]:
    """Return what an object holds: items, attributes, what its functions close over and the globals they name."""
    if isinstance(owner, str | bytes | int | float | torch.Tensor | np.ndarray | type | types.ModuleType | None):
        return []
    if isinstance(owner, Mapping):
        return list(owner.values()) if len(owner) <= _MOST_PARTS else []
    if isinstance(owner, list | tuple | set):
        return list(owner) if len(owner) <= _MOST_PARTS else []
    if isinstance(owner, functools.partial):
        return [owner.func, *owner.args, *owner.keywords.values()]
    if isinstance(owner, types.MethodType):
        return [owner.__self__, owner.__func__]
    if isinstance(owner, types.FunctionType):
        cells = [_content(cell) for cell in owner.__closure__ or ()]
        named = [owner.__globals__.get(name) for name in owner.__code__.co_names]
        named = [one for one in named if isinstance(one, _KINDS)]  # not the library code behind other names
        return [*cells, *(owner.__defaults__ or ()), *named]
    methods = [getattr(type(owner), name, None) for name in ("__getitem__", "__getitems__", "__call__", "forward")]
    return [*getattr(owner, "__dict__", {}).values(), *(one for one in methods if isinstance(one, types.FunctionType))]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is bound later
        return None
