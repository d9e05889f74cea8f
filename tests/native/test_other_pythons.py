"""The wheel and the runtime's tests on other versions of Python. `make faults` runs them, in environments of their own.

torch is not installed there, because its wheel for another Python can come with gigabytes of CUDA.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.faults.conftest import Campaign
from tests.native.compiling import run
from tests.pythons import find_python

PACKAGES = (
    *("pytest", "hypothesis", "psutil", "opentelemetry-sdk", "model-signing", "pyOpenSSL", "onnx"),
    *("filelock", "rich", "hatchling", "cyclonedx-python-lib[json-validation]"),
)
WITH_TORCH = (
    "test_a_bundle_carries_what_each_artifact_computes",
    "test_a_bundle_whose_model_points_outside_gives_no_vector",
    "test_a_bundle_without_a_self_test_says_so",
    "test_a_damaged_artifact_is_passed_over_with_one_warning",
    "test_a_fallback_is_in_the_trace",
    "test_a_program_that_makes_warnings_errors_can_load_it",
    "test_after_a_fallback_the_session_is_freed_with_its_provider",
    "test_all_candidates_damaged_lists_every_reason",
    "test_all_engines_compute_the_same_vectors",
    "test_an_artifact_may_be_asked_for",
    "test_doctor_runs_each_artifact_that_can_run_here",
    "test_doctor_shows_what_computes_wrong_and_what_crashes",
    "test_fallbacks_are_an_attribute",
    "test_tensors_are_over_the_same_memory",
    "test_the_first_vector_is_many_times_faster_than_sentence_transformers",
    "test_the_installed_version_of_every_engine_is_in_the_range_of_the_build",
    "test_the_number_of_threads_belongs_to_the_program_that_imported_torch",
    "test_the_options_of_the_choice_are_those_of_encode",
    "test_the_strategy_and_its_options_choose_the_artifact",
    "test_what_is_missing_is_what_cannot_be_imported",
    "test_what_is_optional_is_shown",
    "test_what_was_verified_is_used_though_the_name_leads_elsewhere_by_then",
    "test_whatever_thread_imports_threading_the_main_thread_stays_the_main_thread",
    "test_where_every_candidate_failed_all_are_listed",
    "test_without_proc_torchscript_is_given_what_was_verified",
)
"""Tests in which one of several artifacts is TorchScript. conftest.py skips the tests that import torch themselves."""
OF_PYTHON_3_11 = ("test_nesting_about_as_deep_as_the_stack_is_refused_or_ignored",)
"""Tests that expect Python 3.11's limit of nested calls."""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_runtimes_tests_pass(
    version: str, bundle: Path, tiny_built: Path, tmp_path: Path, campaign: Campaign
) -> None:
    if not campaign.full:
        pytest.skip("other versions of Python are tried in make faults")
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        pytest.skip("make test runs this version")
    began = time.monotonic()
    run([str(find_python(version)), "-m", "venv", str(tmp_path / "venv")])
    python = str(tmp_path / "venv/bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt"]
    run([*pip, f"{REPOSITORY}[cli,verify]", *PACKAGES], cwd=REPOSITORY)
    chosen = ["-k", " and ".join(f"not {name}" for name in WITH_TORCH + OF_PYTHON_3_11)]
    # Since Python 3.12, os.fork() warns if the process has several threads. A filter by message would import re.
    fork = "ignore::DeprecationWarning"
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "-W", fork, "tests/runtime"],
        capture_output=True,
        text=True,
        check=False,
        cwd=bundle.parents[1],
        env=os.environ | {"FIRSTVEC_TEST_BUNDLE": str(tiny_built), "PYTHONWARNINGS": fork},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 2500
    campaign.record(f"Python {version}", tests=int(passed[1]), seconds=round(time.monotonic() - began))
