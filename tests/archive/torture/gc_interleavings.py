"""Row 15: a collection against a writer that wakes up, in random but repeatable interleavings of their requests.

A writer put a file, slept for more than an hour, and now commits it, while one or two collections run, of which one
may be killed. The store's clock is an hour ahead of the machine's or behind it. Every request of everybody is one step.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from reuse_algos.archive import FileEntry, Manifest, RunWriter, StoredObject
from reuse_algos.archive.format.generations import list_generations, read_manifest
from reuse_algos.archive.format.names import final_path, run_prefix
from reuse_algos.archive.upkeep import leases as leases_module
from reuse_algos.archive.upkeep.collect import collect_garbage
from reuse_algos.errors import ArchiveConflictError, ArchiveError

from ..dict_store import Clock, DictStore, keeping_time
from .outcome import Outcome, Tally

DAY, HOUR = 86400.0, 3600.0
RUN = "sleeper"
Collector = Callable[[DictStore], None]


class KilledError(BaseException):
    """A process ends here; not an Exception, so that nothing takes it for an error to be handled."""


class Turns:
    """Lets threads take turns: each stops before every request, and one of them, drawn at random, goes on."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._stay = draw.choice((0.0, 0.3, 0.6, 0.9, 0.97))  # few switches find what many do not
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._actors: dict[int, int] = {}
        self._alive: set[int] = set()
        self._current: int | None = None
        self._last = -1
        self._kill: dict[int, int] = {}

    def run(self, actions: list[Callable[[], None]], kill: dict[int, int]) -> list[BaseException | None]:
        """Run actions to their ends; ``kill`` says before which request of its own an action is killed."""
        errors: list[BaseException | None] = [None] * len(actions)
        self._kill = dict(kill)
        self._alive = set(range(len(actions)))

        def work(actor: int) -> None:
            self._actors[threading.get_ident()] = actor
            try:
                self.step()
                actions[actor]()
            except BaseException as error:
                errors[actor] = error
            with self._changed:
                self._alive.discard(actor)
                self._next()

        threads = [threading.Thread(target=work, args=(actor,)) for actor in range(len(actions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors

    def step(self) -> None:
        """Wait for this thread's turn."""
        actor = self._actors.get(threading.get_ident())
        if actor is None:  # whoever looks at the result
            return
        if actor in self._kill:
            self._kill[actor] -= 1
            if self._kill[actor] < 0:
                raise KilledError
        with self._changed:
            self._waiting.add(actor)
            self._next()
            self._changed.wait_for(lambda: self._current == actor)
            self._waiting.discard(actor)
            self._current = None
            self._last = actor

    def _next(self) -> None:
        if self._current is None and self._alive and self._waiting >= self._alive:
            stay = self._last in self._alive and self._draw.random() < self._stay
            self._current = self._last if stay else self._draw.choice(sorted(self._alive))
            self._changed.notify_all()


@contextmanager
def _no_waiting() -> Iterator[None]:
    """A writer that a marker stops gives up at once; that it tries again is then a matter of draws, not of time."""
    module = cast(Any, leases_module)
    kept = module.WAIT_SECONDS
    module.WAIT_SECONDS = -1.0
    try:
        yield
    finally:
        module.WAIT_SECONDS = kept


def _collector(store: DictStore) -> None:
    collect_garbage(store, delete=True, min_age_seconds=HOUR)


def case(
    folder: Path | None = None, count: int | None = 1000, seed: int = 0, collector: Collector = _collector
) -> Outcome:
    """``count`` interleavings.

    Args:
        folder: Not needed: everything is in memory.
        count: How many; None: 1,000.
        seed: Of the draws.
        collector: What deletes; others than the real one show what this case would notice.
    """
    del folder
    tally = Tally()
    collected = committed = refused = 0
    with _no_waiting():
        for number in range(1000 if count is None else count):
            tally.tries += 1
            result = _one(random.Random(f"{seed}-{number}"), collector, tally, f"interleaving {number}")
            committed += result[0]
            refused += result[1]
            collected += result[2]
    tally.notes |= {"commits": committed, "refused commits": refused, "objects collected": collected}
    return tally.outcome()


def _one(draw: random.Random, collector: Collector, tally: Tally, when: str) -> tuple[int, int, int]:
    skew = draw.choice((-HOUR, 0.0, HOUR))
    clock = Clock()
    with keeping_time(clock):
        return _tried(
            draw, DictStore(skew=skew, page=draw.choice((1, 2, 1000)), clock=clock), collector, clock, tally, when
        )


def _tried(
    draw: random.Random, store: DictStore, collector: Collector, clock: Clock, tally: Tally, when: str
) -> tuple[int, int, int]:
    writer = RunWriter(store, "a" * 32, RUN, 1, run_name=RUN, created_at="2026-01-01T00:00:00", generation=0)
    other = RunWriter(store, "a" * 32, RUN, 1)  # another rank, or an attempt that crashed
    first = [_put(writer, "first"), _put(writer, "shared")]
    writer.commit(Manifest(files=first))
    sleepers = [(writer, "slept"), (other, "other")][: draw.choice((1, 2))]
    slept = [_put(*sleeper) for sleeper in sleepers]
    _put(other, "garbage")
    clock.sleep(draw.choice((HOUR, 3 * DAY)))  # an hour's skew must make neither more nor less of it
    acknowledged: list[int] = []

    def write() -> None:
        for _ in range(draw.choice((0, 0, draw.randrange(40)))):
            turns.step()  # wakes up somewhat later
        files = first + slept
        if draw.random() < 0.3:
            files = [*files, _put(writer, "fresh")]
        tries = draw.randrange(1, 5)
        while True:
            tries -= 1
            try:
                acknowledged.append(writer.commit(Manifest(files=files)).generation)
                break
            except ArchiveConflictError:
                raise
            except ArchiveError:
                if not tries:
                    raise
                files = first + [_put(*sleeper) for sleeper in sleepers]  # which were collected, or soon are
        acknowledged.append(writer.commit(Manifest(files=[*files, _put(writer, "fresher")])).generation)
        writer.finish()

    collectors = [lambda: collector(store)] * draw.choice((1, 2))
    kill = {1: draw.randrange(25)} if draw.random() < 0.3 else {}
    turns = Turns(draw)
    deleted: set[str] = set()

    def before(request: str) -> None:
        turns.step()
        if request.startswith("delete ") and "/data/" in request:
            deleted.add(request)

    store.before = before
    errors = turns.run([write, *collectors], kill)
    store.before = lambda request: None
    for error in errors:
        if error is not None and not isinstance(error, KilledError | ArchiveError):
            tally.miss(f"{when}: {error!r}")
    if isinstance(errors[0], ArchiveConflictError):
        tally.lose(f"{when}: the writer was told to stop: {errors[0]}")
    for error in errors[1:]:
        if isinstance(error, ArchiveError):
            tally.miss(f"{when}: the collection failed: {error!r}")
    _check(store, acknowledged, tally, when)
    # Later, when all is quiet, what is left over goes, whatever happened before.
    clock.sleep(3 * DAY)
    collector(store)
    _check(store, acknowledged, tally, f"{when}, later")
    left = [path for path in store.objects if path not in _listed(store) and not _is_record(path)]
    tally.check(not left, f"{when}: garbage was left: {left[:3]}")
    return len(acknowledged), isinstance(errors[0], ArchiveError), len(deleted)


def _put(writer: RunWriter, name: str) -> FileEntry:
    return writer.put("weights", name, {"w": torch.tensor([float(len(name))])})


def _is_record(path: str) -> bool:
    return "/manifests/" in path or path == final_path(RUN)


def _listed(store: DictStore) -> dict[str, int]:
    manifests = [read_manifest(store, RUN, generation) for generation in list_generations(store, RUN)]
    return {f"{run_prefix(RUN)}/{entry.path}": entry.bytes for found in manifests for entry in found.files}


def _check(store: DictStore, acknowledged: list[int], tally: Tally, when: str) -> None:
    there = list_generations(store, RUN)
    for generation in (1, *acknowledged):
        if generation not in there:
            tally.lose(f"{when}: generation {generation} is gone")
    found = {item.path: item.size for item in cast("Iterator[StoredObject]", store.walk(run_prefix(RUN)))}
    for path, size in _listed(store).items():
        if found.get(path) != size:
            tally.tear(f"{when}: {path} was committed and is gone")
