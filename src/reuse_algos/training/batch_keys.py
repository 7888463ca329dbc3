"""Where inputs, targets, ids and logits lie in other people's batches and outputs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchKeys"]


@dataclass(frozen=True)
class BatchKeys:
    """The keys of a batch and of a model's outputs, as recipes write them: ``keys: {target: labels}``.

    Attributes:
        input: Key or position of the inputs in a batch. Default: 0.
        target: Key or position of the targets in a batch. Default: 1.
        output: Key or position of the logits in the model's outputs. Default: None, which takes the outputs
            themselves where they are a tensor, and else what is called ``logits``.
        ids: Key of the example ids in a batch, for iterable datasets. Default: None, which follows the batch sampler.
    """

    input: str | int = 0
    target: str | int = 1
    output: str | int | None = None
    ids: str | int | None = None
