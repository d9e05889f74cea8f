"""fp32 ONNX: exported by torch, fused for transformers, and optimized here, so that no start has to optimize.

The weights lie in a file of their own, which the runtime maps into memory.
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from sentence_transformers import SentenceTransformer

from firstvec.engines.onnxruntime_binding import onnxruntime  # that module turns the telemetry off
from firstvec.errors import ExportError
from firstvec_build import memory
from firstvec_build.exporters.masks import traceable_masks
from firstvec_build.quiet_tools import silence_tools
from firstvec_build.reference import is_static, make_example

_OPSET = 17
"""The newest opset whose attention onnxruntime 1.32 can fuse. The fused graph of all-MiniLM-L6-v2 opens in 3 to 4 ms
instead of 9 to 11 ms.
"""
_EXTERNAL_FROM_BYTES = 1024
"""Smaller initializers stay in the graph's file. onnxruntime reads shape constants while it builds the graph."""


class _Graph(torch.nn.Module):  # type: ignore[misc]
    """The whole model with two results: (B, T) ids and mask → (B, D) vectors, (B, T, hidden) of the tokens."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return features["sentence_embedding"], features["token_embeddings"]


def export(model: SentenceTransformer, path: Path) -> None:
    """Write the model as ONNX, with pooling and normalization. The graph is not optimized.

    The weights lie in ``path`` + ``_data``, so the later steps need not hold copies of them.

    Inputs ``input_ids`` and ``attention_mask``, int64, (B, T). Outputs ``sentence_embedding``, (B, D), and
    ``last_hidden_state``, (B, T, hidden). SentenceTransformer(bundle, backend="onnx") pools the second output itself.

    Raises:
        ExportError: torch cannot export the model.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    with silence_tools(), torch.no_grad(), traceable_masks(), _eager_attention(model):
        try:
            # The newer exporter (dynamo=True) writes attention in a form that onnxruntime 1.32 does not fuse.
            torch.onnx.export(
                _Graph(model).eval(),
                make_example(model),
                stream,
                dynamo=False,
                opset_version=_OPSET,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding", "last_hidden_state"],
                dynamic_axes={
                    "input_ids": {0: "batch", 1: "tokens"},
                    "attention_mask": {0: "batch", 1: "tokens"},
                    "sentence_embedding": {0: "batch"},
                    "last_hidden_state": {0: "batch", 1: "tokens"},
                },
            )
        except Exception as error:  # torch raises RuntimeError, UnsupportedOperatorError, ValueError …
            raise ExportError(f"ONNX: torch cannot export the model: {type(error).__name__}: {error}") from error
    exported = onnx.load_from_string(stream.getvalue())
    # These fields name the exporter, folders and Python scopes, which are not part of the model.
    exported.doc_string = ""
    for node in exported.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    onnx.save(
        exported,
        str(path),
        save_as_external_data=True,
        location=f"{path.name}_data",
        size_threshold=_EXTERNAL_FROM_BYTES,
    )


@contextlib.contextmanager
def _eager_attention(model: SentenceTransformer) -> Iterator[None]:
    """Compute attention by single matrix products. onnxruntime fuses these, and not those of torch's own function."""
    if is_static(model):
        yield
        return
    transformer = model[0].auto_model
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        transformer.set_attn_implementation(before)


def fuse(path: Path, model: SentenceTransformer, fused: Path) -> None:
    """Fuse attention, layer norms, GELU and embeddings into onnxruntime's operators, where the graph allows it.

    Weights that are not fused stay in the data file of ``path``, so both graphs must lie in one folder.

    Raises:
        ExportError: onnxruntime's transformer optimizer fails on the graph.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    config = None if is_static(model) else model[0].auto_model.config.get_text_config()
    target = fused.absolute()
    # onnxruntime's optimizer copies the graph several times. It looks for the weights that it needs in the working
    # folder.
    with silence_tools(), contextlib.chdir(path.parent):
        try:
            optimized = optimize_model(
                onnx.load(path.name, load_external_data=False),
                model_type="bert",
                num_heads=config.num_attention_heads if config else 0,  # 0: the optimizer finds the sizes itself
                hidden_size=config.hidden_size if config else 0,
                optimization_options=FusionOptions("bert"),
                opt_level=0,
                use_gpu=False,
            )
        except Exception as error:  # the optimizer's pattern matching raises whatever it meets
            raise ExportError(f"ONNX: the graph cannot be fused: {type(error).__name__}: {error}") from error
        _split_skip_layer_norms(optimized.model)
        _fold_token_types(optimized.model)
        optimized.prune_graph()
        optimized.save_model_to_file(str(target))
        del optimized
    memory.give_back()


def _split_skip_layer_norms(model: onnx.ModelProto) -> None:
    """Replace SkipLayerNormalization by additions and LayerNormalization.

    onnxruntime 1.32 has vector code for LayerNormalization only: 3 ms instead of 30 for the same work, which was a
    quarter of a batch's time (2 cores of an AMD EPYC with AVX-512).
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
    """Add the embedding of token type 0 to all positions, if every token has type 0.

    The exporter computes the zeros from the shape of input_ids, by a dozen nodes that every session would build.
    """
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    tables = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "EmbedLayerNormalization" or not node.input[1] or node.input[1] not in computed:
            continue
        positions, types = tables[node.input[3]], tables[node.input[4]]
        if _is_always_zero(model, node.input[1]):
            table = numpy_helper.to_array(positions) + numpy_helper.to_array(types)[0]
            positions.CopyFrom(numpy_helper.from_array(table, positions.name))
            node.input[1] = node.input[4] = ""


def _is_always_zero(model: onnx.ModelProto, name: str) -> bool:
    """Return whether a value is zero for several shapes of the inputs. It must not depend on large weights."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed & {*node.output}:
            nodes.append(node)
            needed |= {*node.input}
    del probe.graph.node[:], probe.graph.output[:], probe.graph.initializer[:]
    probe.graph.node.extend(reversed(nodes))
    probe.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    probe.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    for shape in ((1, 1), (2, 5), (3, 17)):
        ids = np.random.default_rng(0).integers(1, 100, shape)
        if session.run([name], {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)})[0].any():
            return False
    return True


def optimize(path: Path, target: Path) -> None:
    """Optimize the graph for every CPU, and write ``target`` and its weights, ``target`` + ``_data``.

    The graph's file is some 30 KB, and the weights are mapped. onnxruntime's ``.ort`` format opens no faster (7 to
    17 ms, this one 7 to 11 ms), and no other tool can load it.

    Raises:
        ExportError: onnxruntime cannot load the graph, or wrote the weights to another place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    # ORT_ENABLE_ALL is not used, because it adds optimizations that depend on the building machine.
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
            # SkipLayerNormFusion would undo `_split_skip_layer_norms`.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
    except Exception as error:  # onnxruntime has exception types of its own
        raise ExportError(f"ONNX: onnxruntime cannot optimize {path.name}: {error}") from error
    check_external_data(target)


def check_external_data(path: Path) -> None:
    """Check that a graph's weights lie in the graph, or in its own data file, ``path`` + ``_data``.

    Whatever loads the graph opens the file that the graph names. An absolute name, or one that leads out of the folder,
    would map another file as weights.

    Raises:
        ExportError: a tensor names another file, or a part that its file does not have.
    """
    own = f"{path.name}_data"
    model = onnx.load(str(path), load_external_data=False)
    for tensor in _walk_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if (location := entries.get("location")) != own:
            raise ExportError(f"ONNX: {path.name}: the weights {tensor.name!r} lie in {location!r}, not in {own!r}")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if end > _size_without_links(path.with_name(own)):
            raise ExportError(f"ONNX: {path.name}: the weights {tensor.name!r} are not in {own!r}, or it is a link")


def _size_without_links(path: Path) -> int:
    """Return the size of a file. -1: the file is missing, is not a regular file, or is a link, symbolic or hard."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else -1


def _walk_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers, constants and sparse tensors, also in subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from _walk_tensors(child)
