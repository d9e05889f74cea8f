"""The runtime with the lowest versions of what its extras bring. All other tests run with the newest versions."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.pythons import OtherEnvironment

_ENGINES = "tests/runtime/engines"
TESTS = (
    *(f"{_ENGINES}/test_onnxruntime.py", f"{_ENGINES}/test_onnxruntime_c_api.py"),
    *(f"{_ENGINES}/test_onnxruntime_binding.py", f"{_ENGINES}/test_session.py"),
    *("tests/runtime/text/test_tokenizer.py", "tests/runtime/test_provider.py", "tests/runtime/test_init.py"),
)
"""The tests of the modules that call onnxruntime, numpy or tokenizers."""


def test_the_runtime_works_with_the_lowest_versions(bundle: Path, tiny_built: Path, tmp_path: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dependencies"] == []
    extras = project["optional-dependencies"]
    asked = "\n".join([*extras["numpy"], *extras["onnx"], *extras["tokenizers"]])
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", asked, re.MULTILINE))
    assert set(lowest) == {"numpy", "onnxruntime", "tokenizers"}
    newest = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    # tokenizers 0.21 needs a huggingface_hub below 1.
    others = [line for line in newest if line.partition("==")[0] not in (*lowest, "huggingface_hub")]
    assert len(others) == len(newest) - len(lowest) - 1
    # `>=1.23` means the first release of 1.23.
    pins = [f"{name}=={version}.0" for name, version in lowest.items()]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join([*others, *pins]), "utf-8")
    environment = OtherEnvironment(tmp_path / "venv", Path(sys.executable))
    environment.install(constraints)
    assert environment.run_runtime_tests(tiny_built, tests=TESTS) > 280
