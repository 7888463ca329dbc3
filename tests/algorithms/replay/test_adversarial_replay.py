"""AdversarialReplay in a real Trainer: what the model sees, what becomes of it, and what stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms import EMA, ChannelsLast, LabelSmoothing
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from replaying import (
    BATCH,
    CLASSES,
    EPSILON,
    Calls,
    N,
    both_branches,
    conv_net,
    deltas,
    fit,
    images,
    perturbed,
    positions_of,
    put_deltas,
    record,
    replay,
    series,
)
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.harvest import harvest
from reuse_algos.training.attacks import Attack
from reuse_algos.training.outputs import plain_state_dict
from reuse_algos.training.parameters.batch_norm import restore_batch_norm
from toy import epoch_loader

NEWER = deltas(2)


def spread(rows: int, fraction: float, batch: int = 0) -> Tensor:
    """The rows that are replayed, counted by hand: through all batches so far."""
    counts = [int(fraction * row + 1e-6) for row in range(batch * rows, (batch + 1) * rows + 1)]
    return torch.tensor([row for row in range(rows) if counts[row + 1] > counts[row]])


def by_hand(clean: Tensor, view: int, rows: Tensor) -> Tensor:
    return perturbed(clean[rows], NEWER[view][positions_of(clean[rows], view)])


def kept(rows: Tensor, count: int = BATCH) -> Tensor:
    return torch.tensor([row for row in range(count) if row not in rows.tolist()])


# What the model sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.5, 0.3, 1.0])
def test_append_shows_the_perturbed_rows_in_a_pass_of_their_own(archive: RunArchive, fraction: float) -> None:
    _, calls, _ = fit([replay(archive, fraction=fraction)], max_duration="2ep")
    _, plain, _ = fit([], max_duration="2ep", lr=0.1)
    assert len(calls.inputs) == 2 * len(plain.inputs)
    for batch, clean in enumerate(plain.inputs):
        rows = spread(BATCH, fraction, batch)
        assert torch.equal(calls.inputs[2 * batch], clean)
        expected = by_hand(clean, batch // 3, rows)
        torch.testing.assert_close(calls.inputs[2 * batch + 1], expected, atol=1e-6, rtol=0)
        assert float((expected - clean[rows]).abs().max()) > 0.05
        assert torch.equal(calls.batches[batch][0], clean), "others see the clean batch"


def test_replace_may_leave_no_clean_row_where_all_rows_are_one_batch(archive: RunArchive) -> None:
    _, calls, log = fit([replay(archive, mode="replace", fraction=1.0, split_batch_norm=False)])
    _, plain, _ = fit([])
    for clean, shown in zip(plain.inputs, calls.inputs, strict=True):
        torch.testing.assert_close(shown, by_hand(clean, 0, torch.arange(len(clean))), atol=1e-6, rtol=0)
    names = {name.removeprefix("reuse/adversarial_replay/") for name in log.data if "adversarial_replay/" in name}
    assert names == {"batches", "rows", "coverage", "adversarial_loss", "adversarial_error"}


def test_replace_shows_them_instead(archive: RunArchive) -> None:
    _, calls, _ = fit([replay(archive, mode="replace", fraction=0.4)])
    _, plain, _ = fit([])
    for batch, clean in enumerate(plain.inputs):
        rows = spread(BATCH, 0.4, batch)
        assert torch.equal(calls.inputs[2 * batch], clean[kept(rows)])
        torch.testing.assert_close(calls.inputs[2 * batch + 1], by_hand(clean, 0, rows), atol=1e-6, rtol=0)
        assert torch.equal(calls.batches[batch][0], clean)
        expected = torch.empty(BATCH, CLASSES)
        expected[kept(rows)], expected[rows] = calls.results[2 * batch], calls.results[2 * batch + 1]
        assert torch.equal(calls.outputs[batch], expected)


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_without_split_batch_norm_all_rows_are_one_batch(archive: RunArchive, mode: str) -> None:
    one, calls, _ = fit([replay(archive, mode=mode, split_batch_norm=False)], max_duration="1ba")
    _, plain, _ = fit([], max_duration="1ba")
    rows, clean = spread(BATCH, 0.5), plain.inputs[0]
    (given,), (result,) = calls.inputs, calls.results
    hard = by_hand(clean, 0, rows)
    expected = torch.cat([clean, hard])
    if mode == "replace":
        expected = clean.clone()
        expected[rows] = hard
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)
    assert torch.equal(calls.outputs[0], result[:BATCH])
    labels = calls.batches[0][1]
    loss = F.cross_entropy(result, torch.cat([labels, labels[rows]]) if mode == "append" else labels)
    assert float(calls.losses[0]) == pytest.approx(float(loss), rel=1e-6)
    assert one.state.model.state_dict().keys() == conv_net().state_dict().keys()


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::reuse_algos.errors.NoEffectWarning")
@pytest.mark.parametrize(
    ("weight", "smoothing", "first"),
    [(None, 0, True), (0.0, 0, True), (0.3, 0, True), (1.0, 0, True), (None, 1, True), (0.3, 1, True), (0.3, 1, False)],
)
def test_append_loss_by_hand(archive: RunArchive, weight: float | None, smoothing: int, first: bool) -> None:
    made = [LabelSmoothing(0.2)] * smoothing
    algorithm = replay(archive, weight=weight, fraction=0.25)
    _, calls, log = fit([algorithm, *made] if first else [*made, algorithm], max_duration="2ba")
    rows = spread(BATCH, 0.25)
    for batch, (_, labels) in enumerate(calls.batches):
        targets = F.one_hot(labels, CLASSES).float()
        if smoothing:
            targets = 0.8 * targets + 0.2 / CLASSES
        clean = float(F.cross_entropy(calls.results[2 * batch], targets))
        hard = float(F.cross_entropy(calls.results[2 * batch + 1], targets[rows]))
        w = 4 / 20 if weight is None else weight
        assert float(calls.losses[batch]) == pytest.approx((1 - w) * clean + w * hard, rel=1e-6)
        assert series(log, "clean_loss")[batch] == pytest.approx(clean, rel=1e-6)
        assert series(log, "adversarial_loss")[batch] == pytest.approx(hard, rel=1e-6)


def test_replace_loss_by_hand(archive: RunArchive) -> None:
    _, calls, log = fit([replay(archive, mode="replace")], max_duration="1ba")
    rows, labels = spread(BATCH, 0.5), calls.batches[0][1]
    clean, hard = (F.cross_entropy(calls.results[i], labels[r]) for i, r in ((0, kept(rows)), (1, rows)))
    assert float(calls.losses[0]) == pytest.approx(float(clean + hard) / 2, rel=1e-6)
    assert series(log, "clean_loss")[0] == pytest.approx(float(clean), rel=1e-6)
    assert series(log, "adversarial_loss")[0] == pytest.approx(float(hard), rel=1e-6)


class Keyed(torch.utils.data.Dataset):
    """The same images in dictionaries."""

    def __init__(self) -> None:
        self.images = images()
        self.info, self.view_policy = self.images.info, self.images.view_policy
        self.pixel_space, self.image_shape = self.images.pixel_space, self.images.image_shape
        self.set_epoch = self.images.set_epoch

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: Any) -> Any:
        x, y = self.images[index]
        return {"x": x, "y": y, "name": "a name"}


class DictModel(ComposerClassifier):
    """Dictionaries in, dictionaries out, and a dictionary of losses."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.module(batch["x"])}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        loss = F.cross_entropy(outputs["logits"], batch["y"])
        return {"total": loss, "half": loss.detach() / 2}

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> None:
        metric.update(outputs["logits"], batch["y"])


class PartsModel(DictModel):
    """Parts without a total."""

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        loss = F.cross_entropy(outputs["logits"], batch["y"])
        return {"one": loss, "two": loss / 2}


class TupleModel(DictModel):
    """A tuple of parts."""

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        loss = F.cross_entropy(outputs["logits"], batch["y"])
        return loss, loss / 2


@pytest.mark.parametrize("kind", [DictModel, PartsModel, TupleModel])
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_dict_batches_and_losses(archive: RunArchive, kind: type, mode: str) -> None:
    settings = {"input_key": "x", "target_key": "y", "mode": mode}
    model = kind(conv_net(5).module, num_classes=CLASSES)
    _, calls, _ = fit([replay(archive, **settings)], model, data=Keyed(), max_duration="1ba")
    factor = 1.0 if kind is DictModel else 1.5
    clean, hard = calls.results
    labels, rows, loss = calls.batches[0]["y"], spread(BATCH, 0.5), calls.losses[0]
    if mode == "append":
        expected = (2 * F.cross_entropy(clean, labels) + F.cross_entropy(hard, labels[rows])) / 3
    else:
        expected = (F.cross_entropy(clean, labels[kept(rows)]) + F.cross_entropy(hard, labels[rows])) / 2
    total = loss["total"] if kind is DictModel else sum(loss.values() if isinstance(loss, dict) else loss)
    assert float(total) == pytest.approx(factor * float(expected), rel=1e-6)
    if mode == "append" and isinstance(loss, dict):
        assert "adversarial" in loss


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("split", [True, False])
def test_microbatches_give_the_gradient_of_the_whole_batch(archive: RunArchive, mode: str, split: bool) -> None:
    """Of one row each, so that most hold no replayed row."""

    def weights(microbatch: int) -> dict[str, Tensor]:
        settings = {"mode": mode, "split_batch_norm": split, "fraction": 0.3}
        one, _, log = fit(
            [replay(archive, **settings)], conv_net(5, norm=False), device_train_microbatch_size=microbatch
        )
        assert series(log, "rows") == [4.0, 5.0, 5.0], "14 of 48 at 0.3"
        return one.state.model.state_dict()

    whole, parts = weights(16), weights(1)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-6, rtol=0, msg=name)


# What stays as it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"device_train_microbatch_size": 8}], ids=["whole", "microbatches"])
def test_at_learning_rate_0_a_replayed_row_moves_nothing_of_the_main_branch(
    archive: RunArchive, arguments: dict[str, Any]
) -> None:
    def run(algorithms: list[Any]) -> tuple[dict[str, Tensor], Calls]:
        one, calls, _ = fit(algorithms, conv_net(5, dropout=0.5), lr=0.0, max_duration="2ep", **arguments)
        return both_branches(one), calls

    plain, seen = run([])
    ours, calls = run([replay(archive)])
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name
    assert int(plain["module.2.num_batches_tracked"]) == len(seen.outputs)
    assert all(torch.equal(a, b) for a, b in zip(calls.outputs, seen.outputs, strict=True))
    for layer in ("module.2.", "module.6."):
        assert not torch.equal(ours[layer + "auxiliary.running_mean"], ours[layer + "running_mean"])
    mixed, _ = run([replay(archive, split_batch_norm=False)])
    assert not torch.equal(mixed["module.2.running_mean"], plain["module.2.running_mean"])


def test_evaluation_and_the_archive_have_the_plain_model(archive: RunArchive, tmp_path: Path) -> None:
    evaluation = DataLoader(images(32, seed=9), batch_size=32)
    recorder = RunRecorder(tmp_path, run_name="replayed", weights=("last", "best", "1ep"))
    one, _, _ = fit(
        [replay(archive), EMA(half_life="1ba")],
        callbacks=[recorder],
        eval_dataloader=evaluation,
        max_duration="2ep",
        save_folder=str(tmp_path / "checkpoints"),
    )
    exported = {name: value.clone() for name, value in one.state.model.state_dict().items()}
    both_branches(one)
    split = one.state.model
    run = RunArchive(tmp_path).run("replayed")
    plain = conv_net()
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    for name in run.weight_names:
        assert {key: value.shape for key, value in run.weights(name).items()} == shapes
    record_of_model = run.manifest.model
    assert record_of_model is not None
    assert record_of_model.parameters.keys() == shapes.keys()
    assert record_of_model.num_parameters == sum(p.numel() for p in plain.parameters())
    plain.load_state_dict({key: value.clone() for key, value in plain_state_dict(split).items()})
    assert exported.keys() == plain.state_dict().keys()
    assert all(torch.equal(exported[name], value) for name, value in plain.state_dict().items())
    batch = next(iter(evaluation))
    with torch.no_grad():
        assert torch.equal(split.eval()(batch), plain.eval()(batch))
    assert restore_batch_norm(split) == 2
    assert split.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(split(batch), plain(batch))


def test_archived_weights_are_the_main_branch_s_bits(archive: RunArchive, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="replayed")
    one, _, _ = fit([replay(archive)], callbacks=[recorder])
    archived = RunArchive(tmp_path).run("replayed").weights("last")
    plain = conv_net()
    plain.load_state_dict({name: value.clone() for name, value in archived.items()})
    for name, value in plain.state_dict().items():
        assert torch.equal(value, one.state.model.state_dict()[name])


@pytest.mark.filterwarnings("ignore::reuse_algos.errors.NoEffectWarning")
def test_the_auxiliary_branch_starts_where_the_main_one_is(archive: RunArchive) -> None:
    """Weight decay must not have worn it down by then."""
    one, _, _ = fit([replay(archive, start="2ba", weight=0.0)], max_duration="2ba", lr=0.0)
    assert int(both_branches(one)["module.2.auxiliary.num_batches_tracked"]) == 0
    one, _, _ = fit([replay(archive, start="2ba", weight=0.0)], lr=0.0)
    state = both_branches(one)
    assert int(state["module.2.auxiliary.num_batches_tracked"]) == 3, "two of the main branch's, and one of its own"
    assert int(state["module.2.num_batches_tracked"]) == 3


@pytest.mark.parametrize("split", [True, False])
def test_a_model_without_batch_norm(archive: RunArchive, split: bool) -> None:
    one, calls, log = fit([replay(archive, split_batch_norm=split)], conv_net(5, norm=False))
    assert len(calls.inputs) == (6 if split else 3)
    assert series(log, "rows") == [8.0] * 3
    assert one.state.model.state_dict().keys() == conv_net(norm=False).state_dict().keys()


@pytest.mark.parametrize(("mode", "examples"), [("append", 48 + 14), ("replace", 48)])
def test_passes_of_appended_rows_are_counted(archive: RunArchive, tmp_path: Path, mode: str, examples: int) -> None:
    """A multiply-add is two FLOPs, a training step three passes; 14 of 48 rows are replayed at 0.3."""
    recorder = RunRecorder(tmp_path / "own", run_name="run")
    fit([replay(archive, mode=mode, fraction=0.3)], callbacks=[recorder])
    each = 2 * (4 * 4 * 8 * 3 * 3 * 3 + 128 * 12 + 12 * 4)
    assert RunArchive(tmp_path / "own").run("run").manifest.cost.train_flops == 3 * each * examples


# Resume, precision, compile, memory format ---------------------------------------------------------------------------


def test_starts_from_a_checkpoint_of_the_plain_model(archive: RunArchive, tmp_path: Path) -> None:
    fit([], save_folder=str(tmp_path), save_filename="plain.pt")
    one, _, _ = fit([replay(archive)], load_path=str(tmp_path / "plain.pt"), load_weights_only=True, lr=0.0)
    saved = torch.load(tmp_path / "plain.pt", weights_only=False)["state"]["model"]
    state = both_branches(one)
    for name in ("module.2.weight", "module.6.bias"):
        assert torch.equal(state[name], saved[name])
        layer, _, last = name.rpartition(".")
        assert torch.equal(state[f"{layer}.auxiliary.{last}"], saved[name])


@pytest.mark.parametrize(("mode", "split"), [("append", True), ("replace", False)])
def test_compiled(archive: RunArchive, mode: str, split: bool) -> None:
    torch._dynamo.reset()
    settings = {"mode": mode, "split_batch_norm": split}
    results = [
        fit([replay(archive, **settings)], **arguments)[1].losses
        for arguments in ({}, {"compile_config": {"backend": "aot_eager"}})
    ]
    assert len(results[0]) == 3
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_channels_last(archive: RunArchive, mode: str) -> None:
    class Collate:
        def __call__(self, rows: list[Any]) -> Any:
            x = torch.stack([x for x, _ in rows]).contiguous(memory_format=torch.channels_last)
            return x, torch.stack([y for _, y in rows])

    settings = {"loader": epoch_loader(images(), BATCH, collate_fn=Collate()), "max_duration": "1ba"}
    _, calls, _ = fit([replay(archive, mode=mode), ChannelsLast()], **settings)
    _, plain, _ = fit([replay(archive, mode=mode)], max_duration="1ba")
    for ours, theirs in zip(calls.inputs, plain.inputs, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(calls.losses, plain.losses, atol=1e-5, rtol=0)


def test_bf16(archive: RunArchive) -> None:
    class Bf16(ComposerClassifier):
        def forward(self, batch: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(batch)

    _, calls, log = fit([replay(archive)], Bf16(conv_net(5).module, num_classes=CLASSES))
    assert calls.results[0].dtype == torch.bfloat16
    labels, rows = calls.batches[0][1], spread(BATCH, 0.5)
    clean, hard = F.cross_entropy(calls.results[0], labels), F.cross_entropy(calls.results[1], labels[rows])
    assert float(calls.losses[0]) == pytest.approx(float(2 * clean + hard) / 3, rel=5e-3)
    assert series(log, "adversarial_loss")[0] == pytest.approx(float(hard), rel=5e-3)


# In microbatches of one row, replaced rows are all that there is -----------------------------------------------------


def test_replace_in_microbatches_of_one_row(archive: RunArchive) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, CLASSES))
    model = ComposerClassifier(net, num_classes=CLASSES)
    one, calls, log = fit(
        [replay(archive, mode="replace")], model, device_train_microbatch_size=1, max_duration="1ba", lr=0.0
    )
    state = both_branches(one)
    assert int(state["module.1.num_batches_tracked"]) == 8
    assert int(state["module.1.auxiliary.num_batches_tracked"]) == 8
    assert len(calls.inputs) == 16
    assert series(log, "rows") == [8.0]


def test_mixed_runs_are_recorded_with_their_share_of_the_harvest(archive: RunArchive, tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, run_name="replayed")
    fit([replay(archive, runs=["older", "newer"])], callbacks=[recorder])
    uses = RunArchive(tmp_path).run("replayed").manifest.prior_runs
    assert [(use.algorithm, use.signals, use.weights) for use in uses] == [
        ("adversarial_replay", ["adversarial"], [])
    ] * 2
    assert [use.harvest_seconds for use in uses] == [4.0, 4.0], "one of two views"


def test_other_weights(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, deltas(7), name="adversarial.ep0001")
    _, calls, _ = fit([replay(archive, runs=run_id, attack_weights="1ep")], max_duration="1ba")
    clean, rows = calls.inputs[0], spread(BATCH, 0.5)
    expected = perturbed(clean[rows], deltas(7)[0][positions_of(clean[rows], 0)])
    torch.testing.assert_close(calls.inputs[1], expected, atol=1e-6, rtol=0)


def test_from_a_real_harvest(tmp_path: Path) -> None:
    """Perturbations in 2 bits, as the command makes them, fool the model that they were made for when it trains on."""
    run_id = record(tmp_path, "prior", max_duration="8ep")
    attack = Attack("pgd", epsilon=EPSILON, steps=3)
    (made,) = harvest(
        tmp_path, run_id, signals=["adversarial"], attack=attack, dataset=images(), model=conv_net, progress=False
    )
    assert made.views == [0, 1]
    archive = RunArchive(tmp_path, create=True)
    signal = archive.run(run_id).signal("adversarial")
    assert signal.encoding == "packed"
    recorder = RunRecorder(tmp_path, run_name="replayed")
    model = conv_net()
    model.load_state_dict({name: value.clone() for name, value in archive.run(run_id).weights("last").items()})
    _, calls, log = fit([replay(archive, runs=run_id)], model, lr=0.0, max_duration="2ep", callbacks=[recorder])
    rows = spread(BATCH, 0.5)
    for batch, (inputs, _) in enumerate(calls.batches):
        view = batch // 3
        positions = positions_of(inputs[rows], view)
        delta, _ = signal.gather(positions, torch.full_like(positions, view))
        assert float(delta.abs().max()) <= EPSILON + 1e-7
        assert float(delta.abs().mean()) > EPSILON / 2
        expected = perturbed(inputs[rows], delta)
        torch.testing.assert_close(calls.inputs[2 * batch + 1], expected, atol=1e-6, rtol=0)
    hard, clean = (sum(series(log, f"{name}_loss")) for name in ("adversarial", "clean"))
    assert hard > 1.5 * clean
    harvests = archive.run(run_id).manifest.harvests
    (use,) = RunArchive(tmp_path).run("replayed").manifest.prior_runs
    assert use.harvest_seconds == pytest.approx(sum(one.seconds for one in harvests))


def test_given_pixels(archive: RunArchive) -> None:
    """Another normalisation than the prior run's: perturbations are in pixel units."""
    mean, std = [0.25, 0.5, 0.75], [0.5, 0.25, 1.0]
    given = images(mean=mean, std=std)
    del given.pixel_space
    _, calls, _ = fit(
        [replay(archive, pixels={"mean": mean, "std": std}, mismatch="allow")], data=given, max_duration="1ba"
    )
    clean, rows = calls.inputs[0], spread(BATCH, 0.5)
    delta = NEWER[0][positions_of(clean[rows], 0, given)]
    m, s = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    expected = ((clean[rows] * s + m + delta).clamp(0, 1) - m) / s
    torch.testing.assert_close(calls.inputs[1], expected, atol=1e-6, rtol=0)
