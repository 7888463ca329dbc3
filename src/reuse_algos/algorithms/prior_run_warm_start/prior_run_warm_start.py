"""The Composer algorithm: training starts from the weights of earlier runs.

Shapes: K classes now, M classes that the earlier run knew, too.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from composer import Event, State
from composer.loggers import Logger

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.prior_run_warm_start.cached_features import CachedFeatures, features_name
from reuse_algos.algorithms.prior_run_warm_start.loading import load_weights
from reuse_algos.algorithms.prior_run_warm_start.settings import Average, Change, Keep, Match, Reset, Trainable
from reuse_algos.algorithms.prior_run_warm_start.sources import USE, choose_sources, used_weights
from reuse_algos.archive import PriorUse, RunArchive, weights_name
from reuse_algos.data.example_ids import VIEW_EVENTS, follow_views
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.errors import ModelError
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.sections import fit_section
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.parameters.trainable import TrainablePart, head_of, matches, plain_parameters

log = logging.getLogger(__name__)

_METRICS = "reuse/warm_start/"
_WEIGHTS = re.compile(r"last|best|[0-9]{1,9}ep|ep[0-9]{4,9}", re.ASCII)
_CACHED_EVENTS = (Event.BEFORE_FORWARD, Event.AFTER_FORWARD, Event.EVAL_START, Event.FIT_END)


class PriorRunWarmStart(ReusingAlgorithm):
    r"""Start from the weights of an earlier run, instead of from random numbers.

    Weights are loaded once, at the start of the first ``fit``: neither a resumed run nor a second ``fit`` loads them
    again; another Trainer does. Everything that is loaded becomes ``shrink * weights + perturb * noise`` (Ash & Adams
    2020, arXiv 1910.08475, section 4), but for what is frozen, here, by ``Freezing`` or by the model's own
    ``requires_grad``: that stays as the earlier run left it. Where weights are shrunk or perturbed, running statistics
    of batch norm stay as they were initialised, as in the authors' code.

    Args:
        archive: A :class:`~reuse_algos.archive.RunArchive` or its path.
        runs: Which prior run, see :data:`~reuse_algos.priors.choosing.RunSelection`; a query must say
            ``limit: 1`` where several runs match it. Several with ``weights: average``.
        weights: ``last``, ``best``, ``5ep`` (the name of archived weights), or :class:`Average`. Default: ``last``.
        change: :class:`Change`: what becomes of the weights, shrunk, perturbed or reset. Default: nothing.
        head: :class:`Keep` loads the last layer like the others, :class:`Reset` leaves it as it was initialised,
            :class:`Match` loads the rows of those classes that the earlier run knew by the same name. Default:
            ``keep``.
        trainable: :class:`Trainable`: what is frozen, and rates of its own for some parts. Default: everything trains.
        source: Where the head's inputs come from when everything else is frozen: ``live`` runs the frozen part on every
            batch; ``cached`` looks up the features that ``reuse-algos harvest --signals features`` archived, so that
            images are neither loaded nor passed through the network. The numbers are the same. Evaluation runs the
            whole model. Default: ``live``.
        mismatch: ``refuse`` a prior run with other class names where the head is kept, or ``allow`` it; with ``cached``
            also a prior run with further examples, and layers in front of the head that draw at random in training.
            Default: ``refuse``.
        dataset: What the train data are. Default: read off the loader's dataset.
        seed: Seed of the noise. Default: 0.

    Raises:
        ValueError: Arguments are out of range; all are listed.
        DataError: At the start of training, with ``cached``: batches are not pairs of inputs and labels.
        ModelError: At the Trainer's construction or at the start of training, a pattern matches nothing, the head
            cannot be found, a scheduler does not suit, or a checkpoint was loaded, too.
        RunNotFoundError, SignalNotFoundError: At the start of training.
        PriorRunMismatchError: At the start of training: tensors or classes do not fit, all are listed.

    Logs ``reuse/warm_start/loaded`` (share of the model's parameters with an archived value), ``/known_classes`` (M,
    with ``match``), ``/known_tokens`` (with another vocabulary than the prior run's: tokens whose rows of the embedding
    were loaded), ``/frozen`` (share of the parameters that do not train now) and ``/feature_difference`` (with
    ``cached``: relative difference of a few archived features from those that this model computes).

    Example:
        .. code-block:: python

            Trainer(..., algorithms=[PriorRunWarmStart("./archive", "resnet56-1", change={"shrink": 0.4})])
    """

    def __init__(
        self,
        archive: RunArchive | str | os.PathLike[str],
        runs: RunSelection,
        *,
        weights: Average | str | Mapping[str, Any] = "last",
        change: Change | Mapping[str, Any] | None = None,
        head: Keep | Reset | Match | str | Mapping[str, Any] = "keep",
        trainable: Trainable | Mapping[str, Any] | None = None,
        source: str = "live",
        mismatch: str = "refuse",
        dataset: DatasetInfo | None = None,
        seed: int = 0,
    ) -> None:
        self.weights: Average | str = fit_section(Average | str, weights, "weights")
        self.change: Change = fit_section(Change, change or {}, "change")
        self.head: Keep | Reset | Match = fit_section(Keep | Reset | Match, head, "head")
        wanted: Trainable = fit_section(Trainable, trainable or {}, "trainable")
        self.part = TrainablePart(
            freeze=wanted.freeze,
            learning_rates=wanted.learning_rates,
            unfreeze_at=wanted.unfreeze_at,
            head_pattern=self.head.pattern,
        )
        if faults := [*self._faults(source), *self.part.faults()]:
            raise ValueError("\n".join(f"PriorRunWarmStart: {fault}" for fault in faults))
        super().__init__(archive, runs, seed=seed, mismatch=mismatch)
        self.source = source
        self.cached = CachedFeatures(weights_name(str(weights)), mismatch) if source == "cached" else None
        self.dataset = dataset
        self.loaded = False
        self._uses: list[tuple[str, list[str]]] = []
        self._facts: dict[str, float] = {}

    def _faults(self, source: str) -> Iterator[str]:
        """Yield what is wrong with settings that depend on each other."""
        if isinstance(self.weights, str) and not _WEIGHTS.fullmatch(self.weights):
            yield f"weights must be last, best, average, or epochs such as 5ep, got {self.weights!r}"
        if source not in ("live", "cached"):
            yield f"source must be live or cached, got {source!r}"
        if source == "cached":
            if not self.part.freeze:
                yield "source: cached needs a frozen backbone (trainable: {freeze: backbone})"
            if self.part.unfreeze_at is not None:
                yield "source: cached has features of a frozen backbone, so unfreeze_at must be left out"
            if isinstance(self.weights, Average):
                yield "source: cached has features of weights that were archived, not of averages"

    @property
    def find_unused_parameters(self) -> bool:
        """Whether DDP must look for parameters without a gradient: those that are frozen for some time."""
        return self.part.changes_while_training and self.skipped is None

    @property
    def hides_inputs(self) -> bool:
        """Whether batches hold features instead of inputs: with ``cached``."""
        return self.cached is not None and self.skipped is None

    # What the engine asks -------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Return true for the start, and for batches where something is frozen."""
        if self.stands_aside(event):
            return False
        return self.part.acts_at(event) or event in (VIEW_EVENTS if self.cached is None else _CACHED_EVENTS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        # At INIT, before Composer makes schedulers of the optimizer's groups and wraps the model for DDP.
        if event == Event.INIT:
            self._refuse_shards(state)
            self._forget()
            # Frozen random weights would only do harm.
            self.part.arrange(state, now=self.skipped is None)
        elif event == Event.FIT_START:
            self.part.hold(state)
            if self.cached is not None:
                self.cached.disconnect(state)  # from a fit that ended by an error
                self.ids.handle(event, state)
            else:
                follow_views(event, state)
            # A checkpoint of this run says that the weights are loaded already; any other would be overwritten by them.
            if not self.loaded:
                self._refuse_checkpoint(state)
            if not self.loaded or self.cached is not None:
                self.begin(state)
                self.loaded = True
            self._log(logger)
        elif event == Event.BATCH_START:
            if self.part.unfreeze_if_due(state):
                log.info("everything trains from batch %d on", int(state.timestamp.batch))
                self._log(logger)
        elif event == Event.BEFORE_FORWARD:
            self.part.keep_statistics(state)
            if self.cached is not None:
                self.cached.before_forward(state)
        elif self.cached is None:
            follow_views(event, state)
        else:
            self.cached.leave()
            if event == Event.FIT_END:
                self.cached.disconnect(state)

    def _forget(self) -> None:
        """Forget another Trainer, so that this one's model starts from the prior run as well (INIT)."""
        self.start_afresh()
        self.loaded, self._uses, self._facts = False, [], {}
        if self.cached is not None:
            self.cached = CachedFeatures(self.cached.weights, self.mismatch)

    def _refuse_shards(self, state: State) -> None:
        if state.fsdp_config is not None or state.tp_config is not None:
            raise ModelError(
                "PriorRunWarmStart loads whole tensors, and this Trainer shards them (parallelism_config). Train with "
                "DDP, or load a checkpoint (load_path, load_weights_only)."
            )

    def _refuse_checkpoint(self, state: State) -> None:
        if state.load_path is not None or int(state.timestamp.batch) > 0:
            raise ModelError(
                f"a checkpoint of a run without PriorRunWarmStart was loaded ({state.load_path}), and the prior run's "
                "weights would take the place of its weights. Leave out one of the two."
            )

    def _log(self, logger: Logger) -> None:
        facts = {**self._facts, _METRICS + "frozen": self.part.frozen_share}
        if self.cached is not None:
            facts[_METRICS + "feature_difference"] = self.cached.difference
        self.log_metrics(facts, logger)

    # Start ----------------------------------------------------------------------------------------------------------

    def start(self, state: State) -> None:
        """Put the prior weights into the model, once, and find their features."""
        info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
        if not self.loaded:
            sources = choose_sources(self.archive, self.prior_runs, self.weights)
            found = load_weights(
                state, sources, info, change=self.change, head=self.head, seed=self.seed, mismatch=self.mismatch
            )
            self._uses = used_weights(sources)
            self._facts = {_METRICS + "loaded": found.share}
            for fact, value in (("known_classes", found.known_classes), ("known_tokens", found.known_tokens)):
                if value is not None:
                    self._facts[_METRICS + fact] = float(value)
            names = ", ".join(f"{run_id} ({', '.join(weights)})" for run_id, weights in self._uses)
            log.info("started from %s: %.1f %% of the parameters", names, 100 * found.share)
        if self.cached is not None:
            head = self._features_head(state, info)
            self.cached.connect(state, self.prior_runs[0], head, self.ids.view_policy, self.part.keep_statistics)

    def _features_head(self, state: State, info: DatasetInfo | None) -> list[str]:
        """Return the head's parameters, if they are all that trains and the rest is what the prior run archived."""
        head = head_of(state.model, self.head.pattern, info and info.num_classes)
        parameters = plain_parameters(state.model)
        trained = [name for name in parameters if not self.part.is_frozen(name)]
        if set(trained) != set(head):
            listed = ", ".join(sorted(set(trained) ^ set(head))[:5])
            raise ModelError(
                f"source: cached trains the head ({', '.join(head)}) and nothing else, and freeze says otherwise of "
                f"{listed}. Use freeze: backbone, or source: live."
            )
        backbone = [name for name in plain_state_dict(state.model) if name not in head]
        if fresh := [name for name in backbone if matches(name, self.change.patterns, head)]:
            raise ModelError(
                f"reset leaves {', '.join(fresh[:3])} as initialised, and the archived features are those of the prior "
                "run's own weights. Reset the head only (head: reset), or use source: live."
            )
        return head

    # Record and state -----------------------------------------------------------------------------------------------

    def prior_uses(self) -> list[PriorUse]:
        """Return the runs and weights that training started from."""
        uses = [PriorUse(run_id=run_id, algorithm=USE, weights=list(weights)) for run_id, weights in self._uses]
        if self.cached is not None:
            name, seconds = features_name(self.cached.weights), self.cached.harvest_seconds
            uses = [msgspec.structs.replace(use, signals=[name], harvest_seconds=seconds) for use in uses]
        return uses

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on as if it had never stopped."""
        state = super().state_dict()
        state.update(loaded=self.loaded, uses=self._uses, facts=self._facts, part=self.part.state_dict())
        if self.cached is not None:
            state["cached"] = self.cached.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned. The weights themselves are in the checkpoint."""
        super().load_state_dict(state)
        self.loaded = bool(state["loaded"])
        self._uses = [(str(run_id), [str(name) for name in weights]) for run_id, weights in state["uses"]]
        self._facts = {str(name): float(value) for name, value in state["facts"].items()}
        # Another run may have finished in between: what trains is what trained before the interruption.
        self.part.follow(self.skipped is None)
        self.part.load_state_dict(state["part"])
        if self.cached is not None and "cached" in state:  # the earlier attempt may have been a live one
            self.cached.load_state_dict(state["cached"])
