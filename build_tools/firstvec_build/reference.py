"""The fp32 reference: the model in sentence-transformers, and the files that the bundle copies from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from firstvec.bundle.manifest import Model
from firstvec.errors import ExportError, SourceError
from firstvec_build.memory import split_into_batches
from firstvec_build.quiet_tools import silence_tools
from firstvec_build.source import Source

_SUPPORT_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "*/config.json",
    # Weights of modules behind the transformer (Dense, LayerNorm). Other libraries run these modules themselves.
    "*/model.safetensors",
    "*/pytorch_model.bin",
)
"""Patterns of the files with which sentence-transformers and transformers load the bundle's folder."""
_BATCH = 32
"""Texts of a batch of the reference. It is the default of `SentenceTransformer.encode`."""


class SentenceEncoder(torch.nn.Module):  # type: ignore[misc]
    """The whole model as one tensor function: (B, T) ids and mask → (B, D).

    A TorchScript archive holds the names of this class and module, so another name would change every built archive.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features: dict[str, torch.Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(features)["sentence_embedding"]


class Truncate(torch.nn.Module):  # type: ignore[misc]
    """The last module of a model that names a ``truncate_dim``: it keeps the first components of a vector.

    `SentenceTransformer.encode` does the same, and does not normalize again.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cut the features' ``sentence_embedding``, (B, D), to (B, dim)."""
        features["sentence_embedding"] = features["sentence_embedding"][:, : self.dim]
        return features


def make_example(model: SentenceTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of two texts, (2, T), one of them padded, with which the exporters trace the model."""
    texts = ["A sentence to trace with.", "Shorter."]
    inputs = model.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]


def load_model(source: Source) -> SentenceTransformer:
    """Load the model on the CPU in fp32. Code that lies beside the model is never run.

    Raises:
        SourceError: sentence-transformers cannot load the model.
        ExportError: the model's modules are not Transformer → Pooling → (Dense, Normalize, …).
    """
    try:
        with silence_tools():
            model = SentenceTransformer(str(source.path), device="cpu", trust_remote_code=False)
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, RuntimeError …
        raise SourceError(f"{source.path}: sentence-transformers cannot load the model: {error}") from error
    modules = list(model)
    names = " → ".join(type(module).__name__ for module in modules)
    if len(modules) < 2 or type(modules[0]) is not Transformer or type(modules[1]) is not Pooling:
        raise ExportError(
            f"{source.name}: unsupported architecture {names}: the first modules must be Transformer → Pooling"
        )
    if not modules[1].include_prompt:
        raise ExportError(f"{source.name}: pooling that leaves out the prompt (include_prompt=False) is not supported")
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise ExportError(f"{source.name}: unsupported tokenizer {type(model.tokenizer).__name__}: it has no fast form")
    dim, model.truncate_dim = model.truncate_dim, None
    if dim is not None and dim < (model.get_embedding_dimension() or 0):
        model.append(Truncate(dim))
        model.truncate_dim = dim
    return model.float().eval()


def count_tokens(model: SentenceTransformer, texts: Sequence[str]) -> list[int]:
    """Return each text's number of tokens, special tokens included, after truncation."""
    rows = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
    return [len(row) for row in rows]


def encode(
    model: SentenceTransformer, texts: Sequence[str], report_texts: Callable[[int], None] = lambda _count: None
) -> npt.NDArray[np.float32]:
    """Return the vectors of `SentenceTransformer.encode`, (N, D). Long texts come in smaller batches.

    ``report_texts`` is called with the number of texts of each batch.
    """
    vectors = np.empty((len(texts), int(model.get_embedding_dimension() or 0)), np.float32)
    for batch in split_into_batches(count_tokens(model, texts), _BATCH):
        vectors[batch] = model.encode([texts[index] for index in batch], batch_size=len(batch))
        report_texts(len(batch))
    return vectors


def describe_model(model: SentenceTransformer, source: Source) -> Model:
    """Return the manifest's entry for the model.

    Raises:
        ExportError: the model states no length at which texts are truncated.
    """
    pooling_mode = model[1].pooling_mode
    config = model[0].auto_model.config
    if not model.max_seq_length:
        raise ExportError(f"{source.name}: the model states no max_seq_length")
    return Model(
        name=source.name,
        revision=source.revision,
        source=source.origin,
        source_sha256=source.sha256,
        architecture=(getattr(config, "architectures", None) or [type(model[0].auto_model).__name__])[0],
        embedding_dim=int(model.get_embedding_dimension() or 0),
        max_seq_length=int(model.max_seq_length),
        pooling_mode=pooling_mode if isinstance(pooling_mode, str) else "+".join(pooling_mode),
        normalized=type(model[len(model) - 1]) is Normalize,
        pad_token_id=int(model.tokenizer.pad_token_id or 0),
        prompts=dict(model.prompts or {}),
        default_prompt_name=model.default_prompt_name,
    )


def find_matryoshka_dims(source: Source) -> tuple[int, ...]:
    """Return the dimensions to which the model's vectors are made to be cut, in descending order.

    No library defines the key. Models name the dimensions in their configuration, as ``matryoshka_dims`` or
    ``matryoshka_dimensions``.
    """
    found = set[int]()
    for name in ("config_sentence_transformers.json", "config.json"):
        path = source.path / name
        document = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for key in ("matryoshka_dims", "matryoshka_dimensions"):
            dims = document.get(key)
            if isinstance(dims, list):
                found.update(dim for dim in dims if type(dim) is int and dim > 0)
    return tuple(sorted(found, reverse=True))


def make_tokenizer_json(model: SentenceTransformer) -> str:
    """Return the fast tokenizer as JSON. The runtime needs it without padding, and truncated to max_seq_length."""
    import tokenizers

    # A copy, because the model's own tokenizer still encodes the reference.
    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_seq_length)
    return str(tokenizer.to_str(pretty=False))


def find_support_files(source: Source) -> list[Path]:
    """Return the source's files that the bundle copies, relative to the source's folder."""
    found = {path.relative_to(source.path) for pattern in _SUPPORT_FILES for path in source.path.glob(pattern)}
    return sorted(found, key=str)
