"""TorchScript artifacts in torch: for accelerators, and for programs that have imported torch already.

torch has one number of threads for a whole process, and does not see a control group's quota. Where the program had
imported torch, the number belongs to the program and stays. Where this module imports torch, it lowers the number once
to the usable cores.
"""

# ruff: noqa: E402 - the module looks for torch before it imports torch
from __future__ import annotations

import sys
import warnings
from io import BytesIO

_threads_are_ours = "torch" not in sys.modules
"""True until the first session."""

# numpy comes before torch, because torch's C extension imports parts of numpy without the lock of `import numpy`.
import numpy  # noqa: F401
import torch

from firstvec.engines.session import pad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.engines.session import SessionOptions


def load_library() -> None:
    """Do nothing: the import of this module loads torch."""


def start() -> None:
    """Do nothing: torch has no environment to create."""


def version() -> str:
    """Return the version of the imported torch."""
    return str(torch.__version__)


def describe_use() -> str:
    """Return how torch is used here, for people."""
    return f"TorchScript in torch {version()}"


def open_session(options: SessionOptions) -> TorchScriptSession:
    """Load a frozen TorchScript module onto the device."""
    _limit_threads(options.threads)
    return TorchScriptSession(options)


def _limit_threads(usable: int) -> None:
    """Lower torch's number of threads at the first session. Later the program may set another number."""
    global _threads_are_ours
    if _threads_are_ours:
        _threads_are_ours = False
        if torch.get_num_threads() > usable:
            torch.set_num_threads(usable)


class TorchScriptSession:
    """A frozen TorchScript module: a `firstvec.engines.session.Session`."""

    def __init__(self, options: SessionOptions) -> None:
        self.engine = f"torch {version()} (TorchScript, {options.device})"
        self.kind = options.kind
        self._pad_token_id = options.pad_token_id
        self._device = torch.device(options.device)
        file = options.files[0]
        with warnings.catch_warnings():
            # torch 2.13 warns that torch.export replaces torch.jit, and still loads TorchScript. The program that
            # calls firstvec cannot act on the warning.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            self._module = torch.jit.load(file.alias or BytesIO(file.read()), map_location=self._device)

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim)."""
        input_ids, attention_mask = (
            torch.from_numpy(array).to(self._device) for array in pad(rows, self._pad_token_id)
        )
        # The profiling executor would specialize the module, and compile it again, for each new shape.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return memoryview(self._module(input_ids, attention_mask).cpu().contiguous().numpy())

    def close(self) -> None:
        """Do nothing: torch frees the module when nothing refers to it."""

    def abandon(self) -> None:
        """Do nothing: the module's destructor waits for no thread."""
