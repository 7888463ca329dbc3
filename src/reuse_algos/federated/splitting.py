"""How the examples are shared out to server and clients.

Legend: N examples, n of a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reuse_algos.data.datasets.subsets import nested_order, take_part
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import DataError
from reuse_algos.federated.settings import FederatedConfig

_SALT_CLIENT, _SALT_SHARD = 71, 72  # keep these orders apart from those of other purposes


def server_positions(config: FederatedConfig, info: DatasetInfo) -> Tensor:
    """Return the examples that the server keeps: int64 ``[n]``, ascending, the same mix of classes as the whole.

    Args:
        config: The federated run.
        info: The training data.

    Raises:
        DataError: There are fewer examples.
    """
    if not config.server.examples:
        return torch.arange(0)
    assert info.labels is not None  # every loader of a recipe gives labels
    return take_part(info.keys, info.labels, examples=config.server.examples)


def client_positions(config: FederatedConfig, info: DatasetInfo, client: int) -> Tensor:
    """Return the examples of a client: int64 ``[n]``, ascending. No two parts share one.

    Args:
        config: The federated run.
        info: The training data.
        client: Number of the client, from 0.

    Raises:
        DataError: There is no such client, or there are fewer examples than parts.
    """
    count = config.clients.count
    if not 0 <= client < count:
        raise DataError(f"there is no client {client}: clients.count is {count}, and they are numbered from 0")
    everything = torch.arange(info.num_examples)
    if config.clients.split == "own":
        return everything
    # What the server keeps is chosen by keys, so every client finds the same part without being told.
    rest_n = everything[~torch.isin(everything, server_positions(config, info))]
    assert info.labels is not None
    labels_n, keys_n = info.labels[rest_n], info.keys[rest_n]
    if config.clients.split == "even":
        # Every count-th of an order whose beginnings are stratified.
        part = nested_order(keys_n, labels_n, _SALT_CLIENT)[client::count]
    else:
        part = _of_shards(labels_n, keys_n, client, count, config.clients.shards)
    if len(part) == 0:
        raise DataError(f"client {client} has no examples: {len(rest_n)} are too few for {count} clients")
    return rest_n[part.sort().values]


def _of_shards(labels_n: Tensor, keys_n: Tensor, client: int, count: int, shards: int) -> Tensor:
    """Return every ``count``-th piece of the examples sorted by label, of ``count * shards`` (McMahan et al. 2017)."""
    # One class for all: only the order by hash is wanted here, so that a piece is a random part of its label.
    by_hash = nested_order(keys_n, torch.zeros_like(labels_n), _SALT_SHARD)
    by_label = by_hash[labels_n[by_hash].argsort(stable=True)]
    pieces = by_label.tensor_split(count * shards)
    return torch.cat(pieces[client::count])
