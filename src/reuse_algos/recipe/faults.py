"""Collecting everything that is wrong with a recipe before saying anything."""

from __future__ import annotations

from collections.abc import Iterator

from reuse_algos.errors import RecipeError

__all__ = ["Faults", "join"]


def join(path: str, key: object) -> str:
    """``path.key``, or just the key at the top of a recipe."""
    return f"{path}.{key}" if path else str(key)


class Faults:
    """The faults of one recipe, raised together.

    Args:
        source: the recipe's file name, or another name by which its author knows it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def add(self, path: str, what: str) -> None:
        """Note that ``path`` (dotted, empty for the whole recipe) is wrong, and how."""
        line = f"{path}: {what}" if path else what
        if line not in self._lines:
            self._lines.append(line)

    def extend(self, other: Faults) -> None:
        """Take over the faults of ``other``."""
        for line in other:
            self.add("", line)

    def raise_if_any(self) -> None:
        """Do nothing for a sound recipe.

        Raises:
            RecipeError: with the source, the number of faults and one line for each.
        """
        if self._lines:
            count = f"{len(self._lines)} error{'s' if len(self._lines) > 1 else ''}"
            raise RecipeError("\n  ".join([f"{self.source}: {count} in the recipe", *self._lines]))
