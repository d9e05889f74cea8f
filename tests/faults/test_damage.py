"""A damaged file of a bundle is an error or another artifact, and never a vector."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from firstvec import (
    FirstvecError,
    IntegrityError,
    ManifestError,
    NoCompatibleArtifact,
    OptimizedEmbeddingLoader,
    integrity,
)
from firstvec.integrity import OpenFile, verify
from firstvec.manifest import FILE_NAME, File, Manifest
from firstvec.tokenizer import open_tokenizer
from tests.conftest import Fresh
from tests.faults.conftest import Campaign

BIG = 25 << 20
"""Bytes; larger files are hashed some hundred times only."""
MOST_BIG = 300


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is remembered."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture
def smallest(request: pytest.FixtureRequest, campaign: Campaign) -> Path:
    """The smallest bundle; in `make test` one that is built in any case, of which only a sample is damaged."""
    return Path(request.getfixturevalue("smallest_built" if campaign.full else "tiny_built"))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file in place; again, and it is as it was."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
    finally:
        os.close(descriptor)


def refused(root: Path, file: File, *, remember: bool) -> bool:
    try:
        verify(str(root), file, remember=remember)
    except IntegrityError:
        return True
    return False


# --- Every bit of the smallest bundle --------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_smallest_bundle(
    smallest: Path, tmp_path: Path, own_cache: Path, campaign: Campaign
) -> None:
    root = Path(shutil.copytree(smallest, tmp_path / "smallest"))
    files = [*Manifest.read(root).files()]
    time.sleep(0.06)  # what was written a moment ago is not remembered
    for file in files:
        verify(str(root), file)
        assert verify(str(root), file), "not remembered: the test would not see that a marker outlives a change"
    time.sleep(0.02)  # change times may count in ticks of the kernel, 10 ms at most
    flips, source = 0, random.Random(4)
    for file in files:
        path, bits = root / file.path, range(8 * file.size)
        for bit in bits if campaign.full else source.sample(bits, min(200, len(bits))):
            flip(path, bit)
            assert refused(root, file, remember=bit % 2 == 0), f"{file.path}: bit {bit}"
            flip(path, bit)
            flips += 1
        assert verify(str(root), file, remember=False) is False  # it is whole again
    assert flips == sum(8 * file.size for file in files) or not campaign.full
    campaign.record(
        "every bit of the smallest bundle's files", flips=flips, bytes=sum(file.size for file in files), taken=0
    )


def test_every_flipped_bit_of_the_smallest_manifest(smallest: Path, campaign: Campaign) -> None:
    data = (smallest / FILE_NAME).read_bytes()
    whole = Manifest.parse(data)
    harmless = set()
    bits = range(8 * len(data))
    for bit in bits if campaign.full else random.Random(5).sample(bits, 500):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert Manifest.parse(bytes(damaged)) == whole
            harmless.add(bit // 8)
        except ManifestError:
            continue
    # Only in the checksum's key, which then says nothing: all the rest is as it was.
    at = data.rindex(b"checksum")
    assert harmless <= {*range(at, at + len("checksum"))}
    campaign.record("every bit of the smallest bundle's manifest", flips=len(bits), changed_what_is_read=0)


def test_every_truncation_and_trailing_bytes_of_the_smallest_bundle(
    smallest: Path, tmp_path: Path, own_cache: Path, campaign: Campaign
) -> None:
    root = Path(shutil.copytree(smallest, tmp_path / "smallest"))
    points = 0
    for file in Manifest.read(root).files():
        path = root / file.path
        verify(str(root), file)
        time.sleep(0.02)
        with path.open("ab") as stream:
            for _ in range(campaign.size(3, 64)):
                stream.write(b"\0")
                stream.flush()
                assert refused(root, file, remember=points % 2 == 0), f"{file.path}: {path.stat().st_size} bytes"
                points += 1
        for length in range(file.size - 1, -1, -campaign.size(file.size // 20 + 1, 1)):
            os.truncate(path, length)
            assert refused(root, file, remember=points % 2 == 0), f"{file.path}: {length} bytes"
            points += 1
    data = (root / FILE_NAME).read_bytes()
    for length in range(0, len(data), campaign.size(97, 1)):
        with pytest.raises(ManifestError):
            Manifest.parse(data[:length])
        points += 1
    campaign.record("every length of the smallest bundle's files", points=points, taken=0)


def test_two_files_that_changed_places(tiny_bundle: Path, own_cache: Path, campaign: Campaign) -> None:
    files = [*Manifest.read(tiny_bundle).files()]
    for file in files:
        verify(str(tiny_bundle), file)
    pairs = [(one, other) for one, other in combinations(files, 2) if one.sha256 != other.sha256]
    for one, other in pairs:
        a, b, aside = tiny_bundle / one.path, tiny_bundle / other.path, tiny_bundle / "aside"
        for first, second in ((a, b), (b, a)):
            first.rename(aside)
            second.rename(first)
            aside.rename(second)
            if first == a:
                assert refused(tiny_bundle, one, remember=True)
                assert refused(tiny_bundle, other, remember=True)
    assert not any(refused(tiny_bundle, file, remember=False) for file in files)
    campaign.record("two files of a bundle swapped", pairs=len(pairs), taken=0)


# --- The real bundle -------------------------------------------------------------------------------------------------


def test_random_flips_of_the_real_bundle(bundle: Path, tmp_path: Path, own_cache: Path, campaign: Campaign) -> None:
    """Each file as often as each other, but for those of 90 MB, which are hashed 300 times."""
    manifest = Manifest.read(bundle)
    files = [file for file in manifest.files() if file.size <= campaign.size(1 << 20, 1 << 40)]
    root = tmp_path / "real"
    for file in files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / file.path, root / file.path)
    time.sleep(0.06)  # what was written a moment ago is not remembered
    for file in files:
        verify(str(root), file)
        assert verify(str(root), file)
    time.sleep(0.02)
    small, big = [file for file in files if file.size <= BIG], [file for file in files if file.size > BIG]
    count, source, began = campaign.size(100, 10_000), random.Random(10_000), time.monotonic()
    chosen = source.choices(small, k=count - (MOST_BIG if big else 0)) + source.choices(big, k=MOST_BIG if big else 0)
    assert len(chosen) == count
    for number, file in enumerate(chosen):
        bit = source.randrange(8 * file.size)
        flip(root / file.path, bit)
        assert refused(root, file, remember=number % 2 == 0), f"{file.path}: bit {bit}"
        flip(root / file.path, bit)
    assert not any(refused(root, file, remember=False) for file in files)
    campaign.record(
        "random flips of the real bundle",
        flips=count,
        in_files_over_25_mb=MOST_BIG if big else 0,
        gigabytes_hashed=round(sum(file.size for file in chosen) / 1e9, 1),
        seconds=round(time.monotonic() - began),
        taken=0,
    )


# --- Whole loads -----------------------------------------------------------------------------------------------------


def _flipped(path: Path) -> None:
    flip(path, 8 * (path.stat().st_size // 2) + 3)


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _longer(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\n")


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _linked(path: Path) -> None:
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    path.symlink_to(moved)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _swapped(path: Path) -> None:
    alone = len([*path.parent.iterdir()]) == 1
    folder = path.parent.parent if alone else path.parent
    other = min(each for each in folder.iterdir() if each != path and each.is_file())
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGES = (_flipped, _truncated, _longer, _emptied, _zeroed, _folder, _linked, Path.unlink, _swapped)


def _vectors(root: Path, strategy: str) -> tuple[str, np.ndarray, list[str]]:
    """The artifact that a load took, the vectors that it gives, and the artifacts that failed."""
    loader = OptimizedEmbeddingLoader(str(root), strategy=strategy)
    loader.start_loading()
    provider = loader.get_provider(timeout=60)
    try:
        failed = [each["artifact"] for each in loader.report()["fallbacks"] if each["error"] == "IntegrityError"]
        return provider.artifact.id, provider.encode(["reset my password", "größer", ""]), failed
    finally:
        provider.close()


@pytest.mark.parametrize("strategy", ["lazy", "quantized"])
def test_a_load_of_a_damaged_bundle(
    strategy: str, tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Campaign
) -> None:
    manifest = Manifest.read(tiny_built)
    expected = {}
    for artifact in manifest.artifacts:
        root = Path(shutil.copytree(tiny_built, tmp_path / artifact.id))
        only = manifest.replace(artifacts=(artifact,))
        (root / FILE_NAME).write_bytes(only.to_json())
        try:
            taken, expected[artifact.id], _ = _vectors(root, "quantized" if artifact.precision == "int8" else "lazy")
        except NoCompatibleArtifact:  # for another CPU
            continue
        assert taken == artifact.id
    best = _vectors(tiny_built, strategy)[0]
    paths = [FILE_NAME, *(file.path for file in manifest.files())]
    cases = [(path, damage) for path in paths for damage in DAMAGES if (path, damage) != (FILE_NAME, _linked)]
    own = {file.path for artifact in manifest.artifacts if artifact.id == best for file in artifact.files}
    if not campaign.full:
        cases = [*random.Random(strategy).sample(cases, 12), *((path, _flipped) for path in sorted(own))]
    refusals = fallbacks = untouched = 0
    for number, (path, damage) in enumerate(cases):
        monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / f"cache-{number}"))
        root = Path(shutil.copytree(tiny_built, tmp_path / f"damaged-{number}"))
        if number % 2:  # remembered, all of it, before it is damaged
            _vectors(root, strategy)
            time.sleep(0.02)
        damage(root / path)
        try:
            taken, vectors, failed = _vectors(root, strategy)
        except (IntegrityError, ManifestError, NoCompatibleArtifact):
            refusals += 1
            assert path not in {file.path for file in manifest.support_files} or damage is _swapped, (path, damage)
        else:
            np.testing.assert_allclose(vectors, expected[taken], atol=1e-5, err_msg=f"{path} {damage.__name__}")
            files = next(artifact.files for artifact in manifest.artifacts if artifact.id == taken)
            assert not any(refused(root, file, remember=False) for file in files), (path, damage)
            if path in own:
                assert best in failed
                assert taken != best
            fallbacks += taken != best
            untouched += taken == best
        shutil.rmtree(root)
    assert refusals
    assert fallbacks or strategy == "quantized"
    campaign.record(
        f"whole loads of a damaged bundle, {strategy}",
        loads=len(cases),
        refused=refusals,
        other_artifact=fallbacks,
        other_file_damaged=untouched,
        vectors_of_damaged_files=0,
    )


@pytest.mark.parametrize("damage", [_flipped, _folder, Path.unlink], ids=lambda damage: damage.__name__)
def test_verify_names_the_damaged_file(damage: Callable[[Path], None], tiny_bundle: Path, firstvec: Fresh) -> None:
    assert firstvec("verify", tiny_bundle).returncode == 0
    damage(tiny_bundle / "config.json")
    done = firstvec("verify", tiny_bundle)
    assert done.returncode == 1
    assert "config.json" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- What an engine must not see -------------------------------------------------------------------------------------


def huge_onnx(path: Path) -> None:
    """Write an ONNX model of some hundred bytes that declares a weight and an output of 2^40 numbers."""
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40])
    constant = helper.make_node(
        "ConstantOfShape",
        ["shape"],
        ["sentence_embedding"],
        value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
    )
    graph = helper.make_graph(
        [constant],
        "huge",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "t"]),
        ],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, [1 << 40])],
        [weight, helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 40])],
    )
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert path.stat().st_size < 1000


def zip_bomb(path: Path) -> None:
    """Write a TorchScript archive of 600 kB whose records unfold to 512 MiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
        for name in ("data.pkl", "constants.pkl", "data/0", "data/1"):
            with archive.open(f"model/{name}", "w", force_zip64=True) as stream:
                for _ in range(128):
                    stream.write(bytes(1 << 20))
    assert path.stat().st_size < 4 << 20


OPENS_NOTHING = """
import sys
from firstvec import IntegrityError, NoCompatibleArtifact, OptimizedEmbeddingLoader, sessions
opened = []
real = sessions.open_session
def watched(*arguments, **options):
    opened.append(arguments)
    return real(*arguments, **options)
sessions.open_session = watched
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
loader = OptimizedEmbeddingLoader(sys.argv[1], output="list")
loader.start_loading()
try:
    loader.get_provider(timeout=60).embed_query("text")
except (IntegrityError, NoCompatibleArtifact) as error:
    print(type(error).__name__, len(opened), peak() - before, error)
else:
    print("a vector", len(opened), 0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("same_size", [False, True], ids=["of its own size", "of the right size"])
@pytest.mark.parametrize(("artifact_id", "bomb"), [("onnx-fp32", huge_onnx), ("torchscript-fp32", zip_bomb)])
def test_what_would_fill_the_memory_never_reaches_the_engine(
    artifact_id: str, bomb: Callable[[Path], None], same_size: bool, tiny_bundle: Path, tmp_path: Path, fresh: Fresh
) -> None:
    manifest = Manifest.read(tiny_bundle)
    artifact = next(each for each in manifest.artifacts if each.id == artifact_id)
    path = tiny_bundle / artifact.files[0].path
    bomb(path)
    if same_size:  # so that it is the digest that tells
        first, *others = artifact.files
        size = max(first.size, path.stat().st_size)
        with path.open("r+b") as stream:
            stream.truncate(size)
        artifact = artifact.replace(files=(first.replace(size=size), *others))
    (tiny_bundle / FILE_NAME).write_bytes(manifest.replace(artifacts=(artifact,)).to_json())
    code = OPENS_NOTHING
    kind, opened, kilobytes, *said = fresh(code, tiny_bundle, FIRSTVEC_CACHE=str(tmp_path / "new")).stdout.split()
    assert (kind, int(opened)) == ("IntegrityError", 0)
    assert ("sha256" in said) is same_size
    assert 0 <= int(kilobytes) < 120_000  # onnxruntime's library, which is started before the manifest is read


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_watched_engine_is_called_for_what_is_right(tiny_bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    done = fresh(OPENS_NOTHING, tiny_bundle, FIRSTVEC_CACHE=str(tmp_path / "new"))
    assert done.stdout.split() == ["a", "vector", "1", "0"]


def test_the_tokenizer_is_pinned_by_its_digest(tiny_bundle: Path, own_cache: Path) -> None:
    described = Manifest.read(tiny_bundle).tokenizer
    path = tiny_bundle / described.path
    assert described.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('"lowercase":true', '"lowercase":null').replace('"lowercase": true', '"lowercase": null')
    )
    assert path.read_text("utf-8") != text
    with pytest.raises(FirstvecError, match=r"tokenizer\.json is not the file that was built"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider(timeout=60)


FOR_THE_PACKAGE = "[MASK] some text"
"""Has a special token: whatever the quick tokenizer can do, the tokenizers package reads tokenizer.json for it."""


def ids_of(tokenizer_json: str) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_str(tokenizer_json).encode(FOR_THE_PACKAGE).ids
    return ids


@pytest.mark.parametrize("quick", [True, False], ids=["read when it is needed", "read at once"])
def test_a_tokenizer_that_is_written_to_between_verification_and_use_gives_no_other_ids(
    quick: bool, tiny_bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(tiny_bundle)
    assert manifest.wordpiece is not None
    if not quick:
        manifest = manifest.replace(wordpiece=None)
    path = tiny_bundle / manifest.tokenizer.path
    text = path.read_text("utf-8")
    document = json.loads(text)
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    other = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    other += " " * (path.stat().st_size - len(other.encode()))
    assert open_tokenizer(manifest).encode([FOR_THE_PACKAGE]) == [ids_of(text)] != [ids_of(other)]
    time.sleep(0.02)
    written: list[tuple[int, bytes]] = []
    proven_file = integrity.open_file

    def open_and_write(root: str, file: File, artifact: str = "", *, remember: bool = True) -> OpenFile:
        opened = proven_file(root, file, artifact, remember=remember)
        if file.path == manifest.tokenizer.path:
            with path.open("r+b") as stream:
                stream.write(other.encode())
            now = os.fstat(opened.descriptor)  # the very file that was proven, and of its size
            written.append((now.st_size, os.pread(opened.descriptor, now.st_size, 0)))
        return opened

    monkeypatch.setattr(integrity, "open_file", open_and_write)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is not the file that was built"):
        open_tokenizer(manifest).encode([FOR_THE_PACKAGE])
    assert written == [(manifest.tokenizer.size, other.encode())]
