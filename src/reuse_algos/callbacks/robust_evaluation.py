"""Accuracy under attack, measured while training.

Legend: B examples, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from composer import Callback, Evaluator, State, Time, TimeUnit
from composer.core import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.batch_helpers import batch_get, batch_set
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages, dataloader_of
from reuse_algos.data.images.pixels import PixelSpace, pixel_space_of
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.errors import DataError, NoEffectWarning, TaskError, nearest
from reuse_algos.sections import fit_section
from reuse_algos.training.attacks import METHODS, Attack, ascend, pixel_size
from reuse_algos.training.batch_keys import BatchKeys
from reuse_algos.training.first_batch.task_reader import targets_of
from reuse_algos.training.loss import total_of
from reuse_algos.training.outputs import logits_of, unwrap_model
from reuse_algos.training.ranks import on_every_rank
from reuse_algos.training.tasks.eval_outputs import are_probabilities
from reuse_algos.training.tasks.find_task import find_task
from reuse_algos.training.tasks.task import Task
from reuse_algos.training.window import elapsed_share

log = logging.getLogger(__name__)

DEFAULT_ATTACKS: dict[str, dict[str, Any]] = {"fgsm": {}, "pgd": {"steps": 10}}
"""FGSM and PGD with 10 steps, both at 8/255 in L-infinity."""

ROBUST = "robust"
"""Robust metrics are called ``metrics/<evaluator>/robust/<name>``; no default ever chooses among them."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SIZES = ("epsilon", "step_size")
_CLEAN = "clean"
_LARGEST_BATCH = 256  # an attack keeps the activations of a backward pass, which an evaluation does not
_VIEW_SEED = 0  # fixed: every evaluation, of every run, is of the same images


class RobustEvaluation(Callback):
    """Attack the model that is being trained, on a fixed part of an evaluation set, and report its accuracy.

    At the evaluations that ``interval`` chooses, a part of the evaluator's data is perturbed against the weights of
    that moment (the moving average where EMA is on), in evaluation mode and in the trainer's precision. The
    same examples are perturbed every time, evenly spaced over the dataset, and the perturbation of one does not depend
    on batches and ranks. Ranks share the work. No gradient, statistic or generator moves, and the seconds count as
    evaluation.

    The metrics go to the loggers and, through :class:`~reuse_algos.callbacks.RunRecorder`, into the run's record:
    ``metrics/eval/robust/FGSMAccuracy`` and ``metrics/eval/robust/PGDAccuracy`` under the default attacks, and
    ``metrics/eval/robust/CleanAccuracy``, of the same examples unperturbed. ``reuse-algos compare --metric
    PGDAccuracy`` compares runs by them. An attack with random targets counts an example as
    right where its own label is still predicted.

    FGSM: Goodfellow et al. 2015. PGD: Madry et al. 2018. Both attack the model as it is; a defence that hides its
    gradients would look better than it is (Athalye et al. 2018, https://arxiv.org/abs/1802.00420).

    Args:
        attacks: Name -> fields of :class:`~reuse_algos.training.attacks.Attack`. A name consists of a-z, 0-9 and
            ``_`` and is, in capitals, that of the metric. Without ``method`` it must begin with that of an
            attack (``pgd20``). ``epsilon`` and ``step_size`` may be texts such as ``8/255``. Default:
            :data:`DEFAULT_ATTACKS`.
        examples: How many, at most. Default: 1000.
        interval: Composer time: the first evaluation after every such stretch is a robust one. The evaluation at the
            end of training always is, and so is one by ``Trainer.eval``. Default: every epoch.
        evaluator: Label of the evaluator. Default: the first.
        pixels: How the images were normalised, on the scale 0 to 1, per channel. Default: what the dataset says.
        keys: Where inputs, targets and logits lie, and the task where it is not to be found, see
            :class:`~reuse_algos.training.batch_keys.BatchKeys`. Default: inputs at position 0 of the batch and targets
            at position 1; the task of the first batch that is evaluated.
        batch_size: Examples at once on each rank. Default: that of the evaluator's loader, at most 256, as an attack
            takes more memory than an evaluation.

    Raises:
        ValueError: A setting is wrong; at the start, there is no such evaluator.
        DataError: At the start, the evaluation data have no positions or no known pixel space.
        TaskError: At the first robust evaluation: the task is neither multiclass nor binary, or none is found.
        ModelError: Autograd knows no way from the logits to the inputs. (A gradient that is 0 or not finite stops no
            training: such examples stay where the attack began, and the log says how many there are.)
    """

    def __init__(
        self,
        *,
        attacks: Mapping[str, Mapping[str, Any] | None] | None = None,
        examples: int = 1000,
        interval: str | int | Time = "1ep",
        evaluator: str | None = None,
        pixels: PixelSpace | None = None,
        keys: BatchKeys | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.attacks = _parse_attacks(DEFAULT_ATTACKS if attacks is None else attacks)
        for name, number in (("examples", examples), ("batch_size", 1 if batch_size is None else batch_size)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"RobustEvaluation {name} must be a whole number from 1, not {number!r}")
        self.examples = examples
        self.interval = Time.from_input(interval, TimeUnit.EPOCH)
        if not self.interval.value > 0:
            raise ValueError(f"RobustEvaluation interval must be above 0, not {interval!r}")
        self.pixels = None if pixels is None else fit_section(PixelSpace, pixels, "RobustEvaluation pixels")
        self.evaluator = evaluator
        self.keys = fit_section(BatchKeys, keys or {}, "RobustEvaluation keys")
        self.batch_size = batch_size
        self.latest_metrics: dict[str, float] = {}
        self._periods = 0
        self._passed, self._at_end = 0, False
        self._standalone = False
        self._ran = False

    # Events ---------------------------------------------------------------------------------------------------------

    def init(self, state: State, logger: Logger) -> None:
        """Forget another Trainer; refuse a second callback, as checkpoints keep callbacks by class."""
        if sum(isinstance(one, RobustEvaluation) for one in state.callbacks) > 1:
            raise ValueError("a trainer takes one RobustEvaluation; give it several attacks")
        self.latest_metrics, self._periods, self._ran = {}, 0, False

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say before the training what would be wrong with the evaluation."""
        _data(self._find_evaluator(state), self.pixels)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that robust evaluations will have, such as ``robust/PGDAccuracy``."""
        return [f"{ROBUST}/{_title(name)}" for name in (_CLEAN, *self.attacks)]

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Attack whatever the interval says: ``Trainer.eval`` asks for everything."""
        self._standalone = True

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Go back to the interval."""
        self._standalone = False

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Look at the clock of training."""
        # Within an evaluation, the length of the dataloader is that of the evaluation, and shares would be wrong.
        self._passed, self._at_end = _passed(state, self.interval), elapsed_share(state) >= 1

    def eval_start(self, state: State, logger: Logger) -> None:
        """Attack, at the evaluations that the interval chooses."""
        # Not at EVAL_END: Composer's algorithms (EMA) have put back the weights of training by then, and the metrics
        # would come too late for the recorder.
        evaluator = self._find_evaluator(state)
        if state.dataloader_label != evaluator.label:
            return
        # Trainer.eval may have been given other data under the same label.
        running = [one for one in state.evaluators if one.dataloader.dataloader is state.dataloader]
        evaluator = next((one for one in running if one.label == evaluator.label), evaluator)
        self.latest_metrics = {}
        if not self._is_due():
            return
        counts = on_every_rank(lambda: self._count(state, evaluator))
        totals = [sum(column) for column in zip(*counts, strict=True)]
        titles = [_title(name) for name in (_CLEAN, *self.attacks)]
        self.latest_metrics = {
            f"metrics/{evaluator.label}/{ROBUST}/{title}": right / totals[-1]
            for title, right in zip(titles, totals[:-1], strict=True)
        }
        self._ran = True
        logger.log_metrics(self.latest_metrics)

    def close(self, state: State, logger: Logger) -> None:
        """Say so where a whole training had no robust evaluation."""
        if not self._ran and state.max_duration is not None and state.timestamp.batch > 0 and elapsed_share(state) >= 1:
            warnings.warn(
                "RobustEvaluation had no effect: its evaluator was never evaluated. Give the Trainer an eval_interval.",
                NoEffectWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return how many intervals have passed, and whether there was an evaluation."""
        return {"periods": self._periods, "ran": self._ran}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._periods, self._ran = int(state["periods"]), bool(state["ran"])

    # What to evaluate, and when -------------------------------------------------------------------------------------

    def _find_evaluator(self, state: State) -> Evaluator:
        labels = [one.label for one in state.evaluators]
        if not labels:
            raise ValueError("RobustEvaluation needs an evaluator: give the Trainer an eval_dataloader")
        if self.evaluator is None:
            return state.evaluators[0]
        if self.evaluator not in labels:
            raise ValueError(f"RobustEvaluation: no evaluator {self.evaluator!r}.{nearest(self.evaluator, labels)}")
        return state.evaluators[labels.index(self.evaluator)]

    def _is_due(self) -> bool:
        if self._standalone:
            return True
        due = self._passed > self._periods or self._at_end
        self._periods = max(self._passed, self._periods)
        return due

    # The attack -----------------------------------------------------------------------------------------------------

    def _count(self, state: State, evaluator: Evaluator) -> list[float]:
        """Return this rank's rightly classified examples: clean, under each attack, and last the number of all."""
        loader, dataset, pixels = _data(evaluator, self.pixels)
        model: Any = unwrap_model(state.model)
        count = len(dataset)  # type: ignore[arg-type]
        number = min(self.examples, count)
        # Evenly spaced, since datasets in folders are sorted by class.
        positions = (torch.arange(number) * count // number)[dist.get_global_rank() :: dist.get_world_size()]
        size = self.batch_size or min(loader.batch_size or _LARGEST_BATCH, _LARGEST_BATCH)
        info = try_info(dataset)
        rights, lost = [0] * (1 + len(self.attacks)), dict.fromkeys(self.attacks, 0)
        task: Task | None = None
        for part, batch in _batches(evaluator, loader, dataset, positions.split(size), state):
            inputs_BCHW: Any = batch_get(batch, self.keys.input)
            # Random starts are drawn by key: an example is attacked alike on every rank and in every batch.
            keys_B = (part if info is None else info.keys[part]).to(inputs_BCHW.device)

            def answers(inputs: Tensor, batch: Any = batch) -> Tensor:
                return logits_of(model.eval_forward(batch_set(copy(batch), self.keys.input, inputs)), self.keys.output)

            precision = get_precision_context(state.precision, state.precision_config, fp8_autocast_enabled=False)
            with torch.no_grad(), precision:
                clean = answers(inputs_BCHW)
                task = self._task_of(clean, batch, state) if task is None else task
                _refuse_probabilities(task, clean)
                labels_B = _labels(task, clean, targets_of(batch, self.keys.target))

                def forward(inputs: Tensor, answers: Any = answers, task: Task = task) -> Tensor:
                    return _logits_of_classes(task, answers(inputs))

                rights[0] += _right(_logits_of_classes(task, clean), labels_B)
                for index, (name, attack) in enumerate(self.attacks.items(), start=1):
                    delta_BCHW, slope_B = ascend(forward, inputs_BCHW, labels_B, attack, pixels, keys_B=keys_B)
                    rights[index] += _right(forward(pixels.add(inputs_BCHW, delta_BCHW)), labels_B)
                    # Not "slope_B <= 0", so that NaN counts as well.
                    lost[name] += int((~(slope_B > 0)).sum())
        for name, number in lost.items():
            if number:
                log.warning(
                    "RobustEvaluation: %s had no direction for %d of %d examples of evaluator %r: the gradient with "
                    "respect to the inputs is 0 or not finite, and its accuracy there is not that of a robust model.",
                    name,
                    number,
                    len(positions),
                    evaluator.label,
                )
        return [*map(float, rights), float(len(positions))]

    def _task_of(self, outputs: Tensor, batch: Any, state: State) -> Task:
        """Find the task in the first batch of the evaluation, and refuse one that has no classes to attack."""
        try:
            loss = float(total_of(unwrap_model(state.model).loss(outputs, batch)))  # type: ignore[operator]
        except Exception:  # some models compute their loss from more than logits; then shapes and metrics decide
            loss = None
        names = [type(metric).__name__ for metric in state.eval_metrics.get(state.dataloader_label or "", {}).values()]
        targets = targets_of(batch, self.keys.target)
        task = find_task(outputs, targets, loss, self.keys.task, metrics=names)
        task.require("RobustEvaluation", ("multiclass", "binary"))
        return task


def robust_metrics(state: State) -> dict[str, float]:
    """Return what :class:`RobustEvaluation` found at the running evaluation, by metric name; empty if nothing."""
    prefix = f"metrics/{state.dataloader_label}/"
    found = [one.latest_metrics for one in state.callbacks if isinstance(one, RobustEvaluation)]
    return {name: value for metrics in found for name, value in metrics.items() if name.startswith(prefix)}


def _data(evaluator: Evaluator, given: PixelSpace | None) -> tuple[DataLoader, Dataset, PixelSpace]:
    """Return the evaluator's loader, its dataset by position, and what its inputs mean."""
    loader = evaluator.dataloader.dataloader
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            "RobustEvaluation attacks a fixed part of the evaluation data, but those of evaluator "
            f"{evaluator.label!r} are iterable ({type(dataset or loader).__name__}): their examples have no "
            "positions. Give a DataLoader over a dataset with __len__ and __getitem__, or name another evaluator "
            "(evaluator=...)."
        )
    if not len(dataset):  # type: ignore[arg-type]
        raise DataError(f"RobustEvaluation: the dataset of evaluator {evaluator.label!r} is empty.")
    pixels = given or pixel_space_of(dataset)
    if pixels is None:
        raise DataError(
            f"RobustEvaluation: the dataset of evaluator {evaluator.label!r} does not say how its images were "
            "normalised. Give pixels: {mean, std} (0 and 1 per channel for images from 0 to 1)."
        )
    return loader, dataset, pixels  # type: ignore[return-value]


def _batches(
    evaluator: Evaluator,
    loader: DataLoader,
    dataset: Dataset,
    parts: Sequence[Tensor],
    state: State,
) -> Iterator[tuple[Tensor, Any]]:
    """Yield positions and batch, on the device and as the trainer's own evaluation would see it."""
    # A dataset that is random in evaluation is seeded by example, so that its images are the same ones every time.
    lists = [[ExampleView(position, 0) for position in part.tolist()] for part in parts if len(part)]
    if not isinstance(dataset, DeviceImages | WorkerImages | ViewedDataset):
        keys_N = torch.arange(len(dataset))  # type: ignore[arg-type]
        info = try_info(dataset) or DatasetInfo(type(dataset).__name__, keys_N)
        dataset = ViewedDataset(dataset, ViewPolicy(_VIEW_SEED, 1), info)
    spec = evaluator.dataloader
    source = iter(dataloader_of(dataset, batch_sampler=lists, collate_fn=loader.collate_fn))
    for one in lists:
        with seeded_rng(_VIEW_SEED):  # for collate functions and transforms of whole batches
            batch = state.device.batch_to_device(spec.batch_transforms(next(source)))
            batch = spec.microbatch_transforms(batch)
        yield torch.tensor([view.position for view in one]), batch


def _parse_attacks(attacks: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Attack]:
    """Return the attacks by name."""
    if not attacks:
        raise ValueError("RobustEvaluation: attacks is empty; leave it out for FGSM and PGD")
    known = [field.name for field in dataclasses.fields(Attack)]
    parsed = {}
    for name, given in attacks.items():
        if not _NAME.fullmatch(str(name)) or name == _CLEAN:
            raise ValueError(
                f"RobustEvaluation attacks: {name!r} cannot be the name of an attack. A name begins with a letter, has "
                f"a-z, 0-9 and _ only, and is not {_CLEAN!r}."
            )
        if not isinstance(given, Mapping | None):
            raise ValueError(f"RobustEvaluation attacks.{name} must be a section of fields, not {given!r}")
        fields = dict(given or {})
        for key in fields:
            if key not in known:
                raise ValueError(f"RobustEvaluation attacks.{name}: no field {key!r}.{nearest(str(key), known)}")
        if "method" not in fields:
            fields["method"] = next((method for method in METHODS if name.startswith(method)), None)
            if fields["method"] is None:
                raise ValueError(
                    f"RobustEvaluation attacks.{name}: say its method ({' or '.join(METHODS)}), or let its name begin "
                    "with that"
                )
        try:
            fields |= {key: pixel_size(size) for key, size in fields.items() if key in _SIZES and isinstance(size, str)}
            parsed[name] = Attack(**fields)
        except ValueError as error:
            raise ValueError(f"RobustEvaluation attacks.{name}: {error}") from error
    return parsed


def _title(name: str) -> str:
    return "CleanAccuracy" if name == _CLEAN else f"{name.upper()}Accuracy"


def _passed(state: State, interval: Time) -> int:
    """Return how many whole intervals of training have passed."""
    if interval.unit == TimeUnit.DURATION:
        # Rounding must not delay an interval by an evaluation.
        return int(elapsed_share(state) / interval.value + 1e-9)
    passed = state.timestamp.get(interval.unit).value
    if interval.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        # Composer evaluates by shares of the training before it counts the epoch whose last batch has ended.
        passed += int(state.timestamp.batch_in_epoch) // int(state.dataloader_len)
    return int(passed // interval.value)


def _labels(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the class of each example, int64 ``[B]``: 0 or 1 for binary tasks."""
    rows = task.rows(outputs, targets)
    assert rows.targets is not None
    if rows.counted_BX is not None and not bool(rows.counted_BX.all()):
        raise DataError("RobustEvaluation: some examples have no label, or one that the loss ignores. Leave them out.")
    if task.kind == "binary":
        return (rows.targets > 0.5).flatten().long()
    return rows.targets.argmax(1) if rows.targets.is_floating_point() else rows.targets


def _refuse_probabilities(task: Task, outputs: Tensor) -> None:
    """Refuse models that give probabilities in evaluation: attacks on the loss of those see hardly any slope."""
    # A single number between 0 and 1 may be a logit.
    if task.is_softmax and are_probabilities(task, outputs.float()):
        raise TaskError(
            "RobustEvaluation: the model gives probabilities in evaluation, as its outputs are at least 0 and sum to 1 "
            "over the classes. Let it return logits, as in training."
        )


def _logits_of_classes(task: Task, outputs: Tensor) -> Tensor:
    """Return ``[B, K]``; of a binary task the logits 0 and z, whose cross entropy is the binary one of z."""
    logits_BK = task.rows(outputs).logits_BCX
    return torch.cat([torch.zeros_like(logits_BK), logits_BK], 1) if task.kind == "binary" else logits_BK


def _right(logits_BK: Tensor, labels_B: Tensor) -> int:
    return int((logits_BK.argmax(1) == labels_B).sum())
