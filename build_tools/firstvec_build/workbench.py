"""Make a bundle's artifacts in a staging folder, one by one, each measured and held to its thresholds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstvec.errors import QualityError
from firstvec.hardware import ResourceProfile
from firstvec.load import Opener
from firstvec.manifest import Artifact, Manifest, Model, Quality
from firstvec.provider import EmbeddingProvider
from firstvec.tokenizer import open_tokenizer
from firstvec_build import bundle, calibrate, golden, onnx_export, quality, quantize, reference, torchscript, wordpiece
from firstvec_build.calibrate import Product
from firstvec_build.quality import LabelledPairs, Thresholds, Vectors
from firstvec_build.quantize import Target
from firstvec_build.source import Source

_ENGINE_RANGES = {
    # Tried: onnxruntime 1.23.2 and 1.32.0, torch 2.13.0. A major version may drop the file format.
    "onnxruntime": ("1.23", "2"),
    "torch": ("2.13", "3"),
}
_NOT_MEASURED = Quality(
    cosine_mean=0.0,
    cosine_min=-1.0,
    cosine_p1=-1.0,
    max_abs_diff=0.0,
    neighbour_overlap=0.0,
    batch_cosine_min=-1.0,
    sentences=1,
    measured_with="not measured",
    thresholds={},
)


class Workbench:
    """The model, the reference vectors, and the folder in which its bundle takes shape.

    Args:
        origin: the model.
        folder: where the bundle takes shape.
        thresholds: what the artifacts are held to.
        labelled: a labelled set to measure Spearman on.
        corpus: texts to measure beside the project's sentences.
        dynamic: quantise by onnxruntime's own dynamic quantisation.

    Raises:
        SourceError, ExportError: the model cannot be loaded, or is not one that can be exported.
    """

    def __init__(
        self,
        origin: Source,
        folder: Path,
        thresholds: Thresholds,
        *,
        labelled: LabelledPairs | None,
        corpus: Sequence[str],
        dynamic: bool,
    ) -> None:
        self.folder = folder
        self.encoder = reference.load(origin)
        self.model: Model = reference.describe(self.encoder, origin)
        tokenizer_json = reference.tokenizer_json(self.encoder)
        (folder / "tokenizer.json").write_text(tokenizer_json, "utf-8")
        self.support_files = reference.support_files(origin)
        for path in self.support_files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin.path / path, folder / path)
        self._thresholds = thresholds
        self._labelled = labelled
        self._dynamic = dynamic
        self._sentences = quality.evaluation_sentences()
        self._wordpiece = wordpiece.write(tokenizer_json, folder, self._sentences)
        self._measured_on = [*self._sentences, *corpus]
        self._reference: Vectors = np.asarray(self.encoder.encode(self._measured_on), dtype=np.float32)  # (N, D)
        self._golden_reference = np.asarray(self.encoder.encode(list(golden.TEXTS)), np.float32).ravel().tolist()
        self._golden: dict[str, dict[str, object]] = {}
        self._scratch = folder / ".work"
        self._products: list[Product] | None = None

    def finish(self, artifacts: tuple[Artifact, ...], built_with: dict[str, str], inputs_sha256: str) -> Manifest:
        """Write the self-test of these artifacts, remove intermediate files, and describe the folder."""
        token_ids = open_tokenizer(self._manifest()).encode(list(golden.TEXTS))
        golden.write(self.folder, token_ids, [self._golden[artifact.id] for artifact in artifacts])
        if self._scratch.exists():
            shutil.rmtree(self._scratch)
        return self._manifest(
            artifacts=artifacts,
            self_test=bundle.describe(self.folder, golden.FILE_NAME),
            built_with=built_with,
            inputs_sha256=inputs_sha256,
        )

    def _manifest(self, **changes: Any) -> Manifest:
        """What is there now, without artifacts."""
        manifest = Manifest(
            path=str(self.folder / bundle.FILE_NAME),
            model=self.model,
            tokenizer=bundle.describe(self.folder, "tokenizer.json"),
            wordpiece=self._wordpiece,
            artifacts=(),
            support_files=tuple(bundle.describe(self.folder, path.as_posix()) for path in self.support_files),
            built_with={},
            inputs_sha256="",
        )
        return manifest.replace(**changes)

    def build(self, artifact_id: str) -> Artifact:
        """Build one artifact, measure it, and hold it to its thresholds.

        Raises:
            ExportError, QuantizationError: it cannot be made.
            QualityError: it misses a threshold.
        """
        if artifact_id == "torchscript-fp32":
            return self._build_torchscript(artifact_id)
        if artifact_id == "onnx-fp32":
            return self._build_onnx_fp32(artifact_id)
        target = next(target for target in quantize.TARGETS if artifact_id == f"onnx-int8-{target.isa}")
        return self._build_int8(artifact_id, target)

    def _build_torchscript(self, artifact_id: str) -> Artifact:
        name = "torchscript/model.pt"
        devices = torchscript.export(self.encoder, self.folder / name)
        return self._measured(self._artifact(artifact_id, (name,), devices=devices))

    def _build_onnx_fp32(self, artifact_id: str) -> Artifact:
        name = "onnx/model.onnx"
        fused = self._fused()
        onnx_export.optimise(fused, self.folder / name)
        try:
            return self._measured(self._artifact(artifact_id, (name, f"{name}_data")))
        except QualityError:
            # The fusion took the graph for something it is not: an architecture that it was not written for.
            shutil.copyfile(self._exported(), fused)
            onnx_export.optimise(fused, self.folder / name)
            return self._measured(self._artifact(artifact_id, (name, f"{name}_data")))

    def _build_int8(self, artifact_id: str, target: Target) -> Artifact:
        name = f"onnx/model_qint8_{target.isa}.onnx"
        quantised = self._scratch / f"{target.isa}.onnx"
        if self._dynamic:
            quantize.quantise_dynamically(self._fused(), target, quantised)
        else:
            quantize.quantise(self._fused(), target, self._calibration(), quantised)
        onnx_export.optimise(quantised, self.folder / name)
        artifact = self._artifact(artifact_id, (name, f"{name}_data"), target=target)
        if target.isa in ResourceProfile.detect().isa:
            return self._measured(artifact)
        # It would be slow or wrong here; what it computes elsewhere can be computed exactly all the same.
        quantize.exact_twin(quantised, self._scratch / "twin.onnx")
        twin = ".work/twin_optimised.onnx"
        onnx_export.optimise(self._scratch / "twin.onnx", self.folder / twin)
        found = self._measured(self._artifact(artifact_id, (twin, f"{twin}_data"), target=target)).quality
        how = f"{found.measured_with}, exact integer stand-in with unsigned weights: no {target.isa} here"
        return artifact.replace(quality=found.replace(measured_with=how))

    def _exported(self) -> Path:
        """The graph as optimum exports it, made once."""
        exported = self._scratch / "exported.onnx"
        if not exported.exists():
            onnx_export.export(self.encoder, exported)
        return exported

    def _fused(self) -> Path:
        """The graph that all ONNX artifacts start from, made once."""
        fused = self._scratch / "fused.onnx"
        if not fused.exists():
            onnx_export.fuse(self._exported(), self.encoder, fused)
        return fused

    def _calibration(self) -> list[Product]:
        """What flows into the fused graph's matrix products, for every second sentence: the others stay unseen."""
        if self._products is None:
            rows = open_tokenizer(self._manifest()).encode(self._sentences[::2])
            self._products = calibrate.calibrate(self._fused(), rows)
        return self._products

    def _measured(self, artifact: Artifact) -> Artifact:
        """Run an artifact through the runtime itself, and return it with its quality."""
        manifest = self._manifest()
        tokenizer = open_tokenizer(manifest)
        opener = Opener(manifest, artifact, "cpu")
        session = opener.open(quick_start=False)
        token_ids = tokenizer.encode(list(golden.TEXTS))
        self._golden[artifact.id] = golden.record(artifact.id, session, token_ids, self._golden_reference)
        found = quality.measure(
            EmbeddingProvider(manifest, artifact, "cpu", tokenizer, session, opener.open),
            lambda texts: np.asarray(session.run(tokenizer.encode(texts)), np.float32),
            self._measured_on,
            self._reference,
            f"{artifact.engine} {ResourceProfile.detect().engine_version(artifact.engine)}",
            self._labelled,
        )
        return self._thresholds.hold(artifact, found)

    def _artifact(
        self,
        artifact_id: str,
        files: tuple[str, ...],
        *,
        devices: tuple[str, ...] = ("cpu",),
        target: Target | None = None,
    ) -> Artifact:
        form = artifact_id.partition("-")[0]
        engine = "torch" if form == "torchscript" else "onnxruntime"
        return Artifact(
            id=artifact_id,
            format=form,
            precision="int8" if target else "fp32",
            engine=engine,
            engine_min=_ENGINE_RANGES[engine][0],
            engine_below=_ENGINE_RANGES[engine][1],
            devices=devices,
            isa=target.isa if target else None,
            isa_reason=target.reason if target else None,
            batch_invariant=target is None or not self._dynamic,
            files=tuple(bundle.describe(self.folder, name) for name in files),
            quality=_NOT_MEASURED,
        )
