"""A filter in words, such as ``tags.study=lr and accuracy>0.9``.

    filter     = all, {"or", all}
    all        = one, {"and", one}
    one        = "not", one | "(", filter, ")" | name, operator, value | name, "in", "(", value, {",", value}, ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">="

A name is ``tags.<key>``, a field of the summary (:data:`FIELDS`) or a metric: its full name, its last part, or an end
of that in any case, such as ``accuracy`` for ``metrics/eval/MulticlassAccuracy``. Names and values with spaces or signs
stand in single or double quotes. A run without the value is not chosen, whatever the operator. Nothing is evaluated as
code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

from reuse_algos.archive.format.metrics import meant
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.errors import ArchiveError, nearest

FIELDS = (
    "run_id", "run_name", "health", "finished", "seed", "epoch", "batch", "train_seconds", "created_at",
    "committed_at", "ended_at", "monitor",
)  # fmt: skip
"""The fields of a summary that a filter may name. ``finished`` is ``true`` or ``false``."""

MAX_CHARACTERS, MAX_DEPTH = 4096, 32

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign><=|>=|!=|[=<>(),])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^\s=<>!(),"']+)|(?P<end>$))"""
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Test = Callable[[RunSummary], bool]


class WhereError(ArchiveError, ValueError):
    """A filter cannot be read; the message points to the place."""


class Where:
    """A filter on summaries of runs.

    Args:
        text: The filter, at most 4,096 characters.

    Raises:
        WhereError: It is not of the grammar above.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._metrics: dict[str, bool] = {}  # metrics that are named, and whether any run had one
        self._known: set[str] = set()
        if len(text) > MAX_CHARACTERS:
            raise WhereError(f"a filter has at most {MAX_CHARACTERS} characters, this one has {len(text)}")
        self._tokens = self._split()
        self._at = 0
        self._test = self._any(0)
        if self._kind != "end":
            self._refuse("expected 'and', 'or' or the end")

    def __repr__(self) -> str:
        return f"Where({self.text!r})"

    def __call__(self, summary: RunSummary) -> bool:
        """Return whether a run is chosen.

        Raises:
            WhereError: Several metrics of the run end in a name.
        """
        return self._test(summary)

    def check_names(self) -> None:
        """Refuse a filter that names a metric which none of the runs had that it was asked about.

        Raises:
            WhereError: There were runs with metrics, and a name fitted none.
        """
        for name, found in self._metrics.items():
            if not found and self._known:
                known = sorted({*self._known, *FIELDS})
                raise WhereError(
                    f"{self.text!r}: no run has a metric {name!r}.{nearest(name, known)} Fields are tags.<key>, "
                    f"{', '.join(FIELDS)}"
                )

    def _split(self) -> list[tuple[str, str, int]]:
        tokens, at = [], 0
        while not tokens or tokens[-1][0] != "end":
            found = _TOKEN.match(self.text, at)
            if found is None:
                self._refuse("cannot read this", at + len(self.text[at:]) - len(self.text[at:].lstrip()))
            kind = str(found.lastgroup)
            tokens.append(("text" if kind in ("single", "double") else kind, found[kind], found.start(kind)))
            at = found.end()
        return tokens

    @property
    def _kind(self) -> str:
        return self._tokens[self._at][0]

    def _next(self) -> str:
        text = self._tokens[self._at][1]
        self._at += 1
        return text

    def _is(self, kind: str, text: str) -> bool:
        """Take the next token if it is this one, and return whether it is."""
        found = self._tokens[self._at]
        if found[0] != kind or found[1].lower() != text:
            return False
        self._at += 1
        return True

    def _refuse(self, what: str, at: int | None = None) -> NoReturn:
        place = self._tokens[self._at][2] if at is None else at
        shown = self.text[place : place + 20]
        raise WhereError(f"the filter {self.text!r}: {what} at character {place + 1}, found {shown or 'the end'!r}")

    def _any(self, depth: int) -> Test:
        tests = [self._all(depth)]
        while self._is("word", "or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda run: any(test(run) for test in tests)

    def _all(self, depth: int) -> Test:
        tests = [self._one(depth)]
        while self._is("word", "and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda run: all(test(run) for test in tests)

    def _one(self, depth: int) -> Test:
        # A filter may come from a recipe that others wrote.
        if depth > MAX_DEPTH:
            self._refuse(f"more than {MAX_DEPTH} levels deep")
        if self._is("word", "not"):
            test = self._one(depth + 1)
            return lambda run: not test(run)
        if self._is("sign", "("):
            test = self._any(depth + 1)
            if not self._is("sign", ")"):
                self._refuse("expected ')'")
            return test
        if self._kind not in ("word", "text"):
            self._refuse("expected a name, 'not' or '('")
        value_of = self._name(self._next())
        if self._is("word", "in"):
            return self._member(value_of)
        sign = self._tokens[self._at][1]
        if self._kind != "sign" or sign not in _OPERATORS:
            self._refuse(f"expected one of {', '.join(_OPERATORS)} or 'in'")
        self._next()
        wanted = self._value()
        return lambda run: _holds(value_of(run), sign, wanted)

    def _member(self, value_of: Callable[[RunSummary], str | float | None]) -> Test:
        if not self._is("sign", "("):
            self._refuse("expected '(' after 'in'")
        wanted = [self._value()]
        while self._is("sign", ","):
            wanted.append(self._value())
        if not self._is("sign", ")"):
            self._refuse("expected ',' or ')'")
        return lambda run: any(_holds(value_of(run), "=", one) for one in wanted)

    def _value(self) -> str:
        if self._kind not in ("word", "text"):
            self._refuse("expected a value")
        return self._next()

    def _name(self, name: str) -> Callable[[RunSummary], str | float | None]:
        if name.startswith("tags."):
            return lambda run: run.tags.get(name[len("tags.") :])
        if name == "finished":
            return lambda run: "true" if run.finished else "false"
        if name in FIELDS:
            return lambda run: getattr(run, name)
        # Whether a metric exists is known only when runs were asked.
        self._metrics.setdefault(name, False)
        return lambda run: self._metric(run, name)

    def _metric(self, run: RunSummary, name: str) -> float | None:
        self._known.update(run.finals)
        found = [name] if name in run.finals else [full for full in run.finals if full.endswith(f"/{name}")]
        found = found or [full for full in run.finals if full.rpartition("/")[2].lower().endswith(name.lower())]
        # A metric of training counts only where evaluation has none of this name.
        found = meant(found)
        if len(found) > 1:
            raise WhereError(
                f"the filter {self.text!r}: run {run.run_id} has several metrics {name!r}; say which: "
                f"{', '.join(found)}"
            )
        if not found:
            return None
        self._metrics[name] = True
        return run.final(found[0])


def _holds(value: str | float | None, sign: str, wanted: str) -> bool:
    """Return whether a run's value is as wanted."""
    # Compared as numbers where both are numbers, else as texts: tags are texts, also those that look like numbers.
    if value is None:
        return False
    left, right = _number(value), _number(wanted)
    # A value that is NaN fits nothing, not even !=.
    if left is not None and right is not None:
        return not math.isnan(left) and _OPERATORS[sign](left, right)
    if isinstance(value, str):
        return _OPERATORS[sign](value, wanted)
    # A number differs from every text, and has no order with one.
    return sign == "!="


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
