"""The diffs of the pages about other libraries: both programs compile, and the new one runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("how-to/*from*.md"))


def read_diffs() -> list[tuple[str, str, str]]:
    """Return the page, the diff and the output of each diff that has one."""
    pattern = r"^```diff\n(.*?)^```\n\n```text\n(.*?)^```$"
    return [
        (path.name, *match)
        for path in PAGES
        for match in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)
    ]


DIFFS = read_diffs()


def side(diff: str, sign: str) -> str:
    """Return the program that has the lines with a sign, `-` or `+`, and those of both."""
    return "".join(line[1:] or "\n" for line in diff.splitlines(keepends=True) if line[0] in (" ", "\n", sign))


def test_each_diff_has_an_output() -> None:
    """Each library has a diff, and a block that shows what its new program prints."""
    assert sum(path.read_text().count("\n```diff\n") for path in PAGES) == len(DIFFS)
    sections = (DOCS / "how-to/coming-from.md").read_text().split("\n## ")[1:]
    assert len(sections) == 8
    pypubsub = (DOCS / "how-to/from-pypubsub-blinker.md").read_text().split("\n## ")[1]
    redismpx = (DOCS / "how-to/from-redismpx-0.5.md").read_text()
    assert all(section.count("```diff\n") == 1 for section in (*sections, pypubsub, redismpx))


@pytest.mark.one_flavour
@pytest.mark.parametrize(("page", "diff", "output"), DIFFS, ids=[f"{page}-{n}" for n, (page, *_) in enumerate(DIFFS)])
def test_the_new_program_of_a_diff_runs(
    page: str, diff: str, output: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new program prints what the page shows, and the old one is at least Python."""
    compile(side(diff, "-"), page, "exec")
    monkeypatch.setenv("REDIS_URL", url)
    exec(compile(side(diff, "+"), page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == output


@pytest.mark.one_flavour
def test_the_old_program_with_redis_py_prints_the_same(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program with redis-py's PubSub runs too, and prints what its successor prints."""
    ((page, diff, output),) = [found for found in DIFFS if "redis.pubsub()" in found[1]]
    monkeypatch.setenv("REDIS_URL", url)
    exec(compile(side(diff, "-"), page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == output
