"""AdversarialReplay beside other algorithms and the recorder, in one recipe; its draws, logs, warnings and refusals."""

from __future__ import annotations

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
    corners,
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
from reuse_algos.algorithms import AdversarialReplay, AdversarialTraining, HistoryCurriculum, PriorRunDistillation
from reuse_algos.algorithms.adversarial_replay import fooling_rate, turned_rows
from reuse_algos.algorithms.adversarial_replay.sums import ReplaySums
from reuse_algos.algorithms.history_curriculum import ActiveBias, DynamicPrune
from reuse_algos.algorithms.prior_run_distillation import KL, Auto, Cached, Live
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.data.images.augment import Augmentation
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
@pytest.mark.parametrize(
    ("weighted", "order"),
    [(False, [0, 1, 2]), (True, [0, 1, 2]), (True, [2, 1, 0])],
    ids=["plain", "weighted", "weighted, listed backwards"],
)
def test_loss_with_distillation_and_curriculum_by_hand(
    archive: RunArchive, mode: str, source: str, weighted: bool, order: list[int]
) -> None:
    scores = torch.linspace(0.1, 2.0, N).double()
    curriculum = HistoryCurriculum(archive, strategy=ActiveBias(mode="weighting"), score=scores)
    teachers = Live(model=conv_net) if source == "live" else Cached(oldest="1dur")
    distillation = PriorRunDistillation(
        archive, "older", source=teachers, loss=KL(weight=0.7), mismatch="allow", when={}
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
        made = [
            replay(archive, fraction=0.3),
            PriorRunDistillation(archive, "older", source=Auto(model=conv_net), loss="kl", when={}),
        ]
        one, _, _ = fit(made, conv_net(5, norm=False), device_train_microbatch_size=size)
        return one.state.model.state_dict()

    whole, parts = weights(16), weights(2)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=3e-6, rtol=0)


def test_a_curriculum_learns_nothing_from_replaced_rows(archive: RunArchive) -> None:
    curriculum = HistoryCurriculum(
        archive, strategy=DynamicPrune(prune_rate=0.1, update=True), score=torch.rand(N).double()
    )
    # One epoch of one batch that holds all examples that are shown.
    _, calls, _ = fit([curriculum, replay(archive, mode="replace")], max_duration="1ep", lr=0.0)
    assert curriculum.own is not None
    known = curriculum.own.known
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


# Other data ----------------------------------------------------------------------------------------------------------


def grown() -> Any:
    """Twelve more examples in front of the known ones."""
    labels = torch.cat([torch.zeros(12, dtype=torch.int64), torch.arange(N) % CLASSES])
    keys = torch.cat([torch.arange(1000, 1012), torch.arange(N)])
    pixels = torch.cat([corners(labels[:12], seed=9), corners(torch.arange(N) % CLASSES)])
    return images(N + 12, info=DatasetInfo("grown", keys, labels, tuple("abcd")), pixels=pixels)


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
    archive = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, deltas(3), ids={0: torch.arange(0, N, 2), 1: torch.zeros(0, dtype=torch.int64)})
    with pytest.raises(PriorRunMismatchError, match=r"perturbations for 1 of the 2 views .*--signals adversarial"):
        fit([replay(archive, runs=run_id)])
    _, _, log = fit([replay(archive, runs=run_id, mismatch="allow", fraction=1.0)], max_duration="2ep")
    rows = series(log, "rows")
    assert sum(rows[:3]) == N // 2
    assert rows[3:] == [0.0] * 3


def test_nothing_to_replay_is_told(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path, create=True)
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
    larger = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior")
    put_deltas(larger, run_id, deltas(3, shape=(3, 8, 8)))
    with pytest.raises(PriorRunMismatchError, match=r"images \(3, 8, 8\).*this run's images are \(3, 6, 6\)"):
        fit([replay(larger, runs=run_id)])


def test_a_size_that_only_the_batch_tells(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior")
    put_deltas(archive, run_id, deltas(3, shape=(3, 8, 8)))
    data = images()
    quiet = type("Quiet", (type(data),), {"image_shape": property(lambda self: None)})
    data.__class__ = quiet
    with pytest.raises(PriorRunMismatchError, match=r"this run's images are \(3, 6, 6\)"):
        fit([replay(archive, runs=run_id)], data=data)


@pytest.mark.parametrize("other", [MixUp, CutMix, CutOut, AdversarialTraining])
def test_algorithms_that_change_inputs_are_refused(archive: RunArchive, other: Any) -> None:
    with pytest.raises(PriorRunMismatchError, match=f"{other.__name__} changes the inputs.*Remove {other.__name__}"):
        fit([replay(archive), other()])


def test_two_replays_are_refused(archive: RunArchive) -> None:
    with pytest.raises(ExampleIdError, match="two AdversarialReplay"):
        fit([replay(archive), replay(archive)])


def test_pixels_must_be_known(archive: RunArchive) -> None:
    data = images()
    del data.pixel_space
    with pytest.raises(ExampleIdError, match="WorkerImages does not say how its pixels.*Give pixels: {mean"):
        fit([replay(archive)], data=data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, r"fraction must be in \(0, 1\], got 0"),
        ({"fraction": 1.5}, "fraction"),
        ({"fraction": 1, "mode": "replace"}, "the main batch norms.*no row"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"mode": {"name": "replace", "weight": 0.5}}, "mode.weight: there is no such key"),
        ({"mode": "both"}, "there is no 'both'"),
        ({"recency": 0}, "recency"),
        ({"every_n_batches": 0}, "every_n_batches"),
        ({"warn_below": 2}, "warn_below"),
        ({"pixels": {"mean": [0.5]}}, "pixels.std: missing"),
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
    expected = []
    for batch, (_, labels) in enumerate(calls.batches):
        right = calls.outputs[batch].argmax(1) == labels
        turned = calls.results[2 * batch + 1].argmax(1) != labels[ROWS]
        if mode == "append" and right[ROWS].any():
            expected.append(float((right[ROWS] & turned).sum() / right[ROWS].sum()))
        elif mode == "replace" and right[KEPT].any():
            expected.append(fooling_rate(1 - float(right[KEPT].float().mean()), float(turned.float().mean())))
    assert len(expected) > 2
    assert series(log, "fooling") == pytest.approx(expected, abs=1e-6)


def test_turned_rows_are_paired() -> None:
    """What is wrong when clean and right when perturbed is not set off against what is turned."""
    targets = torch.tensor([0, 0, 0, 0])
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    clean, hard = torch.tensor([right, right, wrong, wrong]), torch.tensor([right, wrong, right, wrong])
    assert turned_rows(clean, hard, targets).tolist() == [0, 1, 0, 0]
    assert turned_rows(clean, hard, F.one_hot(targets, 2).float()).tolist() == [0, 1, 0, 0]
    dense = turned_rows(clean.T.reshape(1, 2, 4), hard.T.reshape(1, 2, 4), targets.reshape(1, 4))
    assert dense.tolist() == [0.25]
    sums = ReplaySums(torch.device("cpu"))
    sums.add_pairs(clean, hard, targets)
    found = ReplaySums.read(sums.over_ranks(4))
    assert (found["clean_error"], found["adversarial_error"], found["fooling"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("classes", "right", "judged"), [(2, 5, False), (2, 7, True), (10, 3, False), (10, 4, True)])
def test_a_model_near_chance_is_not_judged(classes: int, right: int, judged: bool) -> None:
    logits = torch.zeros(10, classes)
    logits[:right, 0], logits[right:, 1] = 1.0, 1.0
    sums = ReplaySums(torch.device("cpu"))
    sums.add_pairs(logits, logits, torch.zeros(10, dtype=torch.int64))
    assert ReplaySums.staleness(sums.over_ranks(10)) == (0.0 if judged else None)


def test_warns_once_when_stale(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior", model=conv_net(1, norm=False), max_duration="20ep", lr=0.1)
    put_deltas(archive, run_id, torch.zeros(2, N, *SHAPE))

    def trained() -> Any:
        model = conv_net(5, norm=False)
        model.load_state_dict({name: value.clone() for name, value in archive.run(run_id).weights("last").items()})
        return model

    with pytest.warns(StaleReplayWarning, match=r"turned 0.0% .*warn_below=10.0%.*Harvest a newer run") as warned:
        # At a learning rate of 0 and without statistics of a batch, nothing but the perturbation can tell rows apart.
        fit([replay(archive, runs=run_id, warn_below=0.1)], trained(), max_duration="3ep", lr=0.0)
    assert len([one for one in warned if issubclass(one.category, StaleReplayWarning)]) == 1


def test_each_stale_stretch_is_told_and_an_untrained_model_is_not_judged(
    archive: RunArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([None, 0.05, 0.0, None, 0.02, 0.3, 0.01])  # by epoch
    monkeypatch.setattr(ReplaySums, "staleness", staticmethod(lambda totals: next(rates)))
    with pytest.warns(StaleReplayWarning) as warned:
        fit([replay(archive, warn_below=0.1)], max_duration="7ep")
    texts = [str(one.message) for one in warned if issubclass(one.category, StaleReplayWarning)]
    assert [text.split("turned ")[1].split("%")[0] for text in texts] == ["5.0", "1.0"]


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


def test_says_why_it_had_no_effect(archive: RunArchive) -> None:
    with pytest.warns(NoEffectWarning, match=r"fraction=0.01 of the 3 batches in which it was on is not one row"):
        fit([replay(archive, fraction=0.01)])
    with pytest.warns(NoEffectWarning, match=r"replayed rows have weight=0"):
        fit([replay(archive, weight=0.0)])


def test_another_source_of_inputs(archive: RunArchive) -> None:
    """As a benchmark has it: an attack on the model that trains."""

    class Online(AdversarialReplay):
        def load_perturbations(self, state: Any, info: Any) -> None:
            pass

        def adversarial_inputs(self, state: Any, rows_R: Tensor) -> Tensor:
            return state.batch[0][rows_R] + 0.25

    _, calls, log = fit([Online(archive, "newer", perturbations={"warn_below": 0.0})], max_duration="1ba")
    assert torch.equal(calls.inputs[1], calls.inputs[0][ROWS] + 0.25)
    assert series(log, "rows") == [8.0]
