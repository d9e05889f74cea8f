"""The `firstvec` command, and ``python -m firstvec``.

`firstvec encode` is run without the command-line libraries where its arguments are plain; `firstvec.cli` does the rest.
"""

from __future__ import annotations

import os
import sys

from firstvec.errors import FirstvecError, InputError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Errors that firstvec raises on purpose end it with one message and exit code 1."""
    stdout_is_closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ✓ or ✗
    try:
        _run(sys.argv[1:] if arguments is None else arguments, stdout_is_closed)
        sys.stdout.flush()
    except FirstvecError as error:
        sys.exit(f"error: {printable(str(error))}")
    except BrokenPipeError:
        # The reader of our output has seen enough.
        _drop_output()
        sys.exit(0)
    except OSError as error:
        _drop_output()
        sys.exit(f"error: the output cannot be written ({error.strerror or error})")
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        sys.exit("error: out of memory; give the process more, or less to do at once")
    except ModuleNotFoundError:
        raise  # a mistake of ours: optional packages are told of by MissingDependency
    except ImportError as error:
        # The library is there; for example its memory cannot be had (`ulimit -v`).
        reason = str(error).strip().splitlines()[-1]
        sys.exit(f"error: a library cannot be loaded ({printable(reason)}); give the process more memory, or repair it")


def _run(arguments: Sequence[str], stdout_is_closed: bool) -> None:
    if arguments[:1] == ["encode"]:
        from firstvec import encode

        request = encode.parse(arguments[1:])
        if request is not None and not (stdout_is_closed and request.output is None):
            encode.run(request)
            return
    if stdout_is_closed:
        raise InputError("stdout is closed: redirect it, or give `encode` an --output FILE")
    from firstvec.cli import app

    app(arguments)


def _drop_output() -> None:
    """Keep the interpreter from failing again at its own flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
