"""The ids of a batch as keys of examples.

Shapes: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reuse_algos.data.info import key_of_path
from reuse_algos.errors import ExampleIdError

ID, VIEW = "id", "view"
"""Where this library's streams put the key and the view number of a sample."""


def key_of_id(value: Any) -> int:
    """Return the key of one id: a whole number as it is, 8 bytes of blake2b of a text.

    Raises:
        ExampleIdError: It is neither.
    """
    if isinstance(value, str):
        return key_of_path(value)
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point()):
        number = int(value)
        if -(1 << 63) <= number < 1 << 63:
            return number
    raise ExampleIdError(f"the id of an example must be a whole number of 64 bits or a text, not {value!r:.80}")


def keys_of_ids(values: Any) -> Tensor:
    """Return the keys of the ids of a batch: int64 ``[B]`` on the CPU.

    Args:
        values: A tensor or array of whole numbers, or a list of whole numbers or texts.

    Raises:
        ExampleIdError: There are other values among them.
    """
    if isinstance(values, Tensor | np.ndarray):
        numbers = torch.as_tensor(values).detach().cpu().reshape(-1)
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise ExampleIdError(f"ids must be whole numbers or texts, not {numbers.dtype}")
        return numbers.to(torch.int64)
    listed = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    return torch.tensor([key_of_id(value) for value in listed], dtype=torch.int64)
