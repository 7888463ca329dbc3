"""What a sequence harvests of its runs, and what of it a run still lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reuse_algos.archive import FileEntry, PriorRun, weights_name
from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.harvest.adversarial import default_bits
from reuse_algos.harvest.passes import OF_VIEWS
from reuse_algos.priors.presentations import harvested_name
from reuse_algos.recipe.schema import Settings
from reuse_algos.sequence.planning.schema import HarvestConfig
from reuse_algos.training.attacks import Attack


@dataclass(frozen=True)
class Harvest:
    """One signal that each run of an arm is given once it is trained.

    Attributes:
        signal: What is harvested, such as ``adversarial``.
        config: How.
        num_views: How many views of each example.
        plain: Whether it is of the examples without augmentation instead.
    """

    signal: str
    config: HarvestConfig
    num_views: int
    plain: bool

    @classmethod
    def planned(cls, signal: str, config: HarvestConfig, recipe: Settings) -> Harvest:
        """Plan a harvest of the run that a recipe trains.

        Raises:
            ValueError: The run will not have such views or weights, or keeps the signal in another encoding.
        """
        _check_weights(config.weights, recipe)
        captured = _recorder(recipe).get("signals") or {}
        if signal == "logits" and config.weights == "last" and "logits" in captured:
            kept = (captured["logits"] or {}).get("top_k")
            if kept != config.top_k:
                raise ValueError(
                    f"has top_k: {config.top_k}, and run_recorder captures logits with top_k: {kept}. One signal has "
                    "one encoding"
                )
        if config.plain or (signal not in OF_VIEWS and config.views is None):
            return cls(signal, config, 1, plain=True)
        return cls(signal, config, _num_views(config, recipe.data), plain=False)

    @property
    def name(self) -> str:
        """Of the archived signal."""
        return harvested_name(self.signal, self.config.weights)


def _num_views(config: HarvestConfig, data: DataConfig) -> int:
    if data.augment == "none":
        if config.views not in (None, 1):
            # Scores are of the plain examples, one view of each.
            raise ValueError(f"asks for {config.views} views, and without data.augment there is one")
        return 1
    if config.views is None and data.num_views == 0:
        raise ValueError(
            "does not say how many views, and data.num_views is 0, without end. Write for example views: 8"
        )
    return config.views or data.num_views


def _check_weights(name: str, recipe: Settings) -> None:
    kept = _recorder(recipe).get("weights", ["last"])
    kept = [kept] if isinstance(kept, str) else list(kept or [])
    numbered = weights_name(name)
    if name in kept or (numbered.startswith("ep") and numbered[2:].isdigit() and set(kept) - {"last", "best"}):
        return
    raise ValueError(f"is of the weights {name!r}, and run_recorder keeps {', '.join(map(str, kept)) or 'none'}")


def _recorder(recipe: Settings) -> dict[str, Any]:
    return recipe.callbacks.get("run_recorder") or {}


def attack_of(config: HarvestConfig) -> Attack | None:
    """Return the attack that a harvest of adversarial asks for; None takes the default one."""
    return None if config.attack is None else Attack(**config.attack)


def missing_harvests(run: PriorRun, harvests: Sequence[Harvest]) -> list[Harvest]:
    """Return the harvests that a run does not have all views of; none for a run that diverged."""
    if run.manifest.health != "ok":
        return []
    # An interrupted harvest keeps the views that it has made, and only the others are missing.
    return [one for one in harvests if not set(range(one.num_views)) <= _views(run, one).keys()]


def remade(run: PriorRun, harvests: Sequence[Harvest]) -> list[str]:
    """Describe each signal whose harvest settings differ from the requested ones."""
    texts = []
    for one in harvests:
        views = _views(run, one)
        # All views of a signal are made by one setting, so the first one tells.
        changed = [text for entry in list(views.values())[:1] for text in _changed(run, one, entry)]
        if len(views) > one.num_views:
            changed.append(f"views were {len(views)} and are now {one.num_views}")
        if changed:
            texts.append(f"harvest.{one.signal}: {'; '.join(changed)}")
    return texts


def _changed(run: PriorRun, one: Harvest, entry: FileEntry) -> list[str]:
    wanted: dict[str, Any] = {}
    there = dict(entry.meta)
    if one.signal == "logits":
        there["top_k"] = entry.tensors["values"].shape[-1] if entry.meta.get("encoding") == "top_k" else None
        wanted["top_k"] = one.config.top_k
    if one.signal == "adversarial":
        attack = attack_of(one.config) or Attack()
        wanted["attack_settings"] = attack.describe()
        wanted["bits"] = default_bits(attack) if one.config.bits is None else one.config.bits
    data = run.manifest.dataset
    if one.signal != "logits" and data is not None and run.manifest.recipe is not None:
        augmented = run.manifest.recipe.get("data", {}).get("augment", "none") != "none"
        there["plain"], wanted["plain"] = (entry.meta.get("transform") != data.transform, one.plain and augmented)
    return [
        f"{key} was {there.get(key)} and is now {value}" for key, value in wanted.items() if there.get(key) != value
    ]


def _views(run: PriorRun, one: Harvest) -> dict[int, FileEntry]:
    """Return view number -> the harvested file."""
    return {
        int(entry.meta["slot"]): entry  # type: ignore[arg-type]
        for entry in run.manifest.files
        if (entry.kind, entry.name, entry.meta.get("source")) == ("signals", one.name, "harvest")
    }
