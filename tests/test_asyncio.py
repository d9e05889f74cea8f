"""docs/asyncio.md: its program prints what is documented, and its statements on the event loop hold."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import numpy as np
import pytest

from firstvec import EmbeddingProvider, LoadTimeout, OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY, Fresh
from tests.loads import hold_sessions

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "docs/asyncio.md").read_text("utf-8"), re.DOTALL)
TEXTS = [f"{'word ' * (number % 40)}{number}" for number in range(400)]


def test_the_documented_program_prints_what_is_documented(bundle: Path, fresh: Fresh) -> None:
    (program,) = [text for language, text in BLOCKS if language == "python"]
    (printed,) = [text for language, text in BLOCKS if language == ""]
    assert fresh(program).stdout == printed


@pytest.fixture
def provider(bundle: Path) -> EmbeddingProvider:
    return OptimizedEmbeddingLoader(str(bundle)).get_provider()


async def longest_pause(until: asyncio.Future[object] | asyncio.Task[object]) -> tuple[float, int]:
    """Return for how long the event loop did nothing else at most, in seconds, and how often it had its turn."""
    longest, turns, last = 0.0, 0, time.perf_counter()
    while not until.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, turns, last = max(longest, now - last), turns + 1, now
    return longest, turns


def test_the_event_loop_goes_on_during_encode(provider: EmbeddingProvider) -> None:
    texts = TEXTS * 4
    expected = provider.encode(texts)

    async def main() -> tuple[float, int, float]:
        started = time.perf_counter()
        task = asyncio.ensure_future(asyncio.to_thread(provider.encode, texts))
        pause, turns = await longest_pause(task)
        np.testing.assert_allclose(await task, expected, atol=1e-6)
        return pause, turns, time.perf_counter() - started

    pause, turns, seconds = asyncio.run(main())
    # The call takes two seconds at least. A call that keeps the GIL would stop the loop for all that time.
    assert pause < max(0.5, seconds / 2)
    assert turns > 20


def test_the_event_loop_goes_on_during_a_load(bundle: Path) -> None:
    async def main() -> int:
        loader = OptimizedEmbeddingLoader(str(bundle), "background", artifact="onnx-fp32")
        loader.start_loading()
        task = asyncio.ensure_future(asyncio.to_thread(loader.get_provider))
        _, turns = await longest_pause(task)
        assert (await task).embed_query("text").shape == (384,)
        return turns

    # The test loads onnxruntime's artifact because the native engine's load is too short to give the loop turns.
    # A load that keeps the GIL leaves the loop one turn or two. A busy machine takes turns away: the best load counts.
    assert max(asyncio.run(main()) for _ in range(5)) >= 5


def test_tasks_share_one_provider(tiny_built: Path) -> None:
    async def main() -> set[int]:
        loader = OptimizedEmbeddingLoader(str(tiny_built))
        return set(map(id, await asyncio.gather(*(asyncio.to_thread(loader.get_provider) for _ in range(50)))))

    assert len(asyncio.run(main())) == 1


def test_a_cancelled_call_leaves_the_provider_usable(provider: EmbeddingProvider) -> None:
    expected = provider.embed_query("text")

    async def main() -> None:
        task = asyncio.ensure_future(asyncio.to_thread(provider.encode, TEXTS))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await asyncio.to_thread(provider.encode, TEXTS)
        np.testing.assert_allclose(await asyncio.to_thread(provider.embed_query, "text"), expected, atol=1e-6)

    asyncio.run(main())


def test_a_load_that_nobody_waits_for_any_more_goes_on(tiny_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = hold_sessions(monkeypatch)
    loader = OptimizedEmbeddingLoader(str(tiny_built))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.to_thread(loader.get_provider)
        assert loader.is_loading()
        load = loader._load
        with pytest.raises(LoadTimeout):
            await asyncio.to_thread(loader.get_provider, 0.05)
        release.set()
        provider = await asyncio.to_thread(loader.get_provider)
        assert loader._load is load
        assert (await asyncio.to_thread(provider.embed_query, "text")).shape == (32,)

    asyncio.run(main())
