"""The file of a federated run: sections, checks, and the recipe that each part trains by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reuse_algos.errors import RecipeError
from reuse_algos.recipe.compose import Recipe, compose_recipe
from reuse_algos.recipe.interpolation import resolve
from reuse_algos.recipe.shipped import recipe_path
from reuse_algos.recipe.source import apply_overrides, merge_sections, parse_yaml, read_text
from reuse_algos.sections import Faults, fit


@dataclass(frozen=True)
class ClientsConfig:
    """The section ``clients``: who trains, on what.

    Attributes:
        count: Clients, at least 1. Default: 10.
        split: How the examples that the server does not keep are shared out: ``even`` (each client has the same mix of
            classes), ``labels`` (sorted by label and cut, so that each client has few classes), or ``own`` (each
            client has all examples of its own data; Flower's node configuration ``data-path`` names its file).
            Default: ``even``.
        shards: Of ``labels``: how many pieces of the sorted examples each client has, at least 1. Default: 2.
        epochs: Epochs of a client in a round, at least 1. Default: 5.
        fraction: Share of the clients that train in a round, above 0, up to 1; at least one does. Default: 1.
        labels: ``none``: the clients' labels are not looked at, and models label their images; or ``own``.
            Default: ``none``.
    """

    count: int = 10
    split: Literal["even", "labels", "own"] = "even"
    shards: int = 2
    epochs: int = 5
    fraction: float = 1.0
    labels: Literal["none", "own"] = "none"

    def __post_init__(self) -> None:
        _at_least_one(self, "count", "shards", "epochs")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")


@dataclass(frozen=True)
class ServerConfig:
    """The section ``server``: the labelled examples that the server keeps, and how it trains on them.

    Attributes:
        examples: How many training examples the server has with their labels, at least 0; clients have the others.
            Default: 0, the server only averages.
        epochs: Epochs of the server in a round, at least 1. Default: 5.
        alternate: Train on the average of the clients, so that the next round's labels are of a model that has just
            seen true ones. False: train beside the clients, from the same model, and be averaged with them.
            Default: True.
    """

    examples: int = 0
    epochs: int = 5
    alternate: bool = True

    def __post_init__(self) -> None:
        _at_least_one(self, "epochs")
        if self.examples < 0:
            raise ValueError(f"examples must be at least 0, got {self.examples}")


@dataclass(frozen=True)
class SelectionConfig:
    """The section ``select``: which images of a client are trained on, under labels that models give.

    Attributes:
        threshold: Least probability of the likeliest class, 0 to 1. Default: 0.95.
        per_class: How many images each class takes at most, the surest first; at least 1. Default: None, all.
        mix_alpha: Both parameters of the Beta distribution of MixUp's share, above 0. Default: 0.75.
        mix_weight: Weight of the loss on mixed images beside that on the images, at least 0. Default: 1.
    """

    threshold: float = 0.95
    per_class: int | None = None
    mix_alpha: float = 0.75
    mix_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or self.mix_alpha <= 0 or self.mix_weight < 0:
            raise ValueError(
                "threshold must be from 0 to 1, mix_alpha above 0 and mix_weight at least 0, got "
                f"{self.threshold}, {self.mix_alpha} and {self.mix_weight}"
            )
        if self.per_class is not None:
            _at_least_one(self, "per_class")


@dataclass(frozen=True)
class FederatedConfig:
    """A federated run.

    Attributes:
        run_name: Name of its run in the archive.
        recipe: How every part trains: a recipe's file or the name of one that comes with the library. Its duration,
            archive and recorder do not count.
        archive: Folder or URL; every client sees it where there is a teacher. Default: ``./archive``.
        folder: Where each part keeps its checkpoint between rounds. Default: ``./federated``.
        rounds: At least 1. Default: 10.
        overrides: What is changed in the recipe, as nested sections.
        tags: Labels to select and group runs by.
        teacher: Archived runs that label the clients' images in the first round, see
            :data:`~reuse_algos.priors.choosing.RunSelection`. Default: None, the model that the server sends.
        keep_optimizer: Whether each part goes on with the state of its optimizer (its momentum) in the next round.
            False starts it again in each round, as the papers do. Default: False.
        clients: Who trains, on what.
        server: The labelled examples that the server keeps.
        select: Which images are trained on, under labels that models give.
    """

    run_name: str
    recipe: str
    archive: str = "./archive"
    folder: str = "./federated"
    rounds: int = 10
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    teacher: Any = None
    keep_optimizer: bool = False
    clients: ClientsConfig = field(default_factory=ClientsConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    select: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        _at_least_one(self, "rounds")
        if self.clients.labels == "none" and self.server.examples == 0 and self.teacher is None:
            raise ValueError(
                "nobody has labels: set server.examples, clients.labels: own, or a teacher that labels the first round"
            )


def load_federated(path: str | Path, overrides: Iterable[str] = ()) -> FederatedConfig:
    """Read the file of a federated run.

    Args:
        path: The YAML file, or the name of one that comes with the library, such as ``federated/digits``.
        overrides: ``dotted.key=value`` texts that change its values, such as ``clients.count=4``. Default: none.

    Raises:
        RecipeError: With all faults, one per line.
    """
    values = _read(recipe_path(str(path)), "a federated run must be a mapping of keys, such as run_name: federated-1")
    faults = Faults(str(path))
    apply_overrides(values, overrides, faults)
    fitted = fit(resolve(values, faults).values, FederatedConfig, "", faults)
    faults.raise_if_any("federated run")
    return fitted


def part_recipe(config: FederatedConfig, epochs: int, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe that a client or the server trains by.

    Args:
        config: The federated run.
        epochs: Epochs of this part in a round. The recipe's schedule goes over those of all rounds.
        changes: Further values, as nested sections. Default: none.

    Raises:
        RecipeError: The recipe has faults (all of them are listed), or sets nothing up that trains.
    """
    path = recipe_path(config.recipe)
    values = _read(path, "a recipe must be a mapping of keys, such as max_duration: 40ep")
    if not values or values.get("label") is not None:
        raise RecipeError(f"{path} is not a recipe that trains. Name one with data, model and optimizer")
    merge_sections(values, config.overrides)
    # After the overrides: a client's own data file is a fact of its machine.
    merge_sections(values, changes or {})
    # The server records the rounds; what a part does within one is its own.
    callbacks = {name: one for name, one in (values.get("callbacks") or {}).items() if name != "run_recorder"}
    values |= {
        "run_name": config.run_name,
        # Without an algorithm that reuses, a part needs no access to the archive.
        "archive": config.archive if values.get("algorithms") else None,
        "callbacks": callbacks,
        "max_duration": f"{config.rounds * epochs}ep",
        "save_folder": None,
        "autoresume": False,
        "progress_bar": False,
    }
    return compose_recipe(values, source=str(path))


def _read(path: Path, wanted: str) -> dict[str, Any]:
    """Return the values of a YAML file; none of an empty one."""
    faults = Faults(str(path))
    text = read_text(path, faults)
    values = None if text is None else parse_yaml(text, faults)
    if not isinstance(values, dict | None):
        faults.add("", wanted)
    faults.raise_if_any()
    return values or {}


def _at_least_one(section: Any, *names: str) -> None:
    for name in names:
        if getattr(section, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(section, name)}")
