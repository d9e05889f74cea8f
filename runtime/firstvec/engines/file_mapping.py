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

# Loaded once, because each ctypes object of the C library is a cycle that only the garbage collector frees.
_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_ssize_t)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class FileMapping:
    """An open file of ``size`` bytes, in memory at ``address`` for as long as this object lives.

    Python's own ``mmap`` is not used, because it keeps a duplicate of the descriptor and closes that number later.
    In a program that closes all descriptors to become a daemon, the number may belong to another file by then.

    Raises:
        OSError: the file cannot be mapped.
    """

    size = 0

    def __init__(self, descriptor: int, size: int) -> None:
        self.address: Any = _libc.mmap(None, size, _READ, _PRIVATE, descriptor, 0)
        if self.address in (_FAILED, None):
            number = ctypes.get_errno()
            raise OSError(number, f"{size} bytes cannot be mapped into memory ({os.strerror(number)})")
        self.size = size

    def drop_pages(self) -> None:
        """Let the system drop the pages that were touched. They are read again when they are touched again."""
        _libc.madvise(self.address, self.size, _DO_NOT_NEED)

    def __del__(self, unmap: Any = _libc.munmap) -> None:  # at the interpreter's exit, this module's names are gone
        if self.size:
            unmap(self.address, self.size)
