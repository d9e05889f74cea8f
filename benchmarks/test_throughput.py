"""Speed and accuracy of a warm model, beside its peers: ``make bench``.

Each benchmark encodes the same texts; its `extra_info` holds texts per second and the worst cosine to
sentence-transformers' vectors, which `--benchmark-json` keeps and the table at the end shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from firstvec import OptimizedEmbeddingLoader
from firstvec_build.quality import cosine, evaluation_sentences
from firstvec_build.source import resolve

BUNDLE = Path("artifacts/all-MiniLM-L6-v2").resolve()
Encode = Callable[[Sequence[str], int], Any]

SHORT = [text for text in evaluation_sentences() if 0 < len(text) < 100][:128]
LONG = ["".join(f"{word} " for word in " ".join(SHORT).split()[start : start + 400]) for start in range(0, 128, 8)]
"""Sixteen texts that are truncated to 256 tokens."""
CASES = {
    "single": (SHORT[:1], 1),
    "batch 8": (SHORT[:8], 8),
    "batch 32": (SHORT[:32], 32),
    "batch 128": (SHORT, 128),
    "256 tokens, batch 8": (LONG[:8], 8),
}


def firstvec_fp32() -> Encode:
    return _firstvec(enable_quantization=False)


def firstvec_int8() -> Encode:
    return _firstvec(enable_quantization=True)


def _firstvec(*, enable_quantization: bool) -> Encode:
    loader = OptimizedEmbeddingLoader(str(BUNDLE), "background", "cpu", enable_quantization)
    loader.start_loading()
    provider = loader.get_provider()
    return lambda texts, batch_size: provider.encode(texts, batch_size=batch_size)


def sentence_transformers() -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve().path), device="cpu")
    return lambda texts, batch_size: model.encode(list(texts), batch_size=batch_size)


def stock_dynamic_int8(folder: Path) -> Encode:
    """The export, quantised by onnxruntime's `quantize_dynamic`, in its binding with default options."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from firstvec_build import onnx_export, reference

    exported, quantised = folder / "exported.onnx", folder / "dynamic.onnx"
    onnx_export.export(reference.load(resolve()), exported)
    options = {"MatMulConstBOnly": True}
    quantize_dynamic(exported, quantised, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    session = onnxruntime.InferenceSession(str(quantised), providers=["CPUExecutionProvider"])
    return _padded(lambda feeds: session.run(["sentence_embedding"], feeds)[0])


def _padded(run: Callable[[dict[str, Any]], Any]) -> Encode:
    """Tokenise, pad and run batch by batch, in the order given, as plain use of an engine does."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
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


def fastembed_fp32() -> Encode:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/model"),
        dim=384,
        model_file="onnx/model.onnx",
        additional_files=["onnx/model.onnx_data"],
    )
    model = TextEmbedding("local/model", specific_model_path=str(BUNDLE))
    return lambda texts, batch_size: np.stack(list(model.embed(list(texts), batch_size=batch_size)))


def openvino_fp32() -> Encode:
    import openvino

    model = openvino.Core().compile_model(str(BUNDLE / "onnx/model.onnx"), "CPU")
    return _padded(lambda feeds: model(feeds)["sentence_embedding"])


SUBJECTS: dict[str, Callable[..., Encode]] = {
    "firstvec INT8": firstvec_int8,
    "firstvec fp32": firstvec_fp32,
    "stock dynamic INT8": stock_dynamic_int8,
    "sentence-transformers": sentence_transformers,
    "fastembed fp32": fastembed_fp32,
    "OpenVINO fp32": openvino_fp32,
}
NEEDS = {"fastembed fp32": "fastembed", "OpenVINO fp32": "openvino"}


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    encode = sentence_transformers()
    return {case: encode(texts, batch_size) for case, (texts, batch_size) in CASES.items()}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Encode]:
    name = request.param
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install -c constraints.txt -e '.[bench-peers]'")
    if name == "stock dynamic INT8":
        return name, stock_dynamic_int8(tmp_path_factory.mktemp("stock"))
    return name, SUBJECTS[name]()


@pytest.mark.parametrize("case", CASES)
def test_encode(case: str, subject: tuple[str, Encode], reference: dict[str, Any], benchmark: BenchmarkFixture) -> None:
    name, encode = subject
    texts, batch_size = CASES[case]
    benchmark.group = case
    vectors = benchmark(encode, texts, batch_size)
    cosines = cosine(np.asarray(vectors, np.float32), reference[case])
    benchmark.extra_info |= {
        "subject": name,
        "texts per second": round(len(texts) / benchmark.stats.stats.median, 1),
        "worst cosine": round(float(cosines.min()), 5),
    }
    # A fast wrong vector does not count. What peers make of the same files is in the table.
    if name.startswith("firstvec"):
        assert cosines.min() >= (0.97 if "INT8" in name else 0.9999)
