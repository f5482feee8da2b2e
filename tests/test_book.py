"""The book as a reader has it: built with the network cut, looked at in Chromium."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, chromium, complaints, outside, size

from zolab import chapters
from zolab.lab import claims, pages
from zolab.lab.same import same

ROOT = Path(__file__).parent.parent
CHAPTERS = chapters.find(ROOT / "notebooks")
LOOKED_UP = ["index", "ledger", "status", "teach", "notation", "glossary"]
LOOKED_UP += ["bibliography", "design"]
PAGES = [f"book/{name}" for name in LOOKED_UP]
PAGES += [
    f"book/recipes/{p.stem}" for p in sorted((ROOT / "book/recipes").glob("*.md"))
]
PAGES += [f"notebooks/{c.path.stem}" for c in CHAPTERS.values()]

# A build that reaches for another machine fails.
CUT = """
import socket, sys
def refuse(*_):
    raise OSError("the book must build without a network")
socket.socket.connect = socket.getaddrinfo = refuse
from jupyter_book.cli.main import main
main()
"""


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("book")
    options = ["--config", "book/_config.yml", "--toc", "book/_toc.yml"]
    done = subprocess.run(
        [sys.executable, "-c", CUT, "build", ".", "--path-output", str(out), *options,
         "--all", "--warningiserror", "--keep-going"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    lines = [x for x in done.stderr.splitlines() if "WARNING" in x or "rror" in x]
    assert done.returncode == 0, "\n".join(lines) or done.stderr[-3000:]
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    with chromium() as driver:
        yield driver


def visit(browser, html: Path, page: str, at: tuple[int, int]) -> None:
    complaints(browser), outside(browser)
    size(browser, *at)
    browser.get((html / f"{page}.html").as_uri())
    browser.execute_async_script(
        "const done = arguments[0], m = window.MathJax;"
        "(m && m.startup ? m.startup.promise : Promise.resolve()).then(() => done())"
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_at_a_desk_and_on_a_phone(html, browser, page):
    for at in (DESKTOP, PHONE):
        visit(browser, html, page, at)
        assert complaints(browser) == []
        assert outside(browser) == []
        wide, broken, raw, mute, hidden, bare = browser.execute_script(
            "const all = (s) => [...document.querySelectorAll(s)];"
            "const left = (e) => e.getBoundingClientRect().left;"
            "return [document.documentElement.scrollWidth,"
            " all('img').filter(i => i.complete && !i.naturalWidth).map(i => i.src),"
            " all('mjx-merror').map(e => e.textContent),"
            " all('article img').map(i => i.alt).filter(a => a.split(' ').length < 5),"
            " all('mjx-container[display]').filter(e => left(e) < 0).length,"
            " all('.bd-article table.table td').filter(e => !('head' in e.dataset))"
            "   .length]"
        )
        assert wide <= at[0], "scrolls sideways"
        assert broken == [] and raw == []
        assert mute == [], "a picture that says no finding; Sphinx fills in its path"
        assert hidden == 0, "an equation begins left of the page, out of reach"
        assert bare == 0, "a cell that does not say its column on a phone"
    assert violations(browser) == []


def violations(browser) -> list[str]:
    """What axe finds in the article: contrast, names, alternatives, order."""
    from axe_core_python.base import AXE_FILE_PATH

    browser.execute_script(Path(AXE_FILE_PATH).read_text("utf-8"))
    found = browser.execute_async_script(
        "axe.run('article').then(r => arguments[0](r.violations))"
    )
    return [
        f"{v['id']}: {n['html'][:120]} {n['failureSummary']}"
        for v in found
        for n in v["nodes"]
        if 'class="citation' not in n["html"]  # docutils' roles, since deprecated
    ]


def test_equations_are_drawn(html, browser):
    for chapter in CHAPTERS.values():
        source = "\n".join(chapter.texts())
        numbers = set(re.findall(r"\\tag\{(\d+)\}", source))
        visit(browser, html, f"notebooks/{chapter.path.stem}", DESKTOP)
        drawn = browser.execute_script(
            "return document.querySelectorAll('mjx-container').length"
        )
        assert drawn >= source.count("$$") // 2 + (1 if numbers else 0)
        labels = browser.execute_script(
            "return [...document.querySelectorAll('mjx-mlabeledtr mjx-mtd:first-child,"
            "mjx-labels')].length"
        )
        assert labels >= bool(numbers)


@pytest.mark.parametrize("number", [n for n in CHAPTERS if n < "90"])
def test_the_widget_moves_by_keyboard_mouse_and_itself(html, browser, number):
    from selenium.webdriver import ActionChains, Keys

    visit(browser, html, f"notebooks/{CHAPTERS[number].path.stem}", DESKTOP)
    widget = browser.find_element("css selector", ".zolab-frames")
    image = widget.find_element("css selector", "img")
    slider = widget.find_element("css selector", "input[type=range]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)

    def now():
        return image.get_attribute("src"), image.get_attribute("alt")

    first = now()
    slider.send_keys(Keys.ARROW_RIGHT)
    second = now()
    assert first != second and slider.get_attribute("value") == "1"
    slider.send_keys(Keys.ARROW_LEFT)
    assert now() == first
    ActionChains(browser).move_to_element_with_offset(
        slider, slider.size["width"] // 2 - 3, 0
    ).click().perform()
    assert slider.get_attribute("value") == slider.get_attribute("max")
    play = widget.find_element("css selector", "button")
    play.click()
    assert play.text == "pause"
    browser.execute_async_script("setTimeout(arguments[0], 900)")
    assert slider.get_attribute("value") == "0", "it goes round"
    play.click()
    assert play.text == "play"


def test_on_a_phone_code_hangs_and_equations_fit(html, browser):
    chapter = CHAPTERS["12"]
    visit(browser, html, f"notebooks/{chapter.path.stem}", PHONE)
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    code, hangs, wide = browser.execute_script(
        "const all = (s) => [...document.querySelectorAll(s)];"
        "const rects = (e) => {const r = document.createRange();"
        "  r.selectNodeContents(e); return [...r.getClientRects()]};"
        "const long = all('.cell_input .zolab-line').filter(e =>"
        "  e.offsetHeight > 20 && !e.textContent.startsWith(' '));"
        "const below = (e) => {const r = rects(e);"
        "  return r.filter(c => c.top > r[0].top + 5).map(c => c.left - r[0].left)};"
        "return [all('.cell_input pre').map(e => e.textContent),"
        " long.map(e => Math.min(...below(e))),"
        " all('div.math').filter(e => e.scrollWidth > e.clientWidth + 1).length]"
    )
    cells = [c.source.strip() for c in chapter.cells()]
    assert [c.strip() for c in code] == cells, "what is copied is what was written"
    assert len(hangs) > 10 and min(hangs) > 5, "the rest of a line is further in"
    assert wide == 0, "an equation that needs sideways reading"


def test_search_finds_a_word(html, browser):
    visit(browser, html, "search", DESKTOP)
    browser.get((html / "search.html").as_uri() + "?q=journal")
    script = "return document.querySelectorAll('#search-results li').length"
    for _ in range(50):
        if browser.execute_script(script):
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert browser.execute_script(script) >= 2


def test_the_front_page_fits_a_phone_before_its_doors(html, browser):
    visit(browser, html, "book/index", PHONE)
    top = browser.execute_script(
        "return document.querySelector('.sd-card').getBoundingClientRect().top"
    )
    assert top <= PHONE[1] + 40, "one screen, below the menu bar"
    doors = browser.find_elements("css selector", ".sd-card a")
    targets = [d.get_attribute("href") for d in doors]
    assert len(targets) == 3
    assert all((html / "book" / t.rsplit("/book/")[-1]) or t for t in targets)


def test_the_front_pages_lines_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "book" / "index.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(code, names := {})
    same(names["again"], names["model"])
    assert names["opt"].steps == 10


def test_the_ledger_has_a_card_a_claim_worst_first_and_its_links_lead_somewhere(html):
    text = (html / "book" / "ledger.html").read_text("utf-8")
    ids = re.findall(r'<section class="zolab-claim [a-z-]+" id="([^"]+)"', text)
    assert sorted(ids) == sorted(claims.ledger())
    order = [claims.VERDICTS.index(claims.ledger()[i].verdict) for i in ids]
    assert order == sorted(order)
    assert claims.CAVEAT in text
    links = re.findall(r'href="((?:\.\./notebooks/|status)[^"#]*)#([^"]+)"', text)
    assert len(links) >= len(ids)
    for page, anchor in links:
        target = (html / "book" / page).resolve().read_text("utf-8")
        assert f'id="{anchor}"' in target, (page, anchor)


def test_the_map_shows_each_chapter_below_what_it_needs(html):
    text = (html / "book" / "index.html").read_text("utf-8")
    svg = re.search(r'<svg class="zolab-map".*?</svg>', text, re.S)[0]
    box = r'notebooks/(\d\d)_[^"]*"><rect x="([-\d.]+)" y="([-\d.]+)" width="(\d+)"'
    boxes = {n: [float(v) for v in at] for n, *at in re.findall(box, svg)}
    height = {n: y for n, (_, y, _) in boxes.items()}
    assert height.keys() == CHAPTERS.keys()
    width = float(re.search(r'viewBox="0 0 (\d+)', svg)[1])
    assert all(0 <= x <= width - wide for x, _, wide in boxes.values()), "cut off"
    for number, chapter in CHAPTERS.items():
        for need in chapter.about.needs:
            assert float(height[need]) < float(height[number])


def test_terms_are_linked_where_they_are_first_used(html):
    for chapter in CHAPTERS.values():
        text = (html / f"notebooks/{chapter.path.stem}.html").read_text("utf-8")
        links = re.findall(r'href="\.\./book/glossary\.html#(term-[^"]+)"', text)
        assert links, f"chapter {chapter.number} uses no term of the glossary"
        assert len(links) == len(set(links)), "once each"


def test_each_paper_is_in_the_bibliography():
    bib = (ROOT / "book" / "references.bib").read_text("utf-8")
    named = {p for c in CHAPTERS.values() for p in c.about.papers}
    text = "\n".join(t for c in CHAPTERS.values() for t in c.texts())
    text += "\n".join(c.source for c in claims.ledger().values())
    named |= set(re.findall(r"arXiv:(\d{4}\.\d{5})", text))
    missing = [p for p in named if p not in bib]
    assert not missing


def notation() -> dict[str, str]:
    """First chapter by code name."""
    text = (ROOT / "book" / "notation.md").read_text("utf-8")
    rows = [[x.strip() for x in line.split("|")] for line in text.splitlines()]
    return {r[2].strip("`"): r[5] for r in rows if len(r) == 7 and r[2].startswith("`")}


def test_symbols_are_declared_where_they_are_new():
    first = notation()
    for number, chapter in CHAPTERS.items():
        symbols = chapter.about.symbols
        unknown = set(symbols) - set(first)
        assert not unknown, f"chapter {number}: not in book/notation.md: {unknown}"
        assert all(first[s] <= number for s in symbols), number
        new = [s for s in first if first[s] == number]
        assert set(new) <= set(symbols), f"new in chapter {number}: {new}"
        assert len(new) <= (7 if number == "00" else 3), "as book/notation.md says"
        code = "\n".join(c.source for c in chapter.cells()) + "".join(chapter.texts())
        assert not [s for s in symbols if s not in code]
    assert set(first.values()) <= set(CHAPTERS)


def test_a_record_of_other_code_is_marked(monkeypatch):
    origin = {"commit": "abc", "modules": {"zolab.noise": "another"}}
    assert pages._state(origin) == "recorded at abc: changed since"
    assert pages._state({"commit": "abc", "modules": {}}) == "fresh, abc"
    assert pages._state({"commit": "abc"}) == "recorded at abc"


def test_outputs_carry_the_numbers_that_the_ledger_shows():
    seen = pages.measured()
    assert set(seen) == set(claims.ledger())
    json.dumps(seen)
