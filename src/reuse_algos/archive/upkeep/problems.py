"""What a check of an archive reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One damaged file.

    Attributes:
        run_id: The run that it belongs to; empty for the archive itself.
        path: Its path, relative to the archive.
        what: What is wrong with it.
        conflict: Whether nothing is damaged, but two writers wrote different content under one name. Default: False.
    """

    run_id: str
    path: str
    what: str
    conflict: bool = False


@dataclass
class Report:
    """What came of some work on an archive.

    Attributes:
        problems: What is damaged or was left alone, in the order found.
    """

    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there was no problem."""
        return not self.problems


@dataclass
class VerifyReport(Report):
    """What was checked, and what was found wrong.

    Attributes:
        runs: Number of runs.
        files: Number of data files.
        bytes: Their total size.
    """

    runs: int = 0
    files: int = 0
    bytes: int = 0
