"""Rows 7 and 9: what runs while hostile archives are read (nothing), and what their reading takes (little)."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from reuse_algos.archive import RunArchive, TensorInfo

from ..small_runs import manifest_of, put_files, rewrite
from .hostile import BAD_FIELDS, BAD_HEADERS, BAD_PATHS, BOMBS, change_entry, header, plant, sealed
from .hostile_reader import ask
from .outcome import Outcome, Tally, spread
from .survival import traced

MAX_SECONDS, MAX_MEBIBYTES = 0.1, 50  # of the processor, which other processes do not count for, and of memory


class _MakesAFile:
    """Pickled, it is a program that makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


def code(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Reads hostile archives (``count`` of them, all for None) in a process that counts what would run code."""
    canary = folder / "canary"
    archive = RunArchive(folder / "archive", create=True)
    with traced():
        attacks = _attacks(archive, canary)
        warm_root = _warm_archive(folder)
    names = list(attacks)
    names = [names[at] for at in spread(len(names), count, seed)]
    answer = ask(
        {
            "mode": "audit",
            "root": str(archive.root),
            "warm_root": warm_root,
            "run_ids": [attacks[name] for name in names],
        }
    )
    tally = Tally()
    for name in names:
        tally.tries += 1
        for event in answer["events"].get(attacks[name], []):
            tally.miss(f"{name}: {event}")
        tally.check(attacks[name] not in answer["wrong"], f"{name}: {answer['wrong'].get(attacks[name])}")
    tally.check(not canary.exists(), "a pickle was loaded")
    tally.notes["events"] = sum(map(len, answer["events"].values()))
    return tally.outcome()


def cost(folder: Path, count: int | None = None, seed: int = 0, most_seconds: float = MAX_SECONDS) -> Outcome:
    """Refusals of archives that promise much (``count`` of them, all for None), within 0.1 s and 50 MiB each.

    Args:
        folder: Where to work.
        count: How many of them. Default: None, all.
        seed: Which. Default: 0.
        most_seconds: Of the processor, for one refusal. Default: 0.1.
    """
    archive = RunArchive(folder / "archive", create=True)
    with traced():
        bombs = _bombs(archive)
        warm_root = _warm_archive(folder)
    names = list(bombs)
    names = [names[at] for at in spread(len(names), count, seed)]
    answer = ask(
        {
            "mode": "measure",
            "root": str(archive.root),
            "warm_root": warm_root,
            "run_ids": [bombs[name] for name in names],
        }
    )
    tally = Tally()
    for name in names:
        tally.tries += 1
        result = answer[bombs[name]]
        seconds, mebibytes = result["seconds"], result["mebibytes"]
        tally.most("most seconds", seconds)
        tally.most("most processor seconds", result["processor"])
        tally.most("most MiB", mebibytes)
        tally.check(not result["wrong"], f"{name}: {result['wrong']}")
        tally.check(result["processor"] <= most_seconds, f"{name} was refused after {result['processor']:.2f} s")
        tally.check(mebibytes <= MAX_MEBIBYTES, f"{name} was refused after taking {mebibytes:.0f} MiB")
    return tally.outcome()


def _good_run(archive: RunArchive) -> str:
    writer = archive.start_run("toy")
    writer.commit(manifest_of(put_files(writer)))
    writer.finish()
    return writer.run_id


def _warm_archive(folder: Path) -> str:
    """A sound run and one that is refused late."""
    archive = RunArchive(folder / "warm", create=True)
    _good_run(archive)
    _with_manifest(archive, b'{"record":"manifest","files":3}')
    return str(archive.root)


def _with_manifest(archive: RunArchive, content: bytes) -> str:
    """A run whose manifest is this, well sealed."""
    run_id = _good_run(archive)
    rewrite(archive.root / f"runs/{run_id}/manifests/g000001.json", lambda _: sealed(content))
    return run_id


def _attacks(archive: RunArchive, canary: Path) -> dict[str, str]:
    """Ids of hostile runs by what they try."""
    torch_file = io.BytesIO()
    torch.save({"w": _MakesAFile(str(canary))}, torch_file)
    programs = {
        "pickle": pickle.dumps(_MakesAFile(str(canary))),
        "torch file": torch_file.getvalue(),
        "pickle in a header": header(pickle.dumps(_MakesAFile(str(canary)))),
        "Python source": f"open({str(canary)!r}, 'w')\n".encode(),
        "shell script": f"#!/bin/sh\ntouch {canary}\n".encode(),
        "ELF": b"\x7fELF" + bytes(100),
    }
    attacks = {f"data: {name}": plant(archive, data, {}) for name, data in programs.items()}
    attacks |= {f"manifest: {name}": _with_manifest(archive, data) for name, data in programs.items()}
    attacks |= {f"header: {name}": plant(archive, *case) for name, case in BAD_HEADERS.items()}
    attacks |= {f"bomb: {name}": _with_manifest(archive, content) for name, content in BOMBS.items()}
    entries = [{"path": path} for path in BAD_PATHS] + [dict(fields) for fields in BAD_FIELDS]
    for fields in entries:
        run_id = _good_run(archive)
        change_entry(archive, archive.run(run_id).manifest, **fields)
        attacks[f"entry: {str(fields)[:100]!r}"] = run_id
    tagged = {
        "class by name": {"__class__": "os.system", "__reduce__": ["os.system", [f"touch {canary}"]]},
        "YAML tag": f"!!python/object/apply:os.system ['touch {canary}']",
        "interpolation": f"${{oc.env:HOME}} ${{eval:open({str(canary)!r}, 'w')}}",
        "format string": "{0.__class__.__mro__} %s %n",
        "import path": {"_target_": "os.system", "command": f"touch {canary}"},
    }
    for name, value in tagged.items():
        run_id = _good_run(archive)
        manifest = msgspec.to_builtins(archive.run(run_id).manifest)
        manifest |= {"recipe": {"model": value}, "model": {"name": "os.system", "config": {"x": value}}}
        manifest["files"][0]["sha256"] = "0" * 64  # so that it is refused in the end
        rewrite(
            archive.root / f"runs/{run_id}/manifests/g000001.json",
            lambda _, manifest=manifest: sealed(json.dumps(manifest).encode()),
        )
        attacks[f"recipe: {name}"] = run_id
    return attacks


def _bombs(archive: RunArchive) -> dict[str, str]:
    """Ids of runs that would take much time or memory to read, by how."""
    bombs = {f"manifest: {name}": _with_manifest(archive, content) for name, content in BOMBS.items()}
    bombs |= {f"header: {name}": plant(archive, *case) for name, case in BAD_HEADERS.items()}
    bombs["header of 95 MB"] = plant(archive, header(b"", length=95 << 20) + bytes(95 << 20), {})
    million = b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(10**6))
    bombs["a million tensors"] = plant(archive, header(b"{" + million + b"}"), {})
    bombs["a million files"] = _with_manifest(
        archive, b'{"record":"manifest","files":[' + b"{}," * (10**6 - 1) + b"{}]}"
    )
    shapes = {"shape of a million sizes": (1,) * 10**5, "shape 2^62 twice": (2**62, 2**62)}
    for name, shape in shapes.items():
        content = msgspec.json.encode({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}})
        bombs[name] = plant(archive, header(content, bytes(4)), {"w": TensorInfo(dtype="F32", shape=shape)})
    claims: dict[str, Callable[[dict[str, Any]], object]] = {
        "2^62 examples": lambda manifest: manifest["dataset"].update(num_examples=2**62),
        "2^40 examples": lambda manifest: manifest["dataset"].update(num_examples=2**40),
        "2^40 examples without keys": lambda manifest: (
            manifest["dataset"].update(num_examples=2**40),
            manifest.update(files=[entry for entry in manifest["files"] if entry["kind"] != "dataset"]),
        ),
        "slot 2^70": lambda manifest: manifest["files"][-1]["meta"].update(slot=2**70),
        "2^62 bytes": lambda manifest: manifest["files"][-1].update(bytes=2**62),
    }
    for name, claim in claims.items():
        run_id = _good_run(archive)
        manifest = msgspec.to_builtins(archive.run(run_id).manifest)
        claim(manifest)
        rewrite(
            archive.root / f"runs/{run_id}/manifests/g000001.json",
            lambda _, manifest=manifest: sealed(msgspec.json.encode(manifest)),
        )
        bombs[name] = run_id
    return bombs
