"""The table of recipes, and what the recipes do with a model that fusion or fixed scales do not fit."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from firstvec import Manifest, OptimizedEmbeddingLoader, ResourceProfile
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS, PRECISIONS
from firstvec.errors import QuantizationError
from firstvec_build import recipes
from firstvec_build.pipeline import build
from firstvec_build.recipes import RECIPES
from tests.build.conftest import INT8_ELSEWHERE, INT8_HERE
from tests.tiny import ANY_INT8


def test_ids_are_unique_and_in_the_order_of_the_build() -> None:
    assert [*RECIPES] == [
        *("torchscript-fp32", "pt2-fp32", "onnx-fp32", "native-fp32", "native-int8"),
        *("onnx-int8-avx2", "onnx-int8-avx512_vnni", "onnx-int8-arm64"),
    ]
    assert [*RECIPES.values()] == [*recipes._RECIPES]
    assert all(recipe.artifact_id == artifact_id for artifact_id, recipe in RECIPES.items())


def test_a_recipe_of_another_engine_for_the_same_format_has_an_id_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = RECIPES["onnx-fp32"]
    monkeypatch.setitem(ENGINES, "onnxruntime_cuda", ENGINES[usual.engine].replace(provider="CUDAExecutionProvider"))
    assert dataclasses.replace(usual, engine="onnxruntime_cuda").artifact_id == "onnx-fp32-onnxruntime_cuda"


@pytest.mark.parametrize("artifact_id", RECIPES)
def test_each_recipe_names_rows_of_the_runtimes_tables(artifact_id: str) -> None:
    recipe = RECIPES[artifact_id]
    assert recipe.format in ENGINES[recipe.engine].formats
    assert recipe.precision in PRECISIONS
    if recipe.isa is not None:
        assert INSTRUCTION_SETS[recipe.isa].weight_bits in (7, 8)


def test_each_engine_and_each_instruction_set_has_a_recipe() -> None:
    assert {recipe.engine for recipe in RECIPES.values()} == set(ENGINES)
    isas = [recipe.isa for recipe in RECIPES.values() if recipe.precision == "int8" and recipe.format == "onnx"]
    assert isas == [*INSTRUCTION_SETS]


def test_artifact_that_cannot_run_here_is_measured_by_its_exact_twin(tiny_built: Path) -> None:
    for artifact in Manifest.read(tiny_built).artifacts:
        runs_here = artifact.isa is None or artifact.isa in ResourceProfile.detect().isa
        assert ("stand-in" in artifact.quality.measured_with) != runs_here
        assert all("twin" not in file.path for file in artifact.files)


def test_graph_that_fusing_changes_is_used_as_it_was_exported(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.exporters import onnx_graph

    fuse = onnx_graph.fuse

    def fuse_wrongly(path: Path, model: Any, fused: Path) -> None:
        fuse(path, model, fused)
        graph = onnx.load(str(fused))
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("LayerNorm.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(graph, str(fused))

    options: dict[str, Any] = {"only": ["onnx-fp32", INT8_HERE], "thresholds": ANY_INT8}
    right = build(str(tiny_model), tmp_path / "right", **options).manifest
    monkeypatch.setattr(onnx_graph, "fuse", fuse_wrongly)
    unfused = build(str(tiny_model), tmp_path / "unfused", **options).manifest

    def operators(manifest: Manifest, name: str) -> set[str]:
        graph = onnx.load(str(Path(manifest.root) / "onnx" / name), load_external_data=False).graph
        return {node.op_type for node in graph.node}

    assert "Attention" in operators(right, "model.onnx")
    assert "Attention" not in operators(unfused, "model.onnx")
    assert "QAttention" not in operators(unfused, Path(unfused.artifacts[1].files[0].path).name)
    assert [artifact.quality.max_abs_diff <= 1e-5 for artifact in unfused.artifacts] == [True, False]
    assert unfused.artifacts[1].quality.cosine_min > 0.97


def test_dynamic_int8_depends_on_the_batch_and_the_manifest_says_so(tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"only": ["onnx-fp32", INT8_HERE, INT8_ELSEWHERE], "thresholds": ANY_INT8}
    dynamic = build(str(tiny_model), tmp_path / "dynamic", dynamic_int8=True, **options).manifest
    fixed = build(str(tiny_model), tmp_path / "fixed", **options).manifest
    assert [artifact.batch_invariant for artifact in dynamic.artifacts] == [True, False, False]
    assert [artifact.batch_invariant for artifact in fixed.artifacts] == [True, True, True]
    for one, other in zip(dynamic.artifacts[1:], fixed.artifacts[1:], strict=True):
        assert one.quality.batch_cosine_min < 0.9999 < other.quality.batch_cosine_min
        assert one.quality.cosine_mean > 0.9
        assert "batch_cosine_min" not in one.quality.thresholds
        assert "batch_cosine_min" in other.quality.thresholds
    assert "exact integer stand-in" in dynamic.artifacts[2].quality.measured_with


def test_layers_that_fixed_scales_do_not_fit_are_named_and_dynamic_int8_is_offered(tmp_path: Path) -> None:
    from tests.tiny import save_squeezebert

    model = str(save_squeezebert(tmp_path / "squeezebert"))
    options: dict[str, Any] = {"only": [INT8_HERE], "thresholds": ANY_INT8}
    with pytest.raises(QuantizationError, match=r"of the weights belong to the operator Conv .*--dynamic-int8"):
        build(model, tmp_path / "bundles", **options)
    assert not (tmp_path / "bundles" / "squeezebert").exists()
    (artifact,) = build(model, tmp_path / "bundles", dynamic_int8=True, **options).manifest.artifacts
    assert artifact.batch_invariant is False
    loader = OptimizedEmbeddingLoader(str(tmp_path / "bundles" / "squeezebert"), "quantized", "cpu")
    loader.start_loading()
    assert len(loader.get_provider().embed_query("a text")) == 32


def test_products_with_the_largest_errors_stay_in_full_precision_until_the_thresholds_hold(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.int8 import quantization, static

    # The tiny model's errors are small.
    monkeypatch.setattr(static, "LIMITS", (float("inf"), 1e-4, 1e-9))
    only = ["onnx-int8-avx512_vnni", "onnx-int8-arm64"]  # both have weights of 8 bits
    usual = build(str(tiny_model), tmp_path / "usual", only=only, thresholds=ANY_INT8).manifest.artifacts
    assert not any("full precision" in artifact.quality.measured_with for artifact in usual)
    tried: list[float] = []
    quantize = quantization.quantize

    def count(*arguments: Any) -> dict[str, int]:
        tried.append(arguments[4])
        return quantize(*arguments)

    monkeypatch.setattr(quantization, "quantize", count)
    wanted = 0.9 * usual[0].quality.cosine_mean + 0.1
    thresholds = dataclasses.replace(ANY_INT8, int8_cosine_mean=wanted)
    exact = build(str(tiny_model), tmp_path / "exact", only=only, thresholds=thresholds).manifest.artifacts
    for artifact in exact:
        assert artifact.quality.cosine_mean >= wanted
        assert re.search(r"; \d+ of \d+ products are in full precision$", artifact.quality.measured_with)
    # The second artifact begins with the limit that held for the first.
    assert len(tried) > 2
    assert tried == sorted(tried, reverse=True)
    assert tried[-1] == tried[-2]
