"""Every error this library raises on purpose.

Each is a :class:`ReuseAlgosError` and also the builtin a caller would expect, so ``except FileNotFoundError`` works as
well as ``except ReuseAlgosError``. Messages say what went wrong, with which object, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchiveConflictError",
    "ArchiveCorruptError",
    "ArchiveError",
    "ArchiveNotADirectoryError",
    "ArchiveNotFoundError",
    "ArchivePermissionError",
    "ArchiveVersionError",
    "ArchiveWarning",
    "CompareError",
    "DataError",
    "ExampleIdError",
    "FederatedError",
    "HarmWarning",
    "ModelError",
    "NoEffectWarning",
    "NotEnoughEvidenceError",
    "PriorRunMismatchError",
    "RecipeError",
    "ReuseAlgosError",
    "RunNotFoundError",
    "SequenceError",
    "SignalNotFoundError",
    "StaleReplayWarning",
    "TaskError",
    "nearest",
]


class ReuseAlgosError(Exception):
    """Base of all errors of this library."""


class ArchiveError(ReuseAlgosError, OSError):
    """The archive could not be read or written (no space, I/O error, bad location)."""


class ArchivePermissionError(ArchiveError, PermissionError):
    """The archive may not be read or written by this user."""


class ArchiveNotADirectoryError(ArchiveError, NotADirectoryError):
    """The archive's path is something other than a directory."""


class ArchiveNotFoundError(ArchiveError, FileNotFoundError):
    """There is no archive at this place."""


class ArchiveCorruptError(ArchiveError, ValueError):
    """A file of the archive is damaged, torn, hostile, or not what its manifest says."""


class ArchiveVersionError(ArchiveError, ValueError):
    """The archive was written in a newer major format than this version reads."""


class ArchiveConflictError(ArchiveError, FileExistsError):
    """Another writer was first, for example a resumed attempt of the same run."""


class RunNotFoundError(ReuseAlgosError, LookupError):
    """No committed run has this id, or none matches the selection."""


class SignalNotFoundError(ReuseAlgosError, LookupError):
    """The run has no such signal, weights or metric."""


class PriorRunMismatchError(ReuseAlgosError, ValueError):
    """A prior run does not fit the current one: other data, classes, model or views."""


class ExampleIdError(ReuseAlgosError, ValueError):
    """It cannot be known which examples are in a batch."""


class DataError(ReuseAlgosError, ValueError):
    """A dataset cannot be loaded as asked."""


class ModelError(ReuseAlgosError, ValueError):
    """A model cannot be built as asked."""


class TaskError(ReuseAlgosError, ValueError):
    """What a Trainer trains cannot be read from its batches, or something is not defined for it."""


class RecipeError(ReuseAlgosError, ValueError):
    """A recipe is wrong; the message lists all of its faults."""


class CompareError(ReuseAlgosError, ValueError):
    """Runs cannot be compared as asked."""


class NotEnoughEvidenceError(ReuseAlgosError, ValueError):
    """A forecast or a sweep is refused: the runs are too few, of the wrong kind, or do not show what was asked."""


class SequenceError(ReuseAlgosError, RuntimeError):
    """A sequence of runs cannot go on: a step failed, or what was trained is not what the file now says."""


class FederatedError(ReuseAlgosError, RuntimeError):
    """A run over clients cannot go on: Flower is missing, a node is not set up, or no client answered."""


class ArchiveWarning(UserWarning):
    """Something in an archive is damaged or odd, but the call could go on without it."""


class NoEffectWarning(UserWarning):
    """An algorithm was switched on and changed nothing."""


class HarmWarning(UserWarning):
    """An algorithm did harm and was switched off."""


class StaleReplayWarning(UserWarning):
    """Replayed perturbations hardly fool the model that trains now."""


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Say which known names are near ``name``, for the end of an error message.

    Returns:
        `` Did you mean 'a' or 'b'?`` where something is near, else `` Known: a, b, c.``, else an empty string.
    """
    # Sorted: sets come in another order in each process, and messages are compared and searched for.
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return " Did you mean " + " or ".join(repr(c) for c in close) + "?"
    if names:
        # An archive may have thousands of runs.
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f" Known: {shown}."
    return ""
