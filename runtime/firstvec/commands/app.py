"""The command line in typer, for help texts, error messages, and the commands of the toolchain.

The commands of the runtime are the rows of `firstvec.commands.table`. Other packages add commands by an entry point of
the group ``firstvec.commands``: a function that takes the typer app. `firstvec build` comes that way.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from inspect import Parameter, Signature, cleandoc
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from firstvec import __version__
from firstvec.commands.table import COMMANDS
from firstvec.errors import FirstvecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from firstvec.commands.table import Command, Option


def make_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the typer app. ``arguments`` is the command line that it will be called with.

    Raises:
        FirstvecError: another package adds commands, and cannot be imported.
    """
    app = typer.Typer(
        name="firstvec",
        help="Sentence embeddings that start instantly, on the artifact that fits the machine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for name, command in COMMANDS.items():
        # Without allow_extra_args typer names an argument that is too much, but not the option that takes it.
        app.command(name, context_settings={"allow_extra_args": True})(_function(command, arguments[1:]))
    for entry in entry_points(group="firstvec.commands"):
        try:
            register = entry.load()
        except (ImportError, AttributeError) as error:
            if entry.module.partition(".")[0] == "firstvec_build":
                raise
            package = entry.dist.name if entry.dist is not None else entry.module
            raise FirstvecError(
                f"the package {package} adds commands to firstvec, and cannot be imported ({error}): "
                "repair the package, or uninstall it"
            ) from error
        register(app)
    return app


def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"firstvec {__version__}")
        raise typer.Exit


def _function(command: Command, arguments: Sequence[str]) -> Callable[..., None]:
    """Return a function that typer can read: its signature has one parameter for each option of the command."""
    function = command.load()

    def call(context: typer.Context, **values: Any) -> None:
        if found := context.args:
            hint = f"`firstvec {command.name}` takes options only"
            if any(option.field == "model" for option in command.options):
                hint = f"To name a bundle, use --model: firstvec {command.name} --model NAME"
            plural = "s" if len(found) > 1 else ""
            raise typer.BadParameter(f"unexpected argument{plural} {', '.join(map(repr, found))}. {hint}")
        if "texts" in values:
            values["texts"] = tuple(values["texts"] or ())
            values["texts_are_literal"] = "--" in arguments
        if code := function(**values):
            raise typer.Exit(code)

    parameters = [Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    parameters += [
        Parameter(option.field, Parameter.KEYWORD_ONLY, default=option.default, annotation=_annotation(option))
        for option in command.options
    ]
    # Typer keeps the line ends within a paragraph.
    call.__doc__ = "\n\n".join(" ".join(lines.split()) for lines in cleandoc(function.__doc__ or "").split("\n\n"))
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return call


def _annotation(option: Option) -> Any:
    kind: Any = Literal[option.choices] if option.choices else list[str] if option.kind is list else option.kind
    kind = kind | None if option.default is None else kind
    if not option.names:
        return Annotated[kind, typer.Argument(help=option.help, metavar=option.metavar)]
    settings: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "show_default": option.kind is not bool}
    if option.choices:
        settings |= {"help": f"{option.help} One of {', '.join(option.choices)}.", "case_sensitive": False}
    elif option.kind in (int, float):
        settings |= {"min": option.low, "max": option.high if option.high < inf else None}
    return Annotated[kind, typer.Option(*option.names, **settings)]
