"""Row 24: a record that claims a model or data of its own choice opens no file, downloads nothing and takes no memory.

The attacks are read by a process of its own, under an audit hook: ``python -m archive.torture.claims`` with a request
as JSON on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from reuse_algos.archive import DatasetRecord, Manifest, ModelRecord, RunArchive

from .outcome import Outcome, Tally, spread

MAX_MEBIBYTES = 256.0
MODEL = {"name": "digits_cnn", "num_classes": 10, "image_shape": [1, 8, 8], "width": 2}
DATA = {"name": "digits", "augment": "none", "batch_size": 64}
HUGE = 2**31 - 1


def attacks(bait: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Changes to the model's settings and to the recipe's data section, by what they try. ``bait`` holds the baits."""
    models: dict[str, dict[str, Any]] = {
        "weights from a pipe": {"weights_path": str(bait / "pipe")},
        "weights from a file": {"weights_path": str(bait / "file.safetensors")},
        "weights that are not there": {"weights_path": str(bait / "missing")},
        "published weights": {"name": "resnet18", "image_shape": [3, 64, 64], "weights": "DEFAULT", "width": None},
        "a wide deep network": {"name": "resnet110", "width": 220},
        "a network of 2^31 channels": {"name": "resnet110", "width": HUGE},
        "2^31 classes": {"num_classes": HUGE},
        "2^40 classes": {"num_classes": 2**40},
        "images of 2^31 pixels": {"name": "resnet18", "width": None, "image_shape": [3, HUGE, HUGE]},
        "2^31 channels": {"image_shape": [HUGE, 8, 8]},
        "a transformer for 3,000 pixels": {"name": "vit_h_14", "width": None, "image_shape": [3, 2996, 2996]},
        "a network of 644 million numbers": {"name": "regnet_y_128gf", "width": None, "image_shape": [3, 224, 224]},
        "a width that is text": {"width": "9" * 50},
        "a width below 1": {"width": -1},
        "a shape that is text": {"image_shape": "333"},
        "a name that is a list": {"name": ["resnet20"]},
        "an import path": {"name": "os.system"},
        "a setting that is unknown": {"module": "os"},
    }
    data: dict[str, dict[str, Any]] = {
        "images from a folder": {"name": "image_folder", "root": str(bait)},
        "arrays from a pipe": {"name": "npz", "path": str(bait / "pipe")},
        "arrays from a file": {"name": "npz", "path": str(bait / "file.safetensors")},
        "a download": {"name": "cifar10", "root": str(bait / "new"), "download": True},
        "digits of 3,000 pixels": {"image_size": 3000},
        "2^40 views": {"augment": "crop", "num_views": 2**40},
        "views that are text": {"augment": "crop", "num_views": "9" * 50},
        "a part that is true": {"train_fraction": True},
        "classes that are a mapping": {"classes": {"a": 1}},
        "an augmentation that is a list": {"augment": ["crop"]},
    }
    return {name: ({**MODEL, **change}, DATA) for name, change in models.items()} | {
        name: (MODEL, {**DATA, **change}) for name, change in data.items()
    }


def case(folder: Path, count: int | None = None, seed: int = 0) -> Outcome:
    """Each claim (``count`` of them, all for None) is asked for as a model, for its data, and for a harvest."""
    bait = folder / "bait"
    bait.mkdir()
    os.mkfifo(bait / "pipe")
    (bait / "file.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    claims = attacks(bait)
    names = list(claims)
    names = [names[at] for at in spread(len(names), count, seed)]
    request = {"root": str(folder / "archive"), "bait": str(bait), "claims": {name: claims[name] for name in names}}
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "archive.torture.claims"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"the reader failed:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    tally = Tally()
    tally.check(answer.pop("control") == 1437, "an honest run could not be harvested")
    for name, found in answer.items():
        tally.tries += 1
        tally.most("most MiB", found["mebibytes"])
        tally.most("most processor seconds", found["processor"])
        for event in found["events"]:
            tally.miss(f"{name}: {event}")
        tally.check(not found["wrong"], f"{name}: {found['wrong']}")
        tally.check(found["mebibytes"] <= MAX_MEBIBYTES, f"{name} took {found['mebibytes']:.0f} MiB")
    tally.check(sorted(path.name for path in bait.iterdir()) == ["file.safetensors", "pipe"], "a folder was made")
    return tally.outcome()


def _plant(archive: RunArchive, model: dict[str, Any], data: dict[str, Any], honest: dict[str, Any]) -> str:
    writer = archive.start_run("claim")
    files = [
        writer.put("dataset", "examples", honest["examples"]),
        writer.put("weights", "last", honest["weights"]),
    ]
    manifest = Manifest(
        recipe={"data": data}, model=ModelRecord(name="x", config=model), dataset=honest["record"], files=files
    )
    writer.commit(manifest)
    writer.finish()
    return writer.run_id


def _honest() -> dict[str, Any]:
    from reuse_algos.data import DataConfig, infer_info, load_datasets
    from reuse_algos.models import build_model

    info = infer_info(load_datasets(DataConfig(**DATA)).train)
    record = DatasetRecord(
        name=info.name,
        num_examples=info.num_examples,
        fingerprint=info.fingerprint,
        key_fingerprint=info.key_fingerprint,
        num_classes=10,
        labels_known=True,
    )
    examples = {"keys": info.keys, "labels": info.labels}
    return {"weights": build_model(MODEL).state_dict(), "record": record, "examples": examples}


def main() -> None:
    """Read the claims of a request, and print what happened as JSON."""
    import time

    from reuse_algos.errors import ReuseAlgosError
    from reuse_algos.harvest import harvest, load_run_data
    from reuse_algos.priors.model import archived_model

    from .hostile_reader import _kibibytes

    request = json.load(sys.stdin)
    archive = RunArchive(request["root"], create=True)
    honest = _honest()
    run_id = _plant(archive, MODEL, DATA, honest)
    (done,) = harvest(archive, run_id, progress=False)
    archived_model(archive.run(run_id), "last")
    answer: dict[str, Any] = {"control": done.rows}
    events: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        outside = event in ("open", "os.mkdir", "os.scandir", "os.listdir") and request["bait"] in str(arguments[0])
        if outside or event.startswith(("socket.", "urllib.", "http.", "subprocess.", "os.system", "pickle.")):
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(audit)
    for name, (model, data) in request["claims"].items():
        run_id = _plant(archive, model, data, honest)
        run = archive.run(run_id)
        events.clear()
        asked = lambda run=run: archived_model(run, "last")  # noqa: E731
        loaded = lambda run=run: load_run_data(run)  # noqa: E731
        refused, wrong = 0, ""
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _kibibytes("VmRSS"), time.process_time()
        for action in (asked, loaded, lambda run_id=run_id: harvest(archive, run_id, progress=False)):
            try:
                action()
            except ReuseAlgosError:
                refused += 1
            except BaseException as error:
                wrong = repr(error)[:300]
        if not wrong and refused < 2:  # one of the two claims is honest, and the harvest needs both
            wrong = "it was not refused"
        answer[name] = {
            "events": list(events),
            "wrong": wrong,
            "mebibytes": (_kibibytes("VmHWM") - before) / 1024,
            "processor": time.process_time() - began,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
