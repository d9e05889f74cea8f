"""A valid manifest as a JSON document, for tests to change."""

from __future__ import annotations

from typing import Any

SHA = "0123456789abcdef" * 4


def document(name: str = "organization/tiny", revision: str | None = "1110a243") -> dict[str, Any]:
    """Return a valid manifest of three artifacts, with every key that the format knows."""
    return {
        "format": "firstvec-bundle",
        "format_version": "1.2",
        "model": {
            "name": name,
            "revision": revision,
            "source": "wheel gt-tiny==0.1.0",
            "source_sha256": SHA,
            "architecture": "BertModel",
            "embedding_dim": 32,
            "max_seq_length": 128,
            "pooling_mode": "mean",
            "normalized": True,
            "pad_token_id": 0,
            "prompts": {"query": "", "document": "passage: "},
            "default_prompt_name": "query",
            "license": "Apache-2.0",
        },
        "tokenizer": file("tokenizer.json"),
        "wordpiece": {
            "vocabulary": file("vocab.txt"),
            "tables": file("native/wordpiece.fvt"),
            "lowercase": True,
            "strip_accents": False,
            "unk_id": 100,
            "max_input_chars_per_word": 100,
            "prefix_ids": [101],
            "suffix_ids": [102],
            "added_tokens": ["[CLS]", "[SEP]"],
        },
        "quick_tokenizer": {"family": "unigram", "tables": file("native/unigram.fvt")},
        "artifacts": [
            artifact("torchscript-fp32", "torchscript", "fp32", "torch", None, "torchscript/model.pt"),
            artifact("onnx-fp32", "onnx", "fp32", "onnxruntime", None, "onnx/model.onnx", "onnx/model.onnx_data"),
            artifact("onnx-int8-avx2", "onnx", "int8", "onnxruntime", "avx2", "onnx/int8.onnx", "onnx/int8.onnx_data"),
        ],
        "left_out": {"native-fp32": "its activation is not known"},
        "self_test": file("self_test.json"),
        "support_files": [file("config.json"), file("1_Pooling/config.json"), file("vector_ranges.f32", 384)],
        "vector_ranges": {"file": "vector_ranges.f32", "neighbour_overlap": {"int8": 0.85, "binary": 0.65}},
        "built_with": {"firstvec": "0.1.0", "torch": "2.13.0+cpu"},
        "inputs_sha256": SHA,
    }


def file(path: str, size: int = 1234) -> dict[str, Any]:
    """Return the entry of a file."""
    return {"path": path, "size": size, "sha256": SHA}


def artifact(id_: str, format_: str, precision: str, engine: str, isa: str | None, *paths: str) -> dict[str, Any]:
    """Return the entry of an artifact."""
    return {
        "id": id_,
        "format": format_,
        "precision": precision,
        "engine": engine,
        "engine_min": "1.23",
        "engine_below": "2",
        "devices": ["cpu", "cuda"],
        "isa": isa,
        "isa_reason": isa and "weights limited in pairs",
        "batch_invariant": True,
        "files": [file(path) for path in paths],
        "quality": {
            "cosine_mean": 0.999,
            "cosine_min": 0.97,
            "cosine_p1": 0.98,
            "odd_cosine_min": 0.93,
            "max_abs_diff": 0.01,
            "neighbour_overlap": 0.95,
            "batch_cosine_min": 1.0,
            "sentences": 320,
            "measured_with": "onnxruntime 1.32.0",
            "spearman": 81.9,
            "matryoshka": {"16": 0.8},
            "thresholds": {"cosine_mean": 0.995},
        },
    }


UNKNOWN_PARTS = {"format": "openvino", "engine": "tensorrt", "device": "npu", "isa": "amx", "precision": "int4"}
"""Part of an artifact → a value that this firstvec does not know."""

FREE = ("prompts", "built_with", "thresholds", "matryoshka", "left_out", "neighbour_overlap")
"""Keys of the objects whose own keys are free."""


def add_what_a_newer_firstvec_may_write(document: dict[str, Any]) -> None:
    """Change a manifest: version 1.7, unknown keys in every object, and first an artifact for each unknown part."""
    artifacts = []
    for part, value in UNKNOWN_PARTS.items():
        each = artifact(f"unknown-{part}", "onnx", "fp32", "onnxruntime", None, f"new/{part}.bin", f"new/{part}.data")
        each |= {"devices": [value]} if part == "device" else {part: value}
        artifacts.append(each)
    document["artifacts"][:0] = artifacts
    document["format_version"] = "1.7"
    _add_unknown_keys(document)


def _add_unknown_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in FREE:
                _add_unknown_keys(inner)
        value["added_in_1_7"] = {"anything": [1, None]}
    elif isinstance(value, list):
        for inner in value:
            _add_unknown_keys(inner)
