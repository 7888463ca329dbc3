"""Row 12: random operations on an archive and on a dictionary; they must never differ."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reuse_algos.archive import FileEntry, RunArchive, RunWriter, history_tensors
from reuse_algos.errors import ArchiveConflictError, ArchiveError, RunNotFoundError

from ..small_runs import MONITOR, history, manifest_of
from .outcome import Outcome, Tally
from .survival import traced


@dataclass
class ModelGeneration:
    """What one generation must read as."""

    seed: int
    attempt: int
    weights: dict[str, int]
    accuracy: float | None
    tags: dict[str, str]
    paths: list[str]


@dataclass
class ModelRun:
    """What the archive must say of a run."""

    generations: list[ModelGeneration] = field(default_factory=list)
    finished: bool = False


@dataclass(eq=False)
class Attempt:
    """A writer, and the files that it has put; by whom it was overtaken, the model knows."""

    writer: RunWriter
    generation: int
    committed: bool = False
    files: dict[str, tuple[FileEntry, Any]] = field(default_factory=dict)


class ArchiveMachine(RuleBasedStateMachine):
    """Rules are the operations; each compares its answer with the model's."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.traced = traced()
        self.traced.__enter__()  # not to wait for the disk
        self.archive = RunArchive(Path(self.folder.name, "archive"), create=True)
        self.model: dict[str, ModelRun] = {}
        self.order: list[str] = []
        self.everybody: list[Attempt] = []
        self.put_paths: set[str] = set()

    def teardown(self) -> None:
        try:
            self.compare_everything()
        finally:
            self.traced.__exit__(None, None, None)
            self.folder.cleanup()

    @initialize(target=attempts)
    def first(self) -> Attempt:
        return self._started("first")

    @rule(target=attempts, name=st.sampled_from(["a", "b", "B!"]))
    def start(self, name: str) -> Attempt:
        return self._started(name)

    def _started(self, name: str) -> Attempt:
        created = f"2026-01-01T00:00:{len(self.order):02d}"
        writer = self.archive.start_run(name, created_at=created)
        self.order.append(writer.run_id)
        return self._known(Attempt(writer, 0))

    @rule(attempt=attempts, name=st.sampled_from(["last", "best", "ep0001"]), value=st.integers(0, 3))
    def put_weights(self, attempt: Attempt, name: str, value: int) -> None:
        entry = attempt.writer.put("weights", name, {"w": torch.full((5,), float(value))})
        self._note(attempt, entry, value)

    @rule(attempt=attempts, value=st.integers(0, 3))
    def put_by_another_rank(self, attempt: Attempt, value: int) -> None:
        rank = self.archive.join_run(attempt.writer.run_id, attempt.writer.attempt)
        entry = rank.put("weights", "rank", {"w": torch.full((5,), float(value))})
        self._note(attempt, entry, value)
        try:
            rank.commit(manifest_of([]))
        except ArchiveError:
            return
        raise AssertionError("a rank that joined must not commit")

    @rule(attempt=attempts, value=st.sampled_from([0.0, 0.25, 0.5, float("nan"), float("inf")]))
    def put_metrics(self, attempt: Attempt, value: float) -> None:
        entry = attempt.writer.put("metrics", "history", history_tensors({MONITOR: history([0.1, value])}))
        self._note(attempt, entry, value)

    @rule(attempt=attempts, seed=st.integers(0, 99), tag=st.sampled_from(["x", "y"]))
    def commit(self, attempt: Attempt, seed: int, tag: str) -> None:
        run = self.model.get(attempt.writer.run_id, ModelRun())
        files = [entry for entry, _ in attempt.files.values()]
        taken_over = len(run.generations) != attempt.generation
        try:
            committed = attempt.writer.commit(manifest_of(files, seed=seed, tags={"tag": tag}, dataset=None))
        except ArchiveConflictError:
            assert taken_over, "a conflict where there is none"
            return
        assert not taken_over, "a zombie committed"
        attempt.generation += 1
        attempt.committed = True
        assert committed.generation == attempt.generation
        weights = {name: value for name, (_, value) in attempt.files.items() if name != "history"}
        accuracy = attempt.files["history"][1] if "history" in attempt.files else None
        paths = [entry.path for entry in files]
        run.generations.append(ModelGeneration(seed, attempt.writer.attempt, weights, accuracy, {"tag": tag}, paths))
        self.model[attempt.writer.run_id] = run

    @rule(attempt=attempts)
    def finish(self, attempt: Attempt) -> None:
        run = self.model.get(attempt.writer.run_id, ModelRun())
        allowed = attempt.committed and len(run.generations) == attempt.generation
        try:
            attempt.writer.finish()
        except ArchiveError:
            assert not allowed, "the run could not be finished"
            return
        assert allowed, "a run was finished by one that may not"
        run.finished = True

    @precondition(lambda self: any(run.generations for run in self.model.values()))
    @rule(target=attempts, data=st.data())
    def resume(self, data: st.DataObject) -> Any:
        run_id = data.draw(st.sampled_from([run_id for run_id in self.order if self._exists(run_id)]))
        run = self.model[run_id]
        wanted = data.draw(st.one_of(st.none(), st.integers(0, len(run.generations) + 1)))
        if wanted == 0:
            self._expect_missing(lambda: self.archive.resume_run(run_id, 0))
            return multiple()
        writer, base = self.archive.resume_run(run_id, wanted)
        generation = min(wanted or len(run.generations), len(run.generations))
        source = run.generations[generation - 1]
        assert (base.generation, base.seed) == (generation, source.seed)
        attempt_number = run.generations[-1].attempt + 1
        assert writer.attempt == attempt_number
        run.generations.append(
            ModelGeneration(source.seed, attempt_number, source.weights, source.accuracy, source.tags, source.paths)
        )
        values = {**source.weights, **({} if source.accuracy is None else {"history": source.accuracy})}
        files = {entry.name: (entry, values[entry.name]) for entry in base.files}
        return self._known(Attempt(writer, len(run.generations), True, files))

    @rule()
    def compare_listing(self) -> None:
        expected = sorted(run_id for run_id in self.order if self._exists(run_id))
        assert self.archive.run_ids() == expected
        for order in ("first", "latest"):
            ids = [run.id for run in self.archive.runs(order=order, unfinished=True)]
            in_order = [run_id for run_id in self.order if self._exists(run_id)]
            assert ids == (in_order if order == "first" else in_order[::-1])

    @rule(tag=st.sampled_from(["x", "y"]), limit=st.sampled_from([None, 1, 2]))
    def select(self, tag: str, limit: int | None) -> None:
        chosen = [
            run_id
            for run_id in self.order
            if self._exists(run_id)
            and self.model[run_id].finished
            and self.model[run_id].generations[-1].tags == {"tag": tag}
        ]
        found = self.archive.runs(tags={"tag": tag}, order="first", limit=limit)
        assert [run.id for run in found] == chosen[:limit]
        best = {run_id: self.model[run_id].generations[-1].accuracy for run_id in chosen}
        finite = {run_id: value for run_id, value in best.items() if value is not None and abs(value) < 9}
        ranked = [run.id for run in self.archive.runs(tags={"tag": tag}, order="best")]
        assert ranked == sorted(finite, key=lambda run_id: (-finite[run_id], run_id))

    @rule(days=st.sampled_from([0, 2]))
    def collect_garbage(self, days: int) -> None:
        """What no generation lists is deleted once it is old, and nothing else ever."""
        for path in (self.archive.root / "runs").rglob("*"):
            if days and path.is_file():
                os.utime(path, (time.time() - days * 86400, time.time() - days * 86400))
        report = self.archive.collect_garbage(delete=True)
        listed = {
            f"runs/{run_id}/{path}"
            for run_id, run in self.model.items()
            for generation in run.generations
            for path in generation.paths
        }
        garbage = self.put_paths - listed if days else set()
        assert {path for path, _ in report.collected if "/data/" in path} == garbage
        assert report.ok
        assert report.unknown == []
        self._forget(garbage)

    @precondition(lambda self: any(run.generations for run in self.model.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from([run_id for run_id in self.order if self._exists(run_id)]))
        self.archive.remove_run(run_id, force=True)
        del self.model[run_id]
        self._forget({path for path in self.put_paths if path.startswith(f"runs/{run_id}/")})
        assert not (self.archive.root / "runs" / run_id).exists()
        self._expect_missing(lambda: self.archive.remove_run(run_id))

    def _forget(self, gone: set[str]) -> None:
        """Files that were deleted: their writers put them again where they need them."""
        self.put_paths -= gone
        for attempt in self.everybody:
            prefix = f"runs/{attempt.writer.run_id}/"
            for name, (entry, _) in list(attempt.files.items()):
                if prefix + entry.path in gone:
                    del attempt.files[name]

    def _note(self, attempt: Attempt, entry: FileEntry, value: Any) -> None:
        name = entry.name
        attempt.files[name] = (entry, value)
        self.put_paths.add(f"runs/{attempt.writer.run_id}/{entry.path}")

    def _known(self, attempt: Attempt) -> Attempt:
        self.everybody.append(attempt)
        return attempt

    @rule()
    def verify(self) -> None:
        report = self.archive.verify()
        assert report.ok, report.problems
        assert report.runs == sum(self._exists(run_id) for run_id in self.order)

    @rule()
    def open_again(self) -> None:
        archive_id = self.archive.archive_id
        self.archive = RunArchive(self.archive.root, create=True)
        assert self.archive.archive_id == archive_id

    @rule()
    def compare_everything(self) -> None:
        for run_id in self.order:
            if not self._exists(run_id):
                self._expect_missing(lambda run_id=run_id: self.archive.run(run_id))
                continue
            run, expected = self.archive.run(run_id), self.model[run_id]
            assert (run.manifest.generation, run.finished) == (len(expected.generations), expected.finished)
            for number, generation in enumerate(expected.generations, start=1):
                self._compare(self.archive.open_run(run.id, number), generation)

    def _compare(self, run: Any, expected: ModelGeneration) -> None:
        assert (run.manifest.seed, run.manifest.attempt, run.tags) == (expected.seed, expected.attempt, expected.tags)
        assert run.weight_names == sorted(expected.weights)
        for name, value in expected.weights.items():
            assert run.weights(name)["w"].tolist() == [value] * 5
        assert run.metric_names == ([] if expected.accuracy is None else [MONITOR])
        if expected.accuracy is not None:
            assert repr(run.final_metric()) == repr(expected.accuracy)

    def _exists(self, run_id: str) -> bool:
        return bool(self.model.get(run_id, ModelRun()).generations)

    def _expect_missing(self, action: Any) -> None:
        try:
            action()
        except RunNotFoundError:
            return
        raise AssertionError("something was found that is not there")


def case(folder: Path, count: int | None = None, seed: int = 0, steps: int = 50) -> Outcome:
    """``count`` sequences (500 for None) of up to 50 operations.

    Args:
        folder: Not used: each sequence has a temporary folder of its own.
        count: Number of sequences.
        seed: Not used: hypothesis derives the sequences from the machine, and from constants that it finds in the
            modules that were imported. So they depend on what ran before in the same process.
        steps: Operations in each.
    """
    del folder, seed
    tally, examples = Tally(), 500 if count is None else count

    class Counted(ArchiveMachine):
        examples = 0

        def __init__(self) -> None:
            super().__init__()
            Counted.examples += 1

    try:
        run_state_machine_as_test(
            Counted,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                print_blob=False,
                report_multiple_bugs=False,
                phases=[Phase.generate],  # a difference is told as it was found: making it shorter takes minutes
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            ),
        )
    except Exception as error:
        # The last operation first: what noticed the difference must not be what is cut from a long text.
        tally.miss(f"{error!r} after {getattr(error, '__notes__', [])[::-1]}")
    tally.tries = min(Counted.examples, examples)
    tally.notes["steps each"] = steps
    return tally.outcome()
