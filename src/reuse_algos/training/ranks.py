"""Doing something once for all ranks, or on every rank, so that an error reaches all of them instead of a time-out.

And sums over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from composer.utils import dist
from torch import Tensor

T = TypeVar("T")


def on_rank_zero(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 and return its result, or raise its error, on every rank."""
    if dist.get_world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    # The error travels as an object, or the other ranks would wait for rank 0 until they time out.
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def sum_over_ranks(numbers: Tensor) -> Tensor:
    """Add up a tensor over all ranks, in place; every rank must call this.

    Args:
        numbers: Of the same shape and dtype on every rank.

    Returns:
        The same tensor, for convenience.
    """
    if dist.get_world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Run ``work`` on every rank and return all results in order of rank; where any fails, every rank raises.

    A rank raises its own error, or else the first one of another rank.
    """
    if dist.get_world_size() == 1:
        return [work()]
    results: list[T] = []
    error: Exception | None = None
    try:
        results.append(work())
    except Exception as failure:
        error = failure
    outcomes = dist.all_gather_object((results, error))
    failed = error or next((other for _, other in outcomes if other is not None), None)
    if failed is not None:
        raise failed
    return [result for one, _ in outcomes for result in one]
