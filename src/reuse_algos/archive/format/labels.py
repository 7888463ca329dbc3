"""Names and tags that people read: which characters they may have.

A control character can take over a terminal, a newline can forge a row of a table, and a mark that turns the direction
of text can make one name look like another. None is written. What other programs wrote is read, and escaped where it is
shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reuse_algos.errors import ArchiveError

# C0 and C1 controls with the newline, line and paragraph separators, and the marks of bidirectional text (Unicode
# Technical Report 36, section 2.5).
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    r"""Return a text with each control character and each mark of direction as its JSON code, such as ``\u001b``."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def check_labels(run_name: str, tags: Mapping[str, str]) -> None:
    """Refuse a run name or tags that could mislead who reads them.

    Raises:
        ArchiveError: One holds a control character, a newline or a mark of direction.
    """
    for what, text in (("run name", run_name), *(("tag", text) for item in tags.items() for text in item)):
        if _HIDDEN.search(str(text)):
            raise ArchiveError(
                f"the {what} '{escaped(str(text))[:200]}' holds a control character, a newline or a mark that turns "
                "the direction of text: take it out"
            )
