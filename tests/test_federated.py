"""Runs over clients: sharing out, choosing, averaging, and whole runs in this process on Flower."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from composer import Event

from reuse_algos import train
from reuse_algos.archive import PriorRun, RunArchive
from reuse_algos.data.info import DatasetInfo
from reuse_algos.errors import ArchiveConflictError, DataError, FederatedError, RecipeError
from reuse_algos.federated import (
    FederatedConfig,
    average_states,
    choose_sure,
    load_federated,
    mix_images,
    run_federated,
)
from reuse_algos.federated import client as client_module
from reuse_algos.federated import server as server_module
from reuse_algos.federated.client import ClientRound, client_round
from reuse_algos.federated.mix_term import MixTerm
from reuse_algos.federated.server import Server
from reuse_algos.federated.settings import part_recipe
from reuse_algos.federated.splitting import client_positions, server_positions
from reuse_algos.federated.training import Trained, part_folder
from reuse_algos.priors.pseudo_labels import select_pairs
from reuse_algos.recipe.build import build_trainer
from toy import blobs, epoch_loader, mlp, trainer

SMALL: dict[str, Any] = {
    "data": {"train_examples": 120, "batch_size": 20, "augment": "crop"},
    "device": "cpu",
    "model": {"width": 2},
    "scheduler": {"t_warmup": "2ba"},
}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    pytest.importorskip("flwr")


def federated(here: Path, **keys: Any) -> FederatedConfig:
    """A federated run over the digits: two clients of one epoch a round, two rounds."""
    values = {
        "run_name": "fed", "recipe": "digits/baseline", "archive": str(here / "archive"), "folder": str(here / "work"),
        "rounds": 2, "overrides": SMALL, "clients": {"count": 2, "epochs": 1, "labels": "own"}, **keys,
    }  # fmt: skip
    path = here / "federated.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_federated(path)


def run_here(config: FederatedConfig) -> str:
    """The rounds without Flower, which only carries the messages; the id of the run."""
    server = Server(config)
    for number in range(server.record.rounds + 1, config.rounds + 1):
        asked = {"teachers": server.teachers_of(number), "pixels": server.pixels}
        server.combine(
            number,
            [
                client_round(config, server.record.run_id, client, number, server.weights, **asked)
                for client in range(config.clients.count)
            ],
        )
    return server.record.run_id


def recorded(config: FederatedConfig, run_id: str) -> PriorRun:
    return RunArchive(config.archive, read_only=True).run(run_id)


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# Averaging


def test_states_are_averaged_by_their_weights() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([5.0, 0.0]), "n": torch.tensor(7)},
    ]
    averaged = average_states(states, [30, 10])
    assert averaged["w"].tolist() == [2.0, 1.5]
    assert (averaged["n"].item(), averaged["n"].dtype) == (7, torch.int64)
    assert_same(average_states(states, [0, 10]), states[1])


def test_variances_are_those_of_all_examples_together() -> None:
    """A mean of variances would leave out that the clients' means differ."""
    generator = torch.Generator().manual_seed(1)
    parts = [
        torch.randn(count, 3, generator=generator) * scale + shift for count, scale, shift in ((40, 1, 0), (60, 2, 5))
    ]
    states = [{"bn.running_mean": one.mean(0), "bn.running_var": one.var(0, unbiased=False)} for one in parts]
    averaged, whole = average_states(states, [40, 60]), torch.cat(parts)
    assert torch.allclose(averaged["bn.running_mean"], whole.mean(0), atol=1e-6)
    assert torch.allclose(averaged["bn.running_var"], whole.var(0, unbiased=False), rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "weights", "text"),
    [(["a", "a"], [0, 0], "sum above 0"), (["a", "b"], [1, 1], "different names"), (["a"], [1, 1], "as many weights")],
)
def test_what_cannot_be_averaged_is_refused(names: list[str], weights: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        average_states([{name: torch.ones(1)} for name in names], weights)


# Sharing out


def labels_of(count: int = 200, classes: int = 5) -> torch.Tensor:
    return torch.arange(count) % classes


def info(count: int = 200, classes: int = 5) -> DatasetInfo:
    return DatasetInfo("made", torch.arange(count) * 7 + 3, labels_of(count, classes), None, "id")


@pytest.mark.parametrize("split", ["even", "labels"])
def test_every_example_has_one_place(tmp_path: Path, split: str) -> None:
    config = federated(tmp_path, server={"examples": 20}, clients={"count": 4, "split": split})
    parts = [server_positions(config, info()), *(client_positions(config, info(), number) for number in range(4))]
    assert torch.cat(parts).sort().values.tolist() == list(range(200))
    assert labels_of()[parts[0]].bincount().tolist() == [4] * 5, "the server has every class"
    assert [len(part) for part in parts[1:]] == [45] * 4


def test_label_sorted_clients_have_few_classes_and_even_ones_all(tmp_path: Path) -> None:
    for split, classes in (("even", 10), ("labels", 2)):
        config = federated(tmp_path, clients={"count": 5, "split": split, "shards": 2, "labels": "own"})
        for number in range(5):
            part = client_positions(config, info(1000, 10), number)
            assert len(labels_of(1000, 10)[part].unique()) == classes
    with pytest.raises(DataError, match="there is no client 5: clients.count is 5"):
        client_positions(config, info(), 5)


# Choosing and mixing


def test_sure_images_are_those_of_the_pool_selection_above_a_threshold() -> None:
    probabilities = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    positions, labels = choose_sure(probabilities, 0.9)
    best, where = probabilities.max(1)
    assert positions.tolist() == (best >= 0.9).nonzero().flatten().tolist()
    assert labels.tolist() == where[positions].tolist()
    limited, _ = choose_sure(probabilities, 0.0, per_class=3)
    assert sorted(limited.tolist()) == sorted(select_pairs(probabilities, per_class=3)[0].tolist())
    assert len(choose_sure(probabilities, 1.01)[0]) == 0


def test_the_mixed_term_is_the_loss_by_both_labels() -> None:
    images, order = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([1, 0])
    assert mix_images(images, order, 0.25).tolist() == [[2.5, 5.0], [1.5, 3.0]]

    loader = epoch_loader(blobs())
    made = trainer(loader, mlp(), algorithms=[MixTerm(0.75, weight=2.0, seed=3)])
    state, twin = made.state, MixTerm(0.75, weight=2.0, seed=3)
    batch = next(iter(loader))
    state.batch, state.loss = batch, torch.zeros(())
    twin.apply(Event.AFTER_LOSS, state, made.logger)
    generator = MixTerm(0.75, seed=3)._generator
    order, share = torch.from_numpy(generator.permutation(len(batch[0]))), generator.beta(0.75, 0.75)
    logits = state.model((mix_images(batch[0], order, share), batch[1]))
    losses = [torch.nn.functional.cross_entropy(logits, one) for one in (batch[1], batch[1][order])]
    assert state.loss.item() == pytest.approx(2.0 * (share * losses[0] + (1 - share) * losses[1]).item())

    later = MixTerm(seed=9)
    later.load_state_dict(twin.state_dict())
    assert later._generator.random() == twin._generator.random()


def test_only_batches_of_images_and_classes_are_mixed() -> None:
    made = trainer(epoch_loader(blobs()), mlp())
    made.state.batch = {"x": torch.zeros(2)}
    with pytest.raises(DataError, match="batches of images and class numbers, got dict"):
        MixTerm().apply(Event.AFTER_LOSS, made.state, made.logger)


# Whole runs


def central(config: FederatedConfig) -> dict[str, torch.Tensor]:
    """The weights of one training over all epochs of a federated run with one client."""
    made = build_trainer(part_recipe(config, config.clients.epochs, {"data": {"drop_last": True}}))
    made.state.evaluators = []
    made.fit()
    return {name: value.clone() for name, value in made.state.model.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_one_client_with_all_labels_is_central_training_bit_by_bit(tmp_path: Path, momentum: float) -> None:
    """With momentum where the optimizer's state is kept between rounds; without it, there is none to keep."""
    config = federated(
        tmp_path,
        rounds=3,
        clients={"count": 1, "epochs": 2, "labels": "own"},
        keep_optimizer=momentum > 0,
        overrides={**SMALL, "optimizer": {"momentum": momentum}},
    )
    run = recorded(config, run_here(config))
    assert_same(run.weights("last"), central(config))
    assert (run.manifest.progress.epoch, run.manifest.progress.batch) == (6, 36)
    assert run.manifest.cost.train_flops == 3 * run.manifest.model.flops_per_example * 6 * 120
    assert (run.manifest.monitor, run.manifest.monitor_mode) == ("metrics/eval/MulticlassAccuracy", "max")
    assert [entry.name for entry in run.manifest.files if entry.kind == "weights"] == [
        "round-1", "round-2", "round-3", "last",
    ]  # fmt: skip
    if momentum:
        fresh = replace(config, run_name="fresh", keep_optimizer=False)
        others = recorded(fresh, run_here(fresh)).weights("last")
        assert not all(torch.equal(others[name], value) for name, value in run.weights("last").items())


@pytest.mark.usefixtures("flower")
def test_a_killed_run_goes_on_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    keys: dict[str, Any] = {
        "rounds": 3, "server": {"examples": 20, "epochs": 1}, "select": {"threshold": 0.0},
        "clients": {"count": 3, "epochs": 1, "fraction": 0.67},
    }  # fmt: skip
    straight, killed = (federated(tmp_path / name, **keys) for name in ("straight", "killed"))
    expected = recorded(straight, run_federated(straight))

    def dies(config: FederatedConfig, run_id: str, client: int, round_number: int, *more: Any, **others: Any) -> Any:
        done = client_round(config, run_id, client, round_number, *more, **others)
        if round_number == 3:
            raise KeyboardInterrupt
        return done

    from reuse_algos.federated import flower

    monkeypatch.setattr(flower, "client_round", dies)
    with pytest.raises(KeyboardInterrupt):
        run_federated(killed)
    (begun,) = RunArchive(killed.archive).runs(unfinished=True)
    assert (begun.finished, begun.manifest.progress.epoch) == (False, 2)
    monkeypatch.setattr(flower, "client_round", client_round)
    found = recorded(killed, run_federated(killed))
    assert found.id == begun.id
    assert_same(found.weights("last"), expected.weights("last"))
    assert found.metric_names == expected.metric_names
    for name in found.metric_names:
        assert found.metric(name).value.tolist() == expected.metric(name).value.tolist()
    assert found.manifest.progress == expected.manifest.progress
    with pytest.raises(ArchiveConflictError, match="has a run named 'fed' already"):
        run_federated(killed)


def test_an_archived_teacher_labels_the_first_round_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = [f"archive={tmp_path / 'archive'}", "device=cpu", "max_duration=8ep", "progress_bar=false"]
    assert train.main(["digits/baseline", *taught, "data.train_examples=200", "model.width=4"]) == 0
    (teacher,) = RunArchive(tmp_path / "archive").runs()
    keys: dict[str, Any] = {"clients": {"count": 2, "epochs": 1}, "server": {"examples": 20, "epochs": 1}}
    plain, reuse = (
        federated(tmp_path, run_name=name, select={"threshold": 0.5}, **keys, **more)
        for name, more in (("plain", {}), ("reuse", {"teacher": "digits-baseline-1"}))
    )
    asked: list[tuple[int, list[str]]] = []

    def spied(config: FederatedConfig, recipe: Any, whole: Any, weights: Any, teachers: Any, device: Any) -> Any:
        asked.append((len(asked) // 2 + 1, list(teachers)))
        return forwards(config, recipe, whole, weights, teachers, device)

    forwards = client_module._forwards
    monkeypatch.setattr(client_module, "_forwards", spied)
    without, with_it = (recorded(config, run_here(config)) for config in (plain, reuse))
    assert asked[4:] == [(3, [teacher.id]), (3, [teacher.id]), (4, []), (4, [])]
    assert without.metric("federated/chosen").value[0] == 0.0, "the first model is sure of nothing"
    assert with_it.metric("federated/chosen").value[0] > 0.3
    assert with_it.metric("federated/correct").value[0] > 0.8
    (use,) = with_it.manifest.prior_runs
    assert (use.run_id, use.algorithm, use.weights) == (teacher.id, "federated", ["last"])
    assert without.manifest.prior_runs == []
    # Clients see images and mixes of them. They label 100 images in each round, first by the teacher.
    assert train.main(["digits/baseline", *taught, "run_name=small", "model.width=2", "max_duration=1ep"]) == 0
    (small,) = RunArchive(tmp_path / "archive").runs(run_name="small")
    own, theirs = small.manifest.model.flops_per_example, teacher.manifest.model.flops_per_example
    assert 0 < own < theirs
    for run, first in ((without, own), (with_it, theirs)):
        assert run.manifest.model.flops_per_example == own
        shown = 3 * (2 * (run.manifest.progress.sample - 40) + 40)
        assert run.manifest.cost.train_flops == shown * own + 100 * (first + own)
    # Later runs may start from any round.
    assert RunArchive(tmp_path / "archive").run(with_it.id).weights("round-1")["module.fc.bias"].shape == (10,)


def test_server_trains_after_the_clients_or_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[dict[str, torch.Tensor]] = []

    def fake(config: Any, recipe: Any, folder: Any, epochs: int, number: int, data: Any, weights: Any) -> Trained:
        began.append(weights)
        return Trained({name: torch.full_like(value, 8) for name, value in weights.items()}, 30, 1, 30)

    monkeypatch.setattr(server_module, "train_part", fake)
    for alternate, name in ((True, "a"), (False, "b")):
        more = {} if alternate else {"algorithms": {"label_smoothing": {"smoothing": 0.1}}}
        config = federated(
            tmp_path, run_name=name, clients={"count": 2}, server={"examples": 30, "alternate": alternate},
            overrides={**SMALL, **more},
        )  # fmt: skip
        server = Server(config)
        first = server.weights
        answers = [
            ClientRound(
                {key: torch.full_like(one, value) for key, one in first.items()},
                count,
                images=50,
                correct=0,
                label_seconds=0.5,
                train_seconds=1.5,
            )
            for value, count in ((2, 10), (4, 20), (999, 0))
        ]
        weights = server.combine(1, answers)
        bias = weights["module.fc.bias"]
        if alternate:
            assert began[-1]["module.fc.bias"].tolist() == pytest.approx([(2 * 10 + 4 * 20) / 30] * 10)
            assert bias.tolist() == [8.0] * 10
        else:
            assert torch.equal(began[-1]["module.fc.bias"], first["module.fc.bias"])
            assert bias.tolist() == pytest.approx([(2 * 10 + 4 * 20 + 8 * 30) / 60] * 10)
        (run,) = [one for one in RunArchive(config.archive).runs(unfinished=True) if one.run_name == name]
        assert run.manifest.cost.setup_seconds == pytest.approx(1.5)
        assert run.manifest.cost.train_seconds >= 4.5
        flops = run.manifest.model.flops_per_example
        # Three passes of the server's 30 images, and one of each image that was labelled; an algorithm may add others.
        assert run.manifest.cost.train_flops == ((3 * 30 + 150) * flops if alternate else None)
        assert run.metric("federated/chosen").value.tolist() == [0.2]


@pytest.mark.usefixtures("flower")
def test_flower_s_own_apps_do_a_run(tmp_path: Path) -> None:
    """What ``flwr run`` starts: the server's app over a grid that calls the clients' app."""
    app = pytest.importorskip("flwr.app")
    from reuse_algos.federated.flower import client_app, server_app
    from reuse_algos.federated.in_process import InProcessGrid

    config = federated(tmp_path)
    file = {"file": str(tmp_path / "federated.yaml")}

    def context(node: int, **own: Any) -> Any:
        return app.Context(run_id=1, node_id=node, node_config=own, state=app.RecordDict(), run_config=file)

    grid = InProcessGrid(lambda message, node: client_app(message, context(node, **{"partition-id": node - 1})), [1, 2])
    server_app(grid, context(0))
    (run,) = RunArchive(config.archive).runs()
    assert run.manifest.progress.epoch == 2
    again = replace(config, run_name="again")
    assert_same(recorded(again, run_federated(again)).weights(), run.weights())
    here = replace(config, run_name="here")
    assert_same(recorded(here, run_here(here)).weights(), run.weights())
    with pytest.raises(FederatedError, match="does not say which client it is"):
        server_app(
            InProcessGrid(lambda message, node: client_app(message, context(node)), [1, 2]),
            renamed(context(0), tmp_path),
        )
    with pytest.raises(FederatedError, match="names no file"):
        server_app(grid, app.Context(run_id=1, node_id=0, node_config={}, state=app.RecordDict(), run_config={}))


def test_what_comes_with_the_library_can_be_run() -> None:
    """The file, and the folder that ``flwr run`` is given."""
    root = Path(__file__).parents[1]
    config = load_federated("federated/digits", ["rounds=3"])
    assert (config.rounds, config.clients.split, config.server.examples) == (3, "labels", 40)
    assert part_recipe(config, config.clients.epochs).settings.max_duration == "6ep"
    app = root / "docs/running/federated_app"
    text = (app / "pyproject.toml").read_text()
    imports = (app / "federated_app.py").read_text()
    for name in ("server_app", "client_app"):
        assert f'"federated_app:{name}"' in text
        assert name in imports


def renamed(context: Any, here: Path) -> Any:
    """The same for a run of another name."""
    path = here / "other.yaml"
    path.write_text((here / "federated.yaml").read_text().replace("run_name: fed", "run_name: other"))
    context.run_config["file"] = str(path)
    return context


@pytest.mark.usefixtures("flower")
def test_clients_that_fail_are_named(tmp_path: Path) -> None:
    app = pytest.importorskip("flwr.app")
    from reuse_algos.federated.flower import answer_message, run_rounds
    from reuse_algos.federated.in_process import InProcessGrid

    config = federated(tmp_path, rounds=1)

    def answer(message: Any, node: int) -> Any:
        failed = app.Message(app.Error(code=7, reason="its disk is full"), reply_to=message)
        return failed if node in broken else answer_message(config, message, context(node))

    def context(node: int) -> Any:
        number = {"partition-id": node - 1}
        return app.Context(run_id=1, node_id=node, node_config=number, state=app.RecordDict(), run_config={})

    broken = {1, 2}
    with pytest.raises(FederatedError, match="no client did round 1: node 1: its disk is full; node 2"):
        run_rounds(config, InProcessGrid(answer, [1, 2]))
    broken = {2}
    with pytest.warns(UserWarning, match="round 1 goes on without 1 clients: node 2: its disk is full"):
        run_id = run_rounds(config, InProcessGrid(answer, [1, 2]))
    assert recorded(config, run_id).finished


def test_clients_may_have_data_files_of_their_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(40) % 10
    # The client has some of the images, once as they are and once darker.
    for name, part in (("server", images), ("one", images[::-1][:30]), ("dark", images // 2)):
        count = len(part)
        np.savez(tmp_path / f"{name}.npz", x_train=part, y_train=labels[:count], x_test=part, y_test=labels[:count])
    data = {"name": "npz", "path": str(tmp_path / "server.npz"), "train_examples": None, "batch_size": 10}
    config = federated(
        tmp_path, clients={"count": 1, "split": "own", "labels": "own", "epochs": 1},
        overrides={**SMALL, "data": {**SMALL["data"], **data}},
    )  # fmt: skip
    server = Server(config)
    asked = (config, server.record.run_id, 0, 1, server.weights)
    done = client_round(*asked, data_path=str(tmp_path / "one.npz"), pixels=server.pixels)
    assert (done.images, done.examples, done.batches) == (30, 30, 3)
    with pytest.raises(DataError, match=r"client 0 has images of mean .* Bring the images of all parts to one scale"):
        client_round(*asked, data_path=str(tmp_path / "dark.npz"), pixels=server.pixels)


# What is wrong


def test_the_id_of_a_run_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FederatedError, match="is not the id of a run"):
        part_folder(federated(tmp_path), "../../elsewhere", "client-0")


def test_missing_flower_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    with pytest.raises(FederatedError, match=r"pip install 'reuse-algos\[federated\]'"):
        run_federated(federated(tmp_path))
    assert not os.path.exists(tmp_path / "archive")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"clients": {"count": 0}}, "count must be at least 1, got 0"),
        ({"clients": {"count": 2}}, "nobody has labels: set server.examples, clients.labels: own, or a teacher"),
        ({"clients": {"labels": "all"}}, "clients.labels"),
        ({"round": 3}, "round: there is no such key. Did you mean 'rounds'?"),
        ({"select": {"threshold": 2.0}}, "threshold must be from 0 to 1"),
        ({"server": {"examples": -1}}, "examples must be at least 0"),
        ({"recipe": "digits/nothing"}, "digits/nothing"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text.replace("?", r"\?")):
        part_recipe(federated(tmp_path, **keys), 1)
