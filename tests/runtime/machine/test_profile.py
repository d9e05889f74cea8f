"""The profile of a machine: its accelerators, engines and storage, and what it costs to detect them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from firstvec.engines.table import ENGINES
from firstvec.machine import darwin, limits, native, processor, system_files
from firstvec.machine.profile import ResourceProfile, is_ssd
from tests.conftest import Fresh
from tests.runtime.machine.conftest import Cores, Files, Machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's system files")

PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch", "psutil")


Gpus = Callable[[Iterable[str] | None], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Return a function that sets which GPUs the NVIDIA driver lists. None: there is no such driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listdir = os.listdir

    def install(names: Iterable[str] | None) -> None:
        def listed(path: str = ".") -> list[str]:
            if path != "/proc/driver/nvidia/gpus":
                return listdir(path)
            if names is None:
                raise FileNotFoundError(2, "No such file or directory", path)
            return list(names)

        monkeypatch.setattr(os, "listdir", listed)

    return install


def site(folder: Path, *distributions: str, torch: str | None = None) -> str:
    """Make a site folder in which those distributions are installed, and torch 2.13.0 with that ``version.py``."""
    folder.mkdir(exist_ok=True)
    for distribution in distributions:
        (folder / f"{distribution}.dist-info").mkdir()
    if torch is not None:
        (folder / "torch-2.13.0.dist-info").mkdir()
        (folder / "torch").mkdir()
        (folder / "torch" / "version.py").write_text(torch, "utf-8")
    return str(folder)


# --- Accelerators ----------------------------------------------------------------------------------------------------

CUDA_TORCH = (
    "from typing import Optional\n__all__ = ['cuda']\ndebug = False\ncuda: Optional[str] = '13.0'\nhip = None\n"
)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, True),
        ("0", True),
        ("0,1", True),
        (" 1 ", True),
        ("0,-1", True),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", True),
        ("", False),
        (" ", False),
        ("-1", False),
        (" -1 ", False),
        # CUDA C++ Programming Guide, environment variables: devices behind an invalid index are not visible.
        ("-1,0", False),
        ("NoDevFiles", False),
    ],
)
def test_cuda_is_hidden_by_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, gpus: Gpus, visible: str | None, expected: bool
) -> None:
    gpus(["0000:01:00.0"])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ResourceProfile.detect().has_cuda is expected


def test_a_driver_that_lists_no_gpu_gives_no_cuda(gpus: Gpus) -> None:
    gpus([])
    assert ResourceProfile.detect().has_cuda is False


@pytest.mark.parametrize(
    ("torch", "has_gpu", "expected"),
    [
        (CUDA_TORCH, True, "cuda"),
        ("cuda = '12.4'\n", True, "cuda"),
        (CUDA_TORCH, False, "cpu"),
        (CUDA_TORCH.replace("'13.0'", "None"), True, "cpu"),
        ("cuda = None\n", True, "cpu"),
        ("", True, "cpu"),
        (None, True, "cpu"),
    ],
)
def test_cuda_is_recommended_with_a_gpu_and_a_torch_that_was_built_for_it(
    monkeypatch: pytest.MonkeyPatch,
    gpus: Gpus,
    tmp_path: Path,
    torch: str | None,
    has_gpu: bool,
    expected: str,
) -> None:
    gpus(["0000:01:00.0"] if has_gpu else [])
    monkeypatch.setattr(sys, "path", [site(tmp_path / "site", torch=torch)])
    profile = ResourceProfile.detect()
    assert profile.recommended_device == expected
    assert profile.has_cuda is has_gpu


@pytest.mark.parametrize("missing", ["torch", "torch-2.13.0.dist-info"])
def test_cuda_is_not_recommended_without_both_torch_and_its_metadata(
    monkeypatch: pytest.MonkeyPatch, gpus: Gpus, tmp_path: Path, missing: str
) -> None:
    """An engine without a version is not taken, so no device may depend on it."""
    gpus(["0000:01:00.0"])
    folder = site(tmp_path / "site", torch=CUDA_TORCH)
    monkeypatch.setattr(sys, "path", [folder])
    assert ResourceProfile.detect().recommended_device == "cuda"
    shutil.rmtree(tmp_path / "site" / missing)
    assert ResourceProfile.detect().recommended_device == "cpu"


def test_windows_subsystem_for_linux_has_another_sign_of_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: Gpus) -> None:
    gpus(None)
    there = {"/dev/dxg", "/usr/lib/wsl/lib/libcuda.so.1"}
    monkeypatch.setattr(os.path, "exists", lambda path: path in there)
    assert ResourceProfile.detect().has_cuda is True
    there.remove("/dev/dxg")
    assert ResourceProfile.detect().has_cuda is False


def test_the_torch_that_counts_is_the_one_that_would_be_imported(
    monkeypatch: pytest.MonkeyPatch, gpus: Gpus, tmp_path: Path
) -> None:
    gpus(["0000:01:00.0"])
    first = site(tmp_path / "first", torch="cuda = None\n")
    second = site(tmp_path / "second", torch=CUDA_TORCH)
    monkeypatch.setattr(sys, "path", [first, second])
    assert ResourceProfile.detect().recommended_device == "cpu"
    monkeypatch.setattr(sys, "path", [second, first])
    assert ResourceProfile.detect().recommended_device == "cuda"


def test_a_torch_in_the_current_folder_counts_where_python_would_import_it(
    monkeypatch: pytest.MonkeyPatch, gpus: Gpus, tmp_path: Path
) -> None:
    gpus(["0000:01:00.0"])
    monkeypatch.chdir(site(tmp_path / "site", torch=CUDA_TORCH))
    monkeypatch.setattr(sys, "path", [""])
    assert ResourceProfile.detect().recommended_device == "cuda"


@pytest.mark.parametrize(
    ("family", "torch", "has_mps", "device"),
    [("arm64", "cuda = None\n", True, "mps"), ("arm64", None, True, "cpu"), ("x86_64", "cuda = None\n", False, "cpu")],
)
def test_apple_silicon_has_mps_and_it_is_recommended_with_torch(
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    tmp_path: Path,
    family: str,
    torch: str | None,
    has_mps: bool,
    device: str,
) -> None:
    folder = site(tmp_path / "site", torch=torch)
    machine(family)
    with monkeypatch.context() as mac:
        mac.setattr(darwin, "has_feature", lambda _key: False)
        mac.setattr(sys, "path", [folder])
        mac.setattr(sys, "platform", "darwin")
        profile = ResourceProfile.detect()
        profile.to_dict()
    assert (profile.has_mps, profile.recommended_device) == (has_mps, device)
    assert profile.available_memory_mb > 0


# --- Engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distributions", "expected"),
    [
        ([], {"onnxruntime": None, "tokenizers": None, "torch": None}),
        (
            ["onnxruntime-1.32.0", "tokenizers-0.23.2", "torch-2.13.0+cpu"],
            {"onnxruntime": "1.32.0", "tokenizers": "0.23.2", "torch": "2.13.0+cpu"},
        ),
        (["onnxruntime_gpu-1.24.1"], {"onnxruntime": "1.24.1"}),
        (["onnxruntime_directml-1.23.0"], {"onnxruntime": "1.23.0"}),
        (["onnxruntime_openvino-1.23.0"], {"onnxruntime": "1.23.0"}),
        (["Torch-2.13.0"], {"torch": "2.13.0"}),
        (["torch-2.14.0.dev20260101+cu130"], {"torch": "2.14.0.dev20260101+cu130"}),
        (
            ["torchvision-0.2", "torch_geometric-2.6", "onnxruntime_genai-0.9", "sentencepiece-0.2", "~orch-2.0"],
            {"onnxruntime": None, "tokenizers": None, "torch": None},
        ),
    ],
)
def test_engines_are_known_by_their_dist_info_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distributions: list[str], expected: dict[str, str | None]
) -> None:
    monkeypatch.setattr(sys, "path", [site(tmp_path / "site", *distributions)])
    profile = ResourceProfile.detect()
    assert [engine for engine, _ in profile.engines] == ["native", "onnxruntime", "tokenizers", "torch"]
    assert {engine: profile.engine_version(engine) for engine in expected} == expected


def test_a_package_that_is_installed_while_the_process_runs_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = site(tmp_path / "site", "torch-2.13.0")
    monkeypatch.setattr(sys, "path", [folder])
    assert ResourceProfile.detect().engine_version("onnxruntime") is None
    (tmp_path / "site" / "onnxruntime-1.32.0.dist-info").mkdir()
    assert ResourceProfile.detect().engine_version("onnxruntime") == "1.32.0"
    monkeypatch.setattr(sys, "path", [])
    assert ResourceProfile.detect().engine_version("torch") is None


@pytest.mark.parametrize(("home", "expected"), [("_internal", "7.5"), ("python3.11", "None"), (None, "7.5")])
def test_a_frozen_app_has_its_packages_beside_the_standard_library(
    home: str | None, expected: str, fresh: Fresh, tmp_path: Path
) -> None:
    """PyInstaller's ``os`` lies among the packages, and cx_Freeze's has no file."""
    place = 'os.__file__ = sys.argv[1] + "/os.pyc"' if home is not None else "del os.__file__"
    code = f"""
import os, sys
{place}
from firstvec import ResourceProfile
sys.path[:] = [sys.argv[1]]
print(ResourceProfile.detect().engine_version("torch"))
"""
    assert fresh(code, site(tmp_path / (home or "lib"), "torch-7.5")).stdout.strip() == expected


def test_cores_memory_and_storage_are_looked_up_when_they_are_asked_for(
    files: Files, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(limits, "read_text", lambda path: read.append(path) or files.get(path, ""))
    files["/proc/meminfo"] = "MemAvailable:    3000000 kB\n"
    cores(3)
    profile = ResourceProfile.detect()
    assert "/proc/meminfo" not in read
    assert (profile.cpu_count, profile.recommended_batch_size) == (3, 16)
    assert "/proc/meminfo" in read
    files["/proc/meminfo"] = "MemAvailable:    30000000 kB\n"
    cores(5)
    assert (profile.cpu_count, profile.recommended_batch_size) == (3, 16)  # a profile does not change
    assert (ResourceProfile.detect().cpu_count, ResourceProfile.detect().recommended_batch_size) == (5, 64)


def test_the_first_of_two_installations_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [site(tmp_path / "a", "torch-2.12.0"), site(tmp_path / "b", "torch-2.13.0", "tokenizers-0.23")]
    monkeypatch.setattr(sys, "path", folders)
    found = (("native", native.version()), ("onnxruntime", None), ("tokenizers", "0.23"), ("torch", "2.12.0"))
    assert ResourceProfile.detect().engines == found


def test_an_entry_of_the_import_path_that_is_no_folder_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK")
    folder = site(tmp_path / "site", "torch-2.13.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path / "archive.zip"), "", folder])
    assert ResourceProfile.detect().engine_version("torch") == "2.13.0"


def test_an_unknown_engine_has_no_version() -> None:
    assert ResourceProfile.detect().engine_version("tensorflow") is None


@pytest.mark.parametrize("engine", ["onnxruntime", "tokenizers", "torch"])
def test_the_engines_of_this_environment_have_the_versions_of_their_metadata(engine: str) -> None:
    assert ResourceProfile.detect().engine_version(engine) == version(engine)


@pytest.mark.parametrize("loaded", [(), ("native",), ("onnxruntime",), ("torch",), ("native", "onnxruntime", "torch")])
def test_an_engine_is_loaded_when_its_package_was_imported(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[str, ...]
) -> None:
    for engine, row in ENGINES.items():
        if engine in loaded:
            monkeypatch.setitem(sys.modules, row.package, sys)
        else:
            monkeypatch.delitem(sys.modules, row.package, raising=False)
    assert ResourceProfile.detect().loaded_engines == loaded


def test_an_engine_that_is_added_to_the_table_is_detected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = ENGINES["torch"].replace(package="newengine", distributions=("newengine", "newengine_gpu"), devices=("npu",))
    monkeypatch.setitem(ENGINES, "new", row)
    monkeypatch.setitem(sys.modules, "newengine", sys)
    monkeypatch.setattr(sys, "path", [site(tmp_path / "site", "newengine_gpu-7.1")])
    profile = ResourceProfile.detect()
    assert profile.engine_version("new") == "7.1"
    assert "new" in profile.loaded_engines


# --- Storage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rotational", "expected"), [("0\n", True), ("1\n", False), (None, None)])
@pytest.mark.parametrize("level", ["", "/.."], ids=["disk", "partition"])
def test_storage_is_solid_state_when_its_queue_is_not_rotational(
    files: Files, tmp_path: Path, level: str, rotational: str | None, expected: bool | None
) -> None:
    device = tmp_path.stat().st_dev
    if rotational is not None:
        files[f"/sys/dev/block/{os.major(device)}:{os.minor(device)}{level}/queue/rotational"] = rotational
    assert is_ssd(str(tmp_path)) is expected


@pytest.mark.parametrize(("rotational", "expected"), [("0\n", True), ("1\n", False), (None, True)])
def test_the_replaced_loaders_method_gives_a_boolean(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotational: str | None, expected: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    device = tmp_path.stat().st_dev
    if rotational is not None:
        files[f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/rotational"] = rotational
    assert ResourceProfile._detect_ssd() is expected


def test_this_machines_storage_is_one_or_the_other() -> None:
    assert type(ResourceProfile._detect_ssd()) is bool


def test_storage_of_a_path_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert is_ssd(str(tmp_path / "missing")) is None


def test_storage_that_is_no_block_device_is_unknown() -> None:
    assert is_ssd("/proc") is None


# --- The whole record ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available_mb", "expected"), [(0, 16), (1000, 16), (4096, 16), (4097, 32), (8192, 32), (8193, 64), (500_000, 64)]
)
def test_the_batch_size_follows_the_memory(files: Files, available_mb: int, expected: int) -> None:
    files["/proc/meminfo"] = f"MemTotal: 1 kB\nMemAvailable: {available_mb * 1024} kB\n"
    assert ResourceProfile.detect().recommended_batch_size == expected


def test_detect_fills_every_field() -> None:
    profile = ResourceProfile.detect()
    kinds: dict[str, Any] = {
        "machine": str,
        "cpu_count": int,
        "isa": tuple,
        "has_cuda": bool,
        "has_mps": bool,
        "available_memory_mb": float,
        "is_ssd": bool | None,
        "recommended_batch_size": int,
        "recommended_device": str,
        "native_isa": str | None,
        "engines": tuple,
        "loaded_engines": tuple,
    }
    values = profile.to_dict()
    assert values.keys() == kinds.keys()
    assert all(isinstance(value, kinds[name]) for name, value in values.items())
    assert profile.machine == os.uname().machine
    assert profile.recommended_device in ("cpu", "cuda")
    assert profile == ResourceProfile(**values)
    assert hash(profile) == hash(ResourceProfile(**values))


def test_detect_imports_no_engine(fresh: Fresh) -> None:
    code = """
import json, sys
from firstvec import ResourceProfile
profile = ResourceProfile.detect()
print(json.dumps([sorted(set(sys.argv[1:]) & {name.partition(".")[0] for name in sys.modules}), profile.to_dict()]))
"""
    imported, profile = json.loads(fresh(code, *PACKAGES).stdout)
    assert imported == []
    assert profile["loaded_engines"] == []
    assert dict(profile["engines"])["onnxruntime"] == version("onnxruntime")


def test_detect_writes_nothing_and_opens_no_socket(fresh: Fresh, tmp_path: Path) -> None:
    code = """
import os, sys
from firstvec import ResourceProfile
os.chdir(sys.argv[1])
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "os.link", "os.symlink",
           "os.chmod", "os.chown", "subprocess.Popen", "os.system", "os.fork", "os.exec", "os.posix_spawn"}
seen = []
def watch(event, arguments):
    if event == "open":
        seen.append("read")
        if arguments[2] & WRITES:
            print("writes", arguments)
    elif event in CHANGES or event.startswith("socket."):
        print(event, arguments)
# Imports may write bytecode.
from firstvec.machine import limits, native, processor
native.module()
sys.addaudithook(watch)
ResourceProfile.detect().to_dict()  # most of it is looked up only when it is read
print(len(seen) > 0)
"""
    environment = {"HOME": str(tmp_path), "FIRSTVEC_CACHE": str(tmp_path / "c"), "FIRSTVEC_HOME": str(tmp_path / "h")}
    assert fresh(code, tmp_path, **environment).stdout == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_detect_never_raises_when_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked:
        for name in ("open", "stat", "listdir", "scandir", "lstat"):
            locked.setattr(os, name, refuse)
        profile = ResourceProfile.detect()
        profile.to_dict()  # some of it is looked up only now
    assert profile.cpu_count == len(os.sched_getaffinity(0))
    assert profile.available_memory_mb == 0.0
    assert profile.recommended_batch_size == 16
    assert (profile.has_cuda, profile.is_ssd, profile.recommended_device) == (False, None, "cpu")
    here = ("native", native.version())
    assert profile.engines == (here, ("onnxruntime", None), ("tokenizers", None), ("torch", None))
    assert profile.isa == (("arm64",) if profile.machine in ("aarch64", "arm64") else ())


@pytest.mark.parametrize("content", ["\n", "\ufffd" * 100, ":", "0", "max max\n", "a:b:c\n0::\n::::\n", "-1 -1"])
def test_detect_never_raises_on_system_files_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    for module in (limits, processor, system_files):
        monkeypatch.setattr(module, "read_text", lambda _path, _size=0: content)
    detected = ResourceProfile.detect()
    assert detected.cpu_count >= 1
    assert detected.available_memory_mb >= 0
    assert detected.recommended_batch_size in (16, 32, 64)
    assert detected.is_ssd in (True, False, None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "x86_64, avx2, 4 cores"),
        ({"isa": ("avx2", "avx512_vnni"), "has_cuda": True}, "x86_64, avx2+avx512_vnni, 4 cores, cuda"),
        ({"isa": ("arm64",), "machine": "arm64", "has_mps": True}, "arm64, arm64, 4 cores, mps"),
        ({"isa": ()}, "x86_64, no known vector extension, 4 cores"),
    ],
)
def test_a_profile_reads_as_one_short_line(changes: dict[str, Any], text: str) -> None:
    profile = ResourceProfile.detect().replace(
        **{"machine": "x86_64", "isa": ("avx2",), "cpu_count": 4, "has_cuda": False, "has_mps": False, **changes}
    )
    assert str(profile) == text
