"""Artifacts of `torch.export` in torch, which torch offers in place of TorchScript. On the CPU only."""

from __future__ import annotations

from io import BytesIO

# torch comes from that module, because that module imports numpy first.
from firstvec.engines.torchscript import TorchSession, torch, version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firstvec.bundle.integrity import OpenFile

__all__ = ["open_session", "version"]


class TorchExportSession(TorchSession):
    """An exported program. torch runs its operators one by one."""

    form = "torch.export"

    def _load(self, file: OpenFile) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        program = torch.export.load(BytesIO(file.read()))
        module: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = program.module()
        return module


open_session = TorchExportSession
