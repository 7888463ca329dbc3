"""One part's training in one round, by a Composer Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from composer import Algorithm, Callback, Logger, State
from torch import Tensor

from reuse_algos.archive.format.names import is_safe_name
from reuse_algos.data.datasets.load import LoadedData
from reuse_algos.errors import FederatedError
from reuse_algos.federated.settings import FederatedConfig
from reuse_algos.recipe.build import build_trainer
from reuse_algos.recipe.compose import Recipe
from reuse_algos.training.outputs import plain_state_dict, unwrap_model

_STATE = "round-{}.pt"


@dataclass(frozen=True)
class Trained:
    """What came of a part's training in a round.

    Attributes:
        weights: Its model, on the CPU.
        examples: Examples that it was trained on, each counted once.
        batches: Steps.
        samples: Examples that went through the model.
    """

    weights: dict[str, Tensor]
    examples: int
    batches: int = 0
    samples: int = 0


class EndOfRound(Callback):
    """Stops training after some epochs, while the Trainer's schedule goes over all rounds.

    Args:
        epochs: Epochs from where the Trainer begins.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._first = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Note the epoch with which the round begins."""
        # Not 0: a part goes on from its checkpoint, which counts the epochs of earlier rounds.
        self._first = int(state.timestamp.epoch)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Stop once the round's epochs are trained."""
        if int(state.timestamp.epoch) - self._first >= self.epochs:
            state.stop_training()


def train_part(
    config: FederatedConfig,
    recipe: Recipe,
    folder: Path,
    epochs: int,
    round_number: int,
    data: LoadedData,
    weights: Mapping[str, Tensor],
    algorithms: Sequence[Algorithm] = (),
) -> Trained:
    """Train a part for one round, from the weights that it was sent.

    The schedule, the order of the examples and all random states go on from the part's last round, by its checkpoint
    there; so does the state of the optimizer where ``keep_optimizer`` says so.

    Args:
        config: The federated run.
        recipe: How the part trains; its batch size and its checkpoint are set here.
        folder: Where the part's checkpoint is kept between rounds, see :func:`part_folder`.
        epochs: Epochs of a round.
        round_number: From 1.
        data: Images and labels to train on.
        weights: The round's model.
        algorithms: Further algorithms than the recipe's. Default: none.
    """
    count = len(data.train)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    before = _last_state(folder, round_number)
    settings = replace(
        recipe.settings,
        load_path=None if before is None else str(before),
        # A part may have fewer images than a batch, and then they are the batch.
        data=replace(recipe.settings.data, batch_size=min(recipe.settings.data.batch_size, count)),
    )
    recipe = replace(recipe, settings=settings)
    trainer = build_trainer(recipe, data=data, algorithms=algorithms, callbacks=[EndOfRound(epochs)])
    try:
        trainer.state.evaluators = []  # the server evaluates the model of the round
        # After the checkpoint was loaded, whose weights are those of the part's own last round.
        unwrap_model(trainer.state.model).load_state_dict(dict(weights))
        if not config.keep_optimizer:
            for optimizer in trainer.state.optimizers:
                optimizer.state.clear()
        began = trainer.state.timestamp
        trainer.fit()
        trainer.save_checkpoint(str(folder / _STATE.format(round_number)))
        for path in folder.glob(_STATE.format("*")):
            # The one before stays: a run that is killed before the round is recorded trains it again from there.
            if path not in (before, folder / _STATE.format(round_number)):
                path.unlink()
        now = trainer.state.timestamp
        return Trained(
            {name: one.detach().cpu().clone() for name, one in plain_state_dict(trainer.state.model).items()},
            # By this the server weighs the part, as federated averaging does: not by how often it saw them.
            examples=count,
            batches=int(now.batch) - int(began.batch),
            samples=int(now.sample) - int(began.sample),
        )
    finally:
        trainer.close()


def part_folder(config: FederatedConfig, run_id: str, name: str) -> Path:
    """Return the folder of a part in one run: another run of the same name must not find its checkpoints.

    Args:
        config: The federated run.
        run_id: Id of its run in the archive.
        name: Of the part, such as ``client-3``.

    Raises:
        FederatedError: The id is not one, so it cannot be the name of a folder.
    """
    if not is_safe_name(run_id):
        raise FederatedError(f"{run_id[:100]!r} is not the id of a run")
    return Path(config.folder) / run_id / name


def _last_state(folder: Path, round_number: int) -> Path | None:
    """Return the newest checkpoint of an earlier round; a part need not train in each."""
    rounds = [int(path.stem.rpartition("-")[2]) for path in folder.glob(_STATE.format("*"))]
    earlier = [one for one in rounds if one < round_number]
    return folder / _STATE.format(max(earlier)) if earlier else None
