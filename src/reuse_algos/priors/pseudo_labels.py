"""From the archived scores of an unlabelled pool to the images and labels that a student is trained on.

Legend: N images of the pool, C classes, M chosen pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_algos.archive import PriorRun
from reuse_algos.data.datasets.pseudo import Chosen, PseudoLabels, shared_examples
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError, PriorRunMismatchError, SignalNotFoundError
from reuse_algos.priors.choosing import match_classes, match_examples


def unlabelled(info: DatasetInfo) -> DatasetInfo:
    """Return the identity of examples without their labels, as a pool's run records it."""
    return DatasetInfo(info.name, info.keys, None, info.class_names, info.key_kind, info.content)


def refuse_shared(pool: DatasetInfo, held_out: DatasetInfo) -> None:
    """Refuse a pool that holds examples that are evaluated on.

    Raises:
        DataError: It does. The message has the number and the first keys.
    """
    shared = shared_examples(pool, held_out)
    if len(shared):
        keys = ", ".join([*(str(key) for key in pool.keys[shared[:5]].tolist()), *(["..."] if len(shared) > 5 else [])])
        raise DataError(
            f"{len(shared)} of the {pool.num_examples} images of the pool {pool.name} are in the evaluation data "
            f"{held_out.name}, too, by key or content (keys {keys}). A student that is "
            "trained on them is judged by images that it knows: remove them from the pool."
        )


def choose_pairs(
    run: PriorRun, pool: DatasetInfo, held_out: DatasetInfo, asked: PseudoLabels, *, num_classes: int
) -> Chosen:
    """Return the images of a pool that a student is trained on, and the class that each is taken for.

    Args:
        run: The pool's run.
        pool: The pool as it is now, with its content where that is known.
        held_out: The data that the student is evaluated on.
        asked: How many images and classes.
        num_classes: Classes of the student.

    Returns:
        The pairs, class after class and within a class the best image first.

    Raises:
        SignalNotFoundError: The run is not a pool's, or has not ended.
        PriorRunMismatchError: The run's pool or classes are others than these.
        DataError: The pool shares examples with the evaluation data, or K or P is out of range.
    """
    if not run.finished or run.manifest.harvests == [] or "logits" not in run.signal_names:
        raise SignalNotFoundError(
            f"run {run.id} has no finished pass of teachers over a pool. Make one: reuse-algos label ARCHIVE TEACHER "
            "--data pool.yaml --name pool-1"
        )
    refuse_shared(pool, held_out)
    match_classes(run, num_classes, pool.class_names)
    # The pool's run was recorded without labels, and its fingerprint is one without them.
    try:
        match_examples(run, unlabelled(pool), "refuse")
    except PriorRunMismatchError as error:
        # Its advice is for prior runs that trained; a pool that differs can only be described as it was.
        there = (run.manifest.recipe or {}).get("data")
        raise PriorRunMismatchError(
            f"data.pseudo_labels: run {run.id} labelled another pool than the {pool.num_examples} images that this "
            f"data section describes. It was labelled with data: {there}. Describe the same pool, or label this one."
        ) from error
    signal = run.signal("logits")
    if not bool(signal.seen(0).all()):
        raise PriorRunMismatchError(f"run {run.id} has scores for only some images of its pool. Label it again.")
    logits_NC, _ = signal.dense(0)
    if logits_NC.shape[1] != num_classes:
        raise PriorRunMismatchError(
            f"run {run.id} has scores of {logits_NC.shape[1]} classes, this run has {num_classes}."
        )
    try:
        positions_M, labels_M = select_pairs(
            logits_NC.double().softmax(dim=1), per_class=asked.per_class, per_image=asked.per_image
        )
    except ValueError as error:
        raise DataError(f"data.pseudo_labels: {error}") from error
    return Chosen(positions_M, labels_M)


def select_pairs(scores_NC: Tensor, *, per_class: int, per_image: int = 1) -> tuple[Tensor, Tensor]:
    """Return the pairs of image and class that a student is trained on.

    Each image proposes its best classes, and each class takes its best images among those that propose it (Yalniz et
    al. 2019, https://arxiv.org/abs/1905.00546, section 3). An image may serve several classes, and none. Of equal
    scores the lower class number and the earlier image come first.

    Args:
        scores_NC: A teacher's score of each class for each image, larger is better, such as softmax probabilities.
        per_class: K, how many images each class takes at most; from 1.
        per_image: P, how many classes each image proposes; from 1 to C. Default: 1.

    Returns:
        Image numbers and class numbers, int64 ``[M]`` on the device of the scores: class after class, and within a
        class the best image first.

    Raises:
        ValueError: The scores are not a matrix of numbers, or K or P is out of its range.
    """
    if scores_NC.dim() != 2 or not scores_NC.is_floating_point():
        raise ValueError(f"scores must be a float matrix [N, C], got {scores_NC.dtype} {tuple(scores_NC.shape)}")
    if bool(scores_NC.isnan().any()):
        raise ValueError("scores hold NaN: of these images it is not known which class is best")
    classes = scores_NC.shape[1]
    if not 1 <= per_image <= classes:
        raise ValueError(f"per_image must be from 1 to the number of classes {classes}, got {per_image}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    # Stable, so that the choice among equal scores does not depend on the device.
    proposed_NP = scores_NC.sort(dim=1, descending=True, stable=True).indices[:, :per_image]
    proposes_NC = torch.zeros_like(scores_NC, dtype=torch.bool).scatter_(1, proposed_NP, True)
    order_NC = scores_NC.sort(dim=0, descending=True, stable=True).indices
    ranked_NC = proposes_NC.gather(0, order_NC)
    # Of the images in a class's order, the first K that propose it.
    taken_NC = ranked_NC & (ranked_NC.cumsum(0) <= per_class)
    class_M, place_M = taken_NC.T.nonzero(as_tuple=True)
    return order_NC[place_M, class_M], class_M
