"""The public names of firstvec, each taken from its module when it is first used."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

import firstvec
from firstvec import errors
from tests.conftest import Fresh

MODULES = firstvec._MODULE_OF
"""Public name → module below firstvec."""


def test_all_holds_every_error() -> None:
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert classes == {name for name, module in MODULES.items() if module == "errors"}


def test_all_holds_no_name_twice() -> None:
    assert len(firstvec.__all__) == len(set(firstvec.__all__))


def test_the_names_that_type_checkers_import_are_the_public_ones() -> None:
    imported: dict[str, str] = {}
    for node in ast.walk(ast.parse(inspect.getsource(firstvec))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("firstvec."):
            for alias in node.names:
                assert alias.name == "*" or alias.asname == alias.name  # only this spelling exports a name
                imported[alias.name] = (node.module or "").removeprefix("firstvec.")
    assert imported.pop("*") == "errors"  # the test of every error's name is above
    assert imported == {name: module for name, module in MODULES.items() if module != "errors"}


@pytest.mark.parametrize("name", firstvec.__all__)
def test_every_public_name_is_the_one_that_its_module_defines(name: str) -> None:
    module = f"firstvec.{MODULES[name]}"
    assert getattr(firstvec, name) is getattr(importlib.import_module(module), name)
    assert getattr(firstvec, name).__module__ == module
    assert getattr(firstvec, name).__doc__


def test_dir_lists_every_public_name() -> None:
    assert set(firstvec.__all__) <= set(dir(firstvec))


@pytest.mark.parametrize("name", ["Nothing", "_nothing", "numpy", "Record"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'firstvec' has no attribute {name!r}"):
        getattr(firstvec, name)


def test_the_import_of_firstvec_imports_none_of_its_modules(fresh: Fresh) -> None:
    code = "import sys, firstvec; print(*(name for name in sys.modules if name.startswith('firstvec')))"
    assert fresh(code).stdout == "firstvec\n"
