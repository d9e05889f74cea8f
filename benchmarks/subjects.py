"""The warm models that the benchmarks compare: firstvec's artifacts and their peers, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from firstvec.bundle.manifest import Manifest
from firstvec.engines.table import INSTRUCTION_SETS
from firstvec.errors import InputError
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.loading.session_in_use import SessionInUse
from firstvec.machine.profile import ResourceProfile
from firstvec.provider import EmbeddingProvider
from firstvec.selection import cannot_run
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build.quality import cosine
from firstvec_build.source import resolve

PEER = "sentence-transformers"
STOCK = "stock dynamic INT8, per_channel=True"
STOCK_DEFAULTS = "stock dynamic INT8, default options"
Encode = Callable[[Sequence[str], int], Any]
"""Texts and batch size → vectors."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure."""

    name: str
    open: Callable[[Manifest, Path], Encode]
    """Opens the model, from firstvec's bundle and a scratch folder that all subjects share."""
    artifact: str | None = None
    """Id of the bundle's artifact, if the subject belongs to firstvec."""
    min_cosine: float | None = None
    """Smallest cosine of a text's vector to the peer's. None: the cosine is only shown, as for the peers."""
    needs: tuple[str, ...] = ()
    """Modules without which the subject is left out."""
    extra: str = "bench-peers"
    """The extra that installs these modules."""

    def missing(self, manifest: Manifest) -> str | None:
        """Return why the subject cannot be measured here. None: the subject can be measured."""
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
            ValueError: a cosine is too small, because a fast wrong vector does not count.
        """
        cosines = cosine(np.asarray(vectors, np.float32), reference)
        if self.min_cosine is not None and not cosines.min() >= self.min_cosine:  # NaN fails too
            raise ValueError(f"{self.name}: wrong vectors: worst cosine {cosines.min():.6f} to {PEER}")
        return cosines


def long_texts(texts: Sequence[str], count: int, manifest: Manifest) -> list[str]:
    """Return texts of 256 tokens or just below, made of the words of ``texts``.

    Longer texts are not used, because programs truncate such texts at different lengths.
    """
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
    """Open an artifact in the session that runs fastest, as the runtime does."""
    artifact = next(each for each in manifest.artifacts if each.id == artifact_id)
    verified = verify_artifact(manifest, artifact)
    session = open_artifact(verified, quick_start=False).session
    sessions = SessionInUse(artifact.id, session, lambda: open_artifact(verified, quick_start=False).session)
    provider = EmbeddingProvider(manifest, artifact, "cpu", open_tokenizer(manifest), sessions)
    return lambda texts, batch_size: provider.encode(texts, batch_size=batch_size)


def open_artifacts(manifest: Manifest, only: Collection[str] | None) -> Iterator[tuple[str, Encode]]:
    """Yield the id of each artifact that runs here, and its function: one of full precision first.

    Print on stderr why another artifact does not run here.

    Args:
        manifest: the bundle.
        only: ids of the artifacts to measure beside the first one. None: all.

    Raises:
        InputError: the bundle holds no artifact of such an id.
    """
    known = [artifact.id for artifact in manifest.artifacts]
    if unknown := {*(only or ())} - {*known}:
        raise InputError(f"{', '.join(sorted(unknown))}: not in the bundle, which holds {', '.join(known)}")
    is_first = True
    profile = ResourceProfile.detect()
    for artifact in sorted(manifest.artifacts, key=lambda each: (each.precision != "fp32", each.engine != "native")):
        if (reason := cannot_run(artifact, profile, "cpu")) is not None:
            print(f"left out: {artifact.id}: {reason}", file=sys.stderr)
            continue
        if not is_first and only is not None and artifact.id not in only:
            continue
        is_first = False
        print(f"encoding with {artifact.id}", file=sys.stderr)
        yield artifact.id, _firstvec(artifact.id, manifest, Path())


def _sentence_transformers(manifest: Manifest, scratch: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(manifest.model.name).path), device="cpu")
    return lambda texts, batch_size: model.encode(list(texts), batch_size=batch_size)


def _exported_fp32(manifest: Manifest, scratch: Path) -> Encode:
    """Open the export in onnxruntime's binding with default options."""
    return _onnxruntime(_exported(manifest, scratch), manifest)


def _stock_dynamic_int8(manifest: Manifest, scratch: Path) -> Encode:
    """Open the export, quantized by onnxruntime's `quantize_dynamic` with a scale for each column of the weights.

    A column's scale is not the default of `quantize_dynamic`, and is closer to fp32 than the default.
    The session has default options.
    """
    return _quantized_dynamically(manifest, scratch, per_channel=True)


def _stock_dynamic_int8_defaults(manifest: Manifest, scratch: Path) -> Encode:
    """Open the export, quantized by onnxruntime's `quantize_dynamic` without any option.

    The session has default options, too.
    """
    return _quantized_dynamically(manifest, scratch)


def _quantized_dynamically(manifest: Manifest, scratch: Path, **options: Any) -> Encode:
    from onnxruntime.quantization import quantize_dynamic

    quantized = scratch / f"dynamic{'-'.join(options)}.onnx"
    quantize_dynamic(_exported(manifest, scratch), quantized, **options)
    return _onnxruntime(quantized, manifest)


def _exported(manifest: Manifest, scratch: Path) -> Path:
    """Return the graph as torch exports it. The first call makes the file."""
    from firstvec_build import reference
    from firstvec_build.exporters import onnx_graph

    exported = scratch / "exported.onnx"
    if not exported.exists():
        onnx_graph.export(reference.load_model(resolve(manifest.model.name)), exported)
    return exported


def _onnxruntime(graph: Path, manifest: Manifest) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return _padded(lambda feeds: session.run(["sentence_embedding"], feeds)[0], manifest)


def _padded(run: Callable[[dict[str, Any]], Any], manifest: Manifest) -> Encode:
    """Tokenize, pad and run batch by batch, in the order of the texts, as a simple program does."""
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
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="local/model"),
        dim=manifest.model.embedding_dim,
        model_file="onnx/model.onnx",
        additional_files=["onnx/model.onnx_data"],
    )
    model = TextEmbedding("local/model", specific_model_path=manifest.root)
    return lambda texts, batch_size: np.stack(list(model.embed(list(texts), batch_size=batch_size)))


def _openvino(manifest: Manifest, scratch: Path) -> Encode:
    """Open the fp32 graph with default options.

    OpenVINO computes in bfloat16 if the processor has instructions for it.
    """
    import openvino

    model = openvino.Core().compile_model(f"{manifest.root}/onnx/model.onnx", "CPU")
    return _padded(lambda feeds: model(feeds)["sentence_embedding"], manifest)


def _llama_cpp(manifest: Manifest, scratch: Path) -> Encode:
    """Open the model in llama-cpp-python, which runs a call's texts together, up to 512 tokens, without padding.

    Flash attention is on, because without it each text is multiplied with all texts of its run.
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
        Subject(STOCK_DEFAULTS, _stock_dynamic_int8_defaults),
        _ours("firstvec fp32", "native-fp32", 0.9999),
        _ours("firstvec INT8", "native-int8", 0.97),
        _ours("firstvec fp32, onnxruntime", "onnx-fp32", 0.9999),
        *(_ours(f"firstvec INT8, onnxruntime, {isa}", f"onnx-int8-{isa}", 0.97) for isa in INSTRUCTION_SETS),
        Subject("fastembed fp32", _fastembed_fp32, needs=("fastembed",)),
        Subject("OpenVINO", _openvino, needs=("openvino",)),
        Subject("llama.cpp q8_0", _llama_cpp, needs=("llama_cpp", "gguf"), extra="bench-llama"),
    )
}
"""Name → subject. The ratios of the tables are to `PEER` and to `STOCK`."""
