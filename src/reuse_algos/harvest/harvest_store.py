"""Adding harvested views to a run, one commit for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import msgspec
import torch

from reuse_algos.archive import FileEntry, HarvestRecord, Manifest, PriorRun, RunArchive, RunWriter, encode_top_k
from reuse_algos.archive.format.records import Scalar
from reuse_algos.callbacks.recorder.facts.provenance import hardware_name
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import ArchiveError, PriorRunMismatchError
from reuse_algos.harvest.adversarial import AttackSettings
from reuse_algos.priors.presentations import harvested_name, weights_epoch

log = logging.getLogger(__name__)


def complete_views(
    run: PriorRun,
    signal: str,
    top_k: int | None,
    transform: str | None,
    made: AttackSettings | None = None,
    *,
    replace: bool = False,
) -> set[int]:
    """Return the views that an earlier harvest completed.

    Args:
        run: The run.
        signal: Name of the archived signal.
        top_k: The encoding wanted.
        transform: Only views of this augmentation; None: whatever it is.
        made: How perturbations are wanted, for those. Default: None.
        replace: Whether harvested views give way; then there are none, and only captured ones must fit. Default: False.

    Raises:
        PriorRunMismatchError: The signal is kept in another encoding or made in another way, and one signal has one.
    """
    complete = set()
    for entry in run.manifest.files:
        if (entry.kind, entry.name) != ("signals", signal) or (replace and entry.meta.get("source") == "harvest"):
            continue
        if made is not None:
            _check_made(run, signal, entry.meta, made)
        kept = entry.tensors["values"].shape[-1] if entry.meta.get("encoding") == "top_k" else None
        if kept != top_k:
            raise PriorRunMismatchError(
                f"run {run.id} keeps {signal} with top_k={kept}, and a signal has one encoding. Harvest with "
                f"top_k={kept} (None: all logits)."
            )
        if entry.meta.get("source") == "harvest" and transform in (None, entry.meta.get("transform")):
            complete.add(int(entry.meta["slot"]))  # type: ignore[arg-type]
    return complete


def _check_made(run: PriorRun, signal: str, meta: Mapping[str, Scalar], made: AttackSettings) -> None:
    wanted = {**made.meta(), "bits": made.bits}
    keys = ("attack_settings", "bits", "pixel_mean", "pixel_std")
    there, here = ([known.get(key) for key in keys] for known in (meta, wanted))
    # Rows of two attacks in one signal would look like one.
    if there != here:
        shown = [f"{one[0]} in {one[1]} bits of pixels with mean {one[2]} and std {one[3]}" for one in (there, here)]
        raise PriorRunMismatchError(
            f"run {run.id} keeps {signal} made by {shown[0]}, and {shown[1]} is asked for; one signal has one. Ask for "
            "the same, or let the new ones take the place of all views that are there: replace=True (--replace)."
        )


Encoded = tuple[dict[str, torch.Tensor], dict[str, Scalar]]


class Attempt:
    """One call of harvest as a new attempt of the run: opened at the first commit, with a clock for the cost.

    Args:
        archive: Where the run is.
        run: The run.
    """

    def __init__(self, archive: RunArchive, run: PriorRun) -> None:
        self.run = run
        self.manifest: Manifest = run.manifest
        self._archive = archive
        self._writer: RunWriter | None = None
        self._lap_began = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call, or since the beginning."""
        now = time.perf_counter()
        seconds, self._lap_began = now - self._lap_began, now
        return seconds

    def add(self, seconds: float) -> None:
        """Count seconds that another process has worked for this call."""
        self._lap_began -= seconds

    @property
    def writer(self) -> RunWriter:
        """Writes files and commits them."""
        # Resuming a run is a commit already, so it waits until there is something to write.
        if self._writer is None:
            self._writer, self.manifest = self._archive.resume_run(self.run.id)
        return self._writer

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest the run's newest one."""
        self.manifest = self.writer.commit(manifest)


class SignalStore:
    """Adds the views of one signal to the run.

    Args:
        attempt: The call that they belong to.
        signal: What is harvested, such as ``el2n``.
        weights: Whose it is.
        policy: The views.
        shown_in_training: Whether the views are those that the run was trained on.
        replace: Whether the first view takes the place of all that was harvested of the signal, and of its cost.
            Default: False.

    Attributes:
        weights: Whose it is.
    """

    def __init__(
        self,
        attempt: Attempt,
        signal: str,
        weights: str,
        policy: ViewPolicy,
        *,
        shown_in_training: bool,
        replace: bool = False,
    ) -> None:
        self._attempt, self.weights, self._policy = attempt, weights, policy
        self._is_logits = signal == "logits"
        self._name = harvested_name(signal, weights)
        self._shown_in_training = shown_in_training
        self._replace = replace
        self._record: HarvestRecord | None = None

    def commit(self, view: int, columns_N: Mapping[str, torch.Tensor], meta: Mapping[str, Scalar]) -> FileEntry:
        """Write one view and what it took since the last commit.

        Args:
            view: Number of the view.
            columns_N: The rows, one for each example, as
                :class:`~reuse_algos.archive.signals.segments.Segment` has them.
            meta: The encoding, and what else is to be said of them.

        Raises:
            PriorRunMismatchError: Views of another image size are there and stay; nothing is written.
            ArchiveError: The archive cannot be written.
        """
        renew = self._replace and self._record is None
        # Before the writer is asked for: opening it is an attempt of its own already.
        self._check_shape([old for old in self._attempt.manifest.files if not self._replaced(old, view, renew)], meta)
        writer, manifest = self._attempt.writer, self._attempt.manifest
        files = [old for old in manifest.files if not self._replaced(old, view, renew)]
        seconds = self._attempt.lap()
        meta = {
            "slot": view,
            "epoch": weights_epoch(self._attempt.run, self.weights),
            "view": view,
            "source": "harvest",
            "weights": self.weights,
            "transform": self._policy.transform,
            "seconds": seconds,
            **meta,
        }
        ids_N = torch.arange(len(columns_N["values"]))
        entry = writer.put("signals", self._name, {"ids": ids_N, **columns_N}, meta)
        earlier = [h for h in manifest.harvests if h != self._record and not (renew and h.signal == self._name)]
        self._record = HarvestRecord(
            signal=self._name,
            views=[*(self._record.views if self._record else []), view],
            weights=self.weights,
            # The lap in between is the writing of the file, which belongs to the cost as well.
            seconds=(self._record.seconds if self._record else 0.0) + seconds + self._attempt.lap(),
            hardware=hardware_name(),
        )
        dataset = manifest.dataset
        assert dataset is not None
        if dataset.transform == "unknown" and self._shown_in_training:
            # The run's own loader did not say what its views were; from now on these are the views of its signals.
            dataset = msgspec.structs.replace(dataset, view_seed=self._policy.seed, transform=self._policy.transform)
        self._attempt.commit(
            msgspec.structs.replace(manifest, dataset=dataset, harvests=[*earlier, self._record], files=[*files, entry])
        )
        return entry

    def interrupted(self) -> None:
        """Add what an incomplete view took to the cost of those that this call completed."""
        # Without any the archive has nothing that those seconds would be the cost of.
        if self._record is None:
            return
        earlier, old = self._attempt.manifest.harvests, self._record
        self._record = msgspec.structs.replace(old, seconds=old.seconds + self._attempt.lap())
        harvests = [self._record if harvest == old else harvest for harvest in earlier]
        try:
            self._attempt.commit(msgspec.structs.replace(self._attempt.manifest, harvests=harvests))
        # Only logged: something else went wrong before, and its error is on the way.
        except ArchiveError as error:
            log.warning("the seconds of an interrupted view of %s were not recorded: %s", self._name, error)

    def _check_shape(self, files: Sequence[FileEntry], meta: Mapping[str, Scalar]) -> None:
        """Refuse packed rows of another shape than those that stay."""
        for old in files:
            shapes = old.meta.get("shape"), meta.get("shape")
            if (old.kind, old.name) == ("signals", self._name) and shapes[0] != shapes[1]:
                raise PriorRunMismatchError(
                    f"run {self._attempt.run.id} keeps {self._name} of images of shape {shapes[0]}, and these are "
                    f"{shapes[1]}; a signal has one shape. Harvest the same images, or replace those: replace=True "
                    "(--replace)."
                )

    def _replaced(self, old: FileEntry, view: int, renew: bool) -> bool:
        """Return whether an earlier file gives way: a harvest of the same view, or a score of other views."""
        if (old.kind, old.name, old.meta.get("source")) != ("signals", self._name, "harvest"):
            return False
        other_images = not self._is_logits and old.meta.get("transform") != self._policy.transform
        return renew or other_images or old.meta.get("slot") == view


def encode_rows(signal: str, values_N: torch.Tensor, top_k: int | None) -> Encoded:
    """Return logits, features or scores as they are archived.

    Args:
        signal: ``logits``, ``features``, or a score.
        values_N: float32 ``[N]``, for logits ``[N, C, ...]``, for features ``[N, D]``.
        top_k: How many logits to keep; None: all.

    Returns:
        The columns, and the part of the meta that says what they are.
    """
    if signal != "logits":
        return {"values": values_N}, {"encoding": "dense", "num_classes": None}
    num_classes = values_N.shape[1]
    if top_k:
        return encode_top_k(values_N, top_k), {"encoding": "top_k", "num_classes": num_classes}
    # Larger logits would become infinite in float16.
    limit = torch.finfo(torch.float16).max
    values_N = values_N.clamp(-limit, limit).to(torch.float16)
    return {"values": values_N}, {"encoding": "dense", "num_classes": num_classes}
