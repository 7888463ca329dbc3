"""The sections of PriorRunWarmStart: which weights, what changes of them, the head, and what trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from composer import Time


@dataclass(frozen=True)
class Average:
    """The mean of several archived weights.

    Over several runs of one lineage (all of them warm started from one run, or one of them), or over the last
    checkpoints of one run (LAWA, Kaddour 2022, arXiv 2209.14981).

    Attributes:
        last_k: How many of the last checkpoints of one run, at least 2. Default: the mean over several runs.
    """

    name: ClassVar[str] = "average"
    beside_text: ClassVar[bool] = True  # any other text names archived weights
    last_k: int | None = None

    def __post_init__(self) -> None:
        if self.last_k is not None and self.last_k < 2:
            raise ValueError(f"last_k must be at least 2, got {self.last_k}")


@dataclass(frozen=True)
class Change:
    """What becomes of the archived weights: ``shrink * weights + perturb * noise``.

    Ash & Adams 2020, "On Warm-Starting Neural Network Training" (arXiv 1910.08475), section 4.

    Attributes:
        shrink: The paper's lambda, above 0 and at most 1. Default: 1.0.
        perturb: Scale of the noise, at least 0. Default: 0.0.
        noise: ``initial``, the values of this run's own initialisation in a random order (the authors' code), or
            ``gaussian``, standard normal numbers (the paper's equation, where ``perturb`` is sigma). Default:
            ``initial``.
        reset: Pattern of tensors beside the head that stay as they were initialised, or that only the earlier run has,
            or a list of patterns. Default: none.
    """

    shrink: float = 1.0
    perturb: float = 0.0
    noise: str = "initial"
    reset: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("shrink", 0 < self.shrink <= 1, "above 0 and at most 1"),
            ("perturb", 0 <= self.perturb < float("inf"), "at least 0"),
            ("noise", self.noise in ("initial", "gaussian"), "initial or gaussian"),
        ):
            if not good:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")

    @property
    def patterns(self) -> list[str]:
        """The patterns of ``reset`` as a list."""
        return [self.reset] if isinstance(self.reset, str) else list(self.reset)


@dataclass(frozen=True)
class Keep:
    """The last layer is loaded like the others.

    Attributes:
        pattern: Names of the head's parameters, such as ``fc.*``. Default: the last linear layer or 1 x 1 convolution
            with as many outputs as there are classes.
    """

    name: ClassVar[str] = "keep"
    pattern: str | None = None


@dataclass(frozen=True)
class Reset(Keep):
    """The last layer stays as it was initialised.

    Attributes:
        pattern: Names of the head's parameters, such as ``fc.*``. Default: the last linear layer or 1 x 1 convolution
            with as many outputs as there are classes.
    """

    name: ClassVar[str] = "reset"


@dataclass(frozen=True)
class Match(Keep):
    """The rows of those classes are loaded that the earlier run knew by the same name.

    Attributes:
        pattern: Names of the head's parameters, such as ``fc.*``. Default: the last linear layer or 1 x 1 convolution
            with as many outputs as there are classes.
    """

    name: ClassVar[str] = "match"


@dataclass(frozen=True)
class Trainable:
    """What trains, how fast, and from when on.

    Attributes:
        freeze: Parameters that do not train: ``backbone`` (all but the head), a pattern such as ``layer1.*``, or a list
            of these. They are in no group of the optimizer and get no gradient; batch norm among them keeps its
            statistics. Default: none.
        learning_rates: Pattern (or ``backbone``, ``head``) -> factor above 0 of the learning rate; of several that
            match the first one counts. Composer's schedules hold for all. Default: none.
        unfreeze_at: Composer time, such as ``5ep`` or ``0.3dur``, at which what is frozen begins to train. Default:
            never.
    """

    freeze: str | Sequence[str] | None = None
    learning_rates: Mapping[str, float] | None = None
    unfreeze_at: str | int | Time | None = None
