"""The checkpoint from which a training of several nodes goes on.

Composer's ``autoresume`` synchronises the processes of each node by a file in the save folder, whose name the first
rank broadcasts. Where the nodes share that folder, it is one file, and all nodes but one fail to remove it. So here the
first rank looks for the checkpoint, and the Trainer is told it as ``load_path``.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from composer.utils import dist
from composer.utils.file_helpers import format_name_with_dist

from reuse_algos.errors import RecipeError

_LATEST = "latest-rank0.pt"  # the link that Composer's CheckpointSaver keeps to its newest checkpoint


def resume_arguments(save_folder: str | None, run_name: str | None, *, autoresume: bool) -> dict[str, Any]:
    """Return the Trainer's arguments that differ from the recipe's where several nodes share the save folder.

    Every rank calls this. The group of processes must exist.

    Args:
        save_folder: Of the checkpoints, with Composer's ``{run_name}``; None saves none.
        run_name: Of the run.
        autoresume: Whether the recipe asks to go on from the newest checkpoint.

    Returns:
        Nothing on one node, or where each node has a save folder of its own: there Composer's ``autoresume`` works.
        Else ``autoresume: False``, and the newest checkpoint with all of its state as ``load_path`` if there is one.

    Raises:
        RecipeError: Some of the nodes share the folder with the first one, and others do not.
    """
    if not autoresume or save_folder is None or "://" in save_folder or not _several_nodes():
        return {}
    folder = Path(format_name_with_dist(save_folder, run_name or "")).absolute()
    seen = _seen_on_nodes(folder)
    if not any(seen[1:]):
        return {}
    if not all(seen):
        blind = ", ".join(str(node) for node, sees in enumerate(seen) if not sees)
        raise RecipeError(
            f"save_folder: {folder} of node 0 is not seen on node {blind}, and is seen on others. Put it where all "
            "nodes see it, so that each can go on from its checkpoints"
        )
    found: list[str | None] = [None]
    if dist.get_global_rank() == 0 and (folder / _LATEST).exists():
        # The file itself: the link may point to another one before the last rank has read it.
        found = [str((folder / _LATEST).resolve())]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return {"autoresume": False}
    return {"autoresume": False, "load_path": found[0], "load_weights_only": False}


def _several_nodes() -> bool:
    return dist.get_world_size() > dist.get_local_world_size()


def _seen_on_nodes(folder: Path) -> list[bool]:
    """Return for each node whether it sees a file that the first rank writes into a folder."""
    name = [f".seen-{secrets.token_hex(8)}"]
    dist.broadcast_object_list(name, src=0)
    marker = folder / name[0]
    if dist.get_global_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    dist.barrier()
    seen = dict(dist.all_gather_object((dist.get_node_rank(), marker.exists())))
    # Nobody may look for the file after it is gone: the gathering above has waited for all.
    if dist.get_global_rank() == 0:
        marker.unlink()
    return [seen[node] for node in sorted(seen)]
