"""fp32 TorchScript: traced, frozen, and written so that the same model gives the same bytes."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from firstvec.errors import ExportError
from firstvec_build.exporters.masks import traceable_masks
from firstvec_build.quiet_tools import silence_tools
from firstvec_build.reference import SentenceEncoder, make_example

_ALIGNMENT = 64
"""Bytes. torch aligns every record's data in the archive, because a tensor can then be memory-mapped."""
_NAMING_CLASSES = (".py", "/data.pkl")
"""Endings of the records that name the archive's classes."""
_MANGLED = re.compile(rb"___torch_mangle_(\d+)")


def export(model: SentenceTransformer, path: Path) -> tuple[str, ...]:
    """Write the model as TorchScript, and return the devices on which it runs.

    Raises:
        ExportError: the model cannot be traced.
    """
    with silence_tools(), torch.no_grad(), traceable_masks():
        try:
            traced = torch.jit.trace(SentenceEncoder(model).eval(), make_example(model), check_trace=False)
            frozen = torch.jit.freeze(traced.eval())
            _follow_the_device_of_the_input(frozen.graph)
            stream = io.BytesIO()
            torch.jit.save(frozen, stream)
        except RuntimeError as error:
            raise ExportError(f"TorchScript: the model cannot be traced: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_make_reproducible(stream.getvalue()))
    return ("cpu", "cuda", "mps")


def _follow_the_device_of_the_input(graph: Any) -> None:
    """Let the tensors that the graph itself makes (positions, masks) be on the device of ``input_ids``.

    The trace writes down the device on which it ran: ``arange(…, device="cpu")``.
    """
    _self, input_ids, _mask = graph.inputs()
    for constant in graph.findAllNodes("prim::Constant"):
        if "Device" not in str(constant.output().type()):
            continue
        device = graph.create("prim::device", [input_ids])
        device.output().setType(constant.output().type())
        graph.prependNode(device)
        constant.output().replaceAllUsesWith(device.output())
        constant.destroy()


def _make_reproducible(archive: bytes) -> bytes:
    """Rewrite a TorchScript archive without the parts that depend on the folder, the process and the time.

    ``*.debug_pkl`` holds the source paths of the building machine, and ``serialization_id`` is a hash of them. The
    numbers in ``___torch_mangle_N`` count the classes that the process compiled before.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        records = [
            (item.filename, old.read(item))
            for item in old.infolist()
            if not item.filename.endswith((".debug_pkl", "/.data/serialization_id"))
        ]
        numbers = {
            int(number)
            for name, data in records
            if name.endswith(_NAMING_CLASSES)
            for number in _MANGLED.findall(name.encode() + b" " + data)
        }
        renumbered = {str(number).encode(): str(rank).encode() for rank, number in enumerate(sorted(numbers))}

        def renumber(data: bytes) -> bytes:
            return _MANGLED.sub(lambda match: b"___torch_mangle_" + renumbered[match[1]], data)

        for name, data in records:
            info = zipfile.ZipInfo(renumber(name.encode()).decode(), date_time=(1980, 1, 1, 0, 0, 0))
            # Padding in the local header's extra field (APPNOTE 4.5.1: id, size, bytes) aligns the data.
            header = target.tell() + 30 + len(info.filename.encode())
            padding = -(header + 4) % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            # torch pickles a class as a GLOBAL opcode. It ends at a newline, so its length may change.
            new.writestr(info, renumber(data) if name.endswith(_NAMING_CLASSES) else data)
    return target.getvalue()
