"""The wheel and the runtime's tests on other versions of Python. `make faults` runs them, in environments of their own.

torch is not installed there, because its wheel for another Python can come with gigabytes of CUDA.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.faults.conftest import Campaign
from tests.pythons import OtherEnvironment, find_python

OF_PYTHON_3_11 = ("test_nesting_about_as_deep_as_the_stack_is_refused_or_ignored",)
"""Tests that expect Python 3.11's limit of nested calls."""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_runtimes_tests_pass(version: str, tiny_built: Path, tmp_path: Path, campaign: Campaign) -> None:
    if not campaign.full:
        pytest.skip("other versions of Python are tried in make faults")
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        pytest.skip("make test runs this version")
    began = time.monotonic()
    environment = OtherEnvironment(tmp_path / "venv", find_python(version))
    environment.install(REPOSITORY / "constraints.txt")
    # Since Python 3.12, os.fork() warns if the process has several threads. A filter by message would import re.
    passed = environment.run_runtime_tests(
        tiny_built, without=OF_PYTHON_3_11, warning_filter="ignore::DeprecationWarning"
    )
    assert passed > 2500
    campaign.record(f"Python {version}", tests=passed, seconds=round(time.monotonic() - began))
