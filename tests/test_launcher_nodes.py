"""The main job on several nodes: two launchers on this machine, each of which starts one process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from composer.utils import dist
from composer.utils.misc import get_free_tcp_port

from forked_python import forked_python
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.errors import RecipeError
from reuse_algos.recipe.building import resuming

ROOT = Path(__file__).parents[1]
SMALL = ["data.train_examples=256", "data.batch_size=64", "max_duration=2ep", "progress_bar=false", "device=cpu"]
STOP = str(Path(__file__).parent / "ranks/stop_in_training.py")


def train_on_nodes(
    start: Sequence[str], folder: Path, save_folders: Sequence[Path] = (), *overrides: str
) -> list[tuple[int, str]]:
    """Train on two nodes of one process each; exit status and output of each."""
    port, nodes = str(get_free_tcp_port()), []
    for node in range(2):
        words = ["-n", "1", "--world_size", "2", "--node_rank", str(node), "--master_addr", "127.0.0.1"]
        words += ["--master_port", port, *start, str(ROOT / "yamls/digits/baseline.yaml"), *SMALL, *overrides]
        place = save_folders[node] if save_folders else folder / "checkpoints"
        words += [f"archive={folder / 'archive'}", f"save_folder={place}", "save_interval=2ba", "autoresume=true"]
        command = [forked_python(), "-m", "composer.cli.launcher", *words, "save_overwrite=true"]
        nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return [(one.communicate(timeout=300)[0], one.returncode)[::-1] for one in nodes]


def only_run(folder: Path) -> PriorRun:
    (run,) = RunArchive(folder / "archive", read_only=True).runs(unfinished=True)
    return run


@pytest.mark.ranks
def test_two_nodes_that_share_a_folder_are_killed_and_go_on_bit_equal(tmp_path: Path) -> None:
    """Composer's own autoresume lets both nodes remove one file there, and the second one fails."""
    train = ["-m", "reuse_algos.train"]
    for status, said in train_on_nodes(train, tmp_path / "straight"):
        assert status == 0, said
    killed = tmp_path / "killed"
    assert all(status != 0 for status, _ in train_on_nodes([STOP, "3"], killed))
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left == ["ep0-ba2-rank0.pt", "latest-rank0.pt"], "and no file that the nodes have shown each other"
    begun = only_run(killed)
    assert not begun.finished
    for status, said in train_on_nodes(train, killed):
        assert status == 0, said

    straight, resumed = only_run(tmp_path / "straight"), only_run(killed)
    assert resumed.id == begun.id, "it went on and did not begin again"
    assert resumed.manifest.progress == straight.manifest.progress
    assert resumed.manifest.progress.batch == 8
    assert resumed.manifest.environment is not None
    assert resumed.manifest.environment.hardware["world_size"] == 2
    for name, tensor in straight.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    signals = [run.signal("logits").dense(0)[0] for run in (straight, resumed)]
    assert torch.equal(*signals)
    assert straight.final_metric() == resumed.final_metric()


class Ranks:
    """Ranks on nodes of one process each, as one of them sees the others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seen: Sequence[bool]) -> None:
        self.seen = seen
        monkeypatch.setattr(dist, "get_world_size", lambda: len(seen))
        monkeypatch.setattr(dist, "broadcast_object_list", lambda objects, src: None)
        monkeypatch.setattr(dist, "barrier", lambda: None)
        monkeypatch.setattr(dist, "all_gather_object", lambda mine: [mine, *enumerate(seen)][1:])


def test_a_folder_that_each_node_has_for_itself_is_left_to_composer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "{run_name}")
    assert resuming.resume_arguments(folder, "one", autoresume=True) == {}, "one node"
    Ranks(monkeypatch, [True, False, False])
    assert resuming.resume_arguments(folder, "one", autoresume=True) == {}
    assert resuming.resume_arguments("s3://bucket/folder", "one", autoresume=True) == {}
    assert resuming.resume_arguments(folder, "one", autoresume=False) == {}
    assert list((tmp_path / "one").iterdir()) == []


def test_a_folder_that_one_node_does_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks(monkeypatch, [True, True, False])
    with pytest.raises(RecipeError, match=r"save_folder: .*/one of node 0 is not seen on node 2, and is seen on"):
        resuming.resume_arguments(str(tmp_path / "one"), "one", autoresume=True)


def test_the_newest_checkpoint_of_a_shared_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks(monkeypatch, [True, True])
    folder = tmp_path / "one"
    assert resuming.resume_arguments(str(tmp_path / "{run_name}"), "one", autoresume=True) == {"autoresume": False}
    for number in (1, 2):
        (folder / f"ba{number}.pt").touch()
    (folder / "latest-rank0.pt").symlink_to("ba2.pt")
    found = resuming.resume_arguments(str(tmp_path / "{run_name}"), "one", autoresume=True)
    assert found == {"autoresume": False, "load_path": str(folder / "ba2.pt"), "load_weights_only": False}
    os.unlink(folder / "ba2.pt")
    assert resuming.resume_arguments(str(folder), "one", autoresume=True) == {"autoresume": False}
