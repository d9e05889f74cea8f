"""The whole build: what is built, when it is built again, and what a failed build leaves behind."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstvec import OptimizedEmbeddingLoader, ResourceProfile
from firstvec.bundle.manifest import Artifact, Manifest
from firstvec.errors import BuildError, ExportError, InputError, QualityError
from firstvec_build import pipeline
from firstvec_build.pipeline import BuildResult, build
from firstvec_build.quality import Thresholds
from firstvec_build.recipes import RECIPES, Recipe
from firstvec_build.shipping.signing import sign
from tests.build.conftest import INT8_HERE
from tests.conftest import REPOSITORY, Fresh
from tests.keys import make_keys
from tests.tiny import ANY_INT8

if TYPE_CHECKING:
    from firstvec_build.workbench import Workbench

QUICK = ("onnx-fp32",)


@pytest.fixture(scope="module")
def quick_built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle with `QUICK` only. Do not change it."""
    output = tmp_path_factory.mktemp("quick")
    return Path(build(str(tiny_model), output, only=QUICK, thresholds=ANY_INT8).manifest.root)


@pytest.fixture
def output(quick_built: Path, tmp_path: Path) -> Path:
    """A folder of bundles that holds a copy of `quick_built`, to build into."""
    shutil.copytree(quick_built, tmp_path / "bundles" / quick_built.name)
    return tmp_path / "bundles"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("5\tone two\tone two three\n3\tred\tgreen blue\n1\thow are you\tquantum field theory\n", "utf-8")
    return path


def build_quick(model: Path, output: Path, **options: Any) -> BuildResult:
    return build(str(model), output, **{"only": QUICK, "thresholds": ANY_INT8, **options})


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones included, and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def identities(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return {str(path): (status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for path, status in found.items()}


def test_bundle_holds_every_artifact_and_nothing_else(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    assert [artifact.id for artifact in manifest.artifacts] == [
        name for name, recipe in RECIPES.items() if not recipe.on_request
    ]
    assert set(snapshot(tiny_built)) == {"firstvec.json", *(file.path for file in manifest.files())}
    assert manifest.model.name == "tiny-bert"
    assert manifest.model.source == "folder"
    assert str(REPOSITORY) not in (tiny_built / "firstvec.json").read_text("utf-8")
    for artifact in manifest.artifacts:
        emulated = artifact.isa is not None and artifact.isa not in ResourceProfile.detect().isa
        assert ("stand-in" in artifact.quality.measured_with) == emulated


def test_unchanged_inputs_leave_every_file_as_it_is(tiny_model: Path, output: Path) -> None:
    before = identities(output / "tiny-bert")
    stages: list[str] = []
    result = build_quick(tiny_model, output, report_stage=lambda what, *_: stages.append(what))
    assert not result.rebuilt
    assert result.manifest == Manifest.read(output / "tiny-bert")
    assert identities(output / "tiny-bert") == before
    assert stages == ["fetching the model"]


def test_unchanged_bundle_stays_and_leftovers_of_a_killed_build_are_removed(tiny_model: Path, output: Path) -> None:
    code = "import sys; from firstvec_build import temporary; temporary.make_folder(*sys.argv[1:])"
    for stem in (".tiny-bert.staging-", ".tiny-bert.old-"):
        subprocess.run([sys.executable, "-c", code, str(output), stem], check=True)
    assert len(os.listdir(output)) == 3
    before = identities(output / "tiny-bert")
    assert not build_quick(tiny_model, output).rebuilt
    assert identities(output / "tiny-bert") == before
    assert os.listdir(output) == ["tiny-bert"]


def test_force_builds_the_same_bundle_again(tiny_model: Path, output: Path) -> None:
    before, content = identities(output / "tiny-bert"), snapshot(output)
    assert build_quick(tiny_model, output, force=True).rebuilt
    assert snapshot(output) == content
    assert not {inode for inode, *_ in before.values()} & {
        inode for inode, *_ in identities(output / "tiny-bert").values()
    }


def test_damaged_bundle_is_built_again(tiny_model: Path, output: Path) -> None:
    content = snapshot(output)
    (output / "tiny-bert" / "onnx" / "model.onnx_data").write_bytes(b"damaged")
    assert build_quick(tiny_model, output).rebuilt
    assert snapshot(output) == content


@pytest.mark.parametrize(
    "options",
    [
        {"only": (*QUICK, INT8_HERE)},
        {"thresholds": Thresholds(fp32_max_abs_diff=2e-5)},
        {"license": "apache-2.0"},
    ],
    ids=["only", "thresholds", "licence"],
)
def test_other_options_build_again(options: dict[str, Any], tiny_model: Path, output: Path) -> None:
    result = build_quick(tiny_model, output, **options)
    assert result.rebuilt
    assert [artifact.id for artifact in result.manifest.artifacts] == list(options.get("only", QUICK))
    assert not build_quick(tiny_model, output, **options).rebuilt


def test_licence_and_its_text_become_part_of_the_bundle(tiny_model: Path, output: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "tiny-bert"))
    (model / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n", "utf-8")
    (model / "LICENSE").write_text("the text", "utf-8")
    result = build_quick(model, output)
    assert result.rebuilt
    assert result.manifest.model.license == "BSD-3-Clause"
    assert "LICENSE" in [file.path for file in result.manifest.support_files]
    assert (output / "tiny-bert" / "LICENSE").read_text("utf-8") == "the text"
    assert not build_quick(model, output).rebuilt
    (model / "LICENSE").write_text("another text", "utf-8")
    assert build_quick(model, output).rebuilt


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"])
def test_another_model_of_the_same_name_is_not_current(name: str, tiny_model: Path, output: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, output.parent / "changed" / "tiny-bert"))
    assert not build_quick(copy, output).rebuilt  # another place of the model's folder changes nothing
    with (copy / name).open("ab") as stream:
        stream.write(b" ")  # the file is still valid, and has another digest
    stages: list[str] = []

    class Stop(Exception):
        pass

    def stop_after_the_first(what: str, number: int, _count: int) -> None:
        stages.append(what)
        if number:
            raise Stop

    with pytest.raises(Stop):
        build_quick(copy, output, report_stage=stop_after_the_first)
    assert stages == ["fetching the model", "importing the toolchain"]


def test_changed_weights_of_a_later_module_are_built_again(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        modules = list(SentenceTransformer(str(tiny_model), device="cpu"))
        model = SentenceTransformer(modules=[*modules[:2], Dense(32, 16)], device="cpu")
        model.save(str(tmp_path / f"{seed}" / "dense"), create_model_card=False)
        result = build_quick(tmp_path / f"{seed}" / "dense", tmp_path / "bundles")
        provider = OptimizedEmbeddingLoader(result.manifest.root, "lazy", device="cpu").get_provider()
        results.append(result.rebuilt)
        difference = provider.embed_query("some text") - model.encode("some text")
    assert results == [True, True]
    assert np.abs(difference).max() <= 1e-4


BUILD = """
import os, sys
folder, model, output = sys.argv[1:]
os.chdir(folder)
from firstvec_build.pipeline import build
from firstvec_build.quality import Thresholds
none = dict(int8_cosine_mean=-1.0, int8_cosine_min=-1.0, int8_neighbour_overlap=0.0, int8_batch_cosine_min=-1.0)
thresholds = Thresholds(**none)
assert build(model, output, thresholds=thresholds).rebuilt
"""


def test_builds_elsewhere_give_the_same_bytes(tiny_model: Path, tiny_built: Path, fresh: Fresh, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    shutil.copytree(tiny_model, elsewhere / "tiny-bert")
    fresh(BUILD, tmp_path, tiny_model, tmp_path / "one", PYTHONHASHSEED="1", TZ="UTC")
    fresh(BUILD, elsewhere, "tiny-bert", "two", PYTHONHASHSEED="271828", TZ="Asia/Tokyo", HOME=str(elsewhere))

    one, two = snapshot(tmp_path / "one" / "tiny-bert"), snapshot(elsewhere / "two" / "tiny-bert")
    here = snapshot(tiny_built)
    assert one.keys() == two.keys() == here.keys()
    assert [name for name in here if not one[name] == two[name] == here[name]] == []


def test_missed_threshold_leaves_the_previous_bundle(tiny_model: Path, output: Path) -> None:
    before = snapshot(output)
    with pytest.raises(QualityError, match=f"{INT8_HERE}: cosine_mean is 0[.].*must be at least 1") as caught:
        build_quick(tiny_model, output, only=[*QUICK, INT8_HERE], thresholds=Thresholds(int8_cosine_mean=1.0))
    assert 0 < caught.value.value < 1
    assert snapshot(output) == before
    assert sorted(os.listdir(output)) == ["tiny-bert"]
    assert OptimizedEmbeddingLoader(str(output / "tiny-bert")).get_provider().embed_query("text").shape == (32,)


def test_missed_threshold_of_full_precision_stops_the_build(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"onnx-fp32: max_abs_diff is .*, must be at most 0"):
        build_quick(tiny_model, tmp_path / "bundles", thresholds=Thresholds(fp32_max_abs_diff=0.0))
    assert not list((tmp_path / "bundles").iterdir())


def test_artifacts_below_their_threshold_do_not_cost_the_others(tiny_model: Path, tmp_path: Path) -> None:
    too_much = dataclasses.replace(ANY_INT8, int8_cosine_mean=1.0)
    manifest = build(str(tiny_model), tmp_path, thresholds=too_much).manifest
    assert {artifact.precision for artifact in manifest.artifacts} == {"fp32"}
    usual = {name for name, recipe in RECIPES.items() if not recipe.on_request}
    assert set(manifest.left_out or {}) == usual - {artifact.id for artifact in manifest.artifacts}
    for reason in (manifest.left_out or {}).values():
        assert re.fullmatch(r"cosine_mean is 0\.99\d+, must be at least 1", reason)
    # Files of the artifacts that were left out are gone, and so are their folders.
    assert set(snapshot(tmp_path / "tiny-bert")) == {"firstvec.json", *(file.path for file in manifest.files())}
    assert OptimizedEmbeddingLoader(manifest.root, "cached").get_provider().embed_query("text").shape == (32,)
    assert not build(str(tiny_model), tmp_path, thresholds=too_much).rebuilt
    with pytest.raises(QualityError, match="native-int8: cosine_mean is"):
        build(str(tiny_model), tmp_path, thresholds=too_much, strict=True)


def test_bundle_without_any_artifact_is_not_published(tiny_model: Path, tmp_path: Path) -> None:
    none_holds = Thresholds(fp32_max_abs_diff=0.0, int8_cosine_mean=1.0)
    with pytest.raises(ExportError, match=r"torchscript-fp32: max_abs_diff is .*; native-int8: cosine_mean is "):
        build(str(tiny_model), tmp_path, thresholds=none_holds)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_exported_is_tried_once_and_costs_its_own_artifacts_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstvec_build.exporters import onnx_graph

    tries = []

    def fail(*_arguments: object) -> None:
        tries.append(1)
        raise ExportError("no such operator")

    monkeypatch.setattr(onnx_graph, "export", fail)
    manifest = build(str(tiny_model), tmp_path, thresholds=ANY_INT8).manifest
    assert {artifact.format for artifact in manifest.artifacts} == {"torchscript", "native"}
    assert {*(manifest.left_out or {}).values()} == {"no such operator"}
    assert len(tries) == 1


def test_name_decides_the_folder_and_a_replaced_model_is_reported(tiny_model: Path, tmp_path: Path) -> None:
    from tests.tiny import save_other_bert

    first = build_quick(tiny_model, tmp_path, name="team/final")
    assert first.manifest.model.name == "team/final"
    assert first.manifest.root == str(tmp_path / "final")
    assert first.replaced_sha256 is None
    assert build_quick(tiny_model, tmp_path, name="team/final", force=True).replaced_sha256 is None
    other = save_other_bert(tmp_path / "other" / "final")
    assert build_quick(other, tmp_path).replaced_sha256 == first.manifest.model.source_sha256
    for name in ("", "a/b/c", "../up", ".hidden", "a b"):
        with pytest.raises(InputError, match="is not NAME or ORGANIZATION/NAME"):
            build_quick(tiny_model, tmp_path, name=name)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ExportError("made to fail"), ExportError),
        (MemoryError(), BuildError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_in_the_middle_leaves_no_trace(
    error: BaseException, raised: type[BaseException], tiny_model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(output)
    staged: list[str] = []

    def fail(bench: Workbench, _recipe: Recipe) -> Artifact:
        assert (bench.folder / "onnx" / "model.onnx").exists()  # the first recipe is done
        staged.extend(os.listdir(output))
        raise error

    monkeypatch.setitem(RECIPES, INT8_HERE, dataclasses.replace(RECIPES[INT8_HERE], make=fail))
    with pytest.raises(raised):
        build_quick(tiny_model, output, only=[*QUICK, INT8_HERE])
    assert len(staged) == 3  # the previous bundle, the lock and the staging folder
    assert os.listdir(output) == ["tiny-bert"]
    assert snapshot(output) == before


def test_only_builds_the_named_artifacts_in_the_usual_order(tiny_model: Path, tmp_path: Path) -> None:
    manifest = build_quick(tiny_model, tmp_path, only=[INT8_HERE, "onnx-fp32", INT8_HERE]).manifest
    assert [artifact.id for artifact in manifest.artifacts] == ["onnx-fp32", INT8_HERE]
    assert sorted(os.listdir(tmp_path / "tiny-bert" / "onnx")) == sorted(
        Path(file.path).name for artifact in manifest.artifacts for file in artifact.files
    )
    assert not (tmp_path / "tiny-bert" / "torchscript").exists()


@pytest.mark.parametrize("artifact_id", ["onnx-int4", "", "ONNX-FP32"])
def test_unknown_artifact_is_refused_before_any_work(artifact_id: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"unknown artifact '{artifact_id}': use one of torchscript-fp32, pt2-fp32, onnx-fp32"
    ):
        build(str(tiny_model), tmp_path / "bundles", only=["onnx-fp32", artifact_id])
    assert not (tmp_path / "bundles").exists()


def test_unwritable_output_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stages: list[str] = []
    with pytest.raises(BuildError, match="cannot be written; choose another folder with --output"):
        build_quick(tiny_model, tmp_path / "file" / "bundles", report_stage=lambda what, *_: stages.append(what))
    assert stages == []


def test_model_folder_is_never_replaced_by_its_bundle(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "tiny-bert"))
    before = snapshot(tmp_path)
    with pytest.raises(BuildError, match="tiny-bert: is not a bundle, so it is not replaced"):
        build_quick(model, tmp_path)
    assert snapshot(tmp_path) == before


def test_stages_are_reported_with_their_number_and_the_count(tiny_model: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    texts: dict[str, int] = {}

    def count(more: int) -> None:
        texts[calls[-1][0]] = texts.get(calls[-1][0], 0) + more

    only = [*QUICK, INT8_HERE]
    build_quick(tiny_model, tmp_path, only=only, report_stage=lambda *call: calls.append(call), report_texts=count)
    assert [number for _, number, _ in calls] == list(range(6))
    assert {count for *_, count in calls} == {6}
    assert [what for what, *_ in calls][3:5] == ["building onnx-fp32", f"building {INT8_HERE}"]
    # The reference; the sentences, and 40 of them alone and in batches; for INT8 also 160 sentences and 30 odd texts
    # for calibration, and 60 odd texts by the reference and by the artifact.
    assert list(texts.values()) == [320, 366, 366 + 160 + 30 + 120]


def test_labelled_set_gives_each_artifact_its_spearman(tiny_model: Path, output: Path, pairs: Path) -> None:
    assert all(artifact.quality.spearman is None for artifact in Manifest.read(output / "tiny-bert").artifacts)
    result = build_quick(tiny_model, output, sts=pairs, only=(*QUICK, INT8_HERE))
    assert result.rebuilt
    assert not build_quick(tiny_model, output, sts=pairs, only=(*QUICK, INT8_HERE)).rebuilt
    for artifact in Manifest.read(result.manifest.root).artifacts:
        assert artifact.quality.spearman is not None
        assert -100 <= artifact.quality.spearman <= 100


def test_corpus_is_measured_together_with_the_projects_sentences(
    tiny_model: Path, output: Path, tmp_path: Path
) -> None:
    before = Manifest.read(output / "tiny-bert").artifacts[0].quality
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the first text\nthe second\n", "utf-8")
    assert (
        build_quick(tiny_model, output, corpus=corpus).manifest.artifacts[0].quality.sentences == before.sentences + 2
    )
    assert not build_quick(tiny_model, output, corpus=corpus).rebuilt
    corpus.write_text("the first text\nanother second\n", "utf-8")
    assert build_quick(tiny_model, output, corpus=corpus).rebuilt


def test_unreadable_labelled_set_stops_before_the_toolchain_is_imported(tiny_model: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(BuildError, match=r"missing\.tsv: cannot be read"):
        build_quick(
            tiny_model,
            tmp_path / "bundles",
            sts=tmp_path / "missing.tsv",
            report_stage=lambda what, *_: stages.append(what),
        )
    assert stages == ["fetching the model"]


def test_changed_tools_build_again(tiny_model: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = pipeline._read_tool_versions()
    assert versions["onnxruntime"] == ResourceProfile.detect().engine_version("onnxruntime")
    assert versions == Manifest.read(output / "tiny-bert").built_with

    class Stop(Exception):
        pass

    def stop_after_the_first(_what: str, number: int, _count: int) -> None:
        if number:
            raise Stop

    monkeypatch.setattr(pipeline, "_read_tool_versions", lambda: versions | {"onnxruntime": "99"})
    with pytest.raises(Stop):
        build_quick(tiny_model, output, report_stage=stop_after_the_first)


def test_new_bundle_has_no_signature_and_the_result_says_that_one_was_lost(tiny_model: Path, tmp_path: Path) -> None:
    first = build_quick(tiny_model, tmp_path / "bundles")
    signature = sign(first.manifest, make_keys(tmp_path / "keys").private)
    unchanged = build_quick(tiny_model, tmp_path / "bundles")
    assert signature.exists()
    forced = build_quick(tiny_model, tmp_path / "bundles", force=True)
    assert not signature.exists()
    again = build_quick(tiny_model, tmp_path / "bundles", force=True)
    assert [result.signature_lost for result in (first, unchanged, forced, again)] == [False, False, True, False]
