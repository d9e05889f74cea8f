"""The workbench of a build: the model, the reference vectors, and the folder in which the bundle takes shape."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.manifest import Artifact, Manifest, Quality
from firstvec.engines.table import ENGINES, INSTRUCTION_SETS
from firstvec.errors import ExportError
from firstvec.loading.opening import open_artifact, verify_artifact
from firstvec.loading.session_in_use import SessionInUse
from firstvec.machine.profile import ResourceProfile
from firstvec.provider import EmbeddingProvider
from firstvec.text.tokenizer import open_tokenizer
from firstvec_build import publishing, quality, quick_tokenizer, reference, self_test, vector_ranges
from firstvec_build.exporters import onnx_graph
from firstvec_build.int8 import calibration
from firstvec_build.int8.static import Schemes
from firstvec_build.quality import LabelledPairs, Thresholds, Vectors
from firstvec_build.source import Source

if TYPE_CHECKING:
    from firstvec.engines.session import Session
    from firstvec_build.int8.calibration import Product
    from firstvec_build.recipes import Recipe

_TOKENIZER_NAME = "tokenizer.json"
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
"""The quality of an artifact until `Workbench.measure` returns its real one."""


class Workbench:
    """What all recipes share: the model, the reference and the folder. The workbench makes an intermediate result once.

    Args:
        origin: the model.
        folder: where the bundle takes shape.
        thresholds: the limits that every artifact must meet.
        labelled: a labelled set, for Spearman's correlation.
        corpus: texts to measure on, together with the project's sentences.
        dynamic_int8: make INT8 by onnxruntime's own dynamic quantization.
        report_texts: called with a number of texts that were encoded.

    Raises:
        SourceError, ExportError: the model cannot be loaded, or its kind cannot be exported.
    """

    def __init__(
        self,
        origin: Source,
        folder: Path,
        thresholds: Thresholds,
        *,
        labelled: LabelledPairs | None,
        corpus: Sequence[str],
        dynamic_int8: bool,
        report_texts: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self.report_texts = report_texts
        self.folder = folder
        self.scratch = folder / ".work"
        """Folder for intermediate files. `finish` removes it."""
        self.dynamic_int8 = dynamic_int8
        self.encoder = reference.load_model(origin)
        self._model = reference.describe_model(self.encoder, origin)
        self._matryoshka_dims = reference.find_matryoshka_dims(origin)
        tokenizer_json = reference.make_tokenizer_json(self.encoder)
        (folder / _TOKENIZER_NAME).write_text(tokenizer_json, "utf-8")
        self._support_files = reference.write_support_files(self.encoder, origin, folder)
        self._thresholds = thresholds
        self._labelled = labelled
        self._sentences = quality.evaluation_sentences()
        self._odd_texts = quality.odd_texts()
        self.calibration_sentences = self._sentences[::2]
        """The sentences for calibration. The others show the quality on unseen texts."""
        self._odd_reference: Vectors | None = None
        self._wordpiece = quick_tokenizer.write_vocabulary(tokenizer_json, folder, self._sentences)
        self._quick_tokenizer = quick_tokenizer.write_tables(tokenizer_json, folder, self._sentences)
        self._measured_on = [*self._sentences, *corpus]
        self._reference: Vectors = reference.encode(self.encoder, self._measured_on, report_texts)  # (N, D)
        self._self_test_reference = reference.encode(self.encoder, self_test.TEXTS).ravel().tolist()
        self._self_test_entries: dict[str, dict[str, object]] = {}
        self._measured_graphs: dict[str, Artifact] = {}
        self._fuses = True
        self._export_error: ExportError | None = None
        self._products: list[Product] | None = None
        self._schemes: dict[int, Schemes] = {}

    def make_graph(self) -> Path:
        """Return the graph from which all ONNX artifacts are made. It is fused, unless `undo_fusion` was called.

        Raises:
            ExportError: the model cannot be exported, or the graph cannot be fused.
        """
        exported, fused = self.scratch / "exported.onnx", self.scratch / "fused.onnx"
        if self._export_error is not None:
            raise self._export_error
        if not exported.exists():
            try:
                onnx_graph.export(self.encoder, exported)
            except ExportError as error:
                self._export_error = error  # the next artifact need not try again
                raise
        if not self._fuses:
            return exported
        if not fused.exists():
            onnx_graph.fuse(exported, self.encoder, fused)
        return fused

    def undo_fusion(self) -> None:
        """Let `make_graph` return the exported graph, which is not fused."""
        self._fuses = False

    def calibrate(self) -> list[Product]:
        """Return the graph's matrix products, with their inputs recorded over the calibration texts."""
        if self._products is None:
            # Odd texts reach values that no sentence reaches, and a fixed scale cuts them off.
            texts = [*self.calibration_sentences, *self._odd_texts[::2]]
            token_ids = open_tokenizer(self._describe_folder()).tokenize(texts)
            self._products = calibration.calibrate(self.make_graph(), token_ids, self.report_texts)
        return self._products

    def find_schemes(self, bits: int) -> Schemes:
        """Return the schemes of the graph's matrix products for weights of ``bits`` bits."""
        if bits not in self._schemes:
            self._schemes[bits] = Schemes(self.make_graph(), self.calibrate(), bits)
        return self._schemes[bits]

    def describe(
        self,
        recipe: Recipe,
        files: tuple[str, ...],
        *,
        devices: tuple[str, ...] = ("cpu",),
        batch_invariant: bool = True,
    ) -> Artifact:
        """Return the manifest's entry for files that a recipe has written. The quality is not measured yet.

        Args:
            recipe: the recipe.
            files: paths in the folder. The engine opens the first one.
            devices: where the artifact runs.
            batch_invariant: whether a text's vector is independent of the texts in its batch.
        """
        engine_min, engine_below = ENGINES[recipe.engine].versions
        return Artifact(
            id=recipe.artifact_id,
            format=recipe.format,
            precision=recipe.precision,
            engine=recipe.engine,
            engine_min=engine_min,
            engine_below=engine_below,
            devices=devices,
            isa=recipe.isa,
            isa_reason=INSTRUCTION_SETS[recipe.isa].reason if recipe.isa else None,
            batch_invariant=batch_invariant,
            files=tuple(publishing.describe_file(self.folder, name) for name in files),
            quality=_NOT_MEASURED,
        )

    def remember(self, graph: Path, artifact: Artifact) -> Artifact:
        """Return a measured artifact, and let `find_measured` find it by the graph from which it was made."""
        self._measured_graphs[publishing.describe_file(graph.parent, graph.name).sha256] = artifact
        return artifact

    def find_measured(self, graph: Path) -> Artifact | None:
        """Return the measured artifact that was made from a graph of the same bytes, or None."""
        return self._measured_graphs.get(publishing.describe_file(graph.parent, graph.name).sha256)

    def take_over(self, artifact: Artifact, same: Artifact, measured_with: str) -> Artifact:
        """Return an artifact with the quality and the golden vectors of ``same``, which has the same graph."""
        self._self_test_entries[artifact.id] = self._self_test_entries[same.id] | {"id": artifact.id}
        return artifact.replace(quality=same.quality.replace(measured_with=measured_with))

    def measure(self, artifact: Artifact) -> Artifact:
        """Run an artifact through the runtime itself, and return it with its quality.

        The same session computes the artifact's golden vectors for the self-test.

        Raises:
            QualityError: the artifact misses a threshold.
        """
        odd = None
        if artifact.precision == "int8":
            if self._odd_reference is None:
                self._odd_reference = reference.encode(self.encoder, self._odd_texts, self.report_texts)
            odd = self._odd_texts, self._odd_reference
        manifest = self._describe_folder()
        tokenizer = open_tokenizer(manifest)
        verified = verify_artifact(manifest, artifact)

        def open_session() -> Session:
            return open_artifact(verified, quick_start=False, self_test=False).session

        session = open_session()
        sessions = SessionInUse(artifact.id, session, open_session)
        try:
            self._self_test_entries[artifact.id] = self_test.compute_golden(
                artifact.id,
                session,
                tokenizer.tokenize(list(self_test.TEXTS)),
                self._self_test_reference,
                same_bits=ENGINES[artifact.engine].same_bits,
            )
            found = quality.measure(
                EmbeddingProvider(manifest, artifact, "cpu", tokenizer, sessions),
                lambda texts: np.asarray(session.run(tokenizer.tokenize(texts)), np.float32),
                self._measured_on,
                self._reference,
                f"{artifact.engine} {ResourceProfile.detect().engine_version(artifact.engine)}",
                self._labelled,
                matryoshka_dims=self._matryoshka_dims,
                odd=odd,
                check=lambda figures: self._thresholds.check(artifact, figures),
                report_texts=self.report_texts,
            )
        finally:
            sessions.close()
        return self._thresholds.enforce(artifact, found)

    def finish(
        self,
        artifacts: tuple[Artifact, ...],
        left_out: dict[str, str],
        built_with: dict[str, str],
        inputs_sha256: str,
    ) -> Manifest:
        """Write the artifacts' self-test, remove all other files, and return the bundle's manifest.

        ``left_out`` has the id of each artifact that the bundle goes without, and the reason. Files that such an
        artifact has written are removed, too.
        """
        token_ids = open_tokenizer(self._describe_folder()).tokenize(list(self_test.TEXTS))
        entries = [self._self_test_entries[artifact.id] for artifact in artifacts]
        self_test.write_self_test(self.folder, token_ids, entries)
        self._support_files.append(Path(vector_ranges.RANGES_NAME))
        ranges = vector_ranges.write_ranges(self.folder, self._reference)
        if self.scratch.exists():
            shutil.rmtree(self.scratch)
        manifest = self._describe_folder(
            artifacts=artifacts,
            left_out=left_out,
            self_test=publishing.describe_file(self.folder, self_test.SELF_TEST_NAME),
            vector_ranges=ranges,
            built_with=built_with,
            inputs_sha256=inputs_sha256,
        )
        listed = {self.folder / file.path for file in manifest.files()}
        # The deepest first, so that a folder is empty when its turn comes.
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in listed:
                path.unlink()
        return manifest

    def _describe_folder(self, **changes: Any) -> Manifest:
        """Return the manifest of the folder's files. The manifest has no artifacts, unless ``changes`` has some."""
        manifest = Manifest(
            path=str(self.folder / MANIFEST_NAME),
            model=self._model,
            tokenizer=publishing.describe_file(self.folder, _TOKENIZER_NAME),
            wordpiece=self._wordpiece,
            quick_tokenizer=self._quick_tokenizer,
            artifacts=(),
            left_out={},
            support_files=tuple(publishing.describe_file(self.folder, path.as_posix()) for path in self._support_files),
            built_with={},
            inputs_sha256="",
        )
        return manifest.replace(**changes)
