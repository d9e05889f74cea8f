"""The runtime with the lowest versions of its dependencies. `make test` itself has the newest ones."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.pythons import OtherEnvironment

TESTS = ("tests/runtime/engines", "tests/runtime/text", "tests/runtime/test_provider.py", "tests/runtime/test_init.py")
"""The tests that touch a dependency most."""


def test_the_runtime_works_with_the_lowest_versions(bundle: Path, tiny_built: Path, tmp_path: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    lowest = dict(re.fullmatch(r"([\w-]+)>=([\d.]+).*", text).groups() for text in project["dependencies"])  # type: ignore[union-attr]
    assert set(lowest) == {"numpy", "onnxruntime", "tokenizers"}
    newest = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    # tokenizers 0.21 needs an older huggingface_hub.
    others = [line for line in newest if line.partition("==")[0] not in (*lowest, "huggingface_hub")]
    assert len(others) == len(newest) - len(lowest) - 1
    constraints = tmp_path / "constraints.txt"
    # `>=1.23` means the first release of 1.23.
    pins = [f"{name}=={version}.0" for name, version in lowest.items()]
    constraints.write_text("\n".join([*others, *pins]), "utf-8")
    environment = OtherEnvironment(tmp_path / "venv", Path(sys.executable))
    environment.install(constraints)
    assert environment.run_runtime_tests(tiny_built, TESTS) > 300
