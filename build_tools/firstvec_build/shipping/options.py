"""Options that several commands of the toolchain have, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from firstvec.bundle.store import data_folder
from firstvec.commands.app import completer
from firstvec.errors import InputError

Bundle = Annotated[
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
