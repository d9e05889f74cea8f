"""The command line in typer, for help texts, error messages, and the commands of the toolchain.

The commands of the runtime are the rows of `firstvec.commands.table`. Other packages add commands by an entry point of
the group ``firstvec.commands``: a function that takes the typer app. `firstvec build` comes that way.
"""

from __future__ import annotations

from copy import copy
from importlib.metadata import entry_points
from inspect import Parameter, Signature, cleandoc, signature
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from firstvec import __version__
from firstvec.commands.completion import COMPLETIONS
from firstvec.commands.table import COMMANDS, same_value
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


def also_positional(function: Callable[..., Any], field: str) -> Callable[..., Any]:
    """Let typer take the value of one of the function's options without the option's name, too.

    An option without a default is demanded in one of the two ways.

    Args:
        function: a function that typer can read.
        field: name of the parameter. Its annotation has a `typer.Option` with a help text and a metavar.
    """
    parameters = dict(signature(function, eval_str=True).parameters)
    parameter = parameters[field]
    kind, option = get_args(parameter.annotation)
    is_needed = parameter.default is Parameter.empty
    passes_context = "context" in parameters
    place = f"{field}_argument"
    argument = typer.Argument(
        metavar=option.metavar, help=option.help, show_default=False, autocompletion=option.autocompletion
    )
    option = copy(option)
    option.help = f"The same as the argument {option.metavar}."

    def call(context: typer.Context, **values: Any) -> None:
        word = values.pop(place)
        if word is not None:
            source = context.get_parameter_source(field)
            is_named = source is not None and source.name == "COMMANDLINE"
            values[field] = same_value(values[field] if is_named else word, word, option.metavar)
        elif is_needed and values[field] is None:
            raise typer.BadParameter(f"{option.metavar} is missing. {argument.help}")
        function(**({"context": context} if passes_context else {}), **values)

    parameters["context"] = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters[field] = parameter.replace(
        default=None if is_needed else parameter.default, annotation=Annotated[kind | None, option]
    )
    parameters[place] = Parameter(
        place, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, argument]
    )
    _describe(call, function.__doc__, [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters.values()])
    return call


def _describe(function: Callable[..., Any], description: str | None, parameters: Sequence[Parameter]) -> None:
    """Give a function the help text and the parameters that typer reads."""
    function.__doc__ = description
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    function.__signature__ = Signature([*parameters])  # type: ignore[attr-defined]


def _function(command: Command, arguments: Sequence[str]) -> Callable[..., None]:
    """Return a function that typer can read: its signature has one parameter for each option of the command."""
    function = command.load()
    named_places = [option for option in command.options if option.is_positional]

    def call(context: typer.Context, **values: Any) -> None:
        if found := context.args:
            takes = "".join(f"one {option.metavar} and " for option in named_places)
            names = f"argument{'s' if len(found) > 1 else ''} {', '.join(map(repr, found))}"
            raise typer.BadParameter(f"unexpected {names}. `firstvec {command.name}` takes {takes}options only")
        for option in command.options:
            if option.kind is list:
                values |= {option.field: (*(values[option.field] or ()),), "texts_are_literal": "--" in arguments}
        if code := function(**values):
            raise typer.Exit(code)

    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [
        Parameter(option.field, Parameter.KEYWORD_ONLY, default=option.default, annotation=_annotation(option))
        for option in command.options
    ]
    # Typer keeps the line ends within a paragraph.
    paragraphs = cleandoc(function.__doc__ or "").split("\n\n")
    _describe(call, "\n\n".join(" ".join(lines.split()) for lines in paragraphs), parameters)
    result: Callable[..., None] = call
    for option in named_places:
        result = also_positional(result, option.field)
    return result


def _annotation(option: Option) -> Any:
    kind: Any = Literal[option.choices] if option.choices else list[str] if option.kind is list else option.kind
    kind = kind | None if option.default is None else kind
    settings: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if option.completion is not None:
        settings["autocompletion"] = completer(option.completion)
    if not option.names:
        return Annotated[kind, typer.Argument(**settings)]
    settings["show_default"] = option.kind is not bool
    if option.choices:
        settings |= {"help": f"{option.help} One of {', '.join(option.choices)}.", "case_sensitive": False}
    elif option.kind in (int, float):
        settings |= {"min": option.low, "max": option.high if option.high < inf else None}
    return Annotated[kind, typer.Option(*option.names, **settings)]


def completer(completion: str) -> Callable[..., list[str]]:
    """Return what typer calls to complete a value: a key of `firstvec.commands.completion.COMPLETIONS`."""
    complete = COMPLETIONS[completion]

    def call(context: typer.Context, incomplete: str) -> list[str]:
        given = {**context.params}
        if "model_argument" in given and given["model_argument"] is None and context.args:
            # typer has not read the positional arguments, because the last option has no value yet.
            given["model_argument"] = context.args[0]
        return complete(given, incomplete)

    return call
