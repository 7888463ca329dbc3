"""Train from a recipe: ``composer -n N -m reuse_algos.train recipe.yaml key=value ...``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import torch
from composer import Trainer
from composer.callbacks import CheckpointSaver
from composer.utils import dist
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.errors import RecipeError, ReuseAlgosError
from reuse_algos.harvest import label_pool
from reuse_algos.recipe.build import build_trainer, check_world_size
from reuse_algos.recipe.building.data_check import check_data
from reuse_algos.recipe.compose import Recipe, load_recipe
from reuse_algos.recipe.shipped import recipe_path
from reuse_algos.recipe.shown import without_defaults, yaml_text

log = logging.getLogger(__name__)

_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130
_HEAD_START_SECONDS = 10.0
_EXAMPLES = """\
examples:
  composer -n 1 -m reuse_algos.train yamls/digits/baseline.yaml
  composer -n 1 -m reuse_algos.train yamls/digits/baseline.yaml seed=18 optimizer.lr=0.05
  composer -n 8 -m reuse_algos.train yamls/cifar100/resnet56/distilled_kl.yaml archive=/shared/archive
  composer -n 1 -m reuse_algos.train yamls/digits/baseline.yaml algorithms.label_smoothing.smoothing=0.1
  python -m reuse_algos.train yamls/digits/baseline.yaml --check

values are YAML: data.classes=[3,5], scheduler=null, 'optimizer={name: adamw, lr: 1e-3}' (replaces the whole section).
algorithms.mixup=false switches one off. The exit status is 2 when the recipe or what it needs is wrong.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the program's name. Default: those of this process.

    Returns:
        The exit status: 0 trained (or checked), 2 an error that the message explains, 130 interrupted.
    """
    try:
        arguments = _parser().parse_intermixed_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _EXIT_ERROR
    try:
        if "=" in arguments.recipe:
            raise RecipeError(f"the recipe's file comes first, before {arguments.recipe!r}. See --help")
        # On every rank: a fault then ends all of them, and none waits for another.
        recipe = load_recipe(recipe_path(arguments.recipe), arguments.overrides)
        check_world_size(recipe)
        _show(recipe, everything=arguments.check)
        if arguments.check:
            for line in check_data([(recipe.source, recipe)]):
                _say(line)
        else:
            _train(recipe)
    except ReuseAlgosError as error:
        log.debug("the run failed", exc_info=True)
        return _fail(error)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="composer -n N -m reuse_algos.train",
        description="Train from a recipe on N processes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one that comes with the library")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change or add a value of the recipe")
    parser.add_argument(
        "--check", action="store_true", help="print the whole recipe, check it and load its data, without training"
    )
    return parser


def _label(recipe: Recipe) -> None:
    """Label the recipe's data with archived teachers, on rank 0."""
    if dist.get_global_rank() != 0:
        return
    settings = recipe.settings
    assert settings.label is not None
    assert settings.archive is not None
    done = label_pool(
        RunArchive(settings.archive, create=True),
        settings.label,
        settings.data,
        name=str(settings.run_name),
        tags=settings.tags,
        recipe=recipe.record,
        device={"gpu": "cuda"}.get(settings.device or "", settings.device),
    )
    _say(f"labelled {done.rows} images in {done.seconds:.1f} s; archived as {done.run_id}")


def _train(recipe: Recipe) -> None:
    if recipe.settings.label is not None:
        return _label(recipe)
    trainer = build_trainer(recipe)
    try:
        if trainer.state.max_duration is not None and trainer.state.timestamp >= trainer.state.max_duration:
            _say(f"{trainer.state.run_name} was trained to the end before: nothing is left to do")
            trainer.close()
            return
        started = time.perf_counter()
        trainer.fit()
        _report(trainer, time.perf_counter() - started)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            _say_what_is_kept(trainer)
        # Trainer.close waits for all ranks; where this one alone has failed, the others are waiting elsewhere.
        trainer.engine.close()
        raise
    trainer.close()


def _say_what_is_kept(trainer: Trainer) -> None:
    """Say it where no recorder does, which lists what it keeps itself when the engine closes."""
    if any(isinstance(one, RunRecorder) for one in trainer.state.callbacks):
        return
    at = f"epoch {int(trainer.state.timestamp.epoch)}, batch {int(trainer.state.timestamp.batch)}"
    saved = any(isinstance(one, CheckpointSaver) for one in trainer.state.callbacks)
    nothing = "no save_folder and no run_recorder, so nothing is kept"
    kept = "the checkpoints in save_folder are kept" if saved else nothing
    _say(f"interrupted {trainer.state.run_name} at {at}: {kept}")


def _show(recipe: Recipe, *, everything: bool) -> None:
    """Print the recipe as it will be run: all of it, or only what differs from the defaults."""
    if dist.get_global_rank() != 0:
        return
    text = yaml_text(recipe.record if everything else without_defaults(recipe.record))
    Console().print(Panel(Syntax(text, "yaml", background_color="default", word_wrap=True), title=recipe.source))


def _report(trainer: Trainer, seconds: float) -> None:
    state = trainer.state
    metrics = ", ".join(f"{name} {float(value):.4f}" for name, value in state.eval_metric_values.items())
    done = f"{int(state.timestamp.epoch)} epochs, {int(state.timestamp.batch)} batches, {seconds:.1f} s"
    archived = [f"; archived as {c.run_id}" for c in state.callbacks if isinstance(c, RunRecorder) and c.run_id]
    _say(f"finished {state.run_name}: {done}; {metrics or 'not evaluated'}{''.join(archived)}")


def _say(text: str) -> None:
    if dist.get_global_rank() == 0:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _fail(error: ReuseAlgosError) -> int:
    """Print the error once for all ranks."""
    rank = dist.get_global_rank()
    # The launcher ends the other ranks as soon as the first one has gone, so these give rank 0 a head start. A rank
    # that is still there after it has failed alone, and prints for itself.
    if rank != 0:
        time.sleep(_HEAD_START_SECONDS)
    prefix = "" if dist.get_world_size() == 1 or rank == 0 else f"rank {rank}: "
    Console(stderr=True).print(f"{prefix}error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return _EXIT_ERROR


if __name__ == "__main__":
    status = main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
