"""AdversarialReplay beside other algorithms and the recorder, in one recipe; its draws, logs, warnings and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms import CutMix, CutOut, MixUp
from composer.models import ComposerClassifier
from torch import Tensor

from replaying import (
    BATCH,
    CLASSES,
    SHAPE,
    N,
    conv_net,
    deltas,
    fit,
    follow,
    images,
    make_archive,
    perturbed,
    positions_of,
    put_deltas,
    record,
    replay,
    series,
)
from reuse_algos.algorithms import AdversarialReplay, HistoryCurriculum, PriorRunDistillation
from reuse_algos.algorithms.adversarial_replay import choose_prior_runs, fooling_rate, replayed_rows
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.augment import Augmentation
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import (
    ExampleIdError,
    ModelError,
    NoEffectWarning,
    PriorRunMismatchError,
    SignalNotFoundError,
    StaleReplayWarning,
)

ROWS = torch.arange(1, BATCH, 2)  # of fraction 0.5
KEPT = torch.arange(0, BATCH, 2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> RunArchive:
    return make_archive(tmp_path_factory.mktemp("replay"))


# With distillation and a curriculum ----------------------------------------------------------------------------------


def kl_rows(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    p = torch.softmax(teacher.double() / temperature, 1)
    q = torch.log_softmax(student.double() / temperature, 1)
    return (p * (p.log() - q)).sum(1) * temperature**2


def teacher_logits(archive: RunArchive, clean: Tensor) -> Tensor:
    model = conv_net()
    model.load_state_dict({name: value.clone() for name, value in archive.run("older").weights("last").items()})
    with torch.no_grad():
        return model.eval()((clean, None))


@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("source", ["live", "cached"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=str)
def test_loss_with_distillation_and_curriculum_by_hand(
    archive: RunArchive, mode: str, source: str, weighted: bool, order: list[int]
) -> None:
    scores = torch.linspace(0.1, 2.0, N).double()
    curriculum = HistoryCurriculum(archive, strategy="active_bias", mode="weighting", score=scores)
    distillation = PriorRunDistillation(
        archive, "older", source=source, weight=0.7, teacher_model=conv_net, mismatch="allow"
    )
    recipe = [curriculum, replay(archive, mode=mode), distillation]
    made = [recipe[i] for i in order if weighted or i != 0]
    one, calls, _ = fit(made, max_duration="1ba")
    ours = [type(a).__name__ for a in one.state.algorithms]
    assert ours == ["HistoryCurriculum", "AdversarialReplay", "PriorRunDistillation"][not weighted :]
    inputs, labels = calls.batches[0]
    weights = torch.ones(BATCH, dtype=torch.float64)
    if weighted:
        known = curriculum.example_weights(one.state, positions_of(inputs, 0))
        assert known is not None
        weights = known
        assert float(weights.max() - weights.min()) > 0.1
    if source == "live":
        target = teacher_logits(archive, inputs)
    else:
        logits = archive.run("older").signal("logits")
        target, seen = logits.gather(positions_of(inputs, 0), torch.zeros(BATCH, dtype=torch.int64))
        assert bool(seen.all())
    # Every row as (outputs, label, teacher, weight); then one mean, where every row counts alike.
    clean, hard = calls.results
    if mode == "append":
        outputs, origin = torch.cat([clean, hard]), torch.cat([torch.arange(BATCH), ROWS])
    else:
        outputs, origin = torch.cat([clean, hard]), torch.cat([KEPT, ROWS])
    losses = F.cross_entropy(outputs.double(), labels[origin], reduction="none")
    terms = kl_rows(outputs, target[origin])
    expected = float((weights[origin] * (0.3 * losses + 0.7 * terms)).mean())
    assert float(calls.losses[0]) == pytest.approx(expected, rel=1e-5)


def test_distillation_in_microbatches_is_that_of_the_whole_batch(archive: RunArchive) -> None:
    def weights(size: int) -> dict[str, Tensor]:
        made = [replay(archive, fraction=0.3), PriorRunDistillation(archive, "older", teacher_model=conv_net)]
        one, _, _ = fit(made, conv_net(5, norm=False), device_train_microbatch_size=size)
        return one.state.model.state_dict()

    whole, parts = weights(16), weights(2)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=3e-6, rtol=0)


def test_a_curriculum_learns_nothing_from_replaced_rows(archive: RunArchive) -> None:
    curriculum = HistoryCurriculum(
        archive, strategy="dynamic_prune", score=torch.rand(N).double(), prune_rate=0.1, update=True
    )
    # One epoch of one batch that holds all examples that are shown.
    _, calls, _ = fit([curriculum, replay(archive, mode="replace")], max_duration="1ep", lr=0.0)
    assert curriculum._own is not None
    known = curriculum._own.known
    for batch, (inputs, labels) in enumerate(calls.batches):
        positions = positions_of(inputs, 0)
        losses = F.cross_entropy(calls.outputs[batch], labels, reduction="none")
        kept = torch.arange(0, len(labels), 2)
        assert known[positions[kept]] == pytest.approx(losses[kept].numpy(), abs=1e-6)
        assert bool(torch.isnan(torch.from_numpy(known[positions[1::2]])).all())


def test_the_recorder_keeps_outputs_of_clean_rows_only(archive: RunArchive, tmp_path: Path) -> None:
    found = {}
    for mode in ("append", "replace"):
        recorder = RunRecorder(tmp_path, run_name=mode, signals={"logits": {}, "loss": {}, "correct": {}})
        _, calls, _ = fit([replay(archive, mode=mode)], callbacks=[recorder])
        run = RunArchive(tmp_path).run(mode)
        found[mode] = run.signal("logits").seen(0)
        logits, _ = run.signal("logits").dense(0)
        losses, _ = run.signal("loss").dense(0)
        for batch, (inputs, labels) in enumerate(calls.batches):
            rows = KEPT if mode == "replace" else torch.arange(BATCH)
            positions = positions_of(inputs, 0)[rows]
            outputs = calls.outputs[batch][rows]
            torch.testing.assert_close(logits[positions].float(), outputs, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(losses[positions], F.cross_entropy(outputs, labels[rows], reduction="none"))
    assert int(found["append"].sum()) == N
    assert int(found["replace"].sum()) == N // 2


# The draw ------------------------------------------------------------------------------------------------------------


def test_rows_are_spread_evenly() -> None:
    assert replayed_rows(0.5, 8).tolist() == [1, 3, 5, 7]
    assert replayed_rows(1.0, 3).tolist() == [0, 1, 2]
    assert replayed_rows(0.29, 100).shape == (29,)
    for fraction in (0.01, 0.1, 0.33, 0.7, 0.99):
        for rows in (0, 1, 7, 100, 1000):
            assert len(replayed_rows(fraction, rows)) == int(fraction * rows + 1e-9)


def test_runs_are_drawn_by_recency_and_only_where_they_have_a_row() -> None:
    keys = torch.arange(20_000)
    everywhere = torch.ones(20_000, 3, dtype=torch.bool)
    drawn = choose_prior_runs(7, keys, 0, everywhere, 0.5)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([4.0, 2.0, 1.0]) / 7, atol=0.015, rtol=0)
    assert torch.equal(drawn[500:600], choose_prior_runs(7, keys[500:600], 0, everywhere[:100], 0.5))
    for other in ((8, 0), (7, 1)):
        again = choose_prior_runs(other[0], keys, other[1], everywhere, 0.5)
        assert 0.4 < float((again == drawn).float().mean()) < 0.46  # 21 of 49, as independent draws
    some = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    drawn = choose_prior_runs(7, keys, 0, some, 0.5)
    assert torch.equal(drawn < 0, ~some.any(1))
    assert bool(some[drawn >= 0].gather(1, drawn[drawn >= 0].unsqueeze(1)).all())
    both = some[:, 0] & ~some[:, 1] & some[:, 2]
    assert float((drawn[both] == 0).float().mean()) == pytest.approx(0.8, abs=0.04)


def test_each_example_gets_the_perturbation_of_the_run_that_was_drawn(archive: RunArchive) -> None:
    algorithm = replay(archive, runs=["newer", "older"], recency=0.5, seed=3)
    _, calls, _ = fit([algorithm], max_duration="2ep")
    for batch, (inputs, _) in enumerate(calls.batches):
        view = batch // 3
        clean, positions = inputs[ROWS], positions_of(inputs[ROWS], view)
        drawn = choose_prior_runs(3, positions, view, torch.ones(8, 2, dtype=torch.bool), 0.5)
        both = torch.stack([deltas(2)[view][positions], deltas(1)[view][positions]])
        expected = perturbed(clean, both[drawn, torch.arange(8)])
        torch.testing.assert_close(calls.inputs[2 * batch + 1], expected, atol=1e-6, rtol=0)


def test_perturbations_too_large_for_the_device_are_read_from_the_file(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> list[Tensor]:
        return fit([replay(archive, runs=["newer", "older"])])[1].inputs

    resident = seen()
    monkeypatch.setattr("reuse_algos.algorithms.adversarial_replay.perturbations._RESIDENT_BYTES", 0)
    assert all(torch.equal(a, b) for a, b in zip(resident, seen(), strict=True))


@pytest.mark.ranks
def test_two_ranks_replay_what_one_does(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "archive")
    script = Path(__file__).parents[1] / "ranks" / "follow_replay.py"
    command = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    one = follow(archive)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name, expected in one.items():
        assert parts[0][name]["weights"] == parts[1][name]["weights"], "DDP kept them alike"
        both: dict[str, float] = {**parts[0][name]["replayed"], **parts[1][name]["replayed"]}
        # Which examples are replayed depends on the ranks (a share of each rank's rows); what they are shown does not.
        everything = one["append-True"]["replayed"]
        assert both == pytest.approx({key: everything[key] for key in both}, rel=1e-5)
        for metric, values in expected["metrics"].items():
            assert parts[0][name]["metrics"][metric] == parts[1][name]["metrics"][metric]
            if name != "replace-True":
                assert parts[0][name]["metrics"][metric] == pytest.approx(values, rel=1e-5, abs=1e-6), (name, metric)
        if name != "replace-True":
            assert both.keys() == everything.keys()
            assert parts[0][name]["weights"] == pytest.approx(expected["weights"], rel=1e-4, abs=1e-6)
        assert parts[0][name]["metrics"]["rows"] == expected["metrics"]["rows"]


# Other data ----------------------------------------------------------------------------------------------------------


def grown() -> Any:
    """Twelve more examples in front of the known ones."""
    labels = torch.cat([torch.zeros(12, dtype=torch.int64), torch.arange(N) % CLASSES])
    keys = torch.cat([torch.arange(1000, 1012), torch.arange(N)])
    data = images(N + 12, info=DatasetInfo("grown", keys, labels, tuple("abcd")))
    return data


def test_grown_data_is_refused_or_replayed_where_known(archive: RunArchive) -> None:
    with pytest.raises(PriorRunMismatchError, match=r"trained on corners with 48 examples .* grown with 60"):
        fit([replay(archive)], data=grown())
    _, calls, log = fit([replay(archive, mismatch="allow", fraction=1.0)], data=grown())
    rows = series(log, "rows")
    assert sum(rows) == N
    assert series(log, "coverage") == pytest.approx([n / size for n, size in zip(rows, (16, 16, 16, 12), strict=True)])
    place = 0
    for inputs, labels in calls.batches:
        positions = positions_of(inputs, 0, grown())
        known = positions >= 12
        expected = perturbed(inputs[known], deltas(2)[0][positions[known] - 12])
        torch.testing.assert_close(calls.inputs[place + 1], expected, atol=1e-6, rtol=0)
        place += 2
        del labels


def test_missing_views_and_rows(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, deltas(3), ids={0: torch.arange(0, N, 2), 1: torch.zeros(0, dtype=torch.int64)})
    with pytest.raises(PriorRunMismatchError, match=r"perturbations for 1 of the 2 views .*--signals adversarial"):
        fit([replay(archive, runs=run_id)])
    _, _, log = fit([replay(archive, runs=run_id, mismatch="allow", fraction=1.0)], max_duration="2ep")
    rows = series(log, "rows")
    assert sum(rows[:3]) == N // 2
    assert rows[3:] == [0.0] * 3


def test_nothing_to_replay_is_told(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path)
    run_id = record(tmp_path, "prior")
    with pytest.raises(SignalNotFoundError, match=r"no adversarial perturbations .*`reuse-algos harvest .* --views 2`"):
        fit([replay(archive, runs=run_id)])
    with pytest.raises(SignalNotFoundError, match=r"adversarial.best'.*--weights best`"):
        fit([replay(archive, runs=run_id, attack_weights="best")])


def test_other_views_and_sizes_are_refused(archive: RunArchive, tmp_path: Path) -> None:
    other = images(augmentation=Augmentation("crop", padding=2))
    for mismatch in ("refuse", "allow"):
        with pytest.raises(PriorRunMismatchError, match=r"padding=1.*padding=2.*only adversarial for the view"):
            fit([replay(archive, mismatch=mismatch)], data=other)
    with pytest.raises(PriorRunMismatchError, match=r"\(3, 'crop\(padding=1\)'\), this run \(4, "):
        fit([replay(archive)], data=images(view_seed=4))
    with pytest.raises(PriorRunMismatchError, match="augmentation is not a known view"):
        fit([replay(archive, mismatch="allow")], data=images(num_views=0))
    larger = RunArchive(tmp_path)
    run_id = record(tmp_path, "prior")
    put_deltas(larger, run_id, deltas(3, shape=(3, 8, 8)))
    with pytest.raises(PriorRunMismatchError, match=r"images \(3, 8, 8\).*this run's images are \(3, 6, 6\)"):
        fit([replay(larger, runs=run_id)])


def test_a_size_that_only_the_batch_tells(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, deltas(3, shape=(3, 8, 8)))
    data = images()
    quiet = type("Quiet", (type(data),), {"image_shape": property(lambda self: None)})
    data.__class__ = quiet
    with pytest.raises(PriorRunMismatchError, match=r"this run's images are \(3, 6, 6\)"):
        fit([replay(archive, runs=run_id)], data=data)


@pytest.mark.parametrize("other", [MixUp, CutMix, CutOut])
def test_algorithms_that_change_inputs_are_refused(archive: RunArchive, other: Any) -> None:
    with pytest.raises(PriorRunMismatchError, match=f"{other.__name__} changes the inputs.*Remove {other.__name__}"):
        fit([replay(archive), other()])


def test_two_replays_are_refused(archive: RunArchive) -> None:
    with pytest.raises(ExampleIdError, match="two AdversarialReplay"):
        fit([replay(archive), replay(archive)])


def test_pixels_must_be_known(archive: RunArchive) -> None:
    data = images()
    del data.pixel_space
    with pytest.raises(ExampleIdError, match="WorkerImages does not say how its pixels.*pixel_mean and pixel_std"):
        fit([replay(archive)], data=data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, r"fraction must be in \(0, 1\], got 0"),
        ({"fraction": 1.5}, "fraction"),
        ({"fraction": 1, "mode": "replace"}, "some rows must stay clean"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"weight": 0.5, "mode": "replace"}, "weight must be left out"),
        ({"mode": "both"}, "mode must be append or replace, got 'both'"),
        ({"recency": 0}, "recency"),
        ({"every_n_batches": 0}, "every_n_batches"),
        ({"warn_below": 2}, "warn_below"),
        ({"pixel_mean": [0.5]}, "both pixel_mean and pixel_std"),
        ({"mismatch": "perhaps"}, "mismatch"),
    ],
)
def test_settings_out_of_range(archive: RunArchive, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(archive, **settings)


class Odd(ComposerClassifier):
    """Outputs with a number that belongs to no row."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.module(batch[0]), "size": torch.tensor(1.0)}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return F.cross_entropy(outputs["logits"], batch[1])

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> None:
        metric.update(outputs["logits"], batch[1])


def test_outputs_that_cannot_be_put_together(archive: RunArchive) -> None:
    def model() -> Odd:
        return Odd(conv_net().module, num_classes=CLASSES)

    fit([replay(archive)], model(), max_duration="1ba")
    with pytest.raises(ModelError, match=r"tensor \(\) for 8 clean rows.*mode: append"):
        fit([replay(archive, mode="replace")], model(), max_duration="1ba")
    with pytest.raises(ModelError, match=r"tensor \(\) for 24 rows.*split_batch_norm: true"):
        fit([replay(archive, split_batch_norm=False)], model(), max_duration="1ba")


def test_too_few_rows_for_batch_norm(archive: RunArchive) -> None:
    with pytest.raises(ModelError, match=r"1 of 4 rows.*batch norm needs more"):
        fit([replay(archive, fraction=0.25)], device_train_microbatch_size=4, max_duration="1ba")


# Logs, warnings, schedule --------------------------------------------------------------------------------------------


def test_fooling_rate() -> None:
    assert fooling_rate(0.2, 0.6) == pytest.approx(0.5)
    assert fooling_rate(0.2, 0.1) == 0.0
    assert fooling_rate(0.0, 1.0) == 1.0
    assert fooling_rate(1.0, 1.0) is None


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_errors_are_those_of_the_outputs(archive: RunArchive, mode: str) -> None:
    _, calls, log = fit([replay(archive, mode=mode)], max_duration="2ep")
    for batch, (_, labels) in enumerate(calls.batches):
        compared = ROWS if mode == "append" else KEPT
        clean = float((calls.outputs[batch][compared].argmax(1) != labels[compared]).float().mean())
        hard = float((calls.results[2 * batch + 1].argmax(1) != labels[ROWS]).float().mean())
        assert series(log, "clean_error")[batch] == pytest.approx(clean)
        assert series(log, "adversarial_error")[batch] == pytest.approx(hard)
    # A batch of which nothing is classified rightly says nothing of fooling.
    errors = zip(series(log, "clean_error"), series(log, "adversarial_error"), strict=True)
    expected = [rate for rate in (fooling_rate(*pair) for pair in errors) if rate is not None]
    assert series(log, "fooling") == pytest.approx(expected)


def test_warns_once_when_stale(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, torch.zeros(2, N, *SHAPE))
    with pytest.warns(StaleReplayWarning, match=r"turned 0.0% .*warn_below=10.0%.*Harvest a newer run") as warned:
        # At a learning rate of 0 and without statistics of a batch, nothing but the perturbation can tell rows apart.
        fit([replay(archive, runs=run_id, warn_below=0.1)], conv_net(5, norm=False), max_duration="3ep", lr=0.0)
    assert len([one for one in warned if issubclass(one.category, StaleReplayWarning)]) == 1


@pytest.mark.parametrize(
    ("settings", "active"),
    [
        ({"every_n_batches": 3}, [0, 3]),
        ({"start": "1ep"}, [3, 4, 5]),
        ({"stop": "0.5dur"}, [0, 1, 2]),
        ({"start": "2ba", "stop": "1ep"}, [2]),
    ],
)
def test_schedule(archive: RunArchive, settings: dict[str, Any], active: list[int]) -> None:
    algorithm = replay(archive, **settings)
    _, calls, log = fit([algorithm], max_duration="2ep", lr=0.0)
    _, plain, _ = fit([], max_duration="2ep", lr=0.0)
    assert [batch for batch, rows in enumerate(series(log, "rows")) if rows] == active
    assert algorithm.batches_applied == len(active)
    same = [bool(torch.equal(a, b)) for a, b in zip(calls.losses, plain.losses, strict=True)]
    assert [batch for batch, equal in enumerate(same) if not equal] == active


def test_warns_when_it_had_no_effect(archive: RunArchive) -> None:
    with pytest.warns(NoEffectWarning, match="no row was replayed between start=5ep"):
        fit([replay(archive, start="5ep")])


def test_another_source_of_inputs(archive: RunArchive) -> None:
    """As a benchmark has it: an attack on the model that trains."""

    class Online(AdversarialReplay):
        def load_perturbations(self, state: Any, info: Any) -> None:
            pass

        def adversarial_inputs(self, state: Any, rows_R: Tensor) -> Tensor:
            return state.batch[0][rows_R] + 0.25

    _, calls, log = fit([Online(archive, "newer", warn_below=0.0)], max_duration="1ba")
    assert torch.equal(calls.inputs[1], calls.inputs[0][ROWS] + 0.25)
    assert series(log, "rows") == [8.0]
