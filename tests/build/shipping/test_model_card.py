"""The page of a bundle's repository."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from firstvec import OptimizedEmbeddingLoader
from firstvec.bundle.manifest import Manifest
from firstvec_build.licence import find_license
from firstvec_build.shipping.model_card import MARK, make_model_card

ADDRESS = "hf://org/bundle"


def head(card: str) -> dict[str, object]:
    """Return what a hub reads from the page's head."""
    _, text, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(text))


def test_card_says_what_the_bundle_is_and_how_good(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    card = make_model_card(manifest, ADDRESS)
    for text in (manifest.model.name, manifest.model.revision, manifest.model.source, manifest.model.source_sha256):
        assert str(text) in card
    for artifact in manifest.artifacts:
        row = next(line for line in card.splitlines() if line.startswith(f"| {artifact.id} |"))
        assert f"| {artifact.quality.cosine_mean:.6f} | {artifact.quality.worst_cosine:.6f} |" in row
        assert f"| {artifact.size / 1e6:.1f} |" in row
    assert "firstvec pull hf://org/bundle\n" in card
    assert card.rstrip().endswith(MARK)
    assert card == make_model_card(manifest, ADDRESS)


def test_head_is_yaml_that_names_the_model(bundle: Path) -> None:
    fields = head(make_model_card(Manifest.read(bundle), ADDRESS))
    assert fields["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert fields["library_name"] == "firstvec"
    assert fields["tags"] == ["firstvec", "sentence-similarity", "sentence-transformers", "onnx"]


@pytest.mark.parametrize(
    ("license_", "stated"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-only", {"license": "other", "license_name": "gpl-3.0-only"}),
        ("LicenseRef-gemma", {"license": "other", "license_name": "gemma"}),
        (None, {}),
    ],
)
def test_licence_is_stated_so_that_a_build_reads_it_again(
    license_: str | None, stated: dict[str, str], tiny_built: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(tiny_built)
    card = make_model_card(manifest.replace(model=manifest.model.replace(license=license_)), ADDRESS)
    assert {name: value for name, value in head(card).items() if name.startswith("license")} == stated
    assert f"| licence | {license_ or 'not stated'} |" in card
    (tmp_path / "README.md").write_text(card, "utf-8")
    assert find_license(tmp_path) == license_


def test_bundle_without_fp32_onnx_is_not_offered_to_other_libraries(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.id != "onnx-fp32")
    card = make_model_card(manifest.replace(artifacts=kept), ADDRESS)
    assert "onnxruntime.InferenceSession" not in card
    assert "SentenceTransformer(" not in card
    assert head(card)["tags"] == ["firstvec", "sentence-similarity"]


def test_values_of_the_manifest_are_no_markup(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    model = manifest.model.replace(
        name="a\n---\nlicense: |<script>", source="wheel `a` | b\x1b[2J", prompts={"q": "<b>\n"}
    )
    card = make_model_card(manifest.replace(model=model), ADDRESS)
    assert set(head(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "<script>" not in re.sub(r"\\<", "", card)
    assert r"wheel \`a\` \| b\x1b\[2J" in card.replace(r"\\x", r"\x")
    assert r'"<b>\n" for a q' in card


def test_block_for_onnxruntime_computes_the_vector_of_firstvec(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make_model_card(Manifest.read(bundle), ADDRESS)
    block = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "InferenceSession" in block)
    names: dict[str, object] = {}
    monkeypatch.chdir(bundle)
    exec(block, names)
    loader = OptimizedEmbeddingLoader(str(bundle), strategy="cached")
    expected = loader.get_provider().embed_query("how do I reset my password?")
    assert float(np.dot(np.asarray(names["vector"]), np.asarray(expected))) > 0.99999
