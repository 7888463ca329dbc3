"""A study's results file: lines of one archive, one line for each step.

Whoever trains a study again, from an archive of their own, has other runs of the same steps. In one file the summary
would take both for seeds of one experiment, so the file refuses them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from job_runner import ResultsFile, ResultsFileError

from reuse_algos.archive import RunArchive
from reuse_algos.sequence import Plan, StepState

__all__ = ["StudyFile"]

_ANOTHER_FILE = "Write to a file of your own: --out another.jsonl"


class StudyFile:
    """The lines of one study in a results file.

    Args:
        out: the file; lines of other studies in it do not matter.
        study: name of the study.
    """

    def __init__(self, out: ResultsFile, study: str) -> None:
        self.path = out.path
        self._out = out
        self._study = study

    def records(self) -> list[dict[str, Any]]:
        """Return the study's lines, oldest first.

        Raises:
            ResultsFileError: a step has several runs, or the file is damaged.
        """
        records = self._out.records(study=self._study)
        run_ids: dict[tuple[str, str], str] = {}
        for one in records:
            step = one["method"], one["step"]
            if run_ids.setdefault(step, one["run_id"]) != one["run_id"]:
                raise ResultsFileError(
                    f"{self.path} has two runs of {'/'.join(step)}: {run_ids[step]} and {one['run_id']}. Take the "
                    "lines of one of the two experiments out"
                )
        return records

    def check(
        self,
        records: Sequence[dict[str, Any]],
        plan: Plan,
        states: Sequence[StepState],
        archive: RunArchive | None,
        arms: Collection[str] | None,
    ) -> None:
        """Check that what is trained in an archive may be added to the lines that are there.

        Args:
            records: these lines.
            plan: the study.
            states: what has become of its steps, looked up after the lines were read.
            archive: where its runs are; None: nowhere yet.
            arms: as for :func:`reuse_algos.sequence.run_sequence`.

        Raises:
            ResultsFileError: lines are of another archive, or a step has, or is to get, another run than its line says.
        """
        if not records:
            return
        where = f"the archive at {plan.config.archive}"
        others = {name for one in records if (name := one.get("archive_id")) is not None}
        others -= set() if archive is None else {archive.archive_id}
        if others:
            raise ResultsFileError(
                f"{self.path} has runs of {self._study} from another archive ({', '.join(sorted(others))}), so it "
                f"cannot take those of {where}: the summary would pool both. {_ANOTHER_FILE}"
            )
        held = set() if archive is None else set(archive.run_ids())
        unnamed = [one["run_id"] for one in records if one.get("archive_id") is None]
        if unnamed and not held.intersection(unnamed):
            raise ResultsFileError(
                f"{self.path} has {len(unnamed)} runs of {self._study}, and {where} has none of them (such as "
                f"{unnamed[0]}), so they are from another one and the summary would pool both. {_ANOTHER_FILE}"
            )
        by_step = {(one["method"], one["step"]): one["run_id"] for one in records}
        for found in (states[place] for place in plan.needed(arms)):
            then = by_step.get((found.step.arm, found.step.name))
            if then is not None and (found.run is None or found.run.id != then):
                now = "no finished run of it" if found.run is None else f"run {found.run.id}"
                raise ResultsFileError(
                    f"{self.path} has run {then} of {found.step.title}, and {where} has {now}: the summary would take "
                    f"both for one experiment. {_ANOTHER_FILE}"
                )

    def add(self, record: dict[str, Any]) -> None:
        """Add a run, unless it is there.

        Raises:
            ResultsFileError: another run of its step is there, or one of another archive.
        """
        for one in self.records():
            if one["run_id"] == record["run_id"]:
                return
            step = one["method"], one["step"]
            if step == (record["method"], record["step"]):
                raise ResultsFileError(
                    f"{self.path} has run {one['run_id']} of {'/'.join(step)}, so it cannot take run "
                    f"{record['run_id']}. {_ANOTHER_FILE}"
                )
            if one.get("archive_id") not in (None, record["archive_id"]):
                raise ResultsFileError(
                    f"{self.path} has runs from archive {one['archive_id']}, so it cannot take run "
                    f"{record['run_id']} of archive {record['archive_id']}. {_ANOTHER_FILE}"
                )
        self._out.append(record)
