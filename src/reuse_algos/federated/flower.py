"""Flower's side of a federated run: the strategy of the server, and the apps that ``flwr run`` starts.

This module needs Flower: ``pip install 'reuse-algos[federated]'``.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from time import sleep
from typing import Any

from flwr.app import (  # pyright: ignore[reportMissingImports]
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]

from reuse_algos.errors import FederatedError
from reuse_algos.federated.client import ClientRound, client_round
from reuse_algos.federated.server import Server
from reuse_algos.federated.settings import FederatedConfig, load_federated

_TYPE = "train"  # Flower's type of the messages of a round
_NUMBERS = [field.name for field in fields(ClientRound) if field.name != "weights"]


class Rounds(FedAvg):
    """The rounds of a federated run as a strategy of Flower.

    Flower sends the messages and waits for the answers. Clients are drawn by the recipe's seed and the number of the
    round, and answers are put in the order of the clients, so that a run that is gone on with is the same run.

    Args:
        config: The federated run.
        server: Makes and records the model of each round.
    """

    def __init__(self, config: FederatedConfig, server: Server) -> None:
        # At least one: a small share of few clients would round to none, and the round would never begin.
        count = max(1, round(config.clients.fraction * config.clients.count))
        super().__init__(min_train_nodes=count, min_evaluate_nodes=count, min_available_nodes=config.clients.count)
        self._config, self._server, self._count = config, server, count
        self._first = server.record.rounds  # Flower counts the rounds of this call from 1

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that begin a round."""
        nodes = self._nodes(grid)
        number = self._first + server_round
        # A generator of its own per round: a run that is gone on with draws what it would have drawn.
        drawn = random.Random(f"{self._server.seed} {number}").sample(nodes, self._count)
        mean, std = self._server.pixels
        asked = ConfigRecord(
            {
                "run": self._server.record.run_id, "round": number, "teachers": self._server.teachers_of(number),
                "mean": mean, "std": std,
            }
        )  # fmt: skip
        content = RecordDict({"arrays": arrays, "config": asked})
        return [Message(content=content, message_type=_TYPE, dst_node_id=node) for node in sorted(drawn)]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model of the round, and what of it is shown.

        Raises:
            FederatedError: No client answered without an error.
        """
        replies = list(replies)
        failed = [one for one in replies if one.has_error()]
        reasons = "; ".join(f"node {one.metadata.src_node_id}: {one.error.reason}" for one in failed)
        number = self._first + server_round
        if len(failed) == len(replies):
            raise FederatedError(f"no client did round {number}: {reasons or 'none answered in time'}")
        if failed:
            warnings.warn(f"round {number} goes on without {len(failed)} clients: {reasons}", stacklevel=2)
        contents = [one.content for one in replies if not one.has_error()]
        # Answers come in any order, and the sums of the average must not depend on it.
        contents.sort(key=lambda content: int(content["metrics"]["client"]))
        weights = self._server.combine(number, [_answer(content) for content in contents])
        return ArrayRecord(weights), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages: the server evaluates."""
        return []

    def _nodes(self, grid: Grid) -> list[int]:
        """Return the ids of all nodes, once as many are connected as the run has clients."""
        count = self._config.clients.count
        # Sorted, as Flower lists nodes in the order in which they happened to connect.
        while len(nodes := sorted(grid.get_node_ids())) < count:
            sleep(1)
        return nodes


def answer_message(config: FederatedConfig, message: Message, context: Context) -> Message:
    """Do a client's part of a round, and return the answer to the server's message.

    Args:
        config: The federated run.
        message: The round's number, teachers and model.
        context: Its node configuration has ``partition-id``, the number of the client, and may have ``data-path``.

    Raises:
        FederatedError: The node configuration does not say which client this is.
    """
    node: Mapping[str, Any] = context.node_config
    if "partition-id" not in node:
        raise FederatedError(
            "the node does not say which client it is. Start it with --node-config 'partition-id=0' (0, 1, ...)"
        )
    asked, client = message.content["config"], int(node["partition-id"])
    path = node.get("data-path")
    done = client_round(
        config,
        str(asked["run"]),
        client,
        int(asked["round"]),
        dict(message.content["arrays"].to_torch_state_dict()),
        teachers=list(asked["teachers"]),
        data_path=None if path is None else str(path),
        pixels=(list(asked["mean"]), list(asked["std"])),
    )
    metrics = MetricRecord({"client": client, **{name: getattr(done, name) for name in _NUMBERS}})
    return Message(RecordDict({"arrays": ArrayRecord(done.weights), "metrics": metrics}), reply_to=message)


def _answer(content: RecordDict) -> ClientRound:
    """Return a client's answer as the server takes it."""
    numbers, weights = content["metrics"], dict(content["arrays"].to_torch_state_dict())
    return ClientRound(weights, **{name: numbers[name] for name in _NUMBERS})


def run_rounds(config: FederatedConfig, grid: Grid, timeout: float = 3600.0) -> str:
    """Do the rounds that are left, and return the id of the run.

    Args:
        config: The federated run.
        grid: Reaches the clients.
        timeout: Seconds that the clients have for a round. Default: 3600.
    """
    server = Server(config)
    left = config.rounds - server.record.rounds
    if left > 0:
        Rounds(config, server).start(grid, ArrayRecord(server.weights), num_rounds=left, timeout=timeout)
    return server.record.run_id


def _config_of(context: Context) -> FederatedConfig:
    """Return the federated run that Flower's run configuration names."""
    file = context.run_config.get("file")
    if file is None:
        raise FederatedError(
            "the run configuration names no file. Start it with flwr run . --run-config 'file=\"fed.yaml\"'"
        )
    return load_federated(str(file))


client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    return answer_message(_config_of(context), message, context)


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    run_rounds(_config_of(context), grid)
