"""What a run needs of the machine that it trains on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """The section ``resources`` of a recipe: what a cluster sets aside for the run. A local launcher ignores it.

    Attributes:
        gpus: GPUs, at least 0. Default: 0.
        cpus: CPU cores, at least 1. Default: 1.
        nodes: Machines, at least 1. Default: 1.
    """

    gpus: int = 0
    cpus: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.cpus < 1 or self.nodes < 1:
            raise ValueError(
                f"resources need gpus of at least 0, cpus and nodes of at least 1, got {self.gpus}, {self.cpus} and "
                f"{self.nodes}"
            )
