"""Feature extraction and discriminative fine-tuning of a model that comes with its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from composer import Algorithm, Event, State, Time
from composer.loggers import Logger

from reuse_algos.data.example_ids import VIEW_EVENTS, follow_views
from reuse_algos.training.parameters.trainable import TrainablePart

log = logging.getLogger(__name__)


class Freezing(Algorithm):
    """Freeze a part of a model that was built with pretrained weights, and give other parts rates of their own.

    Frozen parameters are in no group of the optimizer and get no gradient; normalisation layers among them stay in
    evaluation mode, so that their statistics do not move. Where the weights come from a prior run, use
    ``PriorRunWarmStart``, which has the same options.

    Logs ``reuse/freezing/frozen``, the share of the parameters that is frozen.

    Args:
        freeze: ``backbone`` (all but the last layer with one output for each class), ``head``, a pattern of parameter
            names in the manner of ``fnmatch`` such as ``layer1.*``, or a list of these. Default: nothing.
        learning_rates: Such a pattern -> factor above 0 of the learning rate; of several that match, the first counts.
            Default: one rate for all.
        unfreeze_at: Composer time such as ``5ep`` or ``0.5dur`` from which on everything trains. Default: never.
        head_pattern: Names of the head's parameters. Default: the last layer with one output for each class.

    Raises:
        ValueError: An option is wrong, or none is given; all faults are listed.
        ModelError: When training is set up: a pattern matches nothing, or nothing is left to train.
    """

    def __init__(
        self,
        freeze: str | Sequence[str] | None = None,
        *,
        learning_rates: Mapping[str, float] | None = None,
        unfreeze_at: str | int | Time | None = None,
        head_pattern: str | None = None,
    ) -> None:
        self.part = TrainablePart(
            freeze=freeze, learning_rates=learning_rates, unfreeze_at=unfreeze_at, head_pattern=head_pattern
        )
        faults = self.part.faults()
        if not freeze and not learning_rates:
            faults.append("nothing to do. Say what to freeze, such as freeze: backbone, or learning_rates")
        if faults:
            raise ValueError("\n".join(f"Freezing: {fault}" for fault in faults))

    @property
    def find_unused_parameters(self) -> bool:
        """Whether DDP must look for parameters without a gradient: those that are frozen for some time."""
        return self.part.changes_while_training

    def match(self, event: Event, state: State) -> bool:
        """Return true for the start, and for batches where something is frozen."""
        return self.part.acts_at(event) or event in VIEW_EVENTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Follow the event."""
        # At INIT, before Composer makes schedulers of the optimizer's groups and wraps the model for DDP.
        if event == Event.INIT:
            self.part.arrange(state)
        elif event in VIEW_EVENTS:
            # Numbered views change from epoch to epoch only where the dataset knows the epoch.
            follow_views(event, state)
            if event == Event.FIT_START:
                self.part.hold(state)
                self._log(logger)
        elif event == Event.BEFORE_FORWARD:
            self.part.keep_statistics(state)
        elif self.part.unfreeze_if_due(state):
            log.info("everything trains from batch %d on", int(state.timestamp.batch))
            self._log(logger)

    def _log(self, logger: Logger) -> None:
        logger.log_metrics({"reuse/freezing/frozen": self.part.frozen_share})

    def state_dict(self) -> dict[str, Any]:
        """Return whether the frozen part trains by now."""
        return {**super().state_dict(), **self.part.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        # Composer loads the optimizer after the algorithms, so its groups have to be there by then.
        self.part.load_state_dict(state)
