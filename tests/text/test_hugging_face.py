"""Hugging Face models in a real Trainer: the right numbers, live, cached and by the largest logits only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Callback
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reuse_algos import PriorRunDistillation, RunRecorder
from reuse_algos.algorithms import AdversarialTraining, FeatureDistillation
from reuse_algos.archive import RunArchive
from reuse_algos.errors import ModelError, PriorRunMismatchError, TaskError
from reuse_algos.training.tasks.task import Task
from toy import trainer

pytest.importorskip("transformers")
from text.hugging_face import LABELS, B, N, Sentences, T, V, hugging_face, sentences

LEARN = ("sentences", "tokens", "language")
TASKS = {
    "sentences": Task("multiclass", LABELS),
    "tokens": Task("token", LABELS, -1),
    "language": Task("token", V, -1, shift=True),
}


class Losses(Callback):
    """What went backward, and what the model said."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.logits: list[torch.Tensor] = []

    def before_backward(self, state: Any, logger: Any) -> None:
        self.values.append(float(state.loss))
        self.logits.append(state.outputs["logits"].detach())


def fit(learn: str, *algorithms: Any, seed: int = 2, callbacks: Any = (), lr: float = 0.0, **arguments: Any) -> Losses:
    losses = Losses()
    arguments = {"max_duration": "1ep", **arguments}
    model = hugging_face(learn, seed)
    trainer(
        sentences(learn), model, algorithms=list(algorithms), callbacks=[losses, *callbacks], lr=lr, **arguments
    ).fit()  # type: ignore[arg-type]
    return losses


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A prior run of each kind whose weights stood still, with all of its logits and with the largest ones."""
    found = {}
    for learn in LEARN:
        found[learn] = tmp_path_factory.mktemp(learn)
        for name, top_k in (("whole", None), ("largest", 2)):
            recorder = RunRecorder(
                found[learn], run_name=name, signals={"logits": {"top_k": top_k}, "loss": {}, "correct": {}}
            )
            fit(learn, seed=1, callbacks=[recorder])
    return found


def rows(learn: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher logits of all N examples and the targets, by plain transformers calls."""
    data = Sentences(learn)
    batch = {key: torch.stack([data[row][key] for row in range(N)]) for key in data[0]}
    with torch.no_grad():
        student, teacher = (hugging_face(learn, seed).model(**batch).logits for seed in (2, 1))
    return student, teacher, batch["labels"]


def flat(learn: str, logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The counted positions of each example, with their targets: padding out, a language model shifted by one."""
    if learn == "sentences":
        return [(z[None], y[None]) for z, y in zip(logits, labels, strict=True)]
    if learn == "language":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return [(z[y != -100], y[y != -100]) for z, y in zip(logits, labels, strict=True)]


@pytest.mark.parametrize("learn", LEARN)
def test_recorded_losses_are_those_of_each_text(archives: dict[str, Path], learn: str) -> None:
    """The mean over counted tokens of each example; what is recorded of the task is what it is."""
    run = RunArchive(archives[learn]).run("whole")
    _, teacher, labels = rows(learn)
    expected = torch.stack([F.cross_entropy(z, y) for z, y in flat(learn, teacher, labels)])
    torch.testing.assert_close(run.signal("loss").dense(0)[0], expected, rtol=1e-5, atol=1e-6)
    right = torch.tensor([bool((z.argmax(-1) == y).all()) for z, y in flat(learn, teacher, labels)])
    assert torch.equal(run.signal("correct").dense(0)[0].bool(), right)
    recorded = run.manifest.task
    assert recorded is not None
    assert (recorded.kind, recorded.shift) == (TASKS[learn].kind, TASKS[learn].shift)
    # The products of attention are counted as well, which torch's counter does not see in the fast kernel of CPUs.
    data, record = Sentences(learn), run.manifest.model
    batch = {key: torch.stack([data[row][key] for row in range(N)]) for key in data[0]}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hugging_face(learn, 1).eval().model(**batch)
    assert record is not None
    assert record.flops_per_example == counter.get_total_flops() / N


@pytest.mark.parametrize("microbatch", [B, 3])
@pytest.mark.parametrize("source", ["live", "cached"])
@pytest.mark.parametrize("learn", LEARN)
def test_distillation_is_the_closed_form(archives: dict[str, Path], learn: str, source: str, microbatch: int) -> None:
    """T^2 KL over counted positions, the mean over examples; live to float32, cached to float16."""
    temperature = 2.0
    student, teacher, labels = rows(learn)
    terms = []
    pairs = zip(flat(learn, student, labels), flat(learn, teacher, labels), strict=True)
    for (s, _), (t, _) in pairs:
        p, log_q = F.softmax(t / temperature, -1), F.log_softmax(s / temperature, -1)
        terms.append(temperature**2 * F.kl_div(log_q, p, reduction="none").sum(-1).mean())
    teach = PriorRunDistillation(
        archives[learn], "whole", source=source, loss={"name": "kl", "temperature": temperature}, when={}
    )
    fit(learn, teach, device_train_microbatch_size=microbatch)
    expected = float(torch.stack(terms)[B:].mean())  # metrics are of the last batch
    assert teach.latest_metrics["reuse/distillation/loss"] == pytest.approx(
        expected, rel=1e-5 if source == "live" else 5e-3
    )


@pytest.mark.parametrize("learn", ["tokens", "language"])
def test_largest_logits_teach_nearly_the_same(archives: dict[str, Path], learn: str) -> None:
    """Two of the classes at each position: the kept mass is exact at temperature 1."""
    found = {}
    for name in ("whole", "largest"):
        teach = PriorRunDistillation(
            archives[learn], name, source="cached", loss={"name": "kl", "temperature": 1.0, "weight": 1.0}, when={}
        )
        fit(learn, teach)
        found[name] = teach.latest_metrics["reuse/distillation/loss"]
    # Where the others' mass is spread evenly, the divergence is never larger than the true one.
    assert 0 < found["largest"] <= found["whole"] * 1.001
    if learn == "tokens":
        assert found["largest"] == pytest.approx(found["whole"], rel=2e-2)  # 2 of 3: the rest is one class, exactly
    signal = RunArchive(archives[learn]).run("largest").signal("logits")
    places = T if learn == "tokens" else T - 1
    assert signal.row_shape == (TASKS[learn].num_classes, places)
    assert signal.nbytes == N * places * (2 * 2 + 2 * 4 + 4)


@pytest.mark.parametrize("learn", LEARN)
def test_one_hot_teachers_give_transformers_own_loss(learn: str) -> None:
    """A certain teacher's divergence at temperature 1 is the loss that transformers computes."""
    from reuse_algos.functional import kl_term

    student, _, labels = rows(learn)
    data = Sentences(learn)
    batch = {key: torch.stack([data[row][key] for row in range(N)]) for key in data[0]}
    with torch.no_grad():
        own = float(hugging_face(learn, 2).model(**batch).loss)
    task = TASKS[learn]
    laid = task.rows(student, labels)
    assert laid.targets is not None
    certain = F.one_hot(laid.targets, task.num_classes).movedim(-1, 1).float()
    term = kl_term(laid.logits_BCX, certain, 1.0, counted_BX=laid.counted_BX, average="targets")
    assert float(term) == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("learn", ["tokens", "language"])
def test_padding_gets_no_gradient_and_an_ignored_batch_gives_nothing(learn: str) -> None:
    from reuse_algos.functional import kl_term, mse_term

    student, teacher, labels = rows(learn)
    task = TASKS[learn]
    student.requires_grad_()
    laid, theirs = task.rows(student, labels), task.rows(teacher, labels)
    term = kl_term(laid.logits_BCX, theirs.logits_BCX.softmax(1), 1.0, counted_BX=laid.counted_BX)
    (term + mse_term(laid.logits_BCX, theirs.logits_BCX, counted_BX=laid.counted_BX)).backward()
    judged = labels[:, 1:] != -100 if task.shift else labels != -100
    assert student.grad is not None
    seen = student.grad[:, : judged.shape[1]]
    assert torch.equal(seen[~judged], torch.zeros_like(seen[~judged]))
    assert bool((seen[judged].abs().sum(-1) > 0).all())
    ignored = task.rows(student, torch.full_like(labels, -100))
    assert float(kl_term(ignored.logits_BCX, theirs.logits_BCX.softmax(1), 1.0, counted_BX=ignored.counted_BX)) == 0


@pytest.mark.parametrize("learn", ["sentences", "tokens"])
def test_texts_are_not_attacked(learn: str) -> None:
    """The task is named, and no advice about pixels is given."""
    with pytest.raises(
        TaskError,
        match="AdversarialTraining (changes pixels, so its inputs are images|is defined for the task multiclass)",
    ):
        fit(learn, AdversarialTraining(0.03))


def test_features_are_refused_where_tokens_weigh(archives: dict[str, Path]) -> None:
    teach = FeatureDistillation(archives["tokens"], "whole", ["model"])
    with pytest.raises(ModelError, match="accumulate_train_batch_on_tokens"):
        fit("tokens", teach, accumulate_train_batch_on_tokens=True)


def test_a_users_own_script_gains_distillation_by_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the documentation is executed: what it adds to a script are two lines, and they teach."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "hugging_face.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert [line.count("# +") for line in snippets[-1].splitlines() if "# +" in line] == [1, 1]
    monkeypatch.chdir(tmp_path)
    logged: dict[str, float] = {}
    monkeypatch.setattr("composer.loggers.Logger.log_metrics", lambda self, metrics, step=None: logged.update(metrics))
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "hugging_face.md", "exec"), scope)
    archive = RunArchive(tmp_path / "archive")
    student = archive.run("student")
    assert student.finished
    (use,) = student.manifest.prior_runs
    assert use.algorithm == "prior_run_distillation"
    assert use.run_id == archive.run("teacher").id
    assert float(logged["reuse/distillation/loss"]) > 0


@pytest.mark.parametrize("shift", [False, True])
def test_classes_last_are_the_transposed_call_bit_by_bit(shift: bool) -> None:
    """As Hugging Face lays tokens out, and as torch's cross entropy wants them: the same bits, the same gradient."""
    from reuse_algos.functional import kl_term, mse_term

    student, teacher, labels = rows("language")
    last, first = Task("token", V, -1, shift=shift), Task("token", V, 1, shift=shift)
    for term in (
        lambda own, other, counted: kl_term(own, (other / 2).softmax(1), 2.0, counted_BX=counted),
        lambda own, other, counted: mse_term(own, other, counted_BX=counted),
    ):
        found = []
        for task, turned in ((last, False), (first, True)):
            own, other = (z.transpose(1, 2).contiguous() if turned else z.clone() for z in (student, teacher))
            own.requires_grad_()
            laid = task.rows(own, labels)
            value = term(laid.logits_BCX, task.rows(other).logits_BCX, laid.counted_BX)
            (gradient,) = torch.autograd.grad(value, own)
            found.append((value, gradient.transpose(1, 2) if turned else gradient))
        assert float(found[0][0]) > 0
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_another_vocabulary_is_refused_live(tmp_path: Path) -> None:
    from reuse_algos.models.text import name_tokens

    def named(seed: int, first: int) -> Any:
        model = hugging_face("sentences", seed)
        name_tokens(model, first + torch.arange(V))
        return model

    trainer(
        sentences("sentences"), named(1, 0), max_duration="1ba", callbacks=[RunRecorder(tmp_path, run_name="one")]
    ).fit()
    teach = PriorRunDistillation(tmp_path, "one", source="live", when={})
    trainer(sentences("sentences"), named(2, 0), max_duration="1ba", algorithms=[teach]).fit()
    assert teach.batches_applied == 1
    with pytest.raises(PriorRunMismatchError, match="the same numbers stand for other words"):
        trainer(sentences("sentences"), named(2, 7), max_duration="1ba", algorithms=[teach]).fit()
