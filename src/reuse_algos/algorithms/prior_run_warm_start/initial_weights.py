"""Where training starts: pure functions on the weights of earlier runs and of a model that was just initialised.

Weights are mappings from a tensor's name in the state dict to the tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reuse_algos.algorithms.prior_run_warm_start.class_rows import known_rows


def average_weights(checkpoints: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several checkpoints, as in latest weight averaging (Kaddour 2022, arXiv 2209.14981).

    Means are taken in float64, also of running statistics of batch norm. Tensors that are not floating point
    (``num_batches_tracked``) are those of the last checkpoint.

    Args:
        checkpoints: At least one, with the same names, shapes and dtypes; the newest last.

    Returns:
        New tensors of the same names, shapes and dtypes.

    >>> average_weights([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}])
    {'w': tensor([0.5000])}
    """
    # Statistics of the averaged network would take a pass over the data. Their mean is near enough to start with, and
    # training corrects it within its first batches.
    averaged = {}
    for name, newest in checkpoints[-1].items():
        if not newest.is_floating_point():
            averaged[name] = newest.clone()
            continue
        total = torch.zeros(newest.shape, dtype=torch.float64)
        for checkpoint in checkpoints:
            total += checkpoint[name]
        averaged[name] = (total / len(checkpoints)).to(newest.dtype)
    return averaged


def shrink_and_perturb(weights: Tensor, noise: Tensor | None, shrink: float, perturb: float) -> Tensor:
    """Return ``shrink * weights + perturb * noise``: Ash & Adams 2020 (arXiv 1910.08475), section 4.

    Args:
        weights: Of an earlier run, any shape.
        noise: Of the same shape; None where ``perturb`` is 0.
        shrink: The paper's lambda, in (0, 1].
        perturb: Scale of the noise, at least 0.

    >>> shrink_and_perturb(torch.tensor([1.0]), torch.tensor([0.5]), shrink=0.4, perturb=0.1)
    tensor([0.4500])
    """
    shrunk = weights if shrink == 1 else shrink * weights
    return shrunk if noise is None or perturb == 0 else shrunk + perturb * noise


def noise_generator(seed: int, source: str, name: str) -> torch.Generator:
    """Return the generator of one tensor's noise.

    Args:
        seed: Of the algorithm.
        source: Identity of the weights that are perturbed.
        name: Of the tensor.
    """
    # With the source, as else each run of a sequence with one seed would add the same noise to weights that already
    # hold it. With the name, so that the noise of a tensor does not depend on which others there are.
    digest = hashlib.sha256(f"{seed}/{source}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled_noise(fresh: Tensor, generator: torch.Generator) -> Tensor:
    """Return the values of a freshly initialised tensor in a random order.

    The authors' code takes the weights of a freshly initialised model as noise, which suits each kind of parameter as
    its initialisation does (the scales of batch norm stay near 1).

    Args:
        fresh: Any shape.
        generator: On the CPU.

    Returns:
        The same shape and dtype, on the CPU.

    >>> shuffled_noise(torch.tensor([1.0, 2.0]), torch.Generator().manual_seed(0)).sort().values
    tensor([1., 2.])
    """
    # Shuffled, because a run with the seed of the earlier one starts from the very numbers that that one started from.
    values = fresh.detach().cpu().flatten()
    return values[torch.randperm(len(values), generator=generator)].reshape(fresh.shape)


def gaussian_noise(fresh: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of a tensor's shape and dtype: with them ``perturb`` is the paper's sigma.

    Args:
        fresh: Any shape.
        generator: On the CPU.

    >>> gaussian_noise(torch.zeros(2), torch.Generator().manual_seed(0)).shape
    torch.Size([2])
    """
    return torch.randn(fresh.shape, generator=generator).to(fresh.dtype)


def differences(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, exempt: Collection[str] = ()) -> list[str]:
    """Return every tensor that is missing on one side or has another shape, in words; none where all fit.

    Args:
        theirs: Archived weights.
        ours: The model's.
        exempt: Names that may differ. Default: none.
    """
    listed = []
    for name in sorted((theirs.keys() | ours.keys()) - set(exempt)):
        there = tuple(theirs[name].shape) if name in theirs else "absent"
        here = tuple(ours[name].shape) if name in ours else "absent"
        if there != here:
            listed.append(f"{name}: {there} there, {here} here")
    return listed


@dataclass(frozen=True)
class Plan:
    """Which tensors come from where.

    Attributes:
        kept: Names that stay as they were initialised, or that only the earlier run has.
        by_class: Names of the head's tensors of which only the rows of known classes are loaded.
        rows: int64 ``[M]`` rows here and int64 ``[M]`` rows there, see
            :func:`~reuse_algos.algorithms.prior_run_warm_start.class_rows.match_rows`; needed with ``by_class``.
        changing: Names that are shrunk and perturbed.
        by_token: Names of tensors with one row for each token, of which only the rows of known tokens are loaded.
        tokens: int64 ``[M]`` rows here and int64 ``[M]`` rows there, see
            :func:`~reuse_algos.training.parameters.tokens.common_tokens`; needed with ``by_token``.
    """

    kept: Collection[str] = ()
    by_class: Collection[str] = ()
    rows: tuple[Tensor, Tensor] | None = None
    changing: Collection[str] = ()
    by_token: Collection[str] = ()
    tokens: tuple[Tensor, Tensor] | None = None

    def rows_of(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return the rows here and there of a tensor that is loaded row by row; None for the others."""
        if name in self.by_token:
            return self.tokens
        return self.rows if name in self.by_class else None


def misfits(archived: Mapping[str, Tensor], fresh: Mapping[str, Tensor], plan: Plan) -> list[str]:
    """Return what keeps archived weights from being loaded as planned, in words; empty where nothing does."""
    # Of tensors that are loaded row by row, the number of rows may differ and everything else must fit.
    by_row = {*plan.by_class, *plan.by_token}
    both = sorted(name for name in by_row if name in archived and name in fresh)
    # Their rows are matched by class or token, so only what one row is must agree.
    listed = differences(
        {**archived, **{name: archived[name][:1] for name in both}},
        {**fresh, **{name: fresh[name][:1] for name in both}},
        exempt=plan.kept,
    )
    if plan.rows is not None:
        for side, weights, rows in (("here", fresh, plan.rows[0]), ("there", archived, plan.rows[1])):
            listed += [
                f"{name}: {len(weights[name])} rows {side}, too few for the classes named {side}"
                for name in both
                if name not in plan.by_token and int(rows.max()) >= len(weights[name])
            ]
    return listed


def initial_values(
    archived: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    plan: Plan,
    *,
    shrink: float,
    perturb: float,
    noise: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return what a model starts from.

    Args:
        archived: Weights that fit as planned, see :func:`misfits`.
        fresh: The model's own, just initialised.
        plan: Which tensors come from where.
        shrink: Factor of the archived weights, see :func:`shrink_and_perturb`.
        perturb: Factor of the noise, see :func:`shrink_and_perturb`.
        noise: (name, fresh tensor) -> noise of its shape, on the CPU.

    Returns:
        The tensors that do not stay as they were initialised, on the CPU. Rows of new classes in them are those of the
        initialisation, neither shrunk nor perturbed.
    """
    values = {}
    for name, tensor in fresh.items():
        if name in plan.kept:
            continue
        value = archived[name]
        if (rows := plan.rows_of(name)) is not None:
            value = known_rows(tensor, value, *rows)
        if name in plan.changing:
            drawn = noise(name, tensor) if perturb else None
            moved = shrink_and_perturb(value, drawn, shrink, perturb)
            if rows is not None:
                value[rows[0]] = moved[rows[0]]
            else:
                value = moved
        values[name] = value
    return values
