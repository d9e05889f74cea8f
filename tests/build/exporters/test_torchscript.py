"""The TorchScript artifact: what it computes, and that it holds nothing of the building machine."""

from __future__ import annotations

import copy
import hashlib
import io
import site
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec.errors import ExportError
from tests.conftest import REPOSITORY, Fresh


@pytest.fixture(scope="module")
def exported(tiny_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from firstvec_build.exporters import torchscript

    path = tmp_path_factory.mktemp("torchscript") / "new folder" / "model.pt"
    assert torchscript.export(tiny_encoder, path) == ("cpu", "cuda", "mps")
    return path


def jit_load(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return torch.jit.load(str(path))


def test_what_the_graph_makes_itself_is_on_the_device_of_the_input(exported: Path) -> None:
    graph = jit_load(exported).inlined_graph
    devices = [node for node in graph.nodes() if any("Device" in str(output.type()) for output in node.outputs())]
    assert {node.kind() for node in devices} == {"prim::device"}
    assert {value.debugName().split(".")[0] for node in devices for value in node.inputs()} == {"input_ids"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 17), (3, 128), (7, 5)])
def test_batch_and_length_are_dynamic(tiny_encoder: Any, exported: Path, shape: tuple[int, int]) -> None:
    import torch

    generator = torch.Generator().manual_seed(shape[0])
    ids = torch.randint(5, 400, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[0, shape[1] // 2 + 1 :] = 0  # one row is padded
    with torch.inference_mode():
        expected = tiny_encoder({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        found = jit_load(exported)(ids, mask)
    assert found.shape == (shape[0], 32)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected.numpy()).max() <= 1e-6


def test_real_model_takes_any_batch_and_length(bundle: Path, sentence_transformer: Any) -> None:
    import torch

    module = jit_load(bundle / "torchscript" / "model.pt")
    for shape in [(1, 1), (3, 200)]:
        ids = torch.randint(1000, 30000, shape, generator=torch.Generator().manual_seed(1))
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            expected = sentence_transformer(dict(features))["sentence_embedding"]
            found = module(ids, features["attention_mask"])
        assert found.shape == (shape[0], 384)
        assert np.abs(found.numpy() - expected.numpy()).max() <= 1e-5


def test_padding_changes_nothing(exported: Path) -> None:
    import torch

    module = jit_load(exported)
    ids = torch.randint(5, 400, (1, 9), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([ids, torch.zeros(1, 30, dtype=torch.int64)], dim=1)
    with torch.inference_mode():
        alone, in_batch = module(ids, torch.ones_like(ids)), module(padded, (padded > 0).long())
    assert np.abs(alone.numpy() - in_batch.numpy()).max() <= 1e-6


EXPORT = """
import hashlib, sys
from pathlib import Path
from firstvec_build import reference, source
from firstvec_build.exporters import torchscript
torchscript.export(reference.load_model(source.resolve(sys.argv[1])), Path(sys.argv[2]))
print(hashlib.sha256(Path(sys.argv[2]).read_bytes()).hexdigest())
"""


def test_same_model_gives_the_same_bytes_in_every_process(
    tiny_encoder: Any, exported: Path, tiny_model: Path, fresh: Fresh, tmp_path: Path
) -> None:
    from firstvec_build.exporters import torchscript

    # The second export in a process compiles classes whose names are taken: ___torch_mangle_N.
    torchscript.export(tiny_encoder, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == exported.read_bytes()

    digest = hashlib.sha256(exported.read_bytes()).hexdigest()
    done = fresh(EXPORT, tiny_model, tmp_path / "other.pt", PYTHONHASHSEED="4711", HOME=str(tmp_path))
    assert done.stdout.strip() == digest


def test_archive_holds_no_trace_of_the_building_machine(exported: Path, bundle: Path) -> None:
    for path in (exported, bundle / "torchscript" / "model.pt"):
        data = path.read_bytes()
        for trace in (str(REPOSITORY), *site.getsitepackages(), "site-packages", str(path.parent), str(Path.home())):
            assert trace.encode() not in data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert not [name for name in names if name.endswith((".debug_pkl", "serialization_id"))]


def test_records_are_aligned_and_stored_so_that_they_can_be_mapped(exported: Path) -> None:
    data = exported.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        items = archive.infolist()
        contents = {item.filename: archive.read(item) for item in items}
    tensors = [item for item in items if "/constants/" in item.filename and item.file_size > 1000]
    assert tensors
    for item in items:
        header = data[item.header_offset : item.header_offset + 30]
        start = item.header_offset + 30 + int.from_bytes(header[26:28], "little")
        start += int.from_bytes(header[28:30], "little")
        assert item.compress_type == zipfile.ZIP_STORED
        assert start % 64 == 0
        assert data[start : start + item.file_size] == contents[item.filename]


LOAD = """
import sys
from firstvec.bundle.manifest import Manifest
from firstvec.loading.opening import open_artifact, verify_artifact
manifest = Manifest.read(sys.argv[1])
artifact = next(artifact for artifact in manifest.artifacts if artifact.format == "torchscript")
session = open_artifact(verify_artifact(manifest, artifact)).session
print(session.run([[2, 7, 3], [2, 3]]).shape)
session.close()
"""


def test_loading_and_running_give_no_warning(tiny_built: Path, fresh: Fresh) -> None:
    assert fresh(LOAD, tiny_built, PYTHONWARNINGS="error").stdout == "(2, 32)\n"


def test_model_that_cannot_be_traced_is_an_export_error(tiny_encoder: Any, tmp_path: Path) -> None:
    import torch

    from firstvec_build.exporters import torchscript

    class NotTensors(torch.nn.Module):
        def forward(self, _features: dict[str, Any]) -> dict[str, str]:
            return {"sentence_embedding": "text"}

    broken = copy.deepcopy(tiny_encoder)
    broken.append(NotTensors())
    with pytest.raises(ExportError, match="TorchScript: the model cannot be traced"):
        torchscript.export(broken, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_a_module_makes_is_on_the_device_of_the_input(tiny_encoder: Any, tmp_path: Path) -> None:
    import torch

    from firstvec_build.exporters import torchscript

    class AddRange(torch.nn.Module):
        """The trace would hold the device of the new tensor."""

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            vectors = features["sentence_embedding"]
            steps = torch.arange(vectors.shape[1], device=vectors.device)
            return features | {"sentence_embedding": vectors + steps}

    model = copy.deepcopy(tiny_encoder)
    model.append(AddRange())
    torchscript.export(model, tmp_path / "model.pt")
    graph = jit_load(tmp_path / "model.pt").inlined_graph
    assert not [node for node in graph.findAllNodes("prim::Constant") if "Device" in str(node.output().type())]
