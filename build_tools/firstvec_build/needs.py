"""What a build will need: memory and processor time, estimated from a model's files before the weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstvec.errors import BuildError
from firstvec.machine.limits import available_memory
from firstvec_build.memory import most_texts
from firstvec_build.source import Source, find_weights

_TOOLCHAIN = 460_000_000
"""Bytes of a process that has imported torch, sentence-transformers, onnx and onnxruntime."""
_BATCH = 32
"""Most texts that are encoded together, by the reference and by the comparison with padding."""
_NATIVE_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
"""The native engine computes no other transformers."""
_SPEED = 29e9
"""Operations that one core does in a second: about those of an Intel Xeon at 2.5 GHz, at the texts' lengths."""
_FIXED_SECONDS = 12.0
"""Processor time of the imports, and of the parts of a build that do not depend on the model."""
_PASSES = {
    "reference": 0.7,
    "torchscript": 0.8,
    "pt2": 0.8,
    "onnx-fp32": 1.8,
    "native-fp32": 0.5,
    "native-int8": 2.5,
    "onnx-int8-avx": 1.3,  # the artifact for Arm has the quality of that for VNNI, which has the same graph
}
"""Beginning of an artifact's name → its time, in times that encoding all texts once takes at `_SPEED`."""
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Types of safetensors, and the bytes of a number."""
_KEYS = {
    "hidden": ("hidden_size", "dim", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "num_heads", "n_head"),
    "intermediate": ("intermediate_size", "hidden_dim", "d_ff", "n_inner"),
}
"""What a field of `Shape` is called in the configuration of a family. BERT, DistilBERT, T5 and GPT have other words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a model and its texts that decide what a build needs. A table of embeddings has no layers."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    model_type: str
    """As in config.json."""
    lengths: tuple[int, ...]
    """Tokens of each text that the build encodes, after truncation."""


@dataclass(frozen=True, slots=True)
class Needs:
    """An estimate for a whole build."""

    memory: int
    """Peak of the process, in bytes."""
    seconds: float
    """Processor time, summed over the cores, of an Intel Xeon with AVX-512."""

    def __str__(self) -> str:
        time = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} minutes"
        return f"{self.memory / 1e9:.1f} GB of memory and {time} of processor time"


def read_shape(source: Source, texts: Sequence[str]) -> Shape:
    """Return the shape of a model, from its configuration and the headers of its weights' files.

    A tokenizer.json counts the tokens. Without one, a token counts as three characters.
    """
    config = _read_config(source.path)
    found = {field: next((int(config[key]) for key in keys if config.get(key)), 0) for field, keys in _KEYS.items()}
    longest = _find_longest(config)
    lengths = [min(count, longest) for count in _count_tokens(source.path / "tokenizer.json", texts)]
    return Shape(
        parameters=sum(map(_count_parameters, find_weights(source.path))),
        hidden=found["hidden"],
        layers=found["layers"],
        heads=found["heads"] or 1,
        intermediate=found["intermediate"] or 4 * found["hidden"],
        model_type=str(config.get("model_type", "")),
        lengths=tuple(lengths),
    )


def estimate(shape: Shape, artifacts: Collection[str]) -> Needs:
    """Return what a build of the artifacts needs. docs/build.md says how far the estimate was off.

    The factors are those of builds whose peaks were measured, stage by stage (docs/build.md).
    """
    if shape.layers and shape.model_type not in _NATIVE_MODEL_TYPES:
        artifacts = [name for name in artifacts if not name.startswith("native")]
    weights = 4 * shape.parameters
    longest = max(shape.lengths, default=1)
    texts = most_texts(longest, _BATCH)
    # A layer's widest tensors: (B, T, intermediate) before and behind the activation, six of (B, T, hidden) …
    wide = 4 * texts * longest * (2 * shape.intermediate + 6 * shape.hidden)
    # … and three copies of the scores (B, heads, T, T).
    scores = 3 * 4 * texts * shape.heads * longest**2 if shape.layers else 0
    batch = wide + scores
    # The steps follow one another: TorchScript is written from copies in the memory; the reference is encoded; an ONNX
    # artifact is measured beside the model.
    steps = [4.7 * weights, weights + batch, 3 * weights + 0.7 * batch]
    if "native-int8" in artifacts and shape.layers:
        # The model and its file in float64, GPTQ's sums, and a smaller batch.
        steps.append(8 * weights + 8 * shape.layers * (3 * shape.hidden**2 + shape.intermediate**2) + 0.3 * batch)
    memory = _TOOLCHAIN + int(max(steps))
    return Needs(memory, _estimate_seconds(shape, artifacts))


def check_memory(needs: Needs) -> None:
    """Refuse a build for which the memory will not suffice, because the kernel would kill the build on the way.

    Raises:
        BuildError: less memory is available than the estimate.
    """
    available = available_memory()
    if needs.memory > available:
        raise BuildError(
            f"the build needs about {needs.memory / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available "
            "(the limits of control groups and of addresses count); give the build more memory, build fewer artifacts "
            "(--only onnx-fp32 needs least), or try it anyway with --ignore-memory"
        )


def _estimate_seconds(shape: Shape, artifacts: Collection[str]) -> float:
    # A layer has matrices of 4 h² + 2 h i numbers, and attention needs 4 h operations for each pair of tokens.
    matrices = 4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate
    operations = sum(shape.layers * (2 * length * matrices + 4 * shape.hidden * length**2) for length in shape.lengths)
    passes = sum(
        value for name in ("reference", *artifacts) for start, value in _PASSES.items() if name.startswith(start)
    )
    return _FIXED_SECONDS + passes * operations / _SPEED


def _read_config(root: Path) -> dict[str, Any]:
    """Return the configuration of the first module, with the module's ``max_seq_length`` where it names one."""
    modules = _read_json(root / "modules.json")
    first = modules[0] if isinstance(modules, list) and modules and isinstance(modules[0], dict) else {}
    folder = root / str(first.get("path", ""))
    config, own = _read_json(folder / "config.json"), _read_json(folder / "sentence_bert_config.json")
    merged = dict(config) if isinstance(config, dict) else {}
    return merged | (own if isinstance(own, dict) else {})


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _find_longest(config: dict[str, Any]) -> int:
    """Return the most tokens of a text."""
    return int(config.get("max_seq_length") or config.get("max_position_embeddings") or 512)


def _count_tokens(path: Path, texts: Sequence[str]) -> list[int]:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the package raises Exception itself
        return [len(text) // 3 + 2 for text in texts]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]


def _count_parameters(file: Path) -> int:
    """Return the numbers in a file of weights. A file of torch counts as float32."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size // 4
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = [each for key, each in header.items() if key != "__metadata__"]
    return sum((each["data_offsets"][1] - each["data_offsets"][0]) // _DTYPES.get(each["dtype"], 4) for each in tensors)
