"""Warm starts as recipes: data that grew, together with the other algorithms, and what a user gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer

from reuse_algos.archive import RunArchive
from reuse_algos.errors import PriorRunMismatchError, RecipeError
from reuse_algos.recipe import build_trainer, load_recipe
from reuse_algos.recipe.shipped import shipped_recipe
from warming import Weights

QUICK = ["device=cpu", "progress_bar=false", "max_duration=2ep"]


def _train(name: str, archive: Path, *overrides: str) -> tuple[Trainer, Weights]:
    recipe = load_recipe(shipped_recipe(name), [*QUICK, f"archive={archive}", *overrides])
    one, seen = build_trainer(recipe), Weights()
    one.state.callbacks.append(seen)
    try:
        one.fit()
    finally:
        one.close()
    return one, seen


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a run on 250 of the digits, as the header of warm_start.yaml says."""
    path = tmp_path_factory.mktemp("half") / "archive"
    _train("digits/baseline", path, "data.train_examples=250", "run_name=digits-half-1", "tags.method=half")
    return path


def test_the_shipped_recipe(half: Path) -> None:
    _, seen = _train("digits/warm_start", half)
    archive = RunArchive(half, create=True)
    prior = archive.run("digits-half-1")
    for name, value in prior.weights("last").items():
        assert torch.equal(seen.first[name], value), name
    run = archive.run("digits-warm-start-1")
    assert [(use.run_id, use.weights) for use in run.manifest.prior_runs] == [(prior.id, ["last"])]
    assert run.metric("reuse/warm_start/loaded").final() == 1.0
    theirs, ours = prior.manifest.dataset, run.manifest.dataset
    assert theirs is not None
    assert ours is not None
    assert (theirs.num_examples, ours.num_examples) == (250, 500)


def test_together_with_distillation_and_focus_on_grown_data(half: Path) -> None:
    """Known examples have their signals; new ones go without the term, or get the median loss."""
    one, seen = _train(
        "digits/warm_start",
        half,
        "run_name=all",
        "max_duration=4ep",
        "algorithms.prior_run_distillation={runs: digits-half-1, source: cached, mismatch: allow}",
        "algorithms.prior_run_distillation.loss={name: kl, weight: 0.5}",
        "algorithms.prior_run_distillation.when={stop_when_harmful: false}",
        "algorithms.history_curriculum={runs: digits-half-1, strategy: focus, unknown: median, mismatch: allow}",
    )
    by_name = {type(algorithm).__name__: algorithm for algorithm in one.state.algorithms}
    archive = RunArchive(half, create=True)
    prior, run = archive.run("digits-half-1"), archive.run("all")
    assert torch.equal(seen.first["module.fc.weight"], prior.weights("last")["module.fc.weight"])
    curriculum: Any = by_name["HistoryCurriculum"]
    # 250 images in batches of 20, the last one of which is not full: the epoch that left the logits showed 240.
    known = torch.isin(run.keys(), prior.keys()[prior.signal("logits").seen(0)])
    assert int(known.sum()) == 240
    assert torch.equal(~torch.isnan(curriculum.scores_N), known)
    # The scores of known examples are the cross entropies of the archived logits, worked out here.
    logits = prior.signal("logits").dense(0)[0].float()
    assert prior.labels() is not None
    losses = torch.nn.functional.cross_entropy(logits, prior.labels(), reduction="none")  # type: ignore[arg-type]
    place = {int(key): row for row, key in enumerate(prior.keys())}
    rows = torch.tensor([place[int(key)] for key in run.keys()[known]])
    torch.testing.assert_close(curriculum.scores_N[known].float(), losses[rows], rtol=2e-2, atol=2e-3)
    coverage = run.metric("reuse/distillation/coverage").value
    assert all(0.1 < value < 0.95 for value in coverage), coverage
    uses = {use.algorithm: use for use in run.manifest.prior_runs}
    assert set(uses) == {"prior_run_warm_start", "prior_run_distillation", "history_curriculum"}
    assert {use.run_id for use in uses.values()} == {prior.id}


def test_without_allow_the_others_refuse_grown_data(half: Path) -> None:
    with pytest.raises(PriorRunMismatchError, match="250 examples are common by key"):
        _train(
            "digits/warm_start",
            half,
            "algorithms.prior_run_distillation={runs: digits-half-1, source: cached, loss: {name: kl, weight: 0.5}}",
        )


def test_new_classes_by_name(half: Path) -> None:
    path = half
    _train("digits/baseline", path, "data.classes=[3,5,7]", "data.train_examples=120", "run_name=three")
    settings = (
        "algorithms.prior_run_warm_start={runs: three, head: match, trainable: {freeze: backbone, unfreeze_at: 1ep}}"
    )
    one, seen = _train("digits/warm_start", path, settings, "data.classes=[7,0,3,1]", "data.train_examples=200")
    old = RunArchive(path).run("three").weights("last")
    for name in ("module.fc.weight", "module.fc.bias"):
        assert torch.equal(seen.first[name][0], old[name][2])
        assert torch.equal(seen.first[name][2], old[name][0])
    assert all(p.requires_grad for p in one.state.model.parameters()), "everything trains in the second epoch"
    with pytest.raises(PriorRunMismatchError, match="head: match or head: reset"):
        _train("digits/warm_start", path, "algorithms.prior_run_warm_start={runs: three}", "data.classes=[7,0,3,1]")


def test_faults_of_a_recipe(half: Path) -> None:
    wrong = "algorithms.prior_run_warm_start={runs: x, wieghts: last, source: [3], runs2: 1}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(shipped_recipe("digits/warm_start"), [wrong, f"archive={half}"])
    for word in ("wieghts: PriorRunWarmStart has no such option. Did you mean 'weights'", "source: must be text"):
        assert word in str(caught.value)
    wrong = "algorithms.prior_run_warm_start={runs: x, change: {shrink: 2}}"
    with pytest.raises(RecipeError, match="shrink must be above 0 and at most 1, got 2"):
        load_recipe(shipped_recipe("digits/warm_start"), [wrong, f"archive={half}", *QUICK])
