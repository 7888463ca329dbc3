"""What a record says of where it comes from: code, hardware, model."""

from __future__ import annotations

import copy
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata

import torch
from composer import State
from composer.utils import dist

from reuse_algos.archive import EnvironmentRecord, ModelRecord, describe
from reuse_algos.data.seeding import seeded_rng
from reuse_algos.training.flops import forward_flops
from reuse_algos.training.outputs import device_of, plain_state_dict, unwrap_model
from reuse_algos.training.parameters.batch_norm import without_auxiliary

_PACKAGES = ("reuse-algos", "mosaicml", "torch", "torchvision", "torchmetrics", "numpy", "safetensors")


def environment() -> EnvironmentRecord:
    """Return versions, hardware and the git commit of the working directory."""
    hardware: dict[str, str | int | float | None] = {
        "name": hardware_name(),
        "cpu_count": os.cpu_count(),
        "gpu_count": torch.cuda.device_count(),
        "world_size": dist.get_world_size(),
        # Processes of one machine share its cores, and each takes so many threads: their speed depends on both.
        "local_world_size": dist.get_local_world_size(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return EnvironmentRecord(versions=dict(_versions()), hardware=hardware, git_commit=_git_commit())


@functools.cache  # looking for the metadata of seven packages takes 10 ms
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware_name() -> str:
    """Return the GPU's name, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Return the commit of the working directory, ``+changes`` where tracked files differ from it; None outside git."""
    try:
        # Untracked files are left out: looking through a folder of data for them may take minutes.
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def model_record(model: torch.nn.Module, flops_per_example: int | None) -> ModelRecord:
    """Return the name, build settings, names and shapes of the model that the trainer holds."""
    plain = unwrap_model(model)
    config = getattr(plain, "reuse_config", None)
    inner = getattr(plain, "module", plain)
    parameters = dict(plain.named_parameters())
    return ModelRecord(
        name=config["name"] if config else type(inner).__name__,
        config=config,
        num_classes=getattr(plain, "num_classes", None),
        parameters=describe(plain_state_dict(model)),
        num_parameters=sum(parameters[name].numel() for name in without_auxiliary(plain, parameters)),
        flops_per_example=flops_per_example,
    )


def model_flops(state: State) -> int | None:
    """Return the FLOPs of the forward pass of one example, see :func:`~reuse_algos.training.flops.forward_flops`."""

    def forward() -> None:
        # Copies, since a user's forward may take entries out of a batch, count calls, or draw: the training must not
        # notice this pass.
        model, batch = copy.deepcopy(unwrap_model(state.model)), copy.deepcopy(state.batch)
        model.eval()
        # The class's forward: the instance's may have been replaced by a compiled one.
        type(model).forward(model, batch)

    device = device_of(state.model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), seeded_rng(0):
        return forward_flops(forward, state, "the model")
