"""Live teachers and students of other people's kinds: what their forward passes do to batches, return and archive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms import EMA, SWA
from composer.core import DataSpec
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distilling import kl
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.archive import RunArchive
from reuse_algos.callbacks import RunRecorder
from reuse_algos.errors import ModelError, PriorRunMismatchError, TaskError
from toy import trainer

N = 16
Y = torch.arange(N) % 3
X = F.one_hot(Y, 3).float() + 0.5 * torch.randn(N, 3, generator=torch.Generator().manual_seed(0))


class _Rows:
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], "labels": Y[index], "deep": {"labels": Y[index]}}


class _Model(ComposerModel):
    """Takes its labels where ``read`` finds them, and returns a mapping with the loss."""

    def __init__(self, seed: int, read: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Linear(3, 3)
        self.read = read

    def forward(self, batch: Any) -> Any:
        x, labels = self.read(batch)
        logits = self.net(x)
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        return outputs["loss"]


def _plain(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["x"], batch["labels"]


def _replaces(batch: Any) -> tuple[Tensor, Tensor]:
    batch["x"] = 2 * batch["x"]
    batch["more"] = 1
    return batch["x"], batch["labels"]


def _writes(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["x"].mul_(2), batch["labels"]


FORWARDS: dict[str, tuple[Callable[[Any], tuple[Tensor, Tensor]], float]] = {
    "pops": (lambda batch: (batch["x"], batch.pop("labels")), 1),
    "pops what lies deeper": (lambda batch: (batch["x"], batch["deep"].pop("labels")), 1),
    "replaces and adds": (_replaces, 2),
    "writes into a tensor": (_writes, 2),
}


def _fit(model: ComposerModel, *algorithms: Any, archive: Path | None = None, **arguments: Any) -> None:
    callbacks = [] if archive is None else [RunRecorder(archive, run_name="prior")]
    loader = DataSpec(DataLoader(_Rows(), batch_size=N // 2), get_num_samples_in_batch=lambda batch: len(batch["x"]))  # type: ignore[arg-type]
    one = trainer(
        loader, model, algorithms=list(algorithms), callbacks=callbacks, **{"max_duration": "1ep", **arguments}
    )  # type: ignore[arg-type]
    one.fit()
    one.close()


@pytest.mark.parametrize("name", FORWARDS)
def test_teachers_see_the_batch_as_it_was(tmp_path: Path, name: str) -> None:
    """Whatever forward passes of the student and of two teachers do to it; in the first batch and in later ones."""
    read, scale = FORWARDS[name]
    models = [_Model(seed, read) for seed in (1, 2)]
    for number, model in enumerate(models):
        _fit(model, archive=tmp_path / str(number), max_duration="1ba")
    student, teach = (
        _Model(5, read),
        [PriorRunDistillation(tmp_path / str(i), "prior", source="live", loss="kl", when={}) for i in (0, 1)],
    )
    terms: list[list[float]] = [[], []]
    for number, algorithm in enumerate(teach):
        algorithm.log_metrics = lambda metrics, logger, kept=terms[number]: kept.append(  # type: ignore[method-assign]
            metrics["reuse/distillation/loss"]
        )
    _fit(student, *teach, lr=0.0)
    with torch.no_grad():
        for batch in range(2):
            x = scale * X[batch * 8 : batch * 8 + 8]
            expected = [kl(student.net(x), [model.net(x)]) for model in models]
            assert [terms[0][batch], terms[1][batch]] == pytest.approx(expected, abs=1e-6)


class _TwoHeads(ComposerModel):
    """In training a tuple of the logits of two heads, in evaluation their mean: as DeiT has it."""

    def __init__(self, seed: int, outputs: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.outputs = outputs

    def forward(self, batch: Any) -> Any:
        one, other = (head(batch["x"]) for head in self.heads)
        if self.outputs is not None:
            return self.outputs(one, other)
        return (one, other) if self.training else (one + other) / 2

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        logits = outputs[0] if isinstance(outputs, tuple) else outputs["logits"]
        return F.cross_entropy(logits, batch["labels"])


@pytest.mark.parametrize("head", [0, 1])
def test_a_tuple_in_training_and_one_tensor_in_evaluation(tmp_path: Path, head: int) -> None:
    teacher, student = _TwoHeads(1), _TwoHeads(5)
    _fit(teacher, archive=tmp_path)
    teach = PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={}, keys={"output": head})
    _fit(student, teach, max_duration="1ba", lr=0.0)
    x = X[:8]
    with torch.no_grad():
        taught = (teacher.heads[0](x) + teacher.heads[1](x)) / 2
        expected = kl(student.heads[head](x), [taught])
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(expected, abs=1e-6)


def test_a_tuple_without_a_key_is_refused_before_the_first_step(tmp_path: Path) -> None:
    _fit(_TwoHeads(1), archive=tmp_path)
    student = _TwoHeads(5)
    before = student.heads[0].weight.clone()  # type: ignore[operator]
    with pytest.raises(TaskError, match="no logits .* in outputs of type tuple of 2; name their place by keys"):
        _fit(student, PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={}))
    assert torch.equal(student.heads[0].weight, before)  # type: ignore[arg-type]


class _Deployed(_Model):
    """Gives something else in evaluation than in training."""

    def __init__(self, seed: int, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__(seed, _plain)
        self.then = then

    def forward(self, batch: Any) -> Any:
        outputs = super().forward(batch)
        return outputs if self.training else {"logits": self.then(outputs["logits"])}


def test_a_teacher_that_gives_probabilities_in_evaluation_is_refused(tmp_path: Path) -> None:
    _fit(_Deployed(1, lambda z: z.softmax(1)), archive=tmp_path)
    teach = PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={})
    with pytest.raises(ModelError, match="teacher .* gives probabilities .* in evaluation mode"):
        _fit(_Deployed(5, lambda z: z.softmax(1)), teach)
    # Logarithms of probabilities are logits of the same softmax.
    teacher, student = _Deployed(1, lambda z: z.log_softmax(1)), _Deployed(5, lambda z: z.log_softmax(1))
    teacher.load_state_dict(dict(RunArchive(tmp_path).run("prior").weights("last")))
    _fit(student, teach, max_duration="1ba", lr=0.0)
    with torch.no_grad():
        expected = kl(student.net(X[:8]), [teacher.net(X[:8])])
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(expected, abs=1e-6)


class _Output(OrderedDict):
    """Like Hugging Face's ModelOutput: attributes and keys."""

    logits = property(lambda self: self["logits"])


@pytest.mark.parametrize("key", [None, "logits", "second"])
def test_mappings_as_outputs(tmp_path: Path, key: str | None) -> None:
    def outputs(one: Tensor, other: Tensor) -> Any:
        return _Output(loss=torch.zeros(()), logits=one, second=other)

    teacher, student = _TwoHeads(1, outputs), _TwoHeads(5, outputs)
    _fit(teacher, archive=tmp_path)
    teach = PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={}, keys={"output": key})
    _fit(student, teach, max_duration="1ba", lr=0.0)
    head = 1 if key == "second" else 0
    with torch.no_grad():
        expected = kl(student.heads[head](X[:8]), [teacher.heads[head](X[:8])])
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(expected, abs=1e-6)


class _Adapted(_Model):
    """Saves its adapter alone, as Composer's HuggingFaceModel does with should_save_peft_only."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, _plain)
        self.adapter = nn.Linear(3, 3)
        self.net.requires_grad_(False)

    def forward(self, batch: Any) -> Any:
        logits = self.net(batch["x"]) + self.adapter(batch["x"])
        return {"logits": logits, "loss": F.cross_entropy(logits, batch["labels"])}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if "adapter" in key}


class _Bare(_Adapted):
    """Its adapter alone, as earlier versions of the recorder archived it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        del self.net

    def forward(self, batch: Any) -> Any:
        logits = self.adapter(batch["x"])
        return {"logits": logits, "loss": F.cross_entropy(logits, batch["labels"])}


def test_adapters_without_their_base_are_refused_as_live_teachers(tmp_path: Path) -> None:
    _fit(_Bare(1), archive=tmp_path)
    with pytest.raises(PriorRunMismatchError, match="are 2 tensors, and the module has 4 parameters: 2 of them, first"):
        _fit(_Adapted(2), PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={}))


@pytest.mark.filterwarnings("ignore:SWA has known issues")
@pytest.mark.parametrize("averaging", [lambda: EMA(half_life="2ba"), lambda: SWA(swa_start="1ep", swa_end="3ep")])
def test_teachers_have_the_averaged_weights_that_were_evaluated(tmp_path: Path, averaging: Any) -> None:
    """``last`` of a run with EMA or SWA are the averaged weights, and so are those of its live teacher."""
    model, raw = _Model(1, _plain), _Model(1, _plain)
    _fit(model, averaging(), archive=tmp_path, max_duration="3ep")
    _fit(raw, max_duration="3ep")
    weights = RunArchive(tmp_path).run("prior").weights("last")
    assert not torch.allclose(weights["net.weight"], raw.net.weight)
    student = _Model(5, _plain)
    teach = PriorRunDistillation(tmp_path, "prior", source="live", loss="kl", when={})
    _fit(student, teach, max_duration="1ba", lr=0.0)
    with torch.no_grad():
        expected = kl(student.net(X[:8]), [F.linear(X[:8], weights["net.weight"], weights["net.bias"])])
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(expected, abs=1e-6)
