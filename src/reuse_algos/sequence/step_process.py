"""The process of one step: ``reuse_algos.train`` that ends at once when the sequence that started it is gone.

A killed sequence must not leave a training behind: the next one resumes the same checkpoint, and two processes would
write one run. The standard input is a pipe that only the sequence holds open, so its end is the sequence's end.
"""

from __future__ import annotations

import os
import sys
import threading

import torch

from reuse_algos.train import main

__all__ = ["follow_parent"]

_LEFT_BEHIND = 143


def follow_parent(descriptor: int = 0) -> None:
    """End this process as soon as ``descriptor`` is at its end, without finishing anything, as a kill would."""

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os._exit(_LEFT_BEHIND)

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()


if __name__ == "__main__":
    follow_parent()
    status = main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
