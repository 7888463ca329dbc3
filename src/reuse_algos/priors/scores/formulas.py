"""How hard, uncertain or informative an example is, as pure functions of what models said about it.

Shapes: B or N examples, C classes, T presentations (epochs, in order), M members of an ensemble, R runs.

Every score is float64 and is higher for harder, more uncertain or more informative examples. NaN stands for "unknown":
a row or presentation that is NaN is left out, and an example about which nothing is known has the score NaN. So does an
example whose label is below 0 (such as -100) or, where there are logits, not one of their classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reuse_algos.errors import ModelError

GRADIENT_BYTES = 256 << 20
"""Default bound on the per-example gradients that :func:`grand` holds at once."""


# One presentation -----------------------------------------------------------------------------------------------------


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return ``-log p_y``: float64 ``[B]`` >= 0, in nats.

    Args:
        logits_BC: Any float dtype.
        labels_B: int64.

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    tensor([0.6931], dtype=torch.float64)
    """
    return -_of_label(_double(logits_BC).log_softmax(1), labels_B)


def true_probability(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the probability ``p_y`` of the label: float64 ``[B]``, 0 to 1. (Not a score: high is easy.)"""
    return _of_label(_double(logits_BC).softmax(1), labels_B)


def el2n(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return EL2N, the norm of the error: ``||softmax(z) - onehot(y)||_2``, float64 ``[B]``, 0 to sqrt(2).

    Paul et al. 2021, "Deep Learning on a Data Diet" (arXiv 2107.07075), definition 2.2 (there also the expectation over
    initialisations: the mean over runs).

    Args:
        logits_BC: Any float dtype.
        labels_B: int64.

    >>> el2n(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), torch.tensor([0, 0]))
    tensor([7.0711e-01, 3.7201e-44], dtype=torch.float64)
    """
    one_hot_BC = _one_hot(labels_B, logits_BC.shape[1])
    norm_B = (_double(logits_BC).softmax(1) - one_hot_BC.double()).norm(dim=1)
    return norm_B.masked_fill(~one_hot_BC.any(1), torch.nan)


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the negative margin ``-(p_y - max_{k != y} p_k)``: float64 ``[B]``, -1 (sure and right) to 1.

    The margin of the labelled class over the best other one, as in Bartlett et al. 2017 (arXiv 1706.08498, section 1),
    on probabilities. (Active learning without labels takes the best class minus the second; for an example that is
    classified rightly that is the same number.)

    Args:
        logits_BC: Any float dtype, C >= 2.
        labels_B: int64.
    """
    return -_margin(_double(logits_BC).softmax(1), labels_B)


def logit_margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the margin on logits, ``z_y - max_{k != y} z_k``: float64 ``[B]``. (Not a score: high is easy.)

    Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking" (arXiv 2001.10528),
    equation 1; its mean over the epochs of training is their AUM, equation 2.

    >>> logit_margin(torch.tensor([[2.0, 0.5]]), torch.tensor([0]))
    tensor([1.5000], dtype=torch.float64)
    """
    return _margin(_double(logits_BC), labels_B)


def entropy(logits_BC: Tensor) -> Tensor:
    """Return the Shannon entropy of the prediction, ``-sum_k p_k log p_k``: float64 ``[B]``, 0 to log C, in nats.

    Shannon 1948; as an uncertainty to select examples by: Settles 2009, "Active Learning Literature Survey", section
    3.1.

    >>> entropy(torch.zeros(1, 2))
    tensor([0.6931], dtype=torch.float64)
    """
    return torch.special.entr(_double(logits_BC).softmax(1)).sum(1)


# Several presentations ------------------------------------------------------------------------------------------------


def loss(losses_TN: Tensor) -> Tensor:
    """Return the loss at the last presentation of each example: float64 ``[N]``.

    Args:
        losses_TN: In order of time, NaN where an example was not presented.
    """
    losses_TN = _double(losses_TN)
    steps_TN = torch.arange(1, len(losses_TN) + 1, device=losses_TN.device)[:, None] * ~losses_TN.isnan()
    last_N = (steps_TN.amax(0) - 1).clamp_min(0)
    return losses_TN.gather(0, last_N[None])[0]


def loss_mean(losses_TN: Tensor) -> Tensor:
    """Return the mean loss over all presentations of each example: float64 ``[N]``. NaN rows do not count.

    >>> loss_mean(torch.tensor([[2.0, 1.0], [1.0, torch.nan]]))
    tensor([1.5000, 1.0000], dtype=torch.float64)
    """
    return mean_known(losses_TN)


def forgetting(correct_TN: Tensor) -> Tensor:
    """Return forgetting events: how often an example went from correct to incorrect, float64 ``[N]``, 0 to T.

    Toneva et al. 2019, "An Empirical Study of Example Forgetting" (arXiv 1812.05159), definition in section 3:
    ``acc_t > acc_{t+1}`` between consecutive presentations. An example that was never classified rightly counts as
    forgotten "infinitely often" there; as in the authors' code it gets the number of its presentations, which is more
    than any number of events can be.

    Args:
        correct_TN: 1 (or True) where correct, 0 where not, NaN where the example was not presented; in order of time.

    >>> forgetting(torch.tensor([[1, 0], [0, 0], [1, 1]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    correct_TN = _double(correct_TN)
    known_TN = ~correct_TN.isnan()
    events_N = torch.zeros_like(correct_TN[0])
    before_N = torch.zeros_like(events_N)  # what the example was at its presentation before this one
    for correct_N, known_N in zip(correct_TN, known_TN, strict=True):
        events_N += known_N & (before_N > 0) & (correct_N <= 0)
        before_N = torch.where(known_N, correct_N, before_N)
    presentations_N = known_TN.sum(0)
    learned_N = ((correct_TN > 0) & known_TN).any(0)
    return torch.where(learned_N, events_N, presentations_N.double()).masked_fill(presentations_N == 0, torch.nan)


def variance(probabilities_TN: Tensor) -> Tensor:
    """Return how much the probability of the label varied: ``sqrt(var + var^2 / (n - 1))``, float64 ``[N]`` >= 0.

    Chang et al. 2017, "Active Bias" (arXiv 1704.07433), section 3.3, the prediction variance with the bound of its
    confidence interval; n is the number of stored probabilities of the example. ``var`` is the unbiased estimate
    (divided by n - 1), to which that bound belongs. NaN for fewer than two probabilities.

    Args:
        probabilities_TN: True-class probabilities, NaN where there is none.

    >>> variance(torch.tensor([[0.5, 0.0], [0.5, 1.0]]))
    tensor([0.0000, 0.8660], dtype=torch.float64)
    """
    probabilities_TN = _double(probabilities_TN)
    known_TN = ~probabilities_TN.isnan()
    freedom_N = known_TN.sum(0) - 1
    deviation_TN = torch.where(known_TN, probabilities_TN - mean_known(probabilities_TN), 0.0)
    freedom_N = torch.where(freedom_N > 0, freedom_N.double(), torch.nan)
    variance_N = deviation_TN.square().sum(0) / freedom_N
    return (variance_N + variance_N.square() / freedom_N).sqrt()


def threshold(probabilities_TN: Tensor) -> Tensor:
    """Return the closeness to the threshold, ``m (1 - m)`` of the mean probability m: float64 ``[N]``, 0 to 1/4.

    Chang et al. 2017, "Active Bias" (arXiv 1704.07433), section 3.4.

    Args:
        probabilities_TN: True-class probabilities, NaN where there is none.

    >>> threshold(torch.tensor([[0.5, 1.0]]))
    tensor([0.2500, 0.0000], dtype=torch.float64)
    """
    mean_N = mean_known(probabilities_TN)
    return mean_N * (1 - mean_N)


# Ensembles ------------------------------------------------------------------------------------------------------------


def variation_ratio(probabilities_MNC: Tensor) -> Tensor:
    """Return the share of members that do not vote for the most voted class: float64 ``[N]``, 0 to 1 - 1/C.

    Freeman 1965; as the disagreement of runs and checkpoints: Chitta et al. 2019, "Training Data Subset Search with
    Ensemble Active Learning" (arXiv 1905.12737). NaN where fewer than two members know the example.

    Args:
        probabilities_MNC: Of each member; a row of NaN where a member does not know the example.

    >>> variation_ratio(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    known_MN = ~probabilities_MNC.isnan().any(2)
    votes_NC = torch.zeros(probabilities_MNC.shape[1:], dtype=torch.float64, device=probabilities_MNC.device)
    for probabilities_NC, known_N in zip(probabilities_MNC, known_MN, strict=True):
        # A row of NaN votes with weight 0, so it does not matter for which class.
        votes_NC.scatter_add_(1, probabilities_NC.nan_to_num().argmax(1, keepdim=True), known_N.double()[:, None])
    members_N = known_MN.sum(0)
    return (1 - votes_NC.amax(1) / members_N).masked_fill(members_N < 2, torch.nan)


def mutual_information(probabilities_MNC: Tensor) -> Tensor:
    """Return ``H(mean p) - mean H(p)`` over an ensemble: float64 ``[N]``, 0 to log C, in nats.

    BALD, Houlsby et al. 2011 (arXiv 1112.5745), equation 2; with the members of an ensemble as the posterior as in
    Chitta et al. 2019 (arXiv 1905.12737). NaN where fewer than two members know the example.

    Args:
        probabilities_MNC: Of each member; a row of NaN where a member does not know the example.

    >>> mutual_information(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    tensor([0.6931], dtype=torch.float64)
    """
    probabilities_MNC = _double(probabilities_MNC)
    mean_NC = mean_known(probabilities_MNC)
    each_N = mean_known(torch.special.entr(probabilities_MNC).sum(2))
    members_N = (~probabilities_MNC.isnan().any(2)).sum(0)
    # Rounding can leave a difference of -1e-17 where all members agree.
    return (torch.special.entr(mean_NC).sum(1) - each_N).clamp_min(0).masked_fill(members_N < 2, torch.nan)


# Gradients ------------------------------------------------------------------------------------------------------------


def grand(
    module: nn.Module,
    inputs: Any,
    labels_B: Tensor,
    *,
    read: Callable[[Any], Tensor] | None = None,
    memory_bytes: int = GRADIENT_BYTES,
) -> Tensor:
    """Return GraNd, the norm of the gradient ``||grad_w -log p_y(x; w)||_2`` over all parameters: float64 ``[B]``.

    Paul et al. 2021, "Deep Learning on a Data Diet" (arXiv 2107.07075), definition 2.1, for the weights that the module
    has (there also the expectation over initialisations: the mean over runs). The module should be in evaluation mode,
    as each example has to be on its own; buffers (batch-norm statistics) are constants.

    The gradients of several examples at a time are held, as many as fit into ``memory_bytes`` but at least one; the
    activations come on top.

    Args:
        module: Takes ``inputs``; every parameter counts, whether it requires a gradient or not.
        inputs: A tensor, or tuples, lists and dicts of tensors, all with B rows.
        labels_B: int64.
        read: Gets the logits ``[B, C]`` from the module's outputs; None: the outputs are the logits.
        memory_bytes: Bound on the per-example gradients.
    """
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.detach() for name, buffer in module.named_buffers()}

    def loss_of_one(parameters: dict[str, Tensor], one: Any, label: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(module, (parameters, buffers), (_map_tensors(one, _with_batch),))
        logits_1C = outputs if read is None else read(outputs)
        if logits_1C.dim() != 2:
            raise ModelError(
                f"GraNd is a score of classifiers with logits [B, C]; these have {logits_1C.dim()} dimensions."
            )
        # vmap cannot branch: a label that is not a class is clamped here, and its norm becomes NaN below.
        inside = label.clamp(0, logits_1C.shape[1] - 1)
        return F.cross_entropy(logits_1C, inside[None]), inside == label

    def norm_of_one(one: Any, label: Tensor) -> Tensor:
        gradients, is_class = torch.func.grad(loss_of_one, has_aux=True)(parameters, one, label)
        # No copy in float64 of anything but the norms: the gradients are what the bound is about.
        norms = [torch.linalg.vector_norm(_single(gradient)).double() for gradient in gradients.values()]
        return torch.where(is_class, torch.stack(norms).square().sum().sqrt(), torch.nan)

    known = (labels_B >= 0).nonzero().flatten()
    norms_B = torch.full(labels_B.shape, torch.nan, dtype=torch.float64, device=labels_B.device)
    num_bytes = sum(parameter.nbytes for parameter in parameters.values())
    for rows in known.split(max(1, memory_bytes // max(num_bytes, 1))):
        part = _map_tensors(inputs, lambda tensor, rows=rows: tensor.index_select(0, rows))
        norms_B[rows] = torch.func.vmap(norm_of_one)(part, labels_B[rows])
    return norms_B


def grand_last_layer(logits_BC: Tensor, labels_B: Tensor, features_BD: Tensor, *, bias: bool) -> Tensor:
    """Return GraNd of the last linear layer, in closed form: ``||p - onehot(y)||_2 sqrt(||h||_2^2 + bias)``.

    The gradient of the cross entropy with regard to ``z = W h + b`` is ``p - onehot(y)``; that with regard to W is its
    outer product with h, and that with regard to b is itself. This is the last-layer part of definition 2.1 in Paul et
    al. 2021 (arXiv 2107.07075), at the cost of a forward pass; the full norm is :func:`grand`.

    Args:
        logits_BC: Any float dtype.
        labels_B: int64.
        features_BD: The input h of the layer.
        bias: Whether the layer has one.

    Returns:
        float64 ``[B]`` >= 0.
    """
    squared_B = _double(features_BD).square().sum(1)
    return el2n(logits_BC, labels_B) * (squared_B + (1.0 if bias else 0.0)).sqrt()


# Over runs ------------------------------------------------------------------------------------------------------------


def mean_known(values_RN: Tensor) -> Tensor:
    """Return the mean over dimension 0 of what is not NaN: float64 ``[N, ...]``, NaN where everything is."""
    values_RN = _double(values_RN)
    known_RN = ~values_RN.isnan()
    return torch.where(known_RN, values_RN, 0.0).sum(0) / known_RN.sum(0)


def average_ranks(values_N: Tensor) -> Tensor:
    """Return ranks from 0 (lowest) to 1 (highest), of equal values their mean: float64 ``[N]``.

    NaN stays NaN and does not count; a single known value has the rank 1/2. They put the scores of several runs on one
    scale before their mean is taken.

    >>> average_ranks(torch.tensor([3.0, 1.0, 3.0]))
    tensor([0.7500, 0.0000, 0.7500], dtype=torch.float64)
    """
    values_N = _double(values_N)
    known = (~values_N.isnan()).nonzero().flatten()
    ranks_N = torch.full_like(values_N, torch.nan)
    _, group, sizes = torch.unique(values_N[known], return_inverse=True, return_counts=True)
    if len(known):
        first = sizes.cumsum(0) - sizes
        mean_rank = first + (sizes - 1) / 2
        ranks_N[known] = mean_rank.double()[group] / (len(known) - 1) if len(known) > 1 else 0.5
    return ranks_N


# Helpers --------------------------------------------------------------------------------------------------------------


def _double(values: Tensor) -> Tensor:
    return values.detach().to(torch.float64)


def _single(values: Tensor) -> Tensor:
    """Return at least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _one_hot(labels_B: Tensor, num_classes: int) -> Tensor:
    """Return which class each label is: bool ``[B, C]``, all False where it is none of the classes."""
    return labels_B[:, None] == torch.arange(num_classes, device=labels_B.device)


def _of_label(values_BC: Tensor, labels_B: Tensor) -> Tensor:
    inside_B = labels_B.clamp(0, values_BC.shape[1] - 1)
    return values_BC.gather(1, inside_B[:, None])[:, 0].masked_fill(inside_B != labels_B, torch.nan)


def _margin(values_BC: Tensor, labels_B: Tensor) -> Tensor:
    one_hot_BC = _one_hot(labels_B, values_BC.shape[1])
    return _of_label(values_BC, labels_B) - values_BC.masked_fill(one_hot_BC, -torch.inf).amax(1)


def _map_tensors(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same nest of tuples, lists and mappings with every tensor changed."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, Mapping):
        return {key: _map_tensors(value, change) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_map_tensors(value, change) for value in part)
    return part


def _with_batch(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)
