"""The server's part of a round: it averages, trains on its labels, evaluates, and records the model of the round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from composer import ComposerModel
from composer.utils import get_device, reproducibility
from torch import Tensor

from reuse_algos.archive import CostRecord, Manifest, RunArchive, TaskRecord
from reuse_algos.callbacks.recorder.facts.provenance import environment, model_record
from reuse_algos.callbacks.recorder.facts.state_facts import dataset_record, examples_of
from reuse_algos.data.datasets.load import LoadedData, load_datasets
from reuse_algos.data.datasets.pseudo import Chosen
from reuse_algos.data.views import declared_views
from reuse_algos.federated.averaging import average_states
from reuse_algos.federated.client import ClientRound, device_of
from reuse_algos.federated.record import RoundRecord
from reuse_algos.federated.settings import FederatedConfig, part_recipe
from reuse_algos.federated.splitting import server_positions
from reuse_algos.federated.training import Trained, part_folder, train_part
from reuse_algos.harvest.label import check_teacher, labelling_flops
from reuse_algos.models import build_model
from reuse_algos.priors.choosing import select_runs
from reuse_algos.recipe.build import eval_loader
from reuse_algos.training.flops import PASSES_PER_STEP, counted_flops


class Server:
    """Makes the model of each round and records it, as one run of the archive.

    Args:
        config: The federated run.

    Attributes:
        record: The run. One that has not ended, and was made from the same file, is gone on with.
        weights: The newest model.

    Raises:
        ArchiveConflictError: The archive has a run of this name that has ended, or was made from another file.
        RunNotFoundError, PriorRunMismatchError: There is no such teacher, or it cannot label these images.
        RecipeError, DataError: The recipe has faults, or its data cannot be loaded.
    """

    def __init__(self, config: FederatedConfig) -> None:
        self._config = config
        self._recipe = part_recipe(config, config.server.epochs)
        self._data = load_datasets(self._recipe.settings.data, device_of(self._recipe))
        archive = RunArchive(config.archive, create=True)
        teachers = [] if config.teacher is None else select_runs(archive, config.teacher)
        for run in teachers:
            check_teacher(run, self._data, self._recipe.settings.data)
        self._teachers = teachers
        self._model = self._first_model()
        info = self._data.info
        self._flops = _forward_flops(self._model, self._data)
        described = Manifest(
            seed=self._recipe.settings.seed,
            recipe=self._recipe.record,
            dataset=dataset_record(info, declared_views(self._data.train)),
            task=TaskRecord(kind="multiclass", num_classes=self._data.num_classes),
            model=model_record(self._model, self._flops),
            environment=environment(),
        )
        self.record = RoundRecord(archive, config, described, examples_of(info), [run.id for run in teachers])
        first = {name: value.cpu().clone() for name, value in self._model.state_dict().items()}
        self.weights = self.record.weights(archive) if self.record.rounds else first

    @property
    def seed(self) -> int:
        """Seed of the recipe."""
        return self._recipe.settings.seed

    @property
    def pixels(self) -> tuple[list[float], list[float]]:
        """Mean and deviation per channel by which the images are brought to scale."""
        return list(self._data.mean), list(self._data.std)

    def teachers_of(self, round_number: int) -> list[str]:
        """Return the ids of the runs that label the images of a round in the place of its model."""
        return [run.id for run in self._teachers] if round_number == 1 else []

    def combine(self, round_number: int, answers: Sequence[ClientRound]) -> dict[str, Tensor]:
        """Return the model of a round, and record it.

        Args:
            round_number: From 1.
            answers: Of the clients that took part, in the order of their numbers. Those that trained on no image do
                not count; where nobody trained, the model is that of the round before.
        """
        began, server = time.perf_counter(), self._config.server
        parts: list[Trained] = [one for one in answers if one.examples]
        own = []
        if server.examples and not server.alternate:
            own = [self._train(round_number, self.weights)]
        if parts or own:
            every = [*parts, *own]
            self.weights = average_states([one.weights for one in every], [one.examples for one in every])
        if server.examples and server.alternate:
            own = [self._train(round_number, self.weights)]
            self.weights = own[0].weights
        trained, values = time.perf_counter(), {**self._evaluate(), **_shares(answers)}
        cost = CostRecord(
            train_seconds=trained - began + sum(one.train_seconds for one in answers),
            setup_seconds=sum(one.label_seconds for one in answers),
            eval_seconds=time.perf_counter() - trained,
            train_flops=self._train_flops(round_number, answers, own),
        )
        self.record.commit(round_number, self.weights, values, [*answers, *own], cost)
        return self.weights

    def _train_flops(self, number: int, answers: Sequence[ClientRound], own: Sequence[Trained]) -> float | None:
        """Return the FLOPs of a round's training and labelling; None where a recipe's algorithm may add some."""
        clients, flops = self._config.clients, self._flops
        if self._recipe.settings.algorithms:
            return None
        # Each image is followed by a mix of it with another one.
        passes = 2 if clients.labels == "none" and self._config.select.mix_weight > 0 else 1
        trained = passes * sum(one.samples for one in answers) + sum(one.samples for one in own)
        total = float(PASSES_PER_STEP * flops * trained)
        if clients.labels == "own":
            return total
        images = sum(one.images for one in answers)
        taught = number == 1 and self._teachers
        labelling = labelling_flops(self._teachers, images) if taught else float(flops * images)
        return None if labelling is None else total + labelling

    def _first_model(self) -> ComposerModel:
        settings, data = self._recipe.settings, self._data
        # As for a Trainer of this recipe: the initial weights depend on the seed and nothing else.
        reproducibility.seed_all(settings.seed)
        model = build_model(settings.model, data.num_classes, data.image_shape, data.inputs)
        return model.to(device_of(self._recipe))  # where its evaluation data are

    def _evaluate(self) -> dict[str, float]:
        """Return the evaluation metrics of the newest model, such as ``metrics/eval/MulticlassAccuracy``."""
        model = self._model.eval()
        model.load_state_dict(self.weights)
        device = get_device("gpu" if next(model.parameters()).is_cuda else "cpu")
        metrics = {name: device.module_to_device(one) for name, one in model.get_metrics(is_train=False).items()}
        with torch.no_grad():
            for batch in map(device.batch_to_device, eval_loader(self._data, self._recipe.settings.data)):
                outputs = model.eval_forward(batch)
                for metric in metrics.values():
                    model.update_metric(batch, outputs, metric)
        values = {f"metrics/eval/{name}": float(metric.compute()) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values

    def _train(self, round_number: int, weights: Mapping[str, Tensor]) -> Trained:
        """Train on the labels that the server has."""
        info, section = self._data.info, self._recipe.settings.data
        positions = server_positions(self._config, info)
        assert info.labels is not None
        section = replace(section, batch_size=min(section.batch_size, len(positions)))
        data = load_datasets(section, device_of(self._recipe), Chosen(positions, info.labels[positions]))
        folder = part_folder(self._config, self.record.run_id, "server")
        return train_part(self._config, self._recipe, folder, self._config.server.epochs, round_number, data, weights)


def _forward_flops(model: ComposerModel, data: LoadedData) -> int:
    """Return the FLOPs of the forward pass of one image."""
    device = next(model.parameters()).device
    image = torch.zeros(1, *data.image_shape, device=device)
    with counted_flops(device.type) as counter:
        model.eval()((image, torch.zeros(1, dtype=torch.int64, device=device)))
    return counter.get_total_flops()


def _shares(answers: Sequence[ClientRound]) -> dict[str, float]:
    """Return which share of the clients' images was trained on, and which of these had their true label."""
    images, chosen = sum(one.images for one in answers), sum(one.examples for one in answers)
    shares = {"federated/chosen": chosen / images} if images else {}
    return {**shares, "federated/correct": sum(one.correct for one in answers) / chosen} if chosen else shares
