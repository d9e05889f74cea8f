"""The warm models that the benchmarks compare: firstvec's artifacts and their peers, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from firstvec.hardware import ResourceProfile
from firstvec.load import Opener
from firstvec.manifest import Manifest
from firstvec.provider import EmbeddingProvider
from firstvec.selection import cannot_run
from firstvec.tokenizer import open_tokenizer
from firstvec_build.quality import cosine
from firstvec_build.quantize import TARGETS
from firstvec_build.source import resolve

PEER = "sentence-transformers"
STOCK = "stock dynamic INT8"
Encode = Callable[[Sequence[str], int], Any]
"""Texts and batch size → vectors."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure."""

    name: str
    open: Callable[[Manifest, Path], Encode]
    """From firstvec's bundle and a scratch folder, which subjects share."""
    artifact: str | None = None
    """firstvec's own: which artifact of the bundle."""
    min_cosine: float | None = None
    """To the peer, of the worst text. What peers make of the same weights is in the tables."""
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    extra: str = "bench-peers"
    """What installs them."""

    def missing(self, manifest: Manifest) -> str | None:
        """Why it cannot be measured here; None if it can."""
        absent = [module for module in self.needs if find_spec(module) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install -c constraints.txt -e '.[{self.extra}]'"
        if self.artifact is None:
            return None
        artifact = next((each for each in manifest.artifacts if each.id == self.artifact), None)
        if artifact is None:
            return f"the bundle holds no {self.artifact}"
        return cannot_run(artifact, ResourceProfile.detect(), "cpu")

    def check(self, vectors: Any, reference: Any) -> Any:
        """Return the cosine of each vector to the peer's.

        Raises:
            ValueError: they are too far: a fast wrong vector does not count.
        """
        cosines = cosine(np.asarray(vectors, np.float32), reference)
        if self.min_cosine is not None and not cosines.min() >= self.min_cosine:  # NaN fails too
            raise ValueError(f"{self.name}: wrong vectors: worst cosine {cosines.min():.6f} to {PEER}")
        return cosines


def long_texts(texts: Sequence[str], count: int, manifest: Manifest) -> list[str]:
    """Texts of 256 tokens or just below, made of the words of others: some programs cut longer ones elsewhere."""
    words = " ".join(texts).split()
    tokenizer = _tokenizer(manifest)
    tokenizer.enable_truncation(256)
    long = [" ".join(words[(start + step) % len(words)] for step in range(256)) for start in range(0, 8 * count, 8)]
    ends = [encoding.offsets[-2][1] for encoding in tokenizer.encode_batch(long)]  # the last token is [SEP]
    return [text[:end].rpartition(" ")[0] for text, end in zip(long, ends, strict=True)]


def _tokenizer(manifest: Manifest) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(f"{manifest.root}/tokenizer.json")


def _firstvec(artifact_id: str, manifest: Manifest, scratch: Path) -> Encode:
    """An artifact in the session that runs fastest."""
    artifact = next(each for each in manifest.artifacts if each.id == artifact_id)
    opener = Opener(manifest, artifact, "cpu")
    session = opener.open(quick_start=False)
    provider = EmbeddingProvider(manifest, artifact, "cpu", open_tokenizer(manifest), session, opener.open)
    return lambda texts, batch_size: provider.encode(texts, batch_size=batch_size)


def _sentence_transformers(manifest: Manifest, scratch: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(manifest.model.name).path), device="cpu")
    return lambda texts, batch_size: model.encode(list(texts), batch_size=batch_size)


def _exported_fp32(manifest: Manifest, scratch: Path) -> Encode:
    """The export in onnxruntime's binding with default options."""
    return _onnxruntime(_exported(manifest, scratch), manifest)


def _stock_dynamic_int8(manifest: Manifest, scratch: Path) -> Encode:
    """The export, quantised by onnxruntime's `quantize_dynamic`, in its binding with default options."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantised = scratch / "dynamic.onnx"
    options = {"MatMulConstBOnly": True}
    exported = _exported(manifest, scratch)
    quantize_dynamic(exported, quantised, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    return _onnxruntime(quantised, manifest)


def _exported(manifest: Manifest, scratch: Path) -> Path:
    """The graph as optimum exports it, made once."""
    from firstvec_build import onnx_export, reference

    exported = scratch / "exported.onnx"
    if not exported.exists():
        onnx_export.export(reference.load(resolve(manifest.model.name)), exported)
    return exported


def _onnxruntime(graph: Path, manifest: Manifest) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return _padded(lambda feeds: session.run(["sentence_embedding"], feeds)[0], manifest)


def _padded(run: Callable[[dict[str, Any]], Any], manifest: Manifest) -> Encode:
    """Tokenise, pad and run batch by batch, in the order given, as plain use of an engine does."""
    tokenizer = _tokenizer(manifest)
    tokenizer.enable_padding()

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        vectors = []
        for start in range(0, len(texts), batch_size):
            encodings = tokenizer.encode_batch_fast(list(texts[start : start + batch_size]))
            feeds = {
                "input_ids": np.array([encoding.ids for encoding in encodings]),
                "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
            }
            vectors.append(run(feeds))
        return np.concatenate(vectors)

    return encode


def _fastembed_fp32(manifest: Manifest, scratch: Path) -> Encode:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),
        dim=manifest.model.embedding_dim,
        model_file="onnx/model.onnx",
        additional_files=["onnx/model.onnx_data"],
    )
    model = TextEmbedding("local/model", specific_model_path=manifest.root)
    return lambda texts, batch_size: np.stack(list(model.embed(list(texts), batch_size=batch_size)))


def _openvino(manifest: Manifest, scratch: Path) -> Encode:
    """The fp32 graph with default options: on CPUs with bfloat16 instructions OpenVINO computes in bfloat16."""
    import openvino

    model = openvino.Core().compile_model(f"{manifest.root}/onnx/model.onnx", "CPU")
    return _padded(lambda feeds: model(feeds)["sentence_embedding"], manifest)


def _llama_cpp(manifest: Manifest, scratch: Path) -> Encode:
    """llama-cpp-python, which runs as many of a call's texts together as fit into 512 tokens, without padding.

    With flash attention: without it, each text is multiplied with all that it shares a run with, at half the speed.
    """
    import gguf_bert
    import llama_cpp

    weights = scratch / "q8_0.gguf"
    gguf_bert.write(resolve(manifest.model.name).path, weights)
    model = llama_cpp.Llama(str(weights), embedding=True, flash_attn=True, verbose=False)

    def encode(texts: Sequence[str], batch_size: int) -> Any:
        vectors = np.array(model.embed(list(texts)), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def _ours(name: str, artifact: str, min_cosine: float) -> Subject:
    return Subject(name, partial(_firstvec, artifact), artifact, min_cosine)


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(PEER, _sentence_transformers),
        Subject("exported fp32", _exported_fp32),
        Subject(STOCK, _stock_dynamic_int8),
        _ours("firstvec fp32", "onnx-fp32", 0.9999),
        *(_ours(f"firstvec INT8, {target.isa}", f"onnx-int8-{target.isa}", 0.97) for target in TARGETS),
        Subject("fastembed fp32", _fastembed_fp32, needs=("fastembed",)),
        Subject("OpenVINO", _openvino, needs=("openvino",)),
        Subject("llama.cpp q8_0", _llama_cpp, needs=("llama_cpp", "gguf"), extra="bench-llama"),
    )
}
"""By name. Ratios are to `PEER` and to `STOCK`."""
