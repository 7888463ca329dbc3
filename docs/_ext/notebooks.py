"""A Sphinx extension that shows Jupyter notebooks as they are stored, through the Markdown parser that is there anyway.

It runs nothing: ``tests/test_docs.py`` executes the notebook's cells. The usual extensions bring IPython, whose
requirements contradict those of Composer's command line.
"""

from __future__ import annotations

import json
from typing import Any

from sphinx.application import Sphinx

__all__ = ["markdown_of", "setup"]


def markdown_of(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook (its JSON) as one Markdown text, each output behind its code."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(part for part in parts if part)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).strip()
        return f'<img alt="The plot that this cell draws" src="data:image/png;base64,{picture}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        source[0] = markdown_of(json.loads(source[0]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the suffix ``.ipynb``."""
    app.add_source_suffix(".ipynb", "markdown")
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
