"""Reuse what earlier training runs computed.

>>> from reuse_algos import PriorRunDistillation, RunRecorder

The names below are loaded when they are first used, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reuse_algos.algorithms import (
        AdversarialReplay,
        AutoReuse,
        HistoryCurriculum,
        PriorRunDistillation,
        PriorRunWarmStart,
    )
    from reuse_algos.archive import RunArchive
    from reuse_algos.callbacks import RunRecorder

__version__ = "0.2.0"

__all__ = [
    "AdversarialReplay",
    "AutoReuse",
    "HistoryCurriculum",
    "PriorRunDistillation",
    "PriorRunWarmStart",
    "RunArchive",
    "RunRecorder",
    "__version__",
]

_HOMES = {
    "AdversarialReplay": "reuse_algos.algorithms",
    "AutoReuse": "reuse_algos.algorithms",
    "HistoryCurriculum": "reuse_algos.algorithms",
    "PriorRunDistillation": "reuse_algos.algorithms",
    "PriorRunWarmStart": "reuse_algos.algorithms",
    "RunArchive": "reuse_algos.archive",
    "RunRecorder": "reuse_algos.callbacks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reuse_algos' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
