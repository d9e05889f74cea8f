"""Text → token ids: the quick tokenizer where the bundle has one, the tokenizers package for everything else."""

from __future__ import annotations

from firstvec.bundle import integrity
from firstvec.errors import IncompatibleArtifact, InputError, MissingDependency, excerpt
from firstvec.machine import native
from firstvec.process.threads import ComputedOnce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from firstvec.bundle.integrity import OpenFile
    from firstvec.bundle.manifest import Manifest, QuickTables, WordPiece

    class Quick(Protocol):
        """A quick tokenizer. None: the text is left to the tokenizers package."""

        def tokenize(self, text: str) -> list[int] | None: ...


FAMILIES = {"unigram": "Unigram", "byte_pairs": "BytePairs"}
"""A manifest's family of tables → the class in the module of the native engine that reads them."""
_LONG = 10_000
"""Characters. A longer text is cut first: truncation drops its end in any case."""


def open_tokenizer(manifest: Manifest) -> Tokenizer:
    """Open the bundle's tokenizer. Its files are verified.

    Raises:
        IntegrityError: a file is not the one that was built.
        MissingDependency: all texts need the tokenizers package, and the package is not installed.
        IncompatibleArtifact: the tokenizers package is needed at once, and cannot read the file.
    """
    root, length = manifest.root, manifest.model.max_seq_length
    # The file stays open until it is needed, if ever. By then its name may lead to another bundle's file.
    file = integrity.open_verified(root, manifest.tokenizer)

    def open_json() -> OpenFile:
        return file if file.is_open else integrity.open_verified(root, manifest.tokenizer)

    return Tokenizer(open_json, length, manifest.wordpiece, open_quick(manifest))


def open_quick(manifest: Manifest) -> Quick | None:
    """Open the quick tokenizer of a bundle. None: there is none, so all texts need the tokenizers package.

    Raises:
        IntegrityError, IncompatibleArtifact: as for `open_tokenizer`.
    """
    root, length = manifest.root, manifest.model.max_seq_length
    if manifest.wordpiece is not None:
        return _open_wordpiece(root, manifest.wordpiece, length)
    if manifest.quick_tokenizer is not None:
        return _open_tables(root, manifest.quick_tokenizer, length)
    return None


def _open_tables(root: str, tables: QuickTables, max_seq_length: int) -> Quick | None:
    """Open the quick tokenizer of a family. None: this firstvec, or its engine, does not know the family or file."""
    kind = getattr(native.module(), FAMILIES.get(tables.family, ""), None)
    if kind is None:
        return None
    with integrity.open_verified(root, tables.tables) as file:
        try:
            quick: Quick = kind(file.descriptor, file.size, max_seq_length)
        except ValueError:
            return None
        file.verify_again()
        return quick


def _open_wordpiece(root: str, rules: WordPiece, max_seq_length: int) -> Quick:
    """Open the quick tokenizer: the one in C where the engine and the bundle have it, else the one in Python."""
    module = native.module()
    if module is not None and rules.tables is not None:
        with integrity.open_verified(root, rules.tables) as file:
            try:
                quick: Quick = module.WordPiece(file.descriptor, file.size, max_seq_length)
            except ValueError:
                pass  # a newer firstvec has written the tables: the vocabulary gives the same ids
            else:
                file.verify_again()
                return quick
    from firstvec.text.wordpiece import QuickTokenizer

    data = integrity.read_verified(root, rules.vocabulary)
    try:
        return QuickTokenizer(rules, data.decode(), max_seq_length)
    except UnicodeDecodeError as error:
        raise IncompatibleArtifact("", f"{root}: the vocabulary is not UTF-8 ({error}); rebuild the bundle") from error


class Tokenizer:
    """The bundle's tokenizer: it adds special tokens, truncates to ``max_seq_length``, and never pads.

    Args:
        open_json: opens the tokenizer.json, verified.
        max_seq_length: tokens, special tokens included.
        rules: of the quick tokenizer, if it is WordPiece.
        quick: gives the same ids as the tokenizers package. Without it the package is loaded at once.
    """

    def __init__(
        self,
        open_json: Callable[[], OpenFile],
        max_seq_length: int,
        rules: WordPiece | None = None,
        quick: Quick | None = None,
    ) -> None:
        self._max_seq_length = max_seq_length
        self._rules = rules
        self._quick = quick
        self._one_by_one = False
        self._package = ComputedOnce(lambda: _load_package(open_json, max_seq_length))
        if quick is None:
            self._tokenize_with_package([])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids.

        Raises:
            InputError: a text is not a string, or holds a lone surrogate. The error has its index.
            MissingDependency: a text needs the tokenizers package, and the package is not installed.
            IncompatibleArtifact: a text needs the tokenizers package, and the package cannot read the file.
        """
        check_texts(texts)
        if self._quick is None:
            return self._tokenize_with_package(texts)
        if self._rules is not None and max(map(len, texts), default=0) > _LONG:
            texts = [_cut(text, self._rules, self._max_seq_length) for text in texts]
        rows = [*map(self._quick.tokenize, texts)]
        left = [text for text, row in zip(texts, rows, strict=True) if row is None]
        others = iter(self._tokenize_with_package(left) if left else ())
        return [next(others) if row is None else row for row in rows]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return each text's number of tokens, special tokens included, after truncation. Errors as of `tokenize`."""
        return [len(ids) for ids in self.tokenize(texts)]

    def _tokenize_with_package(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            package = self._package.result()
        except ModuleNotFoundError as error:
            what = self._why_left(texts[0]) if texts else "the bundle's tokenizer, of which this install has no tables,"
            raise MissingDependency(what, "tokenizers", "firstvec[tokenizers]") from error
        if len(texts) > 1 and not self._one_by_one:  # a batch starts a thread pool
            try:
                return [encoding.ids for encoding in package.encode_batch_fast(texts)]
            except BaseException as error:
                # A panic of Rust is no Exception. Here it means that no thread can be started.
                if type(error).__name__ != "PanicException":
                    raise
                self._one_by_one = True
        return [package.encode(text).ids for text in texts]

    def _why_left(self, text: str) -> str:
        """Return what the quick tokenizer has left to the package, for people."""
        quick = self._quick
        if quick is None:
            return "a text"
        for token in self._rules.added_tokens if self._rules is not None else ():
            if token in text:
                return f"a text with the special token {excerpt(token)!r}"
        from bisect import bisect

        # A longer beginning is left, too: the first one that is ends with the reason.
        length = bisect(range(len(text)), 0, key=lambda end: quick.tokenize(text[: end + 1]) is None)
        found = text[length : length + 1]
        return f"a text with {found!a} (U+{ord(found or chr(0)):04X}) at character {length}"


def _cut(text: str, rules: WordPiece, max_seq_length: int) -> str:
    """Return the beginning of a long text. It has the same first tokens, as many as truncation leaves."""
    if any(" " in token for token in rules.added_tokens):
        return text
    room = max_seq_length - len(rules.prefix_ids) - len(rules.suffix_ids)
    words = text.split(" ", 4 * room)
    # Each of these words has at least one token, and no token goes on behind a space.
    certain = sum(word.isascii() and word.isprintable() for word in words[:-1] if word)
    return text[: len(text) - len(words[-1])] if certain >= room else text


def _load_package(open_json: Callable[[], OpenFile], max_seq_length: int) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise IncompatibleArtifact("", f"tokenizers cannot be imported: {error}; repair its install") from error
    with open_json() as file:
        alias = file.alias
        content = file.read() if alias is None else b""
        load = tokenizers.Tokenizer
        try:
            # Both calls release the GIL, so an engine can be imported and opened meanwhile.
            package = load.from_file(alias) if alias else load.from_str(content.decode())
        except Exception as error:  # tokenizers raises plain Exception
            reason = f"tokenizers {tokenizers.__version__} cannot read {file.path}: {error}"
            raise IncompatibleArtifact("", f"{reason}; pip install -U tokenizers") from error
        file.verify_again()
    package.no_padding()
    package.enable_truncation(max_seq_length)
    return package


def as_list(texts: Any) -> list[str]:
    """Return the texts of a call as a list, or raise InputError if they have no order or are no texts at all."""
    if isinstance(texts, (str, bytes)):
        return [texts]  # type: ignore[list-item]
    if isinstance(texts, (set, frozenset, dict)):
        raise InputError(f"{type(texts).__name__} has no order that vectors could follow: pass a list")
    try:
        return list(texts)
    except TypeError:
        raise InputError(f"{type(texts).__name__} is neither a str nor a sequence of str") from None


def check_texts(texts: Sequence[object], first: int = 0) -> None:
    """Raise InputError if a text is not a string, or has a lone surrogate. ``first`` is the index of the first text."""
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            hint = "decode it first: text.decode('utf-8')" if isinstance(text, bytes) else "pass a str"
            if isinstance(text, (list, tuple)) or type(text).__name__ == "ndarray":
                hint = (
                    "a pair of texts has no vector, because a bundle's graph has no type of token: join the two texts"
                )
            raise InputError(f"is {type(text).__name__}, not str; {hint}", index)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                found = f"has a lone surrogate {text[error.start]!r} at character {error.start}"
                raise InputError(f"{found}; decode the source with errors='replace'", index) from error
