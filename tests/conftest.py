"""Nothing that a test does leaves its temporary folder."""

from __future__ import annotations

import os
import tempfile

# Set before anything is imported or collected: child processes inherit it, too.
_CACHE = tempfile.TemporaryDirectory(prefix="reuse_algos-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
