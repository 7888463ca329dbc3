"""Classes that were added, removed or reordered: distillation of the known ones, and examples that keep their label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Callback, State
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier

from distilling import Watch, series
from reuse_algos.algorithms import HistoryCurriculum, PriorRunDistillation
from reuse_algos.algorithms.prior_run_distillation import KL, MSE, Cached, Live
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.views import ViewedDataset, ViewPolicy
from reuse_algos.errors import PriorRunMismatchError
from reuse_algos.priors.choosing import match_examples
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.recipe.shipped import shipped_recipe
from shorthand import sections
from toy import NoisyDataset, blobs, epoch_loader, mlp, trainer
from warming import fit

THEN = ("a", "b", "c", "d")
NOW = ("new", "d", "b", "newer", "a")  # c is gone, two are new, and all have other numbers
OLD = [THEN.index(name) for name in NOW if name in THEN]
HERE = [number for number, name in enumerate(NOW) if name in THEN]


class Data(ViewedDataset):
    """Blobs whose examples have the keys 0, 1, ... and the class names given for them."""

    def __init__(self, labelled: list[tuple[int, str]], names: tuple[str, ...]) -> None:
        keys = torch.tensor([key for key, _ in labelled])
        labels = torch.tensor([names.index(name) for _, name in labelled])
        inner = blobs(128)
        inner.tensors = (inner.tensors[0][keys], labels)
        info = DatasetInfo("blobs", keys, labels, names)
        super().__init__(NoisyDataset(inner), ViewPolicy(seed=3, num_views=1, transform="noise(0.3)"), info)


BEFORE = [(key, THEN[key % 4]) for key in range(64)]
# Of those before: all but the c, the first of them relabelled; and 32 new examples of the new classes.
AFTER = [(0, "newer"), *BEFORE[1:]]
AFTER = [(key, name) for key, name in AFTER if name != "c"] + [(key, NOW[key % 2 * 3]) for key in range(64, 96)]
KNOWN = torch.tensor([key < 64 and key != 0 for key, _ in AFTER])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """A run on four classes, with the logits and losses of its only view."""
    path = tmp_path_factory.mktemp("classes")
    recorder = RunRecorder(path, run_name="before", signals={"logits": {}, "loss": {}}, weights=("last",))
    one = trainer(epoch_loader(Data(BEFORE, THEN)), mlp(1), callbacks=[recorder], max_duration="3ep")
    one.fit()
    one.close()
    return RunArchive(path, create=True)


def _student() -> ComposerClassifier:
    return mlp(5, num_classes=5)


class _Terms(Callback):
    """The loss before and after the term, and which examples were in the batch."""

    def __init__(self) -> None:
        self.plain: list[float] = []

    def after_loss(self, state: State, logger: Any) -> None:
        self.plain.append(float(state.loss))


@pytest.mark.parametrize("source", ["live", "cached"])
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_the_term_is_over_the_known_classes(store: RunArchive, source: str, loss: str) -> None:
    kind = KL(temperature=2.0, weight=0.5, base_weight=1.0) if loss == "kl" else MSE(weight=0.5, base_weight=1.0)
    teachers = Live(model=mlp) if source == "live" else Cached()
    algorithm = PriorRunDistillation(store, "before", source=teachers, loss=kind, mismatch="allow", when={})
    watch, terms, log, data = Watch(), _Terms(), InMemoryLogger(), Data(AFTER, NOW)
    trainer(
        epoch_loader(data),
        _student(),
        algorithms=[algorithm],
        callbacks=[watch, terms],
        loggers=[log],
        max_duration="1ep",
    ).fit()
    run = store.run("before")
    teacher = mlp()
    teacher.load_state_dict({name: value.clone() for name, value in run.weights("last").items()})
    teacher.eval()
    whole = torch.stack([data[position, 0][0] for position in range(len(data))])
    logits = run.signal("logits").dense(0)[0].float()
    for inputs, outputs, plain, total in zip(watch.inputs, watch.outputs, terms.plain, watch.losses, strict=True):
        rows = [int((whole - x).abs().sum(1).argmin()) for x in inputs]
        student = outputs[:, HERE].double()
        if source == "live":
            theirs, counts = teacher((inputs, None)).detach()[:, OLD].double(), torch.ones(len(rows))
        else:
            keys = [AFTER[row][0] for row in rows]
            theirs = logits[[key if key < 64 else 0 for key in keys]][:, OLD].double()
            counts = KNOWN[rows].float()
        if loss == "mse":
            each = (student - theirs).square().mean(1)
        else:
            p, q = F.softmax(theirs / 2, 1), F.log_softmax(student / 2, 1)
            each = 4 * (p * (p.log() - q)).sum(1)
        assert float(total) == pytest.approx(plain + 0.5 * float((counts * each).mean()), rel=1e-4)
    assert len(watch.losses) == 5
    wanted = float(KNOWN.float().mean()) if source == "cached" else 1.0
    assert sum(series(log, "reuse/distillation/coverage")) * 16 == pytest.approx(wanted * 80)


def test_refused_unless_allowed_and_where_names_do_not_tell(store: RunArchive) -> None:
    def start(data: Any, model: Any = None, **settings: Any) -> None:
        algorithm = PriorRunDistillation(
            store, "before", source="cached", when={}, **sections("distillation", settings)
        )
        fit([algorithm], model or _student(), data=data, max_duration="1ba")

    with pytest.raises(PriorRunMismatchError, match="has 4 classes, this run has 5.*Or say mismatch: allow, to distil"):
        start(Data(AFTER, NOW))
    one_left = [(key, name) for key, name in AFTER if name in ("a", "new")]
    with pytest.raises(PriorRunMismatchError, match="1 classes are common.*too few to distil"):
        start(Data(one_left, ("new", "a", "x", "y", "z")), mismatch="allow")
    twice = Data(AFTER, NOW)
    twice.info = DatasetInfo("blobs", twice.info.keys, twice.info.labels, ("new", "d", "b", "b", "a"))
    with pytest.raises(PriorRunMismatchError, match="cannot be matched by name: names are missing or not unique"):
        start(twice, mismatch="allow")
    with pytest.raises(PriorRunMismatchError, match=r"this run has 5 class names and logits of shape \(16, 6\)"):
        start(Data(AFTER, NOW), mlp(num_classes=6), mismatch="allow")


def test_labels_are_compared_by_name(store: RunArchive) -> None:
    rows = match_examples(store.run("before"), Data(AFTER, NOW).info, "allow")
    assert rows is not None
    assert rows.tolist() == [key if known else -1 for (key, _), known in zip(AFTER, KNOWN.tolist(), strict=True)]
    # One class in front of the others, as in a folder of images: the same examples, with other numbers.
    grown = ("0", *THEN)
    rows = match_examples(store.run("before"), Data([*BEFORE, (64, "0")], grown).info, "allow")
    assert rows is not None
    assert rows.tolist() == [*range(64), -1]
    # Names that are all other ones tell nothing: the numbers count.
    renamed = Data([*[(key, name.upper()) for key, name in BEFORE], (64, "A")], tuple("ABCD"))
    rows = match_examples(store.run("before"), renamed.info, "allow")
    assert rows is not None
    assert rows.tolist() == [*range(64), -1]


def test_a_curriculum_knows_the_examples_of_known_classes(store: RunArchive) -> None:
    curriculum = HistoryCurriculum(store, "before", strategy="focus", score="loss", unknown="median", mismatch="allow")
    fit([curriculum], _student(), data=Data(AFTER, NOW), max_duration="1ep")
    assert curriculum.scores_N is not None
    assert torch.equal(~curriculum.scores_N.isnan(), KNOWN)


def test_a_recipe_with_other_classes(tmp_path: Path) -> None:
    """Digits: three classes then, four now, two of them in common and in another order."""

    def train(name: str, *overrides: str) -> Any:
        quick = ["device=cpu", "progress_bar=false", "max_duration=2ep", f"archive={tmp_path}"]
        one = build_trainer(load_recipe(shipped_recipe(name), [*quick, *overrides]))
        one.fit()
        one.close()
        return one

    train("digits/baseline", "data.classes=[3,5,7]", "data.train_examples=120", "run_name=three")
    teach = "{runs: three, source: live, loss: {name: kl, weight: 0.5}, mismatch: allow}"
    settings = f"algorithms={{prior_run_distillation: {teach}}}"
    one = train("digits/short", settings, "data.classes=[7,0,3,1]", "data.train_examples=200")
    algorithm = next(a for a in one.state.algorithms if isinstance(a, PriorRunDistillation))
    assert algorithm.lessons.classes.here_M is not None
    assert algorithm.lessons.classes.here_M.tolist() == [0, 2]
    assert algorithm.lessons.classes.there[0].tolist() == [2, 0]
    assert RunArchive(tmp_path).run("digits-short-1").metric("reuse/distillation/loss").final() > 0
