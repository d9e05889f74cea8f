"""The quick tokenizer: BERT's WordPiece without the tokenizers package.

The import and load of that package would be the longest part of the first vector: 29 ms in a fresh process, against
4 ms for this module and its vocabulary (2-core AMD EPYC).

The quick tokenizer returns the ids that the bundle's tokenizer.json gives, or None. After None the caller asks the
tokenizers package. The quick tokenizer takes texts of characters that Unicode 3.2 had assigned, and of later symbols.
On those the tokenizers package and Python agree, whatever their Unicode versions: the tests compare every one. It
leaves a text to the package if the text has another character, or one of the tokenizer's added tokens.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bundle.manifest import WordPiece

_RECLASSIFIED = frozenset("\u166d\u1734\u1885\u1886")
"""Unicode has moved these characters to another category, so the result would depend on the Unicode version."""

_IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
"""Blocks whose characters are words of their own for BERT (its tokenization.py), as far as Unicode 3.2 has them."""


class LeaveToPackage(Exception):
    """The text has a character that only the tokenizers package may judge."""


class QuickTokenizer:
    """BERT's normalizer, pre-tokenizer, WordPiece and special tokens, truncated to ``max_seq_length``."""

    def __init__(self, rules: WordPiece, vocabulary: str, max_seq_length: int) -> None:
        tokens = vocabulary.removesuffix("\n").split("\n")
        self._ids = dict(zip(tokens, range(len(tokens)), strict=True))
        self._rules = rules
        self._room = max_seq_length - len(rules.prefix_ids) - len(rules.suffix_ids)
        self._characters = Characters(lowercase=rules.lowercase, strip_accents=rules.strip_accents)

    def tokenize(self, text: str) -> list[int] | None:
        """Return the text's token ids, or None if the tokenizers package has to be asked."""
        rules = self._rules
        for token in rules.added_tokens:
            if token in text:
                return None
        try:
            words = text.translate(self._characters).split()
        except LeaveToPackage:
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

    def _pieces(self, word: str) -> list[int]:
        """Return the longest pieces of the vocabulary, or the unknown token if a rest is left."""
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


class Characters(dict[int, str]):
    """Code point → its normalized form for `str.translate`. Spaces around it end the words before and after it.

    One character at a time is enough: in NFD only the order of combining marks depends on neighbours, and combining
    marks are removed.
    """

    def __init__(self, *, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = result = self._ascii(chr(code)) if code < 128 else self._beyond_ascii(chr(code))
        return result

    def _ascii(self, character: str) -> str:
        if character in "\t\n\r ":
            return " "
        if not character.isalnum():
            return f" {character} " if character.isprintable() else ""
        return character.lower() if self._lowercase else character

    def _beyond_ascii(self, character: str) -> str:
        import unicodedata  # 1 ms, which English texts do not need

        category = unicodedata.category
        if character in _RECLASSIFIED:
            raise LeaveToPackage
        if unicodedata.ucd_3_2_0.category(character) == "Cn":
            # A later symbol, for example an emoji, is an ordinary character for Python and for the package.
            if category(character)[0] != "S" or unicodedata.decomposition(character):
                raise LeaveToPackage
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
                is_word = category(each)[0] == "P" or (each.isascii() and each.isprintable() and not each.isalnum())
                result.append(f" {each} " if is_word else each)
        joined = "".join(result)
        return f" {joined} " if any(low <= ord(character) <= high for low, high in _IDEOGRAPHS) else joined
