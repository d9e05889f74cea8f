"""A damaged file of a bundle gives an error or another artifact's vector, and never a vector of the damaged file."""

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
)
from firstvec.bundle import MANIFEST_NAME, integrity
from firstvec.bundle.integrity import OpenFile, open_verified, verify_file
from firstvec.bundle.manifest import File, Manifest
from firstvec.text.tokenizer import open_tokenizer
from tests.conftest import Fresh
from tests.faults.conftest import Campaign

BIG = 25 << 20
"""Bytes of a big file."""
BIG_FLIPS = 300
"""Flips in big files. Each flip is one hashing of a whole file."""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache, in which nothing is remembered."""
    monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture
def smallest(request: pytest.FixtureRequest, campaign: Campaign) -> Path:
    """The smallest bundle. `make test` damages a sample only, and takes a bundle that other tests build, too."""
    return Path(request.getfixturevalue("smallest_built" if campaign.full else "tiny_built"))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file in place. A second call restores the file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
    finally:
        os.close(descriptor)


def is_refused(root: Path, file: File, *, use_markers: bool) -> bool:
    """Return whether a file is refused as damaged."""
    try:
        verify_file(str(root), file, use_markers=use_markers)
    except IntegrityError:
        return True
    return False


def is_remembered(root: Path, file: File) -> bool:
    """Verify a file, and return whether a marker stood in for hashing."""
    with open_verified(str(root), file) as opened:
        return opened.remembered


def remember(root: Path, files: list[File]) -> None:
    """Verify the files, so that markers remember them. Otherwise no test would see a marker that outlives a change."""
    time.sleep(0.06)  # a file that was written in the last 0.05 s is not remembered
    for file in files:
        verify_file(str(root), file)
        assert is_remembered(root, file), file.path
    time.sleep(0.02)  # change times may count in ticks of the kernel, which are 10 ms at most


# --- Every bit of the smallest bundle --------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_smallest_bundle_is_refused(
    smallest: Path, tmp_path: Path, own_cache: Path, campaign: Campaign
) -> None:
    root = Path(shutil.copytree(smallest, tmp_path / "smallest"))
    files = [*Manifest.read(root).files()]
    remember(root, files)
    flips, source = 0, random.Random(4)
    for file in files:
        path, bits = root / file.path, range(8 * file.size)
        for bit in bits if campaign.full else source.sample(bits, min(200, len(bits))):
            flip(path, bit)
            assert is_refused(root, file, use_markers=bit % 2 == 0), f"{file.path}: bit {bit}"
            flip(path, bit)
            flips += 1
        verify_file(str(root), file, use_markers=False)  # the file is whole again
    assert flips == sum(8 * file.size for file in files) or not campaign.full
    campaign.record(
        "every bit of the smallest bundle's files", flips=flips, bytes=sum(file.size for file in files), taken=0
    )


def test_every_flipped_bit_of_the_smallest_manifest_is_refused_or_harmless(smallest: Path, campaign: Campaign) -> None:
    data = (smallest / MANIFEST_NAME).read_bytes()
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
    # A flip in the key of the checksum only makes the checksum unknown. Everything else is as it was.
    at = data.rindex(b"checksum")
    assert harmless <= {*range(at, at + len("checksum"))}
    campaign.record("every bit of the smallest bundle's manifest", flips=len(bits), changed_what_is_read=0)


def test_every_other_length_of_the_smallest_bundles_files_is_refused(
    smallest: Path, tmp_path: Path, own_cache: Path, campaign: Campaign
) -> None:
    root = Path(shutil.copytree(smallest, tmp_path / "smallest"))
    points = 0
    files = [*Manifest.read(root).files()]
    remember(root, files)
    for file in files:
        path = root / file.path
        with path.open("ab") as stream:
            for _ in range(campaign.size(3, 64)):
                stream.write(b"\0")
                stream.flush()
                assert is_refused(root, file, use_markers=points % 2 == 0), f"{file.path}: {path.stat().st_size} bytes"
                points += 1
        for length in range(file.size - 1, -1, -campaign.size(file.size // 20 + 1, 1)):
            os.truncate(path, length)
            assert is_refused(root, file, use_markers=points % 2 == 0), f"{file.path}: {length} bytes"
            points += 1
    data = (root / MANIFEST_NAME).read_bytes()
    for length in range(0, len(data), campaign.size(97, 1)):
        with pytest.raises(ManifestError):
            Manifest.parse(data[:length])
        points += 1
    campaign.record("every length of the smallest bundle's files", points=points, taken=0)


def test_two_swapped_files_are_refused(tiny_bundle: Path, own_cache: Path, campaign: Campaign) -> None:
    files = [*Manifest.read(tiny_bundle).files()]
    remember(tiny_bundle, files)
    pairs = [(one, other) for one, other in combinations(files, 2) if one.sha256 != other.sha256]
    for one, other in pairs:
        a, b, aside = tiny_bundle / one.path, tiny_bundle / other.path, tiny_bundle / "aside"
        for first, second in ((a, b), (b, a)):
            first.rename(aside)
            second.rename(first)
            aside.rename(second)
            if first == a:
                assert is_refused(tiny_bundle, one, use_markers=True)
                assert is_refused(tiny_bundle, other, use_markers=True)
    assert not any(is_refused(tiny_bundle, file, use_markers=False) for file in files)
    campaign.record("two files of a bundle swapped", pairs=len(pairs), taken=0)


# --- The real bundle -------------------------------------------------------------------------------------------------


def test_random_flips_of_the_real_bundle_are_refused(
    bundle: Path, tmp_path: Path, own_cache: Path, campaign: Campaign
) -> None:
    """Every file is flipped equally often. The files of 90 MB are flipped 300 times only."""
    manifest = Manifest.read(bundle)
    files = [file for file in manifest.files() if file.size <= campaign.size(1 << 20, 1 << 40)]
    root = tmp_path / "real"
    for file in files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / file.path, root / file.path)
    remember(root, files)
    small, big = [file for file in files if file.size <= BIG], [file for file in files if file.size > BIG]
    count, source, began = campaign.size(100, 10_000), random.Random(10_000), time.monotonic()
    chosen = source.choices(small, k=count - (BIG_FLIPS if big else 0)) + source.choices(big, k=BIG_FLIPS if big else 0)
    assert len(chosen) == count
    for number, file in enumerate(chosen):
        bit = source.randrange(8 * file.size)
        flip(root / file.path, bit)
        assert is_refused(root, file, use_markers=number % 2 == 0), f"{file.path}: bit {bit}"
        flip(root / file.path, bit)
    assert not any(is_refused(root, file, use_markers=False) for file in files)
    campaign.record(
        "random flips of the real bundle",
        flips=count,
        in_files_over_25_mb=BIG_FLIPS if big else 0,
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
    """Load a bundle. Return the id of the artifact that was taken, its vectors, and the artifacts that failed."""
    loader = OptimizedEmbeddingLoader(str(root), strategy=strategy)
    loader.start_loading()
    provider = loader.get_provider(timeout=120)
    try:
        failed = [each["artifact"] for each in loader.report()["fallbacks"] if each["error"] == "IntegrityError"]
        return provider.artifact.id, provider.encode(["reset my password", "größer", ""]), failed
    finally:
        provider.close()


@pytest.mark.parametrize("strategy", ["lazy", "quantized"])
def test_a_load_of_a_damaged_bundle_gives_no_vector_of_a_damaged_file(
    strategy: str, tiny_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Campaign
) -> None:
    manifest = Manifest.read(tiny_built)
    expected = {}
    for artifact in manifest.artifacts:
        root = Path(shutil.copytree(tiny_built, tmp_path / artifact.id))
        only = manifest.replace(artifacts=(artifact,))
        (root / MANIFEST_NAME).write_bytes(only.to_json())
        try:
            taken, expected[artifact.id], _ = _vectors(root, "quantized" if artifact.precision == "int8" else "lazy")
        except NoCompatibleArtifact:  # the artifact is for another CPU
            continue
        assert taken == artifact.id
    best = _vectors(tiny_built, strategy)[0]
    paths = [MANIFEST_NAME, *(file.path for file in manifest.files())]
    cases = [(path, damage) for path in paths for damage in DAMAGES if (path, damage) != (MANIFEST_NAME, _linked)]
    own = {file.path for artifact in manifest.artifacts if artifact.id == best for file in artifact.files}
    if not campaign.full:
        cases = [*random.Random(strategy).sample(cases, 12), *((path, _flipped) for path in sorted(own))]
    refusals = fallbacks = untouched = 0
    for number, (path, damage) in enumerate(cases):
        monkeypatch.setenv("FIRSTVEC_CACHE", str(tmp_path / f"cache-{number}"))
        root = Path(shutil.copytree(tiny_built, tmp_path / f"damaged-{number}"))
        if number % 2:  # every file is remembered before one is damaged
            _vectors(root, strategy)
            remember(root, [*manifest.files()])
        damage(root / path)
        try:
            taken, vectors, failed = _vectors(root, strategy)
        except (IntegrityError, ManifestError, NoCompatibleArtifact):
            refusals += 1
            assert path not in {file.path for file in manifest.support_files} or damage is _swapped, (path, damage)
        else:
            np.testing.assert_allclose(vectors, expected[taken], atol=1e-5, err_msg=f"{path} {damage.__name__}")
            files = next(artifact.files for artifact in manifest.artifacts if artifact.id == taken)
            assert not any(is_refused(root, file, use_markers=False) for file in files), (path, damage)
            if path in own:
                assert best in failed
                assert taken != best
            fallbacks += taken != best
            untouched += taken == best
        shutil.rmtree(root)
    assert refusals or not campaign.full
    assert fallbacks
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
    assert firstvec("verify", "--model", tiny_bundle).returncode == 0
    damage(tiny_bundle / "config.json")
    done = firstvec("verify", "--model", tiny_bundle)
    assert done.returncode == 1
    assert "config.json" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- Files that no engine may see ------------------------------------------------------------------------------------


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
    """Write a TorchScript archive of less than 4 MiB whose records unfold to 512 MiB."""
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
from firstvec import IntegrityError, NoCompatibleArtifact, OptimizedEmbeddingLoader
from firstvec.loading import opening
opened = []
real = opening.open_session
def watched(*arguments, **options):
    opened.append(arguments)
    return real(*arguments, **options)
opening.open_session = watched
def peak():  # ru_maxrss would not do, because a process inherits it from its parent
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
loader = OptimizedEmbeddingLoader(sys.argv[1], output="list")
loader.start_loading()
try:
    loader.get_provider(timeout=110).embed_query("text")
except (IntegrityError, NoCompatibleArtifact) as error:
    print(type(error).__name__, len(opened), peak() - before, error)
else:
    print("a vector", len(opened), 0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("same_size", [False, True], ids=["of another size", "of the right size"])
@pytest.mark.parametrize(("artifact_id", "bomb"), [("onnx-fp32", huge_onnx), ("torchscript-fp32", zip_bomb)])
def test_a_file_that_would_fill_the_memory_never_reaches_the_engine(
    artifact_id: str, bomb: Callable[[Path], None], same_size: bool, tiny_bundle: Path, tmp_path: Path, fresh: Fresh
) -> None:
    manifest = Manifest.read(tiny_bundle)
    artifact = next(each for each in manifest.artifacts if each.id == artifact_id)
    path = tiny_bundle / artifact.files[0].path
    bomb(path)
    if same_size:  # so that only the digest differs
        first, *others = artifact.files
        size = max(first.size, path.stat().st_size)
        with path.open("r+b") as stream:
            stream.truncate(size)
        artifact = artifact.replace(files=(first.replace(size=size), *others))
    (tiny_bundle / MANIFEST_NAME).write_bytes(manifest.replace(artifacts=(artifact,)).to_json())
    code = OPENS_NOTHING
    kind, opened, kilobytes, *message = fresh(code, tiny_bundle, FIRSTVEC_CACHE=str(tmp_path / "new")).stdout.split()
    assert (kind, int(opened)) == ("IntegrityError", 0)
    assert ("sha256" in message) is same_size
    # onnxruntime's library takes some of it, because a load starts the library before it reads the manifest.
    assert 0 <= int(kilobytes) < 120_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_watched_engine_is_called_for_an_undamaged_bundle(tiny_bundle: Path, tmp_path: Path, fresh: Fresh) -> None:
    done = fresh(OPENS_NOTHING, tiny_bundle, FIRSTVEC_CACHE=str(tmp_path / "new"))
    assert done.stdout.split() == ["a", "vector", "1", "0"]


def test_a_changed_tokenizer_is_refused(tiny_bundle: Path, own_cache: Path) -> None:
    described = Manifest.read(tiny_bundle).tokenizer
    path = tiny_bundle / described.path
    assert described.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('"lowercase":true', '"lowercase":null').replace('"lowercase": true', '"lowercase": null')
    )
    assert path.read_text("utf-8") != text
    with pytest.raises(FirstvecError, match=r"tokenizer\.json is not the file that was built"):
        OptimizedEmbeddingLoader(str(tiny_bundle)).get_provider(timeout=120)


FOR_THE_PACKAGE = "[MASK] some text"
"""A text with a special token, which only the tokenizers package takes. The package reads tokenizer.json."""


def ids_of(tokenizer_json: str) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_str(tokenizer_json).encode(FOR_THE_PACKAGE).ids
    return ids


@pytest.mark.parametrize("quick", [True, False], ids=["read when needed", "read at once"])
def test_a_tokenizer_that_is_overwritten_after_its_verification_is_refused(
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
    assert open_tokenizer(manifest).tokenize([FOR_THE_PACKAGE]) == [ids_of(text)] != [ids_of(other)]
    time.sleep(0.02)
    written: list[tuple[int, bytes]] = []

    def open_and_write(root: str, file: File, artifact: str = "", *, use_markers: bool = True) -> OpenFile:
        opened = open_verified(root, file, artifact, use_markers=use_markers)
        if file.path == manifest.tokenizer.path:
            with path.open("r+b") as stream:
                stream.write(other.encode())
            now = os.fstat(opened.descriptor)  # the file that was verified, and its size
            written.append((now.st_size, os.pread(opened.descriptor, now.st_size, 0)))
        return opened

    monkeypatch.setattr(integrity, "open_verified", open_and_write)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is not the file that was built"):
        open_tokenizer(manifest).tokenize([FOR_THE_PACKAGE])
    assert written == [(manifest.tokenizer.size, other.encode())]
