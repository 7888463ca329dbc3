"""A command that ends with whoever started it: ``python -m reuse_algos.piped COMMAND ...``.

Launchers start the parts of a harvest like that, so that none outlives a driver that was killed.
"""

from __future__ import annotations

import sys

from reuse_algos.cli import main
from reuse_algos.remote_job import end_with_pipe

if __name__ == "__main__":
    end_with_pipe()
    sys.exit(main())
