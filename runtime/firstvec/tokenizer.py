"""Text → token ids: the quick way where the bundle has one, the tokenizers package for everything else."""

from __future__ import annotations

from functools import partial

from firstvec.background import Once
from firstvec.errors import IncompatibleArtifact, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from firstvec.integrity import OpenFile
    from firstvec.manifest import Manifest
    from firstvec.wordpiece import QuickTokenizer


def open_tokenizer(manifest: Manifest) -> Tokenizer:
    """Open the bundle's tokenizer, its files verified.

    Raises:
        IntegrityError: a file is not the one that was built.
        IncompatibleArtifact: the tokenizers package is needed at once, and cannot read the file.
    """
    from firstvec import integrity

    root, length = manifest.root, manifest.model.max_seq_length

    # It stays open until it is needed, if ever: by then its name may be that of another bundle's.
    file = integrity.open_file(root, manifest.tokenizer)

    def open_json() -> OpenFile:
        return file if file.is_open else integrity.open_file(root, manifest.tokenizer)

    if manifest.wordpiece is None:
        return Tokenizer(open_json, length)
    from firstvec.wordpiece import QuickTokenizer

    data = integrity.read(root, manifest.wordpiece.vocabulary)
    try:
        return Tokenizer(open_json, length, QuickTokenizer(manifest.wordpiece, data.decode(), length))
    except UnicodeDecodeError as error:
        raise IncompatibleArtifact("", f"{root}: the vocabulary is not UTF-8 ({error}); rebuild the bundle") from error


class Tokenizer:
    """The bundle's tokenizer: special tokens added, truncated to ``max_seq_length``, never padded.

    Args:
        open_json: opens the tokenizer.json, verified.
        max_seq_length: tokens, special tokens included.
        quick: gives the same ids, or None, without the tokenizers package, which is then imported when it is needed.

    Raises:
        IncompatibleArtifact: the installed tokenizers package cannot read the file.
    """

    def __init__(
        self, open_json: Callable[[], OpenFile], max_seq_length: int, quick: QuickTokenizer | None = None
    ) -> None:
        self._quick = quick
        self._one_by_one = False
        self._package = Once(partial(_load_package, open_json, max_seq_length))
        if quick is None:
            self._package.result()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids.

        Raises:
            InputError: a text is not a string, or holds a lone surrogate; the error carries its index.
            IncompatibleArtifact: a text needs the tokenizers package, and that cannot read the file.
        """
        check_texts(texts)
        if self._quick is None:
            return self._encode_with_package(texts)
        texts = [self._quick.beginning(text) for text in texts]
        rows = [self._quick.encode(text) for text in texts]
        left = [index for index, row in enumerate(rows) if row is None]
        if left:
            for index, row in zip(left, self._encode_with_package([texts[index] for index in left]), strict=True):
                rows[index] = row
        return rows  # type: ignore[return-value]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return each text's number of tokens, special tokens included, after truncation.

        Raises:
            InputError, IncompatibleArtifact: as `encode`.
        """
        return [len(ids) for ids in self.encode(texts)]

    def _encode_with_package(self, texts: Sequence[str]) -> list[list[int]]:
        package = self._package.result()
        if len(texts) > 1 and not self._one_by_one:
            # It starts a thread pool.
            try:
                return [encoding.ids for encoding in package.encode_batch_fast(texts)]
            except BaseException as error:
                # Rust's panic, no Exception: here it says that no thread can be started.
                if type(error).__name__ != "PanicException":
                    raise
                self._one_by_one = True
        return [package.encode(text).ids for text in texts]


def _load_package(open_json: Callable[[], OpenFile], max_seq_length: int) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise IncompatibleArtifact("", f"tokenizers cannot be imported: {error}; pip install tokenizers") from error
    with open_json() as file:
        alias = file.alias
        content = file.read() if alias is None else b""
        try:
            # Releases the GIL, so that an engine can be imported and opened meanwhile.
            from_file, from_str = tokenizers.Tokenizer.from_file, tokenizers.Tokenizer.from_str
            package = from_file(alias) if alias else from_str(content.decode())
        except Exception as error:  # tokenizers raises plain Exception
            hint = "pip install -U tokenizers"
            raise IncompatibleArtifact(
                "", f"tokenizers {tokenizers.__version__} cannot read {file.path}: {error}; {hint}"
            ) from error
        file.check()
    package.no_padding()
    package.enable_truncation(max_seq_length)
    return package


def listed(texts: Any) -> list[str]:
    """The texts that a caller passed: one, or several in an order.

    Raises:
        InputError: they have no order, or are no texts at all.
    """
    if isinstance(texts, (str, bytes)):
        return [texts]  # type: ignore[list-item]
    if isinstance(texts, (set, frozenset, dict)):
        raise InputError(f"{type(texts).__name__} has no order that vectors could follow: pass a list")
    try:
        return list(texts)
    except TypeError:
        raise InputError(f"{type(texts).__name__} is neither a str nor a sequence of str") from None


def check_texts(texts: Sequence[object], first: int = 0) -> None:
    """Check that every text is one that can be tokenised; ``first`` is the index of the first.

    Raises:
        InputError: one is not a string, or cannot be encoded as UTF-8; the error carries its index.
    """
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            hint = "decode it first: text.decode('utf-8')" if isinstance(text, bytes) else "pass a str"
            raise InputError(f"is {type(text).__name__}, not str; {hint}", index)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"has a lone surrogate {text[error.start]!r} at character {error.start}; "
                    "decode the source with errors='replace'",
                    index,
                ) from error
