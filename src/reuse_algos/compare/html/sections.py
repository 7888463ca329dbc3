"""Sections that every report has: verdicts, panels of plots, amortisation, notes and runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.compare.html.document import Section
from reuse_algos.compare.html.markup import Child, Html, el, join, scroll_table
from reuse_algos.compare.html.plots import Mark, Series, curve_plot
from reuse_algos.compare.html.signs import swatch
from reuse_algos.compare.html.values import Numbers, format_times
from reuse_algos.compare.render import format_runs

__all__ = [
    "Look",
    "Spending",
    "Verdict",
    "amortisation_data",
    "amortisation_section",
    "headline",
    "looks_of",
    "notes_section",
    "panels",
    "runs_section",
    "verdict_section",
]

_SIGNS = {"faster": "▲", "slower": "▼", "no difference": "=", "not enough runs": "?", "baseline": "●"}


@dataclass(frozen=True)
class Look:
    """How a group is shown.

    Attributes:
        index: its position in the comparison's groups.
        name: of the group.
        colour: 0 for the baseline; a control has its technique's.
        control: whether it is a control.
        technique: the group that it is a control of, if that is compared, too.
    """

    index: int
    name: str
    colour: int
    control: bool = False
    technique: str | None = None

    @property
    def sign(self) -> Html:
        """Its name with the sign that the plots have."""
        return join([swatch(self.colour, self.control), " ", el("span", self.name, class_="name")])


def looks_of(names: Sequence[str], control_of: Mapping[str, str | None]) -> list[Look]:
    """In the order in which groups are shown: the baseline, each technique with its controls, controls without one.

    Args:
        names: of the groups, the baseline first.
        control_of: for each name, what its runs say they are a control of. Where names join several keys
            ("distilled / 10ep"), the first of them is meant, at equal others.
    """
    baseline, *others = names
    controls = [name for name in others if control_of.get(name) is not None]
    techniques = [name for name in others if name not in controls]
    of = {name: _technique(name, str(control_of[name]), techniques) for name in controls}
    looks = [Look(0, baseline, 0)]
    for colour, name in enumerate([*techniques, *(name for name in controls if of[name] is None)], start=1):
        looks.append(Look(names.index(name), name, colour, control=name in controls))
        looks += [Look(names.index(c), c, colour, control=True, technique=name) for c in controls if of[c] == name]
    return looks


def _technique(name: str, control_of: str, techniques: Sequence[str]) -> str | None:
    _, *rest = name.split(" / ")
    return next((found for found in (control_of, " / ".join([control_of, *rest])) if found in techniques), None)


@dataclass(frozen=True)
class Verdict:
    """What is said of one group: the word, and a sentence with n and interval."""

    look: Look
    verdict: str
    sentence: Child


def _badge(verdict: str) -> Html:
    kind = verdict.replace(" ", "-")
    sign = el("span", _SIGNS.get(verdict, "?"), aria_hidden="true")
    return el("span", sign, " ", verdict, class_=f"badge {kind}")


def headline(verdicts: Sequence[Verdict], baseline: str) -> str:
    """The outcome in a few words; controls have no say in it."""
    techniques = [v for v in verdicts if not v.look.control and v.verdict != "baseline"]
    faster = [v.look.name for v in techniques if v.verdict == "faster"]
    if not techniques:
        return f"Only {baseline} so far: nothing to compare it with"
    if len(techniques) == 1:
        name = techniques[0].look.name
        return {
            "faster": f"{name} is faster than {baseline}",
            "slower": f"{name} is slower than {baseline}",
            "no difference": f"No difference between {name} and {baseline} was shown",
        }.get(techniques[0].verdict, f"Not enough runs to tell {name} from {baseline}")
    if not faster:
        return f"None of {len(techniques)} techniques was shown to be faster than {baseline}"
    if len(faster) == len(techniques):
        return f"All {len(techniques)} techniques are faster than {baseline}"
    if len(faster) == 1:
        others = len(techniques) - 1
        rest = f"{others} others" if others > 1 else "the other technique"
        return f"{faster[0]} is faster than {baseline}; for {rest} this was not shown"
    return f"{len(faster)} of {len(techniques)} techniques are faster than {baseline}"


def verdict_section(verdicts: Sequence[Verdict]) -> Section:
    """One card per technique, with its controls inside."""
    cards = []
    order = list(_SIGNS)
    for verdict in sorted(verdicts, key=lambda v: order.index(v.verdict) if v.verdict in order else len(order)):
        look = verdict.look
        if verdict.verdict == "baseline" or look.technique is not None:
            continue
        controls = [v for v in verdicts if v.look.technique == look.name]
        kind = "Control: " if look.control else None
        parts: list[Child] = [el("h3", kind, look.sign), _badge(verdict.verdict), el("p", verdict.sentence)]
        parts += [_control(control, verdict) for control in controls]
        cards.append(el("li", *parts, class_=f"card {verdict.verdict.replace(' ', '-')}"))
    body: Child = el("ul", *cards, class_="cards") if cards else el("p", "There is only the baseline.")
    return Section("verdict", "Verdict", body)


def _control(control: Verdict, technique: Verdict) -> Html:
    parts: list[Child] = [
        el("h4", "Control: ", control.look.sign),
        _badge(control.verdict),
        el("p", control.sentence),
    ]
    if control.verdict == "faster" == technique.verdict:
        warning = f"The control is faster, too: what {technique.look.name} claims may not be what made it fast."
        parts.append(el("p", warning, class_="warning"))
    elif control.verdict == "faster":
        warning = f"The control is faster, though {technique.look.name} is not: look for what else differs."
        parts.append(el("p", warning, class_="warning"))
    return el("div", *parts, class_="control-card")


def panels(name: str, parts: Sequence[tuple[str, str, Child]]) -> Html:
    """Alternatives of which a script shows one at a time; without it, and in print, all are shown.

    Args:
        name: of the choice, for those who do not see it.
        parts: key (panels with one key are switched together), title, content.
    """
    if len(parts) == 1:
        return el("div", parts[0][2], class_="panel")
    shown = [
        el("div", el("h3", title, class_="panel-title"), content, class_="panel", data_key=key, data_title=title)
        for key, title, content in parts
    ]
    return el("div", *shown, class_="panels", data_name=name)


@dataclass(frozen=True)
class Spending:
    """What a group spends to reach the target, for its amortisation.

    Attributes:
        look: of the group.
        cost_seconds: of one run until the target, with all of its harvests.
        harvest_seconds: of them, the harvests.
        prior_seconds: training of the prior runs; NaN where it is not known.
        saving_shown: whether it is surely less than that of the baseline.
        where: path of its break-even record in the data.
    """

    look: Look
    cost_seconds: float
    harvest_seconds: float
    prior_seconds: float
    saving_shown: bool
    where: tuple[str | int, ...]


def amortisation_data(spendings: Sequence[Spending], baseline_seconds: float) -> list[dict[str, Any]]:
    """Cost of K later runs with reuse as a share of K baseline runs, what was spent once included, for growing K.

    Returns:
        For each group one record where it used harvests, and one more where its prior runs' training is known:
        ``group``, ``counted``, ``later_runs`` [K] and ``share`` [K].
    """
    records = []
    for spending in spendings:
        each = spending.cost_seconds - spending.harvest_seconds
        onces = {"harvest": spending.harvest_seconds}
        if spending.prior_seconds > 0:
            onces["harvest and prior runs"] = spending.harvest_seconds + spending.prior_seconds
        for counted, once in onces.items():
            if once <= 0 or not math.isfinite(each + once + baseline_seconds) or baseline_seconds <= 0:
                continue
            runs = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100]
            share = [(k * each + once) / (k * baseline_seconds) for k in runs]
            records.append({"group": spending.look.name, "counted": counted, "later_runs": runs, "share": share})
    return records


def amortisation_section(
    spendings: Sequence[Spending], records: Sequence[Mapping[str, Any]], numbers: Numbers
) -> Section | None:
    """After how many later runs the work done beforehand is paid back; None where no group used any."""
    if not spendings:
        return None
    rows = []
    for spending in spendings:
        path = spending.where
        rows.append(
            [
                join([spending.look.sign, "" if spending.saving_shown else " (its saving is not shown)"]),
                numbers.seconds(*path, "harvest_seconds"),
                _until_paid(numbers, (*path, "harvest_runs")),
                numbers.seconds(*path, "prior_training_seconds"),
                _until_paid(numbers, (*path, "prior_training_runs")),
            ]
        )
    head = ["group", "harvest", "paid back after", "training of the prior runs", "paid back, if trained only for this"]
    table = scroll_table("Work done beforehand, in mean seconds per run, and when it is paid back", head, rows)
    looks = {spending.look.name: spending.look for spending in spendings}
    series = []
    for index, record in enumerate(records):
        look, all_counted = looks[record["group"]], record["counted"] != "harvest"
        marks = []
        for k, (runs, share) in enumerate(zip(record["later_runs"], record["share"], strict=True)):
            label = f"{look.name}, {record['counted']} counted\n{runs} later runs: {format_times(share)} of the cost"
            path = ("amortisation", index)
            x, y = numbers.at(*path, "later_runs", k), numbers.at(*path, "share", k)
            marks.append(Mark(x, y, math.nan, math.nan, label, hollow=all_counted))
        line = list(zip(record["later_runs"], record["share"], strict=True))
        name = f"{look.name}: {record['counted']}"
        series.append(Series(name, look.colour, all_counted, marks, line=line))
    plot: Child = None
    if series:
        plot = curve_plot(
            "Cost of later runs with reuse, as a share of plain runs",
            series,
            x_title="later runs that share it",
            y_title="cost, as a share of as many baseline runs",
            x_text=lambda x: f"{x:g}",
            y_text=lambda y: f"{y:g}",
            log=True,
            level=1.0,
            level_name="break-even",
        )
    lead = (
        "Below the dashed line, reuse has paid back what was spent once. The prior runs are counted apart: most are "
        "trained anyway. Where the saving itself is not shown, nothing may be paid back at all."
    )
    return Section("amortisation", "Amortisation", join([el("p", lead), plot, table]))


def _until_paid(numbers: Numbers, path: tuple[str | int, ...]) -> Html:
    value, *limits = (numbers.at(*path, name) for name in ("estimate", "low", "high"))
    if math.isnan(value.number):
        return value.show("not known")
    if value.number <= 0.0:
        return value.show("at once")
    whole = 0 if math.isinf(value.number) else math.ceil(value.number - 1e-9)
    words = value.show(f"{whole} later run{'' if whole == 1 else 's'}" if whole else "never")
    low, high = (limit.show("\u221e" if math.isinf(limit.number) else format_runs(limit.number)) for limit in limits)
    return join([words, el("span", " [", low, ", ", high, "]", class_="limits")])


def notes_section(notes: Sequence[str], reading: Sequence[Child]) -> Section:
    """Caveats found in the data, and how the numbers came about."""
    found: Child = el("ul", *(el("li", note) for note in notes), class_="notes") if notes else el("p", "None.")
    method = el("details", el("summary", "How to read this"), *(el("p", line) for line in reading), class_="reading")
    return Section("notes", "Notes", join([found, method]))


def runs_section(table: Child, details: Sequence[tuple[Look, Sequence[Html]]]) -> Section:
    """Every run: a table, and by group what :func:`~reuse_algos.compare.html.provenance.run_details` made of each."""
    parts = [table]
    for look, runs in details:
        parts.append(el("div", el("h3", look.sign), *runs, class_="run-group"))
    lead = el("p", "One line per run; open it for its recipe, commit, versions, hardware, prior runs and cost.")
    return Section("runs", "Runs", join([lead, *parts]))
