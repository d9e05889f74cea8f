"""The commands for a bundle that was built: `firstvec wheel`, `sign`, `sbom` and `export`.

This module does not import the toolchain, because every help text of typer imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from firstvec.commands.app import also_positional
from firstvec.commands.output import print_json, print_text
from firstvec_build.shipping import transfers
from firstvec_build.shipping.options import AsJson, Bundle, check_path


def register(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    for name, function in (("wheel", pack_wheel), ("sign", sign_bundle), ("sbom", write_sbom)):
        app.command(name)(also_positional(function, "model"))
    app.command("export")(also_positional(export_bundle, "model"))
    transfers.register(app)


def pack_wheel(
    model: Bundle,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the wheel.")] = "dist",
    only: Annotated[list[str] | None, typer.Option(help="Pack this artifact only. May be repeated.")] = None,
    split: Annotated[
        bool,
        typer.Option(
            "--split", help="Write a wheel for each artifact, and a base wheel with all other files, which they need."
        ),
    ] = False,
    version: Annotated[
        str | None,
        typer.Option(
            "--version",
            metavar="VERSION",
            help="Release number, such as 1.0. The default is 0.N, where N comes from the content.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[  # noqa: A002 - the name of the option
        str | None,
        typer.Option(
            "--license",
            metavar="SPDX",
            help="The model's licence, such as Apache-2.0, if the bundle states none.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pack a bundle as a wheel. Install the wheel beside firstvec, and the runtime finds the bundle by its name.

    The bundle's signature is packed, too. If --only leaves an artifact out, the signature is not packed, because it
    covers the whole bundle. With --split, the base wheel has the signature in any case.
    """
    import zipfile

    from firstvec.bundle import SIGNATURE_NAME, store
    from firstvec_build.shipping.wheel import USUAL_LIMIT, pack, pack_parts

    manifest = store.find_bundle(model)
    replaced: list[Path] = []

    write: Callable[..., list[Path]] = pack_parts if split else lambda *given, **options: [pack(*given, **options)]
    folder, report = check_path("--output", output), replaced.append
    paths = write(manifest, folder, only=only or (), version=version, license=license, report_replaced=report)
    with zipfile.ZipFile(paths[0]) as archive:
        is_signed = any(name.endswith(f"/{SIGNATURE_NAME}") for name in archive.namelist())
    sizes = {path: path.stat().st_size for path in paths}
    if as_json:
        found = [{"wheel": str(path), "size": sizes[path], "replaced": path in replaced} for path in paths]
        print_json({"wheels": found, "signed": is_signed} if split else {**found[0], "signed": is_signed})
        return
    for path in paths:
        print_text(f"{path}  ({sizes[path] / 1e6:.1f} MB{', signed' if is_signed and path == paths[0] else ''})")
    for path in replaced:
        print_text(
            f"{path.name} replaces a wheel of the same version and of other bytes. If that one was installed or "
            "published, give a higher --version, because pip takes two wheels of one version for the same."
        )
    if large := [path for path in paths if sizes[path] > USUAL_LIMIT]:
        limit = f"{USUAL_LIMIT / 1e6:.0f} MB"
        advice = "ask the index for more" if split else "pack less with --only, or write several with --split"
        print_text(f"{large[0].name} is above {limit}, which is the limit of many package indexes: {advice}.")
    if not is_signed and os.path.lexists(os.path.join(manifest.root, SIGNATURE_NAME)):
        print_text(
            "The wheel has no signature, because the bundle's signature covers all artifacts. For signed wheels of "
            "some artifacts, write them with --split: the base wheel has the signature."
        )


def sign_bundle(
    model: Bundle,
    private_key: Annotated[str, typer.Option(metavar="KEY", help="PEM file of a key of P-256, P-384 or P-521.")],
    password: Annotated[
        str | None,
        typer.Option(
            envvar="FIRSTVEC_KEY_PASSWORD",
            help="Password of an encrypted key. The variable is safer, because other users see a command's arguments.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a bundle with a private key, by OpenSSF's model-signing. The signature is model.sig in the bundle's folder.

    The command first verifies every file, and refuses a folder that holds other files. Signing again replaces the
    signature. A new build makes a new folder, without a signature.
    """
    from firstvec.bundle import signature, store
    from firstvec_build.shipping.signing import sign

    manifest = store.find_bundle(model)
    path = sign(manifest, check_path("--private-key", private_key), password=password)
    files = signature.signed_files(path.read_bytes(), str(path))
    if as_json:
        print_json({"signature": str(path), "model": manifest.model.name, "files": files})
    else:
        print_text(f"{path}  ({len(files)} files)")


def write_sbom(
    model: Bundle,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file, not to stdout.")
    ] = None,
) -> None:
    """Write a bundle's bill of materials: CycloneDX 1.6, JSON. The same bundle gives the same bytes.

    The bill names the model, its source and revision, every file with its digest, and the packages that built the
    files. The command first verifies every file.
    """
    from firstvec.bundle import store
    from firstvec.commands.encode import write_result
    from firstvec_build.shipping.sbom import make_sbom
    from firstvec_build.shipping.whole_bundle import read_whole, verify_files

    manifest = store.find_bundle(model)
    data = read_whole(manifest)
    verify_files(manifest)
    write_result(make_sbom(manifest, data), output)


def export_bundle(
    model: Bundle,
    ort_package: Annotated[
        str, typer.Option("--ort-package", metavar="FOLDER", help="Write a model package of ONNX Runtime, schema 1.0.")
    ],
    only: Annotated[list[str] | None, typer.Option(help="Export this artifact only. May be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a bundle's ONNX artifacts to the format of another program. The same bundle gives the same bytes.

    Every file is verified. A package that firstvec wrote before is replaced, and no other folder.
    """
    from firstvec.bundle import store
    from firstvec_build.shipping.ort_package import COMPONENT, export

    package = export(store.find_bundle(model), check_path("--ort-package", ort_package), only=only or ())
    variants = [{"name": each.id, "isa": each.isa} for each in package.variants]
    if as_json:
        print_json(
            {"ort_package": str(package.path), "size": package.size, "component": COMPONENT, "variants": variants}
        )
        return
    print_text(f"{package.path}  ({package.size / 1e6:.1f} MB)")
    for variant in package.variants:
        print_text(f"  {variant.id}: {f'processors with {variant.isa}' if variant.isa else 'any processor'}")
    first = package.variants[0]
    if first.isa is not None:
        print_text(
            f"onnxruntime takes {first.id} on every processor, because it does not check a CPU's instruction set. Ship "
            f"this package to machines with {first.isa} only."
        )
