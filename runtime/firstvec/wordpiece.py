"""Text → token ids for BERT's WordPiece, without the tokenizers package: its import and load would be the longest part
of the first vector (29 ms in a fresh process; this module and its vocabulary 4 ms, 2-core AMD EPYC).

It gives the ids that the bundle's tokenizer.json gives, or None: then the caller asks the tokenizers package. It takes
texts of characters that Unicode 3.2 had assigned, and of later symbols: on those, every one of which is compared in the
tests, the tokenizers package and Python agree, whatever their Unicode versions. A text with another character, or with
one of the tokenizer's added tokens, is left to the tokenizers package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.manifest import WordPiece

_DISAGREED = frozenset("\u166d\u1734\u1885\u1886")
"""Characters whose category has changed since, so that it depends on the Unicode version of either package."""

_IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
"""Blocks that BERT sets apart character by character (its tokenization.py), as far as Unicode 3.2 has them."""


_LONG = 10_000
"""Characters; of a text of more, only what is needed is looked at."""


class Elsewhere(Exception):
    """The text has a character that only the tokenizers package may judge."""


class QuickTokenizer:
    """BERT's normaliser, pre-tokeniser, WordPiece and special tokens, truncated to ``max_seq_length``.

    Args:
        rules: the manifest's.
        vocabulary: the text of the vocabulary file, one token a line, in the order of their ids.
        max_seq_length: tokens, special tokens included.
    """

    def __init__(self, rules: WordPiece, vocabulary: str, max_seq_length: int) -> None:
        tokens = vocabulary.removesuffix("\n").split("\n")
        self._ids = dict(zip(tokens, range(len(tokens)), strict=True))
        self._rules = rules
        self._room = max_seq_length - len(rules.prefix_ids) - len(rules.suffix_ids)
        self._characters = _Characters(lowercase=rules.lowercase, strip_accents=rules.strip_accents)

    def encode(self, text: str) -> list[int] | None:
        """Return the text's token ids, or None if the tokenizers package has to be asked."""
        rules = self._rules
        for token in rules.added_tokens:
            if token in text:
                return None
        try:
            words = text.translate(self._characters).split()
        except Elsewhere:
            return None
        ids: list[int] = []
        for word in words:
            if len(ids) >= self._room:
                break
            known = self._ids.get(word)
            if known is not None and len(word) <= rules.max_input_chars_per_word:
                ids.append(known)
            else:
                ids += self._pieces(word)
        return [*rules.prefix_ids, *ids[: self._room], *rules.suffix_ids]

    def beginning(self, text: str) -> str:
        """As much of a text as has all the tokens that truncation leaves, for this tokenizer and for the package."""
        if len(text) <= _LONG or any(" " in token for token in self._rules.added_tokens):
            return text
        words = text.split(" ", 4 * self._room)
        # Each of these has a token of its own at least, and none has one in common with what comes behind a space.
        certain = sum(word.isascii() and word.isprintable() for word in words[:-1] if word)
        return text[: len(text) - len(words[-1])] if certain >= self._room else text

    def _pieces(self, word: str) -> list[int]:
        """The longest piece of the vocabulary first; the unknown token if a rest is left (tokenizers, wordpiece)."""
        unknown = [self._rules.unk_id]
        if len(word) > self._rules.max_input_chars_per_word:
            return unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get(f"##{word[start:end]}" if start else word[:end])
                if piece is not None:
                    ids.append(piece)
                    start = end
                    break
            else:
                return unknown
        return ids


class _Characters(dict[int, str]):
    """Code point → what becomes of it, for `str.translate`: normalised, and set apart by spaces where words end.

    Normalising character by character is enough: what depends on neighbours in NFD is the order of combining marks,
    and those are removed.
    """

    def __init__(self, *, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = result = self._ascii(chr(code)) if code < 128 else self._beyond(chr(code))
        return result

    def _ascii(self, character: str) -> str:
        if character in "\t\n\r ":
            return " "
        if not character.isprintable():
            return ""
        if not character.isalnum():
            return f" {character} "
        return character.lower() if self._lowercase else character

    def _beyond(self, character: str) -> str:
        import unicodedata  # 1 ms, which English does not need

        category = unicodedata.category
        if character in _DISAGREED:
            raise Elsewhere
        if unicodedata.ucd_3_2_0.category(character) == "Cn":
            # Later symbols, emoji among them, are nothing special to either package, assigned or not.
            if category(character)[0] != "S" or unicodedata.decomposition(character):
                raise Elsewhere
            return character
        if character == "\ufffd" or category(character)[0] == "C":
            return ""
        if character.isspace():
            return " "
        result = []
        for part in unicodedata.normalize("NFD", character) if self._strip_accents else character:
            if self._strip_accents and category(part) == "Mn":
                continue
            for each in part.lower() if self._lowercase else part:
                apart = category(each)[0] == "P" or (each.isascii() and each.isprintable() and not each.isalnum())
                result.append(f" {each} " if apart else each)
        joined = "".join(result)
        return f" {joined} " if any(low <= ord(character) <= high for low, high in _IDEOGRAPHS) else joined
