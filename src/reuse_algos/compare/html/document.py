"""The page around the sections: one file that loads nothing, with its data, its style and its script inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from reuse_algos.compare.html.markup import Child, Html, el, join
from reuse_algos.compare.results import json_safe
from reuse_algos.errors import CompareError

__all__ = ["FILE_TYPES", "FOOTER", "Section", "check_report_path", "document", "embedded_json", "write_report"]

FILE_TYPES = ("html", "htm")

FOOTER = "Made by reuse-algos. All numbers are in this file as JSON, in the element report-data."


@dataclass(frozen=True)
class Section:
    """A part of the page with a title, to which the page's menu leads.

    Attributes:
        anchor: its id.
        title: its heading, and its name in the menu.
        body: what it shows.
    """

    anchor: str
    title: str
    body: Child


def _resource(name: str) -> str:
    return (resources.files("reuse_algos.compare.html") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded_json(data: Mapping[str, Any]) -> Html:
    """Data as JSON in an element of the page, from which no text in it can break out.

    Numbers that are not finite become null. Other than the JSON grammar asks, ``<``, ``>`` and ``&`` are escaped as
    well, so that neither ``</script>`` nor ``<!--`` can stand there; any JSON parser gives them back.
    """
    written = json.dumps(json_safe(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return el("script", Html(written), type_="application/json", id="report-data")


def document(
    *, title: str, headline: Child, lead: Child, sections: Sequence[Section], data: Mapping[str, Any], footer: Child
) -> str:
    """The whole page.

    Args:
        title: of the window.
        headline: the verdict in a few words.
        lead: what was asked.
        sections: in order.
        data: what the page shows, for programs.
        footer: the last line.
    """
    style, script = _resource("style.css"), _resource("script.js")
    # Nothing may be loaded from anywhere, and only this style and this script apply.
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name_="color-scheme", content="light dark"),
        el("meta", name_="referrer", content="no-referrer"),
        el("link", rel="icon", href="data:,"),  # else a browser asks the server for one
        el("title", title),
        el("style", Html(style)),
    )
    menu = [el("li", el("a", section.title, href=f"#{section.anchor}")) for section in sections]
    body = el(
        "body",
        el("a", "Skip to the verdict", href="#main", class_="skip"),
        el("header", el("p", "Run comparison", class_="eyebrow"), el("h1", headline), lead, class_="top"),
        el("nav", el("ul", *menu), aria_label="Sections"),
        el("main", *(_section(section) for section in sections), id="main", tabindex=-1),
        el("footer", footer),
        el("div", id="tip", role="tooltip", hidden=True),
        embedded_json(data),
        el("script", Html(script)),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _section(section: Section) -> Html:
    heading = el("h2", section.title, id=f"{section.anchor}-title")
    return join([el("section", heading, section.body, id=section.anchor, aria_labelledby=f"{section.anchor}-title")])


def check_report_path(path: Path) -> None:
    """Refuse a name that no browser would open as a page, before any work is done.

    Raises:
        CompareError: the extension is not one of :data:`FILE_TYPES`, or the folder does not exist.
    """
    if path.suffix.lower().removeprefix(".") not in FILE_TYPES:
        raise CompareError(f"a report cannot be written as {path.name!r}: end the name in .{' or .'.join(FILE_TYPES)}")
    if not path.parent.is_dir():
        raise CompareError(f"the report cannot be written to {path}: there is no folder {path.parent}")


def write_report(page: str, path: Path) -> Path:
    """Write a page to a file.

    Raises:
        CompareError: as :func:`check_report_path`; or the file cannot be written.
    """
    check_report_path(path)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CompareError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    return path
