"""The archive is looked at, and what was shown to help in its situation is done."""

from reuse_algos.algorithms.auto_reuse.auto_reuse import AutoReuse
from reuse_algos.algorithms.auto_reuse.decision import Decision, RunFacts, decide

__all__ = ["AutoReuse", "Decision", "RunFacts", "decide"]
