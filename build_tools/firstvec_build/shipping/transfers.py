"""The commands `firstvec push` and `firstvec pull`, for each kind of place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from firstvec.commands.app import completer
from firstvec.commands.output import print_json, print_text
from firstvec.commands.table import same_value
from firstvec.errors import InputError
from firstvec_build.shipping.options import AsJson, check_path, default_output

if TYPE_CHECKING:
    from firstvec.bundle.manifest import Manifest
    from firstvec_build.shipping.addresses import Access
    from firstvec_build.shipping.arrival import Received, Remote
    from firstvec_build.shipping.progress import Report


def register(app: typer.Typer) -> None:
    """Add this module's commands to the command line."""
    app.command("push")(push_bundle)
    app.command("pull")(pull_bundle)


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
    as_json: AsJson = False,
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
    as_json: AsJson = False,
) -> None:
    """Pull a bundle from a registry or a hub. Only the files of the wanted artifacts are fetched.

    Every file is checked while it arrives, and the bundle appears whole or not at all. A pull that broke off goes on
    where it broke. If --only or --strategy leaves an artifact out, the signature is checked, and not kept.
    """
    from firstvec_build.shipping.addresses import parse_address
    from firstvec_build.shipping.arrival import check_request, receive
    from firstvec_build.shipping.progress import TransferDisplay

    source = parse_address(address)
    place = _find_place(address)
    access = _read_access(username, password_stdin, insecure, ca)
    folder = check_path("--output", output) if output is not None else default_output()
    key = check_path("--require-signature", require_signature) if require_signature is not None else None
    check_request(folder, only=only or (), strategy=strategy, require_signature=key)
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
        try:
            password = sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError("the password on stdin is not UTF-8; write it as text") from error
    if not username or not password:
        raise InputError(
            "--username needs a name and a password: set FIRSTVEC_REGISTRY_PASSWORD, or give --password-stdin"
        )
    return Access(username=username, password=password, insecure=insecure, authorities=authorities)
