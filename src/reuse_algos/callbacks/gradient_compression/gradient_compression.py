"""The Composer callback that compresses gradients between ranks.

Legend: P entries of a parameter.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer import Callback, State
from composer.core import Precision
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from reuse_algos.callbacks.gradient_compression.exchange import (
    Sent,
    agree_by_mean,
    agree_by_median,
    agree_by_sign,
    scalecom,
)
from reuse_algos.callbacks.gradient_compression.settings import Fp16, Median, PowerSGD, ScaleCom, Sign
from reuse_algos.data.hashing import view_hash
from reuse_algos.errors import ModelError, NoEffectWarning, PriorRunMismatchError
from reuse_algos.sections import fit_section

log = logging.getLogger(__name__)

_SALT_NOISE = 52  # of view_hash: keeps this draw apart from those of other modules
_NAME = "reuse/gradient_compression/"
_SYNC = (
    "The Trainer must use ddp_sync_strategy='single_auto_sync', which is the default where no parameter is unused: "
    "'forced_sync' sums gradients without DDP, and 'multi_auto_sync' sums them at every microbatch."
)


class GradientCompression(Callback):
    """Send less than the whole gradient between ranks, through DDP's communication hook.

    The first batches are summed in full. The bytes that a rank sends are counted at every step, and recorded with the
    run by ``RunRecorder``. Noise is a function of (seed, rank, batch, parameter), and the memory of ``scalecom`` is in
    the checkpoint, so a resumed run goes on bit by bit with as many ranks; ``powersgd`` begins its memory again.

    Args:
        method: ``scalecom``, ``sign``, ``median``, ``powersgd`` or ``fp16``, as a name or as a section with settings
            such as ``{name: scalecom, ratio: 100, beta: 0.1}``.
        after: Batches that are summed in full first, at least 0; at least 2 for ``powersgd``. Default: 2.
        seed: Seed of the noise. Default: 0.

    Raises:
        ValueError: A setting is out of its range.
        ModelError: At the start or in the first batch: the model is not in DDP, the precision scales the loss, or the
            Trainer's way of synchronising goes around DDP's hook or through it more than once in a batch.
        PriorRunMismatchError: A checkpoint is of another method or number of ranks.

    Logs ``reuse/gradient_compression/bytes``, what this rank sent in the batch, and ``/share`` of the whole gradient.
    """

    def __init__(
        self,
        method: ScaleCom | Sign | Median | PowerSGD | Fp16 | str | Mapping[str, Any] = "scalecom",
        after: int = 2,
        seed: int = 0,
    ) -> None:
        self.method: ScaleCom | Sign | Median | PowerSGD | Fp16 = fit_section(
            ScaleCom | Sign | Median | PowerSGD | Fp16, method, "method"
        )
        # PyTorch's PowerSGD needs two plain steps first, in which DDP rebuilds its buckets.
        if after < 2 * isinstance(self.method, PowerSGD):
            raise ValueError(f"GradientCompression: after must be at least 0, and 2 for powersgd, got {after}")
        self.after, self.seed = after, seed
        self.memory: dict[str, Tensor] = {}
        self.bytes_sent = 0
        self._names: dict[int, str] = {}
        self._registered: Any = None
        self._power: powerSGD_hook.PowerSGDState | None = None
        self._batch = 0
        self._seen: set[int] = set()
        self._twice = False
        self._whole = 0
        self._arrived: list[str] = []
        self._order: dict[str, int] = {}
        self._resumed = False

    def init(self, state: State, logger: Logger) -> None:
        """Forget another Trainer, whose gradients were those of another model."""
        self.memory, self._order, self._resumed = {}, {}, False

    def fit_start(self, state: State, logger: Logger) -> None:
        """Register the hook, once for each model."""
        if dist.get_world_size() == 1:
            warnings.warn("GradientCompression had no effect: there is one rank", NoEffectWarning, stacklevel=2)
            return
        if not isinstance(state.model, DistributedDataParallel):
            raise ModelError(
                f"GradientCompression works through DDP, and the model is a {type(state.model).__name__}. Train "
                "without FSDP or tensor parallelism."
            )
        if state.precision == Precision.AMP_FP16:
            raise ModelError(
                "GradientCompression does not go with precision amp_fp16, which scales the loss by a number that "
                "changes: what is remembered of a gradient would be in other units. Use amp_bf16 or fp32."
            )
        self._names = {id(parameter): name for name, parameter in state.model.module.named_parameters()}
        if self._registered is not state.model:
            if isinstance(self.method, PowerSGD):
                self._power = powerSGD_hook.PowerSGDState(
                    None, matrix_approximation_rank=self.method.rank, start_powerSGD_iter=2, random_seed=self.seed
                )
            # torch looks at the annotations of a hook, and does not understand those of this file, which are texts.
            state.model.register_comm_hook(None, lambda nothing, bucket: self._hook(bucket))
            self._registered = state.model

    def batch_start(self, state: State, logger: Logger) -> None:
        """Count the batch's bytes from 0."""
        self._batch = int(state.timestamp.batch)
        self.bytes_sent, self._whole, self._twice = 0, 0, False
        self._seen.clear()
        self._arrived = []

    def after_backward(self, state: State, logger: Logger) -> None:
        """Refuse ways of synchronising that meet the hook more than once in a batch."""
        if self._registered is not None and self._twice:
            raise ModelError(f"GradientCompression: a gradient was summed twice in batch {self._batch}. {_SYNC}")

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Forget what a retried batch sent."""
        self.bytes_sent, self._whole = 0, 0
        self._seen.clear()
        self._arrived = []

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Refuse ways of synchronising that do not meet the hook, before the optimizer's step."""
        if self._registered is not None and not self._seen:
            raise ModelError(f"GradientCompression: no gradient went through DDP's hook. {_SYNC}")

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the compression of the batch."""
        if self._registered is None:
            return
        self._order = {name: place for place, name in enumerate(self._arrived)}
        self._resumed = False
        logger.log_metrics(dict(self.readings(state)))

    def readings(self, state: State) -> Mapping[str, float]:
        """Return what the batch sent, for the run's record."""
        if self._registered is None:
            return {}
        share = self.bytes_sent / max(1, self._whole)
        return {_NAME + "bytes": float(self.bytes_sent), _NAME + "share": share}

    def _hook(self, bucket: GradBucket) -> Future[Tensor]:
        parameters = bucket.parameters()
        keys = {id(parameter) for parameter in parameters}
        self._twice |= bool(keys & self._seen)
        self._seen |= keys
        whole = bucket.buffer()
        self._whole += whole.nbytes
        if isinstance(self.method, PowerSGD):
            # Also in the first batches, which it sums in full itself: it counts them.
            assert self._power is not None
            self._power.start_powerSGD_iter = max(2, self.after)
            self.bytes_sent += self._power_bytes(bucket)
            return powerSGD_hook.powerSGD_hook(self._power, bucket)
        if self._batch < self.after:
            self.bytes_sent += whole.nbytes
            return _done(agree_by_mean(whole))
        if isinstance(self.method, Fp16):
            self.bytes_sent += 2 * whole.numel()
            return default_hooks.fp16_compress_hook(None, bucket)  # type: ignore[arg-type]  # None: the default group
        named = [(self._names[id(one)], place) for one, place in zip(parameters, bucket.gradients(), strict=True)]
        # Sums over three ranks or more depend on where in the message an entry is. In the first batch of a process DDP
        # has another order than later on: a resumed run keeps that of the run that was stopped.
        named.sort(key=lambda pair: self._order.get(pair[0], 0) if self._resumed else 0)
        self._arrived += [name for name, _ in named]
        sent = self._exchange([name for name, _ in named], [place.flatten() for _, place in named])
        self.memory.update(zip([name for name, _ in named], sent.memory, strict=False))
        self.bytes_sent += sent.bytes
        for (_, place), result in zip(named, sent.gradients, strict=True):
            place.copy_(result.view_as(place))
        return _done(whole)

    def _exchange(self, names: list[str], gradients: list[Tensor]) -> Sent:
        method = self.method
        if isinstance(method, ScaleCom):
            memory = [
                self.memory[name].to(gradient) if name in self.memory else torch.zeros_like(gradient)
                for name, gradient in zip(names, gradients, strict=True)
            ]
            leader = self._batch % dist.get_world_size()
            return scalecom(gradients, memory, leader=leader, ratio=method.ratio, beta=method.beta)
        if isinstance(method, Sign):
            noise = self._noise(names, gradients, method.noise, lambda g, size: 2 * torch.rand(size, generator=g) - 1)
            return agree_by_sign(gradients, noise, method.scale)
        assert isinstance(method, Median)
        noise = self._noise(names, gradients, method.noise, lambda g, size: torch.randn(size, generator=g))
        return agree_by_median(gradients, noise)

    def _noise(
        self,
        names: list[str],
        gradients: list[Tensor],
        size: float,
        draw: Callable[[torch.Generator, int], Tensor],
    ) -> list[Tensor]:
        if size == 0:
            return [torch.zeros_like(gradient) for gradient in gradients]
        order = {name: number for number, name in enumerate(self._names.values())}
        found = []
        for name, gradient in zip(names, gradients, strict=True):
            place = torch.tensor(dist.get_global_rank() << 32 | order[name])
            seed = int(view_hash(self.seed, place, torch.tensor(self._batch), _SALT_NOISE))
            # On the CPU: the same numbers on every device.
            generator = torch.Generator().manual_seed(seed)
            found.append(size * draw(generator, gradient.numel()).to(gradient))
        return found

    def _power_bytes(self, bucket: GradBucket) -> int:
        """Return what torch's hook sends: two thin matrices for each matrix that they shrink, the rest as it is."""
        assert isinstance(self.method, PowerSGD)
        assert self._power is not None
        if self._power.iter < max(2, self.after):
            return bucket.buffer().nbytes
        numbers = 0
        for gradient in bucket.gradients():
            rows, size = gradient.shape[0] if gradient.dim() else 1, gradient.numel()
            thin = (rows + size // rows) * self.method.rank
            shrinks = gradient.dim() > 1 and thin * self._power.min_compression_rate < size
            numbers += thin if shrinks else size
        return numbers * bucket.buffer().element_size()

    def state_dict(self) -> dict[str, Any]:
        """Return the memory of every rank; all ranks must ask together, as they do for a checkpoint."""
        own = {name: value.detach().cpu() for name, value in self.memory.items()}
        each = dist.all_gather_object(own) if self._registered is not None else [own]
        return {"method": repr(self.method), "memory": each, "order": list(self._order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back this rank's memory."""
        if state["method"] != repr(self.method):
            raise PriorRunMismatchError(
                f"the checkpoint was made with {state['method']}, this run compresses by {self.method!r}. Use the same "
                "method, or start a new run."
            )
        parts = state["memory"]
        if any(parts) and len(parts) != dist.get_world_size():
            raise PriorRunMismatchError(
                f"the checkpoint has the memory of {len(parts)} ranks, and there are {dist.get_world_size()}. Go on "
                "with as many ranks."
            )
        self.memory = dict(parts[dist.get_global_rank()]) if any(parts) else {}
        self._order = {name: place for place, name in enumerate(state["order"])}
        self._resumed = True
        if isinstance(self.method, PowerSGD):
            log.warning("powersgd begins its memory again: the resumed run is not that of one that never stopped")


def _done(value: Tensor) -> Future[Tensor]:
    """Return a future that has its value."""
    # A future of a GPU's value must know the device, or the streams would not wait for it.
    done: Future[Tensor] = Future(devices=[value.device]) if value.is_cuda else Future()
    done.set_result(value)
    return done
