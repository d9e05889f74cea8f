"""Tiny random sentence-transformers models of several architectures, saved as folders."""

from __future__ import annotations

import json
import math
import warnings
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from firstvec_build.quality import Thresholds, evaluation_sentences
from tests.charsmap import make_charsmap

ANY_INT8 = Thresholds(
    int8_cosine_mean=-1.0, int8_cosine_min=-1.0, int8_neighbour_overlap=0.0, int8_batch_cosine_min=-1.0
)
"""For random weights, whose INT8 may be far from fp32. Only the threshold of fp32 is enforced."""

_UNIGRAM_SIZE = 1500
"""So many, because a Unigram has a token for each character of the sentences."""
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def save_bert(folder: Path, *, pooling_mode: str = "mean", normalize: bool = True) -> Path:
    """Save BERT with WordPiece."""
    config = transformers.BertConfig(vocab_size=500, max_position_embeddings=128, **_SHAPE)
    return _save(folder, transformers.BertModel(config), _make_wordpiece(), pooling_mode, normalize)


def save_other_bert(folder: Path) -> Path:
    """Save BERT in files of the same sizes as those of `save_bert`, but with other weights, token ids and length."""
    config = transformers.BertConfig(vocab_size=500, max_position_embeddings=128, **_SHAPE)
    tokenizer = json.loads(_make_wordpiece().backend_tokenizer.to_str())
    names = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    names[100:] = reversed(names[100:])
    tokenizer["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    fast = _make_fast(Tokenizer.from_str(json.dumps(tokenizer)), _BERT_SPECIALS)
    return _save(folder, transformers.BertModel(config), fast, "mean", True, seed=21, max_seq_length=64)


def save_long_bert(folder: Path, **changes: int) -> Path:
    """Save BERT of one layer and one head that takes 8,192 tokens. ``changes`` go into the configuration."""
    shape = _SHAPE | {"num_hidden_layers": 1, "num_attention_heads": 1} | changes
    config = transformers.BertConfig(vocab_size=500, max_position_embeddings=8192, **shape)
    return _save(
        folder,
        transformers.BertModel(config),
        _make_wordpiece(),
        "mean",
        True,
        max_seq_length=8192,
        dim=shape["hidden_size"],
    )


def save_smallest(folder: Path) -> Path:
    """Save BERT with four components in one layer. A test can flip every bit of so small a bundle."""
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    tokenizer = _make_wordpiece(vocab_size=80, limit_alphabet=30)
    config = transformers.BertConfig(vocab_size=500, max_position_embeddings=128, **shape)
    return _save(folder, transformers.BertModel(config), tokenizer, "mean", True, dim=4)


def save_distilbert(folder: Path) -> Path:
    """Save DistilBERT with WordPiece; CLS pooling, no normalization."""
    config = transformers.DistilBertConfig(
        vocab_size=500, max_position_embeddings=128, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )
    return _save(folder, transformers.DistilBertModel(config), _make_wordpiece(), "cls", False)


def save_mpnet(folder: Path) -> Path:
    """Save MPNet with WordPiece. It has a relative position bias. Its positions start behind that of the padding."""
    config = transformers.MPNetConfig(vocab_size=500, max_position_embeddings=130, pad_token_id=1, **_SHAPE)
    return _save(folder, transformers.MPNetModel(config), _make_wordpiece(roberta_specials=True), "mean", True)


def save_squeezebert(folder: Path) -> Path:
    """Save SqueezeBERT with WordPiece. Its layers are convolutions and no matrix products."""
    config = transformers.SqueezeBertConfig(vocab_size=500, max_position_embeddings=128, embedding_size=32, **_SHAPE)
    return _save(folder, transformers.SqueezeBertModel(config), _make_wordpiece(), "mean", True)


def save_roberta(folder: Path, *, tokens: int = 500) -> Path:
    """Save RoBERTa with byte-level BPE. Its positions start behind that of the padding."""
    config = transformers.RobertaConfig(
        vocab_size=tokens, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1, **_SHAPE
    )
    fast = _make_byte_level_bpe() if tokens == 500 else _make_fast(make_byte_pairs(tokens), _ROBERTA_SPECIALS)
    return _save(folder, transformers.RobertaModel(config), fast, "mean", True)


def save_albert(folder: Path) -> Path:
    """Save ALBERT with Unigram. Its layers share their weights, and its embeddings are narrower than its layers."""
    config = transformers.AlbertConfig(
        vocab_size=_UNIGRAM_SIZE, max_position_embeddings=128, embedding_size=16, **_SHAPE
    )
    return _save(folder, transformers.AlbertModel(config), _make_unigram(_BERT_SPECIALS), "mean", False)


def save_deberta(folder: Path) -> Path:
    """Save DeBERTa-v2 with Unigram. Its attention adds products with relative positions, in buckets."""
    config = transformers.DebertaV2Config(
        vocab_size=_UNIGRAM_SIZE,
        max_position_embeddings=128,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        **_SHAPE,
    )
    return _save(folder, transformers.DebertaV2Model(config), _make_unigram(_BERT_SPECIALS), "cls", True)


def save_modernbert(folder: Path) -> Path:
    """Save ModernBERT with byte-level BPE. One layer of three sees all tokens, and the others 16 to each side."""
    config = transformers.ModernBertConfig(
        vocab_size=500,
        max_position_embeddings=128,
        local_attention=32,
        global_attn_every_n_layers=3,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
        **(_SHAPE | {"num_hidden_layers": 4}),
    )
    return _save(folder, transformers.ModernBertModel(config), _make_byte_level_bpe(), "mean", True)


def save_nomic_bert(folder: Path) -> Path:
    """Save NomicBERT with WordPiece. It has rotary positions and a gated activation."""
    config = transformers.NomicBertConfig(vocab_size=500, max_position_embeddings=128, **_SHAPE)
    return _save(folder, transformers.NomicBertModel(config), _make_wordpiece(), "mean", True, token_std=1.0)


def save_t5(folder: Path) -> Path:
    """Save T5's encoder with Unigram and a Dense layer, as sentence-t5 and gtr."""
    config = transformers.T5Config(
        vocab_size=_UNIGRAM_SIZE, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    dense = [Dense(32, 16, bias=False, activation_function=torch.nn.Identity())]
    return _save(folder, transformers.T5EncoderModel(config), _make_unigram(_T5_SPECIALS), "mean", True, behind=dense)


def save_qwen3(folder: Path) -> Path:
    """Save Qwen3 with byte-level BPE, padding on the left, the last token's vector and a prompt, as Qwen3-Embedding."""
    config = transformers.Qwen3Config(
        vocab_size=500,
        max_position_embeddings=256,
        head_dim=8,
        num_key_value_heads=2,
        pad_token_id=1,
        **_SHAPE,
    )
    tokenizer = _make_byte_level_bpe(template="$A </s>", padding_side="left")
    prompts = {"query": "Instruct: Find the answer\nQuery:", "document": ""}
    return _save(folder, transformers.Qwen3Model(config), tokenizer, "lasttoken", True, prompts=prompts)


def save_gemma(folder: Path) -> Path:
    """Save Gemma 3 that sees both directions, with two Dense layers and prompts, as EmbeddingGemma."""
    config = transformers.Gemma3TextConfig(
        vocab_size=_UNIGRAM_SIZE,
        max_position_embeddings=256,
        head_dim=8,
        num_key_value_heads=1,
        sliding_window=33,
        use_bidirectional_attention=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **(_SHAPE | {"num_hidden_layers": 3}),
    )
    identity = torch.nn.Identity()
    dense = [Dense(32, 96, False, identity), Dense(96, 32, False, identity)]
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    return _save(
        folder, transformers.Gemma3TextModel(config), _make_unigram(), "mean", True, behind=dense, prompts=prompts
    )


def save_static(folder: Path) -> Path:
    """Save a table of embeddings with WordPiece, as model2vec and potion. A vector is the mean of its tokens' rows."""
    torch.manual_seed(20)
    tokenizer = _make_wordpiece().backend_tokenizer
    table = StaticEmbedding(tokenizer, embedding_weights=torch.randn(tokenizer.get_vocab_size(), 32))
    model = SentenceTransformer(modules=[table, Normalize()], device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(folder), create_model_card=False)
    return folder


def _save(
    folder: Path,
    transformer: Any,
    tokenizer: Any,
    pooling_mode: str,
    normalize: bool,
    *,
    dim: int = 32,
    seed: int = 20,
    max_seq_length: int = 128,
    behind: Sequence[Any] = (),
    prompts: dict[str, str] | None = None,
    token_std: float = 0.25,
) -> Path:
    torch.manual_seed(seed)
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            # The library's own initialization (deviation 0.02) gives nearly the same vector to all texts.
            torch.nn.init.normal_(parameter, std=0.25)
    if token_std != 0.25:  # where the mean of many tokens would be nearly the same for all texts
        torch.nn.init.normal_(transformer.get_input_embeddings().weight, std=token_std)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = folder.with_name(f"{folder.name}-transformer")
        transformer.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        transformed = Transformer(str(plain), max_seq_length=max_seq_length)
        modules = [transformed, Pooling(dim, pooling_mode=pooling_mode), *behind]
        model = SentenceTransformer(
            modules=[*modules, Normalize()] if normalize else modules, device="cpu", prompts=prompts
        )
        model.save(str(folder), create_model_card=False)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A random model\n", "utf-8")
    return folder


def _make_wordpiece(*, roberta_specials: bool = False, vocab_size: int = 500, limit_alphabet: int = 200) -> Any:
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if roberta_specials else _BERT_SPECIALS
    cls, pad, sep, unk, mask = names
    order = [cls, pad, sep, unk, mask] if roberta_specials else [pad, unk, cls, sep, mask]
    words = _count_words(*_BERT_RULES)
    pieces = dict.fromkeys([*order, *_count_parts(words, "##", limit_alphabet)])
    vocabulary = {piece: number for number, piece in enumerate([*pieces][:vocab_size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _BERT_RULES
    # The tables leave a text with such a token to the package, so tests of the package's part have a text for it.
    word = AddedToken(mask, single_word=True, normalized=False)
    tokenizer.add_special_tokens([*(name for name in order if name != mask), word])
    tokenizer.decoder = decoders.WordPiece()
    return _make_fast(tokenizer, names)


_BERT_RULES = (normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer())
_SENTENCEPIECE_RULES = (
    normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
    pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    ),
)


# The package's trainers of WordPiece and Unigram give another vocabulary in each process. With those, each run of the
# tests would have other models. So the pieces are counted here.


def _count_words(normalizer: Any, pre_tokenizer: Any) -> Counter[str]:
    """Return the words of the project's sentences, and how often each stands there."""
    texts = map(normalizer.normalize_str, evaluation_sentences())
    return Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text))


def _count_parts(words: Counter[str], inside: str, limit_alphabet: int) -> dict[str, int]:
    """Return pieces of words and their counts: first the characters, then the parts that save most tokens.

    ``inside`` stands before a piece that does not begin a word.
    """
    characters: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start, character in enumerate(word):
            characters[character] += count
            for end in range(start + 1, min(start + 6, len(word)) + 1):
                counts[(inside if start else "") + word[start:end]] += count
    alphabet = {*sorted(characters, key=lambda each: (-characters[each], each))[:limit_alphabet]}

    def saved(piece: str) -> int:
        return (len(piece.removeprefix(inside)) - 1) * counts[piece]

    single = sorted(piece for piece in counts if piece.removeprefix(inside) in alphabet)
    longer = sorted((piece for piece in counts if saved(piece)), key=lambda piece: (-saved(piece), piece))
    return {piece: counts[piece] for piece in (*single, *longer)}


def _score_parts(number: int) -> list[tuple[str, float]]:
    """Return so many pieces for Unigram, each with the logarithm of its share."""
    parts = _count_parts(_count_words(*_SENTENCEPIECE_RULES), "", 10_000)
    total = sum(parts.values())
    return [(piece, math.log(count / total)) for piece, count in parts.items()][:number]


def _make_byte_level_bpe(*, template: str | None = None, padding_side: str = "right") -> Any:
    names = _ROBERTA_SPECIALS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(evaluation_sentences(), trainer)
    return _make_fast(tokenizer, names, template, padding_side)


def _make_unigram(names: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> Any:
    """SentencePiece's form: a space becomes U+2581. T5 has no token before the text."""
    cls, pad, sep, unk, mask = names
    specials = list(dict.fromkeys([cls, pad, sep, unk, mask]))
    pieces = [*((name, 0.0) for name in specials), *_score_parts(_UNIGRAM_SIZE - len(specials))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index(unk), byte_fallback=False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _SENTENCEPIECE_RULES
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return _make_fast(tokenizer, names, "$A </s>" if cls == pad else None)


_ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_T5_SPECIALS = ("<pad>", "<pad>", "</s>", "<unk>", "<extra_id_0>")
_BERT_SPECIALS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


def _make_fast(tokenizer: Any, names: tuple[str, ...], template: str | None = None, padding_side: str = "right") -> Any:
    cls, pad, sep, unk, mask = names
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template or f"{cls} $A {sep}",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=cls,
        pad_token=pad,
        sep_token=sep,
        unk_token=unk,
        mask_token=mask,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )


# --- Tokenizers of other families ------------------------------------------------------------------------------------


def make_pieces(count: int, seed: int = 0) -> list[tuple[str, float]]:
    """Return a Unigram vocabulary of so many pieces and scores: counted ones, and generated ones of many scripts.

    Pieces 0 to 3 are ``<s>``, ``<pad>``, ``</s>`` and ``<unk>``, and the last one is ``<mask>``, as of XLM-R.
    """
    found = _score_parts(2000)
    pieces = dict([("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0), *found])
    random = Random(seed)
    while len(pieces) < count - 1:
        low, high = random.choice(_SCRIPTS)
        piece = "".join(chr(random.randint(low, high)) for _ in range(random.randint(1, 5)))
        pieces.setdefault(random.choice(("", "\u2581")) + piece, round(-9 - 7 * random.random(), 6))
    return [*pieces.items(), ("<mask>", 0.0)][:count]


_SCRIPTS = (
    *((0x61, 0x7A), (0xE0, 0xF6), (0x3B1, 0x3C9), (0x430, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x904, 0x94D)),
    *((0xE01, 0xE30), (0x3041, 0x3093), (0x4E00, 0x4FFF), (0xAC00, 0xACFF)),
)
"""Code points of the generated pieces: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Han, Hangul."""


def make_unigram(pieces: list[tuple[str, float]]) -> Tokenizer:
    """Return a tokenizer in XLM-R's form: a compiled normalizer, words with U+2581 before them, ``<s> … </s>``."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(b64decode(make_charsmap()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    specials = [AddedToken(name, normalized=False) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def save_xlm_roberta(folder: Path, *, pieces: int = 4000, hidden: int = 32, layers: int = 2) -> Path:
    """Save XLM-RoBERTa with Unigram, as multilingual e5 and bge-m3. Its positions start behind that of the padding."""
    tokenizer = make_unigram(make_pieces(pieces))
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 8}
    config = transformers.XLMRobertaConfig(
        vocab_size=pieces,
        max_position_embeddings=130,
        pad_token_id=1,
        type_vocab_size=1,
        intermediate_size=4 * hidden,
        **shape,
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"unk_token": "<unk>", "mask_token": "<mask>", "model_input_names": ["input_ids", "attention_mask"]},
    )
    return _save(folder, transformers.XLMRobertaModel(config), fast, "mean", True, dim=hidden, token_std=1.0)


def make_byte_pairs(vocab_size: int = 3000) -> Tokenizer:
    """Return a byte-level BPE tokenizer in RoBERTa's form: GPT-2's expression, ``<s> … </s>``.

    The project's sentences give some thousand merges. The others are generated: each joins two tokens that exist.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 3000),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(evaluation_sentences(), trainer)
    document = json.loads(tokenizer.to_str())
    ids, merges, chance = document["model"]["vocab"], document["model"]["merges"], Random(0)
    tokens = [*ids][5:]
    while len(ids) < vocab_size:
        left, right = chance.choice(tokens), chance.choice(tokens)
        if len(left + right) <= 12 and not right.startswith("\u0120") and left + right not in ids:
            ids[left + right] = len(ids)
            merges.append([left, right])
            tokens.append(left + right)
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer
