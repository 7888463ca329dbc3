"""Runs over clients that keep their data: Flower connects them, and the archive keeps the model of each round."""

from reuse_algos.federated.averaging import average_states
from reuse_algos.federated.client import choose_sure
from reuse_algos.federated.in_process import run_federated
from reuse_algos.federated.mix_term import mix_images
from reuse_algos.federated.settings import FederatedConfig, load_federated

__all__ = ["FederatedConfig", "average_states", "choose_sure", "load_federated", "mix_images", "run_federated"]
