"""Which runs a caller asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import json

from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.where import Where


class Asked:
    """What runs were asked for, apart from order and number.

    Args:
        where: A filter such as ``"tags.study=lr and accuracy>0.9"``; None for any run.
        tags: Tags that must match; a list of values matches any of them. None for any tags.
        run_name: The name that must match; None for any name.
        unfinished: Whether also runs that have not ended.
        unhealthy: Whether also runs that diverged or trained nothing.

    Raises:
        WhereError: The filter cannot be read.
    """

    def __init__(
        self,
        where: str | None,
        tags: Mapping[str, object] | None,
        run_name: str | None,
        *,
        unfinished: bool,
        unhealthy: bool,
    ) -> None:
        self._where = None if where is None else Where(where)
        self._tags = _accepted(tags or {})
        # What the JSON of a run that fits holds: for each of these, one of its texts.
        self._traces = [{json.encode({key: value})[1:-1] for value in values} for key, values in self._tags]
        if run_name is not None:
            self._traces.append({json.encode(run_name)})
        self._run_name, self._unfinished, self._unhealthy = run_name, unfinished, unhealthy

    def fits(self, summary: RunSummary) -> bool:
        """Return whether a run is one of those that were asked for.

        Raises:
            WhereError: The filter names a metric of which the run has several.
        """
        # Called 100,000 times for one selection: a generator for the tags alone would double its time.
        for key, values in self._tags:
            if summary.tags.get(key) not in values:
                return False
        return (
            (self._unfinished or summary.ended_at is not None)
            and (self._unhealthy or summary.health == "ok")
            and (self._run_name is None or summary.run_name == self._run_name)
            and (self._where is None or self._where(summary))
        )

    def likely(self, text: bytes) -> list[bytes]:
        """Return those summaries, as JSON and one in a line, that may be of a run that fits."""
        # A line is looked through in a twentieth of the time that decoding it takes, and found in less than a split.
        first, *others = self._traces or [set[bytes]()]
        if len(first) == 1:
            lines = list(_lines_with(text, *first))
        else:
            lines = text.split(b"\n") if text else []
            others = self._traces
        for traces in others:
            # Within one tag any of the values fits.
            lines = [line for line in lines if any(trace in line for trace in traces)]
        return lines

    def check_names(self) -> None:
        """Refuse a filter that names a metric which no run had.

        Raises:
            WhereError: There were runs with metrics, and the name fitted none.
        """
        # Any run may have had the metric, so this is known after the last one.
        if self._where is not None:
            self._where.check_names()


def tags_match(tags: Mapping[str, str], wanted: Mapping[str, object]) -> bool:
    """Return whether tags are as wanted, where a list of values allows any of them."""
    return all(tags.get(key) in values for key, values in _accepted(wanted))


def _lines_with(text: bytes, part: bytes) -> Iterator[bytes]:
    """Give the lines of a text in which a part stands."""
    end = 0
    while (at := text.find(part, end)) >= 0:
        start = text.rfind(b"\n", 0, at) + 1
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        yield text[start:end]


def _accepted(wanted: Mapping[str, object]) -> list[tuple[str, set[str]]]:
    """Return each tag that is wanted with the values that it may have."""
    # Tags of runs are texts, so a number that is asked for becomes one.
    several = (list, tuple, set, frozenset)
    return [
        (key, set(map(str, value)) if isinstance(value, several) else {str(value)}) for key, value in wanted.items()
    ]
