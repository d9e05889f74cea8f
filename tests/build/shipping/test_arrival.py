"""A bundle that arrives: only what is wanted, checked while it comes, whole or not at all, and never fetched twice."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstvec.bundle.manifest import File, Manifest, keep_artifacts
from firstvec.bundle.store import find_bundle
from firstvec.errors import BuildError, InputError, ManifestError, NoCompatibleArtifact, SignatureError, TransferError
from firstvec_build import publishing, temporary
from firstvec_build.shipping import arrival
from firstvec_build.shipping.arrival import Received, receive
from firstvec_build.shipping.signing import sign
from tests.build.conftest import INT8_ELSEWHERE, INT8_HERE
from tests.build.test_publishing import snapshot
from tests.conftest import REPOSITORY, edit_manifest
from tests.keys import SIGNATURE, Pair, make_keys

STARTER = "onnx-fp32"


class Folder:
    """A remote that gives a bundle's folder away, in pieces, and counts them."""

    address = "test://folder"

    def __init__(self, root: Path, piece: int = 4096) -> None:
        self.root = root
        self.piece = piece
        self.sent = 0
        self.opened: list[tuple[str, int]] = []
        self.change: Callable[[File, Iterator[bytes]], Iterator[bytes]] = lambda _file, pieces: pieces

    def read_manifest(self) -> bytes:
        return (self.root / "firstvec.json").read_bytes()

    def read_signature(self) -> bytes | None:
        path = self.root / SIGNATURE
        return path.read_bytes() if path.exists() else None

    def open_file(self, file: File, start: int) -> Iterator[bytes]:
        self.opened.append((file.path, start))
        for piece in self.change(file, self._read(file, start)):
            self.sent += len(piece)
            yield piece

    def _read(self, file: File, start: int) -> Iterator[bytes]:
        with (self.root / file.path).open("rb") as stream:
            stream.seek(start)
            while piece := stream.read(self.piece):
                yield piece


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "_PAUSE_SECONDS", 0.0)


def without_signature(root: Path) -> dict[str, bytes | None]:
    return {path: data for path, data in snapshot(root).items() if path != SIGNATURE}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def largest(root: Path) -> File:
    return max(Manifest.read(root).files(), key=lambda file: file.size)


def break_off(remote: Folder, path: str, after: int) -> None:
    """Let the transfer of a file break off once, after so many bytes."""

    def change(file: File, pieces: Iterator[bytes]) -> Iterator[bytes]:
        left = after if file.path == path else 1 << 40
        for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise TransferError(remote.address, "the connection broke", "try again")

    remote.change = change


def test_a_bundle_arrives_with_every_byte(tiny_built: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    remote = Folder(tiny_built)
    got = receive(remote, tmp_path / "new" / "bundles", report=lambda done, total: seen.append((done, total)))
    target = tmp_path / "new" / "bundles" / "tiny-bert"
    assert got.manifest == Manifest.read(target)
    assert snapshot(target) == without_signature(tiny_built)
    total = sum(file.size for file in got.manifest.files())
    assert (got.fetched, got.reused, remote.sent) == (total, 0, total)
    assert (got.is_new, got.has_replaced, got.is_signed, got.left_out_signature) == (True, False, False, False)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert hidden(target.parent) == []
    assert {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()} == {0o644}
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_bundle_that_is_here_already_is_left_alone(tiny_built: Path, tmp_path: Path) -> None:
    receive(Folder(tiny_built), tmp_path)
    before = (tmp_path / "tiny-bert").stat()
    remote = Folder(tiny_built)
    got = receive(remote, tmp_path)
    assert (got.is_new, got.has_replaced, got.fetched, remote.opened) == (False, False, 0, [])
    assert (tmp_path / "tiny-bert").stat() == before


def test_a_damaged_file_of_the_bundle_here_is_the_only_one_that_is_fetched(tiny_built: Path, tmp_path: Path) -> None:
    receive(Folder(tiny_built), tmp_path)
    file = largest(tiny_built)
    damaged = tmp_path / "tiny-bert" / file.path
    damaged.write_bytes(b"x" * file.size)
    remote = Folder(tiny_built)
    got = receive(remote, tmp_path)
    assert (got.is_new, got.has_replaced, got.fetched) == (True, True, file.size)
    assert remote.opened == [(file.path, 0)]
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)
    assert hidden(tmp_path) == []


def test_only_the_files_of_the_wanted_artifacts_are_fetched(tiny_built: Path, tmp_path: Path) -> None:
    remote = Folder(tiny_built)
    got = receive(remote, tmp_path, only=[STARTER])
    assert [artifact.id for artifact in got.manifest.artifacts] == [STARTER]
    assert [path for path, _ in remote.opened] == [file.path for file in got.manifest.files()]
    data = (tiny_built / "firstvec.json").read_bytes()
    assert (tmp_path / "tiny-bert" / "firstvec.json").read_bytes() == keep_artifacts(data, [STARTER])
    # What one more artifact needs is not fetched a second time with it.
    more = Folder(tiny_built)
    got = receive(more, tmp_path, only=[STARTER, INT8_HERE])
    files = {file.path for each in got.manifest.artifacts if each.id == INT8_HERE for file in each.files}
    assert {path for path, _ in more.opened} == files
    assert got.reused == remote.sent


def test_unknown_keys_of_the_manifest_are_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document.update(added_later={"x": [1]}, format_version="1.9"))
    for only in ((), (STARTER,)):
        receive(Folder(tiny_bundle), tmp_path / "got", only=only)
        text = (tmp_path / "got" / "tiny-bert" / "firstvec.json").read_text("utf-8")
        assert '"added_later"' in text
        assert '"1.9"' in text


def test_a_strategy_takes_the_artifact_that_it_takes_here(tiny_built: Path, tmp_path: Path) -> None:
    from firstvec import ResourceProfile, select
    from firstvec.options import make_options

    got = receive(Folder(tiny_built), tmp_path, strategy="quantized")
    expected = select(Manifest.read(tiny_built), ResourceProfile.detect(), make_options(strategy="quantized")).artifact
    assert [artifact.id for artifact in got.manifest.artifacts] == [expected.id]


def test_wishes_that_cannot_be_met_write_nothing(tiny_built: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(InputError, match="has no artifact 'onnx-int4': it has "):
        receive(Folder(tiny_built), output, only=["onnx-int4"])
    with pytest.raises(InputError, match="leave --only or --strategy out"):
        receive(Folder(tiny_built), output, only=[STARTER], strategy="cached")
    with pytest.raises(InputError, match="warp"):
        receive(Folder(tiny_built), output, strategy="warp")

    def keep_none_for_this_machine(document: dict[str, list[dict[str, str]]]) -> None:
        document["artifacts"] = [each for each in document["artifacts"] if each["id"] == INT8_ELSEWHERE]

    edit_manifest(tiny_bundle, keep_none_for_this_machine)
    with pytest.raises(NoCompatibleArtifact, match="isa"):
        receive(Folder(tiny_bundle), output, strategy="quantized")
    assert not output.exists()


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/..", "a\\b", "org/", "x" * 300])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    edit_manifest(tiny_bundle, lambda document: document["model"].update(name=name))
    with pytest.raises(ManifestError, match="cannot be the name of a folder"):
        receive(Folder(tiny_bundle), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_folder_that_is_no_bundle_is_not_replaced(tiny_built: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-bert").mkdir()
    (tmp_path / "tiny-bert" / "thesis.txt").write_text("three years")
    with pytest.raises(BuildError, match="is not a bundle, so it is not replaced"):
        receive(Folder(tiny_built), tmp_path)
    assert snapshot(tmp_path / "tiny-bert") == {"thesis.txt": b"three years"}


def test_a_broken_transfer_goes_on_where_it_broke(tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    remote = Folder(tiny_built, piece=1000)
    break_off(remote, file.path, file.size // 2)
    with pytest.raises(TransferError, match="broke"):
        receive(remote, tmp_path)
    assert not (tmp_path / "tiny-bert").exists()
    (left,) = hidden(tmp_path)
    assert left.startswith(".tiny-bert.pull-")
    again = Folder(tiny_built)
    got = receive(again, tmp_path)
    assert (file.path, file.size // 2) in again.opened
    assert remote.sent + again.sent == sum(file.size for file in got.manifest.files())
    assert got.reused == remote.sent
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)
    assert hidden(tmp_path) == []


def test_a_passing_failure_is_tried_again_at_once(tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    remote = Folder(tiny_built, piece=1000)

    def end_early(each: File, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """End after one piece, as a server does that loses its disk."""
        yield from ([next(pieces)] if each.path == file.path and len(remote.opened) % 3 else pieces)

    remote.change = end_early
    got = receive(remote, tmp_path)
    assert got.fetched == remote.sent == sum(file.size for file in got.manifest.files())
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)


def test_a_remote_that_sends_nothing_is_given_up(tiny_built: Path, tmp_path: Path) -> None:
    remote = Folder(tiny_built)
    remote.change = lambda _file, _pieces: iter(())
    with pytest.raises(TransferError, match=r"test://folder/\S+: ended after 0 of \d+ bytes; try again"):
        receive(remote, tmp_path)
    assert len(remote.opened) == 4
    assert not (tmp_path / "tiny-bert").exists()


@pytest.mark.parametrize("lie", ["other bytes", "too many"])
def test_wrong_bytes_are_not_kept(lie: str, tiny_built: Path, tmp_path: Path) -> None:
    receive(Folder(tiny_built), tmp_path, only=[STARTER])
    before = snapshot(tmp_path / "tiny-bert")
    file = next(file for each in Manifest.read(tiny_built).artifacts if each.id == INT8_HERE for file in each.files)
    remote = Folder(tiny_built)

    def change(each: File, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece[::-1] if each.path == file.path and lie == "other bytes" else piece
        while each.path == file.path and lie == "too many":
            yield b"x" * 4096

    remote.change = change
    with pytest.raises(TransferError, match="is not the file that the manifest describes: expected sha256") as caught:
        receive(remote, tmp_path)
    assert file.path in str(caught.value)
    assert not caught.value.is_passing
    assert remote.opened.count((file.path, 0)) == 1
    assert remote.sent < sum(each.size for each in Manifest.read(tiny_built).files()) + 8192
    assert snapshot(tmp_path / "tiny-bert") == before
    assert not [*tmp_path.glob(f".*/bundle/{file.path}")]


def test_wrong_bytes_of_an_earlier_try_are_fetched_anew(tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    remote = Folder(tiny_built, piece=1000)
    break_off(remote, file.path, 5000)
    with pytest.raises(TransferError):
        receive(remote, tmp_path)
    (left,) = tmp_path.glob(f".tiny-bert.pull-*/bundle/{file.path}")
    left.write_bytes(b"x" * left.stat().st_size)
    again = Folder(tiny_built)
    receive(again, tmp_path)
    assert [start for path, start in again.opened if path == file.path] == [5000, 0]
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)


def test_what_is_left_of_another_bundle_is_removed_and_not_used(
    tiny_built: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    remote = Folder(tiny_built)
    break_off(remote, largest(tiny_built).path, 5000)
    with pytest.raises(TransferError):
        receive(remote, output)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    got = receive(Folder(tiny_bundle), output)
    assert got.reused == 0
    assert hidden(output) == []


def test_what_an_earlier_try_left_is_not_followed_as_a_link(tiny_built: Path, tmp_path: Path) -> None:
    file = largest(tiny_built)
    output = tmp_path / "output"
    remote = Folder(tiny_built)
    break_off(remote, file.path, 5000)
    with pytest.raises(TransferError):
        receive(remote, output)
    (left,) = output.glob(f".tiny-bert.pull-*/bundle/{file.path}")
    left.unlink()
    (tmp_path / "precious").write_bytes(b"kept")
    left.symlink_to(tmp_path / "precious")
    receive(Folder(tiny_built), output)
    assert (tmp_path / "precious").read_bytes() == b"kept"
    assert snapshot(output / "tiny-bert") == without_signature(tiny_built)


def test_nothing_is_left_where_nothing_came(tiny_built: Path, tmp_path: Path) -> None:
    remote = Folder(tiny_built)

    def refuse(_file: File, _pieces: Iterator[bytes]) -> Iterator[bytes]:
        raise TransferError(remote.address, "refused", "log in")

    remote.change = refuse
    with pytest.raises(TransferError, match="refused"):
        receive(remote, tmp_path / "output")
    assert hidden(tmp_path / "output") == []


# -- the signature


def test_the_signature_travels_with_the_whole_bundle(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    got = receive(Folder(tiny_bundle), tmp_path / "all", require_signature=keys.public)
    assert (got.is_signed, got.left_out_signature) == (True, False)
    assert find_bundle(str(tmp_path / "all" / "tiny-bert"), str(keys.public))
    again = receive(Folder(tiny_bundle), tmp_path / "all", require_signature=keys.public)
    assert (again.is_new, again.is_signed) == (False, True)
    some = receive(Folder(tiny_bundle), tmp_path / "some", only=[STARTER], require_signature=keys.public)
    assert (some.is_signed, some.left_out_signature) == (False, True)
    assert not (tmp_path / "some" / "tiny-bert" / SIGNATURE).exists()


def test_a_signature_that_came_later_is_taken_without_the_files(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    receive(Folder(tiny_bundle), tmp_path / "got")
    sign(Manifest.read(tiny_bundle), keys.private)
    remote = Folder(tiny_bundle)
    got = receive(remote, tmp_path / "got")
    assert (got.is_new, got.is_signed, remote.opened) == (True, True, [])


def test_a_required_signature_is_checked_before_any_file_is_fetched(
    tiny_bundle: Path, keys: Pair, tmp_path: Path
) -> None:
    output, others = tmp_path / "output", make_keys(tmp_path / "others")

    def refuse(message: str, key: Path = keys.public) -> None:
        remote = Folder(tiny_bundle)
        with pytest.raises(SignatureError, match=message):
            receive(remote, output, require_signature=key, only=[STARTER])
        assert remote.opened == []
        assert not output.exists()

    refuse("does not exist: the bundle is not signed")
    sign(Manifest.read(tiny_bundle), keys.private)
    refuse("was made with another key", others.public)
    refuse("does not exist", tmp_path / "no-such-key.pub")
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    refuse(r"firstvec\.json differs")


def test_a_signature_of_another_bundle_is_refused_without_a_key(tiny_bundle: Path, keys: Pair, tmp_path: Path) -> None:
    sign(Manifest.read(tiny_bundle), keys.private)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    with pytest.raises(SignatureError, match=r"this one was changed: firstvec\.json differs"):
        receive(Folder(tiny_bundle), tmp_path / "output")
    (tiny_bundle / SIGNATURE).write_bytes(b"x" * ((4 << 20) + 1))
    with pytest.raises(SignatureError, match="is larger than 4194304 bytes"):
        receive(Folder(tiny_bundle), tmp_path / "output")
    assert not (tmp_path / "output").exists()


# -- two at once, and the end of a process

PULL = """
import sys, time
from pathlib import Path
from tests.build.shipping.test_arrival import Folder
from firstvec_build.shipping.arrival import receive

remote = Folder(Path(sys.argv[1]), piece=1000)

def slowly(file, pieces):
    for piece in pieces:
        time.sleep(float(sys.argv[3]))
        yield piece

remote.change = slowly
got = receive(remote, Path(sys.argv[2]))
print(got.is_new, remote.sent)
"""


def start_pull(source: Path, output: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, str(source), str(output), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def test_two_pulls_at_once_fetch_the_bundle_once(tiny_built: Path, tmp_path: Path) -> None:
    first, second = (start_pull(tiny_built, tmp_path, 0.0005) for _ in range(2))
    results = sorted(process.communicate(timeout=120)[0].split()[0] for process in (first, second))
    assert results == ["False", "True"]
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)
    assert hidden(tmp_path) == []


def test_two_pulls_at_once_without_locks_leave_one_whole_bundle(
    tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def no_locks(*_arguments: object, **_options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    got: list[Received] = []
    threads = [
        threading.Thread(target=lambda: got.append(receive(Folder(tiny_built, piece=500), tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3
    assert snapshot(tmp_path / "tiny-bert") == without_signature(tiny_built)
    assert hidden(tmp_path) == []


def test_a_killed_pull_leaves_the_old_bundle_and_the_next_one_goes_on(
    tiny_built: Path, tiny_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Kill a pull at several moments. At each moment either the old or the new bundle is there, and whole."""
    output = tmp_path / "output"
    receive(Folder(tiny_built), output)
    edit_manifest(tiny_bundle, lambda document: document["model"].update(revision="another"))
    file = largest(tiny_bundle)
    (tiny_bundle / file.path).write_bytes(os.urandom(file.size))
    digest = hashlib.sha256((tiny_bundle / file.path).read_bytes()).hexdigest()
    text = (tiny_bundle / "firstvec.json").read_text("utf-8").replace(file.sha256, digest)
    (tiny_bundle / "firstvec.json").write_text(text, "utf-8")
    old, new = without_signature(tiny_built), without_signature(tiny_bundle)
    pulls = 40 if request.config.getoption("--faults") else 5
    part, sizes = f".tiny-bert.pull-*/bundle/{file.path}", []
    for number in range(pulls):
        process = start_pull(tiny_bundle, output, 0.002)
        began = time.monotonic()
        while (size := sum(path.stat().st_size for path in output.glob(part))) < file.size * number // pulls:
            assert process.poll() is None
            assert time.monotonic() - began < 60
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert snapshot(output / "tiny-bert") in (old, new)
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    remote = Folder(tiny_bundle)
    receive(remote, output)
    assert snapshot(output / "tiny-bert") == new
    assert remote.sent <= file.size - sizes[-1]
    assert hidden(output) == []


PULL_AND_DIE = """
import os, signal, sys
from pathlib import Path
from firstvec_build import publishing
from firstvec_build.shipping.arrival import receive
from tests.build.shipping.test_arrival import Folder

replace = publishing._replace_folder

def die(folder, target):
    if sys.argv[3] == "after":
        replace(folder, target)
    os.kill(os.getpid(), signal.SIGKILL)

publishing._replace_folder = die
receive(Folder(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_pull_that_is_killed_at_the_exchange_loses_nothing(
    moment: str, tiny_built: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    receive(Folder(tiny_bundle), output, only=[STARTER])
    old = snapshot(output / "tiny-bert")
    command = [sys.executable, "-c", PULL_AND_DIE, str(tiny_built), str(output), moment]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    assert snapshot(output / "tiny-bert") == (old if moment == "before" else without_signature(tiny_built))
    remote = Folder(tiny_built)
    assert receive(remote, output).is_new is (moment == "before")
    assert remote.opened == []
    assert snapshot(output / "tiny-bert") == without_signature(tiny_built)
    assert hidden(output) == []


def test_a_pull_puts_back_what_a_killed_build_moved_away(tiny_built: Path, tmp_path: Path) -> None:
    receive(Folder(tiny_built), tmp_path)
    previous = temporary.make_folder(tmp_path, ".tiny-bert.old-")
    (tmp_path / "tiny-bert").rename(previous / "tiny-bert")
    temporary.abandon(previous, ".tiny-bert.old-")
    remote = Folder(tiny_built)
    assert not receive(remote, tmp_path).is_new
    assert remote.opened == []
    assert publishing.has_leftovers(tmp_path / "tiny-bert") is False
