"""`firstvec explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstvec import LoadingStrategy
from firstvec.bundle.manifest import Manifest
from tests.conftest import Fresh


@pytest.mark.native
def test_every_strategy_and_every_reason_is_given(bundle: Path, firstvec: Fresh) -> None:
    text = firstvec("explain").stdout
    assert all(strategy.name in text for strategy in LoadingStrategy)
    values = json.loads(firstvec("explain", "--json").stdout)["strategies"]
    assert [*values] == [strategy.value for strategy in LoadingStrategy]
    for found in values.values():
        assert len(found["rejected"]) + len(found["fallbacks"]) + 1 == 7
        assert all(found["rejected"].values())
        # The text has the same choice and the same reasons.
        assert f"takes  {found['artifact']} " in text
        assert all(reason in text for reason in found["rejected"].values())


def test_strategies_with_the_same_answer_share_a_block(tiny_built: Path, firstvec: Fresh) -> None:
    lines = firstvec("explain", "-m", tiny_built).stdout.splitlines()
    headings = [line for line in lines if line and not line.startswith((" ", "machine: "))]
    assert {name for line in headings for name in line.split(", ")} == {each.name for each in LoadingStrategy}
    assert "LAZY, BACKGROUND, PROGRESSIVE" in headings or "LAZY, PROGRESSIVE" in headings
    one = firstvec("explain", "-m", tiny_built, "--strategy", "quantized").stdout.splitlines()
    assert [line for line in one if line and line[0] != " "][1:] == ["QUANTIZED"]


@pytest.mark.native
def test_the_columns_are_aligned(tiny_built: Path, firstvec: Fresh) -> None:
    text = firstvec("explain", "-m", tiny_built, "-s", "lazy").stdout
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    names = {artifact.id for artifact in Manifest.read(tiny_built).artifacts}
    assert {row[9:].split()[0] for row in rows} == names
    start = 9 + max(map(len, names)) + 2
    assert all(row[start - 2 : start] == "  " and row[start] != " " for row in rows)


@pytest.mark.native
def test_earlier_checks_are_reported(tiny_bundle: Path, tmp_path: Path, firstvec: Fresh) -> None:
    def explain() -> tuple[bool, bool]:
        arguments = ("explain", "--model", tiny_bundle, "--strategy", "lazy")
        values = json.loads(firstvec(*arguments, "--json", FIRSTVEC_CACHE=cache).stdout)
        text = firstvec(*arguments, FIRSTVEC_CACHE=cache).stdout
        return values["strategies"]["lazy"]["verified_before"], "files verified before" in text

    cache = str(tmp_path / "cache")
    assert explain() == (False, False)
    assert explain() == (False, False)  # `explain` hashes nothing itself
    firstvec("encode", "-m", tiny_bundle, "text", FIRSTVEC_CACHE=cache)
    assert explain() == (True, True)
    (tiny_bundle / "native/model.fvw").touch()
    assert explain() == (False, False)


@pytest.mark.native
def test_a_strategy_that_has_no_artifact_is_shown(tiny_built: Path, firstvec: Fresh) -> None:
    options = ("--model", tiny_built, "--min-quality", "0.99999")
    done = firstvec("explain", *options, "--json")
    assert done.returncode == 0
    strategies = json.loads(done.stdout)["strategies"]
    assert "min_quality" in strategies["quantized"]["error"]
    assert strategies["lazy"]["artifact"] == "native-fp32"
    text = firstvec("explain", *options).stdout
    assert "\nQUANTIZED\n  none  no artifact of " in text
    # The lines of the reason stand in the column of the reason.
    assert "\n          - onnx-fp32: precision: fp32, the strategy takes int8\n" in text


def test_the_one_strategy_that_was_asked_for_must_have_an_artifact(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", "-m", tiny_built, "-s", "quantized", "--min-quality", "0.99999")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no artifact of ")


def test_the_options_of_the_choice_are_those_of_encode(tiny_built: Path, firstvec: Fresh) -> None:
    for options in (["--artifact", "torchscript-fp32"], ["--enable-quantization"], ["--device", "cpu"]):
        values = json.loads(firstvec("explain", "-m", tiny_built, *options, "-s", "lazy", "--json").stdout)
        done = json.loads(firstvec("encode", "-m", tiny_built, *options, "text").stdout)
        assert values["strategies"]["lazy"]["artifact"] == done["artifact"], options


def test_an_artifact_that_the_bundle_has_not_is_named_with_those_it_has(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", tiny_built, "-s", "lazy", "--artifact", "nope")
    assert done.returncode == 1
    assert "The bundle has no artifact 'nope': it has torchscript-fp32, onnx-fp32, native-fp32" in done.stderr


def test_a_page_is_not_written_among_the_text(tiny_built: Path, firstvec: Fresh) -> None:
    done = firstvec("explain", tiny_built, "--html", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--html writes a file beside the text on stdout" in done.stderr
