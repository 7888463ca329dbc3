"""A process that trains, in children that are killed or whose disk fails. Started by the cases of rows 16 and 17.

It imports everything once, computes nothing itself, and forks a child for each training process.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from composer import Callback, Event, State
from composer.utils import dist
from torch.utils.data import DataLoader

from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.callbacks import RunRecorder
from toy import blobs, checkpointed, epoch_loader, mlp, trainer, viewed

from .survival import traced

ALL_SIGNALS: dict[str, dict[str, Any]] = {"logits": {}, "loss": {}, "correct": {}}
EPOCHS, BATCHES_PER_EPOCH = 6, 4
Way = Literal["kill", "full disk"]


class Stop(Callback):
    """Kills this process, or fills its disk.

    Args:
        way: Which of the two.
        batch: Number of the batch at whose end that happens, from 1.
        operation: If given, it happens at this change of the disk, counted from that batch's end on.
    """

    def __init__(self, way: Way, batch: int, operation: int | None = None) -> None:
        self.way, self.batch, self.operation = way, batch, operation
        self.armed = False
        self.seen = 0

    def run_event(self, event: Event, state: State, logger: Any) -> None:
        del logger
        if event == Event.BATCH_END and int(state.timestamp.batch) == self.batch:
            self.armed = True
            if self.operation is None:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, index: int, kind: str) -> None:
        """Called ahead of each change of the disk."""
        del index, kind
        if not self.armed:
            return
        if self.seen == self.operation or (self.way == "full disk" and self.seen > (self.operation or 0)):
            if self.way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.seen += 1

    def disk(self) -> AbstractContextManager[object]:
        """The disk on which it happens."""
        return nullcontext() if self.operation is None else traced(self.before)


def train(folder: Path, stop: Stop | None = None) -> None:
    """Train with everything recorded, from the newest checkpoint on, distilling from the runs in ``prior`` beside."""
    recorder = RunRecorder(folder / "archive", signals=ALL_SIGNALS, weights=("last", "best", "1ep"))
    algorithm = PriorRunDistillation(
        folder.parent / "prior",
        {"order": "first"},
        source="cached",
        combine="mixup",
        loss={"name": "mse", "weight": 0.5},
        when={},
    )
    with nullcontext() if stop is None else stop.disk():
        one = trainer(
            epoch_loader(viewed()),
            mlp(5),
            algorithms=[algorithm],
            callbacks=[recorder, *([stop] if stop else [])],
            eval_dataloader=DataLoader(blobs(32, seed=9), batch_size=32),
            **checkpointed(folder / "checkpoints", save_interval="2ba", max_duration=f"{EPOCHS}ep"),
        )
        if one.state.max_duration is not None and one.state.timestamp < one.state.max_duration:
            one.fit()


def train_rank(folder: Path, stop: Stop | None) -> None:
    """Train as one of several ranks, without checkpoints, so that only the end commits."""
    dist.initialize_dist("cpu", timeout=300.0)
    recorder = RunRecorder(folder / "archive", run_name="ranks", signals=ALL_SIGNALS)
    with nullcontext() if stop is None else stop.disk():
        one = trainer(
            epoch_loader(viewed()), mlp(5), callbacks=[recorder, *([stop] if stop else [])], max_duration="3ep"
        )
        one.fit()


def ask(request: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
    """Run this module in a process of its own: ``{"mode": "kills" or "ranks", "tries": [...]}`` in, results out."""
    tests = str(Path(__file__).parents[2])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "archive.torture.training"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    if done.returncode:
        raise RuntimeError(f"the trainings failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _fork(work: Callable[[], None], log: Path) -> int:
    """Run something in a child; it writes down how it ended."""
    child = os.fork()
    if child:
        return child
    outcome: dict[str, Any] = {"error": None}
    try:
        with log.with_suffix(".out").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            work()
    except BaseException as error:
        outcome = {"error": type(error).__name__, "message": str(error)[:500], "trace": traceback.format_exc()[-2000:]}
    log.write_text(json.dumps(outcome))
    os._exit(0 if outcome["error"] is None else 1)


def _kills(tries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each try a straight run, and one that is killed at the given places and started again."""
    results = []
    for number, one in enumerate(tries):
        folder = Path(one["folder"])
        statuses = []
        for place in [*one["kills"], None]:
            stop = None if place is None else Stop("kill", *place)
            child = _fork(lambda folder=folder, stop=stop: train(folder / "broken", stop), folder / "broken.log")
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            if statuses[-1] not in (0, -signal.SIGKILL):
                results.append({"statuses": statuses, "failure": (folder / "broken.log").read_text()})
                break
        else:
            results.append({"statuses": statuses, "failure": ""})
        if number == 0:
            child = _fork(lambda folder=folder: train(folder / "straight"), folder / "straight.log")
            if os.waitpid(child, 0)[1] != 0:
                raise RuntimeError((folder / "straight.log").read_text())
    return results


def _ranks(tries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each try several ranks, of which one fails; how each ended, and how long after the first one."""
    results = []
    for one in tries:
        folder = Path(one["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        world = one["ranks"]
        children: dict[int, int] = {}
        for rank in range(world):
            stop = Stop(one["way"], one["batch"], one["operation"]) if rank == one["failing"] else None
            environment = {
                "RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            os.environ.update({key: str(value) for key, value in environment.items()})
            children[_fork(lambda stop=stop, folder=folder: train_rank(folder, stop), folder / f"rank-{rank}.log")] = (
                rank
            )
        results.append(_wait(children, folder, one["seconds"]))
    return results


def _wait(children: dict[int, int], folder: Path, seconds: float) -> dict[str, Any]:
    """Wait for all ranks, at most some seconds after the first one has ended; then kill the rest."""
    statuses: dict[int, int] = {}
    first: float | None = None
    took = 0.0
    while len(statuses) < len(children):
        for child, rank in children.items():
            if rank not in statuses and (ended := os.waitpid(child, os.WNOHANG)) != (0, 0):
                statuses[rank] = os.waitstatus_to_exitcode(ended[1])
                first = first or time.monotonic()
                took = time.monotonic() - first
        if first is not None and time.monotonic() - first > seconds:
            for child, rank in children.items():
                if rank not in statuses:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            break
        time.sleep(0.05)
    logs = {rank: folder / f"rank-{rank}.log" for rank in children.values()}
    return {
        "seconds": took,
        "hanging": sorted(set(children.values()) - statuses.keys()),
        "statuses": [statuses.get(rank) for rank in range(len(children))],
        "errors": [json.loads(logs[rank].read_text()) if logs[rank].exists() else None for rank in sorted(logs)],
    }


def main() -> None:
    request = json.load(sys.stdin)
    results = {"kills": _kills, "ranks": _ranks}[request["mode"]](request["tries"])
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
