"""A file's bytes in memory, without a copy: pages are read when they are touched, and shared between processes."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ, _PRIVATE = 1, 2  # PROT_READ, MAP_PRIVATE: the same on Linux and macOS
_DO_NOT_NEED = 4  # MADV_DONTNEED
_FAILED = ctypes.c_void_p(-1).value


_made: list[Any] = []


def _libc() -> Any:
    """The C library. One for all: each is a cycle, which only the garbage collector frees."""
    if not _made:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_ssize_t)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _made.append(libc)
    return _made[0]


class Mapping:
    """An open file of ``size`` bytes, in memory at ``address`` for as long as this object lives.

    Python's own ``mmap`` would keep a descriptor open, and close that number when it dies, whosever it is by then in a
    program that closed all descriptors to become a daemon.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.address = 0
        self._libc: Any = None
        if os.name == "nt":
            import mmap

            self._view = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._view))
            return
        libc = _libc()
        address = libc.mmap(None, size, _READ, _PRIVATE, descriptor, 0)
        if address in (_FAILED, None):
            number = ctypes.get_errno()
            raise OSError(number, f"{size} bytes cannot be mapped into memory ({os.strerror(number)})")
        self.address = address
        self._libc = libc

    def forget(self) -> None:
        """Let the system drop the pages that were touched; they are read again when they are touched again."""
        if self._libc is not None:
            self._libc.madvise(self.address, self.size, _DO_NOT_NEED)

    def __del__(self) -> None:
        if getattr(self, "_libc", None) is not None:
            self._libc.munmap(self.address, self.size)
