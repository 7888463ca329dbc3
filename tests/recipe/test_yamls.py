"""Every recipe in the tree is documented, composes and builds a Trainer."""

import re
from functools import cache
from pathlib import Path

import pytest

from reuse_algos.cli import build_parser
from reuse_algos.recipe import build_trainer, load_recipe

ROOT = Path(__file__).parents[2]
# Sequences and federated runs are not recipes: tests/test_sequence_yamls.py and tests/test_federated.py read them.
recipe_of = cache(load_recipe)
YAMLS = sorted(path for path in (ROOT / "yamls").rglob("*.yaml") if path.parent.name not in ("sequences", "federated"))


def test_the_tree_has_the_recipes_that_the_readme_of_each_study_needs():
    assert {str(path.relative_to(ROOT / "yamls").with_suffix("")) for path in YAMLS} >= {
        "digits/baseline",
        "digits/distilled",
        "digits/short",
        "digits/curriculum",
        "digits/pruned",
        "digits/dynamic_pruned",
        "digits/warm_start",
        "digits/feature_extraction",
        "digits/adversarial_replay",
        "digits/adversarial_training",
        "cifar100/resnet56/baseline",
        "cifar100/resnet56/distilled_kl",
        "cifar100/resnet56/distilled_mse_mixup",
        "cifar100/resnet56/distilled_first20",
        "cifar100/resnet56/distilled_every10",
        "cifar100/resnet56/distilled_one_of_five",
        "cifar100/resnet56/warm_start",
        "cifar100/resnet56/adversarial_replay",
        "cifar100/small/baseline",
        "cifar100/small/distilled_kl",
        "cifar100/small/distilled_mse",
        "cifar100/small/short",
        "cifar100/small/curriculum",
        "cifar100/small/pruned",
        "cifar100/small/dynamic_pruned",
        "cifar100/small/warm_start",
        "transfer/fine_tuning",
        "transfer/feature_extraction",
        "transfer/cached_features",
        "cifar100/small/adversarial_replay",
        "text/bbc_news/baseline",
        "text/bbc_news/short",
        "text/bbc_news/distilled",
        "text/bbc_news/distilled_first35",
        "text/bbc_news/curriculum_length",
        "text/bbc_news/curriculum_loss",
        "text/city_names/baseline",
        "text/city_names/distilled",
        "segmentation/digit_scenes/baseline",
        "segmentation/digit_scenes/distilled",
        "segmentation/digit_scenes/channel_wise",
        "segmentation/mni152/channel_wise",
        "detection/digit_boxes/baseline",
        "detection/digit_boxes/feature_distilled",
        "detection/digit_boxes/mix_training",
    }


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT / "yamls")))
def test_header_says_what_how_and_at_what_cost(path):
    text = path.read_text()
    assert text.startswith("# What:")
    assert f"composer -n 1 -m reuse_algos.train {path.relative_to(ROOT)}" in text
    assert "\n# Cost:" in text


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT / "yamls")))
def test_recipe_builds_a_trainer(path, small_npz, small_texts, on_cpu):
    overrides = list(on_cpu)
    if path.parent.parent.name == "text":
        pytest.importorskip("transformers")
        overrides += ["data.name=text_files", f"data.root={small_texts}", "data.train_examples=null"]
        overrides += ["data.batch_size=2", "data.eval_batch_size=null"]
    elif path.parent.name == "digit_boxes":
        pytest.importorskip("faster_coco_eval")
        overrides += ["data.scenes={train: 40, eval: 4, size: 32}"]
    elif path.parent.name == "digit_scenes":
        overrides += ["data.scenes={train: 40, eval: 4, size: 16}"]
    elif path.parent.name == "mni152":
        overrides += ["data.name=digit_scenes", "data.scenes={train: 10, eval: 4, size: 16}"]
    elif "digits" not in path.parts:
        overrides += ["data.name=npz", f"data.path={small_npz}", "data.batch_size=32"]
    if "small" in path.parts:
        overrides += ["data.train_examples=128"]
    if "transfer" in path.parts:
        overrides += ["model.weights=null", "model.name=resnet18", "data.num_workers=0"]
    recipe = load_recipe(path, overrides)
    trainer = build_trainer(recipe)
    state = trainer.state
    if path.parent.name != "grown":  # the demo trains each at several budgets, which are in the name
        assert state.run_name == f"{recipe.settings.tags['study']}-{recipe.settings.tags['method']}-1"
    wanted = {name.replace("_", "") for name in recipe.settings.algorithms}
    assert {type(algorithm).__name__.lower() for algorithm in state.algorithms} >= wanted
    assert "RunRecorder" in {type(callback).__name__ for callback in state.callbacks}
    assert len(state.evaluators) == 1
    trainer.close()


def test_commands_in_headers_parse():
    """Also those that are to be run before, such as harvests."""
    parser, checked = build_parser(), 0
    for path in YAMLS:
        for command in re.findall(r"^# .*?reuse-algos (.+)$", path.read_text(), flags=re.MULTILINE):
            arguments = parser.parse_args(command.split())
            names = {recipe_of(other).settings.run_name for other in YAMLS if other.parent == path.parent}
            assert arguments.run_id in names, path
            checked += 1
    assert checked == 8


def test_origin_recipe_of_resnet56():
    settings = load_recipe(ROOT / "yamls/cifar100/resnet56/baseline.yaml").settings
    assert settings.optimizer == {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    assert settings.scheduler == {"name": "exponential", "gamma": 0.975, "decay_period": "1ep"}
    assert (settings.data.name, settings.data.batch_size, settings.max_duration) == ("cifar100", 128, "200ep")


def test_recipes_of_grown_data_differ_in_what_grew_and_in_their_tuned_rates():
    """Each rate is the best for its recipe, and ``before`` has the data of before at a budget of its own."""
    recipes = [recipe_of(path).record for path in YAMLS if path.parent.name == "grown"]
    assert len(recipes) == 3
    for key in ("model", "scheduler", "precision", "seed", "archive", "eval_interval"):
        assert all(recipe[key] == recipes[0][key] for recipe in recipes), key
    for section, own in (("data", "train_examples"), ("optimizer", "lr")):
        parts = [{key: value for key, value in recipe[section].items() if key != own} for recipe in recipes]
        assert parts == [parts[0]] * 3, section
    assert [recipe["data"]["train_examples"] for recipe in recipes] == [500, 125, 500]


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in YAMLS if path.parent.name != "grown"}), ids=lambda path: path.name
)
def test_recipes_of_a_study_differ_only_where_they_say(folder):
    """What is compared must share data, model and optimizer; a budget is the baseline's or that of ``short``."""
    recipes = {path.stem: recipe_of(path) for path in YAMLS if path.parent == folder}
    base = recipes["baseline" if "baseline" in recipes else "fine_tuning"].record
    budgets = {recipes[name].record["max_duration"] for name in ("baseline", "short", "fine_tuning") if name in recipes}
    for name, recipe in recipes.items():
        for key in ("data", "model", "optimizer", "scheduler", "precision", "seed", "archive", "eval_interval"):
            assert recipe.record[key] == base[key], (name, key)
        assert name == "baseline" or recipe.record["max_duration"] in budgets
        assert recipe.settings.tags["study"] == base["tags"]["study"]
    methods = [recipe.settings.tags["method"] for recipe in recipes.values()]
    assert len(set(methods)) == len(methods)
