"""Adding harvested views to a run, one commit for each."""

from __future__ import annotations

import time

import msgspec
import torch

from reuse_algos.algorithms.presentations import harvested_name, weights_epoch
from reuse_algos.archive import FileEntry, HarvestRecord, Manifest, PriorRun, RunArchive, RunWriter, encode_top_k
from reuse_algos.callbacks.provenance import hardware_name
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import PriorRunMismatchError

__all__ = ["Attempt", "SignalStore", "complete_views"]


def complete_views(run: PriorRun, signal: str, top_k: int | None, transform: str | None) -> set[int]:
    """Views that an earlier harvest completed.

    Args:
        run: the run.
        signal: name of the archived signal.
        top_k: the encoding wanted.
        transform: only views of this augmentation; None: whatever it is.

    Raises:
        PriorRunMismatchError: the signal is kept in another encoding, and one signal has one.
    """
    complete = set()
    for entry in run.manifest.files:
        if (entry.kind, entry.name) != ("signals", signal):
            continue
        kept = entry.tensors["values"].shape[-1] if entry.meta.get("encoding") == "top_k" else None
        if kept != top_k:
            raise PriorRunMismatchError(
                f"run {run.id} keeps {signal} with top_k={kept}, and a signal has one encoding. Harvest with "
                f"top_k={kept} (None: all logits)."
            )
        if entry.meta.get("source") == "harvest" and transform in (None, entry.meta.get("transform")):
            complete.add(int(entry.meta["slot"]))  # type: ignore[arg-type]
    return complete


class Attempt:
    """One call of harvest as a new attempt of the run: opened at the first commit, with a clock for the cost.

    Args:
        archive: where the run is.
        run: the run.
    """

    def __init__(self, archive: RunArchive, run: PriorRun) -> None:
        self.run = run
        self.manifest: Manifest = run.manifest
        self._archive = archive
        self._writer: RunWriter | None = None
        self._lap_began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the beginning."""
        now = time.perf_counter()
        seconds, self._lap_began = now - self._lap_began, now
        return seconds

    @property
    def writer(self) -> RunWriter:
        """Writes files and commits them."""
        if self._writer is None:
            self._writer, self.manifest = self._archive.resume_run(self.run.id)
        return self._writer

    def commit(self, manifest: Manifest) -> None:
        """Make a manifest the run's newest one."""
        self.manifest = self.writer.commit(manifest)


class SignalStore:
    """Adds the views of one signal to the run.

    Args:
        attempt: the call that they belong to.
        signal: what is harvested, such as ``el2n``.
        weights: whose it is.
        policy: the views.
        top_k: how many logits to keep; None: all.
        shown_in_training: whether the views are those that the run was trained on.
    """

    def __init__(
        self,
        attempt: Attempt,
        signal: str,
        weights: str,
        policy: ViewPolicy,
        *,
        top_k: int | None,
        shown_in_training: bool,
    ) -> None:
        self._attempt, self._weights, self._policy, self._top_k = attempt, weights, policy, top_k
        self._is_logits = signal == "logits"
        self._name = harvested_name(signal, weights)
        self._shown_in_training = shown_in_training
        self._record: HarvestRecord | None = None

    def commit(self, view: int, values_N: torch.Tensor) -> FileEntry:
        """Write one view and what it took since the last commit.

        Args:
            view: its number.
            values_N: float32 ``[N]``, for logits ``[N, C, ...]``.
        """
        writer, manifest = self._attempt.writer, self._attempt.manifest
        meta = {
            "slot": view,
            "epoch": weights_epoch(self._attempt.run, self._weights),
            "view": view,
            "source": "harvest",
            "weights": self._weights,
            "transform": self._policy.transform,
            "encoding": "top_k" if self._top_k else "dense",
            "num_classes": values_N.shape[1] if self._is_logits else None,
        }
        entry = writer.put("signals", self._name, {"ids": torch.arange(len(values_N)), **self._encode(values_N)}, meta)
        earlier = [h for h in manifest.harvests if h != self._record]
        self._record = HarvestRecord(
            signal=self._name,
            views=[*(self._record.views if self._record else []), view],
            weights=self._weights,
            seconds=(self._record.seconds if self._record else 0.0) + self._attempt.lap(),
            hardware=hardware_name(),
        )
        dataset = manifest.dataset
        assert dataset is not None
        if dataset.transform == "unknown" and self._shown_in_training:
            # The run's own loader did not say what its views were; from now on these are the views of its signals.
            dataset = msgspec.structs.replace(dataset, view_seed=self._policy.seed, transform=self._policy.transform)
        files = [old for old in manifest.files if not self._replaced(old, view)]
        self._attempt.commit(
            msgspec.structs.replace(manifest, dataset=dataset, harvests=[*earlier, self._record], files=[*files, entry])
        )
        return entry

    def _encode(self, values_N: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self._is_logits:
            return {"values": values_N}
        if self._top_k:
            return encode_top_k(values_N, self._top_k)
        limit = torch.finfo(torch.float16).max
        return {"values": values_N.clamp(-limit, limit).to(torch.float16)}

    def _replaced(self, old: FileEntry, view: int) -> bool:
        """Whether an earlier file gives way: a harvest of the same view, or a score of images shown otherwise."""
        if (old.kind, old.name, old.meta.get("source")) != ("signals", self._name, "harvest"):
            return False
        other_images = not self._is_logits and old.meta.get("transform") != self._policy.transform
        return other_images or old.meta.get("slot") == view
