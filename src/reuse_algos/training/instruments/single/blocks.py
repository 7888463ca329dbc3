"""The gradients of a chunk of examples, held by parameter; of a table only by the rows that an example uses.

Legend: b examples of a chunk, D numbers in all trained parameters together, n numbers of one parameter, U used rows of
a table over all examples, w width of a table, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers that are in float64 at once: 128 KiB, little beside any bound on memory. Larger pieces were no faster.
_PIECE = 1 << 14

DECADES = tuple(range(-8, 1))
"""Edges of the histogram of gradient elements, as powers of ten; what lies outside falls into the outer bins."""


class Totals:
    """What is added up over all examples, in float64: the tests are differences of nearly equal sums.

    Args:
        size: D.
        device: Of the gradients.

    Attributes:
        sum_D: Sum of the gradients.
        squares_D: Sum of their squares.
        counts: Elements in each bin of size, ``len(DECADES) + 1`` numbers.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.sum_D, self.squares_D = torch.zeros(2, size, dtype=torch.float64, device=device)
        self.counts = torch.zeros(len(DECADES) + 1, dtype=torch.int64, device=device)
        self._edges = torch.tensor([10.0**power for power in DECADES], dtype=torch.float64, device=device)

    def count(self, values: Tensor) -> None:
        """Count elements by size; zeros and those that are not finite fall into the outer bins."""
        bins = torch.bucketize(values.abs(), self._edges, right=True)
        self.counts += torch.bincount(bins.flatten(), minlength=len(self.counts))


@dataclass(frozen=True)
class Dense:
    """The gradients of all examples by one parameter.

    Attributes:
        start: Where the parameter begins in D.
        values_bn: The gradients.
    """

    start: int
    values_bn: Tensor

    def add_to(self, totals: Totals) -> Tensor:
        """Add to the sums over examples, and return the squared norms ``[b]``."""
        norms_b = self.values_bn.new_zeros(len(self.values_bn), dtype=torch.float64)
        for columns, piece in self._pieces():
            squares = piece.square()
            totals.sum_D[columns] += piece.sum(0)
            totals.squares_D[columns] += squares.sum(0)
            totals.count(piece)
            norms_b += squares.sum(1)
        return norms_b

    def along(self, vector_D: Tensor) -> Tensor:
        """Return the inner products ``[b]`` with a vector in float64."""
        return sum(piece @ vector_D[columns] for columns, piece in self._pieces())  # type: ignore[return-value]

    def fill(self, matrix_bD: Tensor) -> None:
        """Write the gradients into their columns."""
        matrix_bD[:, self.start : self.start + self.values_bn.shape[1]] = self.values_bn

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield columns of D and their gradients in float64. Piece by piece: all would be twice as large."""
        step = max(1, _PIECE // len(self.values_bn))
        for first in range(0, self.values_bn.shape[1], step):
            piece = self.values_bn[:, first : first + step].double()
            yield slice(self.start + first, self.start + first + piece.shape[1]), piece


@dataclass(frozen=True)
class UsedRows:
    """The gradients of all examples by a table, which are 0 but for the rows that an example uses.

    Attributes:
        start: Where the table begins in D.
        table_rows: R.
        count: b.
        examples_U: The example of each used row, from 0.
        rows_U: Which row it is. An example has a row once.
        values_Uw: The gradients.
    """

    start: int
    table_rows: int
    count: int
    examples_U: Tensor
    rows_U: Tensor
    values_Uw: Tensor

    @classmethod
    def summed(cls, start: int, table_rows: int, rows_bK: Tensor, values_bKw: Tensor) -> UsedRows:
        """Return the gradients by rows from those by lookups, of which several may be of one row.

        Args:
            start: Where the table begins in D.
            table_rows: R.
            rows_bK: The row of each of K lookups.
            values_bKw: The gradients by what was looked up.
        """
        count, width = len(rows_bK), values_bKw.shape[2]
        keys_bK = rows_bK + table_rows * torch.arange(count, device=rows_bK.device)[:, None]
        keys_U, places = torch.unique(keys_bK, return_inverse=True)
        values_Uw = values_bKw.new_zeros(len(keys_U), width)
        values_Uw.index_add_(0, places.flatten(), values_bKw.reshape(-1, width))
        return cls(start, table_rows, count, keys_U // table_rows, keys_U % table_rows, values_Uw)

    def add_to(self, totals: Totals) -> Tensor:
        """Add to the sums over examples, and return the squared norms ``[b]``."""
        values_Uw = self.values_Uw.double()
        squares_Uw = values_Uw.square()
        self._of(totals.sum_D).index_add_(0, self.rows_U, values_Uw)
        self._of(totals.squares_D).index_add_(0, self.rows_U, squares_Uw)
        totals.count(values_Uw)
        totals.counts[0] += (self.count * self.table_rows - len(values_Uw)) * values_Uw.shape[1]
        return values_Uw.new_zeros(self.count).index_add_(0, self.examples_U, squares_Uw.sum(1))

    def along(self, vector_D: Tensor) -> Tensor:
        """Return the inner products ``[b]`` with a vector in float64."""
        each_U = (self.values_Uw.double() * self._of(vector_D)[self.rows_U]).sum(1)
        return each_U.new_zeros(self.count).index_add_(0, self.examples_U, each_U)

    def fill(self, matrix_bD: Tensor) -> None:
        """Write the gradients into their columns; the others stay."""
        width = self.values_Uw.shape[1]
        table = matrix_bD[:, self.start : self.start + self.table_rows * width].unflatten(1, (self.table_rows, width))
        table[self.examples_U, self.rows_U] = self.values_Uw

    def _of(self, vector_D: Tensor) -> Tensor:
        """Return the table's part of a vector ``[D]`` as a table."""
        width = self.values_Uw.shape[1]
        return vector_D[self.start : self.start + self.table_rows * width].view(self.table_rows, width)


@dataclass(frozen=True)
class Gradients:
    """Losses and gradients of a chunk of examples.

    Attributes:
        losses_b: The loss of each example.
        size: D.
        blocks: The gradients by each parameter; together they cover D.
    """

    losses_b: Tensor
    size: int
    blocks: Sequence[Dense | UsedRows]

    def add_to(self, totals: Totals) -> Tensor:
        """Add to the sums over examples, and return the squared norms ``[b]`` in float64."""
        return torch.stack([block.add_to(totals) for block in self.blocks]).sum(0)

    def along(self, vector_D: Tensor) -> Tensor:
        """Return ``g_i . vector`` of each example, in float64."""
        vector_D = vector_D.double()
        return torch.stack([block.along(vector_D) for block in self.blocks]).sum(0)

    def matrix(self) -> Tensor:
        """Return the gradients as one matrix ``[b, D]``."""
        first = self.blocks[0]
        values = first.values_bn if isinstance(first, Dense) else first.values_Uw
        matrix_bD = values.new_zeros(len(self.losses_b), self.size)
        for block in self.blocks:
            block.fill(matrix_bD)
        return matrix_bD
