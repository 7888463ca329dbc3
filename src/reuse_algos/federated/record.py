"""The record of a federated run: the model of each round, and what the rounds took together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from reuse_algos.archive import (
    CostRecord,
    Manifest,
    MetricHistory,
    PriorRun,
    PriorUse,
    Progress,
    RunArchive,
    RunWriter,
    history_tensors,
    infer_mode,
)
from reuse_algos.callbacks.recorder.monitor import choose_monitor
from reuse_algos.errors import ArchiveConflictError
from reuse_algos.federated.settings import FederatedConfig
from reuse_algos.federated.training import Trained

_ROUND = "round-{}"  # name of a round's weights


class RoundRecord:
    """Writes a federated run, or goes on with one that has not ended and was made from the same file.

    Args:
        archive: The archive.
        config: The federated run.
        described: What the manifest says of recipe, data, model and task.
        examples: What the archive keeps of the examples.
        teachers: Ids of the runs that label the first round's images.

    Attributes:
        rounds: Rounds that are recorded.

    Raises:
        ArchiveConflictError: The archive has a run of this name that has ended, or was made from another file.
    """

    def __init__(
        self,
        archive: RunArchive,
        config: FederatedConfig,
        described: Manifest,
        examples: Mapping[str, Tensor],
        teachers: Sequence[str],
    ) -> None:
        self.rounds, self._config = 0, config
        self._rows: dict[str, list[tuple[float, ...]]] = {}
        settings = {**(described.recipe or {}), "federated": _plain(asdict(config))}
        there = self._same_run(archive, settings)
        if there is not None:
            self._writer, self._manifest = archive.resume_run(there.id)
            # The generation that the writer goes on from, even if another one was committed since.
            self._take_back(archive.open_run(there.id, self._manifest.generation))
            return
        self._writer: RunWriter = archive.start_run(config.run_name)
        self._manifest = msgspec.structs.replace(
            described,
            recipe=settings,
            tags=config.tags,
            prior_runs=[PriorUse(run_id=one, algorithm="federated", weights=["last"]) for one in teachers],
            health="empty",
            cost=CostRecord(train_flops=0.0),
            files=[self._writer.put("dataset", "examples", examples)],
        )

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._writer.run_id

    def weights(self, archive: RunArchive) -> dict[str, Tensor]:
        """Return the model of the newest round that is recorded."""
        run = archive.open_run(self.run_id, self._manifest.generation)
        return {name: value.clone() for name, value in run.weights(_ROUND.format(self.rounds)).items()}

    def commit(
        self, round_number: int, weights: Mapping[str, Tensor], values: Mapping[str, float], parts: Sequence[Trained],
        cost: CostRecord,
    ) -> None:  # fmt: skip
        """Record a round; the last one ends the run.

        Args:
            round_number: From 1.
            weights: The model of the round.
            values: Metrics of the round by full name.
            parts: What clients and server trained.
            cost: What the round took, labelling images as set-up.
        """
        old, epoch = self._manifest, round_number * self._config.clients.epochs
        progress = Progress(
            epoch=epoch,
            batch=old.progress.batch + sum(one.batches for one in parts),
            sample=old.progress.sample + sum(one.samples for one in parts),
        )
        cost = _sum(old.cost, cost)
        for name, value in values.items():
            row = (progress.batch, progress.sample, epoch, cost.train_seconds, cost.eval_seconds, value)
            self._rows.setdefault(name, []).append(row)
        columns = {name: map(np.asarray, zip(*rows, strict=True)) for name, rows in self._rows.items()}
        histories = {name: MetricHistory(*parts) for name, parts in columns.items()}
        is_last = round_number == self._config.rounds
        # The history has grown by a round and replaces the one before; the weights of earlier rounds stay.
        files = [one for one in old.files if one.kind != "metrics"]
        for name in [_ROUND.format(round_number), *(["last"] if is_last else [])]:
            files.append(self._writer.put("weights", name, weights))
        files.append(self._writer.put("metrics", "history", history_tensors(histories)))
        monitor = choose_monitor([name for name in values if name.startswith("metrics/eval/")])
        # Integer buffers count as finite: batch norm counts its batches in one.
        finite = all(bool(value.isfinite().all()) for value in weights.values())
        self._manifest = self._writer.commit(
            msgspec.structs.replace(
                old,
                progress=progress,
                cost=cost,
                monitor=monitor,
                monitor_mode=infer_mode(monitor or ""),
                health="ok" if finite else "diverged",
                files=files,
            )
        )
        self.rounds = round_number
        if is_last:
            self._writer.finish()

    def _same_run(self, archive: RunArchive, settings: Mapping[str, Any]) -> PriorRun | None:
        """Return the run to go on with, or None where there is none of this name."""
        name = self._config.run_name
        there = archive.runs(run_name=name, unfinished=True, unhealthy=True)
        for run in there:
            if run.finished or run.manifest.recipe != _plain(settings):
                raise ArchiveConflictError(
                    f"{archive.location} has a run named {name!r} already ({run.id}"
                    f"{'' if run.finished else ', unfinished and made from other settings'}). Choose another run_name, "
                    f"or remove it: reuse-algos rm {archive.location} {run.id}"
                )
        return there[0] if there else None

    def _take_back(self, run: PriorRun) -> None:
        self.rounds = run.manifest.progress.epoch // self._config.clients.epochs
        for name in run.metric_names:
            self._rows[name] = list(zip(*(column.tolist() for column in run.metric(name)), strict=True))


def _sum(one: CostRecord, other: CostRecord) -> CostRecord:
    """Return what two costs are together; a number that one of them does not know is not known."""
    pairs: dict[str, Any] = {name: (getattr(one, name), getattr(other, name)) for name in one.__struct_fields__}
    sums: dict[str, Any] = {name: None if None in pair else sum(pair) for name, pair in pairs.items()}
    return CostRecord(**sums)


def _plain(settings: Any) -> Any:
    """Return settings as a manifest gives them back."""
    return msgspec.json.decode(msgspec.json.encode(settings, enc_hook=str))
