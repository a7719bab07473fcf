"""The documentation as a site: it has every page and example, and fits on a phone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.browser import browsing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation once; every warning is an error. REDISMPX_SITE has it already, as in CI."""
    if built := os.environ.get("REDISMPX_SITE"):
        return Path(built)
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "-n", "-b", "html", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder / "html")]
    build = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert build.returncode == 0, build.stdout
    return folder / "html"


MEASURE = """() => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    const boxes = [document.documentElement, ...document.querySelectorAll(".content")];  // the theme scrolls the second
    return Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth));
}"""


async def test_no_page_scrolls_sideways_on_a_phone(site: Path) -> None:
    """On a screen of 360 pixels, each page has its whole width; only tables and code scroll in boxes of their own."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    too_wide = {}
    async with browsing() as page:
        await page.set_viewport_size({"width": 360, "height": 800})
        for path in pages:
            await page.goto(path.as_uri())
            excess = await page.evaluate(MEASURE)
            if excess > 0:
                too_wide[path.relative_to(site).as_posix()] = excess
    assert too_wide == {}


async def test_words_of_pictures_can_be_read_on_a_phone(site: Path) -> None:
    """On a screen of 360 pixels, a picture is not made so narrow that its words are too small; its box scrolls."""
    pages = [path for path in sorted(site.rglob("*.html")) if "_images/" in path.read_text()]
    assert len(pages) >= 7
    async with browsing() as page:
        await page.set_viewport_size({"width": 360, "height": 800})
        for path in pages:
            await page.goto(path.as_uri())
            widths = await page.locator("img[src*=_images]").evaluate_all("images => images.map(each => each.width)")
            assert min(widths) >= 600, path


def test_no_signature_has_a_private_name(site: Path) -> None:
    """The reference shows types as readers know them: no private type and no type variable of a base class."""
    signatures = [
        re.sub(r"<[^>]+>", "", signature)
        for path in (site / "reference").glob("*.html")
        for signature in re.findall(r'<dt class="sig sig-object py".*?</dt>', path.read_text(), re.DOTALL)
    ]
    assert len(signatures) > 300
    assert [signature for signature in signatures if re.search(r"\b_[A-Za-z]", signature)] == []


def test_each_example_is_shown_with_a_sentence() -> None:
    """The page of examples has each file of the folder once, with one sentence above its program."""
    page = (DOCS / "examples.md").read_text()
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    for section in sections:
        heading, sentence, fold, program, *_ = section.split("\n\n")
        assert re.fullmatch(r"[A-Z].+\.", sentence, re.DOTALL)
        assert ". " not in sentence
        assert fold.startswith("<details>")
        assert program == f"```{{literalinclude}} ../examples/{heading}\n```"
    shown = sorted(section.splitlines()[0] for section in sections)
    assert shown == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_each_cell_of_the_comparison_has_evidence() -> None:
    """The table compares twelve features of seven libraries, and each cell is a link."""
    page = (DOCS / "explanation/comparison.md").read_text()
    table = page.partition("```{list-table}\n")[2].partition("```\n")[0]
    _, head, *rows = re.split(r"^\* - ", table, flags=re.MULTILINE)
    assert len(head.splitlines()) == 8
    assert len(rows) == 12
    for row in rows:
        _, *cells = [line.strip().removeprefix("- ") for line in row.splitlines()]
        assert len(cells) == 7
        for cell in cells:
            word, evidence = r"\[(yes|no|partly|no buffer|other model)\]", r"(\([\w./#-]+\)|\[[\w-]+\])"
            assert re.fullmatch(rf"{word}{evidence}(\[\^\w+\])?", cell)
    for label in re.findall(r"\](?=\[)\[([\w-]+)\]", page):
        assert f"\n[{label}]: https://" in page
