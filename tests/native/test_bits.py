"""The same text gives the same bits, whatever computes it."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from firstvec_build.quality import evaluation_sentences
from tests.conftest import Fresh
from tests.faults.conftest import Campaign
from tests.native.files import make_text, make_weights

Rows = list[list[int]]

BATCHES = (1, 2, 3, 7, 16, 50, 1 << 20)
THREADS = (1, 2, 3, 4)


def open_weights(module: ModuleType, path: Path, isa: str | None = None) -> Any:
    with open(path, "rb") as file:
        return module.Weights(file.fileno(), path.stat().st_size, isa)


def open_words(module: ModuleType, path: Path, max_seq_length: int) -> Any:
    with open(path, "rb") as file:
        return module.WordPiece(file.fileno(), path.stat().st_size, max_seq_length)


def encode(weights: Any, rows: Rows, batch: int, threads: int) -> list[bytes]:
    """Return each text's vector."""
    data = b"".join(weights.run(rows[at : at + batch], threads) for at in range(0, len(rows), batch))
    size = 4 * weights.embedding_dim
    return [data[at : at + size] for at in range(0, len(data), size)]


def tokenize(words: Any, texts: Sequence[str]) -> Rows:
    """Return the ids of the texts that the engine tokenizes itself."""
    return [ids for ids in map(words.tokenize, texts) if ids is not None]


def count_different(one: list[bytes], other: list[bytes]) -> int:
    assert len(one) == len(other)
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def sentences(modules: dict[str, ModuleType], real_files: dict[str, Path], campaign: Campaign) -> Rows:
    """Return the ids of the evaluation sentences and of random texts."""
    random = np.random.default_rng(7)
    words = open_words(modules["installed"], real_files["words"], 128)
    texts = [*evaluation_sentences(), *(make_text(random) for _ in range(100))]
    return tokenize(words, texts[:: campaign.size(4, 1)])


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_real_model_gives_the_same_bits(
    modules: dict[str, ModuleType], real_files: dict[str, Path], sentences: Rows, precision: str, campaign: Campaign
) -> None:
    """Every instruction set of every compiler, with batches and threads that change from one to the next."""
    path, installed = real_files[precision], modules["installed"]
    expected = encode(open_weights(installed, path), sentences, 1 << 20, 2)
    runs = 0
    for number, (name, module) in enumerate(modules.items()):
        for isa in module.instruction_sets():
            # Plain C takes a hundred times as long
            rows = range(number, len(sentences), campaign.size(30, 4) if isa == "plain" else 1)
            batch, threads = BATCHES[runs % len(BATCHES)], THREADS[runs % len(THREADS)]
            ours = encode(open_weights(module, path, isa), [sentences[i] for i in rows], batch, threads)
            assert count_different(ours, [expected[i] for i in rows]) == 0, (name, isa, batch, threads)
            runs += 1
    campaign.record("the same bits", **{f"{precision}_builds_and_instruction_sets": runs, "sentences": len(sentences)})


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_batches_and_threads_change_no_bit(
    modules: dict[str, ModuleType], real_files: dict[str, Path], sentences: Rows, precision: str
) -> None:
    weights = open_weights(modules["installed"], real_files[precision])
    rows = sentences[::3]
    expected = encode(weights, rows, 1, 1)
    for number, batch in enumerate(BATCHES[1:]):
        for threads in (THREADS[number % 4], THREADS[(number + 1) % 4]):
            assert count_different(encode(weights, rows, batch, threads), expected) == 0, (batch, threads)
    assert count_different(encode(weights, rows[::-1], 1 << 20, 3)[::-1], expected) == 0


def test_random_texts_give_the_same_bits(
    modules: dict[str, ModuleType], tiny_files: dict[str, Path], campaign: Campaign
) -> None:
    """Each block of texts is computed twice, by two random choices of build, instruction set, batch and threads."""
    random = np.random.default_rng(11)
    texts, different, count = 0, 0, campaign.size(600, 100_000)
    words = open_words(modules["installed"], tiny_files["words"], 64)
    forms = ("int8", "int8-cls", "int8-tanh", "int8-static", "fp32", "fp32-relu", "fp32-static")
    opened = {
        (form, name, isa): open_weights(module, tiny_files[form], isa)
        for form in forms
        for name, module in modules.items()
        for isa in module.instruction_sets()
    }
    began = time.monotonic()
    while texts < count:
        rows = tokenize(words, [make_text(random, 12) for _ in range(100)])
        form = forms[random.integers(len(forms))]
        choices = [key for key in opened if key[0] == form]
        results = [
            encode(opened[choices[chosen]], rows, int(random.choice(BATCHES)), int(random.choice(THREADS)))
            for chosen in random.choice(len(choices), 2, replace=False)
        ]
        different += count_different(*results)
        texts += len(rows)
    campaign.record("the same bits", random_texts=texts, different=different, seconds=round(time.monotonic() - began))
    assert different == 0


def test_callers_at_once_get_the_same_bits(modules: dict[str, ModuleType], tiny_files: dict[str, Path]) -> None:
    random = np.random.default_rng(12)
    words = open_words(modules["installed"], tiny_files["words"], 64)
    weights = open_weights(modules["installed"], tiny_files["int8"])
    rows = tokenize(words, [make_text(random, 30) for _ in range(100)])
    expected = encode(weights, rows, 1, 1)
    wrong: list[tuple[int, int]] = []

    def call(number: int) -> None:
        results = ((batch, encode(weights, rows, batch, THREADS[number % 4])) for batch in BATCHES)
        wrong.extend((number, batch) for batch, ours in results if ours != expected)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


# --- The program's own floating-point environment ---------------------------------------------------------------------

LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
ROUNDINGS = {"x86_64": (0x000, 0x400, 0x800, 0xC00), "aarch64": (0x000000, 0x400000, 0x800000, 0xC00000)}
"""FE_TONEAREST, FE_DOWNWARD, FE_UPWARD and FE_TOWARDZERO of <fenv.h>, in another order on Arm."""


@contextmanager
def environment(rounding: int, *, no_denormals: bool) -> Iterator[Callable[[], bytes]]:
    """Round in another way, and let denormal numbers be 0. Give a function that returns the control bits."""
    before, changed, after = (ctypes.create_string_buffer(64) for _ in range(3))

    def control() -> bytes:
        LIBM.fegetenv(after)
        return after.raw[28:32] if platform.machine() == "x86_64" else after.raw[:4]

    LIBM.fegetenv(before)
    try:
        LIBM.fesetround(rounding)
        if no_denormals:
            LIBM.fegetenv(changed)
            at, bits = (28, 0x8040) if platform.machine() == "x86_64" else (0, 1 << 24)
            word = int.from_bytes(changed.raw[at : at + 4], "little") | bits
            ctypes.memmove(ctypes.addressof(changed) + at, word.to_bytes(4, "little"), 4)
            LIBM.fesetenv(changed)
        yield control
    finally:
        LIBM.fesetenv(before)


@pytest.mark.parametrize("rounding", ROUNDINGS[platform.machine()])
@pytest.mark.parametrize("no_denormals", [False, True])
def test_the_programs_rounding_and_denormals_change_no_bit(
    modules: dict[str, ModuleType], tmp_path: Path, rounding: int, no_denormals: bool
) -> None:
    """The result holds denormal numbers, and the program's environment is the same afterwards."""
    path = tmp_path / "weights"
    path.write_bytes(shrink_output(make_weights(hidden=32, unit_length=0)))
    random = np.random.default_rng(1)
    rows = [random.integers(0, 200, random.integers(1, 64)).tolist() for _ in range(40)]
    for module in modules.values():
        for isa in module.instruction_sets():
            weights = open_weights(module, path, isa)
            expected = weights.run(rows, 3)
            values = np.frombuffer(expected, np.float32)
            assert (values != 0).all()
            assert (np.abs(values) < 1.1e-38).any()
            with environment(rounding, no_denormals=no_denormals) as control:
                state = control()
                ours = weights.run(rows, 3)
                same = control() == state
            assert (ours == expected, same) == (True, True), isa


def shrink_output(data: bytes) -> bytes:
    """Return the weights file with the last LayerNorm times 1e-38. Its two arrays are the last ones of the file."""
    numbers = np.frombuffer(data[-256:], np.float32) * np.float32(1e-38)
    assert len(numbers) == 64  # hidden is 32, so gamma and beta have 128 bytes each, with no gap
    return data[:-256] + numbers.tobytes()


def test_a_program_that_traps_floating_point_exceptions_goes_on(
    fresh: Fresh, modules: dict[str, ModuleType], tiny_files: dict[str, Path]
) -> None:
    fresh(
        """
import ctypes, ctypes.util, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("firstvec._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
file = open(sys.argv[2], "rb")
size = os.fstat(file.fileno()).st_size
libm = ctypes.CDLL(ctypes.util.find_library("m"))
for isa in native.instruction_sets():
    weights = native.Weights(file.fileno(), size, isa)
    libm.feenableexcept(61)
    weights.run([[1, 2, 3]] * 200, 4)
    libm.fedisableexcept(61)
""",
        modules["installed"].__file__,
        tiny_files["int8"],
    )


# --- What a caller may get wrong --------------------------------------------------------------------------------------


class Changing(list[Any]):
    """A list that becomes empty while it is read."""

    def __iter__(self) -> Iterator[Any]:
        yield 5
        self.clear()


class SaysHuge(list[Any]):
    """A list whose length does not fit into memory."""

    def __len__(self) -> int:
        return 1 << 62


class Truncates:
    """An id that empties its list when it becomes an integer."""

    def __init__(self, row: list[Any]) -> None:
        self.row = row

    def __index__(self) -> int:
        self.row.clear()
        return 1


WRONG: dict[str, Any] = {
    "id of the vocabulary's size": [[1], [1, 200]],
    "id of 2^32": [[1 << 32]],
    "id of 2^64": [[1 << 64]],
    "negative id": [[-1]],
    "very negative id": [[-(1 << 64)]],
    "float": [[1.0]],
    "text": [["1"]],
    "None": [[None]],
    "row of text": ["ab"],
    "empty row": [[1], []],
    "too long a row": [[1] * 65],
    "very long row": [[1] * 1_000_000],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_ids_are_refused(modules: dict[str, ModuleType], tiny_files: dict[str, Path], wrong: str) -> None:
    weights = open_weights(modules["installed"], tiny_files["int8"])
    with pytest.raises(ValueError, match=r"^text \d+"):
        weights.run(WRONG[wrong], 2)


def test_rows_of_the_wrong_type_are_refused(modules: dict[str, ModuleType], tiny_files: dict[str, Path]) -> None:
    weights = open_weights(modules["installed"], tiny_files["int8"])
    for rows in (5, None, [5], [None]):
        with pytest.raises(TypeError):
            weights.run(rows, 1)
    for threads in (0, -5, 1 << 40):
        assert weights.run([[1]], threads) == weights.run([[1]], 1)
    assert weights.run([], 1) == b""


def test_lists_that_change_while_they_are_read(modules: dict[str, ModuleType], tiny_files: dict[str, Path]) -> None:
    weights = open_weights(modules["installed"], tiny_files["int8"])
    assert weights.run([[5]], 1) == weights.run([Changing([5, 6, 7])], 1)
    for rows in (SaysHuge([[5]]), [SaysHuge([5])]):
        with pytest.raises(MemoryError):
            weights.run(rows, 1)
    row: list[Any] = []
    row += [Truncates(row), *range(60)]
    with pytest.raises(ValueError, match=r"^text 0: its token 0 is no integer"):
        weights.run([row], 1)


def test_weights_are_read_after_their_descriptor_is_closed(
    modules: dict[str, ModuleType], tiny_files: dict[str, Path]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    weights = [open_weights(modules["installed"], tiny_files["int8"]) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len({bytes(one.run([[1, 2]], 1)) for one in weights}) == 1


def test_calls_leave_no_thread_and_no_memory(modules: dict[str, ModuleType], tiny_files: dict[str, Path]) -> None:
    weights = open_weights(modules["installed"], tiny_files["int8"])
    words = open_words(modules["installed"], tiny_files["words"], 64)
    rows = [[1] * 64] * 20

    def call() -> None:
        weights.run(rows, 4)
        words.tokenize("a word and a long word " * 50)
        open_weights(modules["installed"], tiny_files["int8"])
        with pytest.raises(ValueError, match="text 0"):
            weights.run([[-1]], 1)

    for _ in range(50):
        call()
    gc.collect()
    threads, pages = len(os.listdir("/proc/self/task")), resident_pages()
    for _ in range(500):
        call()
    gc.collect()
    # The system may list a thread for a moment after the call has waited for its end.
    ends = time.monotonic() + 5
    while (found := len(os.listdir("/proc/self/task"))) > threads and time.monotonic() < ends:
        time.sleep(0.01)
    assert found <= threads
    assert resident_pages() - pages < 500  # 2 MB: one vector of 64 KB left in each call would be 30 MB


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1])


def test_ctrl_c_ends_a_bulk_call(modules: dict[str, ModuleType], real_files: dict[str, Path]) -> None:
    weights = open_weights(modules["installed"], real_files["fp32"])
    rows = [[101] * 128] * 20_000
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        weights.run(rows, 2)
    assert time.monotonic() - began < 5
    timer.join()
    assert len(weights.run(rows[:3], 2)) == 3 * 4 * weights.embedding_dim


def test_ctrl_c_ends_one_long_text_between_its_layers(
    modules: dict[str, ModuleType], real_files: dict[str, Path]
) -> None:
    weights = open_weights(modules["installed"], real_files["fp32"], "plain")
    rows = [[101] * 512]
    began = time.monotonic()
    weights.run(rows, 1)
    whole = time.monotonic() - began
    timer = threading.Timer(whole / 10, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        weights.run(rows, 1)
    assert time.monotonic() - began < 0.7 * whole
    timer.join()


def test_a_fork_beside_a_bulk_call_can_encode(modules: dict[str, ModuleType], tiny_files: dict[str, Path]) -> None:
    """No lock is held at the fork, because the engine has none."""
    weights = open_weights(modules["installed"], tiny_files["int8"])
    rows = [[1] * 64] * 3000
    expected = weights.run(rows[:70], 1)
    busy = threading.Thread(target=lambda: weights.run(rows, 2))
    busy.start()
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        os._exit(0 if weights.run(rows[:70], 4) == expected else 1)
    _, status = os.waitpid(child, 0)
    busy.join()
    assert status == 0
