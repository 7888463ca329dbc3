"""The apps that ``flwr run`` starts; the library has them, and Flower looks for them in this folder."""

from reuse_algos.federated.flower import client_app, server_app

__all__ = ["client_app", "server_app"]
