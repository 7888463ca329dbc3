"""The Composer algorithm: training starts from the weights of earlier runs.

Shapes: K classes now, M classes that the earlier run knew, too.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from composer import Event, State
from composer.loggers import Logger
from torch import Tensor

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.algorithms.prior_run_warm_start.cached_features import CachedFeatures, features_name
from reuse_algos.algorithms.prior_run_warm_start.class_rows import match_rows
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import (
    Plan,
    gaussian_noise,
    initial_values,
    misfits,
    noise_generator,
    shuffled_noise,
    under_our_names,
)
from reuse_algos.algorithms.prior_run_warm_start.settings import Average, Change, Keep, Match, Reset, Trainable
from reuse_algos.algorithms.prior_run_warm_start.sources import USE, Source, choose_sources, read_sources
from reuse_algos.archive import PriorUse, RunArchive, weights_name
from reuse_algos.data.example_ids import keep_views
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.errors import ModelError, PriorRunMismatchError
from reuse_algos.models.text import TOKEN_KEYS
from reuse_algos.priors.choosing import RunSelection
from reuse_algos.sections import fit_section
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.tokens import common_tokens, token_tensors
from reuse_algos.training.trainable import (
    TrainablePart,
    frozen_at_start,
    head_of,
    holds,
    matches,
    norm_layers,
    pattern_faults,
    plain_parameters,
    refuse_torn_ties,
)

__all__ = ["PriorRunWarmStart"]

log = logging.getLogger(__name__)

_METRICS = "reuse/warm_start/"
_WEIGHTS = re.compile(r"last|best|[0-9]{1,9}ep|ep[0-9]{4,9}", re.ASCII)
_CACHED_EVENTS = (Event.BEFORE_FORWARD, Event.AFTER_FORWARD, Event.EVAL_START, Event.FIT_END)
_NOISES = {"initial": shuffled_noise, "gaussian": gaussian_noise}


class PriorRunWarmStart(ReusingAlgorithm):
    r"""Start from the weights of an earlier run, instead of from random numbers.

    Weights are loaded once, at the start of the first ``fit``: neither a resumed run nor a second ``fit`` loads them
    again; another Trainer does. Everything that is loaded becomes ``shrink * weights + perturb * noise`` (Ash & Adams
    2020, arXiv 1910.08475, section 4), but for what is frozen, here, by ``Freezing`` or by the model's own
    ``requires_grad``: that stays as the earlier run left it. Where weights are shrunk or perturbed,
    running statistics of batch norm start anew, as in the authors' code: those of the earlier run are of activations
    that are no more.

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
        ValueError: arguments are out of range; all are listed.
        DataError: at the start of training, with ``cached``, batches are no pairs of inputs and labels.
        ModelError: at the Trainer's construction or at the start of training, a pattern matches nothing, the head
            cannot be found, a scheduler does not suit, or a checkpoint was loaded, too.
        RunNotFoundError, SignalNotFoundError: at the start of training.
        PriorRunMismatchError: likewise; tensors or classes do not fit, all are listed.

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
        """DDP must not wait for the gradients of parameters that are frozen for some time."""
        return self.part.changes_while_training

    @property
    def hides_inputs(self) -> bool:
        """With ``cached``, batches hold features."""
        return self.cached is not None

    # What the engine asks -------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Answer only: the start always, batches where something is frozen."""
        del state
        if self.cached is not None and event in _CACHED_EVENTS:
            return True
        if event == Event.BEFORE_FORWARD:
            return self.part.holds_statistics
        if event == Event.BATCH_START:
            return self.part.changes_while_training and not self.part.unfrozen
        return event in (Event.INIT, Event.FIT_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        if event == Event.INIT:
            self._refuse_shards(state)
            self._forget()
            self.part.arrange(state)
        elif event == Event.FIT_START:
            self.part.hold(state)
            if self.cached is not None:
                self.cached.disconnect(state)  # from a fit that ended by an error
                self.ids.handle(event, state)
            else:
                keep_views(state)
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
        elif self.cached is not None:
            self.cached.leave()
            if event == Event.FIT_END:
                self.cached.disconnect(state)

    def _forget(self) -> None:
        """INIT: an algorithm that has served another Trainer starts this one's model from the prior run, too."""
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
        if not self.loaded:
            self._load(state)
        if self.cached is not None:
            self._connect(state, self.cached)

    def _connect(self, state: State, cached: CachedFeatures) -> None:
        """Train on the features of the frozen part, if that is all but the head and is what the prior run archived."""
        info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
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
        if anew := [name for name in backbone if matches(name, self.change.patterns, head)]:
            raise ModelError(
                f"reset starts {', '.join(anew[:3])} anew, and the archived features are those of the prior run's own "
                "weights. Reset the head only (head: reset), or use source: live."
            )
        cached.connect(state, self.prior_runs[0], head, self.ids.view_policy, self.part.keep_statistics)

    def _load(self, state: State) -> None:
        """Read the prior weights, make sure that they fit, and put them into the model."""
        sources = choose_sources(self.archive, self.prior_runs, self.weights)
        fresh = plain_state_dict(state.model)
        archived = under_our_names(read_sources(sources), fresh)
        info = self.dataset or try_info(getattr(state.dataloader, "dataset", None))
        plan = self._plan(state, sources, fresh, archived, info)
        # Where the head's rows are tokens, these matched already, and class names have nothing to add.
        by_token = not set(plan.by_token).isdisjoint(self._head_names(state, info))
        self._refuse_misfits(sources, misfits(archived, fresh, plan), None if by_token else info)
        identity = "+".join(source.digest for source in sources)

        def noise(name: str, tensor: Tensor) -> Tensor:
            return _NOISES[self.change.noise](tensor, noise_generator(self.seed, identity, name))

        change = self.change
        values = initial_values(archived, fresh, plan, shrink=change.shrink, perturb=change.perturb, noise=noise)
        aliases = plain_parameters(state.model, tied=True).keys() - plain_parameters(state.model).keys()
        with torch.no_grad():
            for name in values.keys() - aliases:
                fresh[name].copy_(values[name])
        self._record(sources, state, values, plan)

    def _plan(
        self,
        state: State,
        sources: Sequence[Source],
        fresh: Mapping[str, Tensor],
        archived: Mapping[str, Tensor],
        info: DatasetInfo | None,
    ) -> Plan:
        """Which tensors come from where."""
        names = {*fresh, *archived}
        head = self._head_names(state, info)
        if faults := pattern_faults("reset", self.change.patterns, names, head):
            raise ModelError("\n".join(faults))
        anew = {name for name in names if matches(name, self.change.patterns, head)}
        tokens = common_tokens(archived, fresh)
        by_token = set() if tokens is None else set(token_tensors(state.model)) - anew
        if tokens is not None:
            anew.add(TOKEN_KEYS)  # the vocabulary is that of this run's data
        by_class: set[str] = set()
        if self.head.name == "reset":
            anew.update(head)
        elif self.head.name == "match":
            by_class = {name for name in head if name not in anew | by_token and fresh[name].dim()}
        refuse_torn_ties(state.model, anew | by_class, "what head and reset cover")
        changing: set[str] = set()
        if self.change.shrink != 1 or self.change.perturb != 0:
            is_frozen = frozen_at_start(state)
            changing = {name for name in plain_parameters(state.model) if not is_frozen(name)}
            anew |= _statistics(state, is_frozen)
        rows = self._known_classes(sources, info) if by_class else None
        return Plan(anew, by_class, rows, changing, by_token, tokens)

    def _head_names(self, state: State, info: DatasetInfo | None) -> list[str]:
        """Names of the head's parameters; none where nobody asks for them and they cannot be found."""
        try:
            return head_of(state.model, self.head.pattern, info and info.num_classes)
        except ModelError:
            if (
                self.head.name != "keep"
                or self.head.pattern is not None
                or {"head", "backbone"} & set(self.change.patterns)
            ):
                raise
            return []

    def _known_classes(self, sources: Sequence[Source], info: DatasetInfo | None) -> tuple[Tensor, Tensor]:
        names = [source.run.manifest.dataset and source.run.manifest.dataset.class_names for source in sources]
        differing = next((s.run.id for s, theirs in zip(sources, names, strict=True) if theirs != names[0]), None)
        if differing is not None:
            raise PriorRunMismatchError(
                f"runs {sources[0].run.id} and {differing} have different classes, so no row of their averaged head "
                "belongs to one class. Choose runs with the same classes, or use head: reset."
            )
        return match_rows(names[0], info and info.class_names)

    def _refuse_misfits(self, sources: Sequence[Source], listed: list[str], info: DatasetInfo | None) -> None:
        """Refuse tensors that do not fit and, where the head is kept, classes of other names: all at once."""
        run = sources[-1].run
        theirs = run.manifest.dataset and run.manifest.dataset.class_names
        ours = info and info.class_names
        if self.head.name == "keep" and self.mismatch != "allow" and theirs and ours and list(theirs) != list(ours):
            pairs = enumerate(zip(theirs, ours, strict=False))
            shown = "; ".join([f"class {i} is {a!r} there and {b!r} here" for i, (a, b) in pairs if a != b][:3])
            listed.append(
                f"the classes: {shown or f'{len(theirs)} there, {len(ours)} here'} (head: match goes by their names, "
                "head: reset starts the head anew, mismatch: allow takes the rows as they are)"
            )
        if listed:
            raise PriorRunMismatchError(
                f"the weights of run {run.id} do not fit this model:\n  " + "\n  ".join(listed) + "\nUse head: match "
                "or head: reset for the last layer, and reset: [pattern, ...] for others that are to start anew."
            )

    def _record(self, sources: Sequence[Source], state: State, loaded: Mapping[str, Tensor], plan: Plan) -> None:
        """What was used, for the run's record and its metrics."""
        uses: dict[str, list[str]] = {}
        for source in sources:
            uses.setdefault(source.run.id, []).append(source.weights)
        self._uses = list(uses.items())
        parameters = plain_parameters(state.model)
        taken = 0.0
        for name in loaded.keys() & parameters.keys():
            rows = plan.rows_of(name)
            share = 1.0 if rows is None else len(rows[0]) / len(parameters[name])
            taken += share * parameters[name].numel()
        total = sum(parameter.numel() for parameter in parameters.values())
        if not taken:
            raise ModelError("head and reset leave no parameter to load from the prior run. Load some of them.")
        self._facts = {_METRICS + "loaded": taken / total}
        if plan.rows is not None:
            self._facts[_METRICS + "known_classes"] = float(len(plan.rows[0]))
        if plan.tokens is not None:
            self._facts[_METRICS + "known_tokens"] = float(len(plan.tokens[0]))
        names = ", ".join(f"{run_id} ({', '.join(weights)})" for run_id, weights in self._uses)
        log.info("started from %s: %.1f %% of the parameters", names, 100 * taken / total)

    # Record and state -----------------------------------------------------------------------------------------------

    def prior_uses(self) -> list[PriorUse]:
        """The runs and weights that training started from."""
        uses = [PriorUse(run_id=run_id, algorithm=USE, weights=list(weights)) for run_id, weights in self._uses]
        if self.cached is not None:
            name, seconds = features_name(self.cached.weights), self.cached.harvest_seconds
            uses = [msgspec.structs.replace(use, signals=[name], harvest_seconds=seconds) for use in uses]
        return uses

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had never stopped."""
        state = super().state_dict()
        state.update(loaded=self.loaded, uses=self._uses, facts=self._facts, part=self.part.state_dict())
        if self.cached is not None:
            state["cached"] = self.cached.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it. The weights themselves are in the checkpoint."""
        super().load_state_dict(state)
        self.loaded = bool(state["loaded"])
        self._uses = [(str(run_id), [str(name) for name in weights]) for run_id, weights in state["uses"]]
        self._facts = {str(name): float(value) for name, value in state["facts"].items()}
        self.part.load_state_dict(state["part"])
        if self.cached is not None and "cached" in state:  # the earlier attempt may have been a live one
            self.cached.load_state_dict(state["cached"])


def _statistics(state: State, is_frozen: Callable[[str], bool]) -> set[str]:
    """Names of the running statistics that shrinking and perturbing make void: those of layers that train."""
    return {
        f"{name}.{key}"
        for name, layer in norm_layers(state.model).items()
        if not holds(name, layer, is_frozen)
        for key, _ in layer.named_buffers(recurse=False)
    }
