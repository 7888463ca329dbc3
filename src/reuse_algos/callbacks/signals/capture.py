"""Keeping what the forward pass computed anyway, one row per example.

Shapes: B rows of a microbatch, T rows collected, M of them written, N training examples, C classes, K kept classes, X
positions of an example (none for most tasks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from composer import State
from composer.algorithms import SeqLengthWarmup
from composer.utils import dist

from reuse_algos.archive import check_foreseen_files, encode_top_k
from reuse_algos.callbacks.recorder.facts.state_facts import num_epochs
from reuse_algos.callbacks.signals.kept_logits import at_size
from reuse_algos.data.info import DatasetInfo
from reuse_algos.data.sampler import Examples
from reuse_algos.errors import DataError, ExampleIdError, nearest
from reuse_algos.training.interplay import mixes_examples
from reuse_algos.training.ranks import on_every_rank

_HALF_MAX = torch.finfo(torch.float16).max
_NAMES = ("logits", "loss", "correct", "logit_margin")
_ALSO = {"logits": ("top_k", "size"), "loss": ("of",)}


@dataclass(frozen=True)
class CaptureSettings:
    """What to keep of one signal. Logits are kept once for each view, the others for each epoch.

    Attributes:
        last_epochs: Keep this many epochs, counted from the end of training. Default: None, which keeps all.
        top_k: Logits only: keep the K largest with their indices and the logsumexp of the rest. Default: None, which
            keeps all, as float16.
        size: Logits of pixels only: height and width, such as ``[16, 16]``; each cell is the mean of its pixels.
            Default: None, which keeps every pixel.
        of: Loss only: ``own``, the model's own loss of each example, or ``task``, the plain loss of the task (cross
            entropy, binary cross entropy or squared error), whatever the model learns from. Default: ``own``.
    """

    last_epochs: int | None = None
    top_k: int | None = None
    size: tuple[int, int] | None = None
    of: str = "own"


def parse_signals(signals: Mapping[str, Mapping[str, Any] | None] | None) -> dict[str, CaptureSettings]:
    """Read the ``signals`` argument of RunRecorder.

    Raises:
        ValueError: An unknown signal or setting, or a value out of range.
    """
    parsed: dict[str, CaptureSettings] = {}
    for name, raw in (signals or {}).items():
        if name not in _NAMES:
            raise ValueError(f"RunRecorder signals: no signal {name!r} can be captured.{nearest(name, _NAMES)}")
        settings = dict(raw or {})
        allowed = ("last_epochs", *_ALSO.get(name, ()))
        for key, value in settings.items():
            if key not in allowed:
                raise ValueError(f"RunRecorder signals.{name}: unknown setting {key!r}.{nearest(key, allowed)}")
            if key == "of":
                if value not in ("own", "task"):
                    raise ValueError(f"RunRecorder signals.{name}.of must be own or task, got {value!r}")
            elif key == "size":
                if value is not None and not _is_size(value):
                    raise ValueError(f"RunRecorder signals.{name}.size must be [height, width], got {value!r}")
                settings[key] = None if value is None else (int(value[0]), int(value[1]))
            elif value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"RunRecorder signals.{name}.{key} must be a whole number above 0, got {value!r}")
        parsed[name] = CaptureSettings(**settings)
    return parsed


def _is_size(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and len(value) == 2
    return whole and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in value)


class Segment(NamedTuple):
    """Rows of one signal and slot that are ready to be written."""

    name: str
    slot: int
    meta: dict[str, str | int | float | bool | None]
    tensors: dict[str, torch.Tensor]


class _Buffer:
    """Rows of one slot as they came, where they were computed: no more than this rank saw."""

    def __init__(self, meta: dict[str, Any], num_examples: int) -> None:
        self.meta = meta
        self._num_examples = num_examples
        self._collected = 0
        self._parts: dict[str, list[torch.Tensor]] = {}

    def put(self, positions_B: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> None:
        for key, value in {"ids": positions_B, **rows}.items():
            parts = self._parts.setdefault(key, [])
            if parts and parts[0].shape[1:] != value.shape[1:]:
                raise DataError(
                    f"logits of shape {tuple(value.shape[1:])} cannot be kept beside those of shape "
                    f"{tuple(parts[0].shape[1:])}: examples of one signal need one size. Pad them to one length, or "
                    "record without logits."
                )
            parts.append(value)
        self._collected += len(positions_B)
        if self._collected > 2 * self._num_examples:  # a pass without end, over examples that come again and again
            self._parts = {key: [value] for key, value in self.newest().items()}
            self._collected = len(self._parts["ids"][0])

    def seen(self) -> torch.Tensor:
        """Return which examples have a row: bool ``[N]`` on the CPU."""
        seen_N = torch.zeros(self._num_examples, dtype=torch.bool)
        for ids in self._parts.get("ids", []):
            seen_N[ids.cpu()] = True
        return seen_N

    def newest(self) -> dict[str, torch.Tensor]:
        """Return rows by ascending position, on the CPU; of an example that came more than once the last one."""
        columns = {key: torch.cat([part.cpu() for part in parts]) for key, parts in self._parts.items()}
        # Stable: of the rows of one example the last one stays the last.
        ids_T, order_T = columns.pop("ids").sort(stable=True)
        last_T = torch.ones(len(ids_T), dtype=torch.bool)
        torch.ne(ids_T[1:], ids_T[:-1], out=last_T[:-1])
        rows_M = order_T[last_T]
        return {"ids": ids_T[last_T], **{key: column.index_select(0, rows_M) for key, column in columns.items()}}


class SignalCapture:
    """Collects per-example signals of the running epoch.

    Args:
        settings: What to keep, see :func:`parse_signals`.
        num_examples: N.
        num_epochs: Length of training in epochs (started epochs count), for the window of last epochs; None: unknown,
            and everything is kept.

    Attributes:
        rolling: Whether training may end before ``num_epochs``. Every epoch is then collected, and those that have left
            the window are dropped (:meth:`first_kept`).

    The rows stay on the device that computed them; nothing waits for a copy before the epoch ends.
    """

    def __init__(self, settings: Mapping[str, CaptureSettings], num_examples: int, num_epochs: int | None) -> None:
        self.settings = dict(settings)
        self.num_examples = num_examples
        self.num_epochs = num_epochs
        self.rolling = False
        self._buffers: dict[tuple[str, int], _Buffer] = {}

    def wanted(self, epoch: int) -> list[str]:
        """Return the names of the signals whose window holds this epoch."""
        windows = {name: kept.last_epochs for name, kept in self.settings.items()}
        if self.rolling or self.num_epochs is None:
            return list(windows)
        return [name for name, last in windows.items() if last is None or epoch >= self.num_epochs - last]

    def first_kept(self, epoch: int) -> dict[str, int]:
        """Return the first epoch that each signal with a window keeps, if ``epoch`` is the last one."""
        windows = {name: kept.last_epochs for name, kept in self.settings.items() if kept.last_epochs is not None}
        return {name: epoch - length + 1 for name, length in windows.items()} if self.rolling else {}

    def record(
        self,
        epoch: int,
        examples: Examples,
        values: Mapping[str, torch.Tensor],
        kept_R: torch.Tensor | None = None,
    ) -> None:
        """Keep the rows of one microbatch.

        Args:
            epoch: Number of the running epoch.
            examples: Which examples the rows are.
            values: For each signal of this epoch a tensor whose first dimension is the rows: ``logits`` ``[B, C, X]``
                in any float dtype, the others ``[B]``.
            kept_R: int64 on the CPU: only these rows. Default: all.

        Raises:
            DataError: There are not as many rows as examples.
        """
        values = {name: values[name].detach() for name in self.wanted(epoch)}
        for name, value in values.items():
            if len(value) != len(examples.positions):
                raise DataError(
                    f"signals.{name}: the model's outputs have {len(value)} rows for {len(examples.positions)} "
                    "examples (several crops or views of each, time in the first dimension, rows that are left out), "
                    "so it is not known which row is which. Let the forward pass return one row for each example, or "
                    "record without signals."
                )
        if kept_R is not None:
            examples = Examples(examples.positions[kept_R], examples.views[kept_R])
            values = {name: value[kept_R.to(value.device)] for name, value in values.items()}
        for view in examples.views.unique().tolist():
            rows_R = (examples.views == view).nonzero().flatten()
            some = len(rows_R) < len(examples.views)  # a batch that mixes views: one part for each
            for name, value in values.items():
                part = value[rows_R.to(value.device)] if some else value
                self._put(epoch, name, view, examples.positions[rows_R], part)

    def _put(self, epoch: int, name: str, view: int, positions_B: torch.Tensor, value: torch.Tensor) -> None:
        # Logits are looked up by view, and the latest are the best; losses are a history over epochs.
        slot = view if name == "logits" and view >= 0 else epoch
        meta: dict[str, Any] = {"slot": slot, "epoch": epoch, "view": view, "source": "capture"}
        kept = self.settings[name].top_k
        if name == "logits":
            value = at_size(value, self.settings[name].size)
            rows = encode_top_k(value, kept) if kept else {"values": _to_half(value)}
            meta |= {"encoding": "top_k" if kept else "dense", "num_classes": value.shape[1]}
        else:
            rows = {"values": value}
            meta |= {"encoding": "dense", "num_classes": None}
        key = (name, slot)
        # A view comes again after num_views epochs: its rows of then are not those of now.
        if key not in self._buffers or self._buffers[key].meta["epoch"] != epoch:
            self._buffers[key] = _Buffer(meta, self.num_examples)
        self._buffers[key].put(positions_B, rows)

    @property
    def slots(self) -> list[list[str | int]]:
        """(name, slot, epoch) of everything collected in the running epoch."""
        return [[name, slot, buffer.meta["epoch"]] for (name, slot), buffer in self._buffers.items()]

    def seen(self) -> dict[tuple[str, int], torch.Tensor]:
        """Return which examples have a row so far in this epoch, for each (name, slot): bool ``[N]`` on the CPU."""
        return {key: buffer.seen() for key, buffer in self._buffers.items()}

    def segments(self) -> Iterator[Segment]:
        """Yield everything collected in the running epoch."""
        for (name, slot), buffer in self._buffers.items():
            yield Segment(name, slot, dict(buffer.meta), buffer.newest())

    def end_epoch(self) -> None:
        """Forget the epoch's rows, after they were written."""
        self._buffers.clear()

    def restore(self, segment: Segment) -> None:
        """Take rows of an epoch that was interrupted back in."""
        buffer = _Buffer(dict(segment.meta), self.num_examples)
        rows = {key: value for key, value in segment.tensors.items() if key != "ids"}
        buffer.put(segment.tensors["ids"], rows)
        self._buffers[(segment.name, segment.slot)] = buffer


def _to_half(logits: torch.Tensor) -> torch.Tensor:
    """Return float16, with finite values beyond its range at its ends; infinities and NaN stay as they are."""
    logits = logits.float()
    return torch.where(logits.isinf(), logits, logits.clamp(-_HALF_MAX, _HALF_MAX)).half()


def make_capture(settings: Mapping[str, CaptureSettings], state: State, info: DatasetInfo | None) -> SignalCapture:
    """Return the capture of a training that is about to start.

    Args:
        settings: What to keep.
        state: Composer's state at FIT_START.
        info: The training data, or None where their examples cannot be told apart.

    Raises:
        ExampleIdError: The examples are not known, or an algorithm mixes them.
        ValueError: The window of last epochs needs a duration in epochs.
    """
    if info is None:
        raise ExampleIdError(
            "signals need to know the examples; say what the data are by dataset=DatasetInfo(...), or of a stream by "
            "stream.info = scan_stream(stream) (reuse_algos.data.streams)"
        )
    if mixing := mixes_examples(state):
        raise ExampleIdError(
            f"{mixing[0]} mixes examples, so no row of the outputs belongs to one of them and signals cannot be "
            "captured. Record without signals and harvest them afterwards (`reuse-algos harvest`)."
        )
    if any(isinstance(one, SeqLengthWarmup) for one in state.algorithms):
        raise ExampleIdError(
            "SeqLengthWarmup cuts the examples of early batches, so what the model says is not said of whole examples "
            "and signals cannot be captured. Record without signals and harvest them afterwards (`reuse-algos "
            "harvest`)."
        )
    epochs = num_epochs(state)
    if epochs is None and any(kept.last_epochs for kept in settings.values()):
        raise ValueError(
            f"last_epochs counts from the end, and max_duration={state.max_duration} does not give the epochs. "
            "Give max_duration in epochs or batches, or leave last_epochs out."
        )
    if epochs is not None:
        # One file for each signal, epoch and rank: better refused now than hours later.
        counted = [min(epochs, kept.last_epochs or epochs) for kept in settings.values()]
        check_foreseen_files(sum(counted), dist.get_world_size())
    capture = SignalCapture(settings, info.num_examples, epochs)
    capture.rolling = any(_may_stop(one) for one in (*state.callbacks, *state.algorithms))
    return capture


def _may_stop(one: object) -> bool:
    """Return whether a callback or algorithm can end the training early, as far as its own code shows it."""
    methods = [method for base in type(one).__mro__ for method in vars(base).values()]
    codes = [method.__code__ for method in methods if isinstance(method, FunctionType)]
    return any("stop_training" in code.co_names for code in codes)


def complete_slots(capture: SignalCapture, known: dict[tuple[str, int], torch.Tensor]) -> set[tuple[str, int]]:
    """Return name and slot of the signals whose earlier rows this epoch replaces, on all ranks together.

    These are the signals that every example has a row of now, and logits (whose slots come again) where every example
    that had a row has one now.

    Args:
        capture: The epoch's rows.
        known: Which examples have a row of logits so far, bool ``[N]`` by name and slot. This epoch's are added.
    """
    union: dict[tuple[str, int], torch.Tensor] = {}
    for seen in on_every_rank(capture.seen):
        for key, seen_N in seen.items():
            union[key] = union[key] | seen_N if key in union else seen_N
    # An epoch that a curriculum or drop_last shortened does not show every example: the rows of the others must stay.
    complete = {key for key, seen_N in union.items() if bool(seen_N.all())}
    for key, seen_N in union.items():
        if key[0] == "logits":
            known[key] = seen_N | known.get(key, seen_N)
            if torch.equal(known[key], seen_N):
                complete.add(key)
    return complete
