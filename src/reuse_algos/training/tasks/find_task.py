"""The task of a model, found in a batch: every reading of the shapes, held against the loss that the model gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from reuse_algos.errors import TaskError
from reuse_algos.training.tasks.task import (
    CONFIRMED,
    KINDS,
    POSITIONS,
    SUMMED,
    Kind,
    Task,
    TaskSettings,
    class_numbers,
    mean_of_counted,
)

# Losses of bfloat16 forward passes are compared with ones computed in float32 here.
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
_LEAST_TOLERANCE = 1e-4


def find_task(
    outputs: torch.Tensor,
    targets: torch.Tensor | None,
    own_loss: float | None,
    settings: TaskSettings | None = None,
    ignore_indices: Sequence[int] = (),
    metrics: Sequence[str] = (),
    pull: torch.Tensor | None = None,
) -> Task:
    """Find the task of a model in a batch.

    Every reading of the shapes becomes a candidate, and each candidate's plain loss is held against the model's own:
    the reading whose loss is the model's is the task. Where the model's loss is none of the plain ones (label
    smoothing, class weights, focal loss), its gradient must act on the outputs as a loss of the task does, see
    :func:`objection`; shapes and metrics decide among the readings that are left.

    Args:
        outputs: Logits or predictions of the batch.
        targets: Its targets.
        own_loss: The loss that the model gave for it; None: not known.
        settings: What is taken as given. Default: nothing.
        ignore_indices: Values that the model's loss or its metrics name as ignored: hints that the loss must confirm.
            Default: none.
        metrics: Class names of the model's metrics (``BinaryAccuracy``, ``MeanSquaredError``): hints. Default: none.
        pull: Gradient of the model's loss with respect to ``outputs``, of the same shape. Default: not known.

    Raises:
        TaskError: Nothing fits, or several readings fit and nothing tells them apart.
    """
    settings = settings or TaskSettings()
    seen = _described(outputs, targets, own_loss)
    if settings.kind == "detection":
        raise TaskError(
            "task.kind 'detection' has no single tensor of outputs; the detection algorithms read it themselves"
        )
    if targets is None:
        raise TaskError(f"the task cannot be found without targets: {seen}. Name their place by keys.target.")
    targets = targets if targets.is_floating_point() else targets.long()  # a mark of -1 would wrap in uint8
    pull = pull if pull is not None and bool(pull.any()) else None
    candidates = _candidates(outputs, targets, settings, ignore_indices)
    if not candidates:
        raise TaskError(
            f"no task fits {seen}{_given(settings)}. Set keys: {{task: {{kind: ...}}}} (one of {', '.join(KINDS)}), or "
            "name the right tensors by keys.output and keys.target."
        )
    chosen = _distinct(_confirmed(candidates, outputs, targets, own_loss), outputs, targets)
    if not chosen and pull is not None:
        # A value that the loss function names in its own code only.
        found = _unmoved(candidates, outputs, targets, pull)
        wider = _candidates(outputs, targets, settings, (*ignore_indices, *found))
        chosen = _distinct(_confirmed(wider, outputs, targets, own_loss), outputs, targets)
        sure = [value for value, number in found.items() if number >= _FEWEST_UNMOVED]
        candidates = _candidates(outputs, targets, settings, (*ignore_indices, *sure))
    if len(chosen) > 1 and pull is not None:
        # Outputs that are all alike (a head of zeros, half precision) give every reading the same loss.
        chosen = _pulled(chosen, outputs, targets, pull) or chosen
    if len(chosen) == 1:
        return replace(chosen[0], evidence=CONFIRMED)
    if not chosen and own_loss is not None:
        summed = [task for task in candidates if _is_sum(task, outputs, targets, own_loss)]
        if len(_distinct(summed, outputs, targets)) == 1:
            return replace(summed[0], evidence=SUMMED)
    # The loss cannot tell these apart (or is none of the plain ones): hints may, but only if they leave one.
    # An ignored value or a shift that the loss does not show is not assumed.
    pool = chosen or _distinct(_without_hints(candidates), outputs, targets)
    evidence = "shapes and metrics"
    if not chosen and pull is not None:
        if pulled := _pulled(candidates, outputs, targets, pull):
            pool, evidence = _distinct(pulled, outputs, targets), "its loss pulls at the outputs as a loss of it does"
        elif settings.kind is None:
            raise TaskError(
                f"no task fits {seen}, which is none of the plain losses. "
                + "; ".join(f"{_words(task)}: {objection(task, outputs, targets, pull)}" for task in pool)
                + ". Return logits (or predictions, for regression) from the model, or set keys: {task: {kind: ...}} "
                "where the outputs are to be read like that all the same."
            )
    if len(pool) == 1 and evidence != "shapes and metrics":
        return replace(pool[0], evidence=evidence)
    named = [task for task in pool if any(name.startswith(_METRICS.get(task.kind, ())) for name in metrics)]
    if len(named) == 1:
        return replace(named[0], evidence="shapes and metrics")
    if len(pool) == 1:
        return replace(pool[0], evidence="the only reading of the shapes" + (" as set" if settings.kind else ""))
    raise TaskError(
        f"several tasks fit {seen}: {'; '.join(_words(task) for task in pool)}. The model's loss fits none of them "
        "alone. Set keys: {task: {kind: ..., class_dim: ...}}."
    )


def _candidates(
    outputs: torch.Tensor, targets: torch.Tensor, settings: TaskSettings, ignore_indices: Sequence[int]
) -> list[Task]:
    """Return every reading that the shapes allow and the settings admit; fewer assumptions come first."""
    found: list[Task] = []
    whole = not targets.is_floating_point()
    ignored = [None, *sorted(set(ignore_indices))] if settings.ignore_index is None else [settings.ignore_index]
    # Convolutions have the classes in dimension 1, transformers in the last; of [B, C] both are the same.
    for dim in (1, -1) if outputs.dim() > 2 else (1,):
        if outputs.dim() < 2 or (settings.class_dim is not None and outputs.dim() > 2 and dim != settings.class_dim):
            continue
        classes = outputs.shape[dim]
        places, numbers = outputs.movedim(dim, 1)[:, 0].shape, class_numbers(targets, outputs, dim)
        # Class numbers may come as floats, such as columns of a table.
        if classes > 1 and numbers.shape == places and (whole or _are_whole(numbers)):
            kind = _kind_of_places(len(places), dim)
            shifts = (False, True) if kind == "token" else (False,)
            found += [Task(kind, classes, dim, index, shift) for index in ignored for shift in shifts]
        if classes > 1 and targets.shape == outputs.shape and _is_distribution(targets, dim):
            found.append(Task(_kind_of_places(len(places), dim), classes, dim))
    if _one_for_each(outputs, targets):
        classes = 1 if outputs.dim() == 1 else outputs.shape[1]
        dim = 0 if outputs.dim() == 1 else 1
        # Marks of missing labels aside, labels are 0 or 1, or probabilities.
        labels = targets[(targets != -1) & (targets != -100) & ~targets.isnan()]
        for index in ignored:
            if bool(((labels >= 0) & (labels <= 1)).all()):
                found.append(Task("binary" if classes == 1 else "multilabel", classes, dim, index))
            found.append(Task("regression", classes, dim, index))
    return [task for task in found if _admits(settings, task)]


def _are_whole(numbers: torch.Tensor) -> bool:
    known = numbers[~numbers.isnan()]  # NaN marks what does not count
    return bool((known == known.round()).all())


def _kind_of_places(num_dimensions: int, class_dim: int) -> Kind:
    """Return the kind of a softmax task whose targets have that many dimensions."""
    if num_dimensions == 1:
        return "multiclass"
    # Language models put the classes last; ``[B, C, T]`` is how convolutions along one axis give them.
    return "token" if num_dimensions == 2 and class_dim == -1 else "dense"


def _one_for_each(outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    """Return whether there is one target for each output: equal shapes but for dimensions of size 1."""
    if len(outputs) != len(targets) or outputs.numel() != targets.numel():
        return False
    return [size for size in outputs.shape[1:] if size > 1] == [size for size in targets.shape[1:] if size > 1]


def _admits(settings: TaskSettings, task: Task) -> bool:
    kind = settings.kind in (None, task.kind) or (settings.kind in POSITIONS and task.kind in POSITIONS)
    return kind and settings.shift in (None, task.shift)


def _is_distribution(targets: torch.Tensor, dim: int) -> bool:
    sums = targets.double().sum(dim)
    return bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _confirmed(
    candidates: list[Task], outputs: torch.Tensor, targets: torch.Tensor, own_loss: float | None
) -> list[Task]:
    """Return the readings whose loss is the model's own; of several those that are as near as the nearest."""
    if own_loss is None:
        return []
    tolerance = _TOLERANCE.get(outputs.dtype, _LEAST_TOLERANCE) * max(1.0, abs(own_loss))
    off = {task: _distance(task, outputs, targets, own_loss) for task in candidates}
    nearest = min(off.values())
    # Another reading may come near by chance: in float32 the right one is a thousand times nearer.
    return [task for task in candidates if off[task] <= min(tolerance, 10 * nearest + 1e-6)]


def _distance(task: Task, outputs: torch.Tensor, targets: torch.Tensor, own_loss: float) -> float:
    """Return how far the model's loss is from this task's, as a mean over targets or over examples."""
    values, counted = task.losses_of_targets(task.rows(outputs.detach(), targets))
    over_targets = values.mean() if counted is None else values[counted].mean()
    over_examples = mean_of_counted(values, counted, empty=torch.nan).nanmean()
    distances = [abs(float(mean) - own_loss) for mean in (over_targets, over_examples)]
    return min((distance for distance in distances if math.isfinite(distance)), default=math.inf)


def _is_sum(task: Task, outputs: torch.Tensor, targets: torch.Tensor, own_loss: float) -> bool:
    """Return whether the model's loss is this task's, added up over the targets instead of averaged."""
    values, counted = task.losses_of_targets(task.rows(outputs.detach(), targets))
    number = values.numel() if counted is None else int(counted.sum())
    off = abs(float((values if counted is None else values[counted]).sum()) - own_loss)
    return number > 1 and off <= _TOLERANCE.get(outputs.dtype, _LEAST_TOLERANCE) * abs(own_loss)


def _distinct(tasks: list[Task], outputs: torch.Tensor, targets: torch.Tensor) -> list[Task]:
    """Leave out readings that differ from an earlier one only in an ignored value that this batch does not hold."""
    # Both mean the same here, and a choice between them would be refused as ambiguous.
    kept: list[Task] = []
    for task in tasks:
        counted = task.rows(outputs.detach(), targets).counted_BX
        same = (
            replace(other, ignore_index=None) == replace(task, ignore_index=None)
            and _equal(other.rows(outputs.detach(), targets).counted_BX, counted)
            for other in kept
        )
        if not any(same):
            kept.append(task)
    return kept


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _without_hints(tasks: list[Task]) -> list[Task]:
    """Return the readings without an ignored value that only a hint names, and without an unconfirmed shift."""
    # A wrong ignored value or shift would silently drop targets, so only the loss may decide for one.
    plain = [task for task in tasks if task.ignore_index is None and not task.shift]
    return plain or tasks


# Gradients of half precision have two or three digits; a softmax that is not one is off by tens of per cent.
_SLACK = 0.05
# Losses against label noise may leave the targets of odd examples; a loss of numbers moves all of them.
_MOST, _NEARLY_ALL = 0.6, 0.95


def objection(task: Task, outputs: torch.Tensor, targets: torch.Tensor, pull: torch.Tensor) -> str | None:
    """Return why the model's loss is not a loss of a task, as its gradient at the outputs shows; None where it may be.

    Targets that do not count have no gradient. A softmax does not see a constant that is added to all logits of a row,
    so the gradient of a row sums to 0, and the class that it raises most is the target's. A sigmoid's logit is raised
    for label 1 and lowered for label 0; a prediction is moved towards its target.

    Args:
        task: How outputs and targets are read.
        outputs: Of the batch.
        targets: Of the batch.
        pull: Gradient of the model's loss with respect to the outputs, not 0 everywhere.

    >>> logits = torch.tensor([[0.2, 0.8]])
    >>> objection(Task("multiclass", 2), logits, torch.tensor([1]), torch.tensor([[0.0, -1.25]]))
    "the loss's gradient does not sum to 0 over the classes, so the outputs are not logits of a softmax"
    """
    rows, pull = task.rows(outputs.detach().float(), targets), pull.detach().float()
    whole_BCX = pull.unsqueeze(1) if task.class_dim == 0 else pull.movedim(task.class_dim, 1)
    pull_BCX = whole_BCX[:, :, :-1] if task.shift else whole_BCX
    # One number for each label or prediction, one for the classes of a place.
    sizes = pull_BCX.abs().sum(1) if task.is_softmax else pull_BCX.abs()
    counts = torch.ones_like(sizes, dtype=torch.bool) if rows.counted_BX is None else rows.counted_BX
    total = float(whole_BCX.abs().sum())
    if total - float(sizes[counts].sum()) > _SLACK * total:
        return f"the loss counts targets that this reading does not (class numbers are 0 to {task.num_classes - 1})"
    truth = rows.targets
    assert truth is not None
    if task.is_softmax:
        if float(pull_BCX.sum(1).abs().sum()) > _SLACK * total:
            return "the loss's gradient does not sum to 0 over the classes, so the outputs are not logits of a softmax"
        places = counts & (sizes > 0)
        truth = truth.argmax(1) if truth.is_floating_point() else truth
        raised, lowered = (pull_BCX.argmin(1) == truth)[places], (pull_BCX.argmax(1) == truth)[places]
        # A smoothed loss lowers the target's logit where the model is surer than the smoothing wants it to be.
        sure = rows.logits_BCX.softmax(1).amax(1)[places] > 0.9
        if float((raised | (lowered & sure)).float().mean()) < _MOST:
            return "the loss raises other classes than the targets'"
        scale = _scale_in_loss(rows.logits_BCX.movedim(1, -1)[places], pull_BCX.movedim(1, -1)[places], truth[places])
        if scale is not None:
            return (
                f"the loss multiplies the outputs by about {scale:.3g} before its softmax (a temperature, the scale of "
                "a cosine), so they are not the logits that it learns from"
            )
        return None
    towards = (truth > 0.5).float() - (truth < 0.5).float() if task.is_sigmoid else truth - rows.logits_BCX
    if float(sizes[counts & (pull_BCX * towards < 0)].sum()) < _NEARLY_ALL * total:
        return "the loss does not move the outputs to where the targets are"
    no = counts & (truth == 0)
    if task.is_sigmoid and _is_distance(rows.logits_BCX[no], pull_BCX[no]):
        return "the loss of label 0 is the square of the output, so the outputs are distances or numbers and not logits"
    labels = bool(((truth == 0) | (truth == 1) | ~counts).all())
    if labels and bool(((rows.logits_BCX >= 0) & (rows.logits_BCX <= 1)).all()):
        return "all outputs lie between 0 and 1, so they may be probabilities of labels and no logits"
    return None


_SCALED = 2.0  # label smoothing looks like a scale of up to 1.3
_EXACT = 0.02  # of the norm: half precision keeps two or three digits
_PLACES = 256  # enough, and few enough for large vocabularies


def _scale_in_loss(logits_PC: torch.Tensor, pull_PC: torch.Tensor, truth_P: torch.Tensor) -> float | None:
    """Return the factor between the outputs and the logits of the loss's softmax; None where it is about 1, or none.

    A softmax raises the other classes in proportion to ``exp(s z)``, whatever weighs the rows: the logarithms of the
    gradient lie on a line over the outputs, and its slope is s.
    """
    logits_PC, pull_PC, truth_P = logits_PC[:_PLACES], pull_PC[:_PLACES], truth_P[:_PLACES]
    others_PC = (pull_PC > 0) & logits_PC.isfinite()
    others_PC.scatter_(1, truth_P.unsqueeze(1), False)
    number_P1 = others_PC.sum(1, keepdim=True)
    x_PC, y_PC = (
        torch.where(others_PC, values - torch.where(others_PC, values, 0.0).sum(1, keepdim=True) / number_P1, 0.0)
        for values in (logits_PC, pull_PC.clamp_min(torch.finfo(torch.float32).tiny).log())
    )
    if int((number_P1 > 1).sum()) < _FEWEST_ROWS or not float(x_PC.norm()):
        return None
    scale = float((x_PC * y_PC).sum() / x_PC.square().sum())
    exact = float((y_PC - scale * x_PC).norm()) <= _EXACT * float(y_PC.norm())
    return scale if exact and not 1 / _SCALED <= scale <= _SCALED else None


def _is_distance(outputs: torch.Tensor, pull: torch.Tensor) -> bool:
    """Return whether the gradient of label 0 is in proportion to the outputs, as of squared distances of pairs."""
    if len(outputs) < _FEWEST_ROWS or float(outputs.std()) <= 0.1 * float(outputs.abs().mean()):
        return False
    factor = (pull * outputs).sum() / outputs.square().sum()
    return float((pull - factor * outputs).norm()) <= _EXACT * float(pull.norm())


_FEWEST_ROWS = 3


def _pulled(candidates: list[Task], outputs: torch.Tensor, targets: torch.Tensor, pull: torch.Tensor) -> list[Task]:
    """Return the readings that the gradient allows; of those, the ones with the fewest targets without a gradient."""
    fitting = [task for task in candidates if objection(task, outputs, targets, pull) is None]
    # Targets that count though the loss has no gradient at them: those that the loss ignores, as a rule.
    idle = {task: int(_still(task, targets, pull).sum()) for task in fitting}
    return [task for task in fitting if idle[task] == min(idle.values())]


def _still(task: Task, targets: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
    """Return which targets count though the loss has no gradient at them: bool ``[B, X]``."""
    # The gradient lies as the outputs do, so the task cuts both alike.
    rows = task.rows(pull.detach(), targets)
    still = (rows.logits_BCX == 0).all(1) if task.is_softmax else rows.logits_BCX == 0
    return still if rows.counted_BX is None else still & rows.counted_BX


# A loss may leave out one or two odd examples of a rare class; a loss that ignores a value shows more of it.
_FEWEST_UNMOVED = 8
_NO_LOSS = 1e-3  # below, a target is learned so well that its gradient may be 0 in float32


def _unmoved(
    candidates: list[Task], outputs: torch.Tensor, targets: torch.Tensor, pull: torch.Tensor
) -> dict[int, int]:
    """Return the values that exactly those targets have at which the loss has no gradient, and how many they are."""
    found: dict[int, int] = {}
    for task in candidates:
        rows = task.rows(outputs.detach(), targets)
        assert rows.targets is not None
        soft = task.is_softmax and rows.targets.is_floating_point()
        if soft or task.ignore_index is not None:
            continue
        still = _still(task, targets, pull)
        values = rows.targets[still].unique()
        if len(values) != 1 or not float(values).is_integer():
            continue
        such = rows.targets == values
        such = such if rows.counted_BX is None else such & rows.counted_BX
        if torch.equal(such, still) and float(task.losses_of_targets(rows)[0][still].max()) > _NO_LOSS:
            found[int(values)] = int(still.sum())
    return found


_METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("Binary",),
    "multilabel": ("Multilabel",),
    "regression": ("MeanSquaredError", "MeanAbsoluteError", "R2Score", "PearsonCorrCoef", "SpearmanCorrCoef"),
    "multiclass": ("Multiclass",),
    "token": ("Multiclass", "LanguageCrossEntropy", "Perplexity", "MaskedAccuracy"),
    "dense": ("Multiclass", "MIoU"),
}


def _described(outputs: torch.Tensor, targets: torch.Tensor | None, own_loss: float | None) -> str:
    what = "none" if targets is None else f"{tuple(targets.shape)} {str(targets.dtype).removeprefix('torch.')}"
    loss = "not known" if own_loss is None else f"{own_loss:.6g}"
    return f"outputs {tuple(outputs.shape)}, targets {what}, the model's loss {loss}"


def _given(settings: TaskSettings) -> str:
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return f" with task {given}" if given else ""


def _words(task: Task) -> str:
    shift = ", shifted by one" if task.shift else ""
    ignored = "" if task.ignore_index is None else f", ignoring {task.ignore_index}"
    return f"{task.kind} of {task.num_classes} in dimension {task.class_dim}{shift}{ignored}"
