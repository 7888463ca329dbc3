"""Tables of which an example uses few rows, such as embeddings of words: gradients by what was looked up.

The gradient of one example by a table of 30,000 words is a matrix of 30,000 rows, all 0 but for those of its own words.
A number that is added to what is looked up has that gradient and is as small as the example itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

_SIGNATURE = inspect.signature(F.embedding)


class Lookups(TorchFunctionMode):
    """Follow what is looked up in some tables, and add to it what gradients are wanted by.

    Args:
        tables: Name -> table ``[R, w]``, the very tensors that the model gets.
        taps: Name -> zeros of the shapes of what is looked up, in the order of the lookups. Default: none are added.

    Attributes:
        rows: Name -> the rows of each lookup, int64 of any shape.
        elsewhere: Names of the tables that are used in any other way as well.
    """

    def __init__(self, tables: Mapping[str, Tensor], taps: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        super().__init__()
        self._names = {id(table): name for name, table in tables.items()}
        self._taps = taps or {}
        self.rows: dict[str, list[Tensor]] = {}
        self.elsewhere: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        if func is F.embedding:
            asked = _SIGNATURE.bind(*args, **given)
            asked.apply_defaults()
            name = self._names.get(id(asked.arguments["weight"]))
            # With these two the gradient is not the sum over the lookups, or the table itself changes.
            if name and asked.arguments["max_norm"] is None and not asked.arguments["scale_grad_by_freq"]:
                return self._tapped(name, found, asked.arguments["input"], asked.arguments["padding_idx"])
        # A shape or a type is not differentiated; whatever gives a tensor may be.
        if any(isinstance(leaf, Tensor) for leaf in tree_flatten(found)[0]):
            names = (self._names.get(id(leaf)) for leaf in tree_flatten((args, given))[0])
            self.elsewhere |= {name for name in names if name is not None}
        return found

    def _tapped(self, name: str, found: Tensor, rows: Tensor, padding: int | None) -> Tensor:
        own = self.rows.setdefault(name, [])
        own.append(rows)
        if name not in self._taps:
            return found
        tap = self._taps[name][len(own) - 1]
        if tap.shape != found.shape:
            raise RuntimeError(f"lookups in {name} change their shape from example to example")
        # torch gives the row of padding no gradient.
        return found + (tap if padding is None else tap * (rows != padding)[..., None])


def few_rows(function: Callable[[], Any], parameters: Mapping[str, Tensor]) -> dict[str, list[torch.Size]]:
    """Return the tables that a function only looks up, and few rows of them: name -> shapes of the row numbers.

    Args:
        function: Passes one example through a model that gets these parameters.
        parameters: Name -> value.
    """
    with torch.no_grad(), Lookups(parameters) as seen:
        function()
    shapes = {name: [one.shape for one in rows] for name, rows in seen.rows.items() if name not in seen.elsewhere}
    # Beyond half of the rows the table itself is no larger than what stands for it.
    return {name: own for name, own in shapes.items() if 2 * sum(one.numel() for one in own) <= len(parameters[name])}
