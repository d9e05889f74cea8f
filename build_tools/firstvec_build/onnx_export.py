"""fp32 ONNX: exported by optimum, fused for transformers, optimised offline, weights in a memory-mappable file."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from sentence_transformers import SentenceTransformer

from firstvec.errors import ExportError
from firstvec.sessions.onnx import onnxruntime  # with its telemetry off
from firstvec_build.quiet import quiet_tools

OPSET = 17
"""The newest whose scaled-dot-product attention onnxruntime 1.32's optimizer recognises: from 18 on it fuses nothing.
Measured on all-MiniLM-L6-v2, the fused graph opens in 3-4 ms instead of 9-11 ms."""
_EXTERNAL_FROM_BYTES = 1024
"""Smaller initializers stay in the graph file: shape constants are read while the graph is built."""


def export(model: SentenceTransformer, path: Path) -> None:
    """Write the model as ONNX with pooling and normalisation inside: not optimised yet, weights in the file.

    Inputs ``input_ids`` and ``attention_mask``, int64, (B, T). Outputs ``sentence_embedding``, (B, D), and
    ``last_hidden_state``, (B, T, hidden), which SentenceTransformer(bundle, backend="onnx") pools itself.

    Raises:
        ExportError: optimum cannot export it.
    """
    from optimum.exporters.onnx import onnx_export_from_model

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, quiet_tools():
        try:
            onnx_export_from_model(
                model, output=scratch, task="feature-extraction", opset=OPSET, do_validation=False, device="cpu"
            )
        except Exception as error:  # optimum raises KeyError, ValueError, RuntimeError …
            raise ExportError(f"ONNX: optimum cannot export the model: {type(error).__name__}: {error}") from error
        exported = onnx.load(str(Path(scratch) / "model.onnx"))
    _rename_output(exported, "token_embeddings", "last_hidden_state")
    # Names of exporter, folders and Python scopes are not part of the model.
    exported.doc_string = ""
    for node in exported.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    onnx.save(exported, str(path))


def fuse(path: Path, model: SentenceTransformer, fused: Path) -> None:
    """Fuse attention, layer norms, GELU and embeddings into onnxruntime's operators, where the graph allows it.

    Raises:
        ExportError: onnxruntime's transformer optimizer fails on the graph.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    config = model[0].auto_model.config
    with quiet_tools():
        try:
            optimised = optimize_model(
                str(path),
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                optimization_options=FusionOptions("bert"),
                opt_level=0,
                use_gpu=False,
            )
        except Exception as error:  # whatever its pattern matching meets
            raise ExportError(f"ONNX: the graph cannot be fused: {type(error).__name__}: {error}") from error
        _split_skip_layer_norms(optimised.model)
        _fold_token_types(optimised.model)
        optimised.prune_graph()
        optimised.save_model_to_file(str(fused))


def _split_skip_layer_norms(model: onnx.ModelProto) -> None:
    """Replace SkipLayerNormalization by additions and LayerNormalization.

    onnxruntime 1.32 has vector code for the latter only: 30 ms against 3 for the same work, a quarter of the time of a
    batch (2 cores of an AMD EPYC with AVX-512).
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "SkipLayerNormalization" or len(node.input) < 4 or any(node.output[1:]):
            nodes.append(node)
            continue
        first, skip, gamma, beta, *bias = node.input
        if bias and bias[0]:
            nodes.append(helper.make_node("Add", [first, bias[0]], [f"{node.output[0]}_biased"]))
            first = f"{node.output[0]}_biased"
        nodes.append(helper.make_node("Add", [first, skip], [f"{node.output[0]}_sum"]))
        norm = helper.make_node("LayerNormalization", [f"{node.output[0]}_sum", gamma, beta], [node.output[0]], axis=-1)
        norm.attribute.extend(attribute for attribute in node.attribute if attribute.name == "epsilon")
        nodes.append(norm)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _fold_token_types(model: onnx.ModelProto) -> None:
    """Add the embedding of token type 0 to all positions, where it is the type of every token.

    The exporter makes the zeros from the shape of input_ids, in a dozen nodes that each session has to build.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    tables = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "EmbedLayerNormalization" or not node.input[1] or node.input[1] not in producers:
            continue
        positions, types = tables[node.input[3]], tables[node.input[4]]
        if _is_zero(model, node.input[1]):
            table = numpy_helper.to_array(positions) + numpy_helper.to_array(types)[0]
            positions.CopyFrom(numpy_helper.from_array(table, positions.name))
            node.input[1] = node.input[4] = ""


def _is_zero(model: onnx.ModelProto, name: str) -> bool:
    """Whether a value is zero for texts of several numbers and lengths."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    for shape in ((1, 1), (2, 5), (3, 17)):
        ids = np.random.default_rng(0).integers(1, 100, shape)
        if session.run([name], {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)})[0].any():
            return False
    return True


def optimise(path: Path, target: Path) -> None:
    """Optimise for every CPU and write ``target`` and its weights, ``target`` + ``_data``.

    The graph file then is some 30 KB, and the weights are mapped, not read: measured beside the ``.ort`` format it
    opens as fast (7-11 ms against 7-17 ms), and every other ONNX tool can load it as well.

    Raises:
        ExportError: onnxruntime cannot load the graph, or did not write it as it was told.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    # EXTENDED, not ALL: what ALL adds depends on the building machine.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(target)
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}_data")
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES)
    )
    try:
        onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=["CPUExecutionProvider"],
            # It would undo `_split_skip_layer_norms`.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
    except Exception as error:  # onnxruntime's own exception types
        raise ExportError(f"ONNX: onnxruntime cannot optimise {path.name}: {error}") from error
    check_external_data(target)


def check_external_data(path: Path) -> None:
    """Check that a graph's weights lie in the graph and in its own data file, ``path`` + ``_data``, nowhere else.

    The location that a graph names is opened by whatever loads it: one that is absolute, or leads out of the folder,
    would have another file mapped as weights.

    Raises:
        ExportError: a tensor names another file, or a part that its file does not have.
    """
    own = f"{path.name}_data"
    model = onnx.load(str(path), load_external_data=False)
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if (location := entries.get("location")) != own:
            raise ExportError(f"ONNX: {path.name}: the weights {tensor.name!r} lie in {location!r}, not in {own!r}")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if end > _plain_size(path.with_name(own)):
            raise ExportError(f"ONNX: {path.name}: the weights {tensor.name!r} are not in {own!r}, a file of its own")


def _plain_size(path: Path) -> int:
    """The size of a file of one name; -1 for a link, symbolic or hard, or what is no file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else -1


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, constants and sparse ones, those of subgraphs and functions too."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from _tensors(child)


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for output in model.graph.output:
        if output.name == old:
            output.name = new
