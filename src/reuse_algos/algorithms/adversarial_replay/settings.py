"""The sections of AdversarialReplay: how rows are replayed, and which perturbations they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reuse_algos.sections import fit_section


@dataclass(frozen=True)
class Replace:
    """Replayed rows take the place of their clean ones.

    Attributes:
        fraction: Share of the rows to replay, in (0, 1); 1, all of them, without split batch norm only, as nothing
            would train the main branch. Fractions of a row are carried over from batch to batch. Default: 0.5.
        split_batch_norm: Whether replayed rows have a forward pass and batch norms of their own (AdvProp). Evaluation
            and the recorder see the main ones only. Without, all rows are one batch, as in ordinary adversarial
            training. Default: true.
    """

    name: ClassVar[str] = "replace"
    weight: ClassVar[float | None] = None  # every row counts alike
    fraction: float = 0.5
    split_batch_norm: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if self.fraction == 1 and self.split_batch_norm:
            raise ValueError(
                "fraction: 1 with mode: replace leaves the main batch norms, by which the model is evaluated, no row. "
                "Set split_batch_norm: false, or a smaller fraction."
            )


@dataclass(frozen=True)
class Append:
    """Replayed rows come on top of the batch; the loss becomes ``(1 - w) L + w L_adv``.

    Attributes:
        fraction: Share of the rows to replay, in (0, 1]. Fractions of a row are carried over from batch to batch.
            Default: 0.5.
        split_batch_norm: Whether replayed rows have a forward pass and batch norms of their own (AdvProp). Evaluation
            and the recorder see the main ones only. Without, all rows are one batch, as in ordinary adversarial
            training. Default: true.
        weight: w in [0, 1]. Default: every row of the batch counts alike.
    """

    name: ClassVar[str] = "append"
    fraction: float = 0.5
    split_batch_norm: bool = True
    weight: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {self.weight}")


@dataclass(frozen=True)
class AsIs:
    """Perturbations are shown as they were archived."""

    name: ClassVar[str] = "as_is"


@dataclass(frozen=True)
class Start:
    """One step of an attack on the model of now, from the perturbation that the last one on this view ended with.

    The first begins with the archived perturbation (ATTA, Zheng et al. 2020, arXiv 1912.11969). The task must be
    multiclass.

    Attributes:
        step: Length of the step in pixel units, in the L-infinity norm, above 0. Default: half of the archived attack's
            epsilon, as in the paper.
        reset_every: Epochs after which all begin again with the archived perturbation, at least 1. Default: never.
    """

    name: ClassVar[str] = "start"
    step: float | None = None
    reset_every: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not self.step > 0:
            raise ValueError(f"step must be above 0, in pixel units, got {self.step}")
        if self.reset_every is not None and self.reset_every < 1:
            raise ValueError(f"reset_every must be at least 1, got {self.reset_every}")


@dataclass(frozen=True)
class Replayable:
    """Which archived perturbations are replayed, and when they are too old.

    Attributes:
        weights: Which archived weights were attacked: ``last``, ``best``, ``100ep`` ... Default: ``last``.
        recency: In (0, 1]: of several runs, one of those that have a perturbation is drawn for an example, with a
            probability proportional to ``recency ** k``; k counts all runs from the newest, 0, whether they have one
            or not. 1 is all alike. The draw is another one in every epoch. Default: 1.0.
        warn_below: Warn when in an epoch the perturbations turned less than this share of the examples that the model
            is right about; once for a stretch of such epochs. Epochs in which its accuracy on the clean rows is less
            than a quarter of the way from chance to 1 are not judged. Default: 0.1.
        use: :class:`AsIs` or :class:`Start`: whether they are shown as they are, or attacks go on from them. Default:
            ``as_is``.
    """

    weights: str = "last"
    recency: float = 1.0
    warn_below: float = 0.1
    use: AsIs | Start | str = "as_is"

    def __post_init__(self) -> None:
        object.__setattr__(self, "use", fit_section(AsIs | Start, self.use, "use"))
        if not 0 < self.recency <= 1:
            raise ValueError(f"recency must be in (0, 1], got {self.recency}")
        if not 0 <= self.warn_below <= 1:
            raise ValueError(f"warn_below must be in [0, 1], got {self.warn_below}")
