"""The cases of ``benchmarks/archive_torture.py`` that are no single module's, with small counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forked_python import python

from .torture import claims, clocks, conformance, formats, indexes, lost_disks, model, neighbours
from .torture.outcome import Tally, spread


def test_random_operations_agree_with_a_dictionary(tmp_path: Path) -> None:
    outcome = model.case(tmp_path, count=40, steps=40)
    assert (outcome.tries, outcome.ok) == (40, True), outcome


@pytest.fixture
def _zombies_may_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that does not look whether another attempt has taken over a run that is finished."""
    monkeypatch.setattr("reuse_algos.archive.run_writer.list_generations", lambda store, run_id: [0])


@pytest.mark.usefixtures("_zombies_may_finish")
def test_the_dictionary_notices_a_difference(tmp_path: Path) -> None:
    """A control: an archive whose zombies could finish a run would be found out."""
    # Which sequences it tries depends on what was imported before, so it may try all 500; the first difference ends it,
    # after about a second.
    outcome = model.case(tmp_path, count=None, steps=40)
    assert outcome.undetected == 1
    assert "state.finish(" in str(outcome.notes)


@pytest.mark.usefixtures("_zombies_may_finish")
def test_a_rule_of_the_dictionary_notices_a_zombie_that_finishes() -> None:
    machine = model.ArchiveMachine()
    try:
        zombie: Any = machine.first()
        machine.put_weights(zombie, "last", 1)
        machine.commit(zombie, 1, "x")
        answers = [zombie.writer.run_id, None]  # which run is resumed, and from its newest generation
        data: Any = SimpleNamespace(draw=lambda strategy: answers.pop(0))
        machine.resume(data)
        with pytest.raises(AssertionError, match="finished by one that may not"):
            machine.finish(zombie)
    finally:
        machine.traced.__exit__(None, None, None)
        machine.folder.cleanup()


def test_archives_of_every_released_format_are_read(tmp_path: Path) -> None:
    outcome = formats.case(tmp_path)
    assert (outcome.tries >= 3, outcome.ok) == (True, True), outcome


def test_a_disk_that_goes_away_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    outcome = lost_disks.unmounted(tmp_path)
    assert (outcome.tries >= 40, outcome.ok) == (True, True), outcome


def test_a_suspended_writer_hides_no_sound_generation(tmp_path: Path) -> None:
    outcome = lost_disks.suspended(tmp_path)
    assert (outcome.tries, outcome.ok) == (8, True), outcome


def test_one_odd_run_is_no_trouble_of_the_others(tmp_path: Path) -> None:
    outcome = neighbours.case(tmp_path)
    assert (outcome.tries, outcome.ok) == (len(neighbours.ODDITIES), True), outcome


@pytest.mark.usefixtures("forked")
def test_what_a_record_claims_opens_and_allocates_nothing(tmp_path: Path) -> None:
    outcome = claims.case(tmp_path)
    assert (outcome.tries, outcome.ok) == (len(claims.attacks(tmp_path)), True), outcome


def test_whatever_happens_to_the_index_no_selection_is_wrong(tmp_path: Path) -> None:
    outcome = indexes.case(tmp_path, count=10)
    assert (outcome.tries, outcome.ok) == (20, True), outcome


def test_processes_that_write_the_index_at_once_lose_nothing(tmp_path: Path) -> None:
    outcome = indexes.crowd(tmp_path, count=6)
    assert (outcome.notes["runs"], outcome.ok) == (48, True), outcome


def test_a_clock_that_is_set_while_a_run_trains_changes_no_seconds(tmp_path: Path) -> None:
    outcome = clocks.case(tmp_path, count=2)
    assert (outcome.tries, outcome.ok) == (2, True), outcome


def test_faults_are_counted() -> None:
    tally = Tally(tries=3)
    tally.lose("a")
    tally.tear("b")
    tally.miss("c")
    tally.check(True, "d")
    tally.most("seconds", 1.0)
    tally.most("seconds", 0.5)
    outcome = tally.outcome()
    assert (outcome.tries, outcome.lost, outcome.torn, outcome.undetected, outcome.ok) == (3, 1, 1, 1, False)
    assert outcome.notes == {"seconds": 1.0, "fault 1": "lost: a", "fault 2": "torn: b", "fault 3": "undetected: c"}


@pytest.mark.parametrize(("total", "count"), [(10, None), (10, 3), (10, 10), (10, 99), (228, 13)])
def test_samples_are_spread(total: int, count: int | None) -> None:
    chosen = spread(total, count, seed=5)
    assert len(chosen) == len(set(chosen)) == min(total, count or total)
    assert all(0 <= index < total for index in chosen)


@pytest.mark.usefixtures("forked")
def test_the_conformance_suite_is_counted(tmp_path: Path) -> None:
    suite = tmp_path / "test_small.py"
    suite.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
    )
    outcome = conformance.case(tmp_path, suite=suite)
    assert (outcome.tries, outcome.undetected, outcome.notes["skipped"]) == (2, 1, 1)
    assert conformance.SUITE.exists()


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "archive_torture.py"


def test_the_script_prints_a_line_for_each_case(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    done = python(str(SCRIPT), "--rows", "20", "--output", str(output))
    assert done.returncode == 0, done.stderr
    first, line = (json.loads(text) for text in done.stdout.splitlines())
    assert {"hardware", "versions", "commit", "date", "command"} <= first.keys()
    assert [line[key] for key in ("row", "tries", "lost", "torn", "undetected")] == [20, 9, 0, 0, 0]
    assert line["seconds"] > 0
    assert output.read_text() == done.stdout
    done = python(str(SCRIPT), "--rows", "99")
    assert (done.returncode, "there are no rows [99]" in done.stderr) == (2, True)
