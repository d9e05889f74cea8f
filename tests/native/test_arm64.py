"""The runtime on aarch64: Debian's arm64 Python under QEMU runs the wheel, and computes the bits of this machine.

`make faults` runs this. It fetches Debian's packages for arm64 into a folder of its own, and Python's packages.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from firstvec import OptimizedEmbeddingLoader
from tests.conftest import REPOSITORY
from tests.faults.conftest import Campaign
from tests.native.compiling import BUILD, run

DEBIAN = (
    "libc6 libgcc-s1 libstdc++6 libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 "
    "python{0}-minimal libpython{0}-minimal libpython{0}-stdlib"
)
TEXTS = ["how do I reset my password?", "a text", "Naïve café, 12!"]
VECTORS = f"""
import hashlib, platform, sys
from firstvec import OptimizedEmbeddingLoader
for strategy in ("quantized", "lazy"):
    loader = OptimizedEmbeddingLoader(sys.argv[1], strategy, output="buffer")
    vectors = loader.get_provider(timeout=None).encode({TEXTS!r}, show_progress_bar=False)
    report = loader.report()
    digest = hashlib.sha256(vectors).hexdigest()
    print(platform.machine(), report["artifact"], report["engine"], report["self_test"], digest)
"""
TESTED = [
    "test_record.py",
    "test_strategy.py",
    "test_enums.py",
    "test_errors.py",
    "test_options.py",
    "machine",
    "text/test_tokenizer.py",
    "bundle/test_json_reader.py",
    "bundle/test_manifest.py",
]
"""Of tests/runtime: what needs no second process that computes many vectors, which takes hours in an emulator."""
LEFT_OUT = {
    "test_this_machines_instruction_sets_are_those_of_its_cpuinfo": "QEMU shows the host's /proc/cpuinfo",
    "test_a_process_with_a_limit_of_addresses_knows_what_is_left": "QEMU does not pass the limit on",
    "test_a_fork_while_the_package_is_loaded_waits_for_it": "QEMU cannot fork a process with threads",
    "test_an_install_without_the_module_takes_onnxruntime_and_says_why": "onnxruntime crashes in QEMU",
    "test_the_engines_of_this_environment_have_the_versions_of_their_metadata": "torch is not installed there",
    "test_an_unknown_user_without_a_home_loads_a_model_and_the_load_is_remembered": "needs a small model's build",
}
"""Test → why it cannot pass there."""


def fetch_python(folder: Path) -> Path:
    """Unpack Debian's Python for arm64, and return a command that runs it."""
    for name in ("state/lists/partial", "cache/archives/partial", "packages", "root"):
        (folder / name).mkdir(parents=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
    }
    settings = [f"-o{name}={value}" for name, value in options.items()]
    run(["apt-get", *settings, "-qq", "update"])
    described = run(["apt-cache", *settings, "show", "python3-minimal"]).stdout
    found = re.search(r"^Version: (3\.\d+)", described, re.MULTILINE)
    assert found is not None
    run(["apt-get", *settings, "-qq", "download", *DEBIAN.format(found[1]).split()], cwd=folder / "packages")
    for package in (folder / "packages").glob("*.deb"):
        run(["dpkg", "-x", str(package), str(folder / "root")])
    command = folder / "python"
    program = f"{folder}/root/usr/bin/python{found[1]}"
    command.write_text(f'#!/bin/sh\nexec qemu-aarch64 -cpu max -L {folder}/root {program} -S "$@"\n', "ascii")
    command.chmod(0o755)
    return command


def test_the_runtime_on_aarch64(bundle: Path, tiny_built: Path, tmp_path: Path, campaign: Campaign) -> None:
    if not campaign.full:
        pytest.skip("the runtime on aarch64 runs in make faults only")
    for name in ("qemu-aarch64", "apt-get", "dpkg"):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed (Debian: qemu-user)")
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("the package ziglang is not installed (the dependency group wheels)")
    began = time.monotonic()
    python = fetch_python(tmp_path / "debian")
    version = run([str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], env=emulated()).stdout
    target = next(target for target in BUILD.TARGETS if "manylinux" in target and "aarch64" in target)
    run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheel")],
        cwd=REPOSITORY,
        env=os.environ | {"FIRSTVEC_NATIVE": target},
    )
    [wheel] = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (28, 17)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "packages"), *platforms]
    pip += ["--only-binary=:all:", f"--python-version={version.strip()}", "--constraint", "constraints.txt"]
    run([*pip, "pytest", "hypothesis", "numpy", "tokenizers", "psutil", "onnxruntime"], cwd=REPOSITORY)

    here = [
        f"{loader.report()['artifact']} {hashlib.sha256(loader.get_provider().encode(TEXTS)).hexdigest()}"
        for strategy in ("quantized", "lazy")
        if (loader := OptimizedEmbeddingLoader(str(bundle), strategy, output="buffer")).get_provider()
    ]
    environment = emulated(
        HOME=str(tmp_path),
        FIRSTVEC_ARTIFACTS=str(bundle.parent),
        FIRSTVEC_TEST_BUNDLE=str(tiny_built),
        PYTHONPATH=os.pathsep.join(map(str, (tmp_path / "installed", tmp_path / "packages", REPOSITORY))),
    )
    lines = run([str(python), "-c", VECTORS, str(bundle)], env=environment, timeout=1200).stdout.splitlines()
    for line, (artifact, digest) in zip(lines, (each.split() for each in here), strict=True):
        assert line == f"aarch64 {artifact} native 1.0 (neon_dot) passed now {digest}"

    code = f"import sys; sys.executable = {str(python)!r}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    tested = [f"tests/runtime/{each}" for each in TESTED]
    chosen = ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    done = subprocess.run(
        [str(python), "-c", code, "-q", "-p", "no:cacheprovider", *chosen, *tested],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1500
    seconds = round(time.monotonic() - began)
    campaign.record("Debian's arm64 Python under QEMU", tests=int(passed[1]), different_bits=0, seconds=seconds)


def emulated(**variables: str) -> dict[str, str]:
    """Return the environment of an emulated Python, which must not find what is installed here."""
    return {"PYTHONHOME": "/usr", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"], **variables}
