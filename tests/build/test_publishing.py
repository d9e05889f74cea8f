"""A bundle's folder appears whole or not at all, and a failed build does not lose the previous bundle."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle import MANIFEST_NAME
from firstvec.bundle.integrity import verify_file
from firstvec.bundle.manifest import Manifest
from firstvec.errors import BuildError, IntegrityError, ManifestError, QualityError
from firstvec_build import publishing, temporary
from tests.conftest import edit_manifest


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every path below ``folder`` and its content. None: the path is a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def copy_files(source: Path, folder: Path) -> Manifest:
    """Copy the files of ``source`` into ``folder``, and return its manifest with another revision."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / MANIFEST_NAME).unlink()
    manifest = Manifest.read(source)
    return manifest.replace(model=manifest.model.replace(revision="another"))


def cannot_exchange(_one: Path, _other: Path) -> bool:
    return False


@pytest.fixture(params=["exchange", "fallback"])
def _replacement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both ways to replace a folder: an atomic exchange, and two renames."""
    if request.param == "fallback":
        monkeypatch.setattr(publishing, "_exchange", cannot_exchange)
        return
    for name in ("one", "other"):
        (tmp_path / "try" / name).mkdir(parents=True)
    if not publishing._exchange(tmp_path / "try" / "one", tmp_path / "try" / "other"):
        pytest.skip("this file system cannot exchange two folders")


def test_staging_folder_is_hidden_beside_the_target_and_is_removed(tmp_path: Path) -> None:
    with publishing.make_staging_folder(tmp_path / "new" / "model") as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith(".")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "error", [QualityError("onnx-fp32", "max_abs_diff", 1.0, "at most", 0.1), KeyboardInterrupt(), RuntimeError("bug")]
)
def test_staging_folder_is_removed_after_any_error_and_the_error_is_raised(
    error: BaseException, tmp_path: Path
) -> None:
    def stop(folder: Path) -> None:
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught, publishing.make_staging_folder(tmp_path / "model") as folder:
        stop(folder)
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_full_disk_is_a_build_error(tmp_path: Path) -> None:
    expected = r"model\.onnx_data: .*No space left.*previous bundle is untouched"
    with pytest.raises(BuildError, match=expected), publishing.make_staging_folder(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx_data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file", "file/deeper", "file/much/deeper"])
def test_output_below_a_file_is_refused_before_any_work(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BuildError, match="cannot be written; choose another folder with --output"):
        publishing.check_writable(tmp_path / below)
    with pytest.raises(BuildError, match="--output"), publishing.make_staging_folder(tmp_path / below / "model"):
        pytest.fail("entered")
    assert snapshot(tmp_path) == {"file": b"kept"}


def succeeds_for_a_user_with_few_rights(function: Callable[[], object]) -> bool:
    """Call the function in a child that is not root, because root may read and write everything."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_output_that_may_not_be_written_is_refused(reachable: Path) -> None:
    def check() -> None:
        with pytest.raises(BuildError, match=f"{reachable}/new/folder: cannot be written; choose"):
            publishing.check_writable(reachable / "new" / "folder")

    reachable.chmod(0o555)
    assert succeeds_for_a_user_with_few_rights(check)
    reachable.chmod(0o777)
    assert not succeeds_for_a_user_with_few_rights(check)


def test_output_below_a_folder_that_may_not_be_read_is_made(reachable: Path) -> None:
    def build() -> None:
        with publishing.make_staging_folder(reachable / "new" / "model") as folder:
            (folder / "file").touch()

    reachable.chmod(0o333)
    assert succeeds_for_a_user_with_few_rights(build)
    assert list((reachable / "new").iterdir()) == []


def test_writable_output_is_accepted_and_not_made(tmp_path: Path) -> None:
    publishing.check_writable(tmp_path)
    publishing.check_writable(tmp_path / "one" / "two")
    assert not list(tmp_path.iterdir())


def test_description_of_a_file_is_what_verification_expects(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    file = publishing.describe_file(tmp_path, "onnx/model.onnx")
    assert (file.path, file.size) == ("onnx/model.onnx", 5)
    verify_file(str(tmp_path), file, use_markers=False)  # raises if it does not fit


def test_publish_makes_a_new_bundle(tiny_built: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "tiny-bert"
    before = os.umask(0o077)
    try:
        with publishing.make_staging_folder(target) as folder:
            manifest = publishing.publish(folder, copy_files(tiny_built, folder), target)
    finally:
        os.umask(before)
    assert manifest == Manifest.read(target)
    assert manifest.root == str(target)
    assert manifest.model.revision == "another"
    expected, found = snapshot(tiny_built), snapshot(target)
    assert found.pop(MANIFEST_NAME) != expected.pop(MANIFEST_NAME)
    assert found == expected
    assert os.listdir(target.parent) == ["tiny-bert"]
    assert {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in (target, *target.rglob("*")) if path.is_dir()} == {0o755}


@pytest.mark.usefixtures("_replacement")
def test_publish_replaces_the_previous_bundle(tiny_built: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    (target / "left-over").touch()
    with publishing.make_staging_folder(target) as folder:
        manifest = publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert manifest.model.revision == Manifest.read(target).model.revision == "another"
    assert snapshot(target).keys() == snapshot(tiny_built).keys()
    assert os.listdir(target.parent) == ["tiny-bert"]


@pytest.mark.usefixtures("_replacement")
def test_open_files_of_the_replaced_bundle_stay_readable(tiny_built: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    with (target / "tokenizer.json").open("rb") as stream:
        with publishing.make_staging_folder(target) as folder:
            publishing.publish(folder, copy_files(tiny_built, folder), target)
        assert stream.read() == (tiny_built / "tokenizer.json").read_bytes()


@pytest.mark.usefixtures("_replacement")
def test_publish_fills_an_empty_folder(tiny_built: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "tiny-bert"
    target.mkdir(parents=True)
    with publishing.make_staging_folder(target) as folder:
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert Manifest.read(target).model.revision == "another"
    assert os.listdir(target.parent) == ["tiny-bert"]


def test_exchange_always_leaves_a_bundle_at_the_target(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "tiny-bert"))
    with publishing.make_staging_folder(target) as folder:
        manifest = copy_files(tiny_built, folder)
        (tmp_path / "one").mkdir()
        (tmp_path / "other").mkdir()
        if not publishing._exchange(tmp_path / "one", tmp_path / "other"):
            pytest.skip("this file system cannot exchange two folders")

        def renamed(source: object, destination: object) -> None:
            pytest.fail(f"{source} was renamed to {destination}: the target was missing for a moment")

        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "replace", renamed)
        assert publishing.publish(folder, manifest, target).model.revision == "another"


def test_exchange_returns_false_where_it_is_not_possible(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert not publishing._exchange(tmp_path / "one", tmp_path / "missing")
    assert (tmp_path / "one").is_dir()


def test_system_without_an_exchange_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a C library without renameat2
    assert not publishing._exchange(tmp_path / "one", tmp_path / "other")


def test_name_that_the_disk_does_not_take_is_a_build_error_and_the_new_bundle_stays(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundles" / "tiny-bert"
    sync = temporary.sync

    def fail(path: Path) -> None:
        if path == target.parent and target.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    with publishing.make_staging_folder(target) as folder:
        manifest = copy_files(tiny_built, folder)
        monkeypatch.setattr(temporary, "sync", fail)
        with pytest.raises(BuildError, match=r"the new bundle is in its place, but .*Input/output error"):
            publishing.publish(folder, manifest, target)
    assert Manifest.read(target).model.revision == "another"


def test_second_rename_that_fails_puts_the_previous_bundle_back(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    before = snapshot(target)
    rename = os.rename

    def failing(source: Any, destination: Any) -> None:
        if Path(source).name.startswith(".tiny-bert.staging-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(destination))
        rename(source, destination)

    monkeypatch.setattr(publishing, "_exchange", cannot_exchange)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(BuildError), publishing.make_staging_folder(target) as folder:
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert os.listdir(target.parent) == ["tiny-bert"]
    assert snapshot(target) == before


@pytest.mark.parametrize("name", ["left-over", "onnx/model.onnx_backup", ".work/scratch.onnx"])
def test_file_that_the_manifest_does_not_list_is_refused(name: str, tiny_built: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny-bert"

    def with_file(folder: Path) -> Manifest:
        manifest = copy_files(tiny_built, folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        return manifest

    with (
        pytest.raises(BuildError, match=f"{name} is in the staging folder but not in the manifest"),
        publishing.make_staging_folder(target) as folder,
    ):
        publishing.publish(folder, with_file(folder), target)
    assert not list(tmp_path.iterdir())


def test_manifest_that_the_runtime_would_refuse_is_not_published(tiny_bundle: Path) -> None:
    before = snapshot(tiny_bundle)

    def without_components(manifest: Manifest) -> Manifest:
        return manifest.replace(model=manifest.model.replace(embedding_dim=0))

    with (
        pytest.raises(ManifestError, match="embedding_dim: is not between"),
        publishing.make_staging_folder(tiny_bundle) as folder,
    ):
        publishing.publish(folder, without_components(copy_files(tiny_bundle, folder)), tiny_bundle)
    assert snapshot(tiny_bundle) == before


def make_file(target: Path) -> None:
    target.write_text("a file")


def make_link_to_a_bundle(target: Path) -> None:
    (target.parent / "elsewhere").mkdir()
    (target.parent / "elsewhere" / MANIFEST_NAME).write_text("{}")
    target.symlink_to(target.parent / "elsewhere", target_is_directory=True)


def make_dangling_link(target: Path) -> None:
    target.symlink_to(target.parent / "missing")


def make_other_folder(target: Path) -> None:
    (target / "holiday").mkdir(parents=True)
    (target / "holiday" / "photo.jpg").write_bytes(b"precious")


@pytest.mark.parametrize("make", [make_file, make_link_to_a_bundle, make_dangling_link, make_other_folder])
def test_target_that_is_not_a_bundle_is_not_replaced(
    make: Callable[[Path], None], tiny_built: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tiny-bert"
    make(target)
    before = (snapshot(tmp_path), target.is_symlink())
    with (
        pytest.raises(BuildError, match=r"tiny-bert: is not a (folder|bundle).*--output"),
        publishing.make_staging_folder(target) as folder,
    ):
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert (snapshot(tmp_path), target.is_symlink()) == before


def inputs_of(root: Path) -> str:
    return Manifest.read(root).inputs_sha256


def test_untouched_bundle_is_current_for_its_own_inputs_only(tiny_built: Path, tmp_path: Path) -> None:
    assert publishing.read_current(tiny_built, inputs_of(tiny_built)) is not None
    assert publishing.read_current(tiny_built, "0" * 64) is None
    assert publishing.read_current(tmp_path / "missing", inputs_of(tiny_built)) is None


def flip_a_bit(root: Path) -> None:
    path = root / "onnx" / "model.onnx_data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(root: Path) -> None:
    path = root / "torchscript" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1])


def remove(root: Path) -> None:
    (root / "1_Pooling" / "config.json").unlink()


def replace_by_a_link(root: Path) -> None:
    (root / "tokenizer.json").rename(root.parent / "tokenizer.json")
    (root / "tokenizer.json").symlink_to(root.parent / "tokenizer.json")


def replace_by_a_folder(root: Path) -> None:
    (root / "tokenizer.json").unlink()
    (root / "tokenizer.json").mkdir()


def remove_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()


def cut_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes((root / MANIFEST_NAME).read_bytes()[:100])


def replace_manifest_by_a_folder(root: Path) -> None:
    remove_manifest(root)
    (root / MANIFEST_NAME).mkdir()


def newer_manifest(root: Path) -> None:
    edit_manifest(root, lambda document: document.update(format_version="2.0"))


@pytest.mark.parametrize(
    "damage",
    [
        *(flip_a_bit, truncate, remove, replace_by_a_link, replace_by_a_folder),
        *(remove_manifest, cut_manifest, replace_manifest_by_a_folder, newer_manifest),
    ],
)
def test_damaged_bundle_is_not_current(damage: Callable[[Path], None], tiny_bundle: Path) -> None:
    expected = inputs_of(tiny_bundle)
    assert publishing.read_current(tiny_bundle, expected) is not None  # a marker now says that the files were verified
    damage(tiny_bundle)
    assert publishing.read_current(tiny_bundle, expected) is None


LOCK_AND_WAIT = """
import sys
from pathlib import Path
from firstvec_build import publishing
target = Path(sys.argv[1])
with publishing.lock(target), publishing.make_staging_folder(target) as folder:
    (folder / "part").write_bytes(b"x")
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that builds ``tmp_path``/model until its stdin ends."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(tmp_path / "model")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_second_build_waits_for_the_first_and_reports_it(builder: subprocess.Popen[str], tmp_path: Path) -> None:
    first_was_running: list[bool] = []

    def report_wait() -> None:
        first_was_running.append(builder.poll() is None)
        assert builder.stdin is not None
        builder.stdin.close()

    with publishing.lock(tmp_path / "model", report_wait):
        assert first_was_running == [True]
        assert not list(tmp_path.glob(".model.staging-*"))  # the first build has ended
    assert not list(tmp_path.iterdir())


def test_killed_build_leaves_no_lock_and_its_folder_is_collected(
    builder: subprocess.Popen[str], tmp_path: Path
) -> None:
    builder.kill()
    builder.wait()
    assert len(list(tmp_path.glob(".model.staging-*/part"))) == 1
    with publishing.lock(tmp_path / "model", lambda: pytest.fail("waited for a dead process")):
        assert os.listdir(tmp_path) == [".model.lock"]
    assert not list(tmp_path.iterdir())


def test_build_goes_on_if_the_lock_that_it_waits_for_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    codes = [errno.EWOULDBLOCK, errno.ENOLCK]

    def flock(_descriptor: int, _operation: int) -> None:
        code = codes.pop(0)
        raise OSError(code, os.strerror(code))

    waited: list[bool] = []
    monkeypatch.setattr(fcntl, "flock", flock)
    with publishing.lock(tmp_path / "model", lambda: waited.append(True)):
        assert (waited, codes) == ([True], [])


def test_lock_whose_file_was_removed_meanwhile_is_released(tmp_path: Path) -> None:
    with publishing.lock(tmp_path / "model"):
        (tmp_path / ".model.lock").unlink()
    with publishing.lock(tmp_path / "model", lambda: pytest.fail("the lock is still held")):
        assert os.listdir(tmp_path) == [".model.lock"]


def test_builds_of_other_bundles_do_not_wait(builder: subprocess.Popen[str], tmp_path: Path) -> None:
    with publishing.lock(tmp_path / "model-2", lambda: pytest.fail("waited for a build of another bundle")):
        assert builder.poll() is None
        assert len(list(tmp_path.glob(".model.staging-*"))) == 1


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_build_on_a_file_system_without_locks_runs_without_a_lock(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with publishing.lock(tmp_path / "model"), publishing.lock(tmp_path / "model"):
        pass
    assert {path.stat().st_size for path in tmp_path.iterdir()} <= {
        0
    }  # a killed build leaves no lock that another build would wait for


@pytest.mark.usefixtures("_replacement")
def test_builds_without_locks_leave_one_whole_bundle(tiny_built: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "tiny-bert"

    def publish(number: int) -> None:
        with publishing.make_staging_folder(target) as folder:
            manifest = copy_files(tiny_built, folder)
            publishing.publish(folder, manifest.replace(model=manifest.model.replace(revision=str(number))), target)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(24)))
    manifest = Manifest.read(target)
    assert manifest.model.revision in {str(number) for number in range(24)}
    for file in manifest.files():
        verify_file(str(target), file, use_markers=False)
    assert os.listdir(target.parent) == ["tiny-bert"]


@pytest.mark.usefixtures("_replacement")
def test_bundle_that_another_build_publishes_meanwhile_is_replaced(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundles" / "tiny-bert"
    others = [tiny_built]
    rename = os.rename

    def late(source: Any, destination: Any) -> None:
        if destination == target and others:
            shutil.copytree(others.pop(), target)
        rename(source, destination)

    monkeypatch.setattr(os, "rename", late)
    with publishing.make_staging_folder(target) as folder:
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert not others
    assert Manifest.read(target).model.revision == "another"
    assert os.listdir(target.parent) == ["tiny-bert"]


@pytest.mark.usefixtures("_replacement")
def test_bundle_that_another_build_moves_away_meanwhile_is_not_needed(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    exchange, away = publishing._exchange, tmp_path / "away"

    def late(one: Path, other: Path) -> bool:
        if not away.exists():
            os.rename(target, away)
        return exchange(one, other)

    monkeypatch.setattr(publishing, "_exchange", late)
    with publishing.make_staging_folder(target) as folder:
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    assert away.exists()
    assert Manifest.read(target).model.revision == "another"
    assert os.listdir(target.parent) == ["tiny-bert"]


INTERRUPTED = """
import os, shutil, sys
from pathlib import Path
from firstvec_build import publishing
from firstvec.bundle.manifest import Manifest
source, target = map(Path, sys.argv[1:])
publishing._exchange = lambda *_: False
rename = os.rename
def until_the_second(old, new):
    if Path(new) == target:
        os._exit(9)
    rename(old, new)
os.rename = until_the_second
with publishing.make_staging_folder(target) as folder:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    publishing.publish(folder, Manifest.read(source), target)
"""


def interrupt(source: Path, target: Path) -> None:
    """Replace ``target`` by two renames in another process, which dies between them."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(source), str(target)], check=False)
    assert done.returncode == 9
    assert not target.exists()


def test_bundle_that_a_killed_build_moved_away_is_put_back(tiny_built: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    interrupt(tiny_built, target)
    with publishing.lock(target):
        assert snapshot(target) == snapshot(tiny_built)
        assert publishing.read_current(target, inputs_of(tiny_built)) is not None
    assert os.listdir(target.parent) == ["tiny-bert"]


def test_bundle_that_was_moved_away_never_replaces_a_newer_folder(tiny_built: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    interrupt(tiny_built, target)
    target.mkdir()
    (target / "newer").touch()
    with publishing.lock(target):
        assert os.listdir(target) == ["newer"]
    assert os.listdir(target.parent) == ["tiny-bert"]


def test_bundle_that_a_running_build_moved_away_is_left_alone(tmp_path: Path) -> None:
    old = temporary.make_folder(tmp_path, ".model.old-")
    (old / "model").mkdir()
    (old / "model" / MANIFEST_NAME).touch()
    with publishing.lock(tmp_path / "model"):
        assert not (tmp_path / "model").exists()
    assert (old / "model" / MANIFEST_NAME).exists()


def test_previous_bundle_that_cannot_be_put_back_is_kept(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(tiny_built, tmp_path / "bundles" / "tiny-bert"))
    before = snapshot(target)
    rename = os.rename

    def failing(source: Any, destination: Any) -> None:
        if Path(destination) == target:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(destination))
        rename(source, destination)

    monkeypatch.setattr(publishing, "_exchange", cannot_exchange)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(BuildError), publishing.make_staging_folder(target) as folder:
        publishing.publish(folder, copy_files(tiny_built, folder), target)
    [kept] = target.parent.glob(".tiny-bert.old-*/tiny-bert")
    assert snapshot(kept) == before


def link_symbolically(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def link_hard(path: Path, elsewhere: Path) -> None:
    elsewhere.hardlink_to(path)


LINKS = [(link_symbolically, "a symbolic link"), (link_hard, "one of 2 hard links")]
LINKED_FILES = ["tokenizer.json", "onnx/model.onnx_data", MANIFEST_NAME]


@pytest.mark.parametrize(("link", "kind"), LINKS)
@pytest.mark.parametrize("name", LINKED_FILES[:2])
def test_link_is_not_published(
    link: Callable[[Path, Path], None], kind: str, name: str, tiny_built: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundles" / "tiny-bert"

    def with_link(folder: Path) -> Manifest:
        manifest = copy_files(tiny_built, folder)
        link(folder / name, tmp_path / "elsewhere")
        return manifest

    with (
        pytest.raises(BuildError, match=f"{name} in the staging folder is {kind}"),
        publishing.make_staging_folder(target) as folder,
    ):
        publishing.publish(folder, with_link(folder), target)
    assert not list(target.parent.iterdir())
    assert (tmp_path / "elsewhere").read_bytes() == (tiny_built / name).read_bytes()


@pytest.mark.parametrize(("link", "kind"), LINKS)
@pytest.mark.parametrize("name", LINKED_FILES)
def test_bundle_with_a_link_in_it_is_not_current(
    link: Callable[[Path, Path], None], kind: str, name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    expected = inputs_of(tiny_bundle)
    link(tiny_bundle / name, tmp_path / "elsewhere")
    assert publishing.read_current(tiny_bundle, expected) is None
    with pytest.raises(IntegrityError, match=kind):
        publishing.check_no_link(str(tiny_bundle), name)


def test_missing_file_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(IntegrityError, match="expected a regular file, found No such file or directory"):
        publishing.check_no_link(str(tiny_bundle), "onnx/missing")


def test_bundle_with_a_linked_folder_in_it_is_not_current(tiny_bundle: Path, tmp_path: Path) -> None:
    link_symbolically(tiny_bundle / "onnx", tmp_path / "elsewhere")
    assert publishing.read_current(tiny_bundle, inputs_of(tiny_bundle)) is None


def test_output_whose_name_is_not_utf8_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(BuildError, match=r"caf\\xe9.*is not UTF-8.*--output"):
        publishing.check_writable(folder)
    publishing.check_writable(tmp_path / "café")
