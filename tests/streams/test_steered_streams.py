"""Curricula and pruning on a StreamingDataset: every epoch shows the samples of its plan, whoever reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Callback
from torch.utils.data import DataLoader, Dataset, IterableDataset

from forked_python import launch
from reuse_algos import HistoryCurriculum, PriorRunDistillation, PriorRunWarmStart, RunRecorder
from reuse_algos.algorithms import FeatureDistillation, Freezing
from reuse_algos.archive import RunArchive
from reuse_algos.data.example_ids import TrackExamples
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import EpochSampler
from reuse_algos.data.streams import IdStream, SteeredStream, stream_info, with_ids
from reuse_algos.data.views import ViewPolicy
from reuse_algos.errors import DataError, ExampleIdError
from reuse_algos.training.batch_keys import BatchKeys
from streams.shards import BATCH, KEYS, Net, collate, mds_loader, sample, write_mds
from toy import Interrupts, checkpointed, trainer

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

SECOND = 1 << 40  # ids of the second stream begin here
SCORES = torch.rand(64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two streams of 40 and 24 samples, in shards of 8."""
    pytest.importorskip("streaming")
    write_mds(tmp_path / "a", 0, 40)
    write_mds(tmp_path / "b", 100, 24)
    RunArchive(tmp_path / "archive", create=True)
    return [tmp_path / "a", tmp_path / "b"]


class Mapped(Dataset):
    """The samples of both streams by position."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**sample(position if position < 40 else 60 + position), "id": position, "view": 0}


class Watch(Callback):
    """Which positions each batch showed, at (epoch, batch in epoch)."""

    def __init__(self) -> None:
        self.shown: dict[tuple[int, int], list[int]] = {}
        self.views: set[tuple[int, int]] = set()

    def batch_start(self, state: Any, logger: Any) -> None:
        place = int(state.timestamp.epoch), int(state.timestamp.batch_in_epoch)
        self.shown[place] = [key if key < SECOND else 40 + key - SECOND for key in state.batch["id"].tolist()]
        self.views |= {(place[0], view) for view in state.batch["view"].tolist()}


class Dropping(Net):
    """Draws from torch's global generator in every step."""

    def forward(self, batch: Any) -> torch.Tensor:
        return super().forward({**batch, "x": F.dropout(batch["x"], 0.5, self.training)})


def losses(outputs: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(outputs, batch["y"], reduction="none")


def curriculum(folder: Path, strategy: Any, **arguments: Any) -> HistoryCurriculum:
    arguments = {"score": SCORES, "per_example_loss": losses, **arguments}
    return HistoryCurriculum(folder / "archive", strategy=strategy, **arguments)


def mapped(**arguments: Any) -> DataLoader:
    return DataLoader(Mapped(), batch_size=BATCH, sampler=EpochSampler(64, seed=1), collate_fn=collate, **arguments)


def weights(model: Net) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


STRATEGIES = [
    {"name": "curriculum", "start_fraction": 0.1},
    {"name": "prune", "keep": 0.6},
    {"name": "dynamic_prune", "update": True},
    {"name": "focus"},
    {"name": "active_bias", "mode": "weighting"},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["name"])
def test_a_stream_is_shown_as_a_map_style_dataset_is(shards: list[Path], tmp_path: Path, strategy: Any) -> None:
    """The same samples in the same batches, of the same weight; so the same model bit by bit."""
    watches, models, logged = [], [], []
    for loader in (mapped(), mds_loader(shards, workers=2)):
        watch, model, algorithm = Watch(), Net(), curriculum(tmp_path, strategy)
        trainer(loader, model, algorithms=[algorithm], callbacks=[watch], max_duration="2ep").fit()
        watches.append(watch)
        models.append(weights(model))
        logged.append(algorithm.latest_metrics)
    assert watches[0].shown == watches[1].shown
    assert torch.equal(models[0], models[1])
    assert logged[0] == logged[1]


@pytest.mark.parametrize(
    ("loader_settings", "trainer_settings", "batches", "rows"),
    [
        ({}, {}, 5, 38),
        ({"drop_last": True}, {}, 4, 32),
        ({}, {"train_subset_num_batches": 3}, 3, 24),
    ],
    ids=["whole", "drop_last", "subset"],
)
def test_epochs_are_as_long_as_the_plan(
    shards: list[Path], tmp_path: Path, loader_settings: Any, trainer_settings: Any, batches: int, rows: int
) -> None:
    """60 % of 64 samples; Composer counts these epochs, and the stream has its own length again afterwards."""
    loader, watch = mds_loader(shards, workers=2), Watch()
    loader = type(loader)(loader.dataset, batch_size=BATCH, num_workers=2, collate_fn=collate, **loader_settings)
    algorithm = curriculum(tmp_path, {"name": "prune", "keep": 0.6})
    one = trainer(loader, Net(), algorithms=[algorithm], callbacks=[watch], max_duration="2ep", **trainer_settings)
    one.fit()
    assert int(one.state.timestamp.batch) == 2 * batches
    assert [len(watch.shown[1, batch]) for batch in range(batches)] == [8] * (rows // 8) + [6] * (rows % 8 > 0)
    kept = set(SCORES.topk(38).indices.tolist())
    for epoch in (0, 1):
        shown = [position for batch in range(batches) for position in watch.shown[epoch, batch]]
        assert len(set(shown)) == rows
        assert set(shown) <= kept
    assert len(loader) == 8
    assert sum(len(batch["id"]) for batch in loader) == 64


@pytest.mark.parametrize(
    ("strategy", "interval", "stop", "epochs"),
    [
        ({"name": "dynamic_prune", "update": True}, "4ba", 10, 3),
        ({"name": "prune", "keep": 0.6}, "5ba", 8, 2),
        ({"name": "curriculum"}, "1ep", 11, 2),
    ],
    ids=["in mid-epoch with own losses", "after the last batch", "at the end of an epoch"],
)
@pytest.mark.filterwarnings("ignore:No batches were trained")
def test_a_resumed_run_shows_what_the_whole_one_does(
    shards: list[Path], tmp_path: Path, strategy: Any, interval: str, stop: int, epochs: int
) -> None:
    """Samples, views, random numbers, weights and captured rows are those of the run that never stopped."""
    watches, models = {"whole": Watch(), "cut": Watch()}, {}
    for name, attempts in (("whole", [[]]), ("cut", [[Interrupts(stop)], []])):
        for extra in attempts:
            loader, model = mds_loader(shards, workers=2), Dropping()
            loader.dataset.view_policy = ViewPolicy(0, 3, "none")
            record = RunRecorder(
                tmp_path / "archive",
                run_name=name,
                signals={"loss": {}, "logits": {}},
                keys=BatchKeys(**KEYS),
                dataset=stream_info(loader.dataset),
            )
            arguments = checkpointed(
                tmp_path / f"save-{name}", save_interval=interval, callbacks=[watches[name], record, *extra]
            )
            one = trainer(
                loader,
                model,
                algorithms=[curriculum(tmp_path, strategy)],
                lr=0.05,
                max_duration=f"{epochs}ep",
                **arguments,
            )
            try:
                one.fit()
            except KeyboardInterrupt:
                one.close()
        models[name] = weights(model)
    assert watches["whole"].shown == watches["cut"].shown
    assert watches["whole"].views == watches["cut"].views == {(epoch, epoch) for epoch in range(epochs)}
    assert torch.equal(models["whole"], models["cut"])
    runs = [RunArchive(tmp_path / "archive").run(name) for name in ("whole", "cut")]
    for signal in ("loss", "logits"):
        slots = [run.signal(signal).slots for run in runs]
        assert slots[0] == slots[1]
        for slot in slots[0]:
            (values, seen), (others, also) = (run.signal(signal).dense(slot) for run in runs)
            assert torch.equal(seen, also)
            assert torch.equal(values[seen], others[seen])


def test_a_plain_run_resumed_at_the_end_of_an_epoch_shows_the_next_one(shards: list[Path], tmp_path: Path) -> None:
    """Streaming's own state of that moment begins the epoch before again."""
    whole, cut = Watch(), Watch()
    for watch, attempts in ((whole, [[]]), (cut, [[Interrupts(9)], []])):
        for extra in attempts:
            loader = mds_loader(shards)
            record = RunRecorder(tmp_path / "archive", signals={"loss": {}}, keys=BatchKeys(**KEYS))
            record.dataset = stream_info(loader.dataset)
            arguments = checkpointed(
                tmp_path / f"save-{len(attempts)}", save_interval="1ep", callbacks=[watch, record, *extra]
            )
            one = trainer(loader, Net(), max_duration="2ep", **arguments)
            try:
                one.fit()
            except KeyboardInterrupt:
                one.close()
    assert whole.shown == cut.shown


@pytest.mark.parametrize("part", ["recorder", "track", "freezing", "warm start", "features", "live"])
def test_a_stream_without_ids_draws_the_random_numbers_of_the_whole_run(
    shards: list[Path], tmp_path: Path, part: str
) -> None:
    """Each alone: it asks for no ids, and dropout after a stop in mid-epoch is that of the run that never stopped."""
    archive = tmp_path / "archive"
    loader = mds_loader(shards)
    record = RunRecorder(archive, run_name="prior", dataset=stream_info(loader.dataset))
    trainer(loader, Net(), callbacks=[record], max_duration="2ba").fit()
    make = {
        "recorder": lambda: {"callbacks": [RunRecorder(archive, run_name=part, dataset=record.dataset)]},
        "track": lambda: {"callbacks": [TrackExamples()]},
        "freezing": lambda: {"algorithms": [Freezing(learning_rates={"net.*": 0.5})]},
        "warm start": lambda: {"algorithms": [PriorRunWarmStart(archive, "prior")]},
        "features": lambda: {"algorithms": [FeatureDistillation(archive, "prior", ["net"], when={"stop": "1dur"})]},
        "live": lambda: {"algorithms": [PriorRunDistillation(archive, "prior", source="live", keys=BatchKeys(**KEYS))]},
    }[part]
    trained = []
    for name, attempts in (("whole", [[]]), ("cut", [[Interrupts(6)], []])):
        model = Dropping()
        for extra in attempts:
            model, parts = Dropping(), make()
            callbacks = [*parts.pop("callbacks", []), *extra]
            arguments = checkpointed(tmp_path / f"save-{name}", save_interval="3ba", callbacks=callbacks, **parts)
            one = trainer(mds_loader(shards, workers=1), model, lr=0.05, max_duration="2ep", **arguments)
            try:
                one.fit()
            except KeyboardInterrupt:
                one.close()
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_a_second_fit_goes_on_and_a_second_trainer_begins(shards: list[Path], tmp_path: Path) -> None:
    """Streaming counts its epochs over all trainings; the second fit begins in the middle of one."""
    strategy = {"name": "dynamic_prune", "update": False}
    whole, parts, later = Watch(), Watch(), Watch()
    loader = mds_loader(shards, workers=1)
    when = {"when": {"stop": "100ep"}}
    trainer(
        loader, Net(), algorithms=[curriculum(tmp_path, strategy, **when)], callbacks=[whole], max_duration="15ba"
    ).fit()
    one = trainer(
        mds_loader(shards, workers=1),
        Net(),
        algorithms=[curriculum(tmp_path, strategy, **when)],
        callbacks=[parts],
        max_duration="9ba",
    )
    one.fit()
    one.fit(duration="6ba")
    assert whole.shown == parts.shown
    trainer(
        loader, Net(), algorithms=[curriculum(tmp_path, strategy, **when)], callbacks=[later], max_duration="15ba"
    ).fit()
    assert whole.shown == later.shown


def test_a_stream_that_was_appended_has_samples_without_a_score(shards: list[Path], tmp_path: Path) -> None:
    """They keep their place in each epoch, or are dropped, as ``unknown`` says."""
    loader = mds_loader(shards[:1])
    record = RunRecorder(
        tmp_path / "archive",
        run_name="first",
        signals={"loss": {}},
        keys=BatchKeys(**KEYS),
        dataset=stream_info(loader.dataset),
    )
    trainer(loader, Net(), callbacks=[record], max_duration="2ep").fit()
    scores, _ = RunArchive(tmp_path / "archive").run("first").signal("loss").dense(1)
    hard = set(scores.topk(8).indices.tolist())
    for unknown, examples, expected in (("keep", 32, hard | set(range(40, 64))), ("drop", 8, hard)):
        watch = Watch()
        settings = {"runs": "first", "score": "loss", "unknown": unknown, "mismatch": "allow"}
        algorithm = curriculum(tmp_path, {"name": "prune", "examples": examples}, **settings)
        trainer(mds_loader(shards), Net(), algorithms=[algorithm], callbacks=[watch], max_duration="1ep").fit()
        assert {position for batch in watch.shown.values() for position in batch} == expected


def test_cached_teachers_teach_the_samples_that_the_plan_shows(shards: list[Path], tmp_path: Path) -> None:
    """Each term is that of the teacher's own rows of the samples in the batch."""
    loader = mds_loader(shards)
    described = {"keys": BatchKeys(**KEYS), "dataset": stream_info(loader.dataset)}
    record = RunRecorder(tmp_path / "archive", run_name="teacher", signals={"logits": {}}, **described)
    trainer(loader, Net(1), callbacks=[record], lr=0.0, max_duration="1ep").fit()
    teach = PriorRunDistillation(
        tmp_path / "archive",
        "teacher",
        source="cached",
        loss={"name": "mse", "scale": "none"},
        when={"stop": "1dur", "stop_when_harmful": False},
        **described,
    )
    terms: list[float] = []

    class Terms(Callback):
        def batch_end(self, state: Any, logger: Any) -> None:
            terms.append(teach.latest_metrics["reuse/distillation/loss"])

    watch, prune = Watch(), curriculum(tmp_path, {"name": "prune", "keep": 0.6})
    again = mds_loader(shards, workers=2)
    callbacks = [watch, Terms()]
    trainer(again, Net(2), algorithms=[teach, prune], callbacks=callbacks, lr=0.0, max_duration="2ep").fit()
    rows = torch.from_numpy(np.stack([Mapped()[position]["x"] for position in range(64)]))
    with torch.no_grad():
        apart_N = (Net(1)({"x": rows}) - Net(2)({"x": rows})).square().mean(1)
    assert len(terms) == len(watch.shown) == 10
    assert terms == pytest.approx([float(apart_N[shown].mean()) for shown in watch.shown.values()], rel=2e-3)


@pytest.mark.ranks
def test_two_ranks_two_workers_follow_the_plan_and_resume_in_mid_epoch(shards: list[Path], tmp_path: Path) -> None:
    """Killed in the second epoch; each rank shows its share of the map-style plan, and all rows are archived."""
    script = Path(__file__).parents[1] / "ranks" / "stream.py"
    for die_at in (8, -1):
        done = launch(2, str(script), str(tmp_path), str(die_at), "prune")
        assert (done.returncode == 0) == (die_at < 0), done.stderr[-2000:]
    watch = Watch()
    prune = curriculum(tmp_path, {"name": "prune", "keep": 0.6})
    trainer(mapped(), Net(), algorithms=[prune], callbacks=[watch], max_duration="2ep").fit()
    shares = [torch.load(tmp_path / f"shown-{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(shares[0]) == 10 - 6, "the second attempt begins behind the last checkpoint"
    for place, share in shares[0].items():
        whole = watch.shown[place]
        assert share == whole[::2]
        assert shares[1][place] == whole[1::2]
    run = RunArchive(tmp_path / "archive").run("stream")
    kept = torch.zeros(64, dtype=torch.bool).index_fill(0, SCORES.topk(38).indices, True)
    for slot in (0, 1):
        assert torch.equal(run.signal("loss").seen(slot), kept)


def test_samples_reach_the_ranks_of_several_nodes(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two ranks each: Streaming's partition of what it is given is the share of an EpochSampler."""
    from composer.utils import dist
    from streaming.base.partition import get_partitions

    loader = mds_loader(shards, batch_size=4)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_local_world_size", lambda: 2)
    order = np.random.default_rng(0).permutation(64)[:45]
    steered = SteeredStream(loader)
    assert steered.steer(lambda epoch: order, num_examples=64, length=45, seed=0) == 16
    steered.start(3, batches=3)
    samples, dataset = loader.dataset.resample_streams(3)[1], loader.dataset
    for seen in (0, 16):
        parts = get_partitions("relaxed", dataset.epoch_size, dataset.num_canonical_nodes, 2, 2, 2, 4, seen)
        for rank in range(4):
            # (workers, batches, rows) -> one batch after the other; -1 fills up what workers do not read.
            mine = parts[rank // 2, rank % 2].transpose(1, 0, 2).flatten()
            sampler = EpochSampler(64, seed=0, num_replicas=4, rank=rank)
            sampler.steer(lambda epoch: order, length=45)
            assert samples[mine[mine >= 0]].tolist() == list(sampler)[seen // 4 :]


# Refused before the first step ----------------------------------------------------------------------------------------


def refused(loader: Any, folder: Path, error: type[Exception], match: str, **arguments: Any) -> None:
    watch = Watch()
    algorithm = curriculum(folder, "curriculum", **arguments)
    one = trainer(loader, Net(), algorithms=[algorithm], callbacks=[watch], max_duration="9ba")
    with pytest.raises(error, match=match):
        one.fit()
    one.close()
    assert int(one.state.timestamp.batch) == 0
    assert not watch.shown


def test_streams_that_decide_themselves_are_refused(shards: list[Path], tmp_path: Path) -> None:
    from streaming import Stream, StreamingDataset

    class Own(StreamingDataset):
        def resample_streams(self, epoch: int, stream_id: int | None = None) -> Any:
            return super().resample_streams(epoch, stream_id)

    def over(dataset: Any, size: int = BATCH, **arguments: Any) -> DataLoader:
        return DataLoader(dataset, batch_size=size, collate_fn=collate, **arguments)

    def streams(**choice: Any) -> Any:
        return [Stream(local=str(shards[0]), **choice), Stream(local=str(shards[1]))]

    steerable = with_ids(StreamingDataset)
    for loader, match in (
        (over(with_ids(Own)(streams=streams(), batch_size=BATCH)), r"resample_streams of its own .*Own"),
        (over(steerable(streams=streams(repeat=2), batch_size=BATCH)), r"shows \[80, 24\] .* that hold \[40, 24\]"),
        (over(steerable(streams=streams(), batch_size=BATCH, batching_method="per_stream")), "method='per_stream'"),
        (over(steerable(streams=streams(), batch_size=BATCH), 4), "has batch_size=8 and its DataLoader 4"),
        (over(steerable(streams=streams(), batch_size=BATCH), in_order=False), "in_order=False"),
        (over(StreamingDataset(streams=streams(), batch_size=BATCH)), r"StreamingDataset is a stream, .* with_ids"),
        (over(IdStream([{"name": "a", **sample(1)}], key="name")), r"IdStream is a stream, which decides that itself"),
    ):
        refused(loader, tmp_path, ExampleIdError, match)


def test_another_form_of_the_library_is_refused(tmp_path: Path) -> None:
    class Other(IterableDataset):
        def __init__(self) -> None:
            self.samples_per_stream, self.next_epoch = np.array([64]), 0

        def state_dict(self, number: int, from_beginning: bool) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            del state

    loader = DataLoader(with_ids(Other)(), batch_size=BATCH)
    with pytest.raises(ExampleIdError, match="OtherWithIds has no epoch_size, so a plan cannot decide"):
        SteeredStream(loader)


def test_an_info_of_other_samples_is_refused(shards: list[Path], tmp_path: Path) -> None:
    info = DatasetInfo("stream", torch.arange(64))
    refused(mds_loader(shards), tmp_path, DataError, "64 keys that are not those of the stream's 64", dataset=info)


def test_batches_that_are_not_those_of_the_plan_are_noticed(shards: list[Path], tmp_path: Path) -> None:
    """Whatever changes the order, the ids in the first batch show it."""
    loader = mds_loader(shards)
    loader.collate_fn = lambda rows: collate(rows[::-1])
    refused(loader, tmp_path, DataError, r"batch 0 of the epoch begins with samples \[\d+")


def test_an_order_of_another_epoch_is_refused(shards: list[Path], tmp_path: Path) -> None:
    """After an interrupt the dataset still follows the plan, which is one of that training."""
    loader, algorithm = mds_loader(shards), curriculum(tmp_path, "curriculum")
    one = trainer(loader, Net(), algorithms=[algorithm], callbacks=[Interrupts(3)])
    with pytest.raises(KeyboardInterrupt):
        one.fit()
    one.close()
    with pytest.raises(DataError, match=r"is in epoch 1, and its order was planned for epoch 0"):
        list(loader)
