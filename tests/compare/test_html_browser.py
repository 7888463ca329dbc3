"""The report in a real browser. Skipped where there is none."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from compare.reports import HOSTILE, budgets, plain
from reuse_algos.archive import RunArchive
from reuse_algos.compare.show.page import report_page, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KINDS = ("plain", "budgets")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as started:
        # Without its sandbox, which containers do not allow; the only pages are those made here.
        instance = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield instance
        instance.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    comparison, selection = plain(RunArchive(folder / "archive", create=True))
    write_report(report_page(comparison, selection), folder / "plain.html")
    over_budgets, outcomes = budgets()
    write_report(report_page(over_budgets, outcomes), folder / "budgets.html")
    (folder / "json").mkdir()
    (folder / "json" / "plain.json").write_text(json.dumps(comparison.to_dict()))
    (folder / "json" / "budgets.json").write_text(json.dumps(over_budgets.to_dict()))
    return folder


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Any]:
    """Opens a report; in the end nothing may have been complained about, and nothing loaded."""
    contexts, complaints, requests = [], [], []

    def open_page(
        kind: str, *, width: int = 1000, height: int = 800, url: str | None = None, folded: bool = False, **options: Any
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        url = url or f"file://{folder}/{kind}.html"
        page.goto(url)
        while url in requests:
            requests.remove(url)
        if not folded and options.get("java_script_enabled", True):
            page.evaluate("for (const details of document.querySelectorAll('details.fold')) details.open = true")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if url != "data:,"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_values_on_the_page_equal_the_json(visit: Any, folder: Path, kind: str) -> None:
    page = visit(kind)
    embedded = page.evaluate("JSON.parse(document.getElementById('report-data').textContent)")
    assert embedded["comparison"] == json.loads((folder / "json" / f"{kind}.json").read_text())
    counted = page.evaluate(
        """() => {
          const data = JSON.parse(document.getElementById('report-data').textContent);
          const look = (where) => where.split('/').slice(1)
            .reduce((node, part) => node[part.replaceAll('~1', '/').replaceAll('~0', '~')], data);
          const found = [...document.querySelectorAll('[data-json]')];
          const wrong = found.filter((e) => JSON.parse(e.value ?? e.dataset.value) !== look(e.dataset.json));
          return [found.length, wrong.length];
        }"""
    )
    assert counted[0] > 300
    assert counted[1] == 0
    assert page.title().startswith("distilled is faster than baseline")
    assert page.locator("h1").inner_text() == page.title()


@pytest.mark.parametrize("kind", KINDS)
def test_marks_stand_where_their_values_belong(visit: Any, kind: str) -> None:
    """On each axis, places are a straight line through the values (through their logarithms on a logarithmic one)."""
    page = visit(kind)
    rows = page.evaluate(
        """() => {
          const data = JSON.parse(document.getElementById('report-data').textContent);
          const look = (where) => where.split('/').slice(1).reduce((node, part) => node[part], data);
          const area = document.querySelector('#curves .panel:not([hidden]) svg.area');
          return [...area.querySelectorAll('.mark')].map((mark) => {
            const ring = mark.querySelector('.ring').getBoundingClientRect();
            const where = mark.dataset.json;
            const x = /^.(charts|pareto)/.test(where) ? look(where.replace('/y/', '/x/'))
              : where.includes('points') ? look(where.replace('final/estimate', 'costs/cost_seconds')) : null;
            return [x, Number(mark.dataset.value), ring.x + ring.width / 2, ring.y + ring.height / 2];
          }).filter((row) => row[0] !== null);
        }"""
    )
    assert len(rows) > 10
    import numpy as np

    x, y, left, top = np.array(rows, dtype=float).T
    if kind == "budgets":
        x = np.log(x)
    for value, place, sign in ((x, left, 1), (y, top, -1)):
        slope, start = np.polyfit(value, place, 1)
        assert slope * sign > 0
        np.testing.assert_allclose(place, slope * value + start, atol=0.6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [320, 360, 768, 1400])
def test_the_page_is_never_wider_than_the_screen(visit: Any, kind: str, width: int) -> None:
    page = visit(kind, width=width)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    tabs = page.locator("[role=tab]")
    for k in range(tabs.count()):
        tabs.nth(k).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Whatever is wider stands in a box of its own that can be scrolled, by keyboard as well.
    boxes = page.locator(".scroll, pre").evaluate_all("all => all.filter((e) => e.scrollWidth > e.clientWidth)")
    assert boxes or width > 1000
    assert all(page.locator(".scroll, pre").evaluate_all("all => all.map((e) => e.tabIndex === 0)"))


def test_texts_of_a_plot_keep_their_size_on_a_phone(visit: Any) -> None:
    page = visit("plain", width=360)
    heights = page.locator("#curves .panel:not([hidden]) svg text").evaluate_all(
        "all => all.filter((e) => getComputedStyle(e).display !== 'none').map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 10
    boxes = page.locator("#curves .panel:not([hidden]) svg.area text").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect()).filter((b) => b.width).map((b) => [b.left, b.right])"
    )
    assert all(left_of_next > right for (_, right), (left_of_next, _) in pairwise(boxes))


CONTRAST = """() => {
  const part = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const texts = [], signs = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility() || e.closest('script')) continue;
    const style = getComputedStyle(e);
    texts.push([ratio(parse(e.closest('svg') ? style.fill : style.color), ground(e)), e.outerHTML.slice(0, 80)]);
  }
  for (const e of document.querySelectorAll('path.shape, line.whisker, line.level, polyline.line:not(.thin)')) {
    const style = getComputedStyle(e);
    const drawn = e.matches('path') && !e.closest('.hollow, .control') ? style.fill : style.stroke;
    signs.push([ratio(parse(drawn), ground(e)), e.outerHTML.slice(0, 80)]);
  }
  return { texts, signs, page: getComputedStyle(document.body).backgroundColor };
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_contrast_in_light_and_dark(visit: Any, kind: str) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what a plot draws."""
    pages = {}
    for scheme in ("light", "dark"):
        page = visit(kind, color_scheme=scheme)
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        found = page.evaluate(CONTRAST)
        assert len(found["texts"]) > 200
        assert len(found["signs"]) > 50
        assert [text for text in found["texts"] if text[0] < 4.5] == []
        assert [sign for sign in found["signs"] if sign[0] < 3.0] == []
        pages[scheme] = found["page"]
    assert pages == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}


@pytest.mark.parametrize("kind", KINDS)
def test_pointing_at_a_mark_shows_its_value(visit: Any, kind: str) -> None:
    page = visit(kind)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    marks = page.locator("#curves .panel:not([hidden]) .mark")
    mark = marks.nth(marks.count() // 2)
    mark.scroll_into_view_if_needed()
    box = mark.locator(".ring").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    assert tip.is_visible()
    # The nearest mark is shown, which may be another at the same place.
    shown = page.locator(".mark.on")
    assert shown.count() == 1
    assert f"{float(shown.get_attribute('data-value')):.4f}" in tip.inner_text()
    assert tip.inner_text().replace("\n", ", ") == shown.get_attribute("aria-label")
    page.mouse.move(2, 2)
    assert not tip.is_visible()


def test_tapping_a_mark_shows_its_value(visit: Any) -> None:
    page = visit("budgets", width=360, has_touch=True, is_mobile=True)
    mark = page.locator("#curves .panel:not([hidden]) .mark").nth(1)
    mark.scroll_into_view_if_needed()
    box = mark.locator(".ring").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.is_visible()
    place = tip.bounding_box()
    assert place["x"] >= 0
    assert place["x"] + place["width"] <= 360
    page.locator("h2").first.tap()
    assert not tip.is_visible()


def test_the_keyboard_reaches_every_value(visit: Any) -> None:
    page = visit("budgets")
    area = page.locator("#curves .panel:not([hidden]) .area")
    marks = area.locator(".mark")
    assert marks.evaluate_all("all => all.filter((e) => e.tabIndex === 0).length") == 1
    page.locator("#curves [role=tab][aria-selected=true]").focus()
    page.keyboard.press("Tab")
    tip = page.locator("#tip")
    assert tip.inner_text().startswith("baseline, 5ep (n=3)")
    for key, name in (
        ("ArrowRight", "baseline, 10ep"), ("End", "baseline, 40ep"), ("ArrowRight", "baseline, 40ep"),
        ("Home", "baseline, 5ep"), ("ArrowLeft", "baseline, 5ep"), ("ArrowUp", "untrained teacher, 5ep"),
        ("ArrowDown", "baseline, 5ep"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert tip.inner_text().startswith(name), key
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(name)
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.keyboard.press("Tab")  # leaves the plot: it is one stop
    assert not area.evaluate("e => e.contains(document.activeElement)")


def test_tabs_change_the_axis_of_all_plots(visit: Any) -> None:
    page = visit("budgets")
    first = page.locator("#speedup [role=tab]").first
    first.focus()
    assert first.get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    for section in ("speedup", "curves", "pareto"):
        shown = page.locator(f"#{section} [role=tabpanel]:visible")
        assert shown.count() == 1
        assert shown.get_attribute("data-key") == "steps"
        assert page.locator(f"#{section} [aria-selected=true]").inner_text() == "Steps"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#pareto [role=tabpanel]:visible").get_attribute("data-key") == "cost_seconds"


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_screen_is_light_and_a_link_opens_the_rest(visit: Any, kind: str) -> None:
    """Verdict, picture and one table, which all fit on 1,200 pixels without being pushed aside."""
    page = visit(kind, width=1200, folded=True)
    assert page.locator("section:not(:has(> details.fold))").evaluate_all("all => all.map((e) => e.id)") == [
        "verdict",
        "curves",
        "figures",
    ]
    shown = page.locator(".scroll").evaluate_all(
        "all => all.filter((e) => e.checkVisibility()).map((e) => [e.scrollWidth, e.clientWidth])"
    )
    assert len(shown) == 1
    assert shown[0][0] <= shown[0][1]
    notes = page.locator("#notes .notes")
    assert not notes.is_visible()
    page.locator("nav a[href='#notes']").click()
    assert notes.is_visible()


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_is_one_click_away(visit: Any, kind: str) -> None:
    page = visit(kind)
    runs = page.locator("details.run")
    links = page.locator("#runs table a")
    assert links.count() == runs.count() > 10
    run = page.locator("details.run", has_text="prior_run_distillation").first
    recipe = run.locator("pre")
    assert not recipe.is_visible()
    run.locator("summary").click()
    assert recipe.is_visible()
    assert "max_duration: 20ep" in recipe.inner_text()
    for expected in ("0123456789abcdef", "torch 2.7.0", "A100", "used share of harvests", "training", "set-up"):
        assert expected in run.inner_text(), expected
    last = links.last
    last.click()
    assert runs.last.evaluate("e => e.open")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scripts", [True, False])
def test_paper_has_everything(visit: Any, kind: str, scripts: bool) -> None:
    """Also without scripts: then the closed parts are opened by the style sheet."""
    page = visit(kind, java_script_enabled=scripts, color_scheme="dark", folded=True)
    page.emulate_media(media="print", color_scheme="dark")
    hidden = page.locator("pre, .run-body, .panel, .reading p, details table").evaluate_all(
        "all => all.filter((e) => !e.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert hidden == 0
    assert page.locator("nav").is_visible() is False
    assert page.locator(".tabs:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    boxes = page.locator("pre, .scroll").evaluate_all("all => all.map((e) => getComputedStyle(e).overflowX)")
    assert set(boxes) == {"visible"}
    if scripts:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
    assert len(page.pdf()) > 50_000


@pytest.mark.parametrize("kind", KINDS)
def test_without_scripts_all_is_there(visit: Any, kind: str) -> None:
    page = visit(kind, java_script_enabled=False)
    folds = page.locator("details.fold > summary")
    assert folds.count() >= 4
    for k in range(folds.count()):  # a browser opens them by itself
        folds.nth(k).click()
    panels = page.locator(".panel")
    assert panels.count() > 3
    assert all(panels.nth(k).is_visible() for k in range(panels.count()))
    assert page.locator(".mark title").count() == page.locator(".mark").count() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_names_from_an_archive_do_nothing(visit: Any, kind: str) -> None:
    page = visit(kind)
    assert page.title() != "owned"
    assert page.locator("script").count() == 2
    named = page.locator("#verdict .name", has_text="document.title='owned'")
    assert named.inner_text() == HOSTILE.replace("\u202e", "\\u202e")


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_sees_one_request(visit: Any, folder: Path, kind: str) -> None:
    seen = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        page = visit(kind, url=f"http://127.0.0.1:{server.server_port}/{kind}.html")
        page.locator("[role=tab]").last.click()
        page.locator("#runs table a").first.click()
        page.wait_for_timeout(200)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert seen == [f"/{kind}.html"]
