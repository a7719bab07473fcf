"""Look for words that are not plain in the documentation and in the docstrings; `tools/plain_words.txt` lists them.

    $ python -m tools.prose                 # everything
    $ python -m tools.prose README.md       # some files

It also reports a word that is repeated, a sentence of more than 45 words, and a line of more than 120 characters that
could be broken. Code is not read: blocks, words in backticks, the targets of links. The exit status is 1 if anything is
found.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
WORDS = Path(__file__).with_name("plain_words.txt")
LONGEST_SENTENCE = 45  # words
LONGEST_LINE = 120  # characters
PAGES = ("*.md", "docs/**/*.md")
PROGRAMS = ("redismpx/*.py", "redismpx/*/*.py", "pytest_redismpx.py")  # without private modules and the demo

_CODE = re.compile(
    r"^( *)(```|~~~).*?^\1\2 *$"  # a block
    r"|^(?P<indent> *)[^\n]*::\n(?:(?P=indent) +[^\n]*(?:\n|\Z)| *\n)+"  # a block of a docstring
    r"|``.+?``|`[^`]+`"
    r"|<!--.*?-->|<[^<>\n]+>"
    r"|(?<=\])\([^()\s]*\)|^\[[^\]\n]+\]: \S+$"  # the target of a link
    r"|\bhttps?://\S+",
    re.MULTILINE | re.DOTALL,
)
_REPEATED = re.compile(r"\b([a-z]+)(?: |\n *)\1\b", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?])\s+|\n\s*(?:\n|[-*|#] |\d+\. |: )|\|")  # of a sentence
_WORD = re.compile(r"[a-z][\w'-]*", re.IGNORECASE)
_BREAK = re.compile(r" *+(?:(?:[-*:]|\d+\.) +)?+[^|#].* ")  # the place to break a line: not in a table or a heading

_PRIVATE = re.compile(r"redismpx/(?:.*/)?_(?!_init)|redismpx/demo/")


class Finding(NamedTuple):
    line: int
    text: str
    advice: str


def read_words(text: str) -> list[tuple[re.Pattern[str], str]]:
    """Read the list of words: on each line a regular expression, ` -> `, and what to write in its place."""
    words = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            expression, arrow, advice = line.partition(" -> ")
            if not arrow:
                raise ValueError(f"{line!r} has no ' -> '")
            spaced = expression.replace(" ", r"\s+")
            words.append((re.compile(rf"(?<![\w-]){spaced}(?![\w-])", re.IGNORECASE), advice))
    return words


def check(text: str, words: list[tuple[re.Pattern[str], str]]) -> Iterator[Finding]:
    """Find what is not plain in Markdown or in the text of a docstring."""
    prose = _CODE.sub(lambda match: re.sub(r"[^\n]", "\N{FULL BLOCK}", match[0]), text)
    for pattern, advice in words:
        for match in pattern.finditer(prose):
            yield Finding(line_of(prose, match.start()), match[0], advice)
    for match in _REPEATED.finditer(prose):
        yield Finding(line_of(prose, match.start()), match[0], "once is enough")
    start = 0
    for match in (*_END.finditer(prose), None):
        sentence = prose[start : match.start() if match else None]
        if len(_WORD.findall(sentence)) > LONGEST_SENTENCE:
            line = line_of(prose, start + len(sentence) - len(sentence.lstrip()))
            yield Finding(line, " ".join(sentence.split()[:5]), f"a sentence has at most {LONGEST_SENTENCE} words")
        start = match.end() if match else 0
    for number, line in enumerate(prose.split("\n"), 1):
        if _BREAK.match(line[: LONGEST_LINE + 1]) and len(line) > LONGEST_LINE:
            yield Finding(number, " ".join(line.split()[:5]), f"a line has at most {LONGEST_LINE} characters")


def find_files() -> Iterator[Path]:
    for pattern in (*PAGES, *PROGRAMS):
        for path in ROOT.glob(pattern):
            if not _PRIVATE.match(path.relative_to(ROOT).as_posix()):
                yield path


def line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def read_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each text of a file, and the number of the line before it: a page, or each docstring of a program."""
    if path.suffix != ".py":
        yield 0, path.read_text()
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno - 1, node.value.value


def main(arguments: list[str]) -> int:
    words = read_words(WORDS.read_text())
    paths = [Path(name).resolve() for name in arguments] or sorted(find_files())
    count = 0
    for path in paths:
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for before, text in read_prose(path):
            for line, found, advice in sorted(check(text, words)):
                count += 1
                print(f"{name}:{before + line}: {' '.join(found.split())!r}: {advice}")
    print(f"{len(paths)} files, {count} findings", file=sys.stderr)
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
