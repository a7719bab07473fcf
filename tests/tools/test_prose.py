"""The check of plain words finds what it should, and only in prose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prose

WORDS = prose.read_words("# A list.\n\nutili[sz]es? -> use\nin order to -> to\n")


def found(text: str) -> list[tuple[int, str]]:
    return [(line, word) for line, word, _ in prose.check(text, WORDS)]


def test_words_are_found_with_their_lines() -> None:
    """A word of the list is found in each form, also across the end of a line."""
    assert found("It Utilizes it.\n\nDo it in\norder to win.\n") == [(1, "Utilizes"), (3, "in\norder to")]
    assert found("Reutilises, utilise-d, order to.") == []
    assert found("Example::\n\n    f()\n\nUtilize it.") == [(5, "Utilize")]


def test_a_repeated_word_is_found() -> None:
    """A word twice is found; in a heading and below it, it is right."""
    assert found("Read the\nthe page.") == [(1, "the\nthe")]
    assert found("# Topics\n\nTopics form a tree.") == []


def test_a_long_sentence_is_found() -> None:
    """A sentence of 46 words is found, and neither 45 words nor two sentences."""
    assert found("A. " + "word w\n" * 23 + ".") == [(1, "word w word w word")]
    assert found("Words. " + "word w\n" * 22 + "end.") == []
    assert found("- " + "word w\n" * 20 + "\n- " + "word w\n" * 20) == []


def test_a_long_line_is_found() -> None:
    """A line of more than 120 characters is found, unless it has no place where it could be broken."""
    long = f"{'a' * 60} {'b' * 60}"
    assert found(f"{long[:-1]}\n{long}\n- item\n  {long}") == [(2, long), (4, long)]
    unbroken = f"`{'word ' * 30}`", f"[page]({'w' * 120})", f"| {'word | ' * 30}", f"# {'word w ' * 20}"
    for text in (*unbroken, f"- {unbroken[0]}", f"2. {unbroken[0]}", f": {unbroken[0]}", f"```\n{'word ' * 30}\n```"):
        assert found(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "```python\nutilize()\n```",
        "  ```sh\n  in order to\n  ```",
        "Example:\n    ::\n\n        utilize()\n\n        in order to",
        "Call `utilize()`.",
        "[a page](utilize.md)",
        "[page]: utilize.md",
        "<!-- utilize -->",
        "https://example.org/utilize",
    ],
)
def test_code_is_not_read(text: str) -> None:
    """Blocks, words in backticks, comments and the targets of links are no prose."""
    assert found(text) == []


def test_docstrings_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A docstring is prose, with the line where it is in its file; a finding is an exit status of 1."""
    program = tmp_path / "program.py"
    program.write_text('"""Good."""\n\n\ndef f():\n    """Do.\n\n    Functionality of it.\n    """\n')
    assert prose.main([str(program)]) == 1
    assert capsys.readouterr().out == f"{program}:7: 'Functionality': feature\n"
    program.write_text('"""Good."""\n')
    assert prose.main([str(program)]) == 0
