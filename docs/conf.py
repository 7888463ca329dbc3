"""Settings of Sphinx for the documentation: ``make docs`` builds it into ``docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import reuse_algos  # noqa: E402  (the path above comes first, so that these pages are of this tree)

project = "reuse_algos"
author = "the reuse_algos contributors"
copyright = "2026, the reuse_algos contributors"
release = version = reuse_algos.__version__

extensions = [
    "myst_parser",
    "notebooks",  # ours: shows .ipynb files with the outputs that are stored in them, and runs nothing
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a dataclass documents its fields in "Attributes:", and autodoc would list them once more

html_theme = "furo"
html_title = f"reuse_algos {release}"
html_show_sourcelink = False
html_theme_options = {
    "source_repository": "https://github.com/reuse-algos/reuse-algos/",
    "source_branch": "main",
    "source_directory": "docs/",
}
