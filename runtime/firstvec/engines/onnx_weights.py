"""The weights of a verified ONNX artifact: the model's bytes, and where each weight lies in memory.

An engine is given the bytes and the addresses, so the engine opens no file by itself. What was verified is what is
used, whatever the model says about the place of its weights. This reader looks at one part of the model's Protocol
Buffers (onnx.proto3): the graph's list of initializers. onnxruntime's parser also accepts encodings that no encoder
writes, for example a number with more bytes than it needs. This reader refuses them, so that both see the same weights.

onnxruntime's own ``AddExternalInitializersFromFilesInMemory`` refuses other locations, too, but copies every weight:
in fp32, a session opens in 89 to 106 ms instead of 5, with 86 MB more memory (docs/architecture.md).
"""

from __future__ import annotations

from math import prod

from firstvec.engines.file_mapping import FileMapping
from firstvec.errors import IncompatibleArtifact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from firstvec.bundle.integrity import OpenFile

    Tensor = tuple[bytes, int, tuple[int, ...], dict[bytes, bytes]]
    """Name, element type, dimensions, and where the file has the data."""

_VARINT, _BYTES = 0, 2  # wire types
_FIXED = {1: 8, 5: 4}  # wire type → bytes of a value
_GRAPH, _TRAINING_INFO, _FUNCTIONS = 7, 20, 25  # ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14  # TensorProto
_KEY, _VALUE = 1, 2  # StringStringEntryProto
# Of each message: field → the wire type that it must have
_MODEL = dict.fromkeys((_GRAPH, _TRAINING_INFO, _FUNCTIONS), _BYTES)
_IN_GRAPH = dict.fromkeys((_NODE, _INITIALIZER, _SPARSE_INITIALIZER), _BYTES)
_TENSOR = {_DATA_TYPE: _VARINT, _NAME: _BYTES, _EXTERNAL_DATA: _BYTES, _DATA_LOCATION: _VARINT}
_ENTRY = {_KEY: _BYTES, _VALUE: _BYTES}
ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""TensorProto.DataType → bytes of an element. onnxruntime's tensor types have the same numbers."""


class OnnxWeights:
    """The model in ``files[0]``, and where the other files, which are mapped, hold its weights. All are verified.

    Raises:
        IncompatibleArtifact: the file is no ONNX model, or a weight is not whole in one of these files.
        IntegrityError: the file changed while it was read.
    """

    def __init__(self, artifact_id: str, files: Sequence[OpenFile]) -> None:
        self.model = files[0].read()
        self.tensors: list[tuple[bytes, int, tuple[int, ...], int, int]] = []
        """Name, element type, dimensions, address and bytes of each weight."""
        self.mappings: dict[str, FileMapping] = {}
        """Location in the model → the file in memory. A session needs the files for as long as it lives."""
        path, folder = files[0].path, files[0].relative_path.rpartition("/")[0]
        others = {file.relative_path: file for file in files[1:]}
        try:
            for name, kind, dims, entries in external_tensors(self.model):
                location = entries.get(b"location", b"").decode()
                offset, length = int(entries.get(b"offset", b"0")), int(entries[b"length"])
                if location not in self.mappings:
                    file = others.get(f"{folder}/{location}" if folder else location)
                    if file is None:
                        problem = f"has weights in {location[:80]!r}, which is no file of this artifact"
                        raise IncompatibleArtifact(artifact_id, f"{path} {problem}")
                    self.mappings[location] = FileMapping(file.descriptor, file.size)
                mapping = self.mappings[location]
                is_whole = length == prod(dims) * ELEMENT_BYTES[kind] and min(dims, default=0) >= 0
                if not is_whole or not 0 <= offset <= mapping.size - length:
                    raise ValueError(f"{name[:80]!r} is not whole in {location!r}")
                self.tensors.append((name, kind, dims, mapping.address + offset, length))
        except (ValueError, IndexError, KeyError) as error:
            raise IncompatibleArtifact(artifact_id, f"{path} is not an ONNX model ({error})") from error
        except OSError as error:
            raise IncompatibleArtifact(artifact_id, f"{path}: its weights: {error.strerror or error}") from error

    def drop_pages(self) -> None:
        """Let the system drop the weights' pages, because the engine has copied most weights."""
        for mapping in self.mappings.values():
            mapping.drop_pages()


read_weights = OnnxWeights
"""The function that `firstvec.engines.table.Engine.weights_reader` promises."""


def external_tensors(data: bytes) -> Iterator[Tensor]:
    """Yield each initializer of the graph that lies in another file.

    Raises:
        ValueError, IndexError: the bytes are not an ONNX model, or a model that hides such weights elsewhere.
    """
    graphs = []
    for field, start, end in _fields(data, 0, len(data), _MODEL):
        if field == _GRAPH:
            graphs.append((start, end))
        elif field in _MODEL and data.find(b"location", start, end) >= 0:
            raise ValueError("a constant inside of a function may lie in another file")
    if len(graphs) != 1:
        raise ValueError("it has two graphs" if graphs else "it has no graph")
    for field, start, end in _fields(data, *graphs[0], _IN_GRAPH):
        if field == _INITIALIZER:
            if (tensor := _external_tensor(data, start, end)) is not None:
                yield tensor
        elif field in _IN_GRAPH and data.find(b"location", start, end) >= 0:
            raise ValueError("a constant inside of a node may lie in another file")


def _external_tensor(data: bytes, start: int, end: int) -> Tensor | None:
    """Read a TensorProto. Return None if its data is in the model itself."""
    name, kind, is_external = b"", 0, False
    dims: list[int] = []
    entries: dict[bytes, bytes] = {}
    for field, first, last in _fields(data, start, end, _TENSOR):
        if field == _DIMS and first < 0:
            dims.append(last)
        elif field == _DIMS:  # packed
            while first < last:
                value, first = _varint(data, first)
                dims.append(value)
        elif field == _DATA_TYPE:
            kind = last
        elif field == _NAME:
            name = data[first:last]
        elif field == _DATA_LOCATION:
            if last not in (0, 1):
                raise ValueError(f"data_location {last}")
            is_external = last == 1
        elif field == _EXTERNAL_DATA:
            entry = {key: data[a:b] for key, a, b in _fields(data, first, last, _ENTRY)}
            if (key := entry.get(_KEY, b"")) in entries:
                raise ValueError(f"external_data has {key[:80]!r} twice")
            entries[key] = entry.get(_VALUE, b"")
    return (name, kind, tuple(dims), entries) if is_external else None


def _fields(data: bytes, position: int, end: int, wire_types: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield field number, begin and end of each value of a message. For a number: field number, -1 and the number."""
    while position < end:
        key = data[position]
        position += 1
        if key > 127:
            key, position = _varint(data, position - 1)
            if not 0 < key < 1 << 32:
                raise ValueError(f"a field's number is {key >> 3}")
        field, kind = key >> 3, key & 7
        if kind in _FIXED:
            position += _FIXED[kind]
            continue
        value = data[position]
        position += 1
        if value > 127:
            value, position = _varint(data, position - 1)
        if wire_types.get(field, kind) != kind or kind not in (_VARINT, _BYTES):
            raise ValueError(f"field {field} has the wire type {kind}")
        if kind == _VARINT:
            yield field, -1, value
            continue
        if not 0 <= value <= end - position:
            raise ValueError("a field is longer than the message that holds it")
        yield field, position, position + value
        position += value
    if position != end:
        raise ValueError("it is cut off")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position``, as a signed 64-bit one, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64 or (shift and not byte):
                raise ValueError("a number has more bytes than it needs")
            return (value - (1 << 64) if value >> 63 else value), position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
