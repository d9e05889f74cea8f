"""The tables of engines and instruction sets: every row is complete, and versions are compared by their release."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from firstvec import ResourceProfile
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, known_devices, version_fits


@pytest.mark.native
@pytest.mark.parametrize("name", ENGINES)
def test_the_module_of_every_engine_has_every_function(name: str) -> None:
    row = ENGINES[name]
    engine = import_module(row.module)
    assert callable(engine.open_session)
    assert engine.version()
    assert row.weights_reader is None or callable(import_module(row.weights_reader).read_weights)
    if row.starts_early:
        engine.start()
    if row.describes_use:
        assert row.package in engine.describe_use()


@pytest.mark.native
@pytest.mark.parametrize("name", ENGINES)
def test_the_installed_version_of_every_engine_is_in_the_range_of_the_build(name: str) -> None:
    version = ResourceProfile.detect().engine_version(name)
    assert version is not None
    assert version_fits(version, *ENGINES[name].versions)


def test_one_engine_starts_early_and_every_rank_differs() -> None:
    assert [name for name, row in ENGINES.items() if row.starts_early] == ["onnxruntime"]
    assert len({row.rank for row in ENGINES.values()}) == len(ENGINES)
    assert len({row.rank for row in INSTRUCTION_SETS.values()}) == len(INSTRUCTION_SETS)


def test_the_known_devices_are_those_of_all_engines_once() -> None:
    assert known_devices() == ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("lines", "device", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\n", "cuda", True),
        ("cuda: Optional[str] = None\n", "cuda", False),
        ("debug = False\n", "cuda", False),
        ("cuda: Optional[str] = None\n", "cpu", True),
        ("cuda: Optional[str] = None\n", "mps", True),
    ],
)
def test_torch_says_in_its_version_file_whether_it_was_built_for_cuda(
    lines: str, device: str, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{lines}", "utf-8")
    assert ENGINES["torch"].was_built_for(str(tmp_path), device) is expected


def test_a_torch_without_a_version_file_was_not_built_for_cuda(tmp_path: Path) -> None:
    assert not ENGINES["torch"].was_built_for(str(tmp_path), "cuda")
    assert ENGINES["torch"].was_built_for(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("version", "minimum", "below", "fits"),
    [
        ("1.23", "1.23", "2", True),
        ("1.23.0", "1.23", "2", True),
        ("1.22.9", "1.23", "2", False),
        ("2", "1.23", "2", False),
        ("2.0.0", "1.23", "2", False),
        ("1.32.0+cpu", "1.23", "2", True),
        ("1.24.0rc1", "1.23", "2", True),
        ("10.0", "9", "11", True),
        ("", "1.23", "2", False),
        ("unknown", "1.23", "2", False),
    ],
)
def test_versions_are_compared_by_the_numbers_of_their_release(
    version: str, minimum: str, below: str, fits: bool
) -> None:
    assert version_fits(version, minimum, below) is fits
