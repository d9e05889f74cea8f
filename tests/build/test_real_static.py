"""A second real model that a registry serves: WordLlama's table of embeddings, with the tokenizer of Llama 2."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from firstvec import OptimizedEmbeddingLoader
from firstvec_build import quality, source
from firstvec_build.pipeline import build

WHEEL = "wordllama==0.4.0.post1"
WEIGHTS_SHA256 = "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5"


def test_a_real_table_of_embeddings_gives_the_means_of_its_rows(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    unpacked = source._fetch_wheel(WHEEL, tmp_path) / "wordllama"
    weights = unpacked / "weights" / "l2_supercat_256.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS_SHA256
    (table,) = (each.astype(np.float32) for each in load_file(weights).values())
    tokenizer = Tokenizer.from_file(str(unpacked / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")
    model.save(str(tmp_path / "wordllama"))

    manifest = build(str(tmp_path / "wordllama"), tmp_path / "bundles").manifest
    assert [artifact.id for artifact in manifest.artifacts] == ["torchscript-fp32", "onnx-fp32", "native-fp32"]
    assert all("no matrix product" in reason for reason in manifest.left_out.values())
    sentences = quality.evaluation_sentences()
    ids = [each.ids for each in tokenizer.encode_batch(sentences, add_special_tokens=False)]
    expected = np.stack([table[row].mean(axis=0) if row else np.zeros(256, np.float32) for row in ids])
    loader = OptimizedEmbeddingLoader(str(manifest.root), "cached", "cpu")
    scale = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-30)
    assert np.abs((loader.get_provider().encode(sentences) - expected) / scale).max() < 1e-5
