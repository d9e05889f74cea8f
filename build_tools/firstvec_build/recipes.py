"""The table of recipes: how each artifact of a bundle is made.

A new engine needs one more recipe here, and a row and a session module in `firstvec.engines`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firstvec.engines.table import ENGINES, INSTRUCTION_SETS
from firstvec.errors import QualityError
from firstvec.machine import native
from firstvec.machine.profile import ResourceProfile

if TYPE_CHECKING:
    from firstvec.bundle.manifest import Artifact
    from firstvec_build.workbench import Workbench


class LeftOut(Exception):
    """The engine cannot compute this model. The message says why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an artifact is, and the function that makes it."""

    format: str
    precision: str
    engine: str
    """Name of a row of `firstvec.engines.table.ENGINES`."""
    isa: str | None = None
    """Name of a row of `firstvec.engines.table.INSTRUCTION_SETS`."""
    on_request: bool = False
    """Whether a build makes the artifact only if the artifact is named."""
    make: Callable[[Workbench, Recipe], Artifact]
    """Writes the artifact's files into the workbench's folder, and returns the artifact with its quality.

    Raises LeftOut if the artifact's engine cannot compute the model, ExportError or QuantizationError if the artifact
    cannot be made, and QualityError if it misses a threshold.
    """

    @property
    def artifact_id(self) -> str:
        """``FORMAT-PRECISION``, the engine where it is not the format's first in the table, and the ISA."""
        first = next(name for name, engine in ENGINES.items() if self.format in engine.formats)
        engine = self.engine if self.engine != first else None
        return "-".join(filter(None, (self.format, self.precision, engine, self.isa)))


def _make_torchscript(bench: Workbench, recipe: Recipe) -> Artifact:
    from firstvec_build.exporters import torchscript

    name = "torchscript/model.pt"
    devices = torchscript.export(bench.encoder, bench.folder / name)
    return bench.measure(bench.describe(recipe, (name,), devices=devices))


def _make_pt2(bench: Workbench, recipe: Recipe) -> Artifact:
    from firstvec_build.exporters import torch_export

    name = "torch_export/model.pt2"
    torch_export.export(bench.encoder, bench.folder / name)
    # On the CPU only: the program names the device of the tensors that it makes itself.
    return bench.measure(bench.describe(recipe, (name,)))


def _make_onnx(bench: Workbench, recipe: Recipe) -> Artifact:
    try:
        return _optimize_and_measure(bench, recipe)
    except QualityError:
        # onnxruntime's fusion fits some architectures only. For this architecture the fused graph computes other
        # vectors.
        bench.undo_fusion()
        return _optimize_and_measure(bench, recipe)


def _optimize_and_measure(bench: Workbench, recipe: Recipe) -> Artifact:
    from firstvec_build.exporters import onnx_graph

    name = "onnx/model.onnx"
    onnx_graph.optimize(bench.make_graph(), bench.folder / name)
    return bench.measure(bench.describe(recipe, (name, f"{name}_data")))


def _make_native(bench: Workbench, recipe: Recipe) -> Artifact:
    from firstvec_build.exporters import native_weights
    from firstvec_build.int8 import integers
    from firstvec_build.reference import is_static

    if native.version() is None:
        raise LeftOut("firstvec was installed without its C module on the machine that built the bundle")
    if obstacle := native_weights.find_obstacle(bench.encoder):
        raise LeftOut(obstacle)
    is_int8 = recipe.precision == "int8"
    if is_static(bench.encoder):
        if is_int8:
            raise LeftOut("the model has no matrix product that could be quantized")
        name = "native/model.fvw"
        native_weights.write_static(bench.encoder, bench.folder / name)
        return bench.measure(bench.describe(recipe, (name,)))
    name = "native/model_qint8.fvw" if is_int8 else "native/model.fvw"
    quantize = integers.Quantizer(bench.encoder, bench.calibration_sentences, bench.report_texts) if is_int8 else None
    native_weights.write(bench.encoder, bench.folder / name, quantize)
    return bench.measure(bench.describe(recipe, (name,)))


def _make_int8(bench: Workbench, recipe: Recipe) -> Artifact:
    from firstvec_build.int8 import quantization, static

    assert recipe.isa is not None
    weight_bits = INSTRUCTION_SETS[recipe.isa].weight_bits
    quantized = bench.scratch / f"{recipe.isa}.onnx"
    if bench.dynamic_int8:
        quantization.quantize_dynamically(bench.make_graph(), recipe.isa, weight_bits, quantized)
        return _measure_int8(bench, recipe, quantized)
    graph, products, schemes = bench.make_graph(), bench.calibrate(), bench.find_schemes(weight_bits)
    for limit in static.LIMITS[schemes.first_limit :]:
        counts = quantization.quantize(graph, recipe.isa, products, schemes, limit, quantized)
        try:
            artifact = _measure_int8(bench, recipe, quantized)
        except QualityError:
            if limit == static.LIMITS[-1]:
                raise
            schemes.first_limit += 1  # for the other instruction sets, too, whose weights have as many bits
            continue
        if full := counts.get("full"):
            how = f"{artifact.quality.measured_with}; {full} of {len(products)} products are in full precision"
            artifact = artifact.replace(quality=artifact.quality.replace(measured_with=how))
        return artifact
    raise AssertionError("there is no limit")


def _measure_int8(bench: Workbench, recipe: Recipe, quantized: Path) -> Artifact:
    from firstvec_build.exporters import onnx_graph
    from firstvec_build.int8 import quantization

    name = f"onnx/model_qint8_{recipe.isa}.onnx"
    onnx_graph.optimize(quantized, bench.folder / name)
    batch_invariant = not bench.dynamic_int8
    artifact = bench.describe(recipe, (name, f"{name}_data"), batch_invariant=batch_invariant)
    if recipe.isa in ResourceProfile.detect().isa:
        return bench.remember(quantized, bench.measure(artifact))
    if (same := bench.find_measured(quantized)) is not None:
        how = f"{same.quality.measured_with}, {same.id} as a stand-in, whose graph is the same: no {recipe.isa} here"
        return bench.take_over(artifact, same, how)
    # This CPU would run the artifact slowly, or compute wrong vectors. The exact twin gives the artifact's right
    # vectors on any CPU.
    quantization.write_exact_twin(quantized, bench.scratch / "twin.onnx")
    twin = f"{bench.scratch.name}/twin_optimized.onnx"
    onnx_graph.optimize(bench.scratch / "twin.onnx", bench.folder / twin)
    measured = bench.measure(bench.describe(recipe, (twin, f"{twin}_data"), batch_invariant=batch_invariant))
    how = f"{measured.quality.measured_with}, exact integer stand-in with unsigned weights: no {recipe.isa} here"
    return bench.remember(quantized, artifact.replace(quality=measured.quality.replace(measured_with=how)))


_RECIPES = (
    Recipe(format="torchscript", precision="fp32", engine="torch", make=_make_torchscript),
    Recipe(format="pt2", precision="fp32", engine="torch", on_request=True, make=_make_pt2),
    Recipe(format="onnx", precision="fp32", engine="onnxruntime", make=_make_onnx),
    Recipe(format="native", precision="fp32", engine="native", make=_make_native),
    Recipe(format="native", precision="int8", engine="native", make=_make_native),
    *(
        Recipe(format="onnx", precision="int8", engine="onnxruntime", isa=isa, make=_make_int8)
        for isa in INSTRUCTION_SETS
    ),
)
RECIPES = {recipe.artifact_id: recipe for recipe in _RECIPES}
"""Id of an artifact → recipe, in the order in which a build makes them. `_make_onnx` finds out whether the graph can be
fused, so its recipe stands before those of INT8."""
assert len(RECIPES) == len(_RECIPES), "two recipes make an artifact of the same id"
