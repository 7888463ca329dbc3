"""PriorRunWarmStart in a real Trainer: what is loaded, what is refused, and that it happens once."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Event
from composer.algorithms import EMA, ChannelsLast
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import TensorDataset

from reuse_algos.algorithms import PriorRunWarmStart
from reuse_algos.algorithms.prior_run_warm_start.initial_weights import noise_generator
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ModelError, PriorRunMismatchError, RunNotFoundError, SignalNotFoundError
from toy import NUM_CLASSES, blobs, epoch_loader, mlp, trainer
from warming import NAMES, Named, archived, fit, record, resumable, same, warm

HEAD = ("module.3.weight", "module.3.bias")
STATISTICS = ("module.1.running_mean", "module.1.running_var", "module.1.num_batches_tracked")


def series(log: Any, name: str) -> list[float]:
    return [float(value) for _, value in log.data[f"reuse/warm_start/{name}"]]


# What is loaded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "compiled"),
    [("last", {}), ("best", {}), ("2ep", {}), ("last", {"compile_config": {"backend": "aot_eager"}})],
    ids=["last", "best", "2ep", "compiled"],
)
def test_starts_from_exactly_the_archived_weights(archive: RunArchive, weights: str, compiled: Any) -> None:
    algorithm = warm(archive, weights=weights)
    _, seen, log = fit([algorithm], max_duration="2ba", **compiled)
    assert same(seen.first, archived(archive, weights="ep0002" if weights == "2ep" else weights))
    assert not same(seen.first, seen.later[-1]), "and goes on training"
    run = archive.runs(tags={"method": "baseline"}, order="first")[0]
    (use,) = algorithm.prior_uses()
    assert (use.run_id, use.algorithm, use.weights, use.harvest_seconds) == (
        run.id,
        "prior_run_warm_start",
        [weights],
        0.0,
    )
    assert series(log, "loaded") == [1.0]
    assert algorithm.setup_seconds > 0


def test_the_order_of_algorithms_does_not_matter_and_ema_averages_from_there(archive: RunArchive) -> None:
    for algorithms in ([EMA(half_life="2ba"), warm(archive)], [warm(archive), ChannelsLast(), EMA(half_life="2ba")]):
        _, seen, _ = fit(algorithms, max_duration="1ba")
        assert same(seen.first, archived(archive))


@pytest.mark.parametrize("noise", ["initial", "gaussian"])
def test_shrink_and_perturb(archive: RunArchive, noise: str) -> None:
    run = archive.runs(tags={"method": "baseline"}, order="first")[0]
    (digest,) = {e.sha256 for e in run.manifest.files if (e.kind, e.name) == ("weights", "last")}
    old, fresh = archived(archive), mlp(5).state_dict()
    _, seen, _ = fit([warm(archive, shrink=0.4, perturb=0.1, noise=noise, seed=3)], max_duration="1ba")
    for name, _ in mlp().named_parameters():
        generator = noise_generator(3, digest, name)
        if noise == "gaussian":
            drawn = torch.randn(fresh[name].shape, generator=generator)
        else:
            flat = fresh[name].flatten()
            drawn = flat[torch.randperm(len(flat), generator=generator)].reshape(fresh[name].shape)
        assert torch.equal(seen.first[name], 0.4 * old[name] + 0.1 * drawn), name
    for name in STATISTICS:
        assert torch.equal(seen.first[name], fresh[name]), "the activations are others, so statistics start again"


def test_frozen_layers_are_neither_shrunk_nor_perturbed(archive: RunArchive) -> None:
    old = archived(archive)
    _, seen, _ = fit([warm(archive, shrink=0.5, freeze="backbone")], max_duration="1ba")
    for name, value in old.items():
        assert torch.equal(seen.first[name], 0.5 * value if name in HEAD else value), name


def test_head_reset_and_match(archive: RunArchive, tmp_path: Path) -> None:
    old, fresh = archived(archive), mlp(5).state_dict()
    _, seen, log = fit([warm(archive, head="reset")], max_duration="1ba")
    for name in old:
        assert torch.equal(seen.first[name], (fresh if name in HEAD else old)[name]), name
    assert series(log, "loaded")[0] == pytest.approx((6 * 16 + 16 + 32) / (6 * 16 + 16 + 32 + 16 * 4 + 4))

    # Two classes changed places, one left, two are new.
    names = ("c", "new", "b", "a", "newer")
    model, fresh = mlp(5, num_classes=5), mlp(5, num_classes=5).state_dict()
    data = Named(class_names=names)
    _, seen, log = fit([warm(archive, head="match", shrink=0.5)], model, data=data, max_duration="1ba")
    for name in HEAD:
        for row, known in enumerate(names):
            wanted = 0.5 * old[name][NAMES.index(known)] if known in NAMES else fresh[name][row]
            assert torch.equal(seen.first[name][row], wanted), (name, known)
    assert series(log, "known_classes") == [3.0]


def test_average_of_the_last_checkpoints(archive: RunArchive) -> None:
    # 6 epochs, every second archived: ep0006 is what last is, so the last two are ep0004 and ep0006.
    algorithm = warm(archive, weights="average", last_k=2)
    _, seen, _ = fit([algorithm], max_duration="1ba")
    a, b = archived(archive, weights="ep0004"), archived(archive, weights="ep0006")
    for name, value in seen.first.items():
        wanted = b[name] if name.endswith("tracked") else ((a[name].double() + b[name].double()) / 2).float()
        assert torch.equal(value, wanted), name
    assert algorithm.prior_uses()[0].weights == ["ep0004", "ep0006"]
    with pytest.raises(SignalNotFoundError, match=r"has 3 checkpoints to average \(ep0002, ep0004, ep0006\), not 4"):
        fit([warm(archive, weights="average", last_k=4)])
    with pytest.raises(PriorRunMismatchError, match="say over how many of its last checkpoints"):
        fit([warm(archive, weights="average")])


def test_average_of_a_run_that_ended_within_an_epoch(tmp_path: Path) -> None:
    mine = RunArchive(tmp_path, create=True)
    run = record(mine, "mid", weights=("last", "1ep"), max_duration="10ba")
    algorithm = warm(mine, runs=run, weights="average", last_k=2)
    _, seen, _ = fit([algorithm], max_duration="1ba")
    assert algorithm.prior_uses()[0].weights == ["ep0002", "last"]
    parts = [mine.run(run).weights(name) for name in ("ep0002", "last")]
    assert not torch.equal(parts[0]["module.0.weight"], parts[1]["module.0.weight"])
    wanted = (parts[0]["module.0.weight"].double() + parts[1]["module.0.weight"].double()) / 2
    assert torch.equal(seen.first["module.0.weight"], wanted.float())


def test_average_over_runs_of_one_lineage_only(archive: RunArchive, tmp_path: Path) -> None:
    mine = RunArchive(tmp_path, create=True)
    first = record(mine, "first", weights=("last", "1ep"))
    children = [record(mine, f"child{i}", [warm(mine, runs=first)], lr=0.01 * (i + 1)) for i in range(2)]
    grandchild = record(mine, "grandchild", [warm(mine, runs=children[0])])
    algorithm = warm(mine, runs=[children[1], grandchild], weights="average")
    _, seen, _ = fit([algorithm], max_duration="1ba")
    parts = [mine.run(run).weights("last") for run in (children[1], grandchild)]
    for name, value in seen.first.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
    assert [use.run_id for use in algorithm.prior_uses()] == [children[1], grandchild]
    fit([warm(mine, runs=[first, children[0]], weights="average")], max_duration="1ba")

    stranger = record(mine, "stranger")
    with pytest.raises(PriorRunMismatchError, match="are not of one lineage"):
        fit([warm(mine, runs=[children[0], stranger], weights="average")])
    wide = record(mine, "wide", [warm(mine, runs=first, reset=["0.*", "1.*", "3.weight"])], model=mlp(2, hidden=8))
    with pytest.raises(PriorRunMismatchError, match=r"cannot be averaged.*\n.*module.0.bias: \(16,\) there, \(8,\)"):
        fit([warm(mine, runs=[children[0], wide], weights="average")])
    with pytest.raises(PriorRunMismatchError, match="Leave one of them out"):
        fit([warm(mine, runs=children, weights="average", last_k=2)])


# What is refused -----------------------------------------------------------------------------------------------------


def test_all_wrong_settings_at_once(archive: RunArchive) -> None:
    with pytest.raises(ValueError, match="PriorRunWarmStart") as caught:
        PriorRunWarmStart(
            archive,
            "x",
            weights="lats",
            source="cached",
            trainable={"learning_rates": {"backbone": 0.0}, "unfreeze_at": "1ep"},
        )
    for word in ("weights", "source: cached needs", "source: cached has", "learning_rates", "unfreeze_at"):
        assert f"PriorRunWarmStart: {word}" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"weights": {"last_k": 1}}, "weights: last_k must be at least 2"),
        ({"change": {"shrink": 0.0}}, "change: shrink must be above 0 and at most 1"),
        ({"change": {"perturb": -1.0}}, "change: perturb must be at least 0"),
        ({"change": {"noise": "pink"}}, "change: noise must be initial or gaussian"),
        ({"head": "kepe"}, "head.name: there is no 'kepe'"),
    ],
)
def test_each_section_says_what_is_wrong(archive: RunArchive, section: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PriorRunWarmStart(archive, "x", **section)


def test_tensors_that_do_not_fit_are_listed_and_refused(archive: RunArchive) -> None:
    model = mlp(5, hidden=8)
    with pytest.raises(PriorRunMismatchError) as caught:
        fit([warm(archive)], model)
    listed = re.findall(r"^  (\S+): ", str(caught.value), flags=re.MULTILINE)
    wrong = [n for n, value in model.state_dict().items() if value.shape != archived(archive)[n].shape]
    assert listed == sorted(wrong)
    assert len(listed) == 7
    assert "module.0.weight: (16, 6) there, (8, 6) here" in str(caught.value)
    # A pattern may cover them.
    _, seen, _ = fit([warm(archive, reset=["0.*", "1.*", "3.weight"])], mlp(5, hidden=8), max_duration="1ba")
    fresh = mlp(5, hidden=8).state_dict()
    for name, value in seen.first.items():
        assert torch.equal(value, archived(archive)[name] if name == "module.3.bias" else fresh[name])


def test_classes_of_other_names_are_refused_where_the_head_is_kept(archive: RunArchive) -> None:
    data = Named(class_names=("b", "a", "c", "d"))
    with pytest.raises(PriorRunMismatchError, match="class 0 is 'a' there and 'b' here; class 1 is 'b' there and 'a'"):
        fit([warm(archive)], data=data)
    _, seen, _ = fit([warm(archive, mismatch="allow")], data=data, max_duration="1ba")
    assert same(seen.first, archived(archive))
    with pytest.raises(PriorRunMismatchError, match="no class in common"):
        fit([warm(archive, head="match")], data=Named(class_names=tuple("wxyz")))
    with pytest.raises(PriorRunMismatchError, match="the classes: 4 there, 5 here") as caught:
        fit([warm(archive)], mlp(5, num_classes=5), data=Named(class_names=(*NAMES, "e")))
    assert "module.3.bias: (4,) there, (5,) here" in str(caught.value)


def test_more_class_names_than_the_head_has_rows(archive: RunArchive) -> None:
    data = Named(class_names=("x", "y", "z", "w", "a"))
    with pytest.raises(PriorRunMismatchError, match="module.3.bias: 4 rows here, too few for the classes named here"):
        fit([warm(archive, head="match")], data=data)


def test_sharded_models_are_refused(archive: RunArchive) -> None:
    sharded: Any = SimpleNamespace(fsdp_config=object(), tp_config=None)
    with pytest.raises(ModelError, match="loads whole tensors"):
        warm(archive).apply(Event.INIT, sharded, None)  # type: ignore[arg-type]


def test_what_cannot_be_found(archive: RunArchive) -> None:
    with pytest.raises(RunNotFoundError):
        fit([warm(archive, runs="nobody")])
    with pytest.raises(SignalNotFoundError, match="has no weights 'ep0009'"):
        fit([warm(archive, weights="9ep")])
    with pytest.raises(PriorRunMismatchError, match="runs names 2 runs .* Add limit: 1"):
        fit([warm(archive, runs={"tags": {"method": "baseline"}})])
    with pytest.raises(ModelError, match="reset: 'bn1.*' matches nothing"):
        fit([warm(archive, reset="bn1.*")])
    with pytest.raises(ModelError, match="leave no parameter to load"):
        fit([warm(archive, head="reset", reset="backbone")])
    with pytest.raises(ModelError, match="freeze: '2.*' matches nothing.*\nlearning_rates: 'fc.*' matches nothing"):
        fit([warm(archive, freeze="2.*", learning_rates={"fc.*": 2.0})])


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    mine = RunArchive(tmp_path, create=True)
    broken = mlp(1)
    with torch.no_grad():
        broken.module[0].bias[2] = float("nan")  # type: ignore[index]
    run = record(mine, "broken", model=broken)
    with pytest.raises(PriorRunMismatchError, match="hold NaN or Inf"):
        fit([warm(mine, runs=run)])


def test_a_head_whose_classes_have_other_numbers_is_refused(tmp_path: Path) -> None:
    """Nothing names the classes; the same examples have other labels."""
    data = blobs()
    recorder = RunRecorder(tmp_path)
    trainer(epoch_loader(data), mlp(1), callbacks=[recorder]).fit()
    x, y = data.tensors
    corrected = y.clone()
    corrected[:6] = (y[:6] + 1) % NUM_CLASSES  # labels that were corrected are no other classes

    def start(labels: torch.Tensor, **arguments: Any) -> None:
        algorithm = PriorRunWarmStart(tmp_path, str(recorder.run_id), **arguments)
        trainer(epoch_loader(TensorDataset(x, labels)), mlp(2), algorithms=[algorithm], max_duration="1ba").fit()

    with pytest.raises(PriorRunMismatchError, match="64 of 64 common examples have another label, first 0 there and 1"):
        start((y + 1) % NUM_CLASSES)
    start((y + 1) % NUM_CLASSES, head="reset")
    start((y + 1) % NUM_CLASSES, mismatch="allow")
    start(corrected)
    start(y)


def test_a_module_without_its_composer_prefix(archive: RunArchive) -> None:
    class Bare(ComposerClassifier):
        """Its parameters have no ``module.`` before their names."""

        def __init__(self) -> None:
            super().__init__(nn.Identity(), num_classes=4)
            for name, child in mlp(5).module.named_children():
                self.add_module(name, child)

        def forward(self, batch: Any) -> torch.Tensor:
            out = batch[0]
            for name in "0123":
                out = getattr(self, name)(out)
            return out

    _, seen, _ = fit([warm(archive, freeze="backbone")], Bare(), max_duration="1ba")
    assert same({"module." + name: value for name, value in seen.first.items()}, archived(archive))


def test_tied_weights_are_shrunk_once(tmp_path: Path) -> None:
    def tied() -> ComposerClassifier:
        first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        second.weight = first.weight
        return ComposerClassifier(nn.Sequential(first, second, nn.Linear(6, 4)), num_classes=4)

    mine = RunArchive(tmp_path, create=True)
    run = record(mine, "tied", model=tied())
    _, seen, log = fit([warm(mine, runs=run, shrink=0.5)], tied(), max_duration="1ba")
    for name, value in mine.run(run).weights("last").items():
        assert torch.equal(seen.first[name], 0.5 * value), name
    assert series(log, "loaded") == [1.0]


# Once ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:No batches were trained", "ignore:The ``compute`` method of metric")
def test_a_resumed_run_does_not_load_again(archive: RunArchive, tmp_path: Path) -> None:
    settings = {"shrink": 0.6, "perturb": 0.2, "learning_rates": {"backbone": 0.5}}
    straight = resumable(warm(archive, **settings), tmp_path / "straight", None)
    resumable(warm(archive, **settings), tmp_path / "stopped", 1)
    # Another run is chosen now: the resumed one must not even look.
    algorithm = warm(archive, **{**settings, "runs": "gone"})
    later = resumable(algorithm, tmp_path / "stopped", None)
    assert len(later.later) == 7
    assert same(later.first, straight.later[0])
    assert all(same(a, b) for a, b in zip(later.later, straight.later[1:], strict=True))
    first = archive.runs(tags={"method": "baseline"}, order="first")[0]
    assert [use.run_id for use in algorithm.prior_uses()] == [first.id], "what was used stays on record"


def test_a_second_fit_goes_on(archive: RunArchive) -> None:
    one, seen, _ = fit([warm(archive)], max_duration="1ep")
    assert len(seen.later) == 4
    weights = {name: value.clone() for name, value in one.state.model.state_dict().items()}
    seen.first = {}
    one.fit(duration="1ep")
    assert same(seen.first, weights)
    assert len(seen.later) == 8


@pytest.mark.filterwarnings("ignore:PriorRunWarmStart is not in the state_dict:UserWarning")
def test_a_checkpoint_and_a_prior_run_are_refused_together(archive: RunArchive, tmp_path: Path) -> None:
    fit([], max_duration="1ep", save_folder=str(tmp_path), save_filename="end.pt")
    for only in (True, False):
        with pytest.raises(ModelError, match="Leave out one of the two"):
            fit(
                [warm(archive)],
                load_path=str(tmp_path / "end.pt"),
                load_weights_only=only,
                load_strict_model_weights=True,
            )


def test_archive_round_trip(archive: RunArchive, tmp_path: Path) -> None:
    mine = RunArchive(tmp_path, create=True)
    first = record(mine, "first", weights=("last", "1ep"))
    second = record(
        mine, "second", [warm(mine, runs=first, freeze="backbone")], compile_config={"backend": "aot_eager"}
    )
    run = mine.run(second)
    assert run.weights("last").keys() == mlp().state_dict().keys()
    assert [(use.run_id, use.algorithm, use.weights) for use in run.manifest.prior_runs] == [
        (first, "prior_run_warm_start", ["last"])
    ]
    assert run.metric("reuse/warm_start/loaded").final() == 1.0
    assert run.metric("reuse/warm_start/frozen").final() == pytest.approx(144 / 212)
    _, seen, _ = fit([warm(mine, runs=second)], max_duration="1ba")
    assert same(seen.first, {name: value.clone() for name, value in run.weights("last").items()})
    assert mine.verify().ok


def test_data_that_the_loader_does_not_describe(archive: RunArchive) -> None:
    info = DatasetInfo("blobs", torch.arange(64), torch.arange(64) % 4, ("d", "c", "b", "a"))
    _, seen, _ = fit([warm(archive, head="match", dataset=info)], max_duration="1ba")
    assert torch.equal(seen.first["module.3.bias"], archived(archive)["module.3.bias"].flip(0))


def test_the_recorder_counts_the_setup(archive: RunArchive, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="cost")
    algorithm = warm(archive)
    fit([algorithm], callbacks=[recorder], max_duration="1ep")
    assert RunArchive(tmp_path).run("cost").manifest.cost.setup_seconds == algorithm.setup_seconds > 0
