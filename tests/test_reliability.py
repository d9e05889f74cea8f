"""Each promise of docs/reliability.md names a test that exists, and each campaign of tests/faults stands there."""

from __future__ import annotations

import ast
import re

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "reliability.md").read_text("utf-8")
TESTS = REPOSITORY / "tests"


def named() -> dict[str, set[str]]:
    """File below tests/ → the test functions that the page names in it."""
    found: dict[str, set[str]] = {}
    file = ""
    for path, function in re.findall(r"`([\w/]*(?:\.py)?)(?:::(\w+))?`", TEXT):
        if path.endswith(".py"):
            file = path
            found.setdefault(file, set())
        if function and (path.endswith(".py") or not path):
            found[file].add(function)
    return found


def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_page_names_exists() -> None:
    promises = named()
    assert len(promises) > 20
    for file, functions in promises.items():
        assert functions <= functions_of(file), file


def test_every_campaign_is_named_by_the_page() -> None:
    promises = named()
    for path in sorted((TESTS / "faults").glob("test_*.py")):
        assert f"faults/{path.name}" in promises
        source = ast.parse(path.read_text("utf-8"))
        for node in source.body:
            if isinstance(node, ast.FunctionDef) and "campaign.record" in ast.unparse(node):
                assert node.name in promises[f"faults/{path.name}"], node.name


def test_every_row_of_the_page_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 35
    assert all(".py" in row for row in rows)
