"""Copying runs from one store to another: interrupted, it goes on where it stopped; nothing unproven becomes visible.

A run is copied as a writer would write it: data first, each file hashed on its way and in place only if it is what the
manifest says; then the manifests in order; the mark that the run ended last.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from reuse_algos.archive.asked import tags_match
from reuse_algos.archive.format.envelope import MAX_SEALED_BYTES
from reuse_algos.archive.format.generations import check_identity, list_runs, read_identity, read_record
from reuse_algos.archive.format.names import final_path, manifest_path, run_prefix, thinned_path
from reuse_algos.archive.index.reading import scan
from reuse_algos.archive.stores.base import Chunk, Store
from reuse_algos.archive.stores.checks import DAMAGE, MissingFileError, check_sizes, reading
from reuse_algos.archive.upkeep.copy_plan import Plan, Planner, conflict_of
from reuse_algos.archive.upkeep.leases import Lease, Stopwatch
from reuse_algos.archive.upkeep.problems import Problem, Report
from reuse_algos.errors import ArchiveConflictError, ArchiveCorruptError, ArchiveError, RunNotFoundError


@dataclass
class CopyReport(Report):
    """What was copied.

    Attributes:
        runs: Runs that are now complete in the target.
        files: Data files copied.
        there: Data files that were there before.
        bytes: Bytes of data copied.
        problems: One per run that could not be copied.
    """

    runs: int = 0
    files: int = 0
    there: int = 0
    bytes: int = 0


def copy_runs(
    source: Store,
    target: Store,
    run_ids: Iterable[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    recheck: bool = True,
    known: set[str] | None = None,
    tags: Mapping[str, object] | None = None,
) -> CopyReport:
    """Copy committed runs, with every generation, into another archive, which must exist.

    Nothing in the target is ever replaced. A run that is damaged, or that is another one there, is reported, and the
    others are copied. May run while the source is written: what is committed later is not copied.

    Args:
        source: The store that has the runs.
        target: The store to copy them to.
        run_ids: The runs. Default: all.
        progress: Called with the bytes copied or checked so far and the bytes in all. Default: None.
        recheck: Hash also the files that an earlier copy brought; otherwise compare their sizes. Default: True.
        known: Paths that an earlier call with the same two stores proved. They are passed over, and this call's are
            added. If one is gone from the target, what is known of its run is forgotten. Default: None.
        tags: Copy only runs with these tags; a list of values matches any of them. A run so damaged that its tags
            cannot be read is reported. Default: None.

    Raises:
        RunNotFoundError: There is no such run in the source.
        ArchiveError: One of the two archives cannot be read or written.
    """
    known = set() if known is None else known
    identity = read_identity(target)
    report = CopyReport()
    plans: list[Plan] = []
    for run_id in _chosen(source, run_ids, tags, report):
        with _reported(run_id, report):
            if plan := Planner(source, target, Plan(run_id, identity), recheck, known).plan():
                plans.append(plan)
    # Known before the first byte, for a bar that says how long it takes.
    total = sum(plan.bytes for plan in plans)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for plan in plans:
        planned = done + plan.bytes
        with _reported(plan.run_id, report):
            try:
                _copy_run(source, target, plan, report, advance, known)
            except MissingFileError:  # known no longer, if it was known: somebody removed it from the target
                if not _forget(known, plan.run_id):
                    raise
                again = Planner(source, target, Plan(plan.run_id, identity), recheck, known).plan() or plan
                more = done + again.bytes - planned
                planned, total = planned + more, total + more
                _copy_run(source, target, again, report, advance, known)
            report.runs += 1
        advance(planned - done)  # also past what was trusted, or left out for a problem
    return report


def _forget(known: set[str], run_id: str) -> bool:
    """Take what is of one run out of what is known, and return whether there was anything."""
    stale = {path for path in known if path.startswith(f"{run_prefix(run_id)}/")}
    known -= stale
    return bool(stale)


def _chosen(
    source: Store, run_ids: Iterable[str] | None, tags: Mapping[str, object] | None, report: CopyReport
) -> list[str]:
    there = list_runs(source)
    chosen = there if run_ids is None else list(dict.fromkeys(run_ids))
    for run_id in chosen:
        if run_id not in there:
            raise RunNotFoundError(f"there is no run {run_id!r} in {source.location}")
    if tags is None:
        return chosen

    def report_damage(run_id: str, error: ArchiveError) -> None:
        what = f"its tags cannot be read: {error}"
        report.problems.append(Problem(run_id, run_prefix(run_id), what))

    found = scan(source, chosen, report_damage)
    return [run.summary.run_id for run in found if tags_match(run.summary.tags, tags)]


@contextlib.contextmanager
def _reported(run_id: str, report: CopyReport) -> Iterator[None]:
    """Report what concerns one run, and go on."""
    # One damaged run must not keep the others from being copied.
    try:
        yield
    except (*DAMAGE, ArchiveConflictError) as error:
        conflict = isinstance(error, ArchiveConflictError)
        report.problems.append(Problem(run_id, run_prefix(run_id), str(error), conflict))


def _copy_run(
    source: Store,
    target: Store,
    plan: Plan,
    report: CopyReport,
    advance: Callable[[int], None],
    known: set[str],
) -> None:
    lease = Lease(target, plan.run_id, plan.attempt, secrets.token_hex(8))
    try:
        _carry_out(source, target, plan, lease, report, advance, known)
    except (*DAMAGE, ArchiveConflictError):
        lease.release()
        raise


def _carry_out(
    source: Store,
    target: Store,
    plan: Plan,
    lease: Lease,
    report: CopyReport,
    advance: Callable[[int], None],
    known: set[str],
) -> None:
    if plan.pending and target.list(f"{run_prefix(plan.run_id)}/data"):
        lease.renew()  # to keep what an interrupted copy left there, perhaps long ago
    for path, (size, sha256) in plan.files.items():
        if plan.pending:
            lease.renew_if_due()
        began = Stopwatch()
        if path in plan.trusted:
            check_sizes(target, {path: size})
            report.there += 1
        elif target.size(path) is None and _put(source, target, path, size, sha256, advance):
            lease.note_put(path, began)
            report.files += 1
            report.bytes += size
        else:
            # Read back in full: a name that is there proves nothing of its content.
            for _ in _checked(target, path, size, sha256, advance):
                pass
            report.there += 1
        known.add(path)
    if plan.pending:
        # As a writer does before it commits, since a collection in the target does not know of the copy.
        lease.guard(plan.listed.keys(), lambda _: _check_sizes(target, plan))
        if plan.thinned > 1:
            _put_record(source, target, thinned_path(plan.run_id, plan.thinned), plan.run_id)
        for generation in plan.pending:
            _put_record(source, target, manifest_path(plan.run_id, generation), plan.run_id)
        lease.note_committed(())
    if plan.final:
        check_identity(target, plan.target_id, f"run {plan.run_id} cannot be copied")
        _put_record(source, target, final_path(plan.run_id), plan.run_id)
        known.add(final_path(plan.run_id))
    known.update(manifest_path(plan.run_id, generation) for generation in plan.pending)


class _Parts:
    """A file of the source in parts, from its beginning whenever it is asked for them, as a store may try again."""

    def __init__(self, source: Store, path: str, size: int, sha256: str, advance: Callable[[int], None]) -> None:
        self._source, self._path, self._size, self._sha256, self._advance = source, path, size, sha256, advance
        self._passed = 0

    def __iter__(self) -> Iterator[Chunk]:
        self.forget()
        with reading(self._source):
            yield from _checked(self._source, self._path, self._size, self._sha256, self._count)

    def forget(self) -> None:
        """Take back what was counted."""
        self._advance(-self._passed)
        self._passed = 0

    def _count(self, number: int) -> None:
        self._advance(number)
        self._passed += number


def _put(source: Store, target: Store, path: str, size: int, sha256: str, advance: Callable[[int], None]) -> bool:
    """Copy a file, which appears in the target only if it is what it should be; False if another copy was first."""
    parts = _Parts(source, path, size, sha256, advance)
    try:
        # The store makes the name visible only when all parts came, and _checked raises before the end of a wrong
        # file.
        target.put_if_absent(path, parts)
    except ArchiveConflictError:
        parts.forget()
        return False
    return True


def _checked(store: Store, path: str, size: int, sha256: str, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Yield a file in parts, and raise in place of the end of a wrong one."""
    digest, found = hashlib.sha256(), 0
    for part in store.stream(path):
        found += len(part)
        if found > size:
            break
        digest.update(part)
        advance(len(part))
        yield part
    if found != size:
        least = "at least " if found > size else ""
        raise ArchiveCorruptError(f"{store.location}/{path} has {least}{found} bytes, the manifest says {size}")
    if digest.hexdigest() != sha256:
        raise ArchiveCorruptError(
            f"{store.location}/{path} is damaged: its sha256 is {digest.hexdigest()}, the manifest says {sha256}"
        )


def _check_sizes(target: Store, plan: Plan) -> None:
    check_identity(target, plan.target_id, f"run {plan.run_id} cannot be copied")
    if plan.base is not None and target.size(plan.base) is None:
        raise MissingFileError(f"{target.location}/{plan.base} is not there any more")
    check_sizes(target, {path: size for path, size in plan.listed.items() if path not in plan.held})


def _put_record(source: Store, target: Store, path: str, run_id: str) -> None:
    with reading(source):
        data = read_record(source, path)
    try:
        target.put_if_absent(path, [data])
    except ArchiveConflictError as error:
        if target.get(path, MAX_SEALED_BYTES) != data:  # else another copy was first
            raise conflict_of(source, target, path, run_id) from error
