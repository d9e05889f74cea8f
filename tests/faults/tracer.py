"""Run code in a forked child, and let its n-th change of a folder fail, by ptrace(2) and a seccomp(2) filter.

Only system calls that change files stop the child. Calls below one folder are counted, over all threads, in the order
in which they happen. This needs Linux on x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

# Number in asm/unistd_64.h → name, kind of the argument ("fd", "path", or "at" for a folder and a path), its positions.
CALLS: dict[int, tuple[str, str, tuple[int, ...]]] = {
    1: ("write", "fd", (0,)),
    18: ("pwrite64", "fd", (0,)),
    20: ("writev", "fd", (0,)),
    40: ("sendfile", "fd", (0,)),
    73: ("flock", "fd", (0,)),
    74: ("fsync", "fd", (0,)),
    75: ("fdatasync", "fd", (0,)),
    76: ("truncate", "path", (0,)),
    77: ("ftruncate", "fd", (0,)),
    82: ("rename", "path", (1,)),
    83: ("mkdir", "path", (0,)),
    84: ("rmdir", "path", (0,)),
    85: ("creat", "path", (0,)),
    86: ("link", "path", (1,)),
    87: ("unlink", "path", (0,)),
    88: ("symlink", "path", (1,)),
    90: ("chmod", "path", (0,)),
    91: ("fchmod", "fd", (0,)),
    257: ("openat", "at", (0, 1)),
    258: ("mkdirat", "at", (0, 1)),
    263: ("unlinkat", "at", (0, 1)),
    264: ("renameat", "at", (2, 3)),
    265: ("linkat", "at", (2, 3)),
    266: ("symlinkat", "at", (1, 2)),
    268: ("fchmodat", "at", (0, 1)),
    280: ("utimensat", "at", (0, 1)),
    285: ("fallocate", "fd", (0,)),
    296: ("pwritev", "fd", (0,)),
    316: ("renameat2", "at", (2, 3)),
    326: ("copy_file_range", "fd", (2,)),
    452: ("fchmodat2", "at", (0, 1)),
}
_OPENAT = 257
_AT_FDCWD = 0xFFFFFF9C

# linux/ptrace.h, linux/seccomp.h, linux/prctl.h, linux/audit.h
_CONT, _POKEUSER, _SEIZE, _GET_SYSCALL_INFO = 7, 6, 0x4206, 0x420E
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # fork, vfork, clone, seccomp, kill the child when the tracer ends
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # sys/user.h: struct user_regs_struct
_RET_ALLOW, _RET_TRACE = 0x7FFF0000, 0x7FF00000
_X86_64 = 0xC000003E
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def why_not() -> str | None:
    """Return why this machine cannot trace a child. None: it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    try:
        outcome = run(lambda: "done", root="/nowhere")
    except OSError as error:
        return f"ptrace is not allowed here: {error}"
    return None if outcome["result"] == "done" else f"the tracer does not work here: {outcome}"


def run(work: Callable[[], Any], *, root: str, at: int = 0, fault: str = "") -> dict[str, Any]:
    """Run ``work`` in a child, and return how it ended.

    Args:
        work: the child's work. Its result must fit into JSON.
        root: changes of files below this folder are counted.
        at: the number, from 1, of the change that gets the fault. 0: none does.
        fault: ``kill`` for SIGKILL before the call is carried out, or the name of the error that the call returns.

    Returns:
        A dictionary. ``calls``: name and path of each change until the fault. ``status``: the exit code, or minus the
        signal's number. ``result``: the result of ``work``, or None. ``error``: class and text of what ``work`` raised,
        or None. ``seconds``: the duration.
    """
    outcome_file = os.memfd_create("outcome")
    waiting, going = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(going)
        _work(work, waiting, outcome_file)
    os.close(waiting)
    try:
        _ptrace(_SEIZE, child, 0, _OPTIONS)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(outcome_file)
        os.close(going)
        raise
    os.write(going, b"g")
    os.close(going)
    calls, status = _follow(child, os.fsencode(root), at, fault)
    with open(outcome_file, "rb") as stream:
        stream.seek(0)
        data = stream.read()
    result = json.loads(data) if data else {"result": None, "error": None}
    return {"calls": calls, "status": status, "seconds": time.perf_counter() - started, **result}


def _work(work: Callable[[], Any], waiting: int, outcome_file: int) -> None:
    code = 1
    try:
        os.read(waiting, 1)
        _stop_at_changes()
        try:
            outcome = {"result": work(), "error": None}
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            outcome = {"result": None, "error": {"kinds": kinds, "message": str(error)}}
        with open(outcome_file, "wb", closefd=False) as stream:
            stream.write(json.dumps(outcome).encode())
        code = 0
    finally:
        os._exit(code)


def _stop_at_changes() -> None:
    """Install the filter: the calls of `CALLS` stop for the tracer, and openat only if it may write."""
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
    program = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, _RET_ALLOW), (load, 0, 0, 0)]
    for number in CALLS:
        if number != _OPENAT:
            program += [(equal, 0, 1, number), (give, 0, 0, _RET_TRACE)]
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    program += [(equal, 0, 3, _OPENAT), (load, 0, 0, 16 + 2 * 8), (bits, 0, 1, writes), (give, 0, 0, _RET_TRACE)]
    program += [(give, 0, 0, _RET_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, by_filter, header, 0, 0)):
        if _libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp")


def _follow(child: int, root: bytes, at: int, fault: str) -> tuple[list[tuple[str, str]], int]:
    calls: list[tuple[str, str]] = []
    while True:
        thread, status = os.waitpid(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == child:
                return calls, os.waitstatus_to_exitcode(status)
            continue
        passed_on = 0
        event = status >> 16
        if event == _EVENT_SECCOMP:
            name, path = _call(thread, root)
            if path is not None:
                calls.append((name, os.fsdecode(path)))
                if len(calls) == at and fault == "kill":
                    os.kill(child, signal.SIGKILL)
                    continue
                if len(calls) == at:
                    _fail(thread, getattr(errno, fault))
        elif not event:
            passed_on = os.WSTOPSIG(status)
        try:
            _ptrace(_CONT, thread, 0, passed_on)
        except ProcessLookupError:
            continue  # the thread was killed in the meantime


def _fail(thread: int, code: int) -> None:
    """Skip the call, and let it return this error."""
    _ptrace(_POKEUSER, thread, _ORIG_RAX, ctypes.c_uint64(-1).value)
    _ptrace(_POKEUSER, thread, _RAX, ctypes.c_uint64(-code).value)


def _call(thread: int, root: bytes) -> tuple[str, bytes | None]:
    """Return the call at which a thread stopped, and the path that it changes. None: a path outside of ``root``."""
    buffer = ctypes.create_string_buffer(96)
    try:
        _ptrace(_GET_SYSCALL_INFO, thread, len(buffer), ctypes.addressof(buffer))
        number, *arguments = struct.unpack_from("7Q", buffer.raw, 24)
        name, how, where = CALLS[number]
        if how == "fd":
            path = os.readlink(b"/proc/%d/fd/%d" % (thread, arguments[where[0]] & 0xFFFFFFFF))
        else:
            path = _string(thread, arguments[where[-1]])
            folder = arguments[where[0]] & 0xFFFFFFFF
            if not path.startswith(b"/"):
                base = b"cwd" if how == "path" or folder == _AT_FDCWD else b"fd/%d" % folder
                path = os.path.join(os.readlink(b"/proc/%d/%s" % (thread, base)), path)
    except OSError:
        return "", None
    return name, path if path.startswith(root + b"/") or path == root else None


def _string(thread: int, address: int) -> bytes:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        data = b""
        while b"\0" not in data and len(data) < 8192:
            data += memory.read(min(256, 4096 - (address + len(data)) % 4096))
    return data.partition(b"\0")[0]


def _ptrace(request: int, process: int, address: int, data: int) -> int:
    result = int(_libc.ptrace(request, process, address, data))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace {request:#x}: {os.strerror(code)}")
    return result
