"""TorchScript artifacts in torch: for accelerators, and for programs that have torch loaded anyway.

torch has one number of threads for a whole process, and counts no control group's quota. Where the program had loaded
torch, that number is the program's own and stays. Where it is imported here, it is lowered once to the usable cores.
"""

# ruff: noqa: E402 - whether torch is there already is seen before its import
from __future__ import annotations

import sys
import warnings
from io import BytesIO

_threads_are_ours = "torch" not in sys.modules
"""Until the first session."""

# Before torch, whose C extension imports parts of numpy without the lock that `import numpy` takes.
import numpy  # noqa: F401
import torch

from firstvec.sessions import SessionOptions, pad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def engine_version() -> str:
    """The version of the imported torch."""
    return str(torch.__version__)


def open_session(options: SessionOptions) -> TorchScriptSession:
    """Load a frozen TorchScript module onto the device."""
    _limit_threads(options.threads)
    return TorchScriptSession(options)


def _limit_threads(usable: int) -> None:
    """At the first session, before anything runs: threads that were started stay. A program may set another later."""
    global _threads_are_ours
    if _threads_are_ours:
        _threads_are_ours = False
        if torch.get_num_threads() > usable:
            torch.set_num_threads(usable)


class TorchScriptSession:
    """A frozen TorchScript module. ``run`` may be called from several threads."""

    def __init__(self, options: SessionOptions) -> None:
        self.engine = f"torch {engine_version()} (TorchScript, {options.device})"
        self.kind = options.kind
        self._pad_token_id = options.pad_token_id
        self._device = torch.device(options.device)
        with warnings.catch_warnings():
            # torch 2.13 deprecates torch.jit in favour of torch.export and still loads TorchScript, which is what the
            # bundle holds. Whoever calls the runtime cannot act on the warning.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            self._module = torch.jit.load(options.file.alias or BytesIO(options.file.read()), map_location=self._device)

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Embed token ids. Returns float32, shape (len(rows), embedding_dim)."""
        input_ids, attention_mask = (
            torch.from_numpy(array).to(self._device) for array in pad(rows, self._pad_token_id)
        )
        # The profiling executor would specialise, and recompile, for each new shape.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return memoryview(self._module(input_ids, attention_mask).cpu().contiguous().numpy())
