"""What only macOS needs. Nothing in this project's tests has run on macOS yet."""

from __future__ import annotations

import ctypes


def has_feature(key: str) -> bool:
    """Return whether ``sysctl`` gives a number other than 0 for the key."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    result = ctypes.CDLL(None).sysctlbyname(key.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return bool(result == 0 and value.value)


def processor_name() -> str:
    """Return the processor's name, for example ``Apple M2``."""
    text = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(text) - 1)
    ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", text, ctypes.byref(size), None, 0)
    return text.value.decode("utf-8", "replace")
