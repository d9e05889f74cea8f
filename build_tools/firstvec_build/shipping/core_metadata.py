"""What a bundle's wheel says of itself (PyPA core metadata 2.4): name, version, licence, and a text for its page."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.engines.table import ENGINES
from firstvec.errors import InputError
from firstvec_build.licence import check_expression

_OLDEST = "0.1"
"""The first version of firstvec that reads major version 1 of the format."""
_LONGEST_SUMMARY = 200
"""Characters. An index takes 512, and a model's name may have 10,000."""


def require_runtime(manifest: Manifest, artifacts: Sequence[Artifact]) -> str:
    """Return the requirement of firstvec, with the extras without which none of the artifacts can run.

    firstvec's own engine needs no extra. Of the other engines, the one that is preferred is required.
    """
    from packaging.requirements import Requirement

    known = [ENGINES[artifact.engine] for artifact in artifacts if artifact.engine in ENGINES]
    extras = [*Requirement(max(known, key=lambda engine: engine.rank).install).extras] if known else []
    if manifest.wordpiece is None and manifest.quick_tokenizer is None:
        extras.append("tokenizers")
    return f"firstvec{'[' + ','.join(extras) + ']' if extras else ''}>={_OLDEST}"


def check_version(text: str) -> str:
    """Return a version in its normal form.

    Raises:
        InputError: the text is no version, or one that a package index refuses.
    """
    from packaging.version import Version

    try:
        version = Version(text)
    except ValueError as error:  # InvalidVersion, and an integer with too many digits
        raise InputError(
            f"the version {text[:80]!r} is no version of a package: give one such as 1.0 or 2026.11.30"
        ) from error
    if version.local is not None:
        raise InputError(f"the version {text[:80]!r} has a local part, which a package index refuses: leave +… out")
    return str(version)


def choose_license(manifest: Manifest, given: str | None) -> str:
    """Return the SPDX expression of the model's licence: the manifest's, or the one that was given.

    Raises:
        InputError: there is none, it is no SPDX expression, or the two contradict each other.
    """
    chosen, stated = (check_expression(given) if given is not None else None), manifest.model.license
    if chosen is None and stated is None:
        raise InputError(
            f"{manifest.root}: the bundle states no licence, and who installs the wheel must know the model's licence: "
            "give it, such as --license Apache-2.0; the model's authors say which, and `firstvec build` takes the same "
            "option"
        )
    if stated is None:
        return str(chosen)
    stated = check_expression(stated)
    if chosen not in (None, stated):
        raise InputError(
            f"{manifest.root}: the bundle states the licence {stated}, not {chosen}: leave --license out, or build the "
            "bundle again with --license"
        )
    return stated


def make_metadata(
    manifest: Manifest,
    artifacts: Sequence[Artifact],
    *,
    name: str,
    version: str,
    kind: str,
    license_expression: str,
    license_files: Sequence[str],
    requires: Sequence[str],
    installs: Sequence[str],
) -> bytes:
    """Return the file METADATA.

    Args:
        manifest: the bundle's.
        artifacts: the artifacts of the table in the text.
        name: of the distribution.
        version: of the distribution.
        kind: what the wheel is: ``a bundle``, for example.
        license_expression: SPDX expression of the model's licence.
        license_files: names of the files in the folder ``licenses`` of the wheel's metadata.
        requires: the distributions that the wheel needs.
        installs: the distributions that a reader of the text installs.
    """
    # An index reads lines, and a manifest's strings have no line breaks.
    summary = f"{manifest.model.name[:_LONGEST_SUMMARY]}, {kind} for firstvec"
    headers = [
        ("Metadata-Version", "2.4"),
        ("Name", name),
        ("Version", version),
        ("Summary", summary),
        ("Keywords", "embeddings,sentence-transformers,firstvec"),
        ("License-Expression", license_expression),
        *(("License-File", file) for file in license_files),
        ("Classifier", "Topic :: Scientific/Engineering :: Artificial Intelligence"),
        # The wheel holds no code: what runs it decides.
        ("Requires-Python", metadata.metadata("firstvec")["Requires-Python"]),
        *(("Requires-Dist", requirement) for requirement in requires),
        ("Description-Content-Type", "text/markdown"),
    ]
    text = _describe(manifest, artifacts, name, kind, license_expression, installs)
    return ("".join(f"{key}: {value}\n" for key, value in headers) + f"\n{text}").encode()


def _describe(
    manifest: Manifest,
    artifacts: Sequence[Artifact],
    name: str,
    kind: str,
    license_expression: str,
    installs: Sequence[str],
) -> str:
    """Return the text for the wheel's page, in Markdown. No text of the manifest can end a cell or begin a heading."""
    model = manifest.model
    rows = [
        "| artifact | precision | engine | processor | MB | mean cosine | worst cosine |",
        "|---|---|---|---|---:|---:|---:|",
        *(
            f"| {_code(each.id)} | {_code(each.precision)} | {_code(each.engine)} | {_code(each.isa or 'any')} "
            f"| {each.size / 1e6:.1f} | {each.quality.cosine_mean:.5f} | {each.quality.worst_cosine:.4f} |"
            for each in artifacts
        ),
    ]
    commands = "\n".join(f"    pip install {each}" for each in installs)
    revision = f", revision {_code(model.revision)}" if model.revision else ""
    return f"""\
# {name}

The sentence-embedding model {_code(model.name)}, {kind} for firstvec: vectors of {model.embedding_dim} components, for
texts of up to {model.max_seq_length} tokens. The wheel holds no code.

{commands}

The runtime finds the model by its name:

    from firstvec import get_embedding_provider

    provider = get_embedding_provider({model.name!a})
    vector = provider.embed_query("how do I reset my password?")

{chr(10).join(rows)}

The cosines compare each artifact with the original model, on {artifacts[0].quality.sentences} sentences.

Licence of the model: {license_expression}. Source: {_code(model.source)}{revision}. SHA-256 of its weights:
`{model.source_sha256}`.
"""


def _code(text: str) -> str:
    """Return a text as code in Markdown, also within a table."""
    return "`" + text.replace("`", "'").replace("|", "/") + "`"
