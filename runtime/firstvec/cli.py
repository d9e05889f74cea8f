"""`firstvec`: embed texts, and see what is there, what fits this machine and why."""

from __future__ import annotations

import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

from firstvec import __version__
from firstvec import encode as encode_command
from firstvec.errors import FirstvecError, MissingDependency, NoCompatibleArtifact
from firstvec.hardware import ResourceProfile
from firstvec.loader import DEFAULT_MODEL, OptimizedEmbeddingLoader
from firstvec.strategy import LoadingStrategy

try:
    import typer
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    sys.exit(f"error: {MissingDependency('the firstvec command', error.name or 'typer', 'firstvec[cli]')}")

from firstvec.tables import artifact_table, choice_table, out, print_diagnosis

if TYPE_CHECKING:
    from firstvec.selection import Choice

app = typer.Typer(
    name="firstvec",
    help="Sentence embeddings that start instantly, on the artifact that fits the machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Argument(help="Name of a bundle (see `firstvec list`), or the path of its folder.", metavar="MODEL")
]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="Name of a bundle, or the path of its folder.")]
StrategyOption = Annotated[
    LoadingStrategy,
    typer.Option("--strategy", "-s", case_sensitive=False, help="Which artifact is taken; quantized takes INT8."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best for this machine if left out.")]
QuantizationOption = Annotated[bool, typer.Option("--enable-quantization", help="Allow INT8 for every strategy.")]
QualityOption = Annotated[
    float | None, typer.Option(min=-1.0, max=1.0, help="Smallest acceptable worst cosine to fp32.")
]
SignatureOption = Annotated[
    str | None, typer.Option("--require-signature", metavar="KEY", help="Public key (PEM) that must have signed it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Format(Enum):
    """Output of `firstvec encode`."""

    JSON = "json"
    NPY = "npy"
    TEXT = "text"


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        out.print(f"firstvec {__version__}")
        raise typer.Exit


@app.command()
def encode(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; one a line from stdin if there are none.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    strategy: StrategyOption = LoadingStrategy.LAZY,
    device: DeviceOption = None,
    enable_quantization: QuantizationOption = False,
    min_quality: QualityOption = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="json, npy (float32 array) or text.")] = Format.JSON,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file, not to stdout.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per run.")] = 32,
    require_signature: SignatureOption = None,
) -> None:
    """Embed texts: a vector for each, in their order."""
    encode_command.run(
        encode_command.Request(
            texts=tuple(texts or ()),
            model=model,
            strategy=strategy.value,
            device=device,
            enable_quantization=enable_quantization,
            min_quality=min_quality,
            form=form.value,
            output=output,
            batch_size=batch_size,
            require_signature=require_signature,
        )
    )


@app.command("list")
def list_bundles(as_json: JsonOption = False) -> None:
    """Show the bundles that are found on this machine, and where they are looked for."""
    from firstvec import store
    from firstvec.metadata import ModelMetadata

    manifests, broken = store.read_all()
    if as_json:
        bundles = [
            {**ModelMetadata.of(manifest).to_dict(), "size": sum(file.size for file in manifest.files())}
            for manifest in manifests
        ]
        _print_json({"bundles": bundles, "broken": broken, "searched": store.search_path()})
        return
    if manifests:
        table = Table(box=SIMPLE_HEAD)
        for column in ("model", "revision", "dim", "artifacts", "MB", "folder"):
            table.add_column(
                column, justify="right" if column in ("dim", "artifacts", "MB") else "left", overflow="fold"
            )
        for manifest in manifests:
            size = sum(file.size for file in manifest.files()) / 1e6
            about, count = manifest.model, len(manifest.artifacts)
            revision = (about.revision or "")[:12]
            table.add_row(about.name, revision, str(about.embedding_dim), str(count), f"{size:.1f}", manifest.root)
        out.print(table)
    for path, reason in broken.items():
        out.print(Text.assemble(("broken: ", "red"), f"{path}: {reason}"))
    if not manifests:
        out.print("No bundle was found. Build one with `firstvec build`, or set FIRSTVEC_ARTIFACTS. Searched:")
        for place in store.search_path():
            out.print(f"  {place}")


@app.command()
def inspect(model: Model = DEFAULT_MODEL, as_json: JsonOption = False) -> None:
    """Show what a bundle holds: model, artifacts, sizes and measured quality."""
    from firstvec import store

    manifest = store.find(model)
    if as_json:
        _print_json(json.loads(manifest.to_json()) | {"path": manifest.root})
        return
    about = manifest.model
    out.print(Text.assemble((about.name, "bold"), f"  {about.architecture}, from {about.source}"))
    out.print(f"revision        {about.revision or 'none'}")
    out.print(f"weights sha256  {about.source_sha256}")
    normalized = "unit length" if about.normalized else "not normalised"
    out.print(f"vectors         {about.embedding_dim} components, {about.pooling_mode} pooling, {normalized}")
    out.print(f"input           at most {about.max_seq_length} tokens")
    for name, text in about.prompts.items():
        if text:
            out.print(f"prompt          {name}: {text!r}")
    out.print(f"built with      {', '.join(f'{name} {version}' for name, version in manifest.built_with.items())}")
    out.print(artifact_table(manifest))
    for artifact in manifest.artifacts:
        quality = artifact.quality
        out.print(
            f"{artifact.id}: {artifact.engine} >={artifact.engine_min},<{artifact.engine_below}, "
            f"on {'/'.join(artifact.devices)}"
        )
        if artifact.isa_reason:
            out.print(f"  {artifact.isa}: {artifact.isa_reason}")
        if not artifact.batch_invariant:
            out.print("  a text's vector depends on the texts that share its batch")
        out.print(
            f"  measured on {quality.sentences} sentences with {quality.measured_with}: first percentile of the cosine "
            f"{quality.cosine_p1:.4f}; of ten neighbours {quality.neighbour_overlap:.1%} the same; the same text alone "
            f"and in a padded batch: cosine ≥ {quality.batch_cosine_min:g}"
            + (f"; Spearman {quality.spearman:.2f}" if quality.spearman is not None else "")
        )
        held = (
            f"{name} {'≤' if name == 'max_abs_diff' else '≥'} {limit:g}" for name, limit in quality.thresholds.items()
        )
        out.print(f"  held to {', '.join(held)}")


@app.command()
def explain(
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[
        LoadingStrategy | None,
        typer.Option("--strategy", "-s", case_sensitive=False, help="One strategy; all if left out."),
    ] = None,
    device: DeviceOption = None,
    enable_quantization: QuantizationOption = False,
    min_quality: QualityOption = None,
    require_signature: SignatureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which artifact each strategy takes on this machine, and why not the others. Loads nothing."""
    from firstvec import integrity, self_test, store
    from firstvec.plans import PLANS

    manifest = store.find(model, require_signature)
    strategies = [strategy] if strategy else list(LoadingStrategy)
    choices: dict[LoadingStrategy, Choice | NoCompatibleArtifact] = {}
    for each in strategies:
        loader = OptimizedEmbeddingLoader(
            model,
            each,
            device,
            enable_quantization,
            min_quality=min_quality,
            require_signature=require_signature,
        )
        try:
            choices[each] = loader.choose()
        except NoCompatibleArtifact as error:
            if strategy:
                raise
            choices[each] = error
    profile = ResourceProfile.detect()

    def proven(each: LoadingStrategy, choice: Choice) -> dict[str, bool | None]:
        artifact = choice.artifact
        version = profile.engine_version(artifact.engine) or ""
        kind = "quick-start" if PLANS[each.value].quick_start else "throughput"
        return {
            "verified_before": all(integrity.is_remembered(manifest.root, file) for file in artifact.files),
            "self_test_passed_before": self_test.is_remembered(manifest, artifact, choice.device, version, kind),
        }

    if as_json:
        values = {
            each.value: {"error": str(choice)}
            if isinstance(choice, FirstvecError)
            else {**choice.to_values(), **proven(each, choice)}
            for each, choice in choices.items()
        }
        _print_json({"machine": str(profile), "strategies": values})
        return
    out.print(f"machine: {profile}")
    for each, choice in choices.items():
        out.print(each.name, style="bold")
        if isinstance(choice, FirstvecError):
            out.print(f"  {choice}")
        else:
            out.print(choice_table(choice, **proven(each, choice)))


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(help="Name or folder of a bundle; all if left out.")] = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Public key (PEM) that must have signed it; model-signing's own verifier is asked, too, if installed.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Nothing else may lie in the folder, and no symbolic link.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of a bundle and compare it with the manifest; what was remembered does not count."""
    from firstvec import contents, integrity, signature, store
    from firstvec.manifest import Manifest, read_bytes

    broken: dict[str, str] = {}
    if model is not None:
        manifests = [store.find(model)]
    else:
        manifests, broken = store.read_all()
        if not manifests and not broken:
            store.find(DEFAULT_MODEL)  # raises BundleNotFound, which lists the places
    results: dict[str, dict[str, str]] = {}
    signatures: dict[str, dict[str, str | None]] = {}
    unlisted: dict[str, dict[str, str]] = {}
    for manifest in manifests:
        root = manifest.root
        if public_key is not None:
            data = read_bytes(manifest.path)
            manifest = Manifest.parse(data, manifest.path)
            signatures[root] = signature.judge(manifest, data, public_key)
        if strict:
            unlisted[root] = contents.unlisted(manifest)
        files = results.setdefault(root, {})
        for file in manifest.files():
            try:
                integrity.verify(root, file, remember=False)
                files[file.path] = "ok"
            except FirstvecError as error:
                files[file.path] = str(error)
    bad = [reason for files in results.values() for reason in files.values() if reason != "ok"]
    bad += [reason for each in signatures.values() for reason in each.values() if reason not in ("ok", None)]
    bad += [what for each in unlisted.values() for what in each.values()]
    if as_json:
        values: dict[str, object] = {"ok": not bad and not broken, "bundles": results, "broken": broken}
        if public_key is not None:
            values["signatures"] = signatures
        if strict:
            values["unlisted"] = unlisted
        _print_json(values)
    else:
        good, wrong = ("  ok   ", "green"), ("  BAD  ", "red")
        for root, files in results.items():
            out.print(root, style="bold")
            for path, reason in files.items():
                out.print(Text.assemble(good, path) if reason == "ok" else Text.assemble(wrong, reason))
            for path, what in unlisted.get(root, {}).items():
                out.print(Text.assemble(wrong, f"{path}: {what}; remove it"))
            for verifier, verdict in signatures.get(root, {}).items():
                if verdict is None:
                    out.print(f"  –    signature: {verifier} is not installed, and was not asked")
                else:
                    says = f"signature, says {verifier}"
                    out.print(
                        Text.assemble(good, says) if verdict == "ok" else Text.assemble(wrong, f"{says}: {verdict}")
                    )
        for path, reason in broken.items():
            out.print(Text.assemble(("BAD  ", "red"), f"{path}: {reason}"))
    if bad or broken:
        raise typer.Exit(1)


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not run the artifacts' self-tests.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine is, which artifact each strategy would take, what is missing, and what computes wrong.

    Each artifact that can run here runs its self-test, in a process of its own.
    """
    from firstvec.doctor import examine

    diagnosis = examine(run_self_tests=not quick)
    if as_json:
        _print_json(diagnosis.to_values())
    else:
        print_diagnosis(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _print_json(values: object) -> None:
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def _add_build_commands() -> None:
    """`build`, `wheel`, `sign` and `sbom`, which come with the toolchain of the same distribution."""
    try:
        from firstvec_build import cli as build_cli
    except ModuleNotFoundError:
        return
    build_cli.register(app)


_add_build_commands()
