"""The README.md of a bundle's repository on a hub: what the bundle is, how good it is, and how programs use it."""

from __future__ import annotations

import json
import re

from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.errors import printable

MARK = (
    "<!-- `firstvec push` wrote this page, and writes it anew with the next bundle. Remove this line to keep your own "
    "text. -->"
)
"""A page with this line belongs to `firstvec push`. Any other page belongs to a person."""

_ONNX = "onnx/model.onnx"
"""The file that other libraries look for."""
_LICENSES = frozenset(
    [
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "mit",
        "mpl-2.0",
    ]
)
"""Names that the hub has for licences, and that are those of SPDX in lower case. Another licence is ``other`` there."""


def make_model_card(manifest: Manifest, address: str) -> str:
    """Return the page, with the head in YAML that a hub reads.

    Args:
        manifest: the bundle's manifest.
        address: where the bundle will be, ``hf://ORG/NAME``.
    """
    model = manifest.model
    title = _plain(model.name.rsplit("/", 1)[-1])
    has_onnx = any(artifact.files[0].path == _ONNX for artifact in manifest.artifacts)
    facts = [
        ("model", _plain(model.name)),
        ("revision", _plain(model.revision or "not known")),
        ("licence", _plain(model.license or "not stated")),
        ("source", _plain(model.source)),
        ("sha256 of the source's weights", model.source_sha256),
        ("vector", f"{model.embedding_dim} numbers{', of length 1' if model.normalized else ''}"),
        ("longest text", f"{model.max_seq_length} tokens; longer texts are truncated"),
        ("pooling", _plain(model.pooling_mode)),
    ]
    parts = [
        _head(manifest, has_onnx=has_onnx),
        f"# {title}, as a firstvec bundle\n",
        f"This repository is a firstvec bundle of {_plain(model.name)}: artifacts of the model, and a manifest "
        "(`firstvec.json`) with the digest of every file.\n",
        "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in facts),
        "## Artifacts\n",
        "| artifact | engine | processor | MB | mean cosine | worst cosine |\n|---|---|---|---|---|---|\n"
        + "".join(map(_row, manifest.artifacts)),
        "The cosines were measured on each artifact. They compare its vectors with those of sentence-transformers for "
        "the same texts.\n",
        "## In firstvec\n",
        f"```sh\npip install 'firstvec[ship]'\nfirstvec pull {address}\n```\n",
        "The command verifies every file, and prints the address with which the same bundle comes again. With `--only "
        "ARTIFACT` it takes the files of one artifact. The app then needs no network:\n",
        f'```python\nfrom firstvec import get_embedding_provider, preload_embeddings\n\npreload_embeddings("{title}")\n'
        'vector = get_embedding_provider().embed_query("how do I reset my password?")\n```\n',
    ]
    if has_onnx:
        repository = address.removeprefix("hf://")
        parts += [
            "## In sentence-transformers\n",
            "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{repository}", backend="onnx")\n'
            'vectors = model.encode(["how do I reset my password?"])\n```\n',
            "The backend needs `pip install 'sentence-transformers[onnx]<6'`.\n",
            "## In onnxruntime\n",
            "Pooling and normalization are in the graph, so its first output is the vector. In a copy of this "
            "repository:\n",
            _ONNXRUNTIME,
        ]
        if any(model.prompts.values()):
            prompts = ", ".join(f"{json.dumps(text)} for a {_plain(name)}" for name, text in model.prompts.items())
            parts.append(f"The model wants a prompt before the text: {prompts}.\n")
    return "\n".join([*parts, MARK, ""])


_ONNXRUNTIME = """\
```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokens = Tokenizer.from_file("tokenizer.json").encode("how do I reset my password?")
session = onnxruntime.InferenceSession("onnx/model.onnx")
inputs = {"input_ids": np.array([tokens.ids]), "attention_mask": np.array([tokens.attention_mask])}
vector = session.run(["sentence_embedding"], inputs)[0][0]
```
"""


def _head(manifest: Manifest, *, has_onnx: bool) -> str:
    """Return the page's head. JSON is YAML, so no value of the manifest can end its line."""
    tags = ["firstvec", "sentence-similarity", *(["sentence-transformers", "onnx"] if has_onnx else [])]
    fields: dict[str, object] = {"library_name": "firstvec", "pipeline_tag": "feature-extraction", "tags": tags}
    if manifest.model.license is not None:
        name = re.sub(r"[^a-z0-9.]+", "-", manifest.model.license.removeprefix("LicenseRef-").lower()).strip("-")
        fields |= {"license": name} if name in _LICENSES else {"license": "other", "license_name": name}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", manifest.model.name, re.ASCII):
        fields |= {"base_model": manifest.model.name, "base_model_relation": "quantized"}
    return "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()) + "---\n"


def _row(artifact: Artifact) -> str:
    quality = artifact.quality
    cells = (
        artifact.id,
        artifact.engine,
        artifact.isa or "any",
        f"{artifact.size / 1e6:.1f}",
        f"{quality.cosine_mean:.6f}",
        f"{quality.worst_cosine:.6f}",
    )
    return f"| {' | '.join(map(_plain, cells))} |\n"


def _plain(text: str) -> str:
    """Return a value of the manifest as text that is no Markdown and no HTML."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", printable(text).replace("\n", " "))
