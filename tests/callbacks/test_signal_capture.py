"""What capture keeps in memory while an epoch runs, and which of several rows of one example it writes."""

from __future__ import annotations

import torch
from composer import DataSpec
from torch.utils.data import DataLoader

from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.callbacks.signals.capture import Segment, SignalCapture, parse_signals
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import Examples
from reuse_algos.training.batch_keys import BatchKeys
from toy import NUM_CLASSES, DictModel, NumberedDataset, trainer

N, C = 1000, 5
ALL = {"logits": {"top_k": 2}, "loss": {}, "correct": {}}


def capture(signals: dict | None = None, num_examples: int = N) -> SignalCapture:
    return SignalCapture(parse_signals(signals or {"logits": {}}), num_examples, None)


def put(to: SignalCapture, positions: list[int], value: float, view: int = 0) -> None:
    examples = Examples(torch.tensor(positions), torch.full((len(positions),), view))
    logits = torch.full((len(positions), C), value)
    to.record(0, examples, {"logits": logits, "loss": logits[:, 0], "correct": logits[:, 0].to(torch.uint8)})


def rows(of: SignalCapture) -> dict[int, float]:
    (segment,) = of.segments()
    return dict(zip(segment.tensors["ids"].tolist(), segment.tensors["values"][:, 0].tolist(), strict=True))


def held(by: SignalCapture) -> int:
    """Rows that are in memory, over all signals."""
    return sum(len(part) for buffer in by._buffers.values() for part in buffer._parts["ids"])


def test_only_rows_that_were_seen_take_memory() -> None:
    one = capture(ALL, num_examples=10**12)  # which could not be allocated
    for begin in range(0, 40, 8):
        put(one, list(range(begin, begin + 8)), 1.0)
    assert held(one) == 3 * 40
    assert [len(segment.tensors["ids"]) for segment in one.segments()] == [40] * 3


def test_rows_are_written_by_position_and_the_last_of_an_example_wins() -> None:
    one = capture()
    put(one, [5, 3, 900], 1.0)
    put(one, [4, 3, 0], 2.0)
    put(one, [0, 999, 0], 3.0)
    assert list(rows(one).items()) == [(0, 3.0), (3, 2.0), (4, 2.0), (5, 1.0), (900, 1.0), (999, 3.0)]
    assert rows(one) == rows(one)  # a commit in mid-epoch takes nothing away


def test_a_pass_without_end_does_not_fill_memory() -> None:
    one = capture(num_examples=10)
    for number in range(200):
        put(one, [number % 10, (number + 1) % 10], float(number))
        assert held(one) <= 20
    assert rows(one) == {position: float(190 + position) if position else 199.0 for position in range(10)}


def test_restored_rows_stand_behind_later_ones() -> None:
    first, second = capture(), capture()
    put(first, [1, 2], 1.0)
    (segment,) = first.segments()
    second.restore(Segment(*segment))
    put(second, [2, 3], 2.0)
    assert rows(second) == {1: 1.0, 2: 2.0, 3: 2.0}


def test_a_batch_may_hold_numbers_that_belong_to_no_example(tmp_path) -> None:
    def with_scale(items: list[dict]) -> dict[str, torch.Tensor]:
        columns = {key: [item[key] for item in items] for key in items[0]}
        return {
            "x": torch.stack(columns["x"]),
            "y": torch.tensor(columns["y"]),
            "id": torch.tensor(columns["id"]),
            "scale": torch.tensor(0.5),
        }

    dataset = NumberedDataset(16, as_dict=True)
    recorder = RunRecorder(
        tmp_path / "archive",
        signals={"logits": {}, "loss": {}},
        keys=BatchKeys(target="y"),
        dataset=DatasetInfo("numbers", torch.arange(16), torch.arange(16) % NUM_CLASSES),
    )
    loader = DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=with_scale)
    data = DataSpec(
        loader, split_batch=lambda batch, size: [batch], get_num_samples_in_batch=lambda batch: len(batch["y"])
    )
    model = DictModel(torch.nn.Linear(6, NUM_CLASSES), num_classes=NUM_CLASSES)
    trainer(data, model, callbacks=[recorder], max_duration="1ep").fit()
    (run,) = RunArchive(tmp_path / "archive").runs()
    assert run.signal("loss").seen(0).all()
