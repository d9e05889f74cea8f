"""The table of commands and their options: declared once, for the quick parser and for typer.

The quick parser (`parse`) reads plain arguments without the package typer, whose import takes longer than the first
vector. What the quick parser does not understand, and ``--help``, is left to typer (`firstvec.commands.app`).
"""

from __future__ import annotations

from firstvec.options import DEFAULT_MODEL
from firstvec.record import Record
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Option(Record):
    """An option, a flag, or the texts of a command."""

    names: tuple[str, ...] = ()
    """For example ``--model`` and ``-m``. Empty: the arguments that are no options."""
    field: str
    """Key of the value that the command's function gets."""
    help: str
    default: Any = None
    kind: str = "text"
    """``text``, ``flag``, ``integer``, ``number``, or ``texts`` (any number of them)."""
    metavar: str | None = None
    """What stands for the value in the help text. None for a flag."""
    choices: tuple[str, ...] = ()
    """The values that are allowed, in lower case. They may be given in any case."""
    low: float | None = None
    high: float | None = None

    def read(self, text: str) -> Any:
        """Return the value that ``text`` means.

        Raises:
            ValueError: the text means no value of this option, or a value that is not written plainly.
        """
        if self.choices:
            if text.lower() not in self.choices:
                raise ValueError(text)
            return text.lower()
        if self.kind not in ("integer", "number"):
            return text
        # Python reads more than typer does, for example 1_000 and the digits of other scripts.
        if not {*text} <= {*"+-.0123456789eE"}:
            raise ValueError(text)
        value = int(text) if self.kind == "integer" else float(text)
        if not (self.low is None or value >= self.low) or not (self.high is None or value <= self.high):
            raise ValueError(text)
        return value


class Command(Record):
    """A command. Its function gets the fields of its options as keyword arguments."""

    name: str
    module: str
    """Python module of this room."""
    function: str
    help: str
    options: tuple[Option, ...] = ()


MODEL = Option(
    names=("--model", "-m"),
    field="model",
    default=DEFAULT_MODEL,
    metavar="MODEL",
    help="Name of a bundle, or the path of its folder.",
)
ANY_MODEL = MODEL.replace(default=None, help="Name of a bundle, or the path of its folder; all bundles if left out.")
STRATEGY = Option(
    names=("--strategy", "-s"),
    field="strategy",
    default="lazy",
    metavar="STRATEGY",
    choices=(*STRATEGIES,),
    help="When the model is loaded and which artifact is taken: quantized takes INT8, cached takes full precision.",
)
ANY_STRATEGY = STRATEGY.replace(default=None, help="Show this strategy only; all strategies if left out.")
DEVICE = Option(
    names=("--device",),
    field="device",
    metavar="DEVICE",
    help="cpu, cuda, cuda:1 or mps; the best for this machine if left out.",
)
QUANTIZATION = Option(
    names=("--enable-quantization",),
    field="enable_quantization",
    default=False,
    kind="flag",
    help="Let lazy, background and progressive take INT8, too.",
)
QUALITY = Option(
    names=("--min-quality",),
    field="min_quality",
    kind="number",
    metavar="COSINE",
    low=-1.0,
    high=1.0,
    help="Smallest acceptable worst cosine to the fp32 reference.",
)
SIGNATURE = Option(
    names=("--require-signature",),
    field="require_signature",
    metavar="KEY",
    help="Public key (PEM) that must have signed the bundle.",
)
ARTIFACT = Option(
    names=("--artifact",), field="artifact", metavar="ID", help="Take this artifact only; see `firstvec inspect`."
)
JSON = Option(names=("--json",), field="as_json", default=False, kind="flag", help="Print JSON.")
CHOICE_OPTIONS = (DEVICE, QUANTIZATION, QUALITY, SIGNATURE, ARTIFACT)
"""Options that decide which artifact is taken, besides model and strategy."""

FORMATS = ("json", "npy", "text")

_COMMANDS = (
    Command(
        name="encode",
        module="encode",
        function="encode",
        help="""Embed texts: one vector for each text, in their order.

        The texts are the arguments. Without an argument, or with the argument -, the texts are the lines of stdin.
        Every argument behind -- is a text, even if it begins with a dash or is the name of a file.""",
        options=(
            Option(field="texts", kind="texts", metavar="TEXT", help="Texts, or - for the lines of stdin."),
            MODEL,
            STRATEGY,
            *CHOICE_OPTIONS,
            Option(
                names=("--format", "-f"),
                field="form",
                metavar="FORMAT",
                choices=FORMATS,
                help="npy is an array of float32, text is one line for each vector. If left out, the ending of "
                "--output decides, and json is the default.",
            ),
            Option(
                names=("--output", "-o"),
                field="output",
                metavar="FILE",
                help="Write to this file, and not to stdout. The endings .json, .npy and .txt choose the format.",
            ),
            Option(
                names=("--batch-size",),
                field="batch_size",
                default=32,
                kind="integer",
                metavar="N",
                low=1,
                help="Texts per run.",
            ),
        ),
    ),
    Command(
        name="list",
        module="bundles",
        function="list_bundles",
        help="Show the bundles that are found on this machine, and where they are looked for.",
        options=(JSON,),
    ),
    Command(
        name="inspect",
        module="bundles",
        function="inspect",
        help="Show what a bundle holds: model, artifacts, sizes and measured quality.",
        options=(MODEL, JSON),
    ),
    Command(
        name="explain",
        module="explain",
        function="explain",
        help="Show which artifact each strategy takes on this machine, and why not the others. Loads nothing.",
        options=(MODEL, ANY_STRATEGY, *CHOICE_OPTIONS, JSON),
    ),
    Command(
        name="verify",
        module="verify",
        function="verify",
        help="Hash every file of a bundle and compare it with the manifest. What was remembered does not count.",
        options=(
            ANY_MODEL,
            Option(
                names=("--public-key",),
                field="public_key",
                metavar="KEY",
                help="Public key (PEM) that must have signed the bundle. model-signing's own verifier is asked, too, "
                "if it is installed.",
            ),
            Option(
                names=("--strict",),
                field="strict",
                default=False,
                kind="flag",
                help="Nothing else may lie in the folder, and no symbolic link.",
            ),
            JSON,
        ),
    ),
    Command(
        name="doctor",
        module="doctor",
        function="doctor",
        help="""Show what this machine is, what each strategy would take, what is missing, and what computes wrong.

        Each artifact that can run here runs its self-test, in a process of its own.""",
        options=(
            ANY_MODEL,
            Option(
                names=("--quick",),
                field="quick",
                default=False,
                kind="flag",
                help="Do not run the artifacts' self-tests.",
            ),
            JSON,
        ),
    ),
)
COMMANDS = {command.name: command for command in _COMMANDS}
"""Name → command."""


def parse(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the values of a command's options, or None if the arguments are not plain enough to be sure of.

    Args:
        command: the command.
        arguments: what stands behind its name.
    """
    values = {option.field: option.default for option in command.options}
    named = _options_by_name(command)
    texts: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            texts += rest
            break
        if not argument.startswith("-") or argument == "-":
            texts.append(argument)
            continue
        name, equals, text = argument.partition("=")
        option = named.get(name)
        if option is None or (equals and (option.kind == "flag" or not name.startswith("--"))):
            return None
        try:
            values[option.field] = True if option.kind == "flag" else option.read(text if equals else next(rest))
        except (ValueError, StopIteration):
            return None
    if "texts" in values:
        values["texts"] = tuple(texts)
    elif texts:
        return None
    return values


def ends_options(command: Command, arguments: Sequence[str]) -> bool:
    """Return whether ``--`` stands among the arguments as what ends the options, and not as the value of one.

    Args:
        command: the command.
        arguments: what stands behind its name.
    """
    named = _options_by_name(command)
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return True
        if argument in named and named[argument].kind != "flag":
            next(rest, None)
    return False


def _options_by_name(command: Command) -> dict[str, Option]:
    return {name: option for option in command.options for name in option.names}
