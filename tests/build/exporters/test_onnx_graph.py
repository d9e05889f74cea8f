"""The fp32 ONNX artifact: its graph, its files, and other libraries that load it."""

from __future__ import annotations

import copy
import gc
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from firstvec.errors import ExportError
from firstvec_build.quality import evaluation_sentences
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def graphs(tiny_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each step's graph: exported.onnx, fused.onnx, optimized.onnx."""
    from firstvec_build.exporters import onnx_graph

    folder = tmp_path_factory.mktemp("graphs")
    onnx_graph.export(tiny_encoder, folder / "exported.onnx")
    onnx_graph.fuse(folder / "exported.onnx", tiny_encoder, folder / "fused.onnx")
    onnx_graph.optimize(folder / "fused.onnx", folder / "optimized.onnx")
    return folder


def axes(values: Any) -> dict[str, list[str | int]]:
    """Name → the names of dynamic axes and the sizes of the others."""
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def random_inputs(shape: tuple[int, int]) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.random.default_rng(shape[1]).integers(5, 400, shape)
    mask = np.ones_like(ids)
    mask[0, shape[1] // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("step", ["exported", "fused", "optimized"])
def test_graph_takes_ids_and_mask_and_gives_the_embedding(graphs: Path, step: str) -> None:
    graph = onnx.load(str(graphs / f"{step}.onnx"), load_external_data=False).graph
    inputs, outputs = axes(graph.input), axes(graph.output)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.INT64}
    for dynamic in inputs.values():
        assert [type(axis) for axis in dynamic] == [str, str]
    assert set(outputs) == {"sentence_embedding", "last_hidden_state"}
    batch = inputs["input_ids"][0]
    assert outputs["sentence_embedding"][0] == batch
    assert outputs["last_hidden_state"][:2] == inputs["input_ids"]


def test_exported_graph_passes_the_checker(graphs: Path) -> None:
    onnx.checker.check_model(str(graphs / "exported.onnx"), full_check=True)
    exported = onnx.load(str(graphs / "exported.onnx"))
    assert [(item.domain, item.version) for item in exported.opset_import] == [("", 17)]


def test_exported_graph_holds_no_trace_of_the_building_machine(graphs: Path) -> None:
    for step in ("exported", "optimized"):
        data = (graphs / f"{step}.onnx").read_bytes()
        for trace in ("site-packages", str(graphs), str(REPOSITORY)):
            assert trace.encode() not in data


def test_transformer_operators_are_fused(graphs: Path, bundle: Path) -> None:
    # Two layers: one Attention each, a normalization behind attention and feed-forward each.
    for path, layers in ((graphs / "optimized.onnx", 2), (bundle / "onnx" / "model.onnx", 6)):
        counts = Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)
        assert counts["Attention"] == layers
        # onnxruntime has vector code for additions and LayerNormalization only.
        assert (counts["LayerNormalization"], counts["SkipLayerNormalization"]) == (2 * layers, 0)
        assert counts["EmbedLayerNormalization"] == 1
        assert counts["Softmax"] == 0


def test_weights_lie_in_a_file_of_their_own(graphs: Path, bundle: Path) -> None:
    for path in (graphs / "optimized.onnx", bundle / "onnx" / "model.onnx"):
        assert path.stat().st_size < 200_000
        graph = onnx.load(str(path), load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert tensor.ByteSize() < 1200
                continue
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == f"{path.name}_data"  # a name without a folder, so the bundle may lie anywhere
            end = int(entries["offset"]) + int(entries["length"])
            assert end <= path.with_name(f"{path.name}_data").stat().st_size
        assert sum(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer) >= 10


@pytest.mark.parametrize("step", ["exported", "fused", "optimized"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 128), (7, 5)])
def test_every_step_gives_the_reference_vectors(
    tiny_encoder: Any, graphs: Path, step: str, shape: tuple[int, int]
) -> None:
    import torch

    feeds = random_inputs(shape)
    with torch.inference_mode():
        expected = tiny_encoder({name: torch.from_numpy(array) for name, array in feeds.items()})
    embedding, hidden = session(graphs / f"{step}.onnx").run(["sentence_embedding", "last_hidden_state"], feeds)
    assert np.abs(embedding - expected["sentence_embedding"].numpy()).max() <= 1e-5
    assert hidden.shape == (*shape, 32)
    real = feeds["attention_mask"].astype(bool)  # the values at padding do not matter
    assert np.abs(hidden - expected["token_embeddings"].numpy())[real].max() <= 1e-4


def test_the_second_output_is_what_sentence_transformers_pools(bundle: Path, sentence_transformer: Any) -> None:
    """Its ONNX backend runs the graph, and the modules behind the transformer on the output ``last_hidden_state``."""
    import torch

    sentences = evaluation_sentences()[::4]
    tokens = sentence_transformer.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    feeds = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    (hidden,) = session(bundle / "onnx/model.onnx").run(["last_hidden_state"], feeds)
    features = {**tokens, "token_embeddings": torch.from_numpy(hidden)}
    for module in list(sentence_transformer)[1:]:
        features = module(features)
    assert np.abs(features["sentence_embedding"].numpy() - sentence_transformer.encode(sentences)).max() <= 1e-5


def test_graph_that_onnxruntime_cannot_load_is_an_export_error(tmp_path: Path) -> None:
    from firstvec_build.exporters import onnx_graph

    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"ONNX: onnxruntime cannot optimize broken\.onnx"):
        onnx_graph.optimize(tmp_path / "broken.onnx", tmp_path / "out.onnx")


# If onnxruntime's optimizer fails, the garbage collector removes its scratch folder.
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")
def test_graph_that_cannot_be_fused_is_an_export_error(tiny_encoder: Any, tmp_path: Path) -> None:
    from firstvec_build.exporters import onnx_graph

    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="ONNX: the graph cannot be fused"):
        onnx_graph.fuse(tmp_path / "broken.onnx", tiny_encoder, tmp_path / "out.onnx")
    gc.collect()
    assert not (tmp_path / "out.onnx").exists()


def test_model_that_torch_cannot_export_is_an_export_error(tiny_encoder: Any, tmp_path: Path) -> None:
    import torch

    from firstvec_build.exporters import onnx_graph

    class Bessel(torch.nn.Module):
        """An operator that ONNX does not have."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return features | {"sentence_embedding": torch.special.i0(features["sentence_embedding"])}

    unknown = copy.deepcopy(tiny_encoder)
    unknown.append(Bessel())
    with pytest.raises(ExportError, match="ONNX: torch cannot export the model"):
        onnx_graph.export(unknown, tmp_path / "out" / "exported.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_copied_graph_finds_its_weights(graphs: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for name in ("optimized.onnx", "optimized.onnx_data"):
        shutil.copyfile(graphs / name, tmp_path / "moved" / name)
    feeds = random_inputs((2, 9))
    moved, original = (session(folder / "optimized.onnx").run(None, feeds) for folder in (tmp_path / "moved", graphs))
    assert all(np.array_equal(one, other) for one, other in zip(moved, original, strict=True))


@pytest.fixture
def optimized(graphs: Path, tmp_path: Path) -> Path:
    """A copy of the optimized graph and its data, to change."""
    for name in ("optimized.onnx", "optimized.onnx_data"):
        shutil.copyfile(graphs / name, tmp_path / name)
    return tmp_path / "optimized.onnx"


def find_external(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)


def test_weights_lie_in_the_graph_and_its_own_data_file(graphs: Path) -> None:
    from firstvec_build.exporters import onnx_graph

    onnx_graph.check_external_data(graphs / "optimized.onnx")
    with pytest.raises(ExportError, match=r"lie in 'exported.onnx_data', not in 'fused.onnx_data'"):
        onnx_graph.check_external_data(graphs / "fused.onnx")


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../optimized.onnx_data", "./optimized.onnx_data", "below/../optimized.onnx_data", "other", ""],
)
@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph", "sparse", "function"])
def test_weights_in_any_other_file_are_refused(location: str, where: str, optimized: Path) -> None:
    from firstvec_build.exporters import onnx_graph

    model = onnx.load(str(optimized), load_external_data=False)
    tensor = copy.deepcopy(find_external(model))
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "constant":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))
    elif where == "subgraph":
        inner = onnx.helper.make_graph([], "inner", [], [], initializer=[tensor])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        model.functions.add().node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))
    optimized.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"optimized\.onnx: the weights .* not in 'optimized\.onnx_data'"):
        onnx_graph.check_external_data(optimized)


def link_symbolically(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))
    data.symlink_to("elsewhere")


def link_hard(data: Path) -> None:
    data.with_name("elsewhere").hardlink_to(data)


def cut(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-1])


@pytest.mark.parametrize("change", [link_symbolically, link_hard, cut, Path.unlink])
def test_data_file_is_a_whole_file_of_its_own(change: Callable[[Path], None], optimized: Path) -> None:
    from firstvec_build.exporters import onnx_graph

    change(optimized.with_name("optimized.onnx_data"))
    with pytest.raises(ExportError, match=r"are not in 'optimized\.onnx_data', or it is a link"):
        onnx_graph.check_external_data(optimized)


def test_weights_that_onnxruntime_writes_elsewhere_are_refused(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.exporters import onnx_graph

    class Elsewhere(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            super().add_session_config_entry(key, "elsewhere" if key.endswith("initializers_file_name") else value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Elsewhere)
    with pytest.raises(ExportError, match="lie in 'elsewhere'"):
        onnx_graph.optimize(graphs / "fused.onnx", tmp_path / "model.onnx")


@pytest.mark.parametrize(("operator", "expected"), [("Sub", True), ("Add", False)])
def test_value_is_always_zero_only_if_it_is_for_every_shape(operator: str, expected: bool) -> None:
    from firstvec_build.exporters import onnx_graph

    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["B", "T"])
    mask = onnx.helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["B", "T"])
    nodes = [
        onnx.helper.make_node(operator, ["input_ids", "input_ids"], ["wide"]),
        onnx.helper.make_node("Cast", ["wide"], ["types"], to=onnx.TensorProto.INT32),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", [ids, mask], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert onnx_graph._is_always_zero(model, "types") is expected
