"""Write a BERT's GGUF file with 8-bit weights, as llama.cpp's convert_hf_to_gguf.py does with --outtype q8_0.

That script comes with the sources of llama.cpp, and not with the package llama-cpp-python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write(source: Path, path: Path) -> None:
    """Write the uncased BERT with mean pooling of a sentence-transformers folder."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_token_type_count(config["type_vocab_size"])
    _add_vocabulary(writer, json.loads((source / "tokenizer.json").read_text("utf-8")), gguf)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, weights in load_file(source / "model.safetensors").items():
        if name == "embeddings.position_ids" or name.startswith("pooler."):  # not used in embeddings
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if weights.ndim == 2 and not target.startswith(("position_embd", "token_types")):
            quantized = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(target, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, tokenizer: dict[str, Any], gguf: Any) -> None:
    """Add the WordPiece vocabulary in llama.cpp's spelling: ``▁`` begins a word, and ``##`` is left out."""
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")  # llama.cpp's name for BERT's rules
    writer.add_token_list(
        [token if token in special else token[2:] if token.startswith("##") else f"\u2581{token}" for token in tokens]
    )
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
