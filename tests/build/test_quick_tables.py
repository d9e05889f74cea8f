"""The tables that a build writes for other tokenizers than WordPiece, and how the runtime opens them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from firstvec import IntegrityError
from firstvec.bundle.manifest import Manifest
from firstvec.machine import native
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build import publishing, quick_tokenizer
from firstvec_build.quick_tokenizer import find_outer_ids, write_tables
from tests.conftest import Fresh, edit_manifest
from tests.loads import flip_byte
from tests.manifests import document

TEXTS = ["how do I reset my password?", "größer", "日本語のテキスト", "привет", "text <mask>", "e\u0301", ""]


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_tokenizer, "_GENERATED_TEXTS", 300)


def make_json(family: str) -> str:
    """Return the tokenizer.json of a family, as the build writes it."""
    from tests import tiny

    makers = {"unigram": lambda: tiny.make_unigram(tiny.make_pieces(4000)), "byte_pairs": tiny.make_byte_pairs}
    tokenizer = makers[family]()
    tokenizer.enable_truncation(64)
    return str(tokenizer.to_str())


@pytest.fixture(scope="module", params=["unigram", "byte_pairs"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with a tokenizer, its tables and a manifest. Do not change the folder."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    text = make_json(family)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_tokenizer, "_GENERATED_TEXTS", 300)
        tables = write_tables(text, folder, TEXTS)
    assert tables is not None
    assert tables.family == family
    value = document()
    value["model"]["max_seq_length"] = 64
    value["wordpiece"] = None
    value["tokenizer"] = publishing.describe_file(folder, "tokenizer.json").to_dict()
    value["quick_tokenizer"] = tables.to_plain()
    (folder / "firstvec.json").write_text(json.dumps(value), "utf-8")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Copy the folder, for tests that change it."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def ids_of(folder: Path) -> list[list[int]]:
    package = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [package.encode(text).ids for text in TEXTS]


def test_texts_that_are_left_to_the_package_keep_their_place(written: Path) -> None:
    tokenizer = open_tokenizer(Manifest.read(written))
    assert tokenizer.tokenize(TEXTS) == ids_of(written)
    assert tokenizer._quick is not None
    taken = [tokenizer._quick.tokenize(text) is not None for text in TEXTS]
    assert any(taken)
    assert not all(taken)


def test_a_long_text_has_the_ids_of_the_package(written: Path) -> None:
    package = Tokenizer.from_file(str(written / "tokenizer.json"))
    text = "word " * 5000
    assert open_tokenizer(Manifest.read(written)).tokenize([text]) == [package.encode(text).ids]


def test_the_package_is_imported_for_the_first_text_that_needs_it(written: Path, fresh: Fresh) -> None:
    code = """
import sys
from firstvec import Manifest
from firstvec.text.tokenizer import open_tokenizer
tokenizer = open_tokenizer(Manifest.read(sys.argv[1]))
tokenizer.tokenize(["how do I reset my password?", "größer", "日本"])
assert not {"tokenizers", "unicodedata", "numpy"} & {*sys.modules}
tokenizer.tokenize(["text <mask>"])
assert "tokenizers" in sys.modules
"""
    fresh(code, written)


@pytest.mark.parametrize("reason", ["unknown family", "older engine", "no engine", "newer tables"])
def test_a_family_that_this_firstvec_does_not_know_is_left_to_the_package(
    reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if reason == "unknown family":
            manifest["quick_tokenizer"]["family"] = "of next year"
        elif reason == "newer tables":
            path = folder / manifest["quick_tokenizer"]["tables"]["path"]
            data = bytearray(path.read_bytes())
            data[12] = 2
            path.write_bytes(data)
            described = publishing.describe_file(folder, manifest["quick_tokenizer"]["tables"]["path"])
            manifest["quick_tokenizer"]["tables"] = described.to_dict()

    edit_manifest(folder, change)
    if reason == "no engine":
        monkeypatch.setattr(native, "module", lambda: None)
    elif reason == "older engine":
        monkeypatch.setattr(native, "module", lambda: object())
    tokenizer = open_tokenizer(Manifest.read(folder))
    assert tokenizer._quick is None
    assert tokenizer.tokenize(TEXTS) == ids_of(folder)


def test_damaged_tables_are_an_integrity_error(folder: Path) -> None:
    manifest = Manifest.read(folder)
    assert manifest.quick_tokenizer is not None
    path = manifest.quick_tokenizer.tables.path
    flip_byte(folder / path)
    with pytest.raises(IntegrityError, match=path):
        open_tokenizer(manifest)


def test_tables_that_give_other_ids_are_not_written(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (written / "tokenizer.json").read_text("utf-8")
    monkeypatch.setattr(quick_tokenizer, "find_outer_ids", lambda _processor: ((0,), (1,)))
    assert write_tables(text, tmp_path, TEXTS) is None
    assert not list(tmp_path.iterdir())


def test_without_the_engine_nothing_is_written(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", lambda: None)
    assert write_tables((written / "tokenizer.json").read_text("utf-8"), tmp_path, TEXTS) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["WordLevel", "left truncation", "two sequences"])
def test_a_tokenizer_of_another_kind_gets_no_tables(change: str, written: Path, tmp_path: Path) -> None:
    value = json.loads((written / "tokenizer.json").read_text("utf-8"))
    if change == "WordLevel":
        value["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    elif change == "left truncation":
        value["truncation"]["direction"] = "Left"
    else:
        sequences = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
        value["post_processor"] = {"type": "TemplateProcessing", "single": sequences, "pair": [], "special_tokens": {}}
    assert write_tables(json.dumps(value), tmp_path, TEXTS) is None
    assert not list(tmp_path.iterdir())


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"a": {"ids": [5]}},
}
BYTES = {"type": "ByteLevel", "trim_offsets": True}


@pytest.mark.parametrize(
    ("processor", "outer_ids"),
    [
        (None, ((), ())),
        (BYTES, ((), ())),
        ({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}, ((0,), (2,))),
        ({"type": "Sequence", "processors": [BYTES, TEMPLATE]}, ((5,), ())),
        ({"type": "Sequence", "processors": [BYTES]}, ((), ())),
        ({"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}, None),
        ({"type": "Sequence", "processors": [BYTES, {"type": "Unknown"}]}, None),
        ({"type": "Unknown"}, None),
    ],
)
def test_ids_around_a_text_are_read_from_any_post_processor(processor: Any, outer_ids: object) -> None:
    assert find_outer_ids(processor) == outer_ids


def test_a_built_bundle_has_the_tables_and_the_ids_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from firstvec_build.pipeline import build
    from tests.tiny import ANY_INT8, save_xlm_roberta

    model = save_xlm_roberta(tmp_path / "xlm-roberta")
    manifest = build(str(model), tmp_path / "bundles", only=["native-fp32"], thresholds=ANY_INT8).manifest
    assert manifest.quick_tokenizer is not None
    assert "native/unigram.fvt" in [file.path for file in manifest.files()]
    tokenizer = open_tokenizer(manifest)
    reference = SentenceTransformer(str(model), device="cpu").tokenizer(TEXTS, truncation=True, max_length=128)
    assert tokenizer.tokenize(TEXTS) == reference["input_ids"]
    assert tokenizer._quick is not None
