"""The options of a load: every bad value is an InputError that names the value."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstvec import InputError, LoadingStrategy, OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL, OUTPUTS, Options, check_output, make_options


def test_the_defaults_are_those_of_the_record() -> None:
    made = make_options()
    assert made == Options(working_folder=os.getcwd())
    assert made.to_dict() == {
        "model_name": DEFAULT_MODEL,
        "strategy": "lazy",
        "device": None,
        "enable_quantization": False,
        "output": "numpy",
        "min_quality": None,
        "require_signature": None,
        "artifact": None,
        "working_folder": os.getcwd(),
    }


def test_every_option_but_the_working_folder_is_an_argument_with_the_same_default() -> None:
    parameters = inspect.signature(make_options).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {name: value for name, value in Options().to_dict().items() if name != "working_folder"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model_name", "org/model", "org/model"),
        ("model_name", Path("a/b"), "a/b"),
        ("strategy", "CACHED", "cached"),
        ("strategy", LoadingStrategy.QUANTIZED, "quantized"),
        *(("device", device, device) for device in (None, "cpu", "cuda", "cuda:0", "cuda:12", "mps")),
        ("enable_quantization", True, True),
        *(("output", output, output) for output in OUTPUTS),
        *(("min_quality", quality, quality) for quality in (None, -1, 0, 1, 0.97, -1.0, 1.0)),
        ("require_signature", None, None),
        ("require_signature", "/keys/key.pub", "/keys/key.pub"),
        ("require_signature", Path("/keys/../key.pub"), "/key.pub"),
        ("artifact", "onnx-fp32", "onnx-fp32"),
    ],
)
def test_a_usable_value_is_kept(name: str, value: Any, expected: object) -> None:
    assert getattr(make_options(**{name: value}), name) == expected


BAD: dict[str, tuple[object, ...]] = {
    "model_name": ("", 1, None, b"model", ["model"]),
    "strategy": ("eager", "", None, 3, b"lazy", ["lazy"]),
    "device": ("", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:١", "cpu:0", "mps:0", "cuda:0:1", 0, b"cpu", True),
    "enable_quantization": (0, 1, None, "yes", "False", []),
    "output": ("", "torch", "NUMPY", None, 1, b"list", ["list"], np.array(["list", "numpy"])),
    "min_quality": (1.01, -1.01, float("nan"), float("inf"), "0.9", True, False, [0.9]),
    "require_signature": ("", b"key", 1, False, True, ()),
    "artifact": ("", 1, b"onnx-fp32", ["onnx-fp32"], False),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}={value!r}") for name, values in BAD.items() for value in values],
)
def test_a_bad_value_is_an_input_error_that_names_the_option_and_the_value(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        make_options(**{name: value})
    assert repr(value) in str(caught.value)
    assert name in str(caught.value)


def test_every_option_has_bad_values_here() -> None:
    assert [*BAD] == [name for name in Options().to_dict() if name != "working_folder"]


@pytest.mark.parametrize("name", [*BAD])
def test_the_loader_refuses_the_same_values(name: str) -> None:
    with pytest.raises(InputError, match=name):
        OptimizedEmbeddingLoader(**{name: BAD[name][0]})  # type: ignore[arg-type]


def test_a_lone_output_is_checked_too() -> None:
    assert [check_output(output) for output in OUTPUTS] == [*OUTPUTS]
    with pytest.raises(InputError, match="unknown output 'torch': use one of numpy, list, buffer"):
        check_output("torch")


def test_a_relative_key_and_the_working_folder_are_those_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make_options("./model", require_signature="key.pub")
    monkeypatch.chdir("/")
    assert (made.model_name, made.working_folder) == ("./model", str(tmp_path))
    assert made.require_signature == str(tmp_path / "key.pub")


def test_where_the_working_folder_is_gone_only_a_relative_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    assert make_options().working_folder == ""
    assert make_options(require_signature="/key.pub").require_signature == "/key.pub"
    with pytest.raises(InputError, match=r"require_signature 'key\.pub': No such file or directory; give an absolute"):
        make_options(require_signature="key.pub")
