"""When the jobs of a sequence are ended before their end."""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import Any

from reuse_algos.sequence.launchers.base import Launcher, Work

STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_ENDED = 143  # as of a process that is ended by a signal to terminate


class Halt:
    """Says when it is time to end, and waits for jobs until then.

    Args:
        time_limit: Seconds from now. Default: None, never, unless :meth:`stop` is called.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._until = math.inf if time_limit is None else monotonic() + time_limit
        self._stopped = threading.Event()
        self._patience = 0.0

    @property
    def now(self) -> bool:
        """Whether it is time to end."""
        return self._stopped.is_set() or monotonic() >= self._until

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """End everything soon.

        Args:
            patience: Seconds that jobs may take to close what they have open. Ctrl-C in a terminal reaches them, too,
                so that they know. Default: 60.
        """
        self._patience = patience
        self._stopped.set()

    def run(self, launcher: Launcher, job: Work) -> int:
        """Run a job and return its exit status; that of a job that had to be ended is not 0."""
        handle: Any = launcher.submit(job)
        status = None
        try:
            while status is None and not self.now:
                # Looks twice a second, since the time may be up or the lease lost.
                status = launcher.wait(handle, min(_LOOK_SECONDS, max(0.0, self._until - monotonic())))
            if status is None:
                # Ctrl-C reached the job, too: it may be writing its last checkpoint.
                status = launcher.wait(handle, self._patience)
        # Also after an error of the launcher: a job that nobody waits for must not go on.
        finally:
            launcher.cancel(handle)
        return _ENDED if status is None else status
