"""What a torture case found: how often it tried, and how often the archive failed."""

from __future__ import annotations

from dataclasses import dataclass, field

Note = float | int | str

_KEPT_FAULTS = 5


@dataclass(frozen=True)
class Outcome:
    """The result of a case.

    Attributes:
        tries: Crashes, damages, attacks or operations tried.
        lost: Acknowledged work that could not be read afterwards.
        torn: Half-written or wrong data that could be read.
        undetected: Damage and attacks that were not refused, or with the wrong kind of error.
        notes: Measurements, such as the slowest refusal, and the first faults in words.
    """

    tries: int
    lost: int = 0
    torn: int = 0
    undetected: int = 0
    notes: dict[str, Note] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, torn or undetected."""
        return not (self.lost or self.torn or self.undetected)


@dataclass
class Tally:
    """Counts while a case runs."""

    tries: int = 0
    lost: int = 0
    torn: int = 0
    undetected: int = 0
    faults: list[str] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)

    def lose(self, what: str) -> None:
        """Acknowledged work is gone."""
        self.lost += 1
        self._keep("lost: " + what)

    def tear(self, what: str) -> None:
        """Wrong data can be read."""
        self.torn += 1
        self._keep("torn: " + what)

    def miss(self, what: str) -> None:
        """Damage or an attack was not refused, or not as it should be."""
        self.undetected += 1
        self._keep("undetected: " + what)

    def check(self, good: bool, what: str) -> None:
        """Count a miss unless something holds."""
        if not good:
            self.miss(what)

    def most(self, note: str, value: float) -> None:
        """Note the largest of many values."""
        self.notes[note] = max(round(value, 4), float(self.notes.get(note, value)))

    def outcome(self) -> Outcome:
        """The result."""
        notes = self.notes | {f"fault {number}": what[:1500] for number, what in enumerate(self.faults, start=1)}
        return Outcome(self.tries, self.lost, self.torn, self.undetected, notes)

    def _keep(self, what: str) -> None:
        if len(self.faults) < _KEPT_FAULTS:
            self.faults.append(what)


def spread(total: int, count: int | None, seed: int = 0) -> list[int]:
    """``count`` of the numbers below ``total``, evenly spread; all of them for None or a larger count."""
    if count is None or count >= total:
        return list(range(total))
    step = total / count
    return [int((index + seed % 7 / 7) * step) for index in range(count)]
