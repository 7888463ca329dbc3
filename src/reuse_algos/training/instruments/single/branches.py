"""Many examples at once through a forward pass that branches on its data, as those that look at a padding mask do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


def at_once(function: Callable[..., Any], rows: Sequence[Tensor], most: int | None = None) -> Any:
    """Return what a function gives for each example, stacked along a first dimension.

    The examples are vectorised over. Where the function asks a tensor for its truth, examples with different answers go
    through it in groups, so each takes its own branch.

    Args:
        function: One row of each tensor -> tensors, or mappings and tuples of them.
        rows: Tensors of N rows.
        most: How many examples go through the function together. Default: all.

    Raises:
        RuntimeError: The function does what cannot be vectorised, such as taking a number out of a tensor.
    """
    count = len(rows[0])
    groups, filled = [*torch.arange(count).split(most or count)], None
    while groups:
        places = groups.pop()
        some = rows if len(places) == count else [row[places.to(row.device)] for row in rows]
        try:
            with _OneBranch(len(places)):
                found = vmap(function)(*some)
        except _BranchesDifferError as differ:
            yes = torch.tensor(differ.answers)
            groups += [places[yes], places[~yes]]
            continue
        if len(places) == count:
            return found
        if filled is None:
            filled = tree_map(lambda part: part.new_empty(count, *part.shape[1:]), found)
        # In place: a second copy of all gradients would break the bound on memory.
        tree_map(lambda whole, part, at=places: whole.index_copy_(0, at.to(whole.device), part), filled, found)
        del found
    return filled


class _BranchesDifferError(Exception):
    """The examples of a group take different branches."""

    def __init__(self, answers: list[bool]) -> None:
        super().__init__("examples take different branches")
        self.answers = answers


class _OneBranch(TorchFunctionMode):
    """Answer for vectorised examples whether a tensor is true, where all of them give the same answer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__bool__ and (values := debug_unwrap(args[0])) is not args[0]:
            # One by one: the transforms wrap what is computed here, and tolist() does not read wrapped tensors.
            answers = [bool(answer) for answer in values.flatten()]
            if len(answers) in (1, self.count):
                if len(set(answers)) > 1:
                    raise _BranchesDifferError(answers)
                return answers[0]
        return func(*args, **(kwargs or {}))
