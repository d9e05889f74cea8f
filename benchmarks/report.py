"""The report: one HTML page, and the same as Markdown, of what the benchmarks measured.

An input that is not given is left out, and the page says so. Every figure is one of the inputs'.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from measurements import ReportError, read_cold_start, read_operations, read_throughput
from page import as_html, as_markdown
from sections import compose

from firstvec.errors import ManifestError
from firstvec.manifest import Manifest


def main() -> None:
    """Read the inputs, write the outputs."""
    options = parse()
    try:
        manifest = Manifest.read(options.bundle)
        report = compose(
            manifest,
            read_cold_start(options.cold) if options.cold else None,
            read_throughput(options.throughput) if options.throughput else None,
            read_operations(options.operations) if options.operations else None,
        )
        texts = {options.html: as_html(report), options.markdown: as_markdown(report)}
        written = {path: text for path, text in texts.items() if path}
        write(written)
    except ManifestError as error:
        sys.exit(f"error: {error} (`make artifacts` builds the default bundle)")
    except ReportError as error:
        sys.exit(f"error: {error}")
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = "what pytest-benchmark wrote of"
    parser.add_argument("--cold", type=Path, metavar="FILE", help="what cold_start.py --json wrote")
    parser.add_argument("--throughput", type=Path, metavar="FILE", help=f"{benchmarks} test_throughput.py")
    parser.add_argument("--operations", type=Path, metavar="FILE", help=f"{benchmarks} test_operations.py")
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/all-MiniLM-L6-v2"), help="its folder")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the same tables as Markdown")
    options = parser.parse_args()
    if not (options.html or options.markdown):
        parser.error("nothing to write: give --html or --markdown")
    return options


def write(texts: dict[Path, str]) -> None:
    """Write the files, each whole in the place of the one that was there; none is replaced before all are written.

    Raises:
        ReportError: one could not be written.
    """
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, draft in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(texts[path], "utf-8", errors="backslashreplace")  # a lone surrogate in an input
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        raise ReportError(f"{error.filename2 or error.filename} cannot be written: {error.strerror}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
