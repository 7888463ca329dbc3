"""Scores read from archived signals: which source, which epoch, which example, and over which runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from compare.synthetic_runs import write_run
from reuse_algos.archive import DatasetRecord, HarvestRecord, PriorRun, RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import PriorRunMismatchError, RunNotFoundError, SignalNotFoundError
from reuse_algos.priors.scores import run_scores as module
from reuse_algos.priors.scores.label_noise import label_noise
from reuse_algos.priors.scores.run_scores import (
    ENSEMBLE_SCORES,
    SCORES,
    ScoreSpec,
    prior_scores,
    recorded_info,
    score_uses,
)

N, C = 6, 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
KEYS = torch.tensor([10, 11, 12, 13, 14, 15])
INFO = DatasetInfo("made-up", KEYS, LABELS, ("a", "b", "c"))
EPOCHS = 4  # of every run below


def logits_of(seed: int, count: int = N) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, C)) * 2).float()


def softmax(*logits: Tensor) -> Any:
    """The mean of the probabilities."""
    return np.mean([scipy.special.softmax(one.double().numpy(), axis=1) for one in logits], axis=0)


def put(
    name: str, slot: int, values: Tensor, *, epoch: int | None = None, harvest: bool = False, ids: Any = None
) -> tuple[Any, ...]:
    """One segment, as the recorder and the harvest write them."""
    ids = torch.arange(len(values)) if ids is None else torch.tensor(ids)
    meta = {
        "slot": slot, "epoch": slot if epoch is None else epoch, "view": 0,
        "source": "harvest" if harvest else "capture", "encoding": "dense",
        "num_classes": values.shape[1] if values.dim() > 1 else None,
    }  # fmt: skip
    return "signals", name, {"ids": ids, "values": values[ids]}, meta


class Made:
    """An archive to which runs are added."""

    def __init__(self, path: Path) -> None:
        self.archive = RunArchive(path / "archive", create=True)

    def run(self, *files: tuple[Any, ...], info: DatasetInfo = INFO, labelled: bool = True, **fields: Any) -> PriorRun:
        labels = {"labels": info.labels} if labelled else {}
        known = DatasetInfo(info.name, info.keys, info.labels if labelled else None, info.class_names)
        record = DatasetRecord(
            name=info.name, num_examples=info.num_examples, fingerprint=known.fingerprint, class_names=list("abc"),
            num_classes=C, labels_known=labelled,
        )  # fmt: skip
        examples = ("dataset", "examples", {"keys": info.keys, **labels}, {})
        run_id = write_run(
            self.archive, "made", 0, [0.2, 0.9, 0.9, 0.8], put=[examples, *files], dataset=record, **fields
        )
        return self.archive.run(run_id)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def score(runs: PriorRun | list[PriorRun], name: str, info: DatasetInfo = INFO, **spec: Any) -> np.ndarray:
    mismatch = spec.pop("mismatch", "refuse")
    found = prior_scores(runs if isinstance(runs, list) else [runs], ScoreSpec(name, **spec), info, mismatch=mismatch)
    assert (found.dtype, found.shape, found.device.type) == (torch.float64, (info.num_examples,), "cpu")
    return found.numpy()


def close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


LOSSES = torch.arange(1.0, 1 + EPOCHS * N).reshape(EPOCHS, N) / 10


# Sources --------------------------------------------------------------------------------------------------------------


def test_captured_losses_before_logits(made: Made) -> None:
    losses = [put("loss", epoch, LOSSES[epoch]) for epoch in range(EPOCHS)]
    run = made.run(*losses, put("logits", 0, logits_of(0), epoch=3))
    close(score(run, "loss"), LOSSES[3])
    close(score(run, "loss", epoch=1), LOSSES[1])
    close(score(run, "loss_mean"), LOSSES.double().mean(0))
    close(score(run, "loss_mean", epoch=1), LOSSES[:2].double().mean(0))
    p = np.exp(-LOSSES.double().numpy())
    var = p.var(axis=0, ddof=1)
    close(score(run, "variance"), np.sqrt(var + var**2 / 3))
    close(score(run, "threshold"), p.mean(0) * (1 - p.mean(0)))


def test_logits_where_nothing_else_is(made: Made) -> None:
    logits = [logits_of(seed).half().float() for seed in range(3)]
    run = made.run(*(put("logits", epoch, one.half()) for epoch, one in enumerate(logits)))
    p = np.stack([softmax(one) for one in logits])
    rows, y = np.arange(N), LABELS.numpy()
    close(score(run, "loss"), -np.log(p[2, rows, y]))
    close(score(run, "loss_mean"), -np.log(p[:, rows, y]).mean(0))
    close(score(run, "el2n"), np.linalg.norm(p[2] - np.eye(C)[y], axis=1))
    close(score(run, "el2n", epoch=0), np.linalg.norm(p[0] - np.eye(C)[y], axis=1))
    close(score(run, "entropy", epoch=1), scipy.stats.entropy(p[1], axis=1))
    others = np.where(np.eye(C)[y] == 1, -1, p[2]).max(1)
    close(score(run, "margin"), others - p[2, rows, y])
    mean = p[:, rows, y].mean(0)
    close(score(run, "threshold"), mean * (1 - mean))
    correct = p.argmax(2) == y
    events = (correct[:-1] & ~correct[1:]).sum(0)
    close(score(run, "forgetting"), np.where(correct.any(0), events, 3))


def test_answers_where_there_is_no_label_are_unknown(made: Made) -> None:
    """Captured answers are 0 or 1, also where the label is below 0 and nothing can be right."""
    info = DatasetInfo("made-up", KEYS, torch.tensor([0, 1, -100, 0, 1, -1]), None)
    correct = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0]], dtype=torch.uint8)
    captured = made.run(*(put("correct", epoch, correct[epoch]) for epoch in range(3)), info=info)
    close(score(captured, "forgetting", info), [1, 3, np.nan, 0, 1, np.nan])
    logits = made.run(*(put("logits", epoch, logits_of(epoch), epoch=epoch) for epoch in range(3)), info=info)
    assert np.isnan(score(logits, "forgetting", info)).tolist() == [False, False, True, False, False, True]


def test_weights_with_two_names_are_one_member(made: Made) -> None:
    """``last`` of a run of 4 epochs and ``ep0004`` are the same checkpoint."""
    few = [put("logits.ep0002", 0, logits_of(0), harvest=True), put("logits", 0, logits_of(1), harvest=True)]
    run, again = made.run(*few), made.run(*few, put("logits.ep0004", 0, logits_of(1), harvest=True))
    for name in (*ENSEMBLE_SCORES, "forgetting", "variance"):
        close(score(again, name), score(run, name), 0)
    alone = made.run(*few[1:], put("logits.ep0004", 0, logits_of(1), harvest=True))
    with pytest.raises(SignalNotFoundError, match="at least 2 members"):
        score(alone, "mutual_information")


def test_captured_correctness_before_logits(made: Made) -> None:
    correct = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    run = made.run(*(put("correct", epoch, row.to(torch.uint8)) for epoch, row in enumerate(correct)))
    close(score(run, "forgetting"), [2, 4, 0, 0, 1, 0])
    close(score(run, "forgetting", epoch=2), [1, 3, 0, 0, 1, 3])


def test_harvested_scores_by_the_epoch_of_their_weights(made: Made) -> None:
    values = {name: torch.rand(N, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abcdef")}
    run = made.run(
        put("logits", 0, logits_of(0), epoch=3),
        put("el2n", 0, values["a"], epoch=EPOCHS, harvest=True),
        put("el2n.ep0002", 0, values["b"], epoch=2, harvest=True),
        put("el2n.best", 0, values["c"], epoch=EPOCHS, harvest=True),  # whose best epoch was 2, of two equal ones
        put("grand", 0, values["d"], epoch=EPOCHS, harvest=True),
        put("grand.ep0001", 0, values["e"], epoch=1, harvest=True),
        put("grand_last_layer", 0, values["f"], epoch=EPOCHS, harvest=True),
    )
    close(score(run, "el2n"), values["a"])
    close(score(run, "el2n", epoch=EPOCHS), values["a"])
    close(score(run, "el2n", epoch=2), values["c"])  # "best" sorts before "ep0002"; both are of this epoch
    close(score(run, "el2n", epoch=3), np.linalg.norm(softmax(logits_of(0)) - np.eye(C)[LABELS], axis=1))
    close(score(run, "grand"), values["d"])
    close(score(run, "grand", epoch=1), values["e"])
    close(score(run, "grand_last_layer"), values["f"])


def test_views_of_a_harvest_count_as_their_mean(made: Made) -> None:
    a, b = logits_of(1), logits_of(2)
    run = made.run(
        put("logits", 0, a, epoch=4, harvest=True), put("logits", 1, b, epoch=4, harvest=True),
        put("el2n", 0, torch.full((N,), 0.2), harvest=True), put("el2n", 1, torch.full((N,), 0.6), harvest=True),
    )  # fmt: skip
    close(score(run, "el2n"), np.full(N, 0.4))
    close(
        score(run, "entropy"), (scipy.stats.entropy(softmax(a), axis=1) + scipy.stats.entropy(softmax(b), axis=1)) / 2
    )


def test_an_example_that_the_last_epoch_left_out_has_its_last_known_value(made: Made) -> None:
    run = made.run(
        put("loss", 0, LOSSES[0], ids=[0, 1, 2]),
        put("loss", 1, LOSSES[1], ids=[0, 3]),
        put("loss", 2, LOSSES[2], ids=[1, 4]),
    )
    expected = [LOSSES[1, 0], LOSSES[2, 1], LOSSES[0, 2], LOSSES[1, 3], LOSSES[2, 4], np.nan]
    close(score(run, "loss"), expected)
    known = score(run, "loss", epoch=1)
    close(known, [LOSSES[1, 0], np.nan, np.nan, LOSSES[1, 3], np.nan, np.nan])
    assert np.isnan(score(run, "variance")).tolist() == [False, False, True, True, True, True]


def test_a_history_is_not_mixed_from_captured_and_harvested(made: Made) -> None:
    captured, harvested = [logits_of(s) for s in range(2)], [logits_of(s) for s in range(5, 8)]
    run = made.run(
        *(put("logits", epoch, one) for epoch, one in enumerate(captured)),
        *(put(f"logits.ep000{e}", 0, one, epoch=e, harvest=True) for e, one in enumerate(harvested, 1)),
    )
    p = np.stack([softmax(one) for one in harvested])[:, np.arange(N), LABELS]
    close(score(run, "threshold"), p.mean(0) * (1 - p.mean(0)))


@pytest.mark.parametrize("name", SCORES)
def test_chunks_change_nothing(made: Made, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = made.run(
        *(put("logits", epoch, logits_of(epoch)) for epoch in range(3)),
        *(put(signal, 0, LOSSES[0], harvest=True) for signal in ("grand", "grand_last_layer")),
    )
    whole = score(run, name)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 8 * (C + 3) * 2)
    np.testing.assert_array_equal(score(run, name), whole)


def test_what_was_read_and_what_it_cost(made: Made) -> None:
    record = HarvestRecord(signal="logits.ep0002", views=[0], weights="ep0002", seconds=3.0, hardware="x")
    run = made.run(
        put("loss", 0, LOSSES[0]),
        put("logits", 0, logits_of(0), epoch=3),
        put("logits.ep0002", 0, logits_of(1), epoch=2, harvest=True),
        put("logits.ep0004", 0, logits_of(1), epoch=4, harvest=True),
        harvests=[
            record,
            HarvestRecord(signal="logits.ep0004", views=[0], weights="ep0004", seconds=5.0, hardware="x"),
        ],
    )

    def uses(**spec: Any) -> tuple[list[str], float]:
        (use,) = score_uses([run], ScoreSpec(**spec), "history_curriculum")
        assert (use.run_id, use.algorithm, use.weights) == (run.id, "history_curriculum", [])
        return use.signals, use.harvest_seconds

    assert uses(name="loss") == (["loss"], 0.0)
    assert uses(name="el2n", epoch=2) == (["logits.ep0002"], 3.0)
    assert uses(name="el2n", epoch=3) == (["logits"], 0.0)
    assert uses(name="entropy") == (["logits.ep0004"], 5.0)
    assert uses(name="mutual_information") == (["logits.ep0002", "logits.ep0004"], 8.0)


# Examples -------------------------------------------------------------------------------------------------------------


def test_examples_are_matched_by_key_and_unknown_ones_are_nan(made: Made) -> None:
    run = made.run(*(put("loss", epoch, LOSSES[epoch]) for epoch in range(3)), put("logits", 0, logits_of(0)))
    # Another order, two new examples, and one (key 12) with another label.
    info = DatasetInfo("grown", torch.tensor([15, 99, 10, 12, 11, 7]), torch.tensor([2, 0, 0, 1, 1, 2]), tuple("abc"))
    with pytest.raises(PriorRunMismatchError, match="4 examples are common by key, 1 of them with another label"):
        score(run, "loss", info)
    expected = [LOSSES[2, 5], np.nan, LOSSES[2, 0], np.nan, LOSSES[2, 1], np.nan]
    close(score(run, "loss", info, mismatch="allow"), expected)
    p = np.exp(-LOSSES[:3].double().numpy()).mean(0)[[5, 0, 0, 0, 1, 0]]
    close(score(run, "threshold", info, mismatch="allow"), np.where(np.isnan(expected), np.nan, p * (1 - p)))
    other = made.run(put("logits", 0, logits_of(1)))
    found = score([run, other], "mutual_information", info, mismatch="allow")
    assert np.isnan(found).tolist() == [False, True, False, True, False, True]
    close(found[[0, 2, 4]], score([run, other], "mutual_information")[[5, 0, 1]])


def test_recorded_info_is_the_data_of_the_run(made: Made) -> None:
    run = made.run(put("loss", 0, LOSSES[0]))
    info = recorded_info(run)
    assert (info.fingerprint, info.class_names) == (INFO.fingerprint, ("a", "b", "c"))
    with pytest.raises(SignalNotFoundError, match="no record of its data"):
        recorded_info(made.archive.run(write_run(made.archive, "bare", 1, [0.5])))


# Over runs ------------------------------------------------------------------------------------------------------------


def test_mean_of_values_and_of_ranks(made: Made) -> None:
    a, b = torch.tensor([5.0, 1, 1, 2, 9, 3]), torch.tensor([100.0, 700, 300, 300, 300, 0])
    runs = [made.run(put("loss", 0, a)), made.run(put("loss", 0, b, ids=[0, 1, 2, 3, 4]))]
    close(score(runs, "loss"), [52.5, 350.5, 150.5, 151, 154.5, 3])
    first = (scipy.stats.rankdata(a) - 1) / 5
    second = np.append((scipy.stats.rankdata(b[:5]) - 1) / 4, np.nan)
    close(score(runs, "loss", aggregate="rank"), np.nanmean([first, second], axis=0))


def test_ensembles_of_runs_and_checkpoints(made: Made) -> None:
    logits = [logits_of(seed) for seed in range(6)]
    one = made.run(
        put("logits", 5, logits[5], epoch=3),  # a captured epoch is no member where checkpoints were harvested
        put("logits", 0, logits[0], epoch=4, harvest=True),
        put("logits", 1, logits[1], epoch=4, harvest=True),
        put("logits.ep0002", 0, logits[2], epoch=2, harvest=True),
    )
    two = made.run(put("logits", 0, logits[3], epoch=2), put("logits", 1, logits[4], epoch=3))
    members = [softmax(logits[2]), softmax(logits[0], logits[1]), softmax(logits[3]), softmax(logits[4])]

    def expected(p: Any) -> dict[str, Any]:
        p = np.stack(p)
        votes = scipy.stats.mode(p.argmax(2), axis=0).count
        information = scipy.stats.entropy(p.mean(0), axis=1) - scipy.stats.entropy(p, axis=2).mean(0)
        return {"variation_ratio": 1 - votes / len(p), "mutual_information": information}

    for name in ENSEMBLE_SCORES:
        close(score([one, two], name), expected(members)[name])
        close(score(one, name), expected(members[:2])[name])
        close(score([one, two], name, epoch=2), expected([members[0], members[2]])[name])
        ranks = (scipy.stats.rankdata(expected(members)[name].round(12)) - 1) / (N - 1)
        close(score([one, two], name, aggregate="rank"), ranks)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_a_missing_signal_is_named_with_the_command_that_fills_it(made: Made) -> None:
    run = made.run(put("loss", 0, LOSSES[0]), ("weights", "ep0002", {"w": torch.zeros(1)}, {}))
    place = shlex.quote(run.archive)  # the archive's own, so that the command works as it is printed
    cases = {
        ("el2n", None): f"from el2n or logits; run {run.id} has none of it (its signals: loss; its weights: ep0002). "
        f"Fill it: `reuse-algos harvest {place} {run.id} --signals el2n`.",
        ("grand", 2): f"`reuse-algos harvest {place} {run.id} --signals grand --weights ep0002`",
        ("loss", 7): "of epoch 7; run made-0-",
        ("entropy", None): "--signals logits",
        ("forgetting", None): "in at least 2 epochs; run",
        ("variance", None): "has loss of epochs 0 (its",
        ("variation_ratio", None): "compares at least 2 members, the logits of runs or checkpoints; made-0-",
        ("mutual_information", 3): "has 0 of epoch 3. Name more runs",
    }
    for (name, epoch), message in cases.items():
        with pytest.raises(SignalNotFoundError) as raised:
            score(run, name, epoch=epoch)
        assert message in str(raised.value)
    with pytest.raises(RunNotFoundError, match="name at least one"):
        score([], "loss")


def test_labels_are_needed_where_they_matter(made: Made) -> None:
    run = made.run(put("logits", 0, logits_of(0)), put("loss", 1, LOSSES[0]), labelled=False)
    info = recorded_info(run)
    close(score(run, "loss", info), LOSSES[0])
    close(score(run, "entropy", info), scipy.stats.entropy(softmax(logits_of(0)), axis=1))
    with pytest.raises(SignalNotFoundError, match="recorded no labels"):
        score(run, "margin", info)


def test_members_of_other_classes_are_refused(made: Made) -> None:
    run = made.run(put("logits", 0, logits_of(0)))
    other = made.run(put("logits", 0, torch.zeros(N, C + 1)))
    with pytest.raises(PriorRunMismatchError, match="has 3; run .* has 4"):
        score([run, other], "mutual_information")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "el3n"}, "no score 'el3n'. Did you mean 'el2n'"),
        ({"aggregate": "ranks"}, "by 'ranks'. Did you mean 'rank'"),
        ({"epoch": -1}, "from 0, got -1"),
    ],
)
def test_bad_specs(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreSpec(**spec)


# Suspected labels -----------------------------------------------------------------------------------------------------


def test_the_area_under_the_margin(made: Made) -> None:
    logits = [logits_of(seed) for seed in range(4)]
    y, rows = LABELS.numpy(), np.arange(N)

    def margins(one: Tensor) -> Any:
        z = one.double().numpy()
        return z[rows, y] - np.where(np.eye(C)[y] == 1, -np.inf, z).max(1)

    one = made.run(*(put("logits", epoch, logits[epoch]) for epoch in range(2)))
    captured = torch.linspace(-2, 3, 4 * N).reshape(4, N)
    two = made.run(*(put("logit_margin", e, captured[e]) for e in range(4)), put("logits", 0, logits[3], epoch=3))
    noise = label_noise([one, two], INFO)
    expected = (np.mean([margins(logits[0]), margins(logits[1])], axis=0) + captured.double().numpy().mean(0)) / 2
    close(noise.margins_N, expected)
    assert noise.presentations == [2, 4]
    p = (softmax(logits[0], logits[1]) + softmax(logits[3])) / 2
    assert noise.instead_N.tolist() == np.where(np.eye(C)[y] == 1, -1, p).argmax(1).tolist()
    order = [int(i) for i in np.argsort(expected) if expected[i] < 0]
    assert noise.suspects().tolist() == order

    only = made.run(*(put("logit_margin", epoch, captured[epoch], ids=[0, 1, 2]) for epoch in range(2)))
    noise = label_noise([only], INFO)
    assert noise.instead_N.tolist() == [-1] * N
    assert noise.margins_N.isnan().tolist() == [False] * 3 + [True] * 3
    assert noise.suspects().tolist() == [0, 1, 2]


def test_suspected_labels_need_margins_and_labels(made: Made) -> None:
    run = made.run(put("loss", 0, LOSSES[0]))
    with pytest.raises(SignalNotFoundError, match="has neither .its signals: loss.*logit_margin: .., logits"):
        label_noise([run], INFO)
    with pytest.raises(SignalNotFoundError, match="labels of made-up are not known"):
        label_noise([run], DatasetInfo("made-up", KEYS))
    with pytest.raises(RunNotFoundError):
        label_noise([], INFO)
