"""Read the small files of ``/proc`` and ``/sys``."""

from __future__ import annotations

import os


def read_text(path: str, size: int = 1 << 16) -> str:
    """Return the first ``size`` bytes of a small file as text, or an empty string if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, size).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
