"""The perturbations that prior runs archived: which of them an example gets, and looking them up.

Legend: N training examples, V views, B rows, R replayed rows, M prior runs, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reuse_algos.algorithms.adversarial_replay.settings import Replayable
from reuse_algos.archive import PriorRun, PriorUse, Signal
from reuse_algos.data.hashing import uniform_floats, view_hash
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError, PriorRunMismatchError, SignalNotFoundError
from reuse_algos.priors.choosing import match_examples
from reuse_algos.priors.lookup import ArchivedRows, fits_device, harvest_share
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.priors.views import missing_views, other_views

# Files are memory mapped, and the look for the largest number makes float32 copies: of so many rows at a time.
_ROWS_AT_ONCE = 4096

_USER = "adversarial_replay"
_SALT_RUN = 96  # of view_hash; data/ and attacks.py have those below


def choose_prior_runs(seed: int, keys_B: Tensor, epoch: int, available_BM: Tensor, recency: float) -> Tensor:
    """Draw a prior run for each example.

    Args:
        seed: Of the draw.
        keys_B: int64, identities of the examples.
        epoch: Number of the running epoch.
        available_BM: bool: which runs have a perturbation; column 0 is the newest run.
        recency: In (0, 1]: of the runs that have one, the k-th newest is drawn with a probability proportional to
            ``recency ** k``; k counts all runs from 0, also those that have none.

    Returns:
        int64 ``[B]``, the run's column, -1 where no run has a perturbation.

    >>> has_one = torch.tensor([[False, True], [False, False]])
    >>> choose_prior_runs(0, torch.tensor([7, 8]), 0, has_one, recency=1.0)
    tensor([ 1, -1])
    """
    shares_BM = available_BM * recency ** torch.arange(available_BM.shape[1], dtype=torch.float64)
    ends_BM = shares_BM.cumsum(1)
    total_B = ends_BM[:, -1]
    # A hash of (seed, key, epoch), so that the draw does not depend on batches, ranks or where training was resumed.
    drawn_B = uniform_floats(view_hash(seed, keys_B, torch.full_like(keys_B, epoch), _SALT_RUN)) * total_B
    column_B = (ends_BM <= drawn_B.unsqueeze(1)).sum(1)
    return torch.where(total_B > 0, column_B, -1)


class Perturbations:
    """Adversarial perturbations of one or several prior runs, in pixel units, by example and view.

    Args:
        runs: Prior runs.
        settings: Of which weights, and how runs are drawn.
        info: The current train data.
        policy: The current run's views, numbered ones.
        device: Where to keep perturbations that fit.
        seed: Of the draw among the runs. Default: 0.
        mismatch: ``refuse``, or ``allow``: examples and views without perturbations are not replayed. Default:
            ``refuse``.
        archive: What the archive is called in messages. Default: ``ARCHIVE``.
        shape: (C, H, W) of the current images. Default: not known.
        slots_used: Views looked up in earlier attempts of this run, by run id; what is looked up now goes in. Default:
            none.

    Attributes:
        image_shape: (C, H, W) of the perturbations.
        complete: Whether every example has a perturbation in every view.
        epsilon: Of the archived attacks, in pixel units; None where they are not of one L-infinity ball.

    Raises:
        SignalNotFoundError: A run has no perturbations of these weights.
        PriorRunMismatchError: A run has other data or views, lacks some (``refuse``), or its images have another size.
        DataError: Perturbations are not finite, or larger than what was harvested.
    """

    def __init__(
        self,
        runs: Sequence[PriorRun],
        settings: Replayable,
        info: DatasetInfo,
        policy: ViewPolicy,
        device: torch.device,
        *,
        seed: int = 0,
        mismatch: str = "refuse",
        archive: str = "ARCHIVE",
        shape: Sequence[int] | None = None,
        slots_used: dict[str, set[int]] | None = None,
    ) -> None:
        self.name = harvested_name("adversarial", settings.weights)
        # Matched in the order in which they were named, so that the first that does not fit is the one named.
        matched = [(run, match_examples(run, info, mismatch)) for run in runs]
        newest_first = sorted(matched, key=lambda one: (one[0].manifest.created_at, one[0].id), reverse=True)
        self.run_ids = [run.id for run, _ in newest_first]
        self._slots_used: dict[str, set[int]] = {} if slots_used is None else slots_used
        self._device, self._seed, self._recency = device, seed, settings.recency
        self._keys_N = info.keys
        command = f"`reuse-algos harvest {archive} {{}} --signals adversarial --views {policy.num_views}"
        command += "`" if settings.weights == "last" else f" --weights {settings.weights}`"
        found = [
            (run, run_rows, self._checked(run, policy, mismatch, command.format(run.id)))
            for run, run_rows in newest_first
        ]
        self.image_shape = found[0][2].row_shape
        for run_id, (_, _, signal) in zip(self.run_ids, found, strict=True):
            if signal.row_shape != self.image_shape:
                raise PriorRunMismatchError(
                    f"run {run_id} has perturbations of images {signal.row_shape}, run {self.run_ids[0]} of images "
                    f"{self.image_shape}. Choose runs on images of one size."
                )
        if shape is not None:
            self.check_shape(shape)
        # Before anything is copied to the device: a damaged file must not train anybody.
        for run, _, signal in found:
            _refuse_sizes(run, signal, archive)
        balls = {_ball(signal) for _, _, signal in found}
        self.epsilon = balls.pop() if len(balls) == 1 else None
        kept_on = device if fits_device(signal for _, _, signal in found) else None
        views = range(policy.num_views)
        self._seen = [_seen(signal, run_rows, policy.num_views) for _, run_rows, signal in found]
        self._archived = [
            ArchivedRows(signal, run_rows, [view for view in views if view in signal.slots], kept_on)
            for _, run_rows, signal in found
        ]
        known_VN = [seen_VN for seen_VN in self._seen if seen_VN is not None]
        # Where no run has all of them, several together still may.
        self.complete = len(known_VN) < len(self._seen) or bool(torch.stack(known_VN).any(0).all())

    def _checked(self, run: PriorRun, policy: ViewPolicy, mismatch: str, command: str) -> Signal:
        if self.name not in run.signal_names:
            raise SignalNotFoundError(
                f"run {run.id} has no adversarial perturbations (signal {self.name!r}; it has "
                f"{', '.join(run.signal_names) or 'none'}). Make them once: {command}."
            )
        if differs := other_views(run, policy):
            raise PriorRunMismatchError(
                f"{differs}. A perturbation is only adversarial for the view that it was made for. Train with the "
                "views of that run, or choose a run that has these and harvest it."
            )
        signal = run.signal(self.name)
        if mismatch != "allow" and (missing := missing_views(run, signal, policy, "perturbations")):
            raise PriorRunMismatchError(
                f"{missing}. Harvest the others: {command}, or say mismatch: allow to go without them."
            )
        return signal

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse images of another size than the perturbations.

        Args:
            shape: (C, H, W) of the images that are to be perturbed.

        Raises:
            PriorRunMismatchError: They are of another size.
        """
        if tuple(shape) != self.image_shape:
            raise PriorRunMismatchError(
                f"run {self.run_ids[0]} has perturbations of images {self.image_shape} (channels, height, width), this "
                f"run's images are {tuple(shape)}. Choose a run on images of this size."
            )

    def prior_uses(self, runs: Sequence[PriorRun]) -> list[PriorUse]:
        """Return what was used of each prior run, with the share of its harvest that the looked-up views are."""
        uses = []
        for run in runs:
            seconds = harvest_share(run, [self.name], self._slots_used.get(run.id, ()))
            uses.append(PriorUse(run_id=run.id, algorithm=_USER, signals=[self.name], harvest_seconds=seconds))
        return uses

    def draw(self, examples: Examples, rows_R: Tensor, epoch: int) -> Tensor:
        """Return whose perturbation some rows get: int64 ``[R]`` on the CPU, -1 where there is none.

        Args:
            examples: Positions in the current data and views of a batch, on the CPU.
            rows_R: int64 on the CPU, which rows of it.
            epoch: Number of the running epoch.
        """
        positions_R, views_R = examples.positions[rows_R], examples.views[rows_R]
        available = [
            torch.ones(len(rows_R), dtype=torch.bool) if seen_VN is None else seen_VN[views_R, positions_R]
            for seen_VN in self._seen
        ]
        keys_R = self._keys_N[positions_R]
        return choose_prior_runs(self._seed, keys_R, epoch, torch.stack(available, dim=1), self._recency)

    def gather(self, positions_R: Tensor, views_R: Tensor, runs_R: Tensor) -> Tensor:
        """Return perturbations of some examples: float32 ``[R, C, H, W]`` in pixel units on the device.

        Args:
            positions_R: int64 on the CPU.
            views_R: int64 on the CPU.
            runs_R: What :meth:`draw` gave for them, no -1 among it.
        """
        # One run is the usual case, and needs no copy into a common tensor.
        chosen = runs_R.unique().tolist()
        if len(chosen) == 1:
            return self._of_run(chosen[0], positions_R, views_R)
        delta_RCHW = torch.empty((len(runs_R), *self.image_shape), dtype=torch.float32, device=self._device)
        for column in chosen:
            places = (runs_R == column).nonzero().flatten()
            found = self._of_run(column, positions_R[places], views_R[places])
            delta_RCHW.index_copy_(0, places.to(self._device, non_blocking=True), found)
        return delta_RCHW

    def _of_run(self, column: int, positions_R: Tensor, views_R: Tensor) -> Tensor:
        self._slots_used.setdefault(self.run_ids[column], set()).update(views_R.unique().tolist())
        found, _ = self._archived[column].gather(positions_R, views_R)
        return found.to(self._device, torch.float32, non_blocking=True)


def _refuse_sizes(run: PriorRun, signal: Signal, archive: str) -> None:
    """Refuse perturbations that no attack of the recorded size can have made."""
    # Older or foreign records may not say the attack: then a pixel's whole range is the bound.
    ball = _ball(signal)
    bounded, epsilon = ball is not None, 1.0 if ball is None else ball
    largest = 0.0
    for entry in run.manifest.files:
        if (entry.kind, entry.name) != ("signals", signal.name):
            continue
        tensors = run.read(entry)  # memory mapped; of packed rows the scale is the largest number
        for part in tensors.get("scale", tensors["values"]).split(_ROWS_AT_ONCE):
            if part.numel():
                largest = max(largest, float(part.float().abs().nan_to_num(torch.inf, torch.inf).amax()))
    if largest > epsilon * (1 + 1e-3):  # float16 keeps three digits
        bound = f"the epsilon of their attack, {epsilon:.6g}" if bounded else "1, a pixel's whole range"
        raise DataError(
            f"run {run.id}: the perturbations {signal.name!r} are as large as {largest:.6g}, beyond {bound} (in pixel "
            "units of 0 to 1). They are damaged, or not perturbations of pixels. Harvest them again: "
            f"`reuse-algos harvest {archive} {run.id} --signals adversarial --replace`."
        )


def _ball(signal: Signal) -> float | None:
    """Return the epsilon of the attacks of a signal, the largest; None where they are not known to be L-infinity."""
    metas = [signal.slot_meta(slot) for slot in signal.slots]
    known = bool(metas) and all(meta.get("norm") == "linf" and "epsilon" in meta for meta in metas)
    return max(float(meta["epsilon"]) for meta in metas) if known else None


def _seen(signal: Signal, rows_N: Tensor | None, num_views: int) -> Tensor | None:
    """Return which examples have a perturbation: bool ``[V, N]``; None: all of them, in every view."""
    nowhere = torch.zeros(signal.num_examples, dtype=torch.bool)
    seen_VN = torch.stack([signal.seen(view) if view in signal.slots else nowhere for view in range(num_views)])
    if rows_N is not None:
        # -1 would read the last row; the second factor leaves it out.
        seen_VN = seen_VN[:, rows_N.clamp_min(0)] & (rows_N >= 0)
    return None if bool(seen_VN.all()) else seen_VN
