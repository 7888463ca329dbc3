"""A federated run in one process, without Flower's servers: for tests and studies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reuse_algos.errors import FederatedError
from reuse_algos.federated.settings import FederatedConfig


def run_federated(config: FederatedConfig) -> str:
    """Do a federated run in this process, client after client, and return the id of its run.

    A run that was interrupted goes on after the last round that is recorded.

    Args:
        config: The federated run.

    Raises:
        FederatedError: Flower is not installed.
        ReuseAlgosError: Whatever is wrong with the file, the data, the archive or a teacher.
    """
    try:
        from flwr.app import Context, RecordDict  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FederatedError("a federated run needs Flower: pip install 'reuse-algos[federated]'") from error
    from reuse_algos.federated.flower import answer_message, run_rounds

    contexts = {
        node: Context(run_id=1, node_id=node, node_config={"partition-id": node - 1}, state=RecordDict(), run_config={})
        for node in range(1, config.clients.count + 1)
    }
    return run_rounds(
        config, InProcessGrid(lambda message, node: answer_message(config, message, contexts[node]), contexts)
    )


class InProcessGrid:
    """What a strategy of Flower asks of its grid, with clients that are called one after another.

    Args:
        answer: Does what a message asks of a node, and returns the answer.
        nodes: Ids of the nodes, above 0.
    """

    def __init__(self, answer: Any, nodes: Iterable[int]) -> None:
        self._answer, self._nodes = answer, list(nodes)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return self._nodes

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Return the answers to messages."""
        return [self._answer(message, message.metadata.dst_node_id) for message in messages]
