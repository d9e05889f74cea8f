"""The tokenizer of a bundle: the quick tokenizer where it can, the tokenizers package for everything else."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from firstvec import IncompatibleArtifact, InputError, IntegrityError, Manifest, MissingDependency
from firstvec.bundle.integrity import OpenFile, open_verified
from firstvec.bundle.manifest import File
from firstvec.text.tokenizer import Tokenizer, as_list, check_texts, open_quick, open_tokenizer
from firstvec.text.wordpiece import QuickTokenizer
from tests.conftest import Fresh, edit_manifest
from tests.loads import flip_byte


@pytest.fixture(scope="module")
def package(bundle: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))


def without_tables(manifest: Manifest) -> Manifest:
    """Let the quick tokenizer be the one in Python."""
    assert manifest.wordpiece is not None
    return manifest.replace(wordpiece=manifest.wordpiece.replace(tables=None))


QUICK = pytest.mark.parametrize("is_native", [True, False], ids=["C", "Python"])
"""The quick tokenizer of the tests."""


@pytest.mark.native
@QUICK
def test_texts_that_are_left_to_the_package_keep_their_place(is_native: bool, tiny_built: Path) -> None:
    texts = ["one", "two [SEP]", "three", "\U0001e900", "five", "[MASK]"]
    manifest = Manifest.read(tiny_built)
    package = tokenizers.Tokenizer.from_file(str(tiny_built / "tokenizer.json"))
    package.no_padding()
    tokenizer = open_tokenizer(manifest if is_native else without_tables(manifest))
    assert isinstance(tokenizer._quick, QuickTokenizer) is not is_native
    assert tokenizer.tokenize(texts) == [package.encode(text).ids for text in texts]


def test_without_rules_the_package_does_it_all(bundle: Path, package: tokenizers.Tokenizer) -> None:
    manifest = Manifest.read(bundle).replace(wordpiece=None)
    assert open_tokenizer(manifest).tokenize(["one", "two"]) == [package.encode(text).ids for text in ("one", "two")]


@pytest.mark.native
@QUICK
def test_the_package_is_imported_for_the_first_text_that_needs_it(
    is_native: bool, tiny_built: Path, fresh: Fresh
) -> None:
    code = """
import sys
from firstvec import Manifest
from firstvec.text.tokenizer import open_tokenizer
manifest = Manifest.read(sys.argv[1])
if sys.argv[2] == "False":
    manifest = manifest.replace(wordpiece=manifest.wordpiece.replace(tables=None))
tokenizer = open_tokenizer(manifest)
assert min(tokenizer.count(["how do I reset my password?", "größer", "日本", "😀"])) > 2
assert "tokenizers" not in sys.modules
assert ("unicodedata" in sys.modules) == (sys.argv[2] == "False")
assert tokenizer.count(["[MASK]"]) == [3]
assert "tokenizers" in sys.modules
"""
    fresh(code, tiny_built, is_native)


@pytest.mark.native
def test_no_text_of_the_default_bundle_needs_the_package(bundle: Path, package: tokenizers.Tokenizer) -> None:
    """An app that ships this bundle needs no tokenizers, whatever people search for."""
    texts = [
        "a search for [SEP]",
        "[CLS][MASK] [PAD]x[UNK]",
        "\u09ce \u1e9e \U0001e900 \u0378 \U0010ffff",
        "[sep] [SEP",
    ]
    quick = open_quick(Manifest.read(bundle))
    assert quick is not None
    assert [quick.tokenize(text) for text in texts] == [package.encode(text).ids for text in texts]


def test_a_package_that_cannot_read_the_file_is_an_error_with_its_reason(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    file = File(path="tokenizer.json", size=2, sha256=hashlib.sha256(b"{}").hexdigest())
    rules = Manifest.read(bundle).wordpiece
    assert rules is not None
    rules = rules.replace(added_tokens=("x",))
    quick = QuickTokenizer(rules, "[UNK]\n", 16)
    tokenizer = Tokenizer(lambda: open_verified(str(tmp_path), file), 16, rules, quick)
    with pytest.raises(IncompatibleArtifact, match=f"cannot read {path}"):
        tokenizer.tokenize(["x"])


@pytest.mark.parametrize(
    ("text", "is_native", "reason"),
    [
        ("a [MASK]", True, r"a text with the special token '\[MASK\]'"),
        ("a [SEP]", False, r"a text with the special token '\[SEP\]'"),
        ("a \u0378", False, r"a text with '\\u0378' \(U\+0378\) at character 2"),
        (f"{'long ' * 9}\U0001e900", False, r"a text with '\\U0001e900' \(U\+1E900\) at character 45"),
    ],
)
def test_a_text_that_needs_a_missing_package_is_an_error_with_its_reason(
    text: str, is_native: bool, reason: str, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    manifest = Manifest.read(tiny_built)
    tokenizer = open_tokenizer(manifest if is_native else without_tables(manifest))
    [count] = tokenizer.count(["plain"])
    installed = r" needs tokenizers, which is not installed: pip install 'firstvec\[tokenizers\]'$"
    with pytest.raises(MissingDependency, match=reason + installed):
        tokenizer.tokenize(["plain", text])
    assert tokenizer.count(["plain"]) == [count]


def test_a_bundle_without_tables_needs_the_package_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="the bundle's tokenizer, of which this install has no tables, needs "):
        open_tokenizer(Manifest.read(bundle).replace(wordpiece=None))


def test_a_package_that_cannot_be_loaded_is_an_error_with_its_reason(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizers.py").write_text("raise ImportError('libstdc++ is too old')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tokenizers")
    with pytest.raises(IncompatibleArtifact, match=r"cannot be imported: libstdc\+\+ is too old; repair its install"):
        open_tokenizer(Manifest.read(bundle).replace(wordpiece=None))


def test_a_vocabulary_that_is_not_utf_8_is_an_incompatible_artifact(tiny_bundle: Path) -> None:
    data = b"\xff\n"
    (tiny_bundle / "vocab.txt").write_bytes(data)

    def change(document: dict[str, Any]) -> None:
        digest = hashlib.sha256(data).hexdigest()
        document["wordpiece"]["vocabulary"].update(size=len(data), sha256=digest)

    edit_manifest(tiny_bundle, change)
    with pytest.raises(IncompatibleArtifact, match="the vocabulary is not UTF-8"):
        open_tokenizer(without_tables(Manifest.read(tiny_bundle)))


@pytest.mark.native
@pytest.mark.parametrize(
    ("name", "is_native"), [("tokenizer.json", True), ("native/wordpiece.fvt", True), ("vocab.txt", False)]
)
def test_a_damaged_file_is_an_integrity_error(name: str, is_native: bool, tiny_bundle: Path) -> None:
    flip_byte(tiny_bundle / name)
    manifest = Manifest.read(tiny_bundle)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        open_tokenizer(manifest if is_native else without_tables(manifest))


@pytest.mark.parametrize("has_alias", [True, False])
def test_the_file_that_was_verified_is_read_though_its_name_leads_to_another(
    has_alias: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_alias:  # a system without /proc
        monkeypatch.setattr(OpenFile, "alias", None)
    texts = ["[MASK] text"]  # see tests/tiny.py
    expected = open_tokenizer(Manifest.read(tiny_bundle)).tokenize(texts)
    tokenizer = open_tokenizer(Manifest.read(tiny_bundle))
    (tiny_bundle / "other.json").write_text("{}")
    (tiny_bundle / "other.json").replace(tiny_bundle / "tokenizer.json")
    assert tokenizer.tokenize(texts) == expected


FORK_DURING_PACKAGE = """
import os, sys, threading, time
from firstvec import OptimizedEmbeddingLoader
provider = OptimizedEmbeddingLoader(sys.argv[1]).get_provider()
assert "tokenizers" not in sys.modules
thread = threading.Thread(target=provider.embed_query, args=("a [MASK] text",))
thread.start()
time.sleep(float(sys.argv[2]))
if child := os.fork():
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
else:
    assert provider.embed_query("[MASK] text").shape == (32,)
    sys.exit(0)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.003, 0.006, 0.012, 0.02])
def test_a_fork_while_the_package_is_loaded_waits_for_it(seconds: float, tiny_built: Path, fresh: Fresh) -> None:
    fresh(FORK_DURING_PACKAGE, tiny_built, seconds)


class PanicException(BaseException):
    """What the package raises where Rust panics, under the same name."""


def test_where_no_thread_can_be_started_the_package_takes_one_text_at_a_time(
    bundle: Path, package: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_tokenizer(Manifest.read(bundle).replace(wordpiece=None))
    tried: list[int] = []

    class WithoutThreads:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            tried.append(len(texts))
            raise PanicException

        def encode(self, text: str) -> Any:
            return package.encode(text)

    monkeypatch.setattr(tokenizer._package, "result", WithoutThreads)
    texts = ["one", "two words"]
    for _ in range(2):
        assert tokenizer.tokenize(texts) == [package.encode(text).ids for text in texts]
    assert tried == [2]  # the second call does not try again


@pytest.mark.parametrize(
    ("texts", "expected"),
    [("one", ["one"]), (["one"], ["one"]), (("one", "two"), ["one", "two"]), (iter("ab"), ["a", "b"]), ([], [])],
)
def test_the_texts_of_a_caller_become_a_list(texts: object, expected: list[str]) -> None:
    assert as_list(texts) == expected


@pytest.mark.parametrize("texts", [{"a"}, frozenset("a"), {"a": 1}])
def test_texts_without_an_order_are_refused(texts: object) -> None:
    with pytest.raises(InputError, match="has no order that vectors could follow: pass a list"):
        as_list(texts)


@pytest.mark.parametrize("texts", [None, 3, object()])
def test_what_is_no_sequence_is_refused(texts: object) -> None:
    with pytest.raises(InputError, match="is neither a str nor a sequence of str"):
        as_list(texts)


def test_a_text_that_cannot_be_tokenized_is_refused_with_its_index() -> None:
    check_texts(["", "größer", "\U0001f600"])
    with pytest.raises(InputError, match=r"^text 1: is bytes, not str; decode it first") as caught:
        check_texts(["a", b"b"])
    assert caught.value.index == 1
    with pytest.raises(InputError, match=r"^text 7: has a lone surrogate .* at character 2") as caught:
        check_texts(["a", "b", "ab\ud800"], 5)
    assert caught.value.index == 7
