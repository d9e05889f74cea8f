"""TorchScript, and programs of `torch.export`, in torch: for accelerators, and for programs that import torch anyway.

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
import numpy
import torch

from firstvec.engines.session import Session, pad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from firstvec.engines.session import SessionOptions


def version() -> str:
    """Return the version of torch, which the import of this module loads."""
    return str(torch.__version__)


class TorchSession(Session):
    """A module of torch on a device: frozen TorchScript, or an exported program (format ``pt2``)."""

    def __init__(self, options: SessionOptions) -> None:
        global _threads_are_ours
        if _threads_are_ours and options.threads < torch.get_num_threads():
            torch.set_num_threads(options.threads)
        _threads_are_ours = False  # later the program may set another number
        is_exported = options.format == "pt2"
        form = "torch.export" if is_exported else "TorchScript"
        super().__init__(f"torch {version()} ({form}, {options.device})", options)
        self._device = torch.device(options.device)
        file = options.files[0]
        if is_exported:
            self._module = torch.export.load(BytesIO(file.read())).module()
            return
        with warnings.catch_warnings():
            # torch 2.13 warns that torch.export replaces torch.jit, and still loads TorchScript. The program that
            # calls firstvec cannot act on the warning.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            self._module = torch.jit.load(file.alias or BytesIO(file.read()), map_location=self._device)

    def run(self, rows: Sequence[Sequence[int]]) -> memoryview[float]:
        """Compute the vectors of token ids. Returns float32, (len(rows), dim)."""
        input_ids, attention_mask = (
            torch.from_numpy(numpy.frombuffer(each, numpy.int64).reshape(len(rows), -1)).to(self._device)
            for each in pad(rows, self._pad_token_id)
        )
        # The profiling executor would specialize the module, and compile it again, for each new shape.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            return memoryview(self._module(input_ids, attention_mask).cpu().contiguous().numpy())


open_session = TorchSession
