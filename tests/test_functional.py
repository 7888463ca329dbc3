"""Every pure function of ``reuse_algos.functional`` has an example, and the examples say the truth."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from reuse_algos import functional
from reuse_algos.algorithms.history_curriculum.plans import candidates
from reuse_algos.data.images.pixels import PixelSpace
from reuse_algos.training.attacks import Attack


@pytest.mark.parametrize("name", functional.__all__)
def test_the_example_of_each_function(name: str) -> None:
    text = getattr(functional, name).__doc__
    known = {one: getattr(functional, one) for one in functional.__all__}
    known |= {"torch": torch, "np": np, "candidates": candidates, "Attack": Attack, "PixelSpace": PixelSpace}
    example = doctest.DocTestParser().get_doctest(text, known, name, None, None)
    assert example.examples, "an example is missing"
    found: list[str] = []
    doctest.DocTestRunner().run(example, out=found.append)
    assert not found, "".join(found)
