"""A system that grants no more descriptors or threads, and memory over many calls and loads."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.faults.conftest import Campaign
from tests.faults.processes import run

FEW_FILES = """
import json, math, os, resource, sys
from firstvec import FirstvecError, OptimizedEmbeddingLoader
root, strategy, output, left, warm, expected = sys.argv[1:]
expected = json.loads(expected)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def embed(loader):
    loader.start_loading()
    vector = loader.get_provider(timeout=110).embed_query("text", "list")
    assert math.dist(vector, expected) < 0.2, "another vector"  # another INT8 artifact differs by less

if warm == "warm":  # all modules are imported, so that only the bundle's files are left to open
    embed(OptimizedEmbeddingLoader(root, strategy, device="cpu", output=output))
loader = OptimizedEmbeddingLoader(root, strategy, device="cpu", output=output)
spare = os.open("/", os.O_RDONLY)
os.close(spare)
resource.setrlimit(resource.RLIMIT_NOFILE, (spare + int(left), hard))
try:
    embed(loader)
    outcome = "a vector"
except FirstvecError as error:
    outcome = f"{type(error).__name__}: {error}"
resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
embed(loader)
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("warm", ["warm", "fresh"])
def test_too_few_descriptors_give_a_vector_or_an_error_that_names_the_limit(
    warm: str, tiny_built: Path, campaign: Campaign
) -> None:
    vectors = {}
    for strategy in ("lazy", "quantized", "progressive"):
        loader = OptimizedEmbeddingLoader(str(tiny_built), strategy, device="cpu", output="list")
        loader.start_loading()
        vectors[strategy] = loader.get_provider().embed_query("text")
    points = errors = 0
    for left in range(campaign.size(6, 14)):
        for strategy in list(vectors)[: campaign.size(2, 3)]:
            for output in ("buffer", "numpy")[: campaign.size(1, 2)]:
                arguments = (strategy, output, left, warm)
                ended = run(FEW_FILES, tiny_built, *arguments, json.dumps(vectors[strategy]))
                assert ended.code == 0, f"{arguments}\n{ended}"
                outcome = json.loads(ended.stdout.splitlines()[-1])
                points += 1
                if outcome != "a vector":
                    errors += 1
                    assert "too many open files" in outcome.lower(), (arguments, outcome)
                    assert "is not the file that was built" not in outcome, (arguments, outcome)
    assert 0 < errors < points
    campaign.record(f"no descriptors left, {warm} process", points=points, typed_errors=errors, retries_failed=0)


FEW_THREADS = """
import ctypes, json, math, struct, sys
root, strategy, output, granted, expected = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)

def refuse_threads():
    "Let clone and clone3 fail with EAGAIN from now on, as at the limit of threads (seccomp(2), BPF)."
    def filter(code, value, yes=0, no=0):
        return struct.pack("HBBI", code, yes, no, value)
    load, equal, answer = 0x20, 0x15, 0x06
    program = [filter(load, 0), filter(equal, 56, yes=1), filter(equal, 435, no=1)]
    program += [filter(answer, 0x00050000 | 11), filter(answer, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(program))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
    described = Program(len(program), ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    # seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC): for the existing threads, too.
    assert libc.syscall(317, 1, 1, ctypes.byref(described)) == 0

from firstvec import OptimizedEmbeddingLoader
from firstvec.process import import_locks, threads
real, started = threads.start_new_thread, 0

def start(*arguments):
    global started
    if started == int(granted):
        refuse_threads()
    started += 1
    return real(*arguments)

threads.start_new_thread = import_locks.start_new_thread = start
loader = OptimizedEmbeddingLoader(root, strategy, device="cpu", output=output)
loader.start_loading()
provider = loader.get_provider(timeout=110)
assert math.dist(provider.embed_query("text", "list"), json.loads(expected)) < 1e-5
assert len(provider.encode(["[MASK] one", "[MASK] another", "text"], output="list")) == 3
assert loader.report()["fallbacks"] == []
try:
    real(print, ())
except RuntimeError:
    print("refused")
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the system calls are those of x86-64")
@pytest.mark.parametrize("way", ["capi", "binding"])
def test_a_load_is_synchronous_where_no_thread_can_be_started(
    way: str, tiny_onnx: Path, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTVEC_ONNXRUNTIME", way)
    points = 0
    for strategy in ("lazy", "background", "quantized")[: campaign.size(2, 3)]:
        loader = OptimizedEmbeddingLoader(str(tiny_onnx), strategy, device="cpu", output="list")
        loader.start_loading()
        expected = json.dumps(loader.get_provider().embed_query("text"))
        # With numpy only where no thread is granted at all. numpy's OpenBLAS raises SIGINT in the process if it is
        # refused a thread after it got another one.
        for output, granted in (("numpy", 0), *(("buffer", count) for count in range(campaign.size(2, 3)))):
            if way == "binding" and granted:
                continue  # the binding imports numpy
            arguments = (strategy, output, granted)
            ended = run(FEW_THREADS, tiny_onnx, *arguments, expected)
            assert (ended.code, "refused" in ended.stdout) == (0, True), f"{arguments}\n{ended}"
            points += 1
    campaign.record(f"no thread can be started, {way}", points=points, failed=0)


GROWTH = """
import array, gc, json, os, sys
from firstvec import OptimizedEmbeddingLoader
root, strategy, what, count = sys.argv[1:]
count = int(count)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024

def slope(values):
    "Least squares, per step."
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((index - middle) * (value - mean) for index, value in enumerate(values))
    return above / sum((index - middle) ** 2 for index in range(len(values)))

loader = OptimizedEmbeddingLoader(root, strategy, device="cpu", output="buffer")
texts = [f"{'word ' * (number * 7 % 120)}{number}" for number in range(64)]

def step(index):
    if what == "encodes":
        at = index % 60
        loader.get_provider().encode(texts[at : at + 1 + index % 4])
    elif what == "loads":
        loader.start_loading()
        provider = loader.get_provider()
        provider.embed_query("text")
        provider.close()
    else:  # nobody closes the provider, and the garbage collector does not run
        dropped = OptimizedEmbeddingLoader(root, strategy, device="cpu", output="buffer")
        dropped.start_loading()
        dropped.get_provider().embed_query("text")

if what != "drops":
    loader.start_loading()
for index in range(count // 4 + 60 if what == "encodes" else count):  # until glibc's arenas have grown to their size
    step(index)
gc.collect()
if what == "drops":
    gc.disable()
threads, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
sizes = array.array("d", bytes(8 * count))  # an array that does not grow
for index in range(count):
    step(index)
    sizes[index] = resident()
print(json.dumps({
    "kb_per_call": round(slope(sizes), 4),
    "kb_grown": round(sum(sizes[-20:]) / 20 - sum(sizes[:20]) / 20, 1),
    "threads": len(os.listdir("/proc/self/task")) - threads,
    "descriptors": len(os.listdir("/proc/self/fd")) - files,
}))
"""


@pytest.mark.parametrize("strategy", ["quantized", "background"])
@pytest.mark.parametrize(
    ("what", "few", "many"), [("encodes", 400, 10_000), ("loads", 60, 1_000), ("drops", 60, 1_000)]
)
def test_memory_descriptors_and_threads_do_not_grow(
    what: str, few: int, many: int, strategy: str, tiny_built: Path, campaign: Campaign
) -> None:
    count = campaign.size(few, many)
    ended = run(GROWTH, tiny_built, strategy, what, count, timeout=1500)
    assert (ended.code, ended.stderr) == (0, ""), ended
    found = json.loads(ended.stdout)
    campaign.record(f"memory over {what}, {strategy}", calls=count, **found)
    assert found["threads"] <= 2  # threads of the last load may be about to end
    assert found["descriptors"] == 0
    # A leaked session of this tiny model would be some 300 KB a load. A leaked vector would be 0.1 KB a call.
    assert (
        found["kb_per_call"] < {"encodes": (2.0, 0.1), "loads": (20.0, 2.0), "drops": (20.0, 2.0)}[what][campaign.full]
    )
