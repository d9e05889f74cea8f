"""Every module has the test file of its name, and every test file of the mirroring folders has its module."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPOSITORY

TESTS = REPOSITORY / "tests"
PACKAGES = {"runtime": REPOSITORY / "runtime" / "firstvec", "build": REPOSITORY / "build_tools" / "firstvec_build"}
"""Folder below tests/ → the package whose modules it mirrors."""
OF_NO_SINGLE_MODULE = {
    "build/test_architectures.py": "the whole build, for each architecture of artifacts/models.toml",
    "build/test_families.py": "the whole build, for small random models of each family",
    "build/test_quick_tables.py": "which tables of a tokenizer the build writes, and that a loader takes them",
    "build/test_real_static.py": "the whole build, for a real table of embeddings",
    "build/test_refusals.py": "the whole build, for models that it refuses",
    "runtime/test_encode_like_sentence_transformers.py": "encode beside that of sentence-transformers",
    "runtime/test_fresh_process.py": "what a program imports, writes and waits for",
    "runtime/test_init.py": "the names that `import firstvec` gives",
}
"""Test file → what it tests."""


def mirrored_files() -> set[str]:
    """Return the test files that the modules must have: ``runtime/bundle/test_store.py`` for ``bundle/store.py``."""
    return {
        (Path(folder) / module.relative_to(package)).with_name(f"test_{module.name.replace('-', '_')}").as_posix()
        for folder, package in PACKAGES.items()
        for module in package.rglob("*.py")
        if module.stem not in ("__init__", "__main__")
    }


def existing_files() -> set[str]:
    """Return the test files of the mirroring folders."""
    return {path.relative_to(TESTS).as_posix() for folder in PACKAGES for path in (TESTS / folder).rglob("test_*.py")}


def test_every_module_has_the_test_file_of_its_name() -> None:
    assert len(mirrored_files()) > 50
    assert sorted(mirrored_files() - existing_files()) == []


def test_every_other_test_file_is_listed_here() -> None:
    assert sorted(existing_files() - mirrored_files()) == sorted(OF_NO_SINGLE_MODULE)


def test_every_test_file_has_a_test() -> None:
    for file in sorted(existing_files()):
        tree = ast.parse((TESTS / file).read_text("utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in tree.body), file
