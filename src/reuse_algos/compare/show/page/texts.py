"""The longer texts of the page: the headline, how to read the numbers, and what each section shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reuse_algos.compare.result import Comparison
from reuse_algos.compare.show.drawing import Look


def headline(comparison: Comparison, looks: Sequence[Look]) -> str:
    """Return the outcome in a few words; controls do not count in it."""
    baseline = comparison.baseline
    # The first look is the baseline's.
    verdicts = {look.name: comparison.groups[look.index].verdict for look in looks[1:] if not look.control}
    faster = [name for name, verdict in verdicts.items() if verdict == "faster"]
    if not verdicts:
        return f"Only {baseline} so far: nothing to compare it with"
    if len(verdicts) == 1:
        ((name, verdict),) = verdicts.items()
        return {
            "faster": f"{name} is faster than {baseline}",
            "slower": f"{name} is slower than {baseline}",
            "no difference": f"No difference between {name} and {baseline} was shown",
        }.get(verdict, f"Not enough runs to tell {name} from {baseline}")
    if not faster:
        return f"None of {len(verdicts)} techniques was shown to be faster than {baseline}"
    if len(faster) == len(verdicts):
        return f"All {len(verdicts)} techniques are faster than {baseline}"
    if len(faster) == 1:
        others = len(verdicts) - 1
        rest = f"{others} others" if others > 1 else "the other technique"
        return f"{faster[0]} is faster than {baseline}; for {rest} this was not shown"
    return f"{len(faster)} of {len(verdicts)} techniques are faster than {baseline}"


_VERDICTS = (
    "Faster: the whole interval of the speed-up is above 1. Slower: all of it is below. No difference: it holds 1, so "
    "none was shown, which is not to say that there is none. ∞: no upper limit is known."
)
_HOW = {
    "budgets": (
        "Each run was trained for its own budget with a fully decayed schedule, and only its last value counts. The "
        "mean values of a group are joined by straight lines over the logarithm of its steps, whatever the cost is "
        "counted in; where that line first reaches the target, the steps to it are read. What they cost is linear in "
        "steps between two budgets. Nothing is read beyond the budgets that were trained. In the plots the points are "
        "joined by straight lines for the eye only."
    ),
    "curves": (
        "Groups are compared by their mean curves: the cost at which a mean curve first is as good as the mean final "
        "value of the baseline. The interval of the speed-up comes from inverted t tests at each evaluation, and "
        "counts the noise of the target and of the seconds."
    ),
    "runs": (
        "Each run has its own cost to the target. A run that never reached it counts at its total cost, and its group "
        "is then never called faster."
    ),
}


def texts_of(comparison: Comparison) -> dict[str, Any]:
    """Return the texts that depend on the kind of comparison, by their names in the template."""
    over_budgets = comparison.method == "budgets"
    reading = [_HOW[comparison.method], "Cost in seconds is training, set-up (loading teachers and caches) and all of "
               "the used harvests; evaluation is left out."]  # fmt: skip
    if over_budgets:
        prior = "and the training of the prior runs " if comparison.count_prior_training else ""
        reading[1] += (
            f" Where harvests are shared, their seconds {prior}are divided among {comparison.later_runs} later runs."
        )
        reading.append(
            "FLOPs count the forward and backward passes of training, three forward passes for each example, and those "
            "of live teachers and of appended rows. Harvests are in the seconds only."
        )
    else:
        reading[1] += " The training of prior runs is not counted, but shown under amortisation."
    reading.append(_VERDICTS)
    if comparison.price_per_hour is not None:
        reading.append(f"Dollars are the cost in seconds at ${comparison.price_per_hour:g} per hour.")
    at = f" at {comparison.groups[0].largest_budget}" if over_budgets else ""
    return {
        "reading": reading,
        "question": "How much less is needed to be as good as"
        if over_budgets
        else "What does each group need to be as good as",
        "every_point": "Every point is trained with its own schedule to the end. " if over_budgets else "",
        "source": "declared in advance"
        if comparison.target_source == "given"
        else f"mean final value of {comparison.baseline}{at}",
        "curves_lead": (
            "Mean final value of the runs of each budget, with its interval. The speed-up is how far a curve lies to "
            "the left of the baseline's end. The numbers are in the table of all budgets."
            if over_budgets
            else "Thick: mean with its interval. Thin: single runs. A sign on the dashed line: target reached. "
            "The y axis begins behind the first quarter of the evaluations, so that it shows where the groups differ."
        ),
    }
