"""Heads trained on archived features: the same numbers as with the frozen network, and nothing of it run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Event, State, Trainer
from composer.algorithms import ChannelsLast, CutOut, MixUp
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cached_heads import Steps, digits, head_of_blobs
from reuse_algos.algorithms import HistoryCurriculum, PriorRunDistillation
from reuse_algos.algorithms.adversarial_replay.checks import refuse_changed_inputs
from reuse_algos.algorithms.prior_run_warm_start import prior_run_warm_start
from reuse_algos.algorithms.prior_run_warm_start.loading import load_weights
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy
from reuse_algos.harvest import harvest
from reuse_algos.priors import lookup
from toy import NoisyDataset, Stop, blobs, checkpointed, epoch_loader, mlp, record_run, viewed
from warming import same

HEAD = ("module.3.weight", "module.3.bias")
COMPILED = {"compile_config": {"backend": "aot_eager"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    """A run on blobs with the features and logits of its two views."""
    path = tmp_path_factory.mktemp("features") / "archive"
    run_id = record_run(path, weights=("last", "2ep"))
    harvest(path, run_id, signals=("features", "logits"), dataset=viewed(), model=mlp, progress=False)
    return RunArchive(path, create=True)


@pytest.fixture(scope="module")
def digit_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits recipe (convolutions and batch norm, three views) with its features."""
    path = tmp_path_factory.mktemp("digits") / "archive"
    one, _ = digits(path, "prior")
    one.fit()
    one.close()
    harvest(path, "prior", signals=("features",), progress=False)
    return path


def _equal(live: Steps, cached: Steps, atol: float = 1e-5) -> None:
    assert len(live.losses) == len(cached.losses) > 0
    torch.testing.assert_close(torch.tensor(cached.losses), torch.tensor(live.losses), rtol=0, atol=atol)
    for theirs, ours in zip(live.weights, cached.weights, strict=True):
        assert theirs.keys() == ours.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=atol)


def _noting(model: nn.Module, calls: list[bool]) -> Any:
    """A hook that notes whether the model was in training."""
    return lambda *_: calls.append(model.training)


def _fit(made: tuple[Trainer, Steps]) -> Steps:
    one, steps = made
    one.fit()
    one.close()
    return steps


@pytest.mark.parametrize("head", ["keep", "reset"])
def test_digits_give_the_same_losses_and_weights_as_the_slow_way(digit_store: Path, tmp_path: Path, head: str) -> None:
    settings = "{prior_run_warm_start: {runs: prior, head: %s, trainable: {freeze: backbone}, source: %s}}"
    made = {}
    for source in ("live", "cached"):
        # Their own archives would not have the prior run, so they record into its one.
        name = f"{head}-{source}"
        one, steps = digits(digit_store, name, settings % (head, source), "tags.arm=head")
        calls: list[bool] = []
        one.state.model.module.conv1.register_forward_hook(_noting(one.state.model, calls))
        one.fit()
        one.close()
        made[name] = steps
        assert {shape[1:] for shape in steps.shapes} == {(16,) if source == "cached" else (1, 8, 8)}
    live, cached = made[f"{head}-live"], made[f"{head}-cached"]
    assert len(live.losses) == 3 * 8
    _equal(live, cached)
    assert abs(live.losses[-1] - live.losses[0]) > 1e-3, "it trains"
    assert calls.count(True) == 1, "the look at the start, as in training"
    theirs, ours = (RunArchive(digit_store).run(name) for name in made)
    assert theirs.weights().keys() == ours.weights().keys(), "the whole plain model is recorded"
    assert ours.final_metric() == pytest.approx(theirs.final_metric(), abs=1e-6)
    for name, value in RunArchive(digit_store).run("prior").weights().items():
        assert torch.equal(ours.weights()[name], value) == ("fc" not in name)


def test_no_image_is_loaded(store: RunArchive) -> None:
    asked: list[Any] = []

    class Asked(ViewedDataset):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    whole: Any = viewed()
    _fit(head_of_blobs(store, data=Asked(whole.dataset, whole.view_policy, whole.info)))
    assert len(asked) == 8 + 2 * 8, "a few at the start: to hold the archive against, and twice to see that they stay"
    assert [index.position for index in asked[:16:2]] == [*range(0, 64, 8)]
    assert {index.view for index in asked[16:]} == {0, 1}


@pytest.mark.parametrize(
    "arguments",
    [{"device_train_microbatch_size": 5}, COMPILED, {"algorithms": [ChannelsLast()]}, {"settings": {"weights": "2ep"}}],
    ids=["microbatches", "compiled", "channels_last", "weights"],
)
def test_the_same_in_every_setting(store: RunArchive, arguments: dict[str, Any]) -> None:
    arguments = dict(arguments)
    others, settings = arguments.pop("algorithms", []), arguments.pop("settings", {})
    if settings:
        harvest(store, "baseline-1", signals=("features",), weights="2ep", dataset=viewed(), model=mlp, progress=False)
    both = []
    for source in ("live", "cached"):
        model = mlp(5)
        one, steps = head_of_blobs(
            store,
            *others,
            model=model,
            settings={"source": source, **settings},
            eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
            **arguments,
        )
        one.fit()
        both.append((steps, {name: float(value) for name, value in one.state.eval_metric_values.items()}))
        assert not any("forward" in vars(module) for module in model.module.modules())
        assert ("forward" in vars(model)) == ("compile_config" in arguments), "compiled code is back"
    _equal(both[0][0], both[1][0])
    assert both[0][1] == pytest.approx(both[1][1], abs=1e-6)


def test_features_that_do_not_fit_on_the_device(store: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    live = _fit(head_of_blobs(store, settings={"source": "live"}))
    monkeypatch.setattr(lookup, "_RESIDENT_BYTES", 0)
    _equal(live, _fit(head_of_blobs(store)))


def test_afterwards_all_is_as_it_was(store: RunArchive) -> None:
    model = mlp(5)
    one, steps = head_of_blobs(store, model=model, max_duration="1ep")
    one.fit()
    assert isinstance(one.state.train_dataloader.dataset, ViewedDataset)
    x = torch.randn(3, 6)
    model.eval()
    assert torch.equal(model((x, None)), model.module(x)), "whole again"
    one.fit(duration="1ep")
    straight = _fit(head_of_blobs(store, max_duration="2ep"))
    assert steps.losses == straight.losses, "a second fit goes on with the features"


class Fails(nn.Linear):
    """A head that fails in the third batch."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.training and self.calls == 4:  # one of them is the look at the start
            raise KeyboardInterrupt
        return super().forward(input)


def test_an_error_leaves_the_model_whole(store: RunArchive) -> None:
    model = mlp(5)
    model.module[3] = Fails(16, 4)
    one, steps = head_of_blobs(store, model=model)
    with pytest.raises(KeyboardInterrupt):
        one.fit()
    assert len(steps.losses) == 2
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.eval()((torch.randn(3, 6), None)).shape == (3, 4)
    one.fit()  # the same data set is found again
    assert steps.shapes[-1] == (16, 16)


def test_what_is_recorded(store: RunArchive, tmp_path: Path) -> None:
    runs = []
    for source in ("live", "cached"):
        recorder = RunRecorder(store, run_name=source, signals={"logits": {}, "loss": {}})
        one, _ = head_of_blobs(store, settings={"source": source}, callbacks=[recorder], max_duration="1ep")
        one.fit()
        one.close()
        runs.append(store.run(recorder.run_id or ""))
    live, cached = runs
    for name in ("logits", "loss"):
        assert live.signal(name).slots == cached.signal(name).slots == [0]
        torch.testing.assert_close(cached.signal(name).dense(0)[0], live.signal(name).dense(0)[0], rtol=0, atol=1e-3)
    assert cached.manifest.dataset == live.manifest.dataset
    assert same(dict(cached.weights()), dict(live.weights()))
    model, theirs = cached.manifest.model, live.manifest.model
    assert model is not None
    assert theirs is not None
    assert model.parameters == theirs.parameters
    assert (model.flops_per_example, theirs.flops_per_example) == (2 * 16 * 4, 2 * 16 * 4 + 2 * 6 * 16)
    (use,) = cached.manifest.prior_runs
    harvested = next(h for h in store.run("baseline-1").manifest.harvests if h.signal == "features")
    assert (use.weights, use.signals) == (["last"], ["features"])
    assert use.harvest_seconds == pytest.approx(harvested.seconds / 2), "one of two views was used"
    assert live.manifest.prior_runs[0].harvest_seconds == 0


def test_a_record_that_is_completed_after_its_process_died(store: RunArchive, tmp_path: Path) -> None:
    # All batches are trained and checkpointed, and FIT_END never came: the next process only completes the record.
    class Dies(Stop):
        def match(self, event: Event, state: State) -> bool:
            return event == Event.FIT_END

    def attempt(*others: Any) -> RunRecorder:
        recorder = RunRecorder(store, run_name="died")
        folder = checkpointed(tmp_path, save_interval="1ba", run_name="died")
        one, _ = head_of_blobs(store, *others, callbacks=[recorder], max_duration="4ba", **folder)
        with contextlib.suppress(KeyboardInterrupt, ValueError):  # Composer refuses to train any further
            one.fit()
        one.close()
        return recorder

    attempt(Dies(0))
    attempt()
    run = store.run("died")
    assert run.finished
    (use,) = run.manifest.prior_runs
    assert use.signals == ["features"]
    assert use.harvest_seconds > 0


def test_distillation_and_curriculum_beside_it(store: RunArchive) -> None:
    both = []
    for source in ("live", "cached"):
        teacher = PriorRunDistillation(
            store, "baseline-1", source="cached", loss={"name": "kl", "temperature": 2.0, "weight": 0.5}, when={}
        )
        steer = HistoryCurriculum(store, "baseline-1", strategy={"name": "prune", "keep": 0.5})
        both.append(_fit(head_of_blobs(store, teacher, steer, settings={"source": source})))
    _equal(*both)
    assert len(both[0].losses) == 4


def test_live_teachers_are_refused(store: RunArchive) -> None:
    with pytest.raises(ValueError, match="live teachers need the images.*source: live was asked for"):
        _fit(head_of_blobs(store, PriorRunDistillation(store, "baseline-1", source="live", when={})))
    with pytest.raises(ValueError, match="must be cached beside it: run .* has no signal 'logits.ep0002'"):
        _fit(
            head_of_blobs(
                store, PriorRunDistillation(store, "baseline-1", source={"name": "auto", "weights": "2ep"}, when={})
            )
        )


def test_perturbed_images_are_refused(store: RunArchive) -> None:
    one, _ = head_of_blobs(store)
    with pytest.raises(ValueError, match="PriorRunWarmStart with source: cached trains on features instead of images"):
        refuse_changed_inputs(one.state)
    one.close()


def test_part_of_the_examples(store: RunArchive) -> None:
    whole: Any = viewed()

    class Half(Dataset):
        """Every second example, under its old key."""

        info = whole.info.subset(torch.arange(1, 64, 2))
        view_policy = whole.view_policy

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: ExampleView) -> Any:
            return whole[ExampleView(2 * index.position + 1, index.view)]

    with pytest.raises(ValueError, match="say mismatch: allow"):
        _fit(head_of_blobs(store, data=Half()))
    allowed = {"mismatch": "allow"}
    live = _fit(head_of_blobs(store, data=Half(), settings={"source": "live", **allowed}))
    _equal(live, _fit(head_of_blobs(store, data=Half(), settings=allowed)))
    more: Any = viewed(96)
    with pytest.raises(ValueError, match="32 of 96 training examples are new to run .* Use source: live"):
        _fit(head_of_blobs(store, data=more, settings=allowed))


def _with(**layers: nn.Module) -> ComposerClassifier:
    model = mlp(5)
    for name, layer in layers.items():
        model.module[int(name.removeprefix("layer"))] = layer
    return model


class Halfway(ComposerClassifier):
    """Returns something else than its head."""

    def forward(self, batch: Any) -> torch.Tensor:  # type: ignore[override]
        return self.module[:3](batch[0])[:, :4] + self.module[3](self.module[:3](batch[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": None}, "source: cached needs a frozen backbone"),
        ({"unfreeze_at": "1ep"}, "unfreeze_at must be left out"),
        ({"weights": "average", "last_k": 2}, "of weights that were archived, not of averages"),
        ({"source": "slow"}, "source must be live or cached"),
        ({"freeze": "0.*"}, "trains the head .* freeze says otherwise of module.1.bias, module.1.weight"),
        ({"reset": "0.bias"}, "reset leaves module.0.bias as initialised"),
        ({"weights": "2ep", "head_pattern": "0.*", "freeze": ["1.*", "3.*"]}, "--signals features --weights ep0002"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    run_id = record_run(tmp_path, epochs=2, weights=("last", "1ep"))
    with pytest.raises(ValueError, match=message) if "ep0002" not in message else pytest.raises(LookupError):
        _fit(head_of_blobs(RunArchive(tmp_path), run=run_id, settings=settings))


def test_features_that_would_not_be_true_are_refused(store: RunArchive) -> None:
    def refused(message: str, *others: Any, **arguments: Any) -> None:
        with pytest.raises((ValueError, LookupError), match=message):
            _fit(head_of_blobs(store, *others, **arguments))

    whole: Any = viewed()
    seeded = ViewedDataset(whole.dataset, ViewPolicy(4, 2, "noise(0.3)"), whole.info)
    refused("features of views with .*'noise\\(0.3\\)'\\], 3\\), this run shows .* 4\\)", data=seeded)
    refused("features for 2 of the 3 views .* --views 3", data=viewed(num_views=3))
    refused("features of views with .* this run shows .* --plain", data=_plain(whole))
    refused("not a known view", data=NoisyDataset(blobs()))
    refused("MixUp changes the inputs", MixUp())
    refused("CutOut changes the inputs", CutOut())


def _plain(whole: Any) -> ViewedDataset:
    return ViewedDataset(whole.dataset.dataset, ViewPolicy(3, 1, "none"), whole.info)


def test_models_that_cannot_begin_at_their_head(store: RunArchive) -> None:
    odd = Halfway(mlp(5).module, num_classes=4)
    with pytest.raises(ValueError, match="no module of Halfway leads from the inputs"):
        _fit(head_of_blobs(store, model=odd))
    part = mlp(5)
    part.module[0] = torch.compile(part.module[0], backend="eager")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="compiled by itself"):
        _fit(head_of_blobs(store, model=part))


def test_dropout_in_front_of_the_head(store: RunArchive) -> None:
    def model() -> ComposerClassifier:
        return _with(layer2=nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))

    with pytest.raises(
        ValueError, match="in evaluation, which are archived .random are module.2.1.. .*mismatch: allow"
    ):
        _fit(head_of_blobs(store, model=model()))
    allowed = _fit(head_of_blobs(store, model=model(), settings={"mismatch": "allow"}))
    assert allowed.losses == _fit(head_of_blobs(store)).losses


def test_a_transform_of_batches_is_noticed(store: RunArchive) -> None:
    from composer.core import DataSpec

    def scaled(batch: Any) -> Any:
        return [2 * batch[0], batch[1]]

    one, _ = head_of_blobs(store)
    spec = DataSpec(epoch_loader(viewed()), batch_transforms=scaled)
    with pytest.raises(ValueError, match="does not get the features that were looked up"):
        one.fit(train_dataloader=spec)
    one.close()


def test_other_targets_than_the_labels_are_noticed(store: RunArchive) -> None:
    class Soft(ViewedDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return x, (y + 1) % 4

    whole: Any = viewed()
    with pytest.raises(ValueError, match="gives other targets than the labels"):
        _fit(head_of_blobs(store, data=Soft(whole.dataset, whole.view_policy, whole.info)))


def test_other_weights_are_noticed(store: RunArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    # A checkpoint whose backbone trained on, with the record of a run that was frozen.
    one, _ = head_of_blobs(store)

    def moved(state: State, *arguments: Any, **settings: Any) -> Any:
        found = load_weights(state, *arguments, **settings)
        with torch.no_grad():
            state.model.module[0].weight.mul_(-1)
        return found

    monkeypatch.setattr(prior_run_warm_start, "load_weights", moved)
    with pytest.raises(ValueError, match="differ by .* % from the archived ones"):
        one.fit()
    one.close()


def test_the_difference_is_logged(store: RunArchive) -> None:
    from composer.loggers import InMemoryLogger

    log = InMemoryLogger()
    _fit(head_of_blobs(store, loggers=[log], max_duration="1ba"))
    ((_, difference),) = log.data["reuse/warm_start/feature_difference"]
    assert 0 <= difference < 1e-6
