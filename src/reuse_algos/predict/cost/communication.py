"""The time that workers take to exchange gradients, and strong scaling over their number.

Sources: Qi, Sparks and Talwalkar, "PALEO: a performance model for deep neural networks", ICLR 2017, section 4.2,
https://openreview.net/forum?id=SyVVJ85lg; the ring is that of Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Exchange = Literal["one_to_all", "tree", "butterfly", "ring", "parameter_servers"]


def exchange_seconds(
    scheme: Exchange, workers: int, num_bytes: float, bandwidth: float, *, servers: int = 1, percent: float = 1.0
) -> float:
    """Return the seconds in which N workers sum b bytes of gradients over links of B bytes per second.

    - one_to_all: ``2 (N - 1) b / B``
    - tree: ``2 ceil(log2 N) b / B``
    - butterfly: ``ceil(log2 N) b / B``
    - ring: ``2 (N - 1) / N b / B``
    - parameter_servers: ``2 b N / (p B)`` with p servers

    Args:
        scheme: One of these five.
        workers: N, at least 1. One worker has nothing to exchange, and takes 0 seconds.
        num_bytes: b, at least 0.
        bandwidth: B, above 0, in bytes per second (a link of 10 Gbit/s has 1.25e9).
        servers: p, at least 1; used by parameter_servers only. Default: 1.
        percent: Share of the bandwidth that is reached in practice, in (0, 1]. Default: 1.0.

    Raises:
        ValueError: The scheme is unknown, or a number is out of its range.
    """
    if scheme not in get_args(Exchange):
        raise ValueError(f"exchange must be one of {', '.join(get_args(Exchange))}, not {scheme!r}")
    # ``not bandwidth > 0`` refuses NaN, which ``bandwidth <= 0`` would let pass.
    if workers < 1 or servers < 1 or num_bytes < 0 or not bandwidth > 0 or not 0 < percent <= 1:
        raise ValueError(
            "exchange needs workers and servers of at least 1, bytes of at least 0, a bandwidth above 0 and a percent "
            f"in (0, 1]; got {workers}, {servers}, {num_bytes}, {bandwidth} and {percent}"
        )
    if workers == 1:
        return 0.0
    rounds = math.ceil(math.log2(workers))
    # How often b bytes go over a link in turn. In a ring each worker sends one N-th of them 2 (N - 1) times.
    passes = {
        "one_to_all": 2.0 * (workers - 1),
        "tree": 2.0 * rounds,
        "butterfly": float(rounds),
        "ring": 2.0 * (workers - 1) / workers,
        "parameter_servers": 2.0 * workers / servers,
    }[scheme]
    return passes * num_bytes / (bandwidth * percent)


@dataclass(frozen=True)
class ScalingRow:
    """What a number of workers is predicted to do with a fixed global batch.

    Attributes:
        workers: Number of workers.
        batch_per_worker: Examples of a step for each worker: ``ceil(B / N)``.
        compute_seconds: Computation of a step.
        exchange_seconds: Exchange of the gradients of a step.
        step_seconds: Sum of the two: nothing overlaps.
        overlapped_seconds: Maximum of the two: all overlaps, as DDP tries to. The truth lies between.
        examples_per_second: Throughput by ``step_seconds``.
        speedup: Of ``step_seconds``, against one worker.
        runtime_seconds: Of all steps, by ``step_seconds``.
        cost: Runtime in hours, times the workers and parameter servers, times the price of an hour; None without a
            price. One worker alone needs no server.
    """

    workers: int
    batch_per_worker: int
    compute_seconds: float
    exchange_seconds: float
    step_seconds: float
    overlapped_seconds: float
    examples_per_second: float
    speedup: float
    runtime_seconds: float
    cost: float | None


def strong_scaling(
    seconds_per_example: float,
    batch: int,
    steps: float,
    gradient_bytes: float,
    bandwidth: float,
    *,
    workers: Iterable[int] = (1, 2, 4, 8),
    scheme: Exchange = "ring",
    servers: int = 1,
    percent: float = 1.0,
    price_per_hour: float | None = None,
) -> list[ScalingRow]:
    """Return the predicted step, throughput, runtime and cost for several numbers of workers (PALEO, section 4.2).

    Args:
        seconds_per_example: Computation of one example in training on one worker, above 0.
        batch: Global batch B in examples, at least the greatest number of workers.
        steps: Steps of the whole run.
        gradient_bytes: Bytes of all gradients.
        bandwidth: Of a link between workers, in bytes per second.
        workers: Numbers of workers. Default: 1, 2, 4, 8.
        scheme: How gradients are summed. Default: ``ring``.
        servers: Number of parameter servers. Default: 1.
        percent: Share of the bandwidth that is reached, in (0, 1]. Default: 1.0.
        price_per_hour: Of one worker, or one parameter server. Default: None.

    Raises:
        ValueError: There are more workers than examples in a batch, or a number is out of its range.
    """
    rows: list[ScalingRow] = []
    alone = seconds_per_example * batch
    for count in workers:
        if count > batch:
            raise ValueError(f"{count} workers cannot share a batch of {batch}: some would have no example")
        # The slowest worker decides, and it has the larger share.
        own = math.ceil(batch / count)
        compute = seconds_per_example * own
        exchange = exchange_seconds(scheme, count, gradient_bytes, bandwidth, servers=servers, percent=percent)
        step = compute + exchange
        runtime = step * steps
        machines = count + (servers if scheme == "parameter_servers" and count > 1 else 0)
        cost = None if price_per_hour is None else runtime / 3600 * machines * price_per_hour
        rows.append(
            ScalingRow(
                count, own, compute, exchange, step, max(compute, exchange), batch / step, alone / step, runtime, cost
            )
        )
    return rows
