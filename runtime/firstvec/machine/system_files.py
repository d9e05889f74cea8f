"""Read small files, for example those of ``/proc`` and ``/sys``."""

from __future__ import annotations

import os


def read_bytes(path: str, size: int) -> bytes:
    """Return the first ``size`` bytes of a small file."""
    # O_NONBLOCK: the open must not wait for a writer if the path is a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def read_text(path: str, size: int = 1 << 16) -> str:
    """Return the first ``size`` bytes of a small file as text, or an empty string if it cannot be read."""
    try:
        return read_bytes(path, size).decode("utf-8", "replace")
    except OSError:
        return ""
