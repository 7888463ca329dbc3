"""A client's round: it labels its images, and trains on those whose labels are sure.

Diao et al., "SemiFL: semi-supervised federated learning for unlabeled clients with alternate training", NeurIPS 2022,
https://arxiv.org/abs/2106.01432, algorithm 1.

Legend: N images of the client, C classes, M chosen ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reuse_algos.archive import RunArchive
from reuse_algos.data.datasets.load import LoadedData, load_datasets
from reuse_algos.data.datasets.pseudo import Chosen
from reuse_algos.errors import DataError
from reuse_algos.federated.mix_term import MixTerm
from reuse_algos.federated.settings import FederatedConfig, part_recipe
from reuse_algos.federated.splitting import client_positions
from reuse_algos.federated.training import Trained, part_folder, train_part
from reuse_algos.harvest.computations import ArchivedForward
from reuse_algos.harvest.label import check_teacher, mean_logits, same_pixels, teacher_forward
from reuse_algos.models import build_model
from reuse_algos.priors.pseudo_labels import select_pairs
from reuse_algos.priors.scores.formulas import GRADIENT_BYTES
from reuse_algos.recipe.compose import Recipe

_LEAST = 2  # images: batch norm has no statistics of one


@dataclass(frozen=True, kw_only=True)
class ClientRound(Trained):
    """What a client answers: its model, and the one that it was sent where it was sure of too few images.

    Attributes:
        images: How many images it has.
        correct: How many of the images that it trained on had the label that the data say, for studies.
        label_seconds: Seconds that labelling took.
        train_seconds: Seconds that training took.
    """

    images: int
    correct: int
    label_seconds: float
    train_seconds: float


def choose_sure(probabilities_NC: Tensor, threshold: float, per_class: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the images whose likeliest class is sure, and that class.

    Args:
        probabilities_NC: Floats ``[N, C]``.
        threshold: Least probability of the likeliest class.
        per_class: How many images each class takes at most, the surest first. Default: None, all.

    Returns:
        Positions, ascending, and classes, int64 ``[M]``.
    """
    limit = max(1, len(probabilities_NC)) if per_class is None else per_class
    positions_M, labels_M = select_pairs(probabilities_NC, per_class=limit)
    sure_M = probabilities_NC[positions_M, labels_M] >= threshold
    positions_M, labels_M = positions_M[sure_M], labels_M[sure_M]
    # By position: the order of the classes must not show in that of the batches.
    order_M = positions_M.argsort()
    return positions_M[order_M], labels_M[order_M]


def client_round(
    config: FederatedConfig,
    run_id: str,
    client: int,
    round_number: int,
    weights: Mapping[str, Tensor],
    *,
    teachers: Sequence[str] = (),
    data_path: str | None = None,
    pixels: tuple[Sequence[float], Sequence[float]] | None = None,
) -> ClientRound:
    """Do a client's part of a round.

    Args:
        config: The federated run.
        run_id: Id of its run in the archive.
        client: Number of the client, from 0.
        round_number: From 1.
        weights: The model that the server sent.
        teachers: Ids of archived runs that label the images in its place. Default: none.
        data_path: The client's own data file, in place of the recipe's. Default: None.
        pixels: Mean and deviation per channel by which the server brings its images to scale. Default: None, they are
            not compared.

    Raises:
        DataError: There is no such client, it has no images, or they are of another scale than the server's.
        PriorRunMismatchError: A teacher has other classes, image shapes or pixels.
    """
    changes = {"data": {"path": data_path}} if data_path is not None else {}
    recipe = part_recipe(config, config.clients.epochs, changes)
    device = device_of(recipe)
    plain = replace(recipe.settings.data, augment="none", drop_last=False, resample="natural")
    whole = load_datasets(plain, device)
    if pixels is not None and not same_pixels(whole, *pixels):
        raise DataError(
            f"client {client} has images of mean {whole.mean} and deviation {whole.std}, the server's have "
            f"{tuple(pixels[0])} and {tuple(pixels[1])}, so one model would see other inputs there. Bring the images "
            "of all parts to one scale"
        )
    positions_N = client_positions(config, whole.info, client)
    assert whole.info.labels is not None
    truth_N = whole.info.labels[positions_N]
    began = time.perf_counter()
    if config.clients.labels == "own":
        chosen_M, labels_M = torch.arange(len(positions_N)), truth_N
    else:
        forwards = _forwards(config, recipe, whole, weights, teachers, device)
        logits_NC = mean_logits(forwards, whole.train, positions_N)
        chosen_M, labels_M = choose_sure(
            logits_NC.double().softmax(1), config.select.threshold, config.select.per_class
        )
    labelled = time.perf_counter()
    if len(chosen_M) < _LEAST:
        return ClientRound(
            dict(weights), 0, images=len(positions_N), correct=0, label_seconds=labelled - began, train_seconds=0.0
        )
    chosen = Chosen(positions_N[chosen_M], labels_M)
    section = recipe.settings.data
    # A recipe's batch may be larger than what a small client is sure of, and drop_last would leave nothing.
    data = load_datasets(replace(section, batch_size=min(section.batch_size, len(chosen_M))), device, chosen)
    mixing = config.clients.labels == "none" and config.select.mix_weight > 0
    select, seeds = config.select, (recipe.settings.seed, client)
    mix = [MixTerm(select.mix_alpha, select.mix_weight, seeds)] if mixing else []
    folder = part_folder(config, run_id, f"client-{client}")
    trained = train_part(config, recipe, folder, config.clients.epochs, round_number, data, weights, mix)
    # Counted for studies only: with labels: none, nothing above has looked at the true labels.
    correct = int((labels_M == truth_N[chosen_M]).sum())
    return ClientRound(
        **vars(trained), images=len(positions_N), correct=correct,
        label_seconds=labelled - began, train_seconds=time.perf_counter() - labelled,
    )  # fmt: skip


def _forwards(
    config: FederatedConfig,
    recipe: Recipe,
    whole: LoadedData,
    weights: Mapping[str, Tensor],
    teachers: Sequence[str],
    device: torch.device,
) -> list[ArchivedForward]:
    """Return what labels the images: the archived teachers, or the model that the server sent."""
    settings = recipe.settings
    if not teachers:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
            model = build_model(settings.model, whole.num_classes, whole.image_shape, whole.inputs)
        model.load_state_dict(dict(weights))
        return [ArchivedForward(model.eval().to(device), device, settings.precision, 0, None, GRADIENT_BYTES)]
    archive = RunArchive(config.archive, read_only=True)
    runs = [archive.run(one) for one in teachers]
    for run in runs:
        check_teacher(run, whole, settings.data)
    return [teacher_forward(run, device) for run in runs]


def device_of(recipe: Recipe) -> torch.device:
    """Return where a part computes: what its recipe says, or a GPU where there is one."""
    name = {"gpu": "cuda"}.get(recipe.settings.device or "", recipe.settings.device)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
