"""A file's bytes in memory without a copy: a page is read when it is touched, and processes share it."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ, _PRIVATE = 1, 2  # PROT_READ, MAP_PRIVATE: the same on Linux and macOS
_DO_NOT_NEED = 4  # MADV_DONTNEED
_FAILED = ctypes.c_void_p(-1).value

_loaded: list[Any] = []


def _libc() -> Any:
    """Return the C library, loaded once: each ctypes object of it is a cycle that only the garbage collector frees."""
    if not _loaded:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_ssize_t)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _loaded.append(libc)
    return _loaded[0]


class FileMapping:
    """An open file of ``size`` bytes, in memory at ``address`` for as long as this object lives.

    Python's own ``mmap`` is not used, because it keeps a duplicate of the descriptor and closes that number later.
    In a program that closes all descriptors to become a daemon, the number may belong to another file by then.

    Raises:
        OSError: the file cannot be mapped.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.address = 0
        self._libc: Any = None
        libc = _libc()
        address = libc.mmap(None, size, _READ, _PRIVATE, descriptor, 0)
        if address in (_FAILED, None):
            number = ctypes.get_errno()
            raise OSError(number, f"{size} bytes cannot be mapped into memory ({os.strerror(number)})")
        self.address = address
        self._libc = libc

    def drop_pages(self) -> None:
        """Let the system drop the pages that were touched. They are read again when they are touched again."""
        self._libc.madvise(self.address, self.size, _DO_NOT_NEED)

    def __del__(self) -> None:
        if getattr(self, "_libc", None) is not None:
            self._libc.munmap(self.address, self.size)
