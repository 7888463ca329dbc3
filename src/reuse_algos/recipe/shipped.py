"""The recipes that come with the library."""

from __future__ import annotations

from pathlib import Path

import reuse_algos
from reuse_algos.errors import RecipeError, nearest


def recipe_path(text: str) -> Path:
    """Return the file that a command line names: a YAML file, or the name of one that comes with the library.

    Args:
        text: Such as ``mine.yaml`` or ``digits/baseline``.

    Raises:
        RecipeError: It does not end with ``.yaml`` or ``.yml``, and none of this name comes with the library.
    """
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return Path(text)
    try:
        return shipped_recipe(text)
    except RecipeError as error:
        raise RecipeError(f"{error} A file's name ends with .yaml.") from error


def shipped_recipe(name: str) -> Path:
    """Return the path of a file that comes with the library, such as ``digits/baseline``.

    Raises:
        RecipeError: There is none of this name.
    """
    package = Path(reuse_algos.__file__).parent
    # A wheel has the files inside of the package, a checkout beside src.
    roots = [root for root in (package / "yamls", package.parents[1] / "yamls") if root.is_dir()]
    for root in roots:
        if (found := root / f"{name}.yaml").is_file():
            return found
    known = [str(path.relative_to(root).with_suffix("")) for root in roots for path in root.rglob("*.yaml")]
    raise RecipeError(f"no recipe {name!r} comes with the library.{nearest(name, known)}")
