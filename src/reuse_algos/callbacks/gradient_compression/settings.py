"""The ways to compress gradients, written the same way in Python and in recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ScaleCom:
    """Send the largest entries of one rank's choice, and remember the rest (Chen et al. 2020).

    Attributes:
        ratio: Entries of a parameter for each one that is sent, at least 1. Default: 100.
        beta: How much of the last remainder is remembered, above 0 and at most 1; 1 is error feedback without a
            low-pass filter. Default: 0.1.
    """

    name: ClassVar[str] = "scalecom"
    ratio: float = 100.0
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.ratio < 1 or not 0 < self.beta <= 1:
            raise ValueError(
                f"scalecom needs a ratio of at least 1 and a beta above 0 and at most 1, got {self.ratio} and "
                f"{self.beta}"
            )


@dataclass(frozen=True)
class Sign:
    """The sign that most ranks have, of gradients with noise (Chen et al. 2019, arXiv 1906.01736).

    Attributes:
        noise: b, half the width of uniform noise in units of the gradient, at least 0. Default: 0.
        scale: Size of each entry of the result, above 0. Default: 1.
    """

    name: ClassVar[str] = "sign"
    noise: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.noise < 0 or self.scale <= 0:
            raise ValueError(f"sign needs noise of at least 0 and a scale above 0, got {self.noise} and {self.scale}")


@dataclass(frozen=True)
class Median:
    """The median of the ranks' gradients with noise, entry by entry (Chen et al. 2019, arXiv 1906.01736).

    Attributes:
        noise: b, standard deviation of normal noise in units of the gradient, at least 0. Default: 0.
    """

    name: ClassVar[str] = "median"
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"median needs noise of at least 0, got {self.noise}")


@dataclass(frozen=True)
class PowerSGD:
    """Matrices of low rank, by torch's own hook (Vogels et al. 2019, arXiv 1905.13727).

    Attributes:
        rank: Rank of the matrices, at least 1. Default: 2.
    """

    name: ClassVar[str] = "powersgd"
    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"powersgd needs a rank of at least 1, got {self.rank}")


@dataclass(frozen=True)
class Fp16:
    """Gradients in half precision on the wire, by torch's own hook."""

    name: ClassVar[str] = "fp16"


Method = ScaleCom | Sign | Median | PowerSGD | Fp16
