"""One HTML file that explains itself: no network, light and dark, on a phone and on paper.

Pages are Jinja2 templates beside this file that extend ``layout.html.j2``; every text that reaches them is escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from reuse_algos.compare.result import json_safe
from reuse_algos.compare.show.files import PAGES, write_file
from reuse_algos.compare.show.page.provenance import used_words
from reuse_algos.compare.show.page.svg import sign_of
from reuse_algos.compare.show.page.values import visible


def render(template: str, data: Mapping[str, Any], **view: Any) -> str:
    """Return a page that loads nothing, from nowhere.

    Args:
        template: Name of the template, such as ``page``.
        data: What its element ``report-data`` holds as JSON.
        view: What the template needs.
    """
    style, script = _resource("style.css"), _resource("script.js")
    return (
        _environment()
        .get_template(template)
        .render(
            view,
            data=embedded_json(data),
            style=Markup(style),
            script=Markup(script),
            # Nothing may be loaded from anywhere, and only this style and this script apply.
            policy=f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
            "base-uri 'none'; form-action 'none'",
        )
    )


def embedded_json(data: Mapping[str, Any]) -> Markup:
    """Return data as JSON that can stand in an element of a page, from which no text in it can break out.

    Numbers that are not finite become null.
    """
    written = json.dumps(json_safe(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # JSON does not ask for it, but neither </script> nor <!-- may stand there; any JSON parser gives these back.
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)


def write_report(page: str, path: Path) -> Path:
    """Write a page to a file.

    Raises:
        CompareError: The name does not end in .html or .htm, or the file cannot be written.
    """
    return write_file(path, PAGES, lambda where: where.write_text(page, encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: _resource(f"{name}.html.j2")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Plain text is shown with its hidden characters; what is markup already was made by this package.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.globals.update(sign_of=sign_of, used=used_words)
    return environment


def _resource(name: str) -> str:
    return (resources.files("reuse_algos.compare.show.page") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
