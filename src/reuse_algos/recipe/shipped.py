"""The recipes that come with the library."""

from __future__ import annotations

from pathlib import Path

import reuse_algos
from reuse_algos.errors import RecipeError, nearest

__all__ = ["shipped_recipe"]


def shipped_recipe(name: str) -> Path:
    """Return the path of a file that comes with the library, such as ``digits/baseline``.

    Raises:
        RecipeError: There is none of this name.
    """
    package = Path(reuse_algos.__file__).parent
    roots = [root for root in (package / "yamls", package.parents[1] / "yamls") if root.is_dir()]
    for root in roots:
        if (found := root / f"{name}.yaml").is_file():
            return found
    known = [str(path.relative_to(root).with_suffix("")) for root in roots for path in root.rglob("*.yaml")]
    raise RecipeError(f"no recipe {name!r} comes with the library.{nearest(name, known)}")
