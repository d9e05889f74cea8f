"""The workbench: what is made once, what is measured, and what the folder holds at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.engines.table import ENGINES
from firstvec.errors import ExportError, QualityError
from firstvec_build import source
from firstvec_build.quality import Thresholds, evaluation_sentences, odd_texts
from firstvec_build.recipes import RECIPES
from tests.tiny import ANY_INT8

if TYPE_CHECKING:
    from firstvec_build.workbench import Workbench

ONNX = RECIPES["onnx-fp32"]


def make_workbench(model: Path, folder: Path, thresholds: Thresholds = ANY_INT8, **options: Any) -> Workbench:
    from firstvec_build.workbench import Workbench

    settings: dict[str, Any] = {"labelled": None, "corpus": (), "dynamic_int8": False, **options}
    folder.mkdir()
    return Workbench(source.resolve(str(model)), folder, thresholds, **settings)


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Workbench:
    return make_workbench(tiny_model, tmp_path / "bench")


def test_graph_is_exported_and_fused_once(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from firstvec_build.exporters import onnx_graph

    calls: list[str] = []
    for name in ("export", "fuse"):
        function = getattr(onnx_graph, name)

        def counted(*arguments: Any, name: str = name, function: Any = function) -> Any:
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(onnx_graph, name, counted)
    fused = bench.make_graph()
    assert bench.make_graph() == fused
    bench.undo_fusion()
    exported = bench.make_graph()
    assert exported != fused
    assert bench.make_graph() == exported
    assert calls == ["export", "fuse"]
    assert exported.parent == fused.parent == bench.scratch


def test_calibration_sees_every_second_sentence_and_odd_text_once(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.int8 import calibration

    seen: list[Sequence[Sequence[int]]] = []
    calibrate = calibration.calibrate

    def counted(path: Path, token_ids: Sequence[Sequence[int]], report_texts: Any) -> Any:
        seen.append(token_ids)
        return calibrate(path, token_ids[:4], report_texts)

    monkeypatch.setattr(calibration, "calibrate", counted)
    assert bench.calibrate() is bench.calibrate()
    [token_ids] = seen
    sentences = [*evaluation_sentences()[::2], *odd_texts()[::2]]
    expected = bench.encoder.tokenizer(sentences, truncation=True, max_length=128)["input_ids"]
    assert token_ids == expected


def test_description_has_the_rows_of_the_runtimes_tables_and_the_files(bench: Workbench) -> None:
    (bench.folder / "onnx").mkdir()
    (bench.folder / "onnx" / "graph").write_bytes(b"graph")
    recipe = RECIPES["onnx-int8-avx2"]
    artifact = bench.describe(recipe, ("onnx/graph",), devices=("cpu", "cuda"), batch_invariant=False)
    assert (artifact.id, artifact.format, artifact.precision) == ("onnx-int8-avx2", "onnx", "int8")
    assert (artifact.engine_min, artifact.engine_below) == ENGINES["onnxruntime"].versions
    assert artifact.isa == "avx2"
    assert artifact.isa_reason is not None
    assert artifact.isa_reason.startswith("weights limited in pairs")
    assert (artifact.devices, artifact.batch_invariant) == (("cpu", "cuda"), False)
    assert [(file.path, file.size) for file in artifact.files] == [("onnx/graph", 5)]
    assert bench.describe(ONNX, ("onnx/graph",)).isa_reason is None


def test_artifact_is_measured_and_its_session_is_closed(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from firstvec.loading import opening
    from firstvec_build import workbench
    from firstvec_build.exporters import onnx_graph

    opened: list[Any] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        found = opening.open_artifact(*arguments, **options)
        close, closed = found.session.close, []
        found.session.close = lambda: (closed.append(True), close())
        opened.append((found.session.kind, closed))
        return found

    monkeypatch.setattr(workbench, "open_artifact", watched)
    onnx_graph.optimize(bench.make_graph(), bench.folder / "onnx" / "model.onnx")
    artifact = bench.describe(ONNX, ("onnx/model.onnx", "onnx/model.onnx_data"))
    measured = bench.measure(artifact)
    assert opened == [("throughput", [True])]
    assert measured.replace(quality=artifact.quality) == artifact
    assert measured.quality.sentences == len(evaluation_sentences())
    assert measured.quality.thresholds == {"max_abs_diff": 1e-5}


def test_artifact_that_misses_a_threshold_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    bench = make_workbench(tiny_model, tmp_path / "bench", Thresholds(fp32_max_abs_diff=0.0))
    with pytest.raises(QualityError, match="onnx-fp32: max_abs_diff"):
        ONNX.make(bench, ONNX)


def test_finish_leaves_the_listed_files_and_no_intermediate_ones(bench: Workbench) -> None:
    artifacts = (ONNX.make(bench, ONNX),)
    assert bench.scratch.exists()
    manifest = bench.finish(artifacts, {"other": "a reason"}, {"tool": "1"}, "0" * 64)
    listed = {file.path for file in manifest.files()}
    assert {path.relative_to(bench.folder).as_posix() for path in bench.folder.rglob("*") if path.is_file()} == listed
    assert {"tokenizer.json", "vocab.txt", "self_test.json", "onnx/model.onnx", "modules.json"} <= listed
    assert (manifest.artifacts, manifest.built_with, manifest.inputs_sha256) == (artifacts, {"tool": "1"}, "0" * 64)
    assert Manifest.parse(manifest.to_json(), manifest.path) == manifest


def test_model_that_cannot_be_exported_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    from firstvec_build.workbench import Workbench

    origin = dataclasses.replace(source.resolve(str(tiny_model)), path=tmp_path / "pooling-only")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    SentenceTransformer(modules=[BoW(vocab=["some", "words"])], device="cpu").save(
        str(origin.path), create_model_card=False
    )
    (tmp_path / "bench").mkdir()
    with pytest.raises(ExportError, match="unsupported architecture BoW"):
        Workbench(origin, tmp_path / "bench", ANY_INT8, labelled=None, corpus=(), dynamic_int8=False)
    assert not list((tmp_path / "bench").iterdir())
