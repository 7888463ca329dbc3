"""From recipe to Trainer: loaders, seeds, ranks, archive, loggers."""

import copy
import re

import pytest
import torch
from composer.core import Time
from composer.optim import LinearScheduler
from composer.utils import dist
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.data.datasets.load import DataConfig, load_datasets
from reuse_algos.data.example_ids import track_loader
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages
from reuse_algos.errors import RecipeError
from reuse_algos.recipe import build_trainer, compose_recipe
from reuse_algos.recipe.build import check_world_size, eval_loader, train_loader


def values(**extra):
    base = {
        "max_duration": "1ep",
        "data": {"name": "digits", "batch_size": 64, "train_examples": 256},
        "model": {"name": "digits_cnn", "width": 4},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "device": "cpu",
        "progress_bar": False,
    }
    return {**base, **extra}


@pytest.fixture
def build():
    """Build Trainers and close them after the test."""
    trainers = []

    def builder(settings, overrides=()):
        trainers.append(build_trainer(compose_recipe(settings, overrides)))
        return trainers[-1]

    yield builder
    for trainer in trainers:
        trainer.close()


def weights_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.state.model.parameters()])


def test_settings_reach_the_trainer(build):
    trainer = build(
        values(
            scheduler={"name": "multi_step", "milestones": ["0.5dur"], "gamma": 0.5},
            algorithms={"channels_last": {}, "gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1}},
            callbacks={"lr_monitor": None},
            loggers={"in_memory": {}},
            precision="fp32",
            run_name="mine",
            eval_subset_num_batches=2,
            train_subset_num_batches=3,
            device_train_microbatch_size=16,
        )
    )
    state = trainer.state
    assert state.run_name == "mine"
    assert [type(a).__name__ for a in state.algorithms] == ["ChannelsLast", "GradientClipping"]
    assert state.algorithms[1].clipping_threshold == 1.0
    assert {"InMemoryLogger", "LRMonitor"} <= {type(c).__name__ for c in state.callbacks}
    assert state.dataloader_len == 3
    assert state.device_train_microbatch_size == 16
    assert state.optimizers[0].param_groups[0]["lr"] == 0.1
    assert [id(p) for p in state.optimizers[0].param_groups[0]["params"]] == [id(p) for p in state.model.parameters()]
    trainer.fit()
    assert state.timestamp.batch == 3
    assert state.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)


def test_initial_weights_depend_on_the_seed_alone(build):
    torch.manual_seed(1)
    first = weights_of(build(values(seed=5)))
    torch.manual_seed(2)
    second = weights_of(build(values(seed=5, callbacks={"lr_monitor": {}})))
    other = weights_of(build(values(seed=6)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_same_recipe_trains_to_the_same_bits(build):
    first, second = (build(values(seed=5)) for _ in range(2))
    first.fit()
    second.fit()
    assert torch.equal(weights_of(first), weights_of(second))


@pytest.mark.parametrize("resident", [True, False])
def test_train_loader_shows_every_example_once_in_an_order_of_seed_and_epoch(resident):
    config = DataConfig(train_examples=100, batch_size=30, drop_last=False, device_resident=resident)
    data = load_datasets(config)
    assert isinstance(data.train, DeviceImages if resident else WorkerImages)
    loader = track_loader(train_loader(data, config, seed=3))
    orders = []
    for epoch in (0, 1, 0):
        loader.batch_sampler.set_epoch(epoch)
        sizes = [len(labels) for _, labels in loader]
        assert sizes == [30, 30, 30, 10]
        orders.append(torch.cat([loader.batch_sampler.examples(i).positions for i in range(4)]))
    assert torch.equal(orders[0].sort().values, torch.arange(100))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


def test_views_hold_without_any_algorithm_that_asks_for_ids(build, small_npz):
    data = {"name": "npz", "path": str(small_npz), "batch_size": 50, "augment": "crop_flip", "num_views": 2}
    trainer = build(values(data=data, model={"name": "resnet8", "width": 2}))
    trainer.fit()
    loader = trainer.state.train_dataloader

    def epoch(number):
        loader.batch_sampler.set_epoch(number)
        images = torch.cat([batch[0] for batch in loader])
        positions = torch.cat([loader.batch_sampler.examples(i).positions for i in range(len(loader))])
        return images[positions.argsort()]

    first, second, third = epoch(0), epoch(1), epoch(2)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_loading_workers_leave_the_global_generator_alone(small_npz):
    config = DataConfig(name="npz", path=str(small_npz), batch_size=50, device_resident=False, augment="crop_flip")
    loader = train_loader(load_datasets(config), config, seed=0)
    before = torch.get_rng_state()
    assert sum(len(labels) for _, labels in loader) == 200
    assert torch.equal(torch.get_rng_state(), before)


def test_eval_loader_shows_every_example_in_order():
    config = DataConfig(batch_size=64, eval_batch_size=100)
    data = load_datasets(config)
    batches = list(eval_loader(data, config))
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.eval_info.labels)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_the_global_batch(monkeypatch, rank):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_global_rank", lambda: rank)
    config = DataConfig(train_examples=100, batch_size=20)
    data = load_datasets(config)
    train, evaluation = train_loader(data, config, seed=0), eval_loader(data, config)
    assert [len(labels) for _, labels in train] == [10] * 5
    assert isinstance(train, DataLoader)
    assert {len(labels) for _, labels in evaluation} == {10}
    assert sum(len(labels) for _, labels in evaluation) == 180


def test_batch_sizes_that_do_not_divide_by_the_ranks(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    recipe = compose_recipe(values(data={"batch_size": 128, "eval_batch_size": 2}), source="x.yaml")
    with pytest.raises(RecipeError) as caught:
        check_world_size(recipe)
    assert str(caught.value) == (
        "x.yaml: 2 errors in the recipe\n"
        "  data.batch_size: 128 over all ranks cannot be shared equally by 3 ranks. Write for example 126\n"
        "  data.eval_batch_size: 2 over all ranks cannot be shared equally by 3 ranks. Write for example 3"
    )


def test_our_components_get_archive_recipe_tags_name_and_seed(build, tmp_path):
    settings = values(
        archive=str(tmp_path / "archive"),
        run_name="student",
        seed=9,
        tags={"method": "m"},
        algorithms={"prior_run_distillation": {"runs": "teacher"}},
        callbacks={"run_recorder": {}},
    )
    trainer = build(settings)
    algorithm = trainer.state.algorithms[0]
    recorder = next(c for c in trainer.state.callbacks if type(c).__name__ == "RunRecorder")
    assert isinstance(recorder.archive, RunArchive)
    assert algorithm.archive is recorder.archive
    assert algorithm.seed == 9
    assert recorder.tags == {"method": "m"}
    assert recorder.run_name == "student"
    assert recorder.recipe["algorithms"] == {"prior_run_distillation": {"runs": "teacher"}}
    own_seed = copy.deepcopy(settings)
    own_seed["algorithms"]["prior_run_distillation"]["seed"] = 4
    assert build(own_seed).state.algorithms[0].seed == 4


def test_a_scheduler_of_an_option_is_built_and_recorded_as_written(build, tmp_path):
    options = {"runs": "teacher", "loss": {"name": "kl", "weight_scheduler": {"name": "linear", "t_max": "0.5dur"}}}
    settings = values(archive=str(tmp_path / "archive"), algorithms={"prior_run_distillation": options})
    recipe = compose_recipe(settings, source="x.yaml")
    assert recipe.record["algorithms"]["prior_run_distillation"] == options
    algorithm = build(settings).state.algorithms[0]
    assert isinstance(algorithm.loss.weight_scheduler, LinearScheduler)
    assert algorithm.loss.weight_scheduler.t_max == Time.from_timestring("0.5dur")


def test_values_that_constructors_refuse_are_listed_together(tmp_path):
    recipe = compose_recipe(
        values(
            archive=str(tmp_path / "archive"),
            algorithms={
                "prior_run_distillation": {"runs": "x", "mismatch": "ignore"},
                "ema": {"half_life": "fast"},
            },
            callbacks={"run_recorder": {"weights": ["newest"]}},
        ),
        source="x.yaml",
    )
    with pytest.raises(RecipeError) as caught:
        build_trainer(recipe)
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.yaml: 3 errors in the recipe"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "algorithms.prior_run_distillation",
        "algorithms.ema",
        "callbacks.run_recorder",
    ]


def test_what_the_trainer_itself_refuses(tmp_path):
    recipe = compose_recipe(values(load_path=str(tmp_path / "none.pt")), source="x.yaml")
    with pytest.raises(RecipeError, match=r"x.yaml: the Trainer could not be built: .*none.pt"):
        build_trainer(recipe)


def test_wandb_logger_gets_name_group_tags_and_config(build, monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = values(tags={"study": "s", "method": "m"}, loggers={"wandb": {"project": "reuse"}}, run_name="r-${seed}")
    build(settings)
    run = wandb.run
    assert (run.name, run.project) == ("r-17", "reuse")
    assert re.fullmatch("s-m-1ep-[0-9a-f]{6}", run.group)
    assert set(run.tags) == {"study:s", "method:m"}
    assert run.config["optimizer"] == {"name": "sgd", "lr": 0.1}
    assert (tmp_path / "wandb").is_dir()


def test_wandb_settings_of_the_user_win():
    from reuse_algos.recipe.build import _wandb_options

    recipe = compose_recipe(values())
    assert _wandb_options({}, recipe)["group"].startswith("digits-digits_cnn-1ep-")
    options = _wandb_options(
        {"name": "n", "group": "g", "tags": ["t"], "init_kwargs": {"config": {}, "job_type": "j"}}, recipe
    )
    assert options == {"name": "n", "group": "g", "tags": ["t"], "init_kwargs": {"config": {}, "job_type": "j"}}


def test_every_setting_is_used():
    """A key of the schema that nothing reads would be a silent lie."""
    from dataclasses import fields

    from reuse_algos.recipe.build import _PASSED_ON
    from reuse_algos.recipe.schema import Settings

    built = {
        "archive",
        "tags",
        "data",
        "label",
        "model",
        "optimizer",
        "scheduler",
        "algorithms",
        "callbacks",
        "loggers",
    }
    assert {field.name for field in fields(Settings)} == {*_PASSED_ON, *built, "device", "compile"}
