"""The build writes rules for the quick tokenizer only where they give the ids of the tokenizers package."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec_build import quick_tokenizer
from firstvec_build.quality import evaluation_sentences
from firstvec_build.quick_tokenizer import generate_texts, write_vocabulary


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_tokenizer, "_GENERATED_TEXTS", 500)


def test_rules_and_vocabulary_are_those_of_the_bundle(tiny_built: Path, tmp_path: Path) -> None:
    text = (tiny_built / "tokenizer.json").read_text("utf-8")
    rules = write_vocabulary(text, tmp_path, evaluation_sentences())
    assert rules is not None
    assert rules == Manifest.read(tiny_built).wordpiece
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["native/wordpiece.fvt", "vocab.txt"]
    assert (tmp_path / "vocab.txt").read_bytes() == (tiny_built / "vocab.txt").read_bytes()
    vocabulary = json.loads(text)["model"]["vocab"]
    assert (tmp_path / "vocab.txt").read_text("utf-8").split("\n")[:-1] == sorted(vocabulary, key=vocabulary.get)


@pytest.mark.parametrize(
    ("processor", "outer_ids"),
    [
        ({"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}, ((2,), (3,))),
        (
            {
                "type": "TemplateProcessing",
                "single": [
                    *({"SpecialToken": {"id": "a"}}, {"SpecialToken": {"id": "b"}}, {"Sequence": {"id": "A"}}),
                    {"SpecialToken": {"id": "a"}},
                ],
                "special_tokens": {"a": {"ids": [5, 6]}, "b": {"ids": [7]}},
            },
            ((5, 6, 7), (5, 6)),
        ),
        ({"type": "TemplateProcessing", "single": [], "special_tokens": {}}, None),
        ({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}, ((0,), (2,))),
        ({"type": "of a newer version"}, None),
        (None, ((), ())),
    ],
)
def test_ids_around_a_text_are_read_from_the_post_processor(
    processor: dict[str, Any] | None, outer_ids: object
) -> None:
    assert quick_tokenizer.find_outer_ids(processor) == outer_ids


def change(root: Path, **changes: Any) -> str:
    """Return a bundle's tokenizer.json with other values. ``a__b`` names the key ``b`` of ``a``."""
    document = json.loads((root / "tokenizer.json").read_text("utf-8"))
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = document
        for parent in parents:
            target = target[parent]
        target[key] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"normalizer__clean_text": False},
        {"normalizer__handle_chinese_chars": False},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"model__continuing_subword_prefix": "@@"},
        {"added_tokens": [{"id": 0, "content": "[PAD]", "normalized": True, "special": True}]},
        {"model__vocab": {"[UNK]": 0, "a": 2}},
        {"model__vocab": {"[UNK]": 0, "a\nb": 1}},
        {"post_processor": {"type": "of a newer version"}},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "special_tokens": {}}},
        {"model__type": "BPE"},
    ],
    ids=str,
)
def test_tokenizer_of_another_kind_gets_no_rules(changes: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    assert write_vocabulary(change(bundle, **changes), tmp_path, []) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"lowercase": False}, {"suffix_ids": ()}], ids=str)
def test_rules_that_give_other_ids_are_dropped_with_their_vocabulary(
    wrong: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_rules = quick_tokenizer._make_rules
    monkeypatch.setattr(quick_tokenizer, "_make_rules", lambda *arguments: make_rules(*arguments).replace(**wrong))
    text = (bundle / "tokenizer.json").read_text("utf-8")
    assert write_vocabulary(text, tmp_path, evaluation_sentences()) is None
    assert not list(tmp_path.iterdir())


def test_generated_texts_are_the_same_each_time_and_of_many_scripts() -> None:
    texts = [*generate_texts(2000, random.Random(0), ["word", "##piece"])]
    assert texts == [*generate_texts(2000, random.Random(0), ["word", "##piece"])]
    characters = set("".join(texts))
    for low, high in quick_tokenizer._SCRIPTS:
        assert any(low <= ord(character) <= high for character in characters), (low, high)
    assert set(quick_tokenizer._AWKWARD) <= characters
    assert any("WORD" in text for text in texts)
