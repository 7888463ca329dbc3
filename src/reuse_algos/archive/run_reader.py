"""Reading an archive: what is known of all runs, selections of them, and single ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone

import msgspec

from reuse_algos.archive.asked import Asked
from reuse_algos.archive.format.generations import find_sound, list_generations, read_final, read_manifest
from reuse_algos.archive.format.manifest import decode_manifest
from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.archive.format.summary import RunSummary, summary_of
from reuse_algos.archive.index.catalog import Catalog, Known
from reuse_algos.archive.index.reading import SteppedBackError, stepped_back
from reuse_algos.archive.run import PriorRun
from reuse_algos.archive.selection import Order, shortlist
from reuse_algos.archive.stores.base import Store
from reuse_algos.archive.stores.checks import DAMAGE, refusals_as_damage
from reuse_algos.archive.upkeep.upkeep import Upkeep
from reuse_algos.errors import ArchiveError, ArchiveWarning, RunNotFoundError, nearest

_CLOCKS_DIFFER = timedelta(minutes=10)  # two machines may differ by this much


class RunReader(Upkeep):
    """The methods of :class:`~reuse_algos.archive.run_archive.RunArchive` that read runs.

    Args:
        store: The archive's store.

    Attributes:
        archive_id: The archive's identity.
    """

    archive_id: str

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._faults: dict[str, str] = {}
        self._unbelieved: set[str] = set()  # runs that were not what the index says of them

    @property
    def faults(self) -> dict[str, str]:
        """What was warned of so far, by run: damage, missing permission, or a generation that was passed over."""
        return dict(self._faults)

    def run_ids(self, *, uncommitted: bool = False) -> list[str]:
        """Return the sorted ids of all committed runs, damaged ones included.

        Args:
            uncommitted: Also list what has files but no commit: not yet a run, or not any more. Default: False.
        """
        candidates = self._candidates()
        return candidates if uncommitted else [name for name in candidates if self._is_committed(name)]

    def summaries(
        self,
        *,
        where: str | None = None,
        tags: Mapping[str, object] | None = None,
        run_name: str | None = None,
        unfinished: bool = False,
        unhealthy: bool = False,
    ) -> Iterator[RunSummary]:
        """Give what is known of each run without opening it, in any order, one at a time.

        This is the one way in which many runs are looked at: through the index
        (:mod:`reuse_algos.archive.index.catalog`), so that it costs what changed. Of a run that ended, what is damaged
        shows when it is opened. A damaged run is left out with one :class:`~reuse_algos.errors.ArchiveWarning`.

        Args:
            where: A filter such as ``"tags.study=lr and accuracy>0.9"``
                (:mod:`reuse_algos.archive.where`). Default: any run.
            tags: Tags that must match; a list of values matches any of them. Default: any tags.
            run_name: The name that must match. Default: any name.
            unfinished: Also runs that have not ended. Default: False.
            unhealthy: Also runs that diverged or trained nothing. Default: False.

        Raises:
            WhereError: The filter cannot be read, or names a metric that no run has.
            ArchiveError: The archive could not be listed, or a run not be read for a reason other than damage.
        """
        asked = Asked(where, tags, run_name, unfinished=unfinished, unhealthy=unhealthy)
        for known in self._catalog().runs(self._candidates(), self._warn, asked):
            yield known.summary
        # Any run may have had the metric, so this is known after the last one.
        asked.check_names()

    def runs(
        self,
        *,
        where: str | None = None,
        tags: Mapping[str, object] | None = None,
        run_name: str | None = None,
        order: Order = "latest",
        metric: str | None = None,
        limit: int | None = None,
        unfinished: bool = False,
        unhealthy: bool = False,
    ) -> list[PriorRun]:
        """Select runs. A damaged run is left out with one :class:`~reuse_algos.errors.ArchiveWarning`.

        Only the runs that are returned are opened; see :meth:`summaries` for what the others cost.

        Args:
            where: A filter such as ``"tags.study=lr and accuracy>0.9"``. Default: any run.
            tags: Tags that must match; a list of values matches any of them. Default: any tags.
            run_name: The name that must match. Default: any name.
            order: ``"latest"`` or ``"first"`` by the time of the start, or ``"best"`` by the final value of
                ``metric``, which leaves out runs without a finite one. Ties go by id. Default: ``"latest"``.
            metric: The metric of ``"best"``. Default: each run's own monitor, which must be the same for all.
            limit: The most runs to return. Default: all.
            unfinished: Also take runs that have not ended. Default: False.
            unhealthy: Also take runs that diverged or trained nothing. Default: False.

        Raises:
            SignalNotFoundError: No run that fits has this metric, or several of this name, or the monitors differ.
            WhereError: The filter cannot be read, or names a metric that no run has.
            ArchiveError: The archive could not be listed, or a run not be read for a reason other than damage.
        """
        # Before the archive is listed, which may take seconds in a bucket.
        if order not in ("best", "latest", "first"):
            raise ArchiveError(f"order {order!r} is not known.{nearest(order, ('best', 'latest', 'first'))}")
        asked = Asked(where, tags, run_name, unfinished=unfinished, unhealthy=unhealthy)
        opened: dict[str, PriorRun | None] = {}
        while True:
            found = self._catalog().runs(self._candidates(), self._warn, asked)
            if damaged := {run_id for run_id, run in opened.items() if run is None}:
                found = (known for known in found if known.summary.run_id not in damaged)
            kept = shortlist(self._store, found, order, metric, limit, self._warn)
            asked.check_names()
            chosen: list[PriorRun] = []
            believed = True
            for known in kept:
                if len(chosen) == limit:
                    break
                run_id = known.summary.run_id
                if run_id not in opened:
                    run, believed = self._opened(known)
                    if not believed:  # the index was wrong about it, so others may belong in front
                        break
                    opened[run_id] = run
                if (run := opened[run_id]) is not None:
                    chosen.append(run)
            # Where damaged ones used up the spare ones, they are known now, and left out of the next shortlist.
            if believed and (limit is None or len(chosen) == limit or len(kept) <= limit):
                if order == "latest":
                    _warn_of_the_future(chosen)
                return chosen

    def run(self, run_id: str) -> PriorRun:
        """Return one run by its id, or by its name if no other run has it.

        Raises:
            RunNotFoundError: There is no such run, or several of this name.
            ArchiveCorruptError: The run is damaged.
            ArchiveVersionError: It was written by a newer major version.
            ArchiveError: A run could not be read.
        """
        # An id needs no listing; a name does.
        if is_safe_name(run_id) and (run := self._newest(run_id)):
            return run
        # Among all runs: a name that a diverged run has as well means two.
        named = sorted(found.run_id for found in self.summaries(run_name=run_id, unfinished=True, unhealthy=True))
        if len(named) == 1 and (run := self._newest(named[0])):
            return run
        if named:
            ids = ", ".join(named)
            raise RunNotFoundError(f"{len(named)} runs are named {run_id!r}; give one of their ids: {ids}")
        raise self._not_found(run_id)

    def open_run(self, run_id: str, generation: int | None = None) -> PriorRun:
        """Return one generation of a run.

        Args:
            run_id: Its id.
            generation: The generation. Default: the newest.

        Raises:
            RunNotFoundError: There is no such run.
            ArchiveCorruptError: That generation is missing, or the run is damaged.
            ArchiveVersionError: It was written by a newer major version.
            ArchiveError: It could not be read.
        """
        if is_safe_name(run_id):
            if generation is None:
                if run := self._newest(run_id):
                    return run
            elif list_generations(self._store, run_id):
                manifest = read_manifest(self._store, run_id, generation)
                return PriorRun(self._store, manifest, read_final(self._store, run_id))
        raise self._not_found(run_id)

    def _is_committed(self, run_id: str) -> bool:
        try:
            with refusals_as_damage(self._store):
                return bool(list_generations(self._store, run_id))
        except DAMAGE as error:  # it is listed all the same, so that it can be verified or removed
            self._warn(run_id, error)
            return True

    def _catalog(self) -> Catalog:
        return Catalog(self._store, self.archive_id, self._unbelieved)

    def _opened(self, known: Known) -> tuple[PriorRun | None, bool]:
        """Return a run of a selection, None if it is damaged; and whether it is what its summary says."""
        summary = known.summary
        try:
            # The catalog has just read this generation, because the index did not know the run.
            if known.latest is not None:
                return PriorRun(self._store, known.latest.manifest(), known.latest.final), True
            with refusals_as_damage(self._store):
                run = self._newest(summary.run_id, summary)
        except DAMAGE as error:
            self._warn(summary.run_id, error)
            return None, True
        if run is None:
            self._unbelieved.add(summary.run_id)
        return run, run is not None

    def _newest(self, run_id: str, summary: RunSummary | None = None) -> PriorRun | None:
        """Return the newest sound generation of a run; None where it is not there, or not what a summary says."""
        found = find_sound(self._store, run_id, decode_manifest)
        if found is None:
            return None
        latest, manifest = found
        if latest.fault is not None:
            self._warn(run_id, stepped_back(latest))
        if summary is not None:
            says = summary_of(manifest, latest.final)
            unsaid = None in says.finals.values()  # by a manifest of an older version
            if not says.says_the_same(msgspec.structs.replace(summary, finals=says.finals) if unsaid else summary):
                return None
        return PriorRun(self._store, manifest, latest.final)

    def _warn(self, run_id: str, error: ArchiveError) -> None:
        # One warning for each run: a selection in every epoch would repeat it.
        if run_id not in self._faults:
            self._faults[run_id] = str(error)
            what = "is not as it was committed" if isinstance(error, SteppedBackError) else "is left out"
            warnings.warn(f"run {run_id} {what}: {error}", ArchiveWarning, stacklevel=3)

    def _not_found(self, run_id: str) -> RunNotFoundError:
        found = self.summaries(unfinished=True, unhealthy=True)
        known = [name for run in found for name in (run.run_id, run.run_name)]
        return RunNotFoundError(f"there is no run {run_id!r} in {self.location}.{nearest(run_id, known)}")


def _warn_of_the_future(runs: list[PriorRun]) -> None:
    """Warn of a run that says it was started later than now: it is the latest one until that time has come."""
    by_now = (datetime.now(timezone.utc) + _CLOCKS_DIFFER).isoformat(timespec="microseconds")
    if ahead := [run for run in runs if run.manifest.created_at > by_now]:
        warnings.warn(
            f"run {ahead[0].id} says that it was started at {ahead[0].manifest.created_at}, which is in the future. "
            "The order latest goes by such times, and a clock was wrong, this one's or its own. Select runs by tags, "
            "by name, or by the order best.",
            ArchiveWarning,
            stacklevel=3,
        )
