"""Recipes as a whole: defaults, names, and all faults in one error."""

import json

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import pytest
import torch
from composer import Algorithm
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from omegaconf import OmegaConf

from reuse_algos.errors import RecipeError
from reuse_algos.presets import preset
from reuse_algos.recipe import Settings, compose_recipe, load_recipe
from reuse_algos.recipe.registry import find, names

GOOD = {
    "max_duration": "2ep",
    "model": {"name": "digits_cnn"},
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def message(values, overrides=()):
    with pytest.raises(RecipeError) as caught:
        compose_recipe(values, overrides, source="x.yaml")
    return str(caught.value)


def test_defaults_and_derived_run_name():
    recipe = compose_recipe({**GOOD, "save_folder": "checkpoints/${run_name}"})
    assert recipe.settings.run_name == "digits-digits_cnn-17"
    assert recipe.settings.save_folder == "checkpoints/digits-digits_cnn-17"
    assert recipe.settings.data.batch_size == 128
    tagged = compose_recipe({**GOOD, "tags": {"method": "baseline", "wave": 3}}, ["seed=5"])
    assert tagged.settings.run_name == "digits-digits_cnn-baseline-5"
    assert tagged.settings.tags == {"method": "baseline", "wave": "3"}
    assert compose_recipe({**GOOD, "run_name": "mine-${seed}"}, ["seed=5"]).settings.run_name == "mine-5"


def test_the_caller_s_mapping_is_left_alone():
    values = {**GOOD, "tags": {"a": "b"}}
    before = json.dumps(values)
    compose_recipe(values, ["tags.a=c", "optimizer.lr=1"])
    assert json.dumps(values) == before


def test_record_is_json_and_makes_the_same_recipe_again():
    recipe = compose_recipe({**GOOD, "algorithms": {"mix_up": {"alpha": 0.3}}, "tags": {"method": "m"}}, ["seed=3"])
    assert recipe.record["algorithms"] == {"mixup": {"alpha": 0.3}}
    again = compose_recipe(json.loads(json.dumps(recipe.record)))
    assert again.settings == recipe.settings


@pytest.mark.parametrize("logger", ["wandb", "wandb_logger"])  # one name of it and the other
def test_texts_from_the_environment_are_not_recorded(monkeypatch, logger):
    monkeypatch.setenv("RECIPE_PROJECT", "secret-project")
    monkeypatch.setenv("RECIPE_SEED", "23")
    values = {**GOOD, "seed": "${oc.env:RECIPE_SEED}", "loggers": {logger: {"project": "${oc.env:RECIPE_PROJECT}"}}}
    recipe = compose_recipe(values)
    assert recipe.settings.loggers["wandb"]["project"] == "secret-project"
    assert recipe.record["loggers"]["wandb"]["project"] == "${oc.env:RECIPE_PROJECT}"
    assert recipe.settings.seed == recipe.record["seed"] == 23


def test_components_can_be_switched_on_and_off_without_options():
    values = {
        **GOOD,
        "callbacks": {"lr_monitor": None, "speed_monitor": True, "nan_monitor": {}, "early_stopper": False},
    }
    recipe = compose_recipe(values, ["algorithms.label_smoothing.smoothing=0.2", "callbacks.nan_monitor=false"])
    assert recipe.settings.callbacks == {"lr_monitor": {}, "speed_monitor": {}}
    assert recipe.settings.algorithms == {"label_smoothing": {"smoothing": 0.2}}


def test_a_preset_is_written_out_and_what_stands_beside_it_wins():
    section = {"preset": "same_data", "runs": ["a"], "loss": {"weight": 0.5}}
    recipe = compose_recipe({**GOOD, "archive": "a", "algorithms": {"prior_run_distillation": section}})
    recorded = recipe.record["algorithms"]["prior_run_distillation"]
    expected = preset("same_data")["prior_run_distillation"]
    expected["loss"]["weight"] = 0.5
    assert recorded == {**expected, "runs": ["a"]}
    (component,) = recipe.components["algorithms"]
    assert (component.options["loss"].scale, component.options["loss"].weight) == (expected["loss"]["scale"], 0.5)


@pytest.mark.parametrize(
    ("name", "situation", "fault"),
    [
        (
            "prior_run_distillation",
            "same_date",
            "there is no preset 'same_date' of prior_run_distillation. Did you mean",
        ),
        ("prior_run_warm_start", "same_data", "there is no preset 'same_data' of prior_run_warm_start"),
        ("mixup", "same_data", "there is no preset 'same_data' of mixup."),
        ("prior_run_distillation", 3, "there is no preset 3 of prior_run_distillation."),
    ],
)
def test_presets_of_other_algorithms_are_refused(name, situation, fault):
    said = message({**GOOD, "archive": "a", "algorithms": {name: {"preset": situation, "runs": ["a"]}}})
    assert f"algorithms.{name}.preset: {fault}" in said


def test_empty_sections_and_null_scheduler():
    recipe = compose_recipe({**GOOD, "data": None, "algorithms": None, "tags": None, "scheduler": None})
    assert recipe.settings.scheduler is None
    assert recipe.settings.algorithms == {} == recipe.settings.tags
    assert recipe.settings.data.name == "digits"


def test_settings_are_an_omegaconf_structured_config():
    config = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.create(GOOD))
    assert config.model.name == "digits_cnn"


def test_all_faults_of_all_kinds_at_once():
    values = {
        "max_duration": "40",
        "seed": "x",
        "precison": "fp32",
        "data": {"nam": "digits", "batch_size": "big", "augment": "flip"},
        "model": {"name": "resnet57", "widht": 3},
        "optimizer": {"name": "sgd", "momentun": 0.9, "lr": "high"},
        "scheduler": {"name": "cosine_warmup"},
        "algorithms": {
            "label_smoothin": {},
            "mixup": {"alpha": "a"},
            "mix_up": {},
            "channels_last": {"x": 1},
            "prior_run_distillation": {
                "sorce": 3,
                "runs": {"tag": {}, "limit": "many", "if_empty": "skp"},
                "archive": "x",
            },
        },
        "callbacks": {"run_recorder": {"signals": {"logit": {}}}, "lr_monitor": 5, "os.system": {}},
        "loggers": {"wandb": {"projekt": "p"}},
        "eval_interval": "0ep",
        "tags": {"a": [1]},
        "device_train_microbatch_size": 0,
        "save_folder": "${nope}",
        "autoresume": True,
    }
    lines = message(values, ["oops", "data.batch_size.x=1"]).splitlines()
    assert lines[0] == f"x.yaml: {len(lines) - 1} errors in the recipe"
    known_callbacks = names("callback")
    shown = ", ".join(known_callbacks[:20]) + (", ..." if len(known_callbacks) > 20 else "")
    assert [line.removeprefix("  ") for line in lines[1:]] == [
        "'oops': is not a key=value override. Write for example optimizer.lr=0.05",
        "'data.batch_size.x=1': data.batch_size is 'big', which has nothing inside it",
        "save_folder: there is no key 'nope' for ${nope} to take its value from",
        "seed: must be a whole number, not 'x'",
        "precison: there is no such key. Did you mean 'precision'?",
        "tags.a: must be text, not a list",
        "data.nam: there is no such key. Did you mean 'name'?",
        "data.batch_size: must be a whole number, not 'big'",
        "data.augment: unknown value 'flip'. Did you mean 'crop_flip'?",
        "model.widht: there is no such key. Did you mean 'width' or 'weights'?",
        "model.name: there is no model 'resnet57'. Did you mean 'resnet56' or 'resnet50' or 'resnet152'?",
        "device_train_microbatch_size: must be 1 or more, 'auto' or null, not 0",
        "autoresume: needs a save_folder to find checkpoints in",
        "eval_interval: must be above 0, not '0ep'. Write for example 1ep, 100ba or 0.5dur",
        "max_duration: '40' is not a time. Write for example 40ep or 5000ba",
        "optimizer.momentun: SGD has no such option. Did you mean 'momentum'?",
        "optimizer.lr: must be a number, not 'high'",
        "scheduler.name: there is no scheduler 'cosine_warmup'. Did you mean 'cosine_with_warmup' or "
        "'linear_with_warmup' or 'constant_with_warmup'?",
        "algorithms.label_smoothin: there is no algorithm 'label_smoothin'. Did you mean 'label_smoothing'?",
        "algorithms.mixup.alpha: must be a number, not 'a'",
        "algorithms.mix_up: is another name of algorithms.mixup, which is there too. Keep one",
        "algorithms.channels_last.x: ChannelsLast has no such option. It takes no options.",
        "algorithms.prior_run_distillation.sorce: PriorRunDistillation has no such option. Did you mean 'source'?",
        "algorithms.prior_run_distillation.archive: is filled in from the recipe and cannot be set here",
        "algorithms.prior_run_distillation.runs.if_empty: must be 'refuse' or 'skip', got 'skp'",
        "algorithms.prior_run_distillation.runs.tag: runs has no such option. Did you mean 'tags'?",
        "algorithms.prior_run_distillation.runs.limit: must be a whole number or null, not 'many'",
        "callbacks.run_recorder.signals: RunRecorder signals: no signal 'logit' can be captured. "
        "Did you mean 'logits' or 'logit_margin'?",
        "callbacks.lr_monitor: must be a section of options, true or false, not 5",
        f"callbacks.os.system: there is no callback 'os.system'. Known: {shown}.",
        "loggers.wandb.projekt: WandBLogger has no such option. Did you mean 'project'?",
        "archive: missing. algorithms.prior_run_distillation and callbacks.run_recorder need it. "
        "Write for example archive: ./archive",
    ]


def test_what_an_empty_recipe_is_missing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}: 3 errors in the recipe\n"
        "  model.name: missing. Write for example model: {name: resnet20}\n"
        "  max_duration: missing. Write for example max_duration: 40ep\n"
        "  optimizer.name: missing. Write for example optimizer: {name: sgd, lr: 0.1}"
    )


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("max_duration=1dur", "max_duration: cannot be counted in 'dur'. Write for example 40ep or 5000ba"),
        ("seed=-1", "seed: must be between 0 and 4294967295, not -1"),
        ("device=cuda", "device: must be one of cpu, gpu, mps, not 'cuda'"),
        ("compile=fast", "compile: must be true, false or a section of options for torch.compile, not 'fast'"),
        ("dist_timeout=0", "dist_timeout: must be above 0 seconds, not 0.0"),
        ("autoresume=true", "autoresume: needs a save_folder to find checkpoints in"),
        ("eval_subset_num_batches=0", "eval_subset_num_batches: must be 1 or more, or -1 for all, not 0"),
        ("run_name=''", "run_name: must not be empty. Leave it out to have one made"),
        ("scheduler={t_max: 1dur}", "scheduler.name: missing. Write for example scheduler: {name: cosine_annealing}"),
        ("optimizer={name: 3}", "optimizer.name: must be text, not 3"),
        ("optimizer={name: lbfgs}", "optimizer.name: there is no optimizer 'lbfgs'."),
        ("optimizer.params=[]", "optimizer.params: is filled in from the recipe and cannot be set here"),
        ("model=resnet20", "model: must be a section of keys, not 'resnet20'"),
        ("data.name=npz", "data.path: the npz dataset needs the path of its file"),
        ("algorithms=[mixup]", "algorithms: must be a section of keys, not a list"),
        ("model.name=???", "model.name: missing (the recipe has ??? here). Give it a value"),
    ],
)
def test_single_faults(override, fault):
    lines = message(GOOD, [override]).splitlines()
    assert lines[0] == "x.yaml: 1 error in the recipe"
    assert len(lines) == 2
    assert lines[1].startswith("  " + fault)


def test_a_recipe_that_is_not_a_mapping_and_broken_files(tmp_path):
    path = tmp_path / "x.yaml"
    for text, what in (
        ("- a", "a recipe must be a mapping of keys, such as max_duration: 40ep"),
        ("a: [1", "line 1, column 6: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert str(caught.value) == f"{path}: 1 error in the recipe\n  {what}"


def test_duplicate_keys_are_listed_beside_other_faults(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("max_duration: 1ep\nmodel: {name: resnet20}\noptimizer: {name: sgd, lr: 0.1, lr: 0.2}\nseeed: 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines()[1:] == [
        "  optimizer.lr: given twice (line 3). Keep one",
        "  seeed: there is no such key. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("kind", "package", "bases"),
    [
        ("algorithm", composer.algorithms, (Algorithm,)),
        ("callback", composer.callbacks, (composer.Callback,)),
        ("logger", composer.loggers, (composer.loggers.LoggerDestination,)),
        ("scheduler", composer.optim, ()),
    ],
)
def test_everything_of_composer_can_be_named(kind, package, bases):
    listed = {find(kind, name).cls for name in names(kind)}
    for attribute in package.__all__:
        cls = getattr(package, attribute)
        is_kind = isinstance(cls, type) and (issubclass(cls, bases) if bases else attribute.endswith("Scheduler"))
        if is_kind and attribute not in ("LoggerDestination", "ComposerScheduler"):
            assert cls in listed, attribute


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("algorithm", "label_smoothing", "LabelSmoothing"),
        ("algorithm", "cutmix", "CutMix"),
        ("algorithm", "cut_mix", "CutMix"),
        ("algorithm", "ema", "EMA"),
        ("algorithm", "prior_run_distillation", "PriorRunDistillation"),
        ("callback", "lr_monitor", "LRMonitor"),
        ("callback", "mlperf", "MLPerfCallback"),
        ("callback", "run_recorder", "RunRecorder"),
        ("logger", "wandb", "WandBLogger"),
        ("logger", "wandb_logger", "WandBLogger"),
        ("logger", "tensorboard", "TensorboardLogger"),
        ("logger", "in_memory", "InMemoryLogger"),
        ("optimizer", "sgd", "SGD"),
        ("optimizer", "adamw", "AdamW"),
        ("optimizer", "decoupled_sgdw", "DecoupledSGDW"),
        ("optimizer", "decoupled_adamw", "DecoupledAdamW"),
        ("scheduler", "cosine_with_warmup", "CosineAnnealingWithWarmupScheduler"),
        ("scheduler", "cosine_annealing_with_warmup", "CosineAnnealingWithWarmupScheduler"),
        ("scheduler", "cosine_annealing", "CosineAnnealingScheduler"),
        ("scheduler", "multi_step", "MultiStepScheduler"),
        ("scheduler", "exponential", "ExponentialScheduler"),
        ("scheduler", "exponential_scheduler", "ExponentialScheduler"),
    ],
)
def test_names(kind, name, cls):
    assert find(kind, name).cls.__name__ == cls


def test_there_are_no_import_paths():
    assert find("optimizer", "torch.optim.SGD") is None
    assert find("algorithm", "composer.algorithms.MixUp") is None
    assert find("algorithm", "reusing_algorithm") is None
    assert issubclass(find("optimizer", "adam").cls, torch.optim.Optimizer)


_PATHS = [
    ("seed",), ("tags",), ("tags", "a"), ("data",), ("data", "batch_size"), ("data", "classes"), ("data", "name"),
    ("data", "train_fraction"), ("model",), ("model", "name"), ("model", "width"), ("optimizer",),
    ("optimizer", "name"),
    ("optimizer", "lr"), ("scheduler",), ("scheduler", "name"), ("algorithms",), ("algorithms", "mixup"),
    ("algorithms", "mixup", "alpha"), ("algorithms", "prior_run_distillation"), ("archive",), ("run_name",),
    ("algorithms", "prior_run_distillation", "runs"), ("callbacks", "run_recorder"), ("max_duration",), ("compile",),
    ("callbacks", "run_recorder", "signals"), ("loggers", "wandb", "tags"), ("eval_interval",), ("precision",),
    ("device_train_microbatch_size",), ("python_log_level",), ("dist_timeout",), ("unknown", "key"),
]  # fmt: skip
_TEXTS = st.sampled_from(
    ["", "${seed}", "${nope}", "${", "???", "1ep", "x", "\x00", "true", "a.b", "${oc.env:HOME}", "é"]
)
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3))


@limits(max_examples=50, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(_PATHS), _VALUES), max_size=4))
def test_whatever_is_written_is_composed_or_refused(changes):
    values = json.loads(json.dumps(GOOD))
    for path, value in changes:
        section = values
        for key in path[:-1]:
            section = section.setdefault(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section[path[-1]] = value
    try:
        recipe = compose_recipe(values)
    except RecipeError:
        return
    json.dumps(recipe.record)
    assert compose_recipe(recipe.record).settings.seed == recipe.settings.seed
