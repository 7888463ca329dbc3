"""Training a head on archived features, as if the frozen network in front of it had run.

Legend: N training examples, B rows of a batch, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from composer import State
from composer.core import get_precision_context
from composer.utils import batch_get
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from reuse_algos.algorithms.prior_run_warm_start.head_only import HeadOnly
from reuse_algos.archive import PriorRun, Signal
from reuse_algos.data.example_ids import swap_train_loader
from reuse_algos.data.images.device_loader import device_collate
from reuse_algos.data.info import DatasetInfo, infer_info
from reuse_algos.data.sampler import Examples
from reuse_algos.data.views import ExampleView, ViewPolicy
from reuse_algos.errors import DataError, ModelError, PriorRunMismatchError, SignalNotFoundError
from reuse_algos.priors.advice import harvest_command
from reuse_algos.priors.choosing import match_examples
from reuse_algos.priors.lookup import ArchivedRows, fits_device, harvest_share
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.priors.views import missing_views, numbered_views
from reuse_algos.training.first_batch.views import read_rows
from reuse_algos.training.interplay import changes_inputs, mixes_examples
from reuse_algos.training.outputs import device_of
from reuse_algos.training.parameters.head import PassOfHead
from reuse_algos.training.parameters.kept_state import kept_state

log = logging.getLogger(__name__)

# Examples whose features are computed once more, to compare the archived ones with them.
_LOOKED_AT = 8
# Relative difference (of Euclidean norms) up to which they count as the same: other hardware, bfloat16.
_TOLERANCE = 0.05


def features_name(weights: str) -> str:
    """Return the name of the signal with the features of archived weights: ``features``, or ``features.ep0100``."""
    return harvested_name("features", weights)


class FeatureData(Dataset[Any]):
    """Archived features in place of a dataset's inputs; a whole batch is one look-up.

    Args:
        inner: The dataset that they stand for. None of its examples is read.
        features: Their rows, whose slots are views.
        policy: The views.
        labels: ``[N]``.
        device: Where batches are made.
        kind: ``tuple`` or ``list``, what the dataset's own batches are.

    Attributes:
        latest: The features that were handed out last, ``[B, D]``.
        views_used: Numbers of the views that were handed out.
    """

    def __init__(
        self,
        inner: Dataset[Any],
        features: ArchivedRows,
        policy: ViewPolicy,
        labels: Tensor,
        device: torch.device,
        kind: type,
    ) -> None:
        self.inner = inner
        self.info: DatasetInfo = infer_info(inner)
        self.view_policy = policy
        self.latest: Tensor | None = None
        self.views_used: set[int] = set()
        self._features, self._labels_N, self._kind = features, labels.to(device), kind

    def __len__(self) -> int:
        return self.info.num_examples

    def __getitem__(self, index: ExampleView) -> tuple[Tensor, Tensor]:
        """Return features ``[D]`` and label of one example."""
        features_BD, labels_B = self.__getitems__([index])
        return features_BD[0], labels_B[0]

    def __getitems__(self, indices: Sequence[ExampleView]) -> Any:
        """Return a batch: features float32 ``[B, D]`` and labels ``[B]``.

        Raises:
            DataError: An index does not say which view.
            IndexError: A position is outside the dataset.
        """
        if not all(isinstance(index, tuple) for index in indices):
            raise DataError("features are of views; ask for ExampleView(position, view), as a tracked DataLoader does")
        positions_B = torch.tensor([index[0] for index in indices], dtype=torch.int64)
        views_B = torch.tensor([index[1] for index in indices], dtype=torch.int64)
        if len(positions_B) and not 0 <= int(positions_B.min()) <= int(positions_B.max()) < len(self):
            raise IndexError(f"Positions {positions_B.tolist()} of a dataset of {len(self)} examples.")
        self.views_used.update(views_B.unique().tolist())
        features_BD, _ = self._features.gather(positions_B, views_B)
        device = self._labels_N.device
        self.latest = features_BD.to(device, non_blocking=True)
        return self._kind((self.latest, self._labels_N.index_select(0, positions_B.to(device, non_blocking=True))))


class CachedFeatures:
    """Swaps the train DataLoader's dataset for its features and the model's forward pass for that of its head.

    Args:
        weights: Name of the archived weights whose features are wanted.
        mismatch: ``allow`` takes features of examples that are the same by key, and a live model that draws at random
            in training (dropout), whose features in evaluation mode stand for what it would have drawn.
    """

    def __init__(self, weights: str, mismatch: str) -> None:
        self.weights, self.mismatch = weights, mismatch
        self.difference = 0.0
        self._run: PriorRun | None = None
        self._earlier_seconds = 0.0
        self._earlier_views: set[int] = set()
        self._data: FeatureData | None = None
        self._loader: DataLoader | None = None
        self._head: HeadOnly | None = None
        self._checked = False

    @property
    def views_used(self) -> set[int]:
        """Numbers of the views whose features were used, also in earlier attempts of this run."""
        return self._earlier_views | (set() if self._data is None else self._data.views_used)

    @property
    def harvest_seconds(self) -> float:
        """The share of the harvest that the used views are."""
        if self._run is None:  # a run that had trained to its end when its checkpoint was loaded
            return self._earlier_seconds
        return harvest_share(self._run, [features_name(self.weights)], self.views_used)

    def state_dict(self) -> dict[str, Any]:
        """Return what was used of the harvest."""
        return {"views_used": sorted(self.views_used), "harvest_seconds": self.harvest_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._earlier_views = {int(view) for view in state["views_used"]}
        self._earlier_seconds = float(state["harvest_seconds"])

    # Start ----------------------------------------------------------------------------------------------------------

    def connect(
        self,
        state: State,
        run: PriorRun,
        head: Collection[str],
        policy: ViewPolicy | None,
        hold: Callable[[State], None],
    ) -> None:
        """Check that the features are those of this model and data, and train on them from now on (FIT_START).

        Args:
            state: With the prior weights in the model, and a train DataLoader that has a tracked batch sampler.
            run: The prior run.
            head: Names of the head's parameters, all that trains.
            policy: The views of the train data.
            hold: Puts frozen layers of a model in training into the mode that they train in.

        Raises:
            SignalNotFoundError: The run has no such features.
            PriorRunMismatchError: They are of other examples or views, something changes the inputs, or the model
                computes others.
            ModelError: The model cannot begin at its head.
            DataError: Batches are not pairs of inputs and labels.
        """
        loader: Any = state.dataloader
        if changers := mixes_examples(state) + changes_inputs(state):
            raise PriorRunMismatchError(
                f"{changers[0]} changes the inputs, so features that were harvested without it are not what the head "
                f"would get. Remove {changers[0]}, or use source: live."
            )
        info = infer_info(loader.dataset)
        policy = numbered_views(policy, "so no archived feature is true for it", ", or use source: live")
        signal = self._open(run, policy)
        on = device_of(state.model) if fits_device([signal]) else torch.device("cpu")
        rows = self._rows(run, info)
        features = ArchivedRows(signal, rows, range(policy.num_views), on if fits_device([signal]) else None)
        positions_E = torch.linspace(0, info.num_examples - 1, min(_LOOKED_AT, info.num_examples)).long()
        some = Examples(positions_E, torch.arange(len(positions_E)) % policy.num_views)
        batch = read_rows(loader.dataset, some, 0, loader.collate_fn)
        labels_N = _labels(batch, positions_E, info)
        archived_ED, _ = features.gather(*some)
        # Records may be wrong, so a few archived rows are compared with what the model computes before any is trusted.
        self._head = HeadOnly(state.model, head)
        self._compare(state, batch, archived_ED, hold)
        self._run, self._earlier_views = run, self.views_used
        kind = list if isinstance(batch, list) else tuple
        self._data = FeatureData(loader.dataset, features, policy, labels_N, on, kind)
        self._loader, self._checked = loader, False
        swap_train_loader(
            state,
            DataLoader(
                self._data,
                batch_sampler=loader.batch_sampler,
                collate_fn=device_collate,
                # Only memory of the CPU can be pinned.
                pin_memory=loader.pin_memory and on.type == "cpu",
                generator=loader.generator,
            ),
        )
        log.info("training the head on %s of %s", features_name(self.weights), run.id)

    def _open(self, run: PriorRun, policy: ViewPolicy) -> Signal:
        name, record = features_name(self.weights), run.manifest.dataset
        which = () if self.weights == "last" else (self.weights,)
        how = "--plain" if policy.transform == "none" else f"--views {policy.num_views}"
        advice = f"Run {harvest_command(run, 'features', weights=which, views=how)}, or use source: live."
        if name not in run.signal_names:
            raise SignalNotFoundError(f"run {run.id} has no signal {name!r}. {advice}")
        signal = run.signal(name)
        of = {signal.slot_meta(slot).get("transform") for slot in signal.slots}
        seed = record.view_seed if record else None
        if of != {policy.transform} or (policy.transform != "none" and seed != policy.seed):
            there, here = (sorted(map(str, of)), seed), ([policy.transform], policy.seed)
            raise PriorRunMismatchError(
                f"run {run.id} has features of views with (transform, seed) {there}, this run shows {here}. {advice}"
            )
        if missing := missing_views(run, signal, policy, "features", least=1.0):
            raise PriorRunMismatchError(f"{missing}. {advice}")
        return signal

    def _rows(self, run: PriorRun, info: DatasetInfo) -> Tensor | None:
        rows = match_examples(run, info, self.mismatch)
        if rows is not None and bool((rows < 0).any()):
            raise PriorRunMismatchError(
                f"{int((rows < 0).sum())} of {len(rows)} training examples are new to run {run.id} or have another "
                "label there, so it has no features of them. Use source: live, or a run that was trained on all of "
                "them."
            )
        return rows

    def _compare(self, state: State, batch: Any, archived_ED: Tensor, hold: Callable[[State], None]) -> None:
        """Compare archived features with what the model computes, in evaluation and as it would in training."""
        assert self._head is not None
        batch = state.device.batch_to_device(batch)
        inputs: Any = batch_get(batch, 0)
        seen = _look(state, self._head, batch, inputs)
        self.difference = _relative_difference(seen.features, archived_ED)
        if not self.difference <= _TOLERANCE:
            raise PriorRunMismatchError(
                f"the head is given features that differ by {100 * self.difference:.3g} % from the archived ones: the "
                "weights, the examples, their views or the precision are not those of the harvest. Harvest again "
                "(--replace), or use source: live."
            )
        # Features are archived in evaluation mode. Dropout in front of the head would make others of them in training.
        drawn = _relative_difference(_look(state, self._head, batch, inputs, hold).features, archived_ED)
        if not drawn <= _TOLERANCE and self.mismatch != "allow":
            raise PriorRunMismatchError(
                f"in training the head would be given features that differ by {100 * drawn:.3g} % from those in "
                f"evaluation, which are archived{_random_layers(state.model)}. Switch off what draws at random in "
                "front of the head, use source: live, or say mismatch: allow to train without it."
            )

    # Each microbatch ------------------------------------------------------------------------------------------------

    def before_forward(self, state: State) -> None:
        """Let the next call of the model take features (BEFORE_FORWARD).

        Raises:
            DataError: In the first batch, what it gets is not what was looked up.
        """
        assert self._head is not None
        assert self._data is not None
        # Once: a transform of the DataSpec runs between the DataLoader and the model, where no other check looks.
        if not self._checked:
            given, wanted = state.batch_get_item(0), self._data.latest
            if wanted is None or not torch.equal(given.to(wanted.device), wanted[: len(given)]):
                raise DataError(
                    "the head does not get the features that were looked up: a DataSpec transform or another algorithm "
                    "changes the inputs of the batch. Remove it, or use source: live."
                )
            self._checked = True
        self._head.enter(state.model)

    def leave(self) -> None:
        """Let the model be whole again."""
        if self._head is not None:
            self._head.leave()

    def disconnect(self, state: State) -> None:
        """Give the train DataLoader its own dataset back (FIT_END, or FIT_START after a fit that failed)."""
        self.leave()
        dataset = getattr(state.dataloader, "dataset", None)
        if isinstance(dataset, FeatureData) and dataset is self._data and self._loader is not None:
            swap_train_loader(state, self._loader)


def _labels(batch: Any, positions_E: Tensor, info: DatasetInfo) -> Tensor:
    """Return the labels of the whole dataset, ``[N]``, in the dtype of a batch's."""
    advice = "Use source: live."
    pair = isinstance(batch, (list, tuple)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    if not pair:
        raise DataError(f"source: cached needs batches of (inputs, labels), not {type(batch).__name__}. {advice}")
    if info.labels is None:
        raise DataError(f"the labels of the dataset {info.name!r} are not known without its images. {advice}")
    given, known = batch[1].cpu(), info.labels[positions_E]
    if given.shape != known.shape or not bool((given == known).all()):
        raise DataError(
            f"the dataset {info.name!r} gives other targets than the labels that it says it has (a transform of its "
            f"targets?). {advice}"
        )
    return info.labels.to(batch[1].dtype)


def _look(
    state: State, head: HeadOnly, batch: Any, inputs: Tensor, hold: Callable[[State], None] | None = None
) -> PassOfHead:
    """Run the whole model on a batch in evaluation mode; with ``hold``, in the modes that it trains in."""
    with torch.no_grad(), kept_state(state.model), get_precision_context(state.precision, state.precision_config):
        state.model.train(hold is not None)
        if hold is not None:
            hold(state)
        return head.look(batch, inputs)


def _relative_difference(found_BD: Tensor, archived_BD: Tensor) -> float:
    if found_BD.shape != archived_BD.shape:
        raise ModelError(
            f"the head is given features of shape {tuple(found_BD.shape[1:])}, and the archived ones are "
            f"{tuple(archived_BD.shape[1:])}. The prior run was another model; use source: live."
        )
    archived_BD = archived_BD.to(found_BD.device, torch.float32)
    return float((found_BD.float() - archived_BD).norm() / archived_BD.norm().clamp_min(1e-12))


def _random_layers(model: nn.Module) -> str:
    """Return names of layers that may draw at random in training, for the end of a clause."""
    kinds = ("Dropout", "StochasticDepth", "DropPath")
    names = [name for name, module in model.named_modules() if any(kind in type(module).__name__ for kind in kinds)]
    return f" (random are {', '.join(names[:5])})" if names else ""
