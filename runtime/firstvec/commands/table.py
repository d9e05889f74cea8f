"""The table of commands and their options: declared once, for the quick parser and for typer.

The quick parser (`parse`) reads plain arguments without the package typer, whose import takes longer than the first
vector. What the quick parser does not understand, and ``--help``, is left to typer (`firstvec.commands.app`).
"""

from __future__ import annotations

from importlib import import_module
from math import inf

from firstvec.errors import InputError
from firstvec.options import DEFAULT_MODEL, is_ray_address
from firstvec.record import Record
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class Option(Record):
    """An option, a flag, or a positional argument of a command."""

    names: tuple[str, ...]
    """For example ``--model`` and ``-m``. Empty: a positional argument that has no option's name."""
    field: str
    """Key of the value that the command's function gets."""
    metavar: str | None
    """What stands for the value in the help text. None for a flag."""
    help: str
    default: Any = None
    kind: type[Any] = str
    """``str``, ``bool`` (a flag), ``int``, ``float``, or ``list`` (any number of texts)."""
    choices: tuple[str, ...] = ()
    """The values that are allowed, in lower case. They may be given in any case."""
    low: float = 0
    high: float = inf
    """The numbers that are allowed. Infinity sets no limit."""
    alone: str | None = None
    """The value if the option stands alone. None: the option needs a value."""
    is_value: Callable[[str], bool] | None = None
    """Whether the next argument is the option's value, of an option that may stand alone."""
    is_positional: bool = False
    """Whether the value may stand without a name, too: ``explain X`` is ``explain --model X``."""
    completion: str | None = None
    """What a shell offers for the value: ``bundles`` or ``artifacts``. None: the choices, or files."""

    def read(self, text: str) -> Any:
        """Return the value that ``text`` means.

        Raises:
            ValueError: the text means no value of this option, or a value that is not written plainly.
        """
        if self.choices:
            return self.choices[self.choices.index(text.lower())]
        if self.kind is str:
            return text
        value = self.kind(text)
        # Python reads more than typer does, for example 1_000 and the digits of other scripts.
        if not ({*text} <= {*"+-.0123456789eE"} and self.low <= value <= self.high):
            raise ValueError(text)
        return value


class Command(Record):
    """A command. Its function gets the fields of its options as keyword arguments, and its docstring is the help."""

    name: str
    module: str
    """Module in the folder ``commands``."""
    function: str
    options: tuple[Option, ...]

    def load(self) -> Callable[..., int | None]:
        """Import the command's function. It returns the exit code, or None for 0."""
        function: Callable[..., int | None] = getattr(import_module(f"firstvec.commands.{self.module}"), self.function)
        return function

    def positionals(self) -> list[Option]:
        """Return the options whose values may stand without a name, in the order in which they take arguments."""
        return [option for option in self.options if option.is_positional or not option.names]


def _option(usage: str, help_text: str, field: str = "", **more: Any) -> Option:
    """Return the option that a usage text writes so: ``--model -m MODEL``. Without the MODEL it is a flag."""
    names = tuple(word for word in usage.split() if word.startswith("-"))
    metavar = usage.removeprefix(" ".join(names)).strip() or None
    field = field or names[0].strip("-").replace("-", "_")
    settings = more if metavar else {"default": False, "kind": bool}
    return Option(names=names, field=field, metavar=metavar, help=help_text, **settings)


_MODEL = _option(
    "--model -m MODEL", "Name of a bundle, or the path of its folder.", default=DEFAULT_MODEL, completion="bundles"
)
# Of the commands that have no other positional argument.
_BUNDLE = _MODEL.replace(is_positional=True)
_ANY_BUNDLE = _BUNDLE.replace(
    default=None, help="Name of a bundle, or the path of its folder; all bundles if left out."
)
_STRATEGY = _option(
    "--strategy -s STRATEGY",
    "When the model is loaded and which artifact is taken: quantized takes INT8, cached takes full precision.",
    default="lazy",
    choices=(*STRATEGIES,),
)
_ANY_STRATEGY = _STRATEGY.replace(default=None, help="Show this strategy only; all strategies if left out.")
# They decide which artifact is taken, besides model and strategy.
_CHOICE_OPTIONS = (
    _option("--device DEVICE", "cpu, cuda, cuda:1 or mps; the best for this machine if left out."),
    _option("--enable-quantization", "Let lazy, background and progressive take INT8, too."),
    _option(
        "--min-quality COSINE",
        "Smallest acceptable worst cosine to the fp32 reference.",
        kind=float,
        low=-1.0,
        high=1.0,
    ),
    _option("--require-signature KEY", "Public key (PEM) that must have signed the bundle."),
    _option("--artifact ID", "Take this artifact only; see `firstvec inspect`.", completion="artifacts"),
)
_JSON = _option("--json", "Print JSON.", field="as_json")

_ENCODE_OPTIONS = (
    _option("TEXT", "Texts, or - for the lines of stdin.", field="texts", kind=list),
    *(_MODEL, _STRATEGY, *_CHOICE_OPTIONS),
    _option(
        "--format -f FORMAT",
        "jsonl is an object a line, csv has the text and a column for each component, npy is an array, text is a line "
        "for each vector. If left out, the ending of --output decides, and json is the default.",
        field="form",
        choices=("json", "jsonl", "csv", "npy", "text"),
    ),
    _option(
        "--output -o FILE",
        "Write to this file, and not to stdout. The endings .json, .jsonl, .ndjson, .csv, .npy and .txt choose the "
        "format.",
    ),
    _option("--batch-size N", "Texts per run.", default=32, kind=int, low=1),
    _option(
        "--precision PRECISION",
        "Make vectors smaller: int8 and uint8 hold one byte a component, binary and ubinary one bit.",
        default="float32",
        choices=("float32", "int8", "uint8", "binary", "ubinary"),
    ),
    _option("--query", "The texts are queries: put the model's prompt for queries before each."),
    _option("--document", "The texts are documents: put the model's prompt for documents before each."),
    _option("--prompt-name NAME", "Put this prompt of the model before each text; see `firstvec inspect`."),
)
_EMBED_OPTIONS = (
    _option(
        "INPUT",
        "Files or patterns of files: .parquet, .jsonl, .csv, .txt, also with .gz or .zst; - for stdin.",
        field="texts",
        kind=list,
    ),
    _option(
        "--output -o PLACE",
        "A folder, which gets a file for each shard, or one file that ends with .parquet, .jsonl or .npy.",
    ),
    _MODEL,
    *_CHOICE_OPTIONS,
    _option("--text-column COLUMN", "Column of the texts.", default="text"),
    _option("--id-column COLUMN", "Column that names a row; if left out, the output has the columns file and row."),
    _option("--keep COLUMNS", "Other columns of the output, with commas between them."),
    _option(
        "--input-format FORMAT",
        "If left out, the ending of each input decides; stdin has plain lines.",
        choices=("parquet", "jsonl", "csv", "lines"),
    ),
    _option(
        "--output-format FORMAT",
        "Of the shards in a folder: parquet if left out.",
        choices=("parquet", "jsonl", "npy"),
    ),
    _option(
        "--dtype TYPE",
        "Make vectors smaller: float16 has two bytes a component, int8 one, binary one bit.",
        default="float32",
        choices=("float32", "float16", "int8", "binary"),
    ),
    _option("--truncate-dim N", "Keep the first N components only (Matryoshka models).", kind=int, low=1),
    _option("--normalize", "Scale vectors to unit length."),
    _option("--query", "The texts are queries: put the model's prompt for queries before each."),
    _option("--document", "The texts are documents: put the model's prompt for documents before each."),
    _option("--prompt-name NAME", "Put this prompt of the model before each text; see `firstvec inspect`."),
    _option(
        "--on-error WHAT",
        "A row without a usable text: fail stops the run, skip leaves the row out, null gives a null vector.",
        default="fail",
        choices=("fail", "skip", "null"),
    ),
    _option("--dedupe", "Compute the vector of equal texts of a shard once."),
    _option(
        "--workers N",
        "Processes that compute, and share the model's pages: 1 if left out, or with --ray one for each processor.",
        kind=int,
        low=1,
    ),
    _option(
        "--ray ADDRESS",
        "Compute on a Ray cluster: auto or HOST:PORT. Without an ADDRESS, a cluster is started on "
        "this machine. Parquet only; all nodes need the bundle, and see inputs and output under the same paths.",
        alone="local",
        is_value=is_ray_address,
    ),
    _option("--shard-rows N", "Rows of a shard.", default=10_000, kind=int, low=1),
    _option("--batch-size N", "Texts per run.", default=32, kind=int, low=1),
    _option("--overwrite", "Begin anew: remove what earlier runs have written there."),
    _option("--quiet -q", "Print errors only."),
    _option("--json", "Print the summary as JSON, and no progress.", field="as_json"),
)
_SIMILAR_OPTIONS = (
    _option("QUERY", "What to look for. The model's prompt for queries is put before it.", field="query"),
    _option("FILE", "Files of text, or - for stdin. If left out, stdin is read.", field="files", kind=list),
    *(_MODEL, _STRATEGY, *_CHOICE_OPTIONS),
    _option("--top -k N", "How many lines to print.", default=10, kind=int, low=1),
    _JSON,
)
_VERIFY_OPTIONS = (
    _ANY_BUNDLE,
    _option(
        "--public-key KEY",
        "Public key (PEM) that must have signed the bundle. model-signing's own verifier is asked, too, if it is "
        "installed.",
    ),
    _option("--strict", "Nothing else may lie in the folder, and no symbolic link."),
    _JSON,
)
_HTML = _option(
    "--html FILE", "Write a page with pictures, too: the choice, the first vector (measured now), and the quality."
)
_QUICK = _option("--quick", "Do not run the artifacts' self-tests.")
_BENCH_OPTIONS = (
    _BUNDLE,
    _option("--texts FILE", "Texts to measure with, one a line, or - for stdin.", field="texts_file"),
    _option("--rounds N", "Fresh processes of each program.", default=10, kind=int, low=1),
    _ANY_STRATEGY.replace(help="Measure this strategy only; all strategies if left out."),
    _option(
        "--reference MODEL",
        "Folder of the original model, or its name in the cache of the Hugging Face hub, for sentence-transformers.",
    ),
    _option("--quiet -q", "Print no progress."),
    _JSON,
)

COMMANDS = {
    name: Command(name=name, module=module, function=function, options=options)
    for name, module, function, options in (
        ("encode", "encode", "encode", _ENCODE_OPTIONS),
        ("similar", "similar", "similar", _SIMILAR_OPTIONS),
        ("embed", "embed", "embed", _EMBED_OPTIONS),
        ("list", "bundles", "list_bundles", (_JSON,)),
        ("inspect", "bundles", "inspect", (_BUNDLE, _JSON)),
        ("explain", "explain", "explain", (_BUNDLE, _ANY_STRATEGY, *_CHOICE_OPTIONS, _HTML, _JSON)),
        ("verify", "verify", "verify", _VERIFY_OPTIONS),
        ("doctor", "doctor", "doctor", (_ANY_BUNDLE, _QUICK, _JSON)),
        ("bench", "bench", "bench", _BENCH_OPTIONS),
    )
}
"""Name → command."""


def write_out(command: Command, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of each option that stands alone."""
    alone = {name: option for option in command.options if option.alone is not None for name in option.names}
    result = [*arguments]
    for place, argument in enumerate(arguments):
        if argument == "--":
            break
        option = alone.get(argument)
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if option is not None and option.is_value is not None and not option.is_value(following):
            result[place] = f"{argument}={option.alone}"
    return result


def parse(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return what the command's function gets, or None if the arguments are not plain enough to be sure of.

    Raises:
        InputError: a value is given twice, by its name and without, and the two differ.
    """
    named = {name: option for option in command.options for name in option.names}
    given: dict[str, Any] = {}
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            words += rest
        elif not argument.startswith("-") or argument == "-":
            words.append(argument)
        else:
            name, equals, text = argument.partition("=")
            option = named.get(name)
            if option is None or (equals and (option.kind is bool or not name.startswith("--"))):
                return None
            try:
                given[option.field] = option.kind is bool or option.read(text if equals else next(rest))
            except (ValueError, StopIteration):
                return None
    for option in command.positionals():
        if option.kind is list:
            given |= {option.field: (*words,), "texts_are_literal": "--" in arguments}
            words = []
        elif words:
            word = words.pop(0)
            given[option.field] = same_value(given.get(option.field, word), word, option.metavar)
    return None if words else {option.field: option.default for option in command.options} | given


def same_value(named: str, word: str, metavar: str | None) -> str:
    """Return the value that an option has by its name, and also without its name.

    Raises:
        InputError: the two values differ.
    """
    if named != word:
        raise InputError(f"{metavar} is given twice, as {word!r} and as {named!r}: give one of them")
    return word
