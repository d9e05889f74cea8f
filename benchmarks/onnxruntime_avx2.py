"""Make a copy of the installed onnxruntime that takes its AVX2 kernels on an x86-64 processor with AVX-512 or AVX-VNNI.

::

    python benchmarks/onnxruntime_avx2.py FOLDER

Run it with the Python whose onnxruntime is to be copied. It needs gcc and objdump, writes nothing outside FOLDER, and
prints the environment variables under which a program uses the copy:

    PYTHONPATH=FOLDER LD_PRELOAD=FOLDER/avx2_only.so

How it works. onnxruntime chooses its kernels by the ``cpuid`` instruction, and the kernel of a virtual machine does not
let a process forbid that instruction (``arch_prctl(ARCH_CPUID, 0)`` fails with ENODEV). In the copy every ``cpuid`` is
replaced by a breakpoint of the same length. ``avx2_only.so`` handles the breakpoint: it executes ``cpuid``, clears the
bits of AVX-512, AVX-VNNI, AVX10 and AMX, and goes on behind the breakpoint. Nothing else in the library is changed.

What to know:

- A process that loads the copy without ``avx2_only.so`` ends at once with SIGTRAP. It never runs the wrong kernels.
- The process also sees ``/proc/cpuinfo`` without these features (FOLDER/cpuinfo, through ``open`` and ``fopen`` of the
  C library), so that a program that reads its flags there decides alike. firstvec does.
- Only onnxruntime is changed. glibc, numpy, torch and other engines with a ``cpuid`` of their own see the processor as
  it is.
- ``AVX2_ONLY_LOG=1`` writes each emulated cpuid to stderr. The symbol ``avx2_only_count`` of the library (int) is the
  number so far.
- The paths are fixed in FOLDER: make the copy again instead of moving it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

CPUID, TRAP = b"\x0f\xa2", b"\xcc\x90"  # cpuid; int3, nop
HIDDEN_FLAGS = re.compile(r" (avx512\w*|avx_vnni\w*|avx_ifma|avx_ne_convert|avx10\w*|amx_\w+)\b")
"""Words in the flags of /proc/cpuinfo."""

SHIM = r"""
// Emulates the cpuid instructions that onnxruntime_avx2.py replaced by int3, nop; and shows another /proc/cpuinfo.
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

int avx2_only_count;  // emulated so far
static int log_it;

#define BIT(n) (1u << (n))

static void hide(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
    if (leaf == 7 && subleaf == 0) {
        // AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL
        *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        // AVX512: VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
        *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        // AVX512: 4VNNIW, 4FMAPS, VP2INTERSECT; AMX-BF16; AVX512-FP16; AMX-TILE, AMX-INT8
        *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && subleaf == 1) {
        *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));           // AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA
        *d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));  // AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX,
    }                                                           // AVX-VNNI-INT16, AVX10
}

static void on_trap(int number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)regs[REG_RIP];  // int3 has been passed
    if (next[-1] != 0xCC || next[0] != 0x90) {                         // not one of ours
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    unsigned leaf = (unsigned)regs[REG_RAX], subleaf = (unsigned)regs[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    unsigned b0 = b, c0 = c, d0 = d, a0 = a;
    hide(leaf, subleaf, &a, &b, &c, &d);
    regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;  // the upper halves become 0
    __atomic_add_fetch(&avx2_only_count, 1, __ATOMIC_RELAXED);
    if (log_it) {
        Dl_info where = {0};
        dladdr(next, &where);
        const char *name = where.dli_fname ? strrchr(where.dli_fname, '/') : 0;
        dprintf(2, "avx2_only: %s+0x%lx cpuid(0x%x, %u) real a=%08x b=%08x c=%08x d=%08x "
                   "hidden a=%08x b=%08x c=%08x d=%08x\n",
                name ? name + 1 : "?", (unsigned long)next - 1 - (unsigned long)where.dli_fbase, leaf, subleaf,
                a0, b0, c0, d0, a0 & ~a, b0 & ~b, c0 & ~c, d0 & ~d);
    }
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTRAP, &action, 0);
    const char *wish = getenv("AVX2_ONLY_LOG");
    log_it = wish && *wish && strcmp(wish, "0");
}

static const char *instead(const char *path) { return path && !strcmp(path, "/proc/cpuinfo") ? CPUINFO : path; }

#define OPEN(name)                                                                                      \
    int name(const char *path, int flags, ...) {                                                        \
        static int (*next)(const char *, int, ...);                                                     \
        if (!next) next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                     \
        va_list more;                                                                                   \
        va_start(more, flags);                                                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                         \
        va_end(more);                                                                                   \
        return next(instead(path), flags, mode);                                                        \
    }
#define OPENAT(name)                                                                                    \
    int name(int folder, const char *path, int flags, ...) {                                            \
        static int (*next)(int, const char *, int, ...);                                                \
        if (!next) next = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name);                \
        va_list more;                                                                                   \
        va_start(more, flags);                                                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                         \
        va_end(more);                                                                                   \
        return next(folder, instead(path), flags, mode);                                                \
    }
#define FOPEN(name)                                                                                     \
    FILE *name(const char *path, const char *mode) {                                                    \
        static FILE *(*next)(const char *, const char *);                                               \
        if (!next) next = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, #name);             \
        return next(instead(path), mode);                                                               \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)
"""


def main() -> None:
    """Make the copy and print how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if missing; an earlier copy is replaced")
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    package = copy_package(folder)
    for library in sorted((package / "capi").glob("*.so*")):
        print(f"{library.name}: {patch(library)} cpuid instructions replaced", file=sys.stderr)
    text = Path("/proc/cpuinfo").read_text()
    (folder / "cpuinfo").write_text(HIDDEN_FLAGS.sub("", text))
    shim = compile_shim(folder)
    check(folder, shim)
    print(f"export PYTHONPATH={folder} LD_PRELOAD={shim}")


def copy_package(folder: Path) -> Path:
    """Copy the installed package and its dist-info. Return the copied package's folder."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("error: this Python has no onnxruntime")
    source = Path(spec.origin).parent
    if source.parent == folder:
        sys.exit(f"error: this Python's onnxruntime is the copy in {folder}: unset PYTHONPATH")
    for found in (source, *source.parent.glob("onnxruntime-*.dist-info")):
        shutil.rmtree(folder / found.name, ignore_errors=True)
        shutil.copytree(found, folder / found.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "onnxruntime"


def patch(library: Path) -> int:
    """Replace each cpuid that the disassembly shows. Return their number."""
    data = bytearray(library.read_bytes())
    segments = loaded_segments(data)
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as objdump:
        assert objdump.stdout is not None
        for line in objdump.stdout:
            if not line.rstrip().endswith("\tcpuid"):
                continue
            address = int(line.split(":", 1)[0], 16)
            offset = next(at + address - start for start, at, size in segments if start <= address < start + size)
            if data[offset : offset + 2] != CPUID:
                sys.exit(f"error: {library} has no plain cpuid at {address:#x}")
            data[offset : offset + 2] = TRAP
            count += 1
    if objdump.returncode:
        sys.exit(f"error: objdump ended with {objdump.returncode}")
    library.write_bytes(data)
    return count


def loaded_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Return the address, the place in the file and the size of each part that an ELF file of 64 bits loads."""
    if data[:6] != b"\x7fELF\x02\x01":
        sys.exit("error: not a 64-bit little-endian ELF file")
    table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    return [(address, at, length) for kind, _, at, address, _, length in headers if kind == 1]  # PT_LOAD


def compile_shim(folder: Path) -> Path:
    """Compile the handler of the breakpoints."""
    source, shim = folder / "avx2_only.c", folder / "avx2_only.so"
    source.write_text(SHIM.lstrip())
    define = f'-DCPUINFO="{folder / "cpuinfo"}"'
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", define, "-o", shim, source, "-ldl"], check=True)
    return shim


CHECK = """
import sys, ctypes, numpy, onnxruntime
assert onnxruntime.__file__.startswith(sys.argv[1]), onnxruntime.__file__
count = ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[2]), "avx2_only_count").value
assert count, "no cpuid was emulated"
print(f"onnxruntime {onnxruntime.__version__} is loaded, {count} cpuid instructions were emulated")
flags = open("/proc/cpuinfo").read()
assert "avx2" in flags and "avx512" not in flags and "avx_vnni" not in flags
try:
    from onnx import TensorProto, helper
except ImportError:
    print("not checked without the package onnx: that a product of 8-bit weights saturates as on AVX2")
    sys.exit()
info, K = helper.make_tensor_value_info, 64
weights = helper.make_tensor("b", TensorProto.INT8, (K, 32), [127] * K * 32)
node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
a, y = info("a", TensorProto.UINT8, (4, K)), info("y", TensorProto.INT32, (4, 32))
model = helper.make_model(helper.make_graph([node], "check", [a], [y], [weights]),
                          opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
found = set(session.run(None, {"a": numpy.full((4, K), 255, numpy.uint8)})[0].ravel().tolist())
assert found == {K // 2 * 32767}, f"the product is {found}, not {K // 2 * 32767} as with vpmaddubsw of AVX2"
print(f"255 * 127, added {K} times: {found.pop()}, as on AVX2 (saturated); exact would be {K * 255 * 127}")
"""


def check(folder: Path, shim: Path) -> None:
    """Load the copy in a process of its own, and see that its INT8 product saturates as on AVX2."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_PRELOAD": str(shim), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    command = [sys.executable, "-c", CHECK, str(folder), str(shim)]
    if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
        sys.exit("error: the copy does not do what it should")


if __name__ == "__main__":
    main()
