"""Datasets, the identity of their examples, and augmentation that can be replayed."""

from __future__ import annotations

from reuse_algos.data.datasets.config import DataConfig
from reuse_algos.data.datasets.load import LoadedData, build_dataset, load_datasets
from reuse_algos.data.examples.identity import identify
from reuse_algos.data.hashing import view_hash
from reuse_algos.data.images.augment import Augmentation
from reuse_algos.data.images.device_loader import DeviceImages, WorkerImages, dataloader_of, device_collate
from reuse_algos.data.info import DatasetInfo, infer_info, key_of_path
from reuse_algos.data.views import ExampleView, ViewedDataset, ViewPolicy

__all__ = [
    "Augmentation",
    "DataConfig",
    "DatasetInfo",
    "DeviceImages",
    "ExampleView",
    "LoadedData",
    "ViewPolicy",
    "ViewedDataset",
    "WorkerImages",
    "build_dataset",
    "dataloader_of",
    "device_collate",
    "identify",
    "infer_info",
    "key_of_path",
    "load_datasets",
    "view_hash",
]
