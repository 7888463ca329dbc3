"""Row 13: the one suite that every store must pass, run by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from .outcome import Outcome, Tally

TESTS = Path(__file__).parents[2]
SUITE = TESTS / "archive" / "test_archive_store.py"


def case(folder: Path, count: int | None = None, seed: int = 0, suite: Path = SUITE) -> Outcome:
    """Every test of the suite, for every store.

    Args:
        folder: Where to work.
        count: Not used: the suite is short.
        seed: Not used.
        suite: The file of tests.
    """
    del count, seed
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", str(suite)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=environment, timeout=1200)
    if not report.exists():
        raise RuntimeError(f"pytest did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    tally = Tally()
    skipped = 0
    for test in ElementTree.parse(report).iter("testcase"):
        outcomes = {child.tag: child for child in test}
        if "skipped" in outcomes:
            skipped += 1
            continue
        tally.tries += 1
        for kind in ("failure", "error"):
            if kind in outcomes:
                tally.miss(f"{test.get('name')}: {outcomes[kind].get('message')}")
    tally.notes["skipped"] = skipped
    tally.check(tally.tries > 0, "no test ran")
    return tally.outcome()
