"""`firstvec list` and `firstvec inspect`: which bundles are there, and what a bundle holds."""

from __future__ import annotations

import json

from firstvec.bundle import store
from firstvec.bundle.manifest import Artifact, read_manifest_bytes
from firstvec.bundle.metadata import ModelMetadata
from firstvec.commands.output import print_artifacts, print_json, print_table, print_text
from firstvec.selection import unknown_part


def list_bundles(as_json: bool) -> None:
    """Show the bundles that are found on this machine, and where they are looked for."""
    manifests, broken = store.read_installed()
    bundles = [
        {**ModelMetadata.of(manifest).to_dict(), "size": sum(file.size for file in manifest.files())}
        for manifest in manifests
    ]
    if as_json:
        print_json({"bundles": bundles, "broken": broken, "searched": store.search_path()})
        return
    rows = [["model", "revision", "dim", "artifacts", "MB", "folder"]]
    for found in bundles:
        counts = [str(found["embedding_dim"]), str(len(found["artifacts"])), f"{found['size'] / 1e6:.1f}"]
        rows.append([found["model_name"], (found["revision"] or "")[:12], *counts, found["path"]])
    if manifests:
        print_table(rows, right=(2, 3, 4))
    for reason in broken.values():
        print_text(f"broken: {reason}")
    if not manifests:
        print_text("No bundle was found. Build one with `firstvec build`, or set FIRSTVEC_ARTIFACTS. Searched:")
        for place in store.search_path():
            print_text(f"  {place}")


def inspect(model: str, as_json: bool) -> None:
    """Show what a bundle holds: model, artifacts, sizes and measured quality."""
    manifest = store.find_bundle(model)
    if as_json:
        # The file itself, and not what was parsed: it may have keys that this firstvec does not know.
        print_json(json.loads(read_manifest_bytes(manifest.path)) | {"path": manifest.root})
        return
    facts = manifest.model
    form = "unit length" if facts.normalized else "not normalized"
    rows = [
        ["architecture", facts.architecture],
        ["source", facts.source],
        ["revision", facts.revision or "none"],
        ["weights sha256", facts.source_sha256],
        ["licence", facts.license or "none stated"],
        ["vectors", f"{facts.embedding_dim} components, {facts.pooling_mode} pooling, {form}"],
        ["input", f"at most {facts.max_seq_length} tokens"],
        *(["prompt", f"{name}: {text!r}"] for name, text in facts.prompts.items() if text),
        ["built with", ", ".join(f"{name} {version}" for name, version in manifest.built_with.items())],
    ]
    print_artifacts(manifest)
    print_text()
    print_table(rows, indent="  ")
    for artifact in manifest.artifacts:
        print_text(f"\n{artifact.id}")
        print_table(_artifact_rows(artifact), indent="  ")


def _artifact_rows(artifact: Artifact) -> list[list[str]]:
    """Return what the table of all artifacts has no column for."""
    quality = artifact.quality
    engine = f"{artifact.engine} >={artifact.engine_min},<{artifact.engine_below}"
    rows = [["runs in", f"{engine}, on {'/'.join(artifact.devices)}"]]
    if reason := unknown_part(artifact):
        rows.append(["not here", reason])
    if artifact.isa_reason:
        rows.append(["ISA", f"{artifact.isa}: {artifact.isa_reason}"])
    if not artifact.batch_invariant:
        rows.append(["batches", "a text's vector depends on the texts in its batch"])
    measured = (
        f"on {quality.sentences} sentences with {quality.measured_with}: first percentile of the cosine "
        f"{quality.cosine_p1:.4f}; of ten neighbours {quality.neighbour_overlap:.1%} the same; the same text alone "
        f"and in a padded batch: cosine ≥ {quality.batch_cosine_min:g}"
    )
    if quality.odd_cosine_min is not None:
        measured += f"; odd texts: cosine ≥ {quality.odd_cosine_min:.4f}"
    if quality.spearman is not None:
        measured += f"; Spearman {quality.spearman:.2f}"
    for dim, kept in (quality.matryoshka or {}).items():
        measured += f"; cut to {dim} components: {kept:.1%}"
    limits = [f"{key} {'≤' if key == 'max_abs_diff' else '≥'} {limit:g}" for key, limit in quality.thresholds.items()]
    return [*rows, ["measured", measured], ["enforced", ", ".join(limits) or "nothing"]]
