"""Training speed over the number of workers and parameter servers, and the time to a loss.

Source: Peng et al., "Optimus", EuroSys 2018, section 3.2, equations 3 and 4,
https://doi.org/10.1145/3190508.3190517. Under all-reduce the terms of the parameter servers are left out.

Legend: N measurements, K terms of a form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from reuse_algos.errors import NotEnoughEvidenceError

Scheme = Literal["synchronous", "asynchronous", "all_reduce"]


@dataclass(frozen=True)
class SpeedModel:
    """Steps per second as a function of workers w, parameter servers p and the global batch M.

    - synchronous: ``1 / (t0 M/w + t1 + t2 w/p + t3 w + t4 p)``
    - all_reduce: ``1 / (t0 M/w + t1 + t3 w)``
    - asynchronous: ``w / (t0 + t1 w/p + t2 w + t3 p)``

    Attributes:
        scheme: Which of the three forms.
        terms: Its coefficients in the order above, in seconds, at least 0.
        batch: Global batch M in examples.
        workers: Least and greatest number of workers that were measured.
        error: Root of the mean squared relative error of the fit.
        servers: Least and greatest number of parameter servers that were measured. Default: 1 and 1.
    """

    scheme: Scheme
    terms: tuple[float, ...]
    batch: float
    workers: tuple[int, int]
    error: float
    servers: tuple[int, int] = (1, 1)

    def steps_per_second(self, workers: ArrayLike, servers: ArrayLike = 1) -> NDArray[np.float64]:
        """Return the speed, in steps per second.

        Args:
            workers: Numbers of workers, at least 1.
            servers: Numbers of parameter servers, at least 1; not used under all-reduce. Default: 1.

        Returns:
            float64 of the shape to which the two broadcast.
        """
        rows_NK = _rows(self.scheme, np.asarray(workers, float), np.asarray(servers, float), self.batch)
        return 1.0 / (rows_NK @ np.asarray(self.terms))

    def measured(self, workers: ArrayLike, servers: ArrayLike = 1) -> NDArray[np.bool_]:
        """Return whether these numbers lie within what was measured; beyond it a speed is a prediction.

        Args:
            workers: Numbers of workers.
            servers: Numbers of parameter servers; not used under all-reduce. Default: 1.

        Returns:
            bool of the shape to which the two broadcast.
        """
        workers, servers = np.broadcast_arrays(workers, servers)
        within = (workers >= self.workers[0]) & (workers <= self.workers[1])
        if self.scheme == "all_reduce":
            return within
        return within & (servers >= self.servers[0]) & (servers <= self.servers[1])


def fit_speed(
    workers: ArrayLike,
    steps_per_second: ArrayLike,
    *,
    batch: float,
    servers: ArrayLike | None = None,
    scheme: Scheme = "all_reduce",
) -> SpeedModel:
    """Fit the speed to measurements at several numbers of workers.

    ``1 / f`` is linear in the coefficients, which come from non-negative least squares on the relative errors.

    Args:
        workers: Int ``[N]``, at least 1.
        steps_per_second: ``[N]``, above 0.
        batch: Global batch in examples, the same in all measurements.
        servers: Int ``[N]``, at least 1; needed with parameter servers. Default: None.
        scheme: ``all_reduce``, or with parameter servers ``synchronous`` or ``asynchronous``. Default: ``all_reduce``.

    Raises:
        ValueError: The scheme is unknown, or ``servers`` is missing where it is needed.
        NotEnoughEvidenceError: There are fewer than two numbers of workers or fewer measurements than the form needs,
            or a speed is not above 0.
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, not {scheme!r}")
    if servers is None and scheme != "all_reduce":
        raise ValueError(f"scheme {scheme} needs the number of parameter servers of each measurement")
    workers_N, speed_N = np.asarray(workers, dtype=np.float64), np.asarray(steps_per_second, dtype=np.float64)
    servers_N = np.ones_like(workers_N) if servers is None else np.asarray(servers, dtype=np.float64)
    if not (workers_N.shape == speed_N.shape == servers_N.shape and workers_N.ndim == 1):
        raise NotEnoughEvidenceError(
            f"each speed needs its numbers of workers and servers, got shapes {workers_N.shape}, {speed_N.shape} and "
            f"{servers_N.shape}"
        )
    if not (np.isfinite(speed_N).all() and (speed_N > 0).all() and (workers_N >= 1).all() and (servers_N >= 1).all()):
        raise NotEnoughEvidenceError("speeds must be finite and above 0, workers and servers at least 1")
    different = len({*zip(workers_N.tolist(), servers_N.tolist(), strict=True)})
    # Under all-reduce non-negative least squares sets a term to 0 where two numbers have to do.
    needed = 2 if scheme == "all_reduce" else _rows(scheme, workers_N[:1], servers_N[:1], batch).shape[-1]
    if len(set(workers_N.tolist())) < 2 or different < needed:
        raise NotEnoughEvidenceError(
            f"the speed over workers needs runs at two or more numbers of workers and {needed} or more settings; there "
            f"are {different} (workers: {sorted({int(w) for w in workers_N})})"
        )
    # Rows times f: relative errors, as else the slowest settings would decide.
    rows_NK = _rows(scheme, workers_N, servers_N, batch) * speed_N[:, None]
    # Columns differ by orders of magnitude (M/w against 1), so each is brought to length 1 first.
    lengths_K = np.linalg.norm(rows_NK, axis=0)
    found_K, _ = optimize.nnls(rows_NK / lengths_K, np.ones(len(speed_N)))
    terms = tuple(float(value) for value in found_K / lengths_K)
    error = float(np.sqrt(np.mean((1.0 / (rows_NK @ np.asarray(terms)) - 1.0) ** 2)))
    ranges = [(int(counts_N.min()), int(counts_N.max())) for counts_N in (workers_N, servers_N)]
    return SpeedModel(scheme, terms, float(batch), ranges[0], error, ranges[1])


def _rows(scheme: Scheme, workers: NDArray, servers: NDArray, batch: float) -> NDArray[np.float64]:
    """Return what each coefficient is multiplied with in ``1 / f``, along a new last dimension."""
    w, p = np.broadcast_arrays(workers, servers)
    one = np.ones_like(w)
    if scheme == "all_reduce":
        return np.stack([batch / w, one, w], axis=-1)
    if scheme == "synchronous":
        return np.stack([batch / w, one, w / p, w, p], axis=-1)
    return np.stack([one, w / p, w, p], axis=-1) / w[..., None]
