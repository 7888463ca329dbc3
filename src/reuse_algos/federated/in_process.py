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
    """What Flower's strategies need of a grid, with clients that are called one after another.

    Args:
        answer: Does what a message asks of a node, and returns the answer.
        nodes: Ids of the nodes, above 0.
    """

    def __init__(self, answer: Any, nodes: Iterable[int]) -> None:
        self._answer, self._nodes, self._answers = answer, list(nodes), dict[str, Any]()

    @property
    def run(self) -> Any:
        """Flower's description of the run, which no strategy asks for."""
        return None

    def set_run(self, run_id: int) -> None:
        """Do nothing: there is one run."""

    def create_message(self, *args: Any, **kwargs: Any) -> Any:
        """Return a message."""
        from flwr.app import Message  # pyright: ignore[reportMissingImports]

        return Message(*args, **kwargs)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return self._nodes

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Let the nodes answer, and return a name for each answer."""
        names = []
        for message in messages:
            names.append(f"message-{len(self._answers)}")
            self._answers[names[-1]] = self._answer(message, message.metadata.dst_node_id)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the answers of these names, once."""
        return [self._answers.pop(name) for name in message_ids]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Return the answers to messages."""
        return self.pull_messages(self.push_messages(messages))
