"""The `firstvec` command, and ``python -m firstvec``."""

from __future__ import annotations

import errno
import os
import sys

from firstvec import __version__
from firstvec.commands.table import COMMANDS, parse, write_out
from firstvec.errors import FirstvecError, InputError, MissingDependency, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


_OUT_OF_MEMORY = "error: out of memory; give the process more, or less to do at once"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. An error that firstvec raises on purpose ends it with one message and exit code 1."""
    stdout_is_closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process was started with it closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it stays open until the process ends
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack ≤ and Δ
    try:
        code = _run([*(sys.argv[1:] if arguments is None else arguments)], stdout_is_closed)
        sys.stdout.flush()
        if code:
            sys.exit(code)
    except FirstvecError as error:
        sys.exit(f"error: {printable(str(error))}")
    except OSError as error:
        # Otherwise the interpreter would fail again when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(0)  # the reader of the output has closed it, as `head` does
        if error.errno == errno.ENOMEM:
            sys.exit(_OUT_OF_MEMORY)
        # An error of open() has the name of a file. An error of the writes to stdout has none.
        what = "the output cannot be written" if error.filename is None else f"{error.filename} cannot be used"
        sys.exit(f"error: {printable(what)} ({error.strerror or error})")
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        sys.exit(_OUT_OF_MEMORY)
    except ModuleNotFoundError:
        raise  # a mistake of firstvec: for a missing optional package it raises MissingDependency
    except ImportError as error:
        # The library is there, but it cannot be loaded: for example there is not enough memory (`ulimit -v`).
        reason = str(error).strip().splitlines()[-1]
        sys.exit(f"error: a library cannot be loaded ({printable(reason)}); give the process more memory, or repair it")


def _run(arguments: list[str], stdout_is_closed: bool) -> int | None:
    """Run one command. Return the exit code, or None for 0."""
    if arguments == ["--version"]:
        print(f"firstvec {__version__}")
        return None
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is not None:
        arguments = [arguments[0], *write_out(command, arguments[1:])]
    values = parse(command, arguments[1:]) if command is not None else None
    if stdout_is_closed and not (values and values.get("output")):
        raise InputError("stdout is closed: redirect it, or give `encode` an --output FILE")
    if command is not None and values is not None:
        return command.load()(**values)
    try:
        from firstvec.commands.app import make_app

        app = make_app(arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("firstvec", "firstvec_build"):
            raise
        names = ", ".join(COMMANDS)
        what = f"this is neither --version nor a plain use of {names}. Everything else, for example --help and `build`,"
        raise MissingDependency(what, error.name, "firstvec[cli]") from error
    app(arguments, prog_name="firstvec")
    return None
