"""The run archive: committed runs that later runs read. It knows nothing of Composer or of training."""

from reuse_algos.archive.format.manifest import FORMAT, Manifest
from reuse_algos.archive.format.metrics import MetricHistory, history_tensors, infer_mode
from reuse_algos.archive.format.parts import check_foreseen_files
from reuse_algos.archive.format.records import (
    CostRecord,
    DatasetRecord,
    EnvironmentRecord,
    FileEntry,
    HarvestRecord,
    ModelRecord,
    PriorUse,
    Progress,
    TaskRecord,
    TensorInfo,
)
from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.format.tensors import describe, header_parts
from reuse_algos.archive.run import PriorRun, weights_name
from reuse_algos.archive.run_archive import RunArchive
from reuse_algos.archive.run_writer import RunWriter
from reuse_algos.archive.signals.packed import dequantize, quantize, shape_text
from reuse_algos.archive.signals.resident import ResidentSignal
from reuse_algos.archive.signals.signal import Signal
from reuse_algos.archive.signals.top_k import decode_top_k, encode_top_k
from reuse_algos.archive.stores.base import Store, StoredObject
from reuse_algos.archive.stores.local import LocalStore
from reuse_algos.archive.stores.opening import open_store
from reuse_algos.archive.upkeep.collect import GarbageReport
from reuse_algos.archive.upkeep.copying import CopyReport, copy_runs
from reuse_algos.archive.upkeep.problems import Problem, VerifyReport
from reuse_algos.archive.upkeep.removal import RemovalReport
from reuse_algos.archive.where import Where, WhereError

__all__ = [
    "FORMAT",
    "CopyReport",
    "CostRecord",
    "DatasetRecord",
    "EnvironmentRecord",
    "FileEntry",
    "GarbageReport",
    "HarvestRecord",
    "LocalStore",
    "Manifest",
    "MetricHistory",
    "ModelRecord",
    "PriorRun",
    "PriorUse",
    "Problem",
    "Progress",
    "RemovalReport",
    "ResidentSignal",
    "RunArchive",
    "RunSummary",
    "RunWriter",
    "Signal",
    "Store",
    "StoredObject",
    "TaskRecord",
    "TensorInfo",
    "VerifyReport",
    "Where",
    "WhereError",
    "check_foreseen_files",
    "copy_runs",
    "decode_top_k",
    "dequantize",
    "describe",
    "encode_top_k",
    "header_parts",
    "history_tensors",
    "infer_mode",
    "open_store",
    "quantize",
    "shape_text",
    "weights_name",
]
