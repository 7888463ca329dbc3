"""What a sequence harvests of its runs, and what of it a run still lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.algorithms.presentations import harvested_name
from reuse_algos.archive import PriorRun
from reuse_algos.attacks import Attack
from reuse_algos.data.config import DataConfig
from reuse_algos.harvest.passes import OF_VIEWS
from reuse_algos.sequence.schema import HarvestConfig

__all__ = ["Harvest", "attack_of", "missing_harvests", "remade"]


@dataclass(frozen=True)
class Harvest:
    """One signal that each run of an arm is given once it is trained.

    Attributes:
        signal: what is harvested, such as ``adversarial``.
        config: how.
        num_views: how many views of each example.
    """

    signal: str
    config: HarvestConfig
    num_views: int

    @classmethod
    def planned(cls, signal: str, config: HarvestConfig, data: DataConfig) -> Harvest:
        """Of a run that is trained on these data.

        Raises:
            ValueError: the run does not have such views.
        """
        there = 1 if data.augment == "none" else data.num_views
        plain = config.plain or (signal not in OF_VIEWS and config.views is None)
        wanted = 1 if plain else config.views or there
        if not plain and not 1 <= wanted <= there:
            asked = "numbered views" if config.views is None else f"{config.views} views"
            raise ValueError(f"needs {asked} of each example, and data.num_views is {there}")
        return cls(signal, config, wanted)

    @property
    def name(self) -> str:
        """Of the archived signal."""
        return harvested_name(self.signal, self.config.weights)


def attack_of(config: HarvestConfig) -> Attack | None:
    """The attack that a harvest of adversarial asks for; None: the library's own."""
    return None if config.attack is None else Attack(**config.attack)


def missing_harvests(run: PriorRun, harvests: Sequence[Harvest]) -> list[Harvest]:
    """Harvests that a run does not have all views of."""
    return [one for one in harvests if len(_views(run, one)) < one.num_views]


def remade(run: PriorRun, harvests: Sequence[Harvest]) -> list[str]:
    """Where a run's signal was harvested otherwise than is now asked for: one text for each."""
    texts = []
    for one in harvests:
        wanted: dict[str, Any] = {"top_k": one.config.top_k} if one.signal == "logits" else {}
        if one.signal == "adversarial":
            wanted["attack_settings"] = (attack_of(one.config) or Attack()).describe()
            wanted |= {} if one.config.bits is None else {"bits": one.config.bits}
        for meta, top_k in _views(run, one).values():
            there = {**meta, "top_k": top_k}
            changed = [f"{key} was {there.get(key)} and is now {value}" for key, value in wanted.items()
                       if there.get(key) != value]  # fmt: skip
            if changed:
                texts.append(f"harvest.{one.signal}: {'; '.join(changed)}")
                break
    return texts


def _views(run: PriorRun, one: Harvest) -> dict[int, tuple[dict[str, Any], int | None]]:
    """View number -> what is recorded of it, and how many logits were kept."""
    views = {}
    for entry in run.manifest.files:
        if (entry.kind, entry.name, entry.meta.get("source")) == ("signals", one.name, "harvest"):
            top_k = entry.tensors["values"].shape[-1] if entry.meta.get("encoding") == "top_k" else None
            views[int(entry.meta["slot"])] = (dict(entry.meta), top_k)  # type: ignore[arg-type]
    return views
