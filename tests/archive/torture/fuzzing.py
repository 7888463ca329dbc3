"""Row 6: manifests and tensor headers changed at random, and sealed again so that they get past the hash."""

from __future__ import annotations

import copy
import functools
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from reuse_algos.archive import (
    CostRecord,
    EnvironmentRecord,
    HarvestRecord,
    ModelRecord,
    PriorRun,
    PriorUse,
    RunArchive,
    TensorInfo,
    quantize,
)
from reuse_algos.archive.format.names import data_path
from reuse_algos.archive.format.tensors import DTYPES
from reuse_algos.errors import ArchiveError, ExampleIdError, RunNotFoundError, SignalNotFoundError

from ..small_runs import manifest_of, put_files, rewrite
from .hostile import header, sealed
from .outcome import Outcome, Tally
from .survival import traced

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**62, 2**63, 2**64, 2**70, 0.5, -0.0, 1e308, "", "a", "\0", "..", "/",
    "é", "ep0001", "last", "logits", "weights", "signals", "dense", "top_k", "F32", "I64", "BOOL", "x" * 300, [], [[]],
    [0], [-1], [2**62, 2**62], [0, 2**62], [1] * 40, {}, {"a": {}}, {"slot": 0}, {"dtype": "F32", "shape": [3]},
]  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Bytes with one to five changes that know nothing of what they mean."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(damaged))
        kind = draw.randrange(4)
        if kind == 0:
            damaged[at] = draw.randrange(256)
        elif kind == 1:
            damaged[at:at] = draw.choice(
                (b"[" * 70, b"{", b'"', b"null", b"-1", b"9" * 30, b"\\u0000", b"1e999", b"\xff")
            )
        elif kind == 2:
            del damaged[at : at + draw.randrange(1, 20)]
        else:
            damaged[at : at + 8] = draw.randbytes(8)
        damaged = damaged or bytearray(b"{")
    return bytes(damaged)


def mutate_json(value: Any, draw: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled, renamed or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return draw.choice(NASTY)
        holder, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "slot", "ids", "values", "", key + "_"))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 3:
            other, other_key = draw.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == 4 and isinstance(holder[key], int):
            holder[key] += draw.choice((-1, 1, 2**40))
        else:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    found: list[tuple[Any, Any]] = []
    open_parts = [value]
    while open_parts:
        part = open_parts.pop()
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, item in items:
            found.append((part, key))
            open_parts.append(item)
    return found


def questions(run: PriorRun) -> list[Callable[[], object]]:
    """Everything that can be asked of a run, one by one: a refusal of one must not hide what another one does."""
    asked: list[Callable[[], object]] = [
        lambda: repr((run, run.id, run.run_name, run.tags, run.finished, run.health)),
        run.final_metric,
        run.best_metric,
        run.keys,
        run.labels,
    ]
    for name in run.weight_names:
        asked.append(lambda name=name: [tensor.reshape(-1)[:1].clone() for tensor in run.weights(name).values()])
    for name in run.metric_names:
        asked += [lambda name=name: run.metric(name), lambda name=name: run.best_metric(name)]
    for name in run.signal_names:
        signal = functools.cache(lambda name=name: run.signal(name))
        asked += [
            lambda signal=signal: repr((signal().encoding, signal().num_classes, signal().nbytes)),
            lambda signal=signal: [signal().slot_meta(slot) for slot in signal().slots],
            lambda signal=signal: signal().gather(torch.arange(3), torch.zeros(3, dtype=torch.int64)),
            lambda signal=signal: signal().gather(torch.arange(3), torch.ones(3, dtype=torch.int64)),
            lambda signal=signal: [signal().dense(slot) for slot in signal().slots],
            lambda signal=signal: [signal().seen(slot) for slot in signal().slots],
            lambda signal=signal: signal().resident("cpu"),
        ]
    return asked


def manifests(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Fuzzed manifests (10,000 for None), most of them sealed again."""
    tally, draw = Tally(), random.Random(seed)
    archive, run_id = _rich_run(folder)
    path = folder / f"runs/{run_id}/manifests/g000001.json"
    original = path.read_bytes()
    content = original[len(b'{"sha256":"","content":') + 64 : -2]
    value = msgspec.json.decode(content)
    for number in range(10_000 if count is None else count):
        kind = draw.random()
        if kind < 0.75:
            data = sealed(msgspec.json.encode(mutate_json(value, draw)))
        elif kind < 0.95:
            data = sealed(mutate(content, draw))
        else:
            data = mutate(original, draw)
        rewrite(path, lambda _, data=data: data)
        others: list[Callable[[], object]] = []
        if number % 10 == 0:
            others = [lambda: archive.verify(run_id), archive.run_ids, lambda: archive.resume_run(run_id, 0)]
        _attempt(archive, run_id, others, tally, f"manifest {number}", data)
    rewrite(path, lambda _: original)
    for ask in questions(archive.run(run_id)):
        ask()
    return tally.outcome()


def headers(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Fuzzed tensor files (10,000 for None), with the right size and sha256 in their manifest."""
    tally, draw = Tally(), random.Random(seed)
    archive, run_id = _rich_run(folder)
    run = archive.run(run_id)
    manifest = msgspec.to_builtins(run.manifest)
    path = folder / f"runs/{run_id}/manifests/g000001.json"
    originals = [(folder / f"runs/{run_id}" / entry.path).read_bytes() for entry in run.manifest.files]
    for number in range(10_000 if count is None else count):
        index = draw.randrange(len(originals))
        data, entry = originals[index], dict(manifest["files"][index])
        end = 8 + int.from_bytes(data[:8], "little")
        if draw.random() < 0.7:
            slots = mutate_json(msgspec.json.decode(data[8:end]), draw)
            data = header(msgspec.json.encode(slots), data[end:])
            if declared := _declared(slots):  # so that it gets past the comparison with the manifest
                entry["tensors"] = declared
        else:
            data = mutate(data[:end], draw) + data[end:]
        sha256 = hashlib.sha256(data).hexdigest()
        entry |= {"bytes": len(data), "sha256": sha256, "path": data_path(entry["kind"], entry["name"], 1, sha256)}
        target = folder / f"runs/{run_id}" / entry["path"]
        target.write_bytes(data)
        files = [entry if other == index else kept for other, kept in enumerate(manifest["files"])]
        content = msgspec.json.encode({**manifest, "files": files})
        rewrite(path, lambda _, content=content: sealed(content))
        others: list[Callable[[], object]] = [lambda: archive.verify(run_id)] if number % 10 == 0 else []
        _attempt(archive, run_id, others, tally, f"header {number}", data)
        if data != originals[index]:
            target.unlink()
    return tally.outcome()


def _declared(slots: Any) -> dict[str, Any] | None:
    """What a manifest must declare for a header to agree with it; None where it cannot."""
    try:
        declared = {name: {"dtype": slot["dtype"], "shape": slot["shape"]} for name, slot in slots.items()}
        msgspec.convert(declared, dict[str, TensorInfo])
    except (AttributeError, KeyError, TypeError, msgspec.ValidationError):
        return None
    return declared


def _attempt(
    archive: RunArchive, run_id: str, others: list[Callable[[], object]], tally: Tally, what: str, data: bytes
) -> None:
    tally.tries += 1
    asked = list(others)
    refused = False

    def open_run() -> None:
        asked.extend(questions(archive.run(run_id)))

    asked.insert(0, open_run)
    while asked:
        ask = asked.pop(0)
        began = time.process_time()
        try:
            ask()
        except ArchiveError:
            refused = True
        except (RunNotFoundError, SignalNotFoundError, ExampleIdError):
            pass  # a sound run, which does not have what was asked
        except Exception as error:
            tally.miss(f"{error!r} for {what}, {data[:4000]!r}")
        seconds = time.process_time() - began  # of the processor, which other processes do not count for
        tally.most("slowest seconds", seconds)
        tally.check(seconds < 1, f"{seconds:.1f} s for {what}")
    key = "refused" if refused else "read"
    tally.notes[key] = int(tally.notes.get(key, 0)) + 1


def _rich_run(folder: Path) -> tuple[RunArchive, str]:
    """A run with every kind of record and file."""
    with traced():
        archive = RunArchive(folder, create=True)
        writer = archive.start_run("rich")
        positions = torch.arange(6)
        top_k = {
            "ids": positions,
            "values": torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).half(),
            "indices": torch.tensor([[0, 1]] * 6, dtype=torch.int32),
            "rest": torch.zeros(6),
        }
        meta = {"slot": 1, "epoch": 1, "view": 1, "source": "harvest", "encoding": "top_k", "num_classes": 5}
        packed = {"ids": positions, **quantize(torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)), 2)}
        bits = {**meta, "encoding": "packed", "num_classes": None, "bits": 2, "shape": "2x3"}
        every_type = {name: torch.zeros(2, 2).to(dtype) for name, dtype in DTYPES.items()}
        files = [
            *put_files(writer),
            writer.put("signals", "kept", top_k, meta),
            writer.put("signals", "adversarial", packed, bits),
            writer.put("weights", "ep0001", every_type),
        ]
        writer.commit(
            manifest_of(
                files,
                seed=3,
                tags={"study": "fuzz"},
                recipe={"lr": [0.1, {"warm": None}]},
                model=ModelRecord(name="mlp", config={"hidden": 4}, num_classes=5),
                environment=EnvironmentRecord(versions={"torch": "2"}, hardware={"cpus": 2}),
                cost=CostRecord(train_seconds=1.5),
                harvests=[HarvestRecord(signal="kept", views=[1], weights="last", seconds=0.5, hardware="cpu")],
                prior_runs=[PriorUse(run_id="old", algorithm="distil")],
            )
        )
    return archive, writer.run_id
