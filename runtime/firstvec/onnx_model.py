"""An ONNX model whose weights lie in other files: its bytes, and each weight where it lies in memory.

The engine is given both, so that it opens no file by itself: what was verified is what it uses, wherever the model says
that its weights are. Of the model's Protocol Buffers (onnx.proto3) only the graph's list of initializers is read here.
The engine's parser takes what no encoder writes, a number that is too long, say, and reads it in its own way. It is
refused here, so that both see the same weights.
"""

from __future__ import annotations

from math import prod

from firstvec.errors import IncompatibleArtifact
from firstvec.mapping import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from firstvec.integrity import OpenFile

_GRAPH, _TRAINING_INFO, _FUNCTIONS = 7, 20, 25  # ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14  # TensorProto
_KEY, _VALUE = 1, 2  # StringStringEntryProto
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types
_WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""TensorProto.DataType → bytes of an element. ONNX's numbers are also those of onnxruntime's tensor types."""


class OnnxModel:
    """A model and its weights. ``weights`` holds name, element type, dimensions, address and bytes of each.

    Args:
        artifact: id for error messages.
        files: the model, and the files that hold its weights, open and verified.

    Raises:
        IncompatibleArtifact: it is no ONNX model, or says that its weights lie elsewhere, or not in whole.
        IntegrityError: the file changed while it was read.
    """

    def __init__(self, artifact: str, files: Sequence[OpenFile]) -> None:
        self.data = files[0].read()
        self.weights: list[tuple[bytes, int, tuple[int, ...], int, int]] = []
        self.mappings: dict[str, Mapping] = {}
        """Where the model says that weights lie → the file in memory. A session needs them for as long as it lives."""
        try:
            for name, kind, dims, entries in _external(self.data):
                location = entries.get(b"location", b"").decode()
                offset, length = int(entries.get(b"offset", b"0")), int(entries[b"length"])
                mapping = self._mapping(location, files)
                if mapping is None:
                    raise IncompatibleArtifact(
                        artifact, f"{files[0].path} has weights in {location!r}, which is no file of this artifact"
                    )
                whole = length == prod(dims) * _WIDTHS[kind] and min(dims, default=0) >= 0
                if not whole or not 0 <= offset <= mapping.size - length:
                    raise ValueError(f"{name!r} does not lie in {location!r} in whole")
                self.weights.append((name, kind, dims, mapping.address + offset, length))
        except (ValueError, IndexError, KeyError) as error:
            raise IncompatibleArtifact(artifact, f"{files[0].path} is not an ONNX model ({error})") from error
        except OSError as error:
            raise IncompatibleArtifact(artifact, f"{files[0].path}: its weights: {error.strerror or error}") from error

    def _mapping(self, location: str, files: Sequence[OpenFile]) -> Mapping | None:
        """The file at ``location``, seen from the model, if it is one of ``files``."""
        if location not in self.mappings:
            folder = files[0].relative_path.rpartition("/")[0]
            for file in files[1:]:
                if file.relative_path == (f"{folder}/{location}" if folder else location):
                    self.mappings[location] = Mapping(file.descriptor, file.size)
        return self.mappings.get(location)

    def forget(self) -> None:
        """Let the system drop the weights' pages: the engine has made copies of most."""
        for mapping in self.mappings.values():
            mapping.forget()


def _external(data: bytes) -> Iterator[tuple[bytes, int, tuple[int, ...], dict[bytes, bytes]]]:
    """Name, element type, dimensions and place of each initializer of the graph that lies in another file.

    Raises:
        ValueError, IndexError: this is not an ONNX model, or one that hides such weights elsewhere.
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
            found = _tensor(data, _message(start), end)
            if found is not None:
                yield found
        elif field in (_NODE, _SPARSE_INITIALIZER) and data.find(b"location", _message(start), end) >= 0:
            raise ValueError("a constant inside of a node may lie in another file")


def _tensor(data: bytes, start: int, end: int) -> tuple[bytes, int, tuple[int, ...], dict[bytes, bytes]] | None:
    name, kind, external = b"", 0, False
    dims: list[int] = []
    entries: dict[bytes, bytes] = {}
    for field, first, last in _fields(data, start, end):
        if field == _DIMS:
            if first < 0:  # packed
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
            external = place == 1
        elif field == _EXTERNAL_DATA:
            entry = {number: data[_message(a) : b] for number, a, b in _fields(data, _message(first), last)}
            if (key := entry.get(_KEY, b"")) in entries:
                raise ValueError(f"external_data has {key!r} twice")
            entries[key] = entry.get(_VALUE, b"")
    return (name, kind, tuple(dims), entries) if external else None


def _message(start: int) -> int:
    """Where a value begins that must have a length, by its field."""
    if start < 0:
        raise ValueError("a number stands where a message should")
    return start


def _number(start: int, value: int) -> int:
    """A value that must be a number, by its field."""
    if start >= 0:
        raise ValueError("a message stands where a number should")
    return value


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, begin and end of each value; for a number -1 and the number."""
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
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, position, position + value
            position += value
    if position != end:
        raise ValueError("it is cut off")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position``, as a signed 64-bit one, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64 or (shift and not byte):
                raise ValueError("a number is longer than it need be")
            return (value - (1 << 64) if value >> 63 else value), position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
