"""AdversarialReplay with use: start, one step from the last perturbation of a view, against a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.settings import HOMES, ROWS, train
from replaying import BATCH, EPSILON, MEAN, STD, N, conv_net, deltas, fit, positions_of, put_deltas, record, replay
from reuse_algos.algorithms import PriorRunDistillation
from reuse_algos.algorithms.adversarial_replay import Start
from reuse_algos.algorithms.prior_run_distillation import KL
from reuse_algos.archive import RunArchive
from reuse_algos.errors import PriorRunMismatchError

STEP = EPSILON / 2


def one_step(model: Any, clean: Tensor, labels: Tensor, delta: Tensor, step: float = STEP) -> Tensor:
    """The textbook's step: the sign of the gradient of the cross entropy, clipped to the ball and to valid pixels."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    pixels = clean * std + mean
    low, high = (-pixels).clamp(min=-EPSILON), (1 - pixels).clamp(max=EPSILON)
    delta = delta.clamp(-EPSILON, EPSILON).max(low).min(high)
    moved = (((pixels + delta).clamp(0, 1) - mean) / std).requires_grad_()
    F.cross_entropy(model.eval()((moved, None)), labels, reduction="sum").backward()
    assert moved.grad is not None
    return (delta + step * moved.grad.sign()).max(low).min(high)


@pytest.mark.parametrize("reset_every", [None, 2])
def test_goes_on_from_the_last_perturbation_of_the_view(archive: RunArchive, reset_every: int | None) -> None:
    """Four epochs of two views at a learning rate of 0: views 0 and 1 are attacked twice, or begin again."""
    use = Start(reset_every=reset_every)
    model = conv_net(5, norm=False)
    _, calls, _ = fit([replay(archive, use=use, fraction=1.0)], model, lr=0.0, max_duration="4ep")
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    known: dict[int, Tensor] = {}
    for batch, (clean, labels) in enumerate(calls.batches):
        epoch, view = batch // 3, batch // 3 % 2
        if batch % 3 == 0 and reset_every and epoch % reset_every == 0:
            known = {}
        positions = positions_of(clean, view)
        archived = deltas(2)[view][positions]
        keys = [view * N + int(position) for position in positions]
        begin = torch.stack([known.get(key, archived[row]) for row, key in enumerate(keys)])
        delta = one_step(conv_net(5, norm=False), clean, labels, begin)
        # What is kept is float16: the next step begins with that.
        known.update(zip(keys, delta.half().float(), strict=True))
        expected = ((clean * std + mean + delta).clamp(0, 1) - mean) / std
        torch.testing.assert_close(calls.inputs[2 * batch + 1], expected, atol=2e-6, rtol=0)


def test_the_step_is_on_the_branch_that_the_rows_are_trained_in(archive: RunArchive) -> None:
    """Its statistics are those of perturbed rows; the attack moves no statistics and no generator."""
    settings: dict[str, Any] = {"use": Start(step=0.02), "fraction": 1.0}
    one, calls, _ = fit([replay(archive, **settings)], conv_net(5, dropout=0.3), max_duration="2ep", lr=0.0)
    tracked = {name: int(value) for name, value in one.state.model.state_dict().items() if "tracked" in name}
    assert set(tracked.values()) == {len(calls.batches)}
    _, plain, _ = fit([], conv_net(5, dropout=0.3), max_duration="2ep", lr=0.0)
    assert all(torch.equal(a, b) for a, b in zip(calls.outputs, plain.outputs, strict=True)), "clean rows see nothing"


def test_raises_the_loss_beyond_what_was_archived(archive: RunArchive) -> None:
    losses = {}
    for use in ("as_is", "start"):
        _, _, log = fit([replay(archive, use=use, fraction=1.0)], conv_net(5, norm=False), lr=0.0, max_duration="4ep")
        losses[use] = [float(loss) for _, loss in log.data["reuse/adversarial_replay/adversarial_loss"]]
    assert all(one > other for one, other in zip(losses["start"], losses["as_is"], strict=True))
    assert sum(losses["start"][6:]) > sum(losses["start"][:6]), "the second step on a view is stronger than the first"


def test_the_passes_of_the_attack_are_counted(archive: RunArchive) -> None:
    algorithm = replay(archive, use="start", fraction=0.5)
    train(ROWS["replay, append"], algorithm, model=HOMES["images"].still(5), max_duration="1ep")
    assert algorithm.extra_flops(10) == 10 * (N // 2) * (3 + 2), "three passes to train a row, two to attack it"


def test_an_attack_that_is_not_on_record_cannot_be_gone_on_with(archive: RunArchive, tmp_path: Any) -> None:
    other = RunArchive(tmp_path, create=True)
    run_id = record(tmp_path, "prior")
    put_deltas(other, run_id, deltas(3), meta={})
    with pytest.raises(PriorRunMismatchError, match="use: start goes on with the archived attack, .* Harvest"):
        fit([replay(other, runs=run_id, use="start")])
    _, calls, _ = fit([replay(other, runs=run_id)], max_duration="1ba")
    assert len(calls.inputs) == 2
    with pytest.raises(ValueError, match="step must be above 0, in pixel units, got 0"):
        replay(other, use={"name": "start", "step": 0.0})
    with pytest.raises(ValueError, match="reset_every must be at least 1, got 0"):
        replay(other, use={"name": "start", "reset_every": 0})


def test_beside_distillation_the_loss_is_that_of_rslad(archive: RunArchive) -> None:
    """5/6 KL(t(x) || s(x + d)) + 1/6 KL(t(x) || s(x)) on cached logits, arXiv 2108.07969, section 3.2."""
    cached = {"name": "cached", "oldest": "1dur"}
    teacher = PriorRunDistillation(archive, "older", source=cached, loss=KL(weight=1.0, temperature=1.0), when={})
    _, calls, _ = fit([replay(archive, use="start", fraction=1.0, weight=5 / 6), teacher], max_duration="2ba")
    signal = archive.run("older").signal("logits")
    for batch, (clean, _) in enumerate(calls.batches):
        target, _ = signal.gather(positions_of(clean, 0), torch.zeros(BATCH, dtype=torch.int64))
        p = target.double().softmax(1)
        terms = [
            float((p * (p.log() - out.double().log_softmax(1))).sum(1).mean())
            for out in (calls.results[2 * batch], calls.results[2 * batch + 1])
        ]
        assert float(calls.losses[batch]) == pytest.approx(terms[0] / 6 + 5 * terms[1] / 6, rel=1e-5)
