"""The weights of a verified ONNX artifact: the model's bytes, and where each weight lies in memory.

An engine is given the bytes and the addresses, so the engine opens no file by itself. What was verified is what is
used, whatever the model says about the place of its weights. This reader looks at one part of the model's Protocol
Buffers (onnx.proto3): the graph's list of initializers. onnxruntime's parser also accepts encodings that no encoder
writes, for example a number with more bytes than it needs. This reader refuses them, so that both see the same weights.

onnxruntime's own ``AddExternalInitializersFromFilesInMemory`` would make this reader unnecessary: it refuses other
locations, too. But it copies every weight. onnxruntime 1.32, all-MiniLM-L6-v2, AMD EPYC: a session opens in 89 to
106 ms instead of 5 (fp32) and in 28 ms instead of 6 (INT8), with 86 MB more memory in fp32 (docs/architecture.md).
"""

from __future__ import annotations

from math import prod

from firstvec.engines.file_mapping import FileMapping
from firstvec.errors import IncompatibleArtifact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from firstvec.bundle.integrity import OpenFile

_GRAPH, _TRAINING_INFO, _FUNCTIONS = 7, 20, 25  # ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14  # TensorProto
_KEY, _VALUE = 1, 2  # StringStringEntryProto
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types
ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""TensorProto.DataType → bytes of an element. onnxruntime's tensor types have the same numbers."""


def read_weights(artifact_id: str, files: Sequence[OpenFile]) -> OnnxWeights:
    """Read the model in ``files[0]`` and map the other files, which hold its weights. All files are verified.

    Raises:
        IncompatibleArtifact: the file is no ONNX model, or a weight is not whole in one of these files.
        IntegrityError: the file changed while it was read.
    """
    return OnnxWeights(artifact_id, files)


class OnnxWeights:
    """A model's bytes, and its weights: name, element type, dimensions, address and bytes of each."""

    def __init__(self, artifact_id: str, files: Sequence[OpenFile]) -> None:
        self.model = files[0].read()
        self.tensors: list[tuple[bytes, int, tuple[int, ...], int, int]] = []
        self.mappings: dict[str, FileMapping] = {}
        """Location in the model → the file in memory. A session needs the files for as long as it lives."""
        try:
            for name, kind, dims, entries in external_tensors(self.model):
                location = entries.get(b"location", b"").decode()
                offset, length = int(entries.get(b"offset", b"0")), int(entries[b"length"])
                mapping = self._mapping(location, files)
                if mapping is None:
                    raise IncompatibleArtifact(
                        artifact_id, f"{files[0].path} has weights in {location!r}, which is no file of this artifact"
                    )
                is_whole = length == prod(dims) * ELEMENT_BYTES[kind] and min(dims, default=0) >= 0
                if not is_whole or not 0 <= offset <= mapping.size - length:
                    raise ValueError(f"{name!r} is not whole in {location!r}")
                self.tensors.append((name, kind, dims, mapping.address + offset, length))
        except (ValueError, IndexError, KeyError) as error:
            raise IncompatibleArtifact(artifact_id, f"{files[0].path} is not an ONNX model ({error})") from error
        except OSError as error:
            raise IncompatibleArtifact(
                artifact_id, f"{files[0].path}: its weights: {error.strerror or error}"
            ) from error

    def _mapping(self, location: str, files: Sequence[OpenFile]) -> FileMapping | None:
        """Map the file at ``location``, as the model sees it, if that is one of ``files``."""
        if location not in self.mappings:
            folder = files[0].relative_path.rpartition("/")[0]
            for file in files[1:]:
                if file.relative_path == (f"{folder}/{location}" if folder else location):
                    self.mappings[location] = FileMapping(file.descriptor, file.size)
        return self.mappings.get(location)

    def drop_pages(self) -> None:
        """Let the system drop the weights' pages, because the engine has copied most weights."""
        for mapping in self.mappings.values():
            mapping.drop_pages()


def external_tensors(data: bytes) -> Iterator[tuple[bytes, int, tuple[int, ...], dict[bytes, bytes]]]:
    """Yield name, element type, dimensions and place of each initializer of the graph that lies in another file.

    Raises:
        ValueError, IndexError: the bytes are not an ONNX model, or a model that hides such weights elsewhere.
    """
    graph = None
    for field, start, end in _fields(data, 0, len(data)):
        if field == _GRAPH:
            if graph is not None:
                raise ValueError("it has two graphs")
            graph = _message(start), end
        elif field in (_TRAINING_INFO, _FUNCTIONS) and data.find(b"location", _message(start), end) >= 0:
            raise ValueError("a constant inside of a function may lie in another file")
    if graph is None:
        raise ValueError("it has no graph")
    for field, start, end in _fields(data, *graph):
        if field == _INITIALIZER:
            found = _external_tensor(data, _message(start), end)
            if found is not None:
                yield found
        elif field in (_NODE, _SPARSE_INITIALIZER) and data.find(b"location", _message(start), end) >= 0:
            raise ValueError("a constant inside of a node may lie in another file")


def _external_tensor(
    data: bytes, start: int, end: int
) -> tuple[bytes, int, tuple[int, ...], dict[bytes, bytes]] | None:
    """Read a TensorProto. Return None if its data is in the model itself."""
    name, kind, is_external = b"", 0, False
    dims: list[int] = []
    entries: dict[bytes, bytes] = {}
    for field, first, last in _fields(data, start, end):
        if field == _DIMS:
            if first < 0:  # not packed
                dims.append(last)
            else:
                while first < last:
                    value, first = _varint(data, first)
                    dims.append(value)
        elif field == _DATA_TYPE:
            kind = _number(first, last)
        elif field == _NAME:
            name = data[_message(first) : last]
        elif field == _DATA_LOCATION:
            if (place := _number(first, last)) not in (0, 1):
                raise ValueError(f"data_location {place}")
            is_external = place == 1
        elif field == _EXTERNAL_DATA:
            entry = {number: data[_message(a) : b] for number, a, b in _fields(data, _message(first), last)}
            if (key := entry.get(_KEY, b"")) in entries:
                raise ValueError(f"external_data has {key!r} twice")
            entries[key] = entry.get(_VALUE, b"")
    return (name, kind, tuple(dims), entries) if is_external else None


def _message(start: int) -> int:
    """Return where a value begins that must be a message or bytes."""
    if start < 0:
        raise ValueError("a number stands where a message should")
    return start


def _number(start: int, value: int) -> int:
    """Return a value that must be a number."""
    if start >= 0:
        raise ValueError("a message stands where a number should")
    return value


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield field number, begin and end of each value. For a number: field number, -1 and the number."""
    while position < end:
        key = data[position]
        position += 1
        if key > 127:
            key, position = _varint(data, position - 1)
            if not 0 < key < 1 << 32:
                raise ValueError(f"a field's number is {key >> 3}")
        kind = key & 7
        if kind == _FIXED_64:
            position += 8
            continue
        if kind == _FIXED_32:
            position += 4
            continue
        if kind not in (_VARINT, _BYTES):
            raise ValueError(f"wire type {kind}")
        value = data[position]
        position += 1
        if value > 127:
            value, position = _varint(data, position - 1)
        if kind == _VARINT:
            yield key >> 3, -1, value
        else:
            if not 0 <= value <= end - position:
                raise ValueError("a field is longer than the message that holds it")
            yield key >> 3, position, position + value
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
