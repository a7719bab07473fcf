"""The pages about testing: the tests of the sample find its bug, and the tests for a cut are short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/how-to/test-your-application.md").read_text()
FILES = dict(re.findall(r"^```python\n(?=# (\w+\.py)\n)(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
LONGEST = 20  # lines of a test through a cut


@pytest.mark.parametrize("is_fixed", [False, True], ids=["bug", "cure"])
def test_the_sample_fails_with_its_bug_only(tmp_path: Path, is_fixed: bool) -> None:
    """With the bug, the test through an outage fails, and no other; with the cure of the page, all pass."""
    code = FILES["prices.py"]
    (bug, cure) = re.findall(r"^```diff\n-(.*)\n\+(.*)\n```$", PAGE, re.MULTILINE)[0]
    assert code.count(bug) == 1
    (tmp_path / "prices.py").write_text(code.replace(bug, cure) if is_fixed else code)
    (tmp_path / "test_prices.py").write_text(FILES["test_prices.py"])
    options = ["-p", "no:cacheprovider", "--rootdir=.", "-o", "asyncio_default_fixture_loop_scope=function"]
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    if is_fixed:
        assert done.returncode == 0, done.stdout
        assert "2 passed" in done.stdout
    else:
        failed, counts = re.findall(r"^```text\n(FAILED .*)\n(.*)\n```$", PAGE, re.MULTILINE)[0]
        assert done.returncode == 1, done.stdout
        assert failed in done.stdout
        assert counts in done.stdout


@pytest.mark.parametrize("name", ["test_websocket.py", "test_worker.py", "test_django.py", "test_prices.py"])
def test_a_test_through_a_cut_has_twenty_lines(name: str) -> None:
    """An application, a worker, a view, a consumer and the sample are each tested through a cut in few lines."""
    tests = [
        node
        for node in ast.walk(ast.parse(FILES[name]))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    ]
    through_a_cut = [test for test in tests if "faults." in ast.unparse(test)]
    assert through_a_cut
    assert all((test.end_lineno or 0) - test.lineno < LONGEST for test in through_a_cut)
