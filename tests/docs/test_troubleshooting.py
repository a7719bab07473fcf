"""Each text that the library raises or logs has an entry in the page about error texts, and each entry a text."""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redismpx.errors

PACKAGE = Path(redismpx.errors.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/how-to/troubleshooting.md"

# --- the texts of the package

ERRORS = {
    name
    for module in (builtins, redismpx.errors)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, BaseException) and value is not AssertionError
}
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "warn", "log"}
LOSING = {"_lose", "lose", "abandon", "abort"}  # their argument is the reason of a ConnectionLost
ARGUMENT_ERRORS = {"UsageError", "BadParameter"}  # the command line shows them beside its usage
FEW = 3  # words that make a text of any literal, wherever it is used: helpers build texts too
PLACEHOLDER = re.compile(r"\x00|%(?:\.\d+)?[srdgf](?![\w-])|\{\w*\}")

NO_ERRORS = [
    ("", r"redismpx( [a-z]+| \x00)+", "the name of a task"),
    ("", r"[\w.]+(\[.*\]| \| .*)", "a type"),
    ("_core/keyspace.py", r"[a-z_ ]+", "the events of the keys of one type"),
    ("_core/entry.py", r"unsubscribed by server", "an event in the table of a name"),
    ("_core/scripts.py", r"return .*", "a script"),
    ("blocking/described.py", r".*", "docstrings"),
    ("url_file.py", r"# .*", "the comment in a URL file"),
    ("contrib/_figures.py", r".*", "the help of a metric"),
    ("contrib/opentelemetry.py", r"Duration of .*", "the help of a metric"),
    ("arguments.py", r"str\(data\).*", "a hint, which is code"),
    ("testing/_pubsub.py", r"unknown|denied|arguments|context|NOPROTO .*|ERR .*", "replies, as those of servers"),
]
"""Literals that nobody sees as an error: their module, what they look like in full, and what they are."""


@dataclass(frozen=True)
class Text:
    """A text of the package."""

    where: str
    parts: tuple[str, ...]
    """The fixed words. Between two of them, there is a value."""
    needs_entry: bool
    """Whether it is an error, and not another literal, which may be a part of one."""

    def __str__(self) -> str:
        return f"{self.where}: {'...'.join(self.parts)}"

    def find(self, quote: str) -> list[tuple[int, int]]:
        """Return where the fixed words are in a quote, in their order; an empty list: nowhere."""
        if not all(part in quote for part in self.parts):  # nearly always
            return []
        match = re.search(".*?".join(f"({re.escape(part)})" for part in self.parts), quote)
        return [match.span(group) for group in range(1, len(self.parts) + 1)] if match else []


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]{2,}", text)


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def literal(node: ast.AST) -> str | None:
    """Return a text with NUL in place of its values, if a node is one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "\x00" for value in node.values)  # type: ignore[misc]
    return None


class Scan:
    """The texts of one module."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.only_errors = where.startswith(("cli/", "testing/"))  # they show other texts too

    def read(self, node: ast.AST, *, is_error: bool, is_exception: bool = False) -> Iterator[Text]:
        """Yield the texts below a node. Literals of errors need an entry, and so do other ones of several words."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in ("__repr__", "_describe"):
            return
        if isinstance(node, ast.ClassDef):
            is_exception = any(name_of(base) in ERRORS for base in node.bases)
        elif isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and name_of(node.func) == "startswith"):
            return  # it looks for the words of another library
        elif isinstance(node, ast.Raise):
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if called is not None and name_of(called) in ("AssertionError", *ARGUMENT_ERRORS):
                return
            is_error = True
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            is_error = is_error or name in ERRORS | LOGGING | LOSING or (is_exception and name == "__init__")
        text = literal(node)
        if text is not None:
            yield from self.text(text, node, is_error=is_error)
        for child in ast.iter_child_nodes(node):
            if text is None or isinstance(child, ast.FormattedValue):
                yield from self.read(child, is_error=is_error, is_exception=is_exception)

    def text(self, text: str, node: ast.expr, *, is_error: bool) -> Iterator[Text]:
        parts = PLACEHOLDER.split(text)
        count = len(words(" ".join(parts)))
        if "\n" in text or not count or any(self.is_no_error(text, module, form) for module, form, _ in NO_ERRORS):
            return
        parts[0], parts[-1] = parts[0].lstrip(), parts[-1].rstrip()
        needs_entry = is_error or (count >= FEW and " " in text.strip() and not self.only_errors)
        yield Text(f"{self.where}:{node.lineno}", tuple(part for part in parts if part.strip()), needs_entry)

    def is_no_error(self, text: str, module: str, form: str) -> bool:
        return module in ("", self.where) and re.fullmatch(form, text) is not None


def read_texts() -> list[Text]:
    texts = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if not where.startswith("demo/"):
            texts += list(Scan(where).read(ast.parse(path.read_text()), is_error=False))
    return texts


# --- the entries of the page


@dataclass(frozen=True)
class Quote:
    """A text as the page quotes it, with words in capitals for values."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"troubleshooting.md:{self.line}: {self.text}"


def read_quotes(page: str) -> list[Quote]:
    """Return the quotes: the list items that are code alone."""
    return [
        Quote(number, match[2].strip())
        for number, line in enumerate(page.splitlines(), 1)
        if (match := re.fullmatch(r"- (`+)(.+?)\1", line))
    ]


def missing(texts: list[Text], quotes: list[Quote]) -> list[Text]:
    """Return the texts that no quote has."""
    return [text for text in texts if text.needs_entry and not any(text.find(quote.text) for quote in quotes)]


def stale(texts: list[Text], quotes: list[Quote]) -> list[Quote]:
    """Return the quotes with a word that no text has: all words in lower case are those of texts."""
    found = []
    for quote in quotes:
        left = list(quote.text)
        for text in texts:
            for begin, end in text.find(quote.text):
                left[begin:end] = " " * (end - begin)
        if re.search(r"[a-z]{2,}", "".join(left)):
            found.append(quote)
    return found


TEXTS = read_texts()
QUOTES = read_quotes(PAGE.read_text())


def test_each_error_text_has_an_entry() -> None:
    """Each text that the package raises or logs is in the page; a new one needs an entry there."""
    assert sum(text.needs_entry for text in TEXTS) > 300
    assert [str(text) for text in missing(TEXTS, QUOTES)] == []


def test_each_entry_has_an_error_text() -> None:
    """Each quote of the page is a text of the package; without it, its entry goes."""
    assert [str(quote) for quote in stale(TEXTS, QUOTES)] == []


def test_each_group_of_texts_is_explained() -> None:
    """Behind the texts of each entry there is a paragraph, and no text stands twice."""
    entries = PAGE.read_text().split("\n### ")[1:]
    assert len(entries) > 80
    for entry in entries:
        quotes, _, rest = entry.partition("\n\n")[2].partition("\n\n")
        assert read_quotes(quotes), entry
        assert re.match(r"[A-Z`\"]", rest), entry
    assert len({quote.text for quote in QUOTES}) == len(QUOTES)


def test_each_literal_that_is_no_error_exists() -> None:
    """Each exception from the rule still is in the package."""
    literals = [
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (text := literal(node)) is not None
    ]
    for module, form, _ in NO_ERRORS:
        assert any(module in ("", where) and re.fullmatch(form, text) for where, text in literals), form


def test_a_new_error_is_noticed() -> None:
    """An error without an entry is found, whatever way its text takes to a user."""
    for code in (
        'raise ValueError("no such thing")',
        'raise Unknown(f"{a} is worse than {b}")',
        'logger.warning("%s has melted", name)',
        'warnings.warn("it was forgotten")',
        'self._lose("forgotten")',
        'HINT = "buy a larger server"',
        'class Gone(RedisMPXError):\n    def __init__(self):\n        super().__init__("gone away")',
    ):
        assert len(missing(list(Scan("a.py").read(ast.parse(code), is_error=False)), QUOTES)) == 1, code


def test_an_old_entry_is_noticed() -> None:
    """A quote is found if one of its words is in no text any more."""
    stays = Quote(1, "no message within SECONDS s: SUBSCRIPTION")
    goes = Quote(2, "no message within SECONDS s, sadly: SUBSCRIPTION")
    assert stale(TEXTS, [stays, goes]) == [goes]
