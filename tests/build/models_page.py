"""The rows of docs/models.md, as the tests of the families find them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from firstvec.bundle.manifest import Manifest

PAGE = REPOSITORY / "docs" / "models.md"
FAMILIES = {
    "bert": ("BERT", "MiniLM, bge, e5, gte, mxbai"),
    "distilbert-cls-unnormalized": ("DistilBERT", "multi-qa-distilbert, msmarco-distilbert"),
    "mpnet": ("MPNet", "all-mpnet-base-v2"),
    "roberta-byte-level": ("RoBERTa", "all-distilroberta-v1"),
    "xlm-roberta": ("XLM-RoBERTa", "multilingual-e5, bge-m3"),
    "albert": ("ALBERT", "paraphrase-albert-small-v2"),
    "deberta-v2": ("DeBERTa-v2", "models of DeBERTa-v3"),
    "modernbert": ("ModernBERT", "modernbert-embed, gte-modernbert"),
    "nomic-bert": ("NomicBERT", "nomic-embed-text-v1.5"),
    "t5": ("T5 encoder, with Dense", "sentence-t5, gtr-t5"),
    "qwen3": ("Qwen3", "Qwen3-Embedding"),
    "gemma3": ("Gemma 3, both directions, with Dense", "EmbeddingGemma"),
    "static": ("StaticEmbedding", "potion, static-retrieval-mrl"),
}
"""Name of a model in the tests → its family, and real models of that family."""
TOKENIZERS = {"unigram": "Unigram", "byte_pairs": "byte pairs"}
"""Family of tables in the manifest → how the page names it."""


def row(name: str, manifest: Manifest) -> str:
    """Return the page's row for a bundle that was built and compared."""
    family, examples = FAMILIES[name]
    ids = {artifact.id for artifact in manifest.artifacts}
    portable = "yes" if "onnx-fp32" in ids else "no"
    int8 = "yes" if any(each.startswith("onnx-int8") for each in ids) else "no"
    native = ", ".join(name for name in ("fp32", "INT8") if f"native-{name.lower()}" in ids) or "no"
    return f"| {family} | {examples} | {portable} | {int8} | {native} | {find_quick_tokenizer(manifest)} |"


def find_quick_tokenizer(manifest: Manifest) -> str:
    """Return the family of the bundle's quick tokenizer, or ``no`` where the package tokenizes every text."""
    if manifest.wordpiece is not None:
        return "WordPiece"
    return TOKENIZERS[manifest.quick_tokenizer.family] if manifest.quick_tokenizer is not None else "no"
