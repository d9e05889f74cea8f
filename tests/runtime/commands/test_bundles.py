"""`firstvec list` and `firstvec inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest
from tests.conftest import Fresh, edit_manifest


def test_list_shows_bundles(bundle: Path, firstvec: Fresh) -> None:
    assert "sentence-transformers/all-MiniLM-L6-v2" in firstvec("list").stdout
    values = json.loads(firstvec("list", "--json").stdout)
    [found] = [item for item in values["bundles"] if item["path"] == str(bundle)]
    assert found["embedding_dim"] == 384
    assert found["size"] == sum(file.size for file in Manifest.read(bundle).files())


def test_list_aligns_its_columns(tiny_bundle: Path, firstvec: Fresh) -> None:
    place = tiny_bundle.parent / "bundles"
    for name in ("short", "a name of several words that is very long indeed"):
        copy = Path(shutil.copytree(tiny_bundle, place / name))
        edit_manifest(copy, lambda document, name=name: document["model"].update(name=name))
    head, *rows = firstvec("list", FIRSTVEC_ARTIFACTS=str(place)).stdout.splitlines()
    assert head.split() == ["model", "revision", "dim", "artifacts", "MB", "folder"]
    assert len(rows) == 2
    for row in rows:
        assert row[head.index("folder") :].startswith(str(place))
        assert row[: head.index("dim") + 3].endswith(" 32")


def test_list_of_nothing_says_where_it_looked(tmp_path: Path, firstvec: Fresh) -> None:
    done = firstvec("list", FIRSTVEC_ARTIFACTS=str(tmp_path / "none"))
    assert done.returncode == 0
    assert str(tmp_path / "none") in done.stdout
    assert "firstvec build" in done.stdout
    values = json.loads(firstvec("list", "--json", FIRSTVEC_ARTIFACTS=str(tmp_path / "none")).stdout)
    assert (values["bundles"], values["broken"]) == ([], {})
    assert str(tmp_path / "none") in values["searched"]


def test_list_shows_a_broken_bundle_once(tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(tiny_bundle, lambda document: document.update(format_version="9.0"))
    done = firstvec("list", FIRSTVEC_ARTIFACTS=str(tiny_bundle))
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("broken: ")]
    assert line.count(str(tiny_bundle)) == 1
    assert "upgrade firstvec" in line


@pytest.mark.native
def test_inspect_shows_quality_and_reasons(bundle: Path, firstvec: Fresh) -> None:
    text = firstvec("inspect", "--model", "all-MiniLM-L6-v2").stdout
    assert "1110a243fdf4706b3f48f1d95db1a4f5529b4d41" in text
    assert "  licence         Apache-2.0\n" in text
    assert "avx2: weights limited in pairs" in text
    assert "enforced  max_abs_diff ≤ 1e-05" in text
    assert (
        "enforced  cosine_mean ≥ 0.995, cosine_min ≥ 0.97, neighbour_overlap ≥ 0.9, batch_cosine_min ≥ 0.9999" in text
    )
    assert "depends on the texts in its batch" not in text
    values = json.loads(firstvec("inspect", "-m", "all-MiniLM-L6-v2", "--json").stdout)
    assert len(values["artifacts"]) == 7
    assert values["path"] == str(bundle)


def test_inspect_shows_the_default_model(bundle: Path, firstvec: Fresh) -> None:
    assert firstvec("inspect").stdout == firstvec("inspect", "--model", bundle).stdout


def test_inspect_names_every_artifact_as_the_option_takes_it(tiny_built: Path, firstvec: Fresh) -> None:
    lines = firstvec("inspect", "-m", tiny_built).stdout.splitlines()
    for artifact in Manifest.read(tiny_built).artifacts:
        assert any(line.split()[:1] == [artifact.id] and len(line.split()) > 5 for line in lines)
        assert artifact.id in lines  # the heading of its details


def test_inspect_shows_the_worst_cosine_of_sentences_and_odd_texts(tiny_bundle: Path, firstvec: Fresh) -> None:
    def worsen(document: dict[str, Any]) -> None:
        document["artifacts"][0]["quality"]["odd_cosine_min"] = 0.125

    edit_manifest(tiny_bundle, worsen)
    text = firstvec("inspect", "-m", tiny_bundle).stdout
    head, row = (line for line in text.splitlines() if " 0.1250 " in line or " worst " in line)
    assert row.index("0.1250") + 6 == head.index("worst") + 5
    assert "odd texts: cosine ≥ 0.1250" in text


def test_inspect_says_where_no_licence_is_stated(tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].pop("license"))
    assert "  licence         none stated\n" in firstvec("inspect", "-m", tiny_bundle).stdout


def test_inspect_prints_the_file_itself_as_json(tiny_bundle: Path, firstvec: Fresh) -> None:
    """A key that this firstvec does not know stays."""
    edit_manifest(tiny_bundle, lambda document: document.update(from_the_future={"x": 1}))
    values = json.loads(firstvec("inspect", "-m", tiny_bundle, "--json").stdout)
    assert values.pop("path") == str(tiny_bundle)
    assert values == json.loads((tiny_bundle / "firstvec.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"isa": "amx", "isa_reason": "tiles"}, "isa 'amx' is unknown to firstvec"),
        ({"batch_invariant": False}, "a text's vector depends on the texts in its batch"),
        ({"precision": "int4"}, "precision 'int4' is unknown to firstvec"),
    ],
    ids=str,
)
def test_inspect_shows_what_is_special(change: dict[str, Any], line: str, tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(tiny_bundle, lambda document: document["artifacts"][-1].update(change))
    assert line in firstvec("inspect", "-m", tiny_bundle).stdout


def test_inspect_shows_prompts(tiny_bundle: Path, firstvec: Fresh) -> None:
    edit_manifest(
        tiny_bundle,
        lambda document: document["model"].update(prompts={"query": "search: ", "document": "", "x": "\x1b"}),
    )
    text = firstvec("inspect", "-m", tiny_bundle).stdout
    assert "query: 'search: '" in text
    assert "document" not in text
    assert "\x1b" not in text
