"""What holds for every algorithm, whatever it does: one table of settings, one suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from composer import Event

from algorithms.settings import HOMES, ROWS, Archives, Done, Row, comparable, differing, resume, train
from reuse_algos.algorithms import ReusingAlgorithm
from reuse_algos.archive import RunArchive
from reuse_algos.errors import NoEffectWarning, RunNotFoundError
from toy import epoch_loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:No batches were trained"),  # Composer, where an epoch's last batch was saved
    pytest.mark.filterwarnings("ignore:The ``compute`` method of metric"),
]
READERS = (
    *("curriculum", "dynamic_prune", "distillation, cached", "distillation, live", "replay, append"),
    *("warm start, unfreezing", "warm start, features"),
)
NOTHING = {"tags": {"method": "never trained"}, "limit": 1}
IDLE = [name for name, row in ROWS.items() if row.idle is not None]


@pytest.fixture(scope="session")
def archives(archive: RunArchive, replays: RunArchive) -> Archives:
    return {"blobs": archive, "images": replays}


@pytest.fixture(scope="session")
def straight(archives: Archives) -> Callable[[str], Done]:
    """A training of each row that nobody interrupts, made when it is first asked for."""
    return cache(lambda name: train(ROWS[name], ROWS[name].build(archives)))


@pytest.fixture(scope="session")
def plain() -> Callable[[str], Done]:
    """A training without any algorithm, for each home."""
    return cache(lambda home: train(next(row for row in ROWS.values() if row.home == home), None))


@pytest.mark.parametrize("name", ROWS)
def test_trains_and_says_what_it_did(
    archives: Archives, straight: Callable[[str], Done], plain: Callable[[str], Done], name: str
) -> None:
    row, done = ROWS[name], straight(name)
    shared = done.weights.keys() & plain(row.home).weights.keys()
    assert differing({n: done.weights[n] for n in shared}, {n: plain(row.home).weights[n] for n in shared})
    algorithm = row.build(archives)
    assert done.metrics
    if isinstance(algorithm, ReusingAlgorithm) and "warm" not in name:
        assert done.state["batches_applied"] > 0
        assert max(batch for _, batch in done.metrics) == done.batches


@pytest.mark.parametrize("where", ["within an epoch", "at its end"])
@pytest.mark.parametrize("name", ROWS)
def test_resumes_bit_equal(
    archives: Archives, straight: Callable[[str], Done], tmp_path: Path, name: str, where: str
) -> None:
    whole = straight(name)
    stop = whole.batches // 2 + (where == "within an epoch")
    resumed = resume(ROWS[name], archives, tmp_path, stop)
    assert resumed.batches == whole.batches
    assert not differing(whole.weights, resumed.weights)
    assert all(bool((a == b).all()) for a, b in zip(whole.optimizer, resumed.optimizer, strict=True))
    assert resumed.state == whole.state
    later = {key: value for key, value in whole.metrics.items() if key[1] > stop}
    assert later or "warm start" in name or "freezing" in name, "what happens at the start only is logged there"
    assert {key: value for key, value in resumed.metrics.items() if key[1] > stop} == later


@pytest.mark.parametrize("name", ROWS)
def test_another_trainer_starts_afresh(archives: Archives, straight: Callable[[str], Done], name: str) -> None:
    """What it counted, learned, split, froze and chose is that of one Trainer."""
    row = ROWS[name]
    algorithm = row.build(archives)
    train(row, algorithm, model=HOMES[row.home].model(7), max_duration="1ep")
    again = train(row, algorithm)
    assert not differing(straight(name).weights, again.weights)
    assert again.metrics == straight(name).metrics
    assert again.state == straight(name).state


@pytest.mark.parametrize("name", ROWS)
def test_match_only_answers(archives: Archives, name: str) -> None:
    row = ROWS[name]
    algorithm = row.build(archives)
    one = trainer(epoch_loader(HOMES[row.home].data()), HOMES[row.home].model(5), algorithms=[algorithm])
    values, state = dict(vars(algorithm)), comparable(algorithm.state_dict())
    for event in Event:
        algorithm.match(event, one.state)
    assert all(vars(algorithm)[key] is value for key, value in values.items())
    assert comparable(algorithm.state_dict()) == state
    one.close()


@pytest.mark.parametrize("name", IDLE)
def test_warns_when_it_changed_nothing(archives: Archives, plain: Callable[[str], Done], name: str) -> None:
    row = ROWS[name]
    assert row.idle is not None
    with pytest.warns(NoEffectWarning, match=f"had no effect: .*{row.says}"):
        done = train(row, row.build(archives, **row.idle))
    assert done.batches == plain(row.home).batches
    if "between" in row.says:  # what decides the order shows every example, in an order of its own
        assert not differing({n: done.weights[n] for n in plain(row.home).weights}, plain(row.home).weights)


@pytest.mark.parametrize("name", ["distillation, live", "replay, append"])
def test_an_interruption_is_not_taken_for_no_effect(
    archives: Archives, recwarn: pytest.WarningsRecorder, name: str
) -> None:
    """What was stopped before its window began has had no time to have an effect."""
    row = ROWS[name]
    assert row.idle is not None
    done = train(row, row.build(archives, **row.idle), stop=2)
    assert (done.batches, done.state["batches_applied"]) == (2, 0)
    assert [one for one in recwarn if issubclass(one.category, NoEffectWarning)] == []


@pytest.mark.parametrize("name", ROWS)
def test_microbatches_give_the_gradient_of_the_whole_batch(archives: Archives, name: str) -> None:
    def weights(row: Row, size: int) -> Done:
        model = HOMES[row.home].still(5)
        return train(row, row.build(archives), model=model, max_duration="1ep", device_train_microbatch_size=size)

    whole, parts = weights(ROWS[name], 16), weights(ROWS[name], 3)
    assert not differing(whole.weights, parts.weights, atol=3e-6)


@pytest.mark.parametrize("name", READERS)
def test_skips_where_there_is_nothing_to_learn_from_yet(
    archives: Archives, plain: Callable[[str], Done], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """With ``if_empty: skip`` the training is the plain one, from an archive that is made; without, it is refused."""
    row, query = ROWS[name], {**NOTHING, "if_empty": "skip"}
    algorithm = row.make(tmp_path / "archive", **{**row.settings, "runs": query})
    done = train(row, algorithm)
    assert algorithm.skipped is not None
    assert done.weights.keys() == plain(row.home).weights.keys()
    assert not differing(done.weights, plain(row.home).weights)
    assert (done.metrics, done.batches) == ({}, plain(row.home).batches)
    assert capsys.readouterr().err.count("nothing to learn from yet") == 1
    assert algorithm.prior_uses() == []
    resumed = row.build(archives, runs={"limit": 1, "if_empty": "skip"})
    resumed.load_state_dict(algorithm.state_dict())
    assert resumed.stands_aside(Event.FIT_START), "what began without prior runs goes on without them"
    with pytest.raises(RunNotFoundError, match="never trained"):
        train(row, row.build(archives, runs=NOTHING))
