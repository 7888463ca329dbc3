"""Attacks in recipes: their names, their faults, and what a run of them records."""

import pytest

from reuse_algos.algorithms import AdversarialReplay
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RobustEvaluation
from reuse_algos.errors import RecipeError, SignalNotFoundError
from reuse_algos.harvest import harvest
from reuse_algos.recipe import build_trainer, compose_recipe
from reuse_algos.recipe.registry import find, names
from reuse_algos.training.attacks import Attack


def values(archive, **extra):
    return {
        "max_duration": "2ep",
        "archive": str(archive),
        "data": {"name": "digits", "batch_size": 32, "train_examples": 128, "eval_batch_size": 360},
        "model": {"name": "digits_cnn", "width": 4},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "device": "cpu",
        "progress_bar": False,
        **extra,
    }


def fit(settings):
    trainer = build_trainer(compose_recipe(settings))
    try:
        trainer.fit()
    finally:
        trainer.close()


def test_recipes_can_name_them():
    assert find("callback", "robust_evaluation").cls is RobustEvaluation
    assert find("algorithm", "adversarial_replay").cls is AdversarialReplay
    assert {"robust_evaluation", "run_recorder"} <= set(names("callback"))


def test_faults_are_listed_together(tmp_path):
    settings = values(
        tmp_path,
        algorithms={"adversarial_replay": {"runs": "x", "mismatch": "ignore"}},
        callbacks={"robust_evaluation": {"attacks": {"pgd": {"step": 3}}, "interval": "1ep"}},
    )
    with pytest.raises(RecipeError) as caught:
        build_trainer(compose_recipe(settings, source="x.yaml"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.yaml: 2 errors in the recipe"
    assert "mismatch must be 'refuse' or 'allow', got 'ignore'" in lines[1]
    assert "attacks.pgd: no field 'step'. Did you mean 'steps'" in lines[2]
    with pytest.raises(RecipeError, match="algorithms.adversarial_replay.mode.name: there is no 'add'"):
        compose_recipe(values(tmp_path, algorithms={"adversarial_replay": {"runs": "x", "mode": "add"}}))
    with pytest.raises(RecipeError, match="callbacks.robust_evaluation.examples: must be a whole number"):
        compose_recipe(values(tmp_path, callbacks={"robust_evaluation": {"examples": "many"}}))
    with pytest.raises(RecipeError, match="callbacks.robust_evaluation.interval: must be a time such as"):
        compose_recipe(values(tmp_path, callbacks={"robust_evaluation": {"interval": "often"}}))


def test_a_baseline_a_harvest_and_a_replay(tmp_path):
    robust = {"robust_evaluation": {"attacks": {"fgsm": {"epsilon": "16/255"}}, "examples": 90}, "run_recorder": {}}
    fit(values(tmp_path, run_name="baseline", callbacks=robust))
    replay = {"adversarial_replay": {"runs": "baseline", "perturbations": {"warn_below": 0}}}
    with pytest.raises(SignalNotFoundError, match="reuse-algos harvest .* --signals adversarial"):
        fit(values(tmp_path, run_name="early", callbacks=robust, algorithms=replay))
    attack = Attack(method="fgsm", epsilon=16 / 255)
    harvest(tmp_path, "baseline", signals=("adversarial",), attack=attack, progress=False)
    fit(values(tmp_path, run_name="replayed", callbacks=robust, algorithms=replay))
    archive = RunArchive(tmp_path, create=True)
    baseline, replayed = archive.run("baseline"), archive.run("replayed")
    for run in (baseline, replayed):
        history = run.metric("metrics/eval/robust/FGSMAccuracy")
        assert history.epoch.tolist() == [1, 2]
        assert all(value * 90 == pytest.approx(round(value * 90)) for value in history.value)
    assert "reuse/adversarial_replay/fooling" in replayed.metric_names
    assert [use.run_id for use in replayed.manifest.prior_runs] == [baseline.id]
    assert set(baseline.weights("last")) == set(replayed.weights("last"))
