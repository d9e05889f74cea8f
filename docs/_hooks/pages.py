"""Add to the site what docs/ does not have: the repository's other documents, and the command line from typer.

A link in a document is relative to its file, so that the link works in the repository. On the site the link leads to
the file's page, or to a copy of the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "artifacts/FORMAT.md": "format.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "how-it-is-measured.md",
    "examples/docsearch/README.md": "docsearch.md",
}
"""File of the repository → page of the site. The pages of docs/ and other linked files keep their names."""
COMMANDS = "<!-- commands -->"
"""The line of the command-line page that the commands replace."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)\s#]+)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of `PAGES`, and every file of the repository to which a document links."""
    places = _places(files)
    waiting = [*places]
    while waiting:
        source = waiting.pop()
        page = places[source]
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
        if source.endswith(".md"):
            for link in _links((REPOSITORY / source).read_text("utf-8")):
                target = _target(source, link)
                if target not in places and not target.startswith("..") and (REPOSITORY / target).is_file():
                    places[target] = target
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links into the site's, and write the commands."""
    places = _places(files)
    sources = {place: source for source, place in places.items() if source != "README.md"}
    source, folder = sources.get(page.file.src_uri, page.file.src_uri), os.path.dirname(page.file.src_uri)

    def on_the_site(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        place = places.get(target, target)
        return os.path.relpath(place, folder or ".") if files.get_file_from_path(place) else match[1]

    parts = [_LINK.sub(on_the_site, text) if is_prose else text for text, is_prose in _split(markdown)]
    text = "".join(parts)
    return text.replace(COMMANDS, _commands()) if COMMANDS in text else text


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remove the ``::`` with which reStructuredText announces a literal block."""
    return html.replace("<p>::</p>\n", "")


def _places(files: Files) -> dict[str, str]:
    return PAGES | {f"docs/{file.src_uri}": file.src_uri for file in files if file.generated_by is None}


def _links(markdown: str) -> Iterator[str]:
    for text, is_prose in _split(markdown):
        if is_prose:
            yield from _LINK.findall(text)


def _split(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a document: prose and fenced blocks, in turn."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield markdown[end : fence.start()], True
        yield fence[0], False
        end = fence.end()
    yield markdown[end:], True


def _target(source: str, link: str) -> str:
    """Return the file of the repository that a link in ``source`` means. A folder means its README.md."""
    target = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return f"{target}/README.md" if (REPOSITORY / target / "README.md").is_file() else target


def _commands() -> str:
    """Return the sections of all commands, as typer writes them."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from firstvec.commands.app import make_app

    command = get_command(make_app())
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="firstvec", indent=1)
