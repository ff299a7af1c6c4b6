"""Every page of the built site in a browser, on a phone and on a desktop: SITE=site pytest tests/test_site.py, after mkdocs build."""

import os
from pathlib import Path

import pytest

PHONE, DESKTOP, SMALLEST = 390, 1280, 9  # pixels: two screens, and the smallest text

FAULTS = """() => {
  const article = document.querySelector("article"), faults = [], screen = innerWidth;
  const parents = e => { const all = []; for (; e && e !== article.parentElement; e = e.parentElement) all.push(e); return all; };
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const shown = e => e.textContent.trim().slice(0, 50);
  if (document.scrollingElement.scrollWidth > screen) faults.push(`the page scrolls sideways: ${document.scrollingElement.scrollWidth}`);
  for (const e of article.querySelectorAll("*:not(svg *):not(math *)")) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!box.width || !box.height || style.position === "absolute" || e.closest(".md-clipboard, .md-code__nav")) continue;
    const over = parents(e.parentElement).some(scrolls);
    if (!over && box.right > screen + 0.5) faults.push(`${e.tagName} is wider than the screen: ${shown(e)}`);
    if (!over && /hidden|clip/.test(style.overflowX) && e.scrollWidth > e.clientWidth + 1) faults.push(`${e.tagName} is cut: ${shown(e)}`);
    if (e.tagName === "IMG" && !(box.width > 0.69 * Math.min(e.naturalWidth, 1e4))) faults.push(`${e.src} is shrunk to ${box.width}`);
  }
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT), small = {};
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, svg = e.closest("svg");
    if (!texts.currentNode.textContent.trim() || e.closest("script, style, title, desc, metadata, annotation, .headerlink")) continue;
    if (!e.getClientRects().length) continue;
    const wide = svg && svg.viewBox.baseVal ? svg.viewBox.baseVal.width : 0;
    const size = parseFloat(getComputedStyle(e).fontSize) * (wide ? svg.getBoundingClientRect().width / wide : 1);
    if (size < SMALLEST) small[`${e.tagName} of ${size.toFixed(1)} pixels: ${shown(e)}`] = 1;
  }
  return [...faults, ...Object.keys(small)];
}""".replace("SMALLEST", str(SMALLEST - 0.05))

WIDE_CODE = """() => [...document.querySelectorAll("article pre > code")].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.split("\\n").reduce((a, b) => a.length > b.length ? a : b)).filter(line => line.length <= 140)"""


@pytest.fixture(scope="module")
def site():
    if "SITE" not in os.environ:
        pytest.skip("no built site here, expected its folder in SITE: mkdocs build --site-dir site, then SITE=site")
    return Path(os.environ["SITE"]).resolve()


def test_in_a_browser_every_block_of_every_page_can_be_read_on_a_phone_and_code_fits_on_a_desktop(site, browser):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    page, faults = browser.new_page(), []
    page.route("**/search_index.js", lambda route: route.abort())  # 3 MB of it, on every page
    for file in pages:
        name = file.relative_to(site).as_posix()
        page.set_viewport_size({"width": PHONE, "height": 844})
        page.goto(file.as_uri(), wait_until="domcontentloaded", timeout=120_000)
        page.evaluate("() => Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
        page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        faults += [f"{name} at {PHONE}: {fault}" for fault in page.evaluate(FAULTS)]
        page.set_viewport_size({"width": DESKTOP, "height": 844})
        if not name.startswith("api/"):  # whose code is indented
            faults += [f"{name} at {DESKTOP}, {len(line)} characters: {line}" for line in page.evaluate(WIDE_CODE)]
    assert not faults, "\n".join(faults)


def test_in_a_browser_the_site_is_searched_from_its_folder(site, browser):
    page = browser.new_page()
    page.goto((site / "backward" / "matmul.html").as_uri(), wait_until="domcontentloaded")
    page.click(".md-search__input")
    page.keyboard.type("residual stream", delay=30)
    page.locator(".md-search-result__link").first.wait_for(timeout=60_000)
    found = [link.get_attribute("href") for link in page.locator(".md-search-result__link").all()]
    assert any("glossary" in link or "07-layer-norm" in link for link in found), found
