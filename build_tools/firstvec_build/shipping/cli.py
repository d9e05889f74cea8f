"""The commands for a bundle that was built: `firstvec wheel`, `sign`, `sbom`, `push`, `pull` and `export`.

This module does not import the toolchain, because every help text of typer imports this module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from firstvec.bundle.store import data_folder
from firstvec.commands.app import also_positional, completer
from firstvec.commands.output import print_json, print_text
from firstvec.commands.table import same_value
from firstvec.errors import InputError

if TYPE_CHECKING:
    from firstvec.bundle.manifest import Manifest
    from firstvec_build.shipping.addresses import Access
    from firstvec_build.shipping.arrival import Received, Remote
    from firstvec_build.shipping.progress import Report

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
    """Add this module's commands to the command line."""
    for name, function in (("wheel", pack_wheel), ("sign", sign_bundle), ("sbom", write_sbom)):
        app.command(name)(also_positional(function, "model"))
    app.command("push")(push_bundle)
    app.command("pull")(pull_bundle)
    app.command("export")(also_positional(export_bundle, "model"))


def pack_wheel(
    model: _Bundle,
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
    as_json: _AsJson = False,
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
    path = sign(manifest, check_path("--private-key", private_key), password=password)
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


class _Pushed(Protocol):
    """What a push returns."""

    @property
    def address(self) -> str: ...
    @property
    def sent(self) -> int: ...
    @property
    def present(self) -> int: ...
    @property
    def is_signed(self) -> bool: ...


class _Place(Protocol):
    """A module that knows one kind of place. ``Any`` is its record of an address."""

    def push(self, manifest: Manifest, address: Any, access: Access, report: Report) -> _Pushed: ...
    def open_remote(self, address: Any, access: Access) -> Remote: ...


def _load_registry() -> _Place:
    from firstvec_build.shipping import registry

    return registry


def _load_hub() -> _Place:
    from firstvec_build.shipping import hub

    return hub


_PLACES: dict[str, Callable[[], _Place]] = {"oci": _load_registry, "hf": _load_hub}
"""Scheme of an address → the module for such places."""

_Username = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Log in with this name. The password is FIRSTVEC_REGISTRY_PASSWORD. The default is what `docker login` "
        "has stored.",
        show_default=False,
    ),
]
_PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="Speak HTTP without TLS. Everybody on the way can read it.")
]
_Authorities = Annotated[
    str | None,
    typer.Option(
        "--ca", metavar="FILE", help="Trust the authorities in this PEM file, and no others.", show_default=False
    ),
]


def push_bundle(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Name of a bundle, or the path of its folder.",
            show_default=False,
            autocompletion=completer("bundles"),
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="oci://HOST/REPO:TAG or hf://ORG/NAME.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The same as the argument MODEL.",
            show_default=False,
            autocompletion=completer("bundles"),
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository on a hub private. Others keep what they are.")
    ] = False,
    username: _Username = None,
    password_stdin: _PasswordStdin = False,
    insecure: _Insecure = False,
    ca: _Authorities = None,
    as_json: _AsJson = False,
) -> None:
    """Push a bundle to a registry or a hub. The signature is pushed, too. What is there is not sent again.

    The command first verifies every file. It sets the tag of a registry last, and makes one commit on a hub. It prints
    the address with the digest or the commit, which names the same bundle for ever.
    """
    from dataclasses import replace

    from firstvec.bundle import store
    from firstvec_build.shipping.addresses import Hub, parse_address
    from firstvec_build.shipping.progress import TransferDisplay

    if model is not None:
        if address is None:  # the one argument that is left
            bundle, address = model, bundle
        bundle = same_value(model, bundle or model, "MODEL")
    if bundle is None:
        raise typer.BadParameter("MODEL is missing. Name of a bundle, or the path of its folder.")
    if address is None:
        raise typer.BadParameter("ADDRESS is missing. Write oci://HOST/REPO:TAG or hf://ORG/NAME.")
    to = parse_address(address)
    place = _find_place(address)
    access = _read_access(username, password_stdin, insecure, ca)
    if private:
        if not isinstance(to, Hub):
            raise InputError("--private is for hf:// only, because a registry itself decides who reads a repository")
        access = replace(access, private=True)
    manifest = store.find_bundle(bundle)
    with TransferDisplay("push", silent=as_json) as display:
        pushed = place.push(manifest, to, access, display.report)
    if as_json:
        print_json(
            {
                "address": pushed.address,
                "model": manifest.model.name,
                "sent": pushed.sent,
                "present": pushed.present,
                "signed": pushed.is_signed,
            }
        )
        return
    print_text(
        f"{pushed.address}  ({pushed.sent / 1e6:.1f} MB sent, {pushed.present / 1e6:.1f} MB were there"
        f"{', signed' if pushed.is_signed else ''})"
    )


def pull_bundle(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="oci://HOST/REPO:TAG, oci://HOST/REPO@sha256:DIGEST or hf://ORG/NAME@COMMIT.",
            show_default=False,
        ),
    ],
    only: Annotated[list[str] | None, typer.Option(help="Take this artifact only. May be repeated.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Take only the artifact that this strategy takes on this machine, for example quantized.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for bundles. The default is the user's data folder, where the runtime looks by default.",
            show_default=False,
        ),
    ] = None,
    require_signature: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="PEM file of the public key that must have signed the bundle. It is checked before anything is kept.",
            show_default=False,
        ),
    ] = None,
    username: _Username = None,
    password_stdin: _PasswordStdin = False,
    insecure: _Insecure = False,
    ca: _Authorities = None,
    as_json: _AsJson = False,
) -> None:
    """Pull a bundle from a registry or a hub. Only the files of the wanted artifacts are fetched.

    Every file is checked while it arrives, and the bundle appears whole or not at all. A pull that broke off goes on
    where it broke. If --only or --strategy leaves an artifact out, the signature is checked, and not kept.
    """
    from firstvec_build.shipping.addresses import parse_address
    from firstvec_build.shipping.arrival import receive
    from firstvec_build.shipping.progress import TransferDisplay

    source = parse_address(address)
    place = _find_place(address)
    access = _read_access(username, password_stdin, insecure, ca)
    folder = check_path("--output", output) if output is not None else default_output()
    key = check_path("--require-signature", require_signature) if require_signature is not None else None
    with TransferDisplay("pull", silent=as_json) as display:
        remote = place.open_remote(source, access)
        received = receive(
            remote,
            folder,
            only=only or (),
            strategy=strategy,
            require_signature=key,
            report=display.report,
            report_wait=lambda: display.say("another process works on this bundle; waiting"),
        )
    if as_json:
        print_json(
            {
                "path": received.manifest.root,
                "model": received.manifest.model.name,
                "address": remote.address,
                "artifacts": [artifact.id for artifact in received.manifest.artifacts],
                "new": received.is_new,
                "replaced": received.has_replaced,
                "fetched": received.fetched,
                "reused": received.reused,
                "signed": received.is_signed,
            }
        )
    else:
        _print_received(received, remote.address, key)


def _print_received(received: Received, address: str, key: Path | None) -> None:
    root = received.manifest.root
    if received.is_new:
        reused = f", {received.reused / 1e6:.1f} MB were here" if received.reused else ""
        print_text(f"{root}  ({received.fetched / 1e6:.1f} MB fetched{reused})")
    else:
        print_text(f"{root}  (up to date)")
    print_text(f"from {address}: {', '.join(artifact.id for artifact in received.manifest.artifacts)}")
    if received.has_replaced:
        print_text("It replaced the bundle that was there.")
    if key is not None:
        print_text(f"The signature is one of the key {key}.")
    if received.left_out_signature:
        print_text("The signature was left out, because it covers all artifacts of the bundle.")


def _find_place(address: str) -> _Place:
    return _PLACES[address.partition("://")[0]]()


def _read_access(username: str | None, password_stdin: bool, insecure: bool, authorities: str | None) -> Access:
    """Return how to reach the place. The password is never an argument, because other users see arguments."""
    from firstvec_build.shipping.addresses import Access

    if authorities is not None:
        check_path("--ca", authorities)
        if insecure:
            raise InputError("both --ca and --insecure are given: without TLS nobody shows a certificate")
    password = os.environ.get("FIRSTVEC_REGISTRY_PASSWORD")
    if username is None:
        if password_stdin:
            raise InputError("--password-stdin needs --username")
        return Access(insecure=insecure, authorities=authorities)
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    if not username or not password:
        raise InputError(
            "--username needs a name and a password: set FIRSTVEC_REGISTRY_PASSWORD, or give --password-stdin"
        )
    return Access(username=username, password=password, insecure=insecure, authorities=authorities)


def export_bundle(
    model: _Bundle,
    ort_package: Annotated[
        str, typer.Option("--ort-package", metavar="FOLDER", help="Write a model package of ONNX Runtime, schema 1.0.")
    ],
    only: Annotated[list[str] | None, typer.Option(help="Export this artifact only. May be repeated.")] = None,
    as_json: _AsJson = False,
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


def default_output() -> Path:
    """Return the user's folder for bundles, or raise InputError."""
    folder = data_folder()
    if folder is None:
        raise InputError("this user has no home folder: give --output FOLDER, or set FIRSTVEC_HOME")
    return Path(folder) / "bundles"


def check_path(option: str, text: str) -> Path:
    """Return the path of an option, and refuse an empty text.

    A shell passes an empty text for a variable that is not set. An empty path would mean the working folder.
    """
    if not text:
        raise InputError(f"{option} is empty: give a path")
    return Path(text)
