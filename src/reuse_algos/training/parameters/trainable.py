"""Which part of a model trains, and how fast. Independent of archives: it serves any pretrained model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from composer import Event, State, Time, TimeUnit
from composer.utils import dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from reuse_algos.errors import ModelError, nearest
from reuse_algos.training.outputs import plain_name, unwrap_model
from reuse_algos.training.parameters.head import find_head
from reuse_algos.training.parameters.parameter_groups import (
    add_groups,
    arrange_groups,
    check_schedulers,
    fit_schedulers,
    put_back_groups,
)
from reuse_algos.training.window import reached

_KEYWORDS = ("backbone", "head")


def plain_parameters(model: nn.Module, *, tied: bool = False) -> dict[str, nn.Parameter]:
    """Return the parameters of the user's model by plain names, without prefixes of DDP and ``torch.compile``.

    Args:
        model: The trainer's model.
        tied: List a parameter that has several names under each of them, not only under the first.
    """
    named = unwrap_model(model).named_parameters(remove_duplicate=not tied)
    return {plain_name(name): parameter for name, parameter in named}


def matches(name: str, patterns: Iterable[str], head: Collection[str]) -> bool:
    """Return whether a tensor's name matches one of several patterns.

    Args:
        name: In the model's state dict.
        patterns: In the manner of ``fnmatch``, with or without the ``module.`` that a ComposerModel puts before its
            network's names; ``head`` is the last layer and ``backbone`` everything else.
        head: Names of the head's parameters.
    """
    for pattern in patterns:
        if pattern in _KEYWORDS:
            if (name in head) == (pattern == "head"):
                return True
        elif fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix("module."), pattern):
            return True
    return False


def pattern_faults(option: str, patterns: Iterable[str], names: Collection[str], head: Collection[str]) -> list[str]:
    """Return one text for each pattern that matches no name, with the nearest that would."""
    faults = []
    for pattern in patterns:
        if not any(matches(name, [pattern], head) for name in names):
            plain = [name.removeprefix("module.") for name in names]
            folders = {name[:place] + ".*" for name in plain for place, letter in enumerate(name) if letter == "."}
            faults.append(f"{option}: {pattern!r} matches nothing in the model.{nearest(pattern, {*plain, *folders})}")
    return faults


HOW_TO_NAME_IT = (
    "Name it by a pattern of its parameters: head: {name: reset, pattern: 'fc.*'} (or keep, match) in "
    "PriorRunWarmStart, head_pattern: 'fc.*' in Freezing."
)
"""What to do where the head of a model cannot be found."""


def head_of(model: nn.Module, pattern: str | None, num_classes: int | None) -> list[str]:
    """Return the names of the head's parameters.

    Args:
        model: The trainer's model.
        pattern: What the user calls the head; None: the last layer with one output for each class.
        num_classes: None: the model's own ``num_classes``.

    Raises:
        ModelError: There is no such layer, or the number of classes is not known.
    """
    plain = unwrap_model(model)
    if pattern is not None:
        names = plain_parameters(model)
        if faults := pattern_faults("pattern of the head", [pattern], names, ()):
            raise ModelError(faults[0])
        return [name for name in names if matches(name, [pattern], ())]
    classes = getattr(plain, "num_classes", None) or num_classes
    if classes is None:
        raise ModelError(
            f"{type(plain).__name__} does not say its num_classes, so its head cannot be found. {HOW_TO_NAME_IT}"
        )
    head = find_head(plain, int(classes))
    if not head:
        raise ModelError(
            f"{type(plain).__name__} has no linear layer or 1 x 1 convolution with {classes} outputs, so its head "
            f"cannot be found. {HOW_TO_NAME_IT}"
        )
    return head


def norm_layers(model: nn.Module) -> dict[str, _NormBase]:
    """Return the normalisation layers with running statistics of the user's model, by their plain names."""
    named = unwrap_model(model).named_modules()
    return {
        plain_name(name): module
        for name, module in named
        if isinstance(module, _NormBase) and module.running_mean is not None
    }


def refuse_torn_ties(model: nn.Module, names: Collection[str], what: str) -> None:
    """Refuse a set of parameters that has one name of a tied parameter and not the other.

    Args:
        model: The trainer's model.
        names: Of parameters, or of anything else, which does not matter.
        what: What they are, for the message.

    Raises:
        ModelError: A parameter has several names, and some of them are in the set.
    """
    owners: dict[int, dict[int, list[str]]] = {}
    for path, layer in unwrap_model(model).named_modules(remove_duplicate=False):
        for key, parameter in layer.named_parameters(recurse=False):
            name = plain_name(f"{path}.{key}".removeprefix("."))
            owners.setdefault(id(parameter), {}).setdefault(id(layer), []).append(name)
    # One layer under two names is not two layers that share a parameter: either name stands for it.
    for by_layer in owners.values():
        inside = [aliases for aliases in by_layer.values() if not set(names).isdisjoint(aliases)]
        outside = [aliases[0] for aliases in by_layer.values() if aliases not in inside]
        if inside and outside:
            raise ModelError(
                f"{what} has {inside[0][0]}, which is the same parameter as {', '.join(outside)} outside of it: they "
                "cannot be treated differently. Untie them, or name all or none."
            )


def holds(name: str, layer: nn.Module, is_frozen: Callable[[str], bool]) -> bool:
    """Return whether a normalisation layer is frozen: all of its parameters, or, where it has none, its statistics."""
    own = [key for key, _ in layer.named_parameters(recurse=False)] or ["running_mean", "running_var"]
    return all(is_frozen(f"{name}.{key}") for key in own)


def frozen_at_start(state: State) -> Callable[[str], bool]:
    """Return, after INIT, which tensors do not train from the first batch on, whichever algorithm froze them.

    Returns:
        Plain name -> whether an algorithm with a :class:`TrainablePart` freezes it, or it needs no gradient.
    """
    parts = [
        part for part in (getattr(one, "part", None) for one in state.algorithms) if isinstance(part, TrainablePart)
    ]
    fixed = {name for name, one in plain_parameters(state.model, tied=True).items() if not one.requires_grad}
    return lambda name: name in fixed or any(part.is_frozen(name) for part in parts)


class TrainablePart:
    """Freezes a part of a model and gives other parts learning rates of their own, for a Composer algorithm.

    Call :meth:`arrange` at INIT, :meth:`follow` where a checkpoint may know better, :meth:`hold` at FIT_START,
    :meth:`keep_statistics` at BEFORE_FORWARD and :meth:`unfreeze_if_due` at BATCH_START, and let the algorithm's
    ``find_unused_parameters`` be :attr:`changes_while_training`.

    Frozen parameters have no gradient and are in no group of the optimizer; layers with running statistics among them
    stay in evaluation mode while the rest trains.

    Args:
        freeze: ``backbone``, ``head``, a pattern of parameter names, or a list of these; None freezes nothing.
        learning_rates: Such a pattern -> factor > 0 of the learning rate. Of several that match, the first one counts.
        unfreeze_at: Composer time at which what is frozen begins to train; None: never.
        head_pattern: What the head is, where it is not the last layer with one output for each class.
    """

    def __init__(
        self,
        *,
        freeze: str | Sequence[str] | None = None,
        learning_rates: Mapping[str, float] | None = None,
        unfreeze_at: str | int | Time | None = None,
        head_pattern: str | None = None,
    ) -> None:
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze or ())
        self.learning_rates = dict(learning_rates or {})
        self.unfreeze_at = None if unfreeze_at is None else Time.from_input(unfreeze_at, TimeUnit.EPOCH)
        self.head_pattern = head_pattern
        self.unfrozen = False
        self.frozen_share = 0.0
        self._state: State | None = None
        self._names: list[str] = []
        self._head: list[str] = []
        self._frozen: list[nn.Parameter] = []
        self._norms: list[_NormBase] = []
        self._held: list[dict[str, Any]] = []
        self._whole: list[dict[str, Any]] = []
        self._trained: list[nn.Parameter] = []

    def faults(self) -> list[str]:
        """Return what is wrong with the settings by themselves."""
        found = [
            f"learning_rates: the factor of {pattern!r} must be above 0 and finite, got {factor} (0: freeze it)"
            for pattern, factor in self.learning_rates.items()
            if not 0 < factor < float("inf")
        ]
        if self.unfreeze_at is not None and not self.freeze:
            found.append("unfreeze_at: nothing is frozen. Say what: freeze")
        return found

    @property
    def patterns(self) -> list[str]:
        """What is frozen and what has a rate of its own."""
        return [*self.freeze, *self.learning_rates]

    @property
    def changes_while_training(self) -> bool:
        """Whether frozen parameters come back: DDP must know them from the start, and must not wait for them."""
        return bool(self.freeze) and self.unfreeze_at is not None

    @property
    def holds_statistics(self) -> bool:
        """Whether layers have to be kept in evaluation mode now."""
        return bool(self._norms) and not self.unfrozen

    def acts_at(self, event: Event) -> bool:
        """Return whether this part has something to do at an event."""
        if event == Event.BEFORE_FORWARD:
            return self.holds_statistics
        if event == Event.BATCH_START:
            return self.changes_while_training and not self.unfrozen
        return event in (Event.INIT, Event.FIT_START)

    def is_frozen(self, name: str) -> bool:
        """Return whether the tensor of this name belongs to the part that is frozen at the start."""
        return matches(name, self.freeze, self._head)

    def arrange(self, state: State, *, now: bool = True) -> None:
        """Split the optimizer's groups, and take frozen parameters out (INIT).

        Args:
            state: Of the trainer.
            now: Without it everything trains, unless a checkpoint says otherwise (:meth:`follow`). Default: True.

        Raises:
            ModelError: A pattern matches nothing, the head cannot be found, nothing is left to train, or another
                algorithm arranges the groups, too.
        """
        self._state = state
        # An algorithm may have served another Trainer, whose parameters must be forgotten.
        self.unfrozen, self.frozen_share = False, 0.0
        self._names, self._head, self._frozen, self._norms, self._held = [], [], [], [], []
        self._whole, self._trained = [], []
        patterns = self.patterns
        if not patterns or not now:
            return
        self._refuse_another(state)
        parameters = plain_parameters(state.model)
        self._names = list(parameters)
        if self.head_pattern is not None or set(patterns) & set(_KEYWORDS):
            self._head = head_of(state.model, self.head_pattern, None)
            refuse_torn_ties(state.model, self._head, "the head")
        faults = pattern_faults("freeze", self.freeze, parameters, self._head)
        faults += pattern_faults("learning_rates", self.learning_rates, parameters, self._head)
        if faults:
            raise ModelError("\n".join(faults))
        self._frozen = [parameter for name, parameter in parameters.items() if self.is_frozen(name)]
        factors = {}
        for name, parameter in parameters.items():
            chosen = [factor for p, factor in self.learning_rates.items() if matches(name, [p], self._head)]
            if chosen:
                factors[parameter] = chosen[0]
        self._whole = [{**group, "params": list(group["params"])} for group in state.optimizers[0].param_groups]
        self._trained = [parameter for parameter in self._frozen if parameter.requires_grad]
        self._held = arrange_groups(state.optimizers[0], factors, self._frozen)
        self._refuse_lost(parameters)
        self._norms = [layer for name, layer in norm_layers(state.model).items() if holds(name, layer, self.is_frozen)]
        total = sum(parameter.numel() for parameter in parameters.values())
        self.frozen_share = sum(parameter.numel() for parameter in self._frozen) / total
        if not self.changes_while_training:
            self._stop_gradients()  # before DDP looks at the model: it waits for what requires a gradient then

    def hold(self, state: State) -> None:
        """Check that schedulers and other algorithms left the arrangement as it was (FIT_START).

        Raises:
            ModelError: They did not.
        """
        if not self._names:
            return
        if list(plain_parameters(state.model)) != self._names:
            raise ModelError(
                "another algorithm changed the model's parameters after freeze and learning_rates were worked out. "
                "List it before this one."
            )
        will_grow = self.changes_while_training and not self.unfrozen and bool(self._held)
        check_schedulers(state.optimizers[0], state.schedulers, will_grow=will_grow)
        # Only now that DDP is made: it leaves out parameters that need no gradient, and would miss them later.
        if self.changes_while_training and not self.unfrozen:
            self._stop_gradients()

    def keep_statistics(self, state: State) -> None:
        """Let frozen normalisation layers use their statistics and leave them as they are (BEFORE_FORWARD)."""
        # At every forward pass: Composer puts the whole model into training mode after each evaluation.
        if self.holds_statistics and state.model.training:
            for module in self._norms:
                module.eval()

    def unfreeze_if_due(self, state: State) -> bool:
        """Let everything train once ``unfreeze_at`` has come, and return whether that was now (BATCH_START)."""
        if self.unfreeze_at is None or not self.freeze or self.unfrozen or not reached(state, self.unfreeze_at):
            return False
        self._unfreeze(state)
        for module in self._norms:
            module.train(state.model.training)
        return True

    def follow(self, arranged: bool) -> None:
        """Let a resumed run train what its first part trained, whatever was found at INIT this time.

        Call it while a checkpoint is loaded: Composer loads the optimizer's groups after the algorithms.

        Args:
            arranged: Whether the first part froze anything or had rates of its own.

        Raises:
            ModelError: On several ranks, where DDP has fixed what trains at INIT.
        """
        state = self._state
        if state is None or not self.patterns or arranged == bool(self._names):
            return
        if dist.get_world_size() > 1:
            raise ModelError(
                f"the checkpoint's run {'had' if arranged else 'found no'} prior runs, and the archive "
                f"{'has none' if arranged else 'has some'} now. On several ranks what trains is fixed before a "
                "checkpoint is read. Resume with the archive as it was, or with runs that match "
                f"{'them' if arranged else 'nothing'}."
            )
        if arranged:
            self.arrange(state)
        else:
            for parameter in self._trained:
                parameter.requires_grad_(True)
            put_back_groups(state.optimizers[0], self._whole)
            self.arrange(state, now=False)
        fit_schedulers(state.optimizers[0], state.schedulers)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the frozen part trains by now."""
        return {"unfrozen": self.unfrozen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the optimizer's groups to where they were, which Composer loads after the algorithms."""
        if state["unfrozen"] and not self.unfrozen and self._state is not None:
            self._unfreeze(self._state)

    def _refuse_another(self, state: State) -> None:
        for one in state.algorithms:
            part = getattr(one, "part", None)
            if isinstance(part, TrainablePart) and part is not self and part.patterns:
                raise ModelError(
                    f"{type(one).__name__} and another algorithm both have freeze or learning_rates, and would split "
                    "the optimizer's groups one after the other. Give these options to one of them."
                )

    def _refuse_lost(self, parameters: Mapping[str, nn.Parameter]) -> None:
        # What thaws must go back into the optimizer's groups, so it must have been in them.
        held = {id(parameter) for group in self._held for parameter in group["params"]}
        lost = [name for name, one in parameters.items() if self.is_frozen(name) and id(one) not in held]
        if lost and self.changes_while_training:
            raise ModelError(
                f"unfreeze_at: {', '.join(lost[:3])} would train, and the optimizer does not have all of this. Give it "
                "all parameters of the model; an optimizer that has served another Trainer may have lost some."
            )

    def _stop_gradients(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None

    def _unfreeze(self, state: State) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        add_groups(state.optimizers[0], self._held, state.schedulers)
        self.unfrozen, self.frozen_share = True, 0.0
