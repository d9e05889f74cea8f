"""Where an ONNX model's weights lie: what the file says is compared with the verified files, and mapped."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from firstvec import IncompatibleArtifact, Manifest, OptimizedEmbeddingLoader
from firstvec.bundle.integrity import open_verified
from firstvec.bundle.manifest import File
from firstvec.engines.onnx_weights import ELEMENT_BYTES, OnnxWeights, external_tensors, read_weights
from firstvec.errors import FirstvecError
from firstvec.loading.opening import verify_artifact
from firstvec_build import publishing
from tests.conftest import edit_manifest
from tests.loads import artifact_of, keep_only

FLOAT = onnx.TensorProto.FLOAT


def weight(
    name: str = "w",
    *,
    location: str = "model.onnx_data",
    offset: int = 0,
    length: int = 16,
    dims: tuple[int, ...] = (4,),
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=dims, data_type=FLOAT, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def inline(tensor: onnx.TensorProto) -> bytes:
    """The tensor without its data_location."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("data_location")
    return copy.SerializeToString()


def varint(number: int) -> bytes:
    """A number as Protocol Buffers write it."""
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes, *, more: int = 0) -> bytes:
    """A field that has a length; ``more`` is added to what says which field it is."""
    return varint((number << 3 | 2) + (more << 3)) + varint(len(content)) + content


def model_of(*initializers: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    graph = onnx.GraphProto(name="graph", initializer=initializers, node=nodes)
    return onnx.ModelProto(ir_version=8, graph=graph).SerializeToString()


def weights_of(root: Path, data: bytes, *, folder: str = "onnx") -> OnnxWeights:
    """Write the model into files of a bundle, its weights the numbers 0 to 15, and read the weights."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "model.onnx").write_bytes(data)
    np.arange(16, dtype=np.float32).tofile(root / folder / "model.onnx_data")
    names = (f"{folder}/model.onnx", f"{folder}/model.onnx_data")
    return read_weights("onnx-fp32", [open_verified(str(root), publishing.describe_file(root, name)) for name in names])


def test_the_weights_of_real_artifacts_are_those_that_onnx_reads(bundle: Path) -> None:
    for artifact in Manifest.read(bundle).artifacts:
        if artifact.format != "onnx":
            continue
        weights = read_weights(artifact.id, [open_verified(str(bundle), file) for file in artifact.files])
        expected = onnx.load(str(bundle / artifact.files[0].path), load_external_data=False)
        outside = [tensor for tensor in expected.graph.initializer if tensor.data_location == tensor.EXTERNAL]
        assert [name.decode() for name, *_ in weights.tensors] == [tensor.name for tensor in outside]
        assert [dims for _, _, dims, _, _ in weights.tensors] == [tuple(tensor.dims) for tensor in outside]
        content = (bundle / artifact.files[1].path).read_bytes()
        for (_, _, _, address, size), tensor in zip(weights.tensors, outside, strict=True):
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert size == int(place["length"])
            offset = int(place["offset"])
            assert ctypes.string_at(address, size) == content[offset : offset + size]


def test_a_weight_in_the_bundles_own_folder_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model_of(weight()))
    np.arange(16, dtype=np.float32).tofile(tmp_path / "model.onnx_data")
    names = ("model.onnx", "model.onnx_data")
    files = [open_verified(str(tmp_path), publishing.describe_file(tmp_path, name)) for name in names]
    assert [name for name, *_ in read_weights("x", files).tensors] == [b"w"]


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../../../etc/passwd",
        "../onnx/model.onnx_data",
        "other.bin",
        "./model.onnx_data",
        "",
        "model.onnx",
    ],
)
def test_weights_outside_of_the_artifacts_files_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match=r"has weights in .*, which is no file of this artifact"):
        weights_of(tmp_path, model_of(weight(location=location)))


@pytest.mark.parametrize(
    "tensor",
    [
        weight(length=15),
        weight(offset=52),
        weight(offset=-4),
        weight(offset=1 << 62),
        weight(length=-16),
        weight(dims=(1 << 40,)),
        weight(dims=(1 << 62, 1 << 62)),
        weight(dims=(-4,), length=-16),
        weight(dims=(-2, -2)),
        weight(dims=(0, 1 << 62), offset=65, length=0),
    ],
)
def test_a_weight_that_is_not_there_in_whole_is_refused(tensor: onnx.TensorProto, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match=r"model\.onnx is not an ONNX model \(b'w' is not whole in"):
        weights_of(tmp_path, model_of(tensor))


def test_weights_hidden_inside_of_nodes_are_refused(tmp_path: Path) -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=weight())
    with pytest.raises(IncompatibleArtifact, match="a constant inside of a node may lie in another file"):
        weights_of(tmp_path, model_of(nodes=(constant,)))


def test_weights_hidden_in_sparse_initializers_and_functions_are_refused(tmp_path: Path) -> None:
    sparse = onnx.SparseTensorProto(values=weight(), indices=weight("i"), dims=[4])
    with pytest.raises(IncompatibleArtifact, match="a constant inside of a node may lie in another file"):
        weights_of(tmp_path, onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse])).SerializeToString())
    constant = onnx.helper.make_node("Constant", [], ["c"], value=weight())
    function = onnx.helper.make_function("own", "F", [], ["c"], [constant], [onnx.helper.make_opsetid("", 17)])
    training = onnx.TrainingInfoProto(algorithm=onnx.GraphProto(initializer=[weight()]))
    for hidden in (onnx.ModelProto(functions=[function]), onnx.ModelProto(training_info=[training])):
        with pytest.raises(IncompatibleArtifact, match="a constant inside of a function may lie in another file"):
            weights_of(tmp_path, model_of() + hidden.SerializeToString())


def test_two_graphs_which_protobuf_would_merge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match="two graphs"):
        weights_of(tmp_path, model_of(weight()) + model_of(weight("v")))


@pytest.mark.parametrize(
    "hidden",
    [
        # In 32 bits that is `EXTERNAL`, or the field of an initializer.
        field(7, field(5, inline(weight()) + varint(14 << 3) + varint((1 << 32) + 1))),
        field(7, field(5, weight().SerializeToString(), more=1 << 29)),
        # Numbers that are longer than they need be.
        field(7, field(5, inline(weight()) + varint(14 << 3) + b"\x81\x80\x00")),
        field(7, b"\xaa\x80\x00" + field(5, weight().SerializeToString())[1:]),
        field(7, field(5, inline(weight()) + varint(14 << 3) + b"\x81" + b"\x80" * 8 + b"\x02")),
        field(7, field(5, weight().SerializeToString() + field(13, field(1, b"location") + field(2, b"b")))),
        # Of another type than the field's.
        field(7, field(5, weight().SerializeToString() + field(14, b""))),
        field(7, field(5, weight().SerializeToString() + field(2, b""))),
        field(7, field(5, weight().SerializeToString() + varint(8 << 3) + b"\x01")),
        field(7, varint(5 << 3) + b"\x01"),
        varint(7 << 3) + b"\x01",
    ],
)
def test_encodings_that_parsers_read_differently_are_refused(hidden: bytes, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match="is not an ONNX model"):
        weights_of(tmp_path, hidden)


@pytest.mark.parametrize(
    "data", [b"", b"no protobuf", b"\x08\x08", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x3a\x80"]
)
def test_what_is_no_onnx_model_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleArtifact, match="is not an ONNX model"):
        weights_of(tmp_path, data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        list(external_tensors(data))
    except (ValueError, IndexError):
        pass


def externals(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a message, however deep, that lies in another file."""
    if isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
        yield message
    for kind, value in message.ListFields():
        if kind.message_type is not None:
            for inner in value if isinstance(value, Sequence) else [value]:
                yield from externals(inner)


@given(st.data())
def test_of_a_damaged_model_no_other_weights_are_read_than_by_protobuf(draw: st.DataObject) -> None:
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.TensorProto(name="n", dims=[1], data_type=FLOAT))
    data = model_of(weight(), weight("v", offset=16), onnx.TensorProto(name="i"), nodes=(constant,))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        new = draw.draw(st.binary(max_size=3))
        data = data[:at] + new + data[at + draw.draw(st.integers(0, 4)) :]
    try:
        ours = list(external_tensors(data))
    except (ValueError, IndexError):
        return
    if not all(kind in ELEMENT_BYTES for _, kind, *_ in ours):
        return
    try:
        theirs = list(externals(onnx.ModelProto.FromString(data)))
    except DecodeError:
        return  # onnxruntime refuses it, too
    assert ours == [
        (
            raw(tensor.name),
            tensor.data_type,
            tuple(tensor.dims),
            {raw(entry.key): raw(entry.value) for entry in tensor.external_data},
        )
        for tensor in theirs
    ]


def raw(text: str | bytes) -> bytes:
    """What the Python binding gives as bytes where it is not UTF-8."""
    return text if isinstance(text, bytes) else text.encode()


def test_a_bundle_whose_model_points_outside_gives_no_vector(tiny_bundle: Path) -> None:
    secret = tiny_bundle.parent / "secret.bin"
    model = tiny_bundle / "onnx" / "model.onnx"
    shutil.copy(tiny_bundle / "onnx" / "model.onnx_data", secret)
    graph = onnx.load(str(model), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../secret.bin"
    model.write_bytes(graph.SerializeToString())
    new: File = publishing.describe_file(tiny_bundle, "onnx/model.onnx")

    def change(document: dict[str, object]) -> None:
        for artifact in document["artifacts"]:  # type: ignore[attr-defined]
            for file in artifact["files"]:
                if file["path"] == new.path:
                    file.update(new.to_dict())

    edit_manifest(tiny_bundle, change)
    manifest = Manifest.read(tiny_bundle)
    with pytest.raises(FirstvecError, match=r"has weights in '\.\./\.\./secret\.bin'"):
        verify_artifact(manifest, artifact_of(manifest, "onnx-fp32"))
    edit_manifest(tiny_bundle, keep_only(["onnx-fp32", "torchscript-fp32"]))
    loader = OptimizedEmbeddingLoader(str(tiny_bundle))
    loader.get_provider().embed_query("text")  # by TorchScript
    assert [each["artifact"] for each in loader.report()["fallbacks"]] == ["onnx-fp32"]
    assert loader.report()["artifact"] == "torchscript-fp32"
