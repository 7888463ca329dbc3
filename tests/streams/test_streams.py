"""Streams: every archived row is its own sample's, whoever read it, in whatever order, and after interruptions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback
from torch.utils.data import DataLoader, IterableDataset

from forked_python import launch
from reuse_algos import PriorRunDistillation, RunRecorder
from reuse_algos.archive import RunArchive
from reuse_algos.data.info import key_of_path
from reuse_algos.data.streams import IdStream, keys_of_ids, scan_stream, stream_info
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError, ExampleIdError
from reuse_algos.training.batch_keys import BatchKeys
from streams.shards import BATCH, KEYS, Net, collate, mds_loader, sample, write_mds, write_tars
from toy import Interrupts, checkpointed, trainer

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

SECOND = 1 << 40  # ids of the second stream begin here


def expected(net: Net, numbers: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return net(collate([sample(number) for number in numbers]))


def recorder(archive: Path, loader: Any, name: str = "one", **arguments: Any) -> RunRecorder:
    info = arguments.pop("dataset", None) or stream_info(loader.dataset)
    signals = {"logits": {}, "loss": {}}
    return RunRecorder(archive, run_name=name, signals=signals, keys=BatchKeys(**KEYS), dataset=info, **arguments)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two streams of 40 and 24 samples, in shards of 8."""
    pytest.importorskip("streaming")
    write_mds(tmp_path / "a", 0, 40)
    write_mds(tmp_path / "b", 100, 24)
    return [tmp_path / "a", tmp_path / "b"]


def rows_of(archive: Path, name: str = "one") -> dict[int, torch.Tensor]:
    run = RunArchive(archive).run(name)
    values, seen = run.signal("logits").dense(0)
    assert bool(seen.all())
    return dict(zip(run.keys().tolist(), values.float(), strict=True))


def test_archived_rows_are_those_of_their_samples(shards: list[Path], tmp_path: Path) -> None:
    """By stream and index: a stream that is appended leaves the ids of those before as they are."""
    loader = mds_loader(shards, workers=2)
    trainer(loader, Net(), callbacks=[recorder(tmp_path / "archive", loader)], lr=0.0, max_duration="1ep").fit()
    found = rows_of(tmp_path / "archive")
    numbers = {**{index: index for index in range(40)}, **{SECOND + index: 100 + index for index in range(24)}}
    assert found.keys() == numbers.keys()
    torch.testing.assert_close(
        torch.stack(list(found.values())), expected(Net(), [numbers[key] for key in found]), atol=1e-3, rtol=1e-3
    )
    first = mds_loader(shards[:1])
    assert torch.equal(stream_info(first.dataset).keys, stream_info(loader.dataset).keys[:40])


@pytest.mark.parametrize("source", ["cached", "live"])
def test_streams_are_taught(shards: list[Path], tmp_path: Path, source: str) -> None:
    """Cached logits found by id are those of the live teacher."""
    loader = mds_loader(shards)
    archive = tmp_path / "archive"
    trainer(loader, Net(1), callbacks=[recorder(archive, loader)], lr=0.0, max_duration="1ep").fit()
    again = mds_loader(shards, shuffle_seed=8)
    teach = PriorRunDistillation(
        archive,
        "one",
        source=source,
        keys=BatchKeys(**KEYS),
        dataset=stream_info(again.dataset),
        loss={"name": "mse", "scale": "none"},
        when={"stop": "1dur", "stop_when_harmful": False},
    )
    terms: list[float] = []
    seen: list[list[int]] = []

    class Watch(Callback):
        def batch_end(self, state: Any, logger: Any) -> None:
            terms.append(teach.latest_metrics["reuse/distillation/loss"])
            seen.append([number if number < SECOND else 100 + number - SECOND for number in state.batch["id"].tolist()])

    trainer(again, Net(2), algorithms=[teach], callbacks=[Watch()], lr=0.0, max_duration="1ep").fit()
    for term, numbers in zip(terms, seen, strict=True):
        difference = expected(Net(1), numbers) - expected(Net(2), numbers)
        assert term == pytest.approx(float(difference.square().mean()), rel=2e-3)
    assert sorted(number for numbers in seen for number in numbers) == [*range(40), *range(100, 124)]


def test_views_are_a_function_of_seed_id_and_epoch(shards: list[Path]) -> None:
    def noisy(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "x": row["x"] + np.random.standard_normal(2).astype(np.float32)}

    def epochs(workers: int, shuffle_seed: int) -> list[dict[int, tuple[int, list[float]]]]:
        loader = mds_loader(shards, workers=workers, shuffle_seed=shuffle_seed)
        loader.dataset.view_policy = ViewPolicy(7, 2, "noise")
        loader.dataset.augment = noisy
        found = []
        for _ in range(3):
            rows: dict[int, tuple[int, list[float]]] = {}
            for batch in loader:
                for key, view, x in zip(batch["id"].tolist(), batch["view"].tolist(), batch["x"].tolist(), strict=True):
                    rows[key] = (view, x)
            found.append(rows)
        return found

    one, other = epochs(0, 3), epochs(2, 11)
    assert one == other, "whatever the workers and the order"
    assert [{view for view, _ in rows.values()} for rows in one] == [{0}, {1}, {0}]
    assert one[0] == one[2]
    assert all(one[0][key][1] != one[1][key][1] for key in one[0])


def test_resumed_in_mid_epoch_bit_by_bit(shards: list[Path], tmp_path: Path) -> None:
    """Stopped in the second epoch: weights, rows and their epochs are those of the run that never stopped."""

    models = []
    for name, callbacks in (("whole", []), ("cut", [Interrupts(11)])):
        for attempt in range(1 + len(callbacks)):
            loader, model = mds_loader(shards, workers=2), Net()
            extra = callbacks if attempt == 0 else []
            arguments = checkpointed(
                tmp_path / f"save-{name}", save_interval="3ba", callbacks=[recorder(tmp_path / name, loader), *extra]
            )
            one = trainer(loader, model, lr=0.05, max_duration="2ep", **arguments)
            try:
                one.fit()
            except KeyboardInterrupt:
                one.close()
        models.append(model)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    runs = [RunArchive(tmp_path / name).run("one") for name in ("whole", "cut")]
    for signal in ("logits", "loss"):
        slots = [run.signal(signal).slots for run in runs]
        assert slots[0] == slots[1]
        for slot in slots[0]:
            values = [run.signal(signal).dense(slot) for run in runs]
            assert torch.equal(values[0][0], values[1][0])
            assert bool(values[0][1].all())


@pytest.mark.ranks
def test_two_ranks_two_workers_killed_in_mid_epoch(shards: list[Path], tmp_path: Path) -> None:
    """The machine goes down in the second epoch; after the second attempt every row is its own sample's."""
    script = Path(__file__).parents[1] / "ranks" / "stream.py"
    for die_at in (11, -1):
        done = launch(2, str(script), str(tmp_path), str(die_at))
        assert (done.returncode == 0) == (die_at < 0), done.stderr[-2000:]
    run = RunArchive(tmp_path / "archive").run("stream")
    assert run.finished
    losses = run.signal("loss")
    assert losses.slots == [0, 1]
    assert all(bool(losses.seen(slot).all()) for slot in losses.slots)
    # Weights moved, so a row's logits tell its sample only up to the step that it was seen in. Inputs lie on a line,
    # so logits of the same step do, too: of the initial weights in the first batch, and near them later.
    found = rows_of(tmp_path / "archive", "stream")
    numbers = [key if key < SECOND else 100 + key - SECOND for key in found]
    logits = torch.stack(list(found.values()))
    slopes = torch.linalg.lstsq(torch.stack([torch.ones(64), torch.tensor(numbers) / 64], 1), logits).solution
    line = slopes[0] + torch.tensor(numbers)[:, None] / 64 * slopes[1]
    spread = logits.std()
    assert float((logits - line).abs().max()) < 0.2 * float(spread)
    probabilities = logits.softmax(1)[torch.arange(64), torch.tensor(numbers) % 3]
    torch.testing.assert_close(losses.dense(1)[0].float(), -probabilities.log(), atol=2e-3, rtol=2e-3)


def test_a_lost_shard_is_an_error_and_loses_nothing(shards: list[Path], tmp_path: Path) -> None:
    """Streaming itself would end the epoch early, as if all samples had been read."""
    archive = tmp_path / "archive"

    class Lose(Callback):
        def epoch_end(self, state: Any, logger: Any) -> None:
            os.remove(sorted(shards[1].glob("*.mds"))[1])

    loader = mds_loader(shards)
    one = trainer(loader, Net(), callbacks=[recorder(archive, loader), Lose()], lr=0.0, max_duration="2ep")
    with pytest.raises(DataError, match=r"(a shard could not be fetched|A shard is missing).*resume from the last"):
        one.fit()
    one.close()
    (run,) = RunArchive(archive).runs(unfinished=True)
    assert not run.finished
    assert bool(run.signal("loss").dense(0)[1].all()), "the first epoch is whole"


def test_a_shard_that_is_lost_from_the_start_does_not_shorten_the_epoch(shards: list[Path]) -> None:
    os.remove(sorted(shards[1].glob("*.mds"))[1])
    with pytest.raises(DataError, match=r"(a shard could not be fetched|A shard is missing)"):
        list(mds_loader(shards))


def test_a_shard_that_another_thread_failed_to_fetch_is_not_waited_for(shards: list[Path]) -> None:
    """Streaming's thread leaves the shard marked as being fetched; the reader then waited for ever."""
    from streaming.base.dataset import _ShardState

    dataset: Any = mds_loader(shards).dataset
    os.remove(sorted(shards[1].glob("*.mds"))[1])
    number = len(list(shards[0].glob("*.mds"))) + 1  # the second shard of the second stream
    with pytest.raises(ValueError, match="In the absence of local dataset"), ThreadPoolExecutor(1) as threads:
        threads.submit(dataset.prepare_shard, number, False).result()
    assert dataset._shard_states[number] == _ShardState.REMOTE, "nobody is fetching it"
    with pytest.raises(DataError, match="A shard is missing"):
        dataset.get_item(40 + 8)


# Other libraries -----------------------------------------------------------------------------------------------------


def from_tar(row: dict[str, Any]) -> dict[str, Any]:
    """Decode the JSON of a sample and keep what WebDataset knows of it."""
    import json

    data = json.loads(row["json"])
    known = {name: row[name] for name in ("__url__", "__key__")}
    return {**known, "x": np.array(data["x"], dtype=np.float32), "y": int(data["y"])}


def test_webdataset_of_unknown_length(tmp_path: Path) -> None:
    """Ids are the shard's name and the key; a scan says how many there are, and two workers share the shards."""
    wds = pytest.importorskip("webdataset")
    names = write_tars(tmp_path / "tars", 30)

    def stream() -> IdStream:
        return IdStream(wds.WebDataset(names, shardshuffle=False, empty_check=False).map(from_tar))

    source = stream()
    info = scan_stream(source, label="y")
    assert info.num_examples == 30
    ids = {key_of_path(f"shard-{number % 3}.tar/{number:04d}"): number for number in range(30)}
    assert set(info.keys.tolist()) == set(ids)
    assert info.labels.tolist() == [ids[key] % 3 for key in info.keys.tolist()]
    loader = DataLoader(source, batch_size=5, num_workers=2, collate_fn=collate)
    trainer(loader, Net(), callbacks=[recorder(tmp_path / "a", loader, dataset=info)], lr=0.0, max_duration="6ba").fit()
    found = rows_of(tmp_path / "a")
    numbers = [ids[key] for key in found]
    torch.testing.assert_close(torch.stack(list(found.values())), expected(Net(), numbers), atol=1e-3, rtol=1e-3)


def test_hugging_face_datasets_as_a_map_and_as_a_stream(tmp_path: Path) -> None:
    """String ids, in batches as lists of texts and through an IdStream."""
    datasets = pytest.importorskip("datasets")
    names = [f"doc/{number}" for number in range(24)]
    rows = {"name": names, "x": [sample(n)["x"].tolist() for n in range(24)], "y": [n % 3 for n in range(24)]}
    table = datasets.Dataset.from_dict(rows)
    archive = tmp_path / "archive"

    def texts(samples: list[dict[str, Any]]) -> dict[str, Any]:
        plain = collate([{"x": np.float32(one["x"]), "y": one["y"]} for one in samples])
        return {**plain, "name": [one["name"] for one in samples]}

    from reuse_algos.data import identify

    info = identify(table, key="name")
    loader = DataLoader(table, batch_size=6, shuffle=True, collate_fn=texts)
    record = RunRecorder(
        archive, run_name="map", signals={"logits": {}}, keys=BatchKeys(ids="name", target="y"), dataset=info
    )
    trainer(loader, Net(), callbacks=[record], lr=0.0, max_duration="4ba", device_train_microbatch_size=4).fit()
    run = RunArchive(archive).run("map")
    assert torch.equal(run.keys(), keys_of_ids(names))
    values, seen = run.signal("logits").dense(run.signal("logits").slots[0])
    assert bool(seen.all())
    torch.testing.assert_close(values.float(), expected(Net(), list(range(24))), atol=1e-3, rtol=1e-3)

    quiet: dict[str, Any] = {"loss": {"name": "mse", "scale": "none"}, "keys": BatchKeys(ids="name", target="y")}
    quiet["when"] = {"stop": "1dur", "stop_when_harmful": False}
    teach = PriorRunDistillation(archive, "map", source="cached", dataset=info, **quiet)
    loader = DataLoader(table, batch_size=24, collate_fn=texts)
    trainer(loader, Net(2), algorithms=[teach], lr=0.0, max_duration="1ba").fit()
    difference = expected(Net(1), list(range(24))) - expected(Net(2), list(range(24)))
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(float(difference.square().mean()), rel=2e-3)

    def noisy(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = texts(samples)
        return {**batch, "x": batch["x"] + torch.randn_like(batch["x"])}

    record = RunRecorder(
        archive, run_name="noisy", signals={"logits": {}}, keys=BatchKeys(ids="name", target="y"), dataset=info
    )
    trainer(DataLoader(table, batch_size=6, collate_fn=noisy), Net(), callbacks=[record], max_duration="4ba").fit()
    views = [RunArchive(archive).run(name).manifest.dataset.num_views for name in ("map", "noisy")]
    assert views == [1, 0], "a collate_fn that draws at random gives views that are not known"
    record = RunRecorder(archive, signals={"logits": {}}, keys=BatchKeys(ids="name", target="y"))
    unnamed = trainer(loader, Net(), callbacks=[record], max_duration="1ba")
    with pytest.raises(ExampleIdError, match=r"such as 'doc/\d+': .* by position. Name the examples .*identify"):
        unnamed.fit()

    def tensors(row: dict[str, Any]) -> dict[str, Any]:
        return {"name": row["name"], "x": np.float32(row["x"]), "y": row["y"]}

    def stream() -> IdStream:
        return IdStream([tensors(row) for row in table.to_iterable_dataset()], key="name", keep=("x", "y"))

    first, again = stream(), stream()
    scan_stream(first)
    record = RunRecorder(archive, run_name="stream", signals={"logits": {}}, keys=BatchKeys(**KEYS))
    one = DataLoader(first, batch_size=6, collate_fn=collate)
    trainer(one, Net(), callbacks=[record], lr=0.0, max_duration="4ba").fit()
    assert list(rows_of(archive, "stream")) == sorted(keys_of_ids(names).tolist()), "dataset.info is looked at"
    scan_stream(again)
    teach = PriorRunDistillation(
        archive,
        "stream",
        source="cached",
        loss={"name": "mse", "scale": "none"},
        keys=BatchKeys(**KEYS),
        when={"stop": "1dur", "stop_when_harmful": False},
    )
    two = DataLoader(again, batch_size=6, collate_fn=collate)
    trainer(two, Net(2), algorithms=[teach], lr=0.0, max_duration="4ba").fit()
    last = list(range(18, 24))
    difference = expected(Net(1), last) - expected(Net(2), last)
    assert teach.latest_metrics["reuse/distillation/coverage"] == 1
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(float(difference.square().mean()), rel=2e-3)


class Rows(IterableDataset):
    """A generator of samples whose order changes from epoch to epoch."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers, self.epochs = numbers, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng(self.epochs[-1] if self.epochs else 0).permutation(self.numbers)
        yield from ({"name": f"row {number}", **sample(int(number))} for number in order)


def test_any_stream_is_told_the_epoch_and_resumes_by_reading_up_to_where_it_was(tmp_path: Path) -> None:
    """Samples that come twice in an epoch are the same example, whose last row is kept."""
    found = []
    for name, attempts in (("whole", [[]]), ("cut", [[Interrupts(8)], []])):
        for stop in attempts:
            source = Rows([*range(20), 3, 4, 5, 6])
            stream = IdStream(source, key="name", keep=("x", "y"))
            info = scan_stream(stream)
            assert info.num_examples == 20
            loader, model = DataLoader(stream, batch_size=BATCH // 2, collate_fn=collate), Net()
            callbacks = [recorder(tmp_path / name, loader, dataset=info), *stop]
            arguments = checkpointed(tmp_path / f"save-{name}", save_interval="1ba", callbacks=callbacks)
            one = trainer(loader, model, lr=0.05, max_duration="12ba", **arguments)
            try:
                one.fit()
            except KeyboardInterrupt:
                one.close()
            assert source.epochs == ([1] if attempts[0] and not stop else [0, 1])
        run = RunArchive(tmp_path / name).run("one")
        found.append((list(model.parameters()), run.signal("logits").dense(0)[0], run.signal("loss").dense(1)[0]))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_ids_that_clash_or_are_missing_are_named() -> None:
    rows = [{"name": "a", **sample(1)}, {"name": "a", **sample(2)}]
    with pytest.raises(DataError, match="samples of the stream, number 0 and number 1 from 0, have the id"):
        scan_stream(IdStream(rows, key="name"))
    assert scan_stream(IdStream([rows[0], rows[0]], key="name")).num_examples == 1, "shown twice"
    with pytest.raises(ExampleIdError, match="has no '__url__', from which its id is made; it has name, x, y"):
        scan_stream(IdStream(rows))
    named = IdStream(rows[:1], key="name")
    with pytest.raises(DataError, match="label='z' is not a field of the stream's samples. Known: .*x, y"):
        scan_stream(named, label="z")
    with pytest.raises(DataError, match="label='name' must be a class number in each sample, not 'a'"):
        scan_stream(named, label="name")
    with pytest.raises(DataError, match="the samples have 'id' already"):
        scan_stream(IdStream([{"name": "a", "id": 3}], key="name"))
    with pytest.raises(DataError, match="the stream has no sample"):
        scan_stream(IdStream([], key="name"))
    with pytest.raises(ExampleIdError, match="whole number of 64 bits or a text, not 0.5"):
        scan_stream(IdStream([{"name": 0.5}], key="name"))
    with pytest.raises(ExampleIdError, match="whole numbers or texts, not torch.float32"):
        keys_of_ids(torch.zeros(2))
    assert keys_of_ids(["a", "é"]).tolist() == [key_of_path("a"), key_of_path("é")]
    assert keys_of_ids(np.array([3, 4], dtype=np.int32)).tolist() == [3, 4]
