"""Text → token ids, with the bundle's tokenizer.json."""

from __future__ import annotations

from firstvec.errors import IncompatibleArtifact, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Tokenizer:
    """The bundle's tokenizer: special tokens added, truncated to ``max_seq_length``, never padded.

    Raises:
        IncompatibleArtifact: the installed tokenizers package cannot read the file.
    """

    def __init__(self, path: str, max_seq_length: int) -> None:
        import tokenizers

        try:
            # Releases the GIL, so that an engine can be imported and opened meanwhile.
            self._tokenizer = tokenizers.Tokenizer.from_file(path)
        except Exception as error:  # tokenizers raises plain Exception
            raise IncompatibleArtifact(
                "", f"tokenizers {tokenizers.__version__} cannot read {path}: {error}; pip install -U tokenizers"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_seq_length)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids.

        Raises:
            InputError: a text is not a string, or holds a lone surrogate; the error carries its index.
        """
        check_texts(texts)
        if len(texts) == 1:
            # encode_batch starts a thread pool.
            return [self._tokenizer.encode(texts[0]).ids]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return each text's number of tokens, special tokens included, after truncation.

        Raises:
            InputError: as `encode`.
        """
        return [len(ids) for ids in self.encode(texts)]


def check_texts(texts: Sequence[object]) -> None:
    """Check that every text is one that can be tokenised.

    Raises:
        InputError: one is not a string, or cannot be encoded as UTF-8; the error carries its index.
    """
    for index, text in enumerate(texts):
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
