"""What lies in a bundle's folder beside what the manifest lists."""

from __future__ import annotations

import os

from firstvec.bundle import MANIFEST_NAME, SIGNATURE_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bundle.manifest import Manifest


def find_unlisted(manifest: Manifest) -> dict[str, str]:
    """Return the path and kind of everything that the manifest does not list, and of every symbolic link.

    The manifest itself and a signature count as listed. A folder that is not listed is named, and not its content.
    """
    files = {MANIFEST_NAME, SIGNATURE_NAME, *(file.path for file in manifest.files())}
    folders = {path[:place] for path in files for place, character in enumerate(path) if character == "/"}
    found: dict[str, str] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(manifest.root, folder)) as entries:
                inside = [*entries]
        except OSError as error:
            found[folder] = f"a folder that cannot be read ({error.strerror or error})"
            continue
        for entry in inside:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink():
                found[path] = "a symbolic link"
            elif entry.is_dir(follow_symlinks=False):
                if path in folders:
                    waiting.append(path)
                else:
                    found[path] = "a folder that the manifest does not list"
            elif not entry.is_file(follow_symlinks=False):
                found[path] = "neither a file nor a folder"
            elif path not in files:
                found[path] = "a file that the manifest does not list"
    # A name may have control characters, and bytes that are no text.
    shown = ((path if path.isprintable() else ascii(path)[1:-1], what) for path, what in found.items())
    return dict(sorted(shown))
