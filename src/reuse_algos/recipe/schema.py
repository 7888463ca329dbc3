"""What a recipe can say: one dataclass, in the words of Composer's Trainer where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from composer.core import Precision, Time, TimeUnit
from omegaconf import MISSING

from reuse_algos.data.datasets.load import DataConfig
from reuse_algos.data.dense import DENSE_NAMES, DETECTION_NAMES
from reuse_algos.harvest.label import LabelConfig
from reuse_algos.models import ModelConfig
from reuse_algos.models.detection import DETECTION_MODELS
from reuse_algos.models.segmentation import SEGMENTATION_MODELS
from reuse_algos.recipe.building.resources import Resources
from reuse_algos.sections import Faults

_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_DEVICES = ("cpu", "gpu", "mps")
_INTERVALS = ("eval_interval", "save_interval", "console_log_interval")
_MAX_SEED = 2**32 - 1


@dataclass
class Settings:
    """All keys of a recipe. It works as an OmegaConf structured config too.

    Times are Composer's: ``40ep``, ``500ba``, ``10000sp``, ``0.5dur``; a plain number counts epochs.

    Attributes:
        run_name: Name of the run here, in the archive and in the loggers. Default: made from data, model, the tag
            ``method`` and seed.
        seed: Seed of the initial weights, the order of the examples, and everything random that has no seed of its own.
        archive: Folder of the run archive; algorithms read it and ``run_recorder`` writes to it.
        tags: Words by which later runs find this one.
        data: The data, see :class:`~reuse_algos.data.datasets.DataConfig`.
        model: The network, see :class:`~reuse_algos.models.ModelConfig`.
        label: Label the training part of ``data`` with archived teachers, see
            :class:`~reuse_algos.harvest.label.LabelConfig`, and train nothing: model, optimizer and durations do not
            count. Default: null, train.
        resources: What a cluster sets aside for the run, see :class:`~reuse_algos.recipe.building.resources.Resources`.
        optimizer: ``name`` and the options of that optimizer.
        scheduler: ``name`` and the options of that scheduler, or null for a constant learning rate.
        max_duration: How long to train.
        eval_interval: How often to evaluate; always at the end too.
        train_subset_num_batches: Batches per epoch, -1 for all.
        eval_subset_num_batches: Batches per evaluation, -1 for all.
        algorithms: Name -> options; ``{}``, null or true for none, false to switch one off.
        callbacks: Callbacks by name, each with its options.
        loggers: Loggers by name, each with its options.
        precision: ``fp32``, ``amp_bf16``, ``amp_fp16`` ... Default: Composer's (``amp_fp16`` on a GPU, else ``fp32``).
        device: ``cpu``, ``gpu`` or ``mps``. Default: a GPU where there is one.
        device_train_microbatch_size: Examples per forward pass, ``auto`` to find out, null for the whole batch.
        compile: True, or a section of options for ``torch.compile``.
        deterministic_mode: Deterministic kernels only.
        dist_timeout: Seconds that one rank waits for another.
        save_folder: Folder of checkpoints, null for none.
        save_interval: How often to save one.
        save_num_checkpoints_to_keep: How many to keep, -1 for all.
        save_overwrite: Overwrite older checkpoints of the same name.
        load_path: Checkpoint to start from.
        load_weights_only: Take only the weights from it.
        autoresume: Go on from the newest checkpoint of the same run name in ``save_folder``.
        progress_bar: Show a progress bar; where stderr is not a terminal, a line with the loss now and then.
        log_to_console: Print metrics as lines.
        console_log_interval: How often to.
        python_log_level: Level of Composer's own log messages.
    """

    run_name: str | None = None
    seed: int = 17
    archive: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    label: LabelConfig | None = None
    resources: Resources = field(default_factory=Resources)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    max_duration: str | int = MISSING
    eval_interval: str | int = "1ep"
    train_subset_num_batches: int = -1
    eval_subset_num_batches: int = -1
    algorithms: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    loggers: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    device: str | None = None
    device_train_microbatch_size: int | str | None = None
    compile: Any = False
    deterministic_mode: bool = False
    dist_timeout: float = 300.0
    save_folder: str | None = None
    save_interval: str | int = "1ep"
    save_num_checkpoints_to_keep: int = -1
    save_overwrite: bool = False
    load_path: str | None = None
    load_weights_only: bool = False
    autoresume: bool = False
    progress_bar: bool = True
    log_to_console: bool = False
    console_log_interval: str | int = "1ep"
    python_log_level: str | None = None


def check_settings(settings: Settings, faults: Faults) -> None:
    """Note values that have the right type and are wrong all the same."""
    _check_choice("precision", settings.precision, [str(p.value) for p in Precision], faults)
    _check_choice("device", settings.device, _DEVICES, faults)
    level = settings.python_log_level
    _check_choice("python_log_level", level.lower() if level else None, _LOG_LEVELS, faults)
    if settings.run_name == "":
        faults.add("run_name", "must not be empty. Leave it out to have one made")
    if not 0 <= settings.seed <= _MAX_SEED:
        faults.add("seed", f"must be between 0 and {_MAX_SEED}, not {settings.seed}")
    for key in ("train_subset_num_batches", "eval_subset_num_batches", "save_num_checkpoints_to_keep"):
        value = getattr(settings, key)
        # Composer's own word for "all" is -1.
        if value < 1 and value != -1:
            faults.add(key, f"must be 1 or more, or -1 for all, not {value}")
    size = settings.device_train_microbatch_size
    if size is not None and (size != "auto" if isinstance(size, str) else size < 1):
        faults.add("device_train_microbatch_size", f"must be 1 or more, 'auto' or null, not {size!r}")
    if not isinstance(settings.compile, (bool, dict)):
        faults.add(
            "compile", f"must be true, false or a section of options for torch.compile, not {settings.compile!r}"
        )
    if settings.dist_timeout <= 0:
        faults.add("dist_timeout", f"must be above 0 seconds, not {settings.dist_timeout}")
    _check_pools(settings, faults)
    _check_answers(settings, faults)
    if settings.autoresume and not settings.save_folder:
        faults.add("autoresume", "needs a save_folder to find checkpoints in")
    for key in _INTERVALS:
        _check_time(key, getattr(settings, key), faults, may_be_share=True)
    if settings.max_duration != MISSING:
        _check_time("max_duration", settings.max_duration, faults, may_be_share=False)


def _check_pools(settings: Settings, faults: Faults) -> None:
    if settings.archive is None:
        for key in ("label", "data.pseudo_labels"):
            holder = settings.data if "." in key else settings
            if getattr(holder, key.rpartition(".")[2]) is not None:
                faults.add("archive", f"missing. {key} reads it. Write for example archive: ./archive")
    if settings.label is not None:
        # false switches off an algorithm that the recipe inherits.
        if any(options is not False for options in settings.algorithms.values()):
            faults.add("algorithms", "a recipe with label trains nothing, so it has no algorithms")
        if settings.data.pseudo_labels is not None:
            faults.add("data.pseudo_labels", "a recipe with label makes such labels. Keep one")
    if settings.data.resample != "natural" and settings.algorithms.get("history_curriculum"):
        faults.add("data.resample", "algorithms.history_curriculum chooses the examples of each epoch. Keep one")


def _check_answers(settings: Settings, faults: Faults) -> None:
    """Note a model that answers in pixels or boxes where the data have none, or the other way round."""
    # Such a pair fails inside of torch in the first batch, with a message about shapes.
    for kind, models, names in (
        ("a class for each pixel", SEGMENTATION_MODELS, DENSE_NAMES),
        ("boxes", DETECTION_MODELS, DETECTION_NAMES),
    ):
        model, data = settings.model.name, settings.data.name
        if model in models and data not in names:
            faults.add("model.name", f"{model} learns {kind}, and {data} has none. It goes with {', '.join(names)}")
        elif data in names and model not in models:
            faults.add("model.name", f"{data} has {kind}, and {model} learns none. Take one of {', '.join(models)}")


def _check_choice(key: str, value: str | None, choices: list[str] | tuple[str, ...], faults: Faults) -> None:
    if value is not None and value not in choices:
        faults.add(key, f"must be one of {', '.join(choices)}, not {value!r}")


def _check_time(key: str, value: str | int, faults: Faults, *, may_be_share: bool) -> None:
    example = "1ep, 100ba or 0.5dur" if may_be_share else "40ep or 5000ba"
    try:
        # A bare number counts epochs, as in Composer.
        time = Time.from_timestring(value) if isinstance(value, str) else Time(value, TimeUnit.EPOCH)
    except (ValueError, TypeError):
        faults.add(key, f"{value!r} is not a time. Write for example {example}")
        return
    units = {TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN, TimeUnit.ITERATION}
    if may_be_share:
        # max_duration itself cannot be a share of max_duration.
        units.add(TimeUnit.DURATION)
    if time.unit not in units:
        faults.add(key, f"cannot be counted in {time.unit.value!r}. Write for example {example}")
    elif time.value <= 0:
        faults.add(key, f"must be above 0, not {value!r}. Write for example {example}")
