"""What a sequence file can say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class FirstConfig:
    """How an arm's first step is trained, in place of the arm's own ``recipe``, ``overrides`` and ``tags``.

    Attributes:
        recipe: What it is trained by: name or ``.yaml`` file. Default: null, the arm's and then the sequence's.
        overrides: Changes to the recipe of this step.
        tags: Further tags of its run.
    """

    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class StepConfig:
    """One step, or one for each point of its ``grid``.

    Attributes:
        name: What it is called; with a grid, the beginning of what its steps are called. Default: the grid's values,
            else ``step-1``, ``step-2``, ...
        recipe: What it is trained by: name or ``.yaml`` file. Default: null, the arm's and then the sequence's.
        overrides: Changes to the recipe of this step.
        tags: Further tags of its run.
        grid: Recipe key -> list of values, for this step only. Default: none.
        judge: Whether the arm is judged by this step's metric. Its cost always counts. A step that labels a pool has no
            metric, and never is. Default: true.
    """

    name: str | None = None
    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    judge: bool = True


@dataclass
class HarvestConfig:
    """How one signal of an arm's runs is harvested: arguments of :func:`reuse_algos.harvest.harvest`.

    Attributes:
        views: Views 0 to views-1 of each example. Default: null, those of the run; for scores the plain one.
        weights: Which archived weights look at the data. Default: last.
        top_k: Number of the largest logits that are kept. Default: null, all.
        plain: Whether features are of the examples without augmentation. Default: false.
        attack: Of adversarial: fields of :class:`reuse_algos.training.attacks.Attack`; sizes may be fractions
            (``8/255``). Default: null, its defaults.
        bits: Of adversarial: bits for a number. Default: null, 2 for ``linf`` and 8 for ``l2``.
        batch_size: Examples at once. Default: null, as many as suit the signal.
    """

    views: int | None = None
    weights: str = "last"
    top_k: int | None = None
    plain: bool = False
    attack: dict[str, Any] | None = None
    bits: int | None = None
    batch_size: int | None = None


@dataclass
class ArmConfig:
    """One way to train all steps, such as with or without the algorithms that reuse earlier runs.

    Attributes:
        recipe: What its steps are trained by: name or ``.yaml`` file. Default: null, the sequence's.
        overrides: Changes to the recipes of this arm.
        tags: Further tags of its runs.
        first: The arm's first step, which has no prior runs; null where it is trained as the others are.
        grid: This arm's own grid in place of the sequence's; null for the sequence's.
        steps: This arm's own steps in place of the sequence's; null for the sequence's.
        harvest: Signal -> how it is harvested of each of the arm's runs, once the run is trained and before a step that
            reuses it starts: ``{adversarial: {attack: {epsilon: 8/255}}}``.
    """

    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    first: FirstConfig | None = None
    grid: dict[str, Any] | None = None
    steps: list[StepConfig] | None = None
    harvest: dict[str, HarvestConfig] = field(default_factory=dict)


@dataclass
class SampleConfig:
    """Values drawn at random, log-uniformly and evenly spread, in place of lists of values.

    Attributes:
        over: Recipe key -> lowest and highest value, above 0: ``{optimizer.lr: [0.001, 1.0]}``. Several keys are drawn
            together.
        count: Number of points. Default: 8.
        seed: Of the draw. Default: 0.
    """

    over: dict[str, Any] = field(default_factory=dict)
    count: int = 8
    seed: int = 0


@dataclass
class HalvingConfig:
    """Successive halving: all values get a small budget, and the best ones a larger one.

    Attributes:
        rungs: Number of rounds, from 2. The last one trains for the recipe's ``max_duration``. Default: 3.
        eta: Each rung trains ``eta`` times as long as the one before, and one value of ``eta`` goes on. Default: 4.
        arms: Arms that search so; the others train every value in full. Default: None, all arms.
        later: Overrides of every rung after the first, such as algorithms that let the rung before teach it. In their
            queries the tag ``rung: previous`` means that rung. Default: none.
    """

    rungs: int = 3
    eta: int = 4
    arms: list[str] | None = None
    later: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchConfig:
    """What is searched for.

    Attributes:
        key: Key of the grid or of the sample, whose best value the report names for each arm.
        halving: How values are dropped before they are trained in full. Default: None, every value is.
    """

    key: str = ""
    halving: HalvingConfig | None = None

    def rungs_in(self, arm: str) -> HalvingConfig | None:
        """Return how an arm is searched; None where every value is trained in full."""
        halving = self.halving
        return None if halving is None or (halving.arms is not None and arm not in halving.arms) else halving


@dataclass
class SequenceConfig:
    r"""All keys of a sequence file.

    A step's recipe is read, then ``overrides`` are merged into it: those of the sequence, of the arm, of the step, and
    the values of the grid, later ones winning. ``overrides`` has the recipe's own keys; a section is merged key by key
    (an ``optimizer`` or ``scheduler`` of another ``name`` takes its place), and ``algorithms: {mixup: false}`` switches
    one off. ``${name}`` and the like take their values from the sequence
    file; ``\${seed}`` is left to the recipe.

    Every step's run gets the tags ``sequence``, ``arm`` and ``step``, so that an algorithm's query for the runs of the
    steps before is ``runs: {tags: {sequence: ${name}, arm: reuse}, order: latest, limit: 1}``. The tags ``study`` and
    ``method`` are the sequence's and the arm's name unless ``tags`` say otherwise, for ``reuse-algos compare``.

    Attributes:
        name: Of the sequence: letters, digits and ``._-``. Its runs are known by it.
        archive: Folder or URL of the archive.
        folder: Where the recipes, logs and checkpoints of the steps are kept.
        recipe: What a step is trained by: the name of a recipe that comes with the library (``digits/baseline``), or a
            ``.yaml`` file, relative to the sequence file.
        overrides: Changes to the recipe of every step.
        tags: Further tags of every run.
        ranks: Processes per step; more than one go through Composer's launcher.
        grid: Recipe key -> list of values: every combination is a step of its own, the last key changing fastest.
        steps: The steps, in order; by default one (for each point of the grid).
        arms: Name -> arm. Their first steps are run first, then the second ones, and so on, so that a machine that
            grows slow slows all arms alike.
        baseline: The arm that the others are compared with; ``without`` if there is such an arm. null: nothing is
            compared.
        sample: Values drawn at random, for every point of the grid; null where none are drawn.
        search: Key whose best value the report names, for each arm, or a section (``{key: optimizer.lr, halving:
            {rungs: 3}}``); null where nothing is searched for. Steps that an arm's ``first`` trained do not count, as
            far as others have the same value.
        use_held: Whether a step is not trained that the archive holds already, from another study with the same
            recipe; null: where something is searched for.
        metric: By which steps are judged; null is the metric that the runs themselves monitor.
    """

    name: str = MISSING
    archive: str = "./archive"
    folder: str = "./sequences/${name}"
    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ranks: int = 1
    grid: dict[str, Any] = field(default_factory=dict)
    # One step by default, so that a grid alone is a sequence.
    steps: list[StepConfig] = field(default_factory=lambda: [StepConfig()])
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    baseline: str | None = None
    sample: SampleConfig | None = None
    search: SearchConfig | None = None
    use_held: bool | None = None
    metric: str | None = None

    # Where the file is: recipes are looked up relative to its folder, and errors name it.
    source: str = field(default="sequence", metadata={"written": False})
