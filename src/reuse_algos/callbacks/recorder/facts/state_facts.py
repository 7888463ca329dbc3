"""What the recorder reads off Composer's state."""

from __future__ import annotations

import math
from typing import Any

import torch
from composer import State, TimeUnit
from composer.algorithms import EMA

from reuse_algos.algorithms.base import ReusingAlgorithm
from reuse_algos.archive import DatasetRecord, header_parts
from reuse_algos.data.examples.identity import identity_of
from reuse_algos.data.info import DatasetInfo, try_info
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import ModelError
from reuse_algos.training.outputs import hidden_parameters, plain_name, plain_state_dict, unwrap_model
from reuse_algos.training.parameters.batch_norm import without_auxiliary


def info_of(state: State, given: DatasetInfo | None = None) -> DatasetInfo | None:
    """Return what the train data are, or None where their examples cannot be told apart.

    Args:
        state: Composer's state, with the train loader.
        given: What the user says. Its content is that of the loader's dataset. Default: what the dataset says.
    """
    dataset = getattr(state.dataloader, "dataset", None)
    return try_info(dataset) if given is None else given.with_content_of(dataset)


def examples_of(info: DatasetInfo) -> dict[str, torch.Tensor]:
    """Return what the archive keeps of each training example: keys, labels and content hashes, int64."""
    identity = identity_of(info)
    columns = {"keys": info.keys, "content_rows": identity.rows, "content_hashes": identity.hashes}
    return columns if info.labels is None else {**columns, "labels": info.labels}


def dataset_record(info: DatasetInfo, views: ViewPolicy | None) -> DatasetRecord:
    """Return what the manifest says of the train data, and of the views that it is shown in.

    Args:
        info: The identity of the examples.
        views: Which views of them are shown; None: random augmentation whose views cannot be asked for again.
    """
    return DatasetRecord(
        name=info.name,
        num_examples=info.num_examples,
        fingerprint=info.fingerprint,
        key_fingerprint=None if info.content is None else info.key_fingerprint,
        key_kind=info.key_kind,
        class_names=None if info.class_names is None else list(info.class_names),
        num_classes=info.num_classes,
        labels_known=info.labels is not None,
        view_seed=views.seed if views else None,
        num_views=views.num_views if views else 0,
        transform=views.transform if views else "unknown",
    )


def scalar(metric: Any) -> float | None:
    """Return the value of a torchmetrics metric, or None where it is more than one number."""
    value = metric.compute()
    return float(value) if isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1 else None


def batch_values(state: State) -> dict[str, float]:
    """Return the losses and metrics of the batch that has just ended, by full name."""
    values: dict[str, Any] = dict(state.total_loss_dict) if state.total_loss_dict else {}
    for name, metric in (state.train_metrics or {}).items():
        if (value := scalar(metric)) is not None:
            values[f"metrics/train/{name}"] = value
    for algorithm in state.algorithms:
        if isinstance(algorithm, ReusingAlgorithm):
            values.update(algorithm.latest_metrics)
    return values


def evaluated_values(state: State) -> dict[str, float]:
    """Return the metrics of the evaluator that has just ended, by full name."""
    label = state.dataloader_label
    found = {f"metrics/{label}/{name}": scalar(metric) for name, metric in state.eval_metrics[label or ""].items()}
    return {name: value for name, value in found.items() if value is not None}


def num_epochs(state: State) -> int | None:
    """Return the epochs that training will start, or None where that is not known."""
    duration, length = state.max_duration, state.dataloader_len
    if duration is None:
        return None
    if duration.unit == TimeUnit.EPOCH:
        return int(duration)
    # A started epoch counts: its rows are recorded as those of an epoch.
    if length is not None and duration.unit == TimeUnit.BATCH:
        return math.ceil(int(duration) / int(length))
    return None


def check_weights(state: State) -> None:
    """Refuse, before the first batch, a model whose weights an archive cannot hold or that hides some of them.

    Raises:
        ArchiveError: A tensor is of a type that archives do not have.
        ModelError: The state dict leaves out parameters, as adapters (LoRA) do, so the model could not be rebuilt; or
            each rank has a part of each tensor, as with FSDP.
    """
    model = state.model
    # One rank writes the weights, and a state dict of sharded ones has to be asked for by all ranks at once.
    if state.fsdp_enabled or state.tp_config is not None:
        raise ModelError(
            "RunRecorder weights: this Trainer shards the model over its ranks (parallelism_config), and an archive "
            "keeps whole tensors. Record metrics and signals without weights (weights: []), or train with DDP."
        )
    weights, plain = plain_state_dict(model), unwrap_model(model)
    header_parts(weights)
    parameters = dict(plain.named_parameters())
    named = {plain_name(name): parameters[name] for name in without_auxiliary(plain, parameters)}
    if hidden := hidden_parameters(named, weights):
        raise ModelError(
            f"RunRecorder weights: the state dict of {type(plain).__name__} leaves out {len(hidden)} of its "
            f"{len(named)} parameters, first {hidden[0]}, so that no later run could rebuild the model (adapters such "
            "as LoRA do so with should_save_peft_only). Set should_save_peft_only=False to archive the whole model, or "
            "record without weights (weights: [])."
        )


def evaluated_weights(state: State) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that evaluation sees: the moving average where EMA is on."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in plain_state_dict(state.model).items()}
    # EMA swaps its average in for evaluation and out again; at commit time the training weights are in the model.
    for algorithm in state.algorithms:
        if isinstance(algorithm, EMA) and algorithm.ema_started and not algorithm.ema_weights_active:
            averaged = algorithm.ema_model
            assert averaged is not None
            for name, value in {**averaged.named_parameters_dict, **averaged.named_buffers_dict}.items():
                plain = name.removeprefix("module.") if name not in weights else name
                if plain in weights:
                    weights[plain] = value.detach().cpu().clone()
    return weights
