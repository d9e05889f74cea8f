"""The fp32 reference: the model in sentence-transformers, and the files that the bundle copies from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer

from firstvec.bundle.manifest import Model
from firstvec.errors import ExportError, SourceError
from firstvec_build.licence import find_license_files
from firstvec_build.memory import split_into_batches
from firstvec_build.quiet_tools import silence_tools
from firstvec_build.source import Source, find_code

_OWN_CONFIGS = "sentence_*_config.json"
"""sentence-transformers' own configuration of a transformer. Old models have another family's name than ``bert``."""
_SUPPORT_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    _OWN_CONFIGS,
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


_LONGEST = 1 << 20
"""Tokens. FORMAT.md allows no longer texts."""
_LONGEST_STATIC = 1 << 16
"""Tokens of a text for a StaticEmbedding, which itself has no limit: the most that a weights file allows."""


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


class TokenTable(StaticEmbedding):  # type: ignore[misc]
    """A StaticEmbedding that also takes padded ids with a mask, as the exported graph does.

    An embedding bag takes the ids of all texts one behind the other, with offsets. `SentenceTransformer.encode` gives
    it these, and so computes the reference as it was.
    """

    def __init__(self, own: StaticEmbedding) -> None:
        super().__init__(own.tokenizer, embedding_weights=own.embedding.weight.detach().float())

    @property
    def max_seq_length(self) -> int:
        """The tokenizer's own limit. The library has no other, and the format of a weights file needs one."""
        return int((self.tokenizer.truncation or {}).get("max_length", _LONGEST_STATIC))

    def forward(self, features: dict[str, torch.Tensor], **options: object) -> dict[str, torch.Tensor]:
        """Compute the mean of the tokens' rows, (B, D). A text without tokens has 0."""
        if "attention_mask" not in features:
            result: dict[str, torch.Tensor] = super().forward(features, **options)
            return result
        rows = torch.nn.functional.embedding(features["input_ids"], self.embedding.weight)  # (B, T, D)
        mask = features["attention_mask"].unsqueeze(-1).to(rows.dtype)
        features["token_embeddings"] = rows
        features["sentence_embedding"] = (rows * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return features


def is_static(model: SentenceTransformer) -> bool:
    """Return whether the model is a table of embeddings, of which a vector is the mean."""
    return isinstance(model[0], StaticEmbedding)


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
    rows = tokenize(model, texts)
    longest = max(map(len, rows))
    pad = 0 if is_static(model) else int(model.tokenizer.pad_token_id or 0)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def load_model(source: Source) -> SentenceTransformer:
    """Load the model on the CPU in fp32. Code that lies beside the model is run if ``source`` says so.

    Raises:
        SourceError: sentence-transformers cannot load the model, or needs code that lies beside the model.
        ExportError: the model's modules are not Transformer → Pooling → (Dense, Normalize, …).
    """
    try:
        with silence_tools():
            model = SentenceTransformer(str(source.path), device="cpu", trust_remote_code=source.trust_remote_code)
            if source.pooling is not None:
                pooling = Pooling(model[0].get_embedding_dimension(), pooling_mode=source.pooling)
                model = SentenceTransformer(modules=[model[0], pooling], device="cpu")
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, RuntimeError …
        if not source.trust_remote_code and (code := find_code(source.path)) and "trust_remote_code" in str(error):
            raise SourceError(
                f"{source.path}: the model needs code of its own ({', '.join(code)}), and a build runs no such code, "
                "because the code can do whatever you can; read the code, and build with --trust-remote-code if you "
                "trust it"
            ) from error
        raise SourceError(
            f"{source.path}: sentence-transformers cannot load the model: {error}; check that the folder holds every "
            "file of the model, or build with a version of sentence-transformers and transformers that knows the model"
        ) from error
    modules = list(model)
    names = " → ".join(type(module).__name__ for module in modules)
    if type(modules[0]) is StaticEmbedding:
        model[0] = TokenTable(modules[0])
        return _cut_vectors(model).float().eval()
    first = type(modules[0])
    is_transformer = first is Transformer or (source.trust_remote_code and issubclass(first, Transformer))
    if len(modules) < 2 or not is_transformer or type(modules[1]) is not Pooling:
        raise ExportError(
            f"{source.name}: unsupported architecture {names}: the first modules must be Transformer → Pooling, or a "
            "StaticEmbedding"
        )
    if not modules[1].include_prompt:
        raise ExportError(f"{source.name}: pooling that leaves out the prompt (include_prompt=False) is not supported")
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise ExportError(
            f"{source.name}: unsupported tokenizer {type(model.tokenizer).__name__}: it has no fast form; save a "
            "tokenizer.json beside the model, if transformers can convert the tokenizer"
        )
    return _cut_vectors(model).float().eval()


def _cut_vectors(model: SentenceTransformer) -> SentenceTransformer:
    """Give the model a last module that cuts its vectors, if it names a ``truncate_dim`` below its dimension."""
    dim, model.truncate_dim = model.truncate_dim, None
    if dim is not None and dim < (model.get_embedding_dimension() or 0):
        model.append(Truncate(dim))
        model.truncate_dim = dim
    return model


def tokenize(model: SentenceTransformer, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids after truncation. Special tokens are included where the model has them."""
    if is_static(model):
        return [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    rows: list[list[int]] = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
    return rows


def count_tokens(model: SentenceTransformer, texts: Sequence[str]) -> list[int]:
    """Return each text's number of tokens, special tokens included, after truncation."""
    return [len(row) for row in tokenize(model, texts)]


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
        ExportError: the model states no length at which texts are truncated, or one for which it has no positions.
    """
    # A tokenizer that states no length has a very large one in transformers.
    length = model.max_seq_length
    if not length or length > _LONGEST:
        raise ExportError(
            f"{source.name}: the model states no max_seq_length; write one into its sentence_bert_config.json "
            '({"max_seq_length": 512}), because the runtime truncates longer texts'
        )
    positions = _count_positions(model[0])
    if positions is not None and length > positions:
        raise ExportError(
            f"{source.name}: max_seq_length is {length}, and the model has positions for {positions} tokens only; "
            f"write at most {positions} into its sentence_bert_config.json"
        )
    if _truncation_side(model) != "right":
        raise ExportError(
            f"{source.name}: the tokenizer cuts the beginning of a long text off, and the runtime cuts the end off; if "
            'the vectors of long texts may change, let it truncate on the right ("truncation_side" in '
            'tokenizer_config.json, "direction" in tokenizer.json)'
        )
    if is_static(model):
        architecture, pooling_mode, pad_token_id = "StaticEmbedding", "mean", 0
    else:
        transformer, pooling_mode = model[0].auto_model, model[1].pooling_mode
        architecture = (getattr(transformer.config, "architectures", None) or [type(transformer).__name__])[0]
        pad_token_id = int(model.tokenizer.pad_token_id or 0)
    return Model(
        name=source.name,
        revision=source.revision,
        source=source.origin,
        source_sha256=source.sha256,
        architecture=architecture,
        embedding_dim=int(model.get_embedding_dimension() or 0),
        max_seq_length=int(length),
        pooling_mode=pooling_mode if isinstance(pooling_mode, str) else "+".join(pooling_mode),
        normalized=type(model[len(model) - 1]) is Normalize,
        pad_token_id=pad_token_id,
        prompts=dict(model.prompts or {}),
        default_prompt_name=model.default_prompt_name,
        license=source.license,
    )


def _truncation_side(model: SentenceTransformer) -> str:
    """Return on which side a long text loses its tokens: ``left`` or ``right``."""
    if is_static(model):
        return str((model.tokenizer.truncation or {}).get("direction", "right")).lower()
    return str(model.tokenizer.truncation_side)


def _count_positions(transformer: torch.nn.Module) -> int | None:
    """Return the most tokens for which the table of positions has rows. None: the model has no such table."""
    for name, module in transformer.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # The RoBERTa family counts the tokens from behind the row of the padding.
            return int(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return None


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
    if is_static(model):
        tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.to_str())
        document = json.loads(tokenizer.to_str()) | {"post_processor": None}  # the model adds no special tokens
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    else:
        tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_seq_length)
    return str(tokenizer.to_str(pretty=False))


def write_support_files(model: SentenceTransformer, source: Source, folder: Path) -> list[Path]:
    """Write the files with which other libraries load the bundle's folder, and return their relative paths.

    The files are copied from the source. For a plain transformers model, sentence-transformers' own are written. Files
    that state a length are changed, so that other libraries truncate where the model does.

    Raises:
        SourceError: the tokenizer_config.json is no JSON object.
    """
    paths = find_support_files(source)
    if is_static(model):
        # The weights are those of the artifacts.
        paths = [path for path in paths if path.suffix not in (".safetensors", ".bin")]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / path, folder / path)
    if source.pooling is not None:
        paths += _write_modules(model, folder)
    paths += _write_length(model, source, folder, paths)
    return sorted({*paths}, key=str)


def _write_modules(model: SentenceTransformer, folder: Path) -> list[Path]:
    """Write sentence-transformers' configuration of each module, and return the relative paths."""
    modules, paths = [], [Path("modules.json")]
    for number, module in enumerate(model):
        kind = type(module)
        place = f"{number}_{kind.__name__}" if number else ""
        modules.append(
            {"idx": number, "name": str(number), "path": place, "type": f"{kind.__module__}.{kind.__name__}"}
        )
        (folder / place).mkdir(exist_ok=True)
        module.save_config(str(folder / place))
        paths.append(Path(place, module.config_file_name))
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
    return paths


def _write_length(model: SentenceTransformer, source: Source, folder: Path, paths: Sequence[Path]) -> list[Path]:
    """State ``max_seq_length`` in the files by which other libraries truncate, and return their relative paths.

    transformers and fastembed read tokenizer_config.json only, and that of all-MiniLM-L6-v2 states 512 tokens where the
    model truncates at 256. A file that states the model's length keeps its bytes.
    """
    length = int(model.max_seq_length or 0)
    keys = {Path("tokenizer_config.json"): "model_max_length"}
    if is_static(model):  # sentence-transformers takes the length of a StaticEmbedding from tokenizer.json
        keys = {path: key for path, key in keys.items() if path in paths}
    else:
        own = [path for path in paths if path.match(_OWN_CONFIGS)] or [Path("sentence_bert_config.json")]
        keys |= dict.fromkeys(own, "max_seq_length")
    for path, key in keys.items():
        known = _read_object(folder / path, source.path / path) if path in paths else {}
        stated = known | {key: length}
        if key == "model_max_length" and "max_length" in known:
            stated["max_length"] = length  # fastembed takes the smaller one of the two
        if stated != known:
            (folder / path).write_text(json.dumps(stated, indent=2) + "\n", "utf-8")
    return [*keys]


def _read_object(copy: Path, origin: Path) -> dict[str, Any]:
    try:
        document = json.loads(copy.read_text("utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}")
    except ValueError as error:
        raise SourceError(f"{origin}: is no JSON object: {error}; repair the file, or remove it") from error
    return document


def find_support_files(source: Source) -> list[Path]:
    """Return the source's files that the bundle copies, relative to the source's folder."""
    found = {path.relative_to(source.path) for pattern in _SUPPORT_FILES for path in source.path.glob(pattern)}
    return sorted({*found, *find_license_files(source.path)}, key=str)
