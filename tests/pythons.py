"""Other versions of Python on this machine, and environments of their own for the runtime's tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.native.compiling import run

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
    "test_no_texts_have_no_vectors_of_the_right_width",
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


def find_python(version: str) -> Path:
    """Return an interpreter of that minor version, of pyenv or on the PATH. Skip the test where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    if on_path := shutil.which(f"python{version}"):
        found.append(Path(on_path))
    for path in found:
        if not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return path
    pytest.skip(f"Python {version} is not installed")


class OtherEnvironment:
    """A virtual environment in which the runtime's tests run without the toolchain.

    Args:
        folder: where it is made.
        python: the interpreter.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        run([str(python), "-m", "venv", str(folder)])
        self._python = str(folder / "bin/python")

    def install(self, constraints: Path) -> None:
        """Install firstvec from the checkout, and what the tests need."""
        pip = [self._python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        run([*pip, f"{REPOSITORY}[all,bulk,cli,verify]", *PACKAGES], cwd=REPOSITORY)

    def run_runtime_tests(
        self,
        tiny_bundle: Path,
        *,
        tests: Sequence[str] = ("tests/runtime",),
        without: Sequence[str] = (),
        warning_filter: str = "default",
    ) -> int:
        """Run the runtime's tests with bundles that are built already, and return how many passed.

        Args:
            tiny_bundle: the tiny model's. The real model's lies in ``artifacts``.
            tests: files and folders of tests.
            without: names of tests that do not fit the environment.
            warning_filter: of Python, for the tests and for the processes that they start.
        """
        chosen = " and ".join(f"not {name}" for name in (*WITH_TORCH, *without))
        done = subprocess.run(
            [
                self._python,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-k",
                chosen,
                "-W",
                warning_filter,
                *tests,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env=os.environ | {"FIRSTVEC_TEST_BUNDLE": str(tiny_bundle), "PYTHONWARNINGS": warning_filter},
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None
        return int(passed[1])
