"""From a checked recipe to a Composer Trainer."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from composer import Algorithm, Callback, DataSpec, Trainer
from composer.utils import MissingConditionalImportError, dist, get_device, reproducibility
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.datasets.load import DataConfig, LoadedData
from reuse_algos.data.datasets.resampling import resampling_plan
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.images.device_loader import dataloader_of
from reuse_algos.data.info import infer_info
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.errors import RecipeError, ReuseAlgosError
from reuse_algos.models import build_model
from reuse_algos.recipe.building.progress_lines import ProgressLines
from reuse_algos.recipe.building.recipe_data import load_recipe_data, pool_of, watchers
from reuse_algos.recipe.building.resuming import resume_arguments
from reuse_algos.recipe.building.wandb_logger import RecipeWandBLogger
from reuse_algos.recipe.compose import Recipe
from reuse_algos.recipe.fitting import Component
from reuse_algos.recipe.grouping import group_of
from reuse_algos.recipe.schema import Settings
from reuse_algos.sections import Faults

log = logging.getLogger(__name__)

_WANDB_TAG_LENGTH = 64
_PASSED_ON = (
    "run_name",
    "seed",
    "max_duration",
    "eval_interval",
    "train_subset_num_batches",
    "eval_subset_num_batches",
    "precision",
    "device_train_microbatch_size",
    "deterministic_mode",
    "dist_timeout",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "save_overwrite",
    "load_path",
    "load_weights_only",
    "autoresume",
    "progress_bar",
    "log_to_console",
    "console_log_interval",
    "python_log_level",
)
_BUILD_ERRORS = (ValueError, TypeError, OSError, ImportError, MissingConditionalImportError)


def build_trainer(
    recipe: Recipe,
    *,
    data: LoadedData | None = None,
    algorithms: Sequence[Algorithm] = (),
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Build everything that a recipe names.

    What is cheap and most often wrong comes first: all algorithms, callbacks and loggers are constructed before any
    data is read. The global generators are seeded right before the model is made, so its initial weights depend on the
    recipe's seed and nothing else.

    Args:
        recipe: The recipe.
        data: What to train and evaluate on in place of what its data section names. Default: None.
        algorithms: Further algorithms, behind the recipe's. Default: none.
        callbacks: Further callbacks, behind the recipe's. Default: none.

    Raises:
        RecipeError: Constructors refuse their options (all of them are listed), or the batch size does not suit the
            number of ranks.
        ReuseAlgosError: The archive, the data or the model cannot be had as asked.
    """
    settings = recipe.settings
    check_world_size(recipe)
    faults = Faults(recipe.source)
    archive = _open_archive(recipe)
    # What a constructor refuses is reported before minutes of reading data.
    own_algorithms, own_callbacks, loggers = (
        _components(section, recipe, archive, faults) for section in ("algorithms", "callbacks", "loggers")
    )
    scheduler = next((_built(one, faults) for one in recipe.components["scheduler"]), None)
    faults.raise_if_any()

    device = get_device(settings.device)
    # The pool and the data are chosen on rank 0, and the others are told; the Trainer would set this up too late for
    # that.
    if dist.get_world_size() > 1:
        dist.initialize_dist(device, settings.dist_timeout)
    pool = pool_of(settings.data, archive)
    if data is None:
        with dist.run_local_rank_zero_first():  # one rank of a node downloads and decodes, the others find it done
            data = load_recipe_data(settings.data, pool, _torch_device(device.name))
    # Here and not earlier: reading data may draw from the global generators.
    reproducibility.seed_all(settings.seed)
    model = build_model(settings.model, data.num_classes, data.image_shape, data.inputs)
    optimizer = _built(recipe.components["optimizer"][0], faults, params=model.parameters())
    faults.raise_if_any()
    try:
        return Trainer(
            model=model,
            train_dataloader=_counted(train_loader(data, settings.data, seed=settings.seed)),
            eval_dataloader=_counted(eval_loader(data, settings.data)),
            optimizers=optimizer,
            schedulers=scheduler,
            # Watchers come when the recipe's own have chosen their prior runs, which these look at.
            algorithms=[*own_algorithms, *watchers(settings.data, pool), *algorithms],
            callbacks=[
                *own_callbacks,
                *callbacks,
                *_lines(settings),
                TrackExamples(),
            ],  # seeded views hold whatever else is in the recipe
            loggers=loggers,
            device=device,
            **_trainer_arguments(settings),
        )
    except ReuseAlgosError:
        raise
    except (ValueError, FileExistsError, FileNotFoundError, MissingConditionalImportError) as error:
        raise RecipeError(f"{recipe.source}: the Trainer could not be built: {error}") from error


def _open_archive(recipe: Recipe) -> RunArchive | str | None:
    """Return the archive; where only the recorder needs it, and keeps a spool, its location."""
    # Such a run is trained whether or not the archive can be reached. Algorithms that read it cannot go without.
    settings = recipe.settings
    recorder = settings.callbacks.get("run_recorder")
    # With a spool the recorder keeps the run on this machine until the archive can be reached.
    tolerant = isinstance(recorder, dict) and recorder.get("spool") is not None
    reading = any(component.is_ours for component in recipe.components["algorithms"]) or settings.data.pseudo_labels
    if settings.archive is None or (tolerant and not reading):
        return settings.archive
    return RunArchive(settings.archive, create=True)


def check_world_size(recipe: Recipe) -> None:
    """Check that the global batch sizes divide evenly by the ranks of this launch.

    Raises:
        RecipeError: They do not.
    """
    faults = Faults(recipe.source)
    ranks = dist.get_world_size()
    for key in ("batch_size", "eval_batch_size"):
        size = getattr(recipe.settings.data, key)
        if size is not None and size % ranks:
            # The nearest size below, so that memory still suffices.
            near = max(ranks, size // ranks * ranks)
            faults.add(
                f"data.{key}",
                f"{size} over all ranks cannot be shared equally by {ranks} ranks. Write for example {near}",
            )
    faults.raise_if_any()


def train_loader(data: LoadedData, config: DataConfig, *, seed: int) -> DataLoader:
    """Return the train DataLoader of this rank.

    Args:
        data: The datasets.
        config: ``batch_size`` (over all ranks), ``num_workers``, ``drop_last`` and ``resample`` count.
        seed: Seed of the order of the examples.
    """
    sampler = EpochSampler(data.info.num_examples, seed=seed, shuffle=True, drop_last=config.drop_last)
    if config.resample != "natural":
        labels_N = infer_info(data.train).labels
        assert labels_N is not None  # every loader of a recipe gives labels
        views = getattr(data.train, "view_policy").num_views  # noqa: B009  # of all datasets that a recipe names
        plan = resampling_plan(labels_N, config.resample, seed)
        sampler.steer(plan, length=len(labels_N), num_views=views)
    return _loader(data.train, config.batch_size, config.num_workers, sampler, drop_last=config.drop_last)


def eval_loader(data: LoadedData, config: DataConfig) -> DataLoader:
    """Return the evaluation DataLoader of this rank: every example, in order."""
    size = config.batch_size if config.eval_batch_size is None else config.eval_batch_size
    sampler = dist.get_sampler(data.eval, drop_last=False, shuffle=False)
    return _loader(data.eval, size, config.num_workers, sampler, drop_last=False)


def _counted(loader: DataLoader) -> DataLoader | DataSpec:
    """Return a loader as it is, or with the counter of its dataset where batches are lists of images."""
    count = getattr(loader.dataset, "count_rows", None)
    return loader if count is None else DataSpec(loader, get_num_samples_in_batch=count)


def _loader(dataset: Any, batch_size: int, num_workers: int, sampler: Any, *, drop_last: bool) -> DataLoader:
    # Recipes give global sizes, so that a run on eight ranks is the same run.
    rank_batch_size = batch_size // dist.get_world_size()
    return dataloader_of(
        dataset,
        rank_batch_size,
        sampler,
        drop_last,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def _lines(settings: Settings) -> list[ProgressLines]:
    """Return what prints a line now and then where a progress bar would only fill a log file."""
    return [ProgressLines()] if settings.progress_bar and not sys.stderr.isatty() else []


def _trainer_arguments(settings: Settings) -> dict[str, Any]:
    """Return what the Trainer takes from the recipe as it is."""
    arguments = {key: getattr(settings, key) for key in _PASSED_ON}
    arguments["progress_bar"] = settings.progress_bar and not _lines(settings)
    arguments |= resume_arguments(settings.save_folder, settings.run_name, autoresume=settings.autoresume)
    options = settings.compile
    # Composer compiles where it is given a mapping, also an empty one.
    arguments["compile_config"] = (options if isinstance(options, dict) else {}) if options is not False else None
    return arguments


def _torch_device(name: str) -> torch.device:
    if name == "gpu":
        return torch.device("cuda", dist.get_local_rank())
    return torch.device(name)


def _built(component: Component, faults: Faults, **more: Any) -> Any:
    """Return the object of a component; a constructor that refuses its options is a fault (and None)."""
    try:
        return component.build(**more)
    except _BUILD_ERRORS as error:
        faults.add(component.path, " ".join(str(error).split()) or type(error).__name__)
        # The message of a constructor may not say where it arose; the log of a debug run does.
        log.debug("%s could not be built", component.path, exc_info=True)
        return None


def _components(section: str, recipe: Recipe, archive: RunArchive | str | None, faults: Faults) -> list[Any]:
    """Return all algorithms, callbacks or loggers."""
    built = []
    for component in recipe.components[section]:
        more: dict[str, Any] = {}
        if component.is_ours:
            more = _our_arguments(component, recipe, archive)
        elif (section, component.name) == ("loggers", "wandb"):
            options = _wandb_options(component.options, recipe)
            component = dataclasses.replace(component, cls=RecipeWandBLogger, options=options)
        one = _built(component, faults, **more)
        if isinstance(one, RunRecorder):
            one.recipe = recipe.record
        built.append(one)
    return built


def _our_arguments(component: Component, recipe: Recipe, archive: RunArchive | str | None) -> dict[str, Any]:
    """Return what one of this library's own classes takes from the recipe as a whole."""
    settings = recipe.settings
    offered = {
        "archive": archive,
        "run_name": settings.run_name,
        "tags": dict(settings.tags),
        "seed": settings.seed,
    }
    # Only what the constructor asks for, and the recipe does not give itself.
    wanted = component.parameters.keys() - component.options.keys()
    return {key: value for key, value in offered.items() if key in wanted}


def _wandb_options(options: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return W&B's name, group, tags and config, where the recipe gives none."""
    # Runs that differ in nothing but the seed fall into one group, which W&B can average over.
    settings = recipe.settings
    tags = [f"{key}:{value}"[:_WANDB_TAG_LENGTH] for key, value in settings.tags.items()]
    # What the recipe says of these wins over what is derived from it.
    filled = {"name": settings.run_name, "group": group_of(recipe), "tags": tags, **options}
    filled["init_kwargs"] = {"config": recipe.record, **(options.get("init_kwargs") or {})}
    return filled
