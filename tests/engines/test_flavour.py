import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cifar_deploy.engines import flavour
from cifar_deploy.engines.build import build
from cifar_deploy.engines.flavour import RTX, TENSORRT, Flavour
from cifar_deploy.engines.options import Options
from cifar_deploy.errors import UserError


def test_without_a_gpu_auto_is_tensorrt_for_rtx(rtx: Flavour) -> None:
    chosen, reason = flavour.choose("auto", gpu=False)
    assert chosen is rtx
    assert "no CUDA device" in reason


@pytest.fixture(autouse=True)
def sought_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test puts in TensorRT's place is not remembered; TensorRT for RTX stays."""
    kept = flavour.seek

    def seek(name: str) -> Flavour | str:
        return kept(name) if name == RTX else kept.__wrapped__(name)

    monkeypatch.setattr(flavour, "seek", seek)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the other member of the family in its place: the classes are the same."""
    real = flavour.load(RTX).module

    def place(version: str, **changed: Any) -> None:
        module = ModuleType("tensorrt")
        vars(module).update({**vars(real), "__version__": version, **changed})
        monkeypatch.setitem(sys.modules, "tensorrt", module)

    return place


@pytest.mark.parametrize("version", ["10.13.0.35", "10.14.1", "11.0.0.dev1"])
def test_with_a_gpu_auto_is_tensorrt_where_it_imports(
    tensorrt: Callable[..., None], version: str
) -> None:
    tensorrt(version)
    chosen, reason = flavour.choose("auto", gpu=True)
    assert chosen.name == TENSORRT
    assert "installed" in reason
    assert str(chosen) == f"TensorRT {version}"
    assert chosen.major == int(version[:2])


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.9.0.34"])
def test_one_that_is_too_old_is_not_taken(tensorrt: Callable[..., None], version: str) -> None:
    tensorrt(version)
    said = f"tensorrt {version} is here, 10.13 is the oldest known"
    chosen, reason = flavour.choose("auto", gpu=True)
    assert chosen.name == RTX
    assert said in reason
    with pytest.raises(UserError, match=f"{said}; pip install"):
        flavour.choose(TENSORRT, gpu=True)


def test_a_library_that_does_not_start_is_told_in_a_line(tensorrt: Callable[..., None]) -> None:
    def refuse(log: Any) -> None:
        log.log(log.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt("11.0.0", Builder=refuse)
    chosen, _ = flavour.choose("auto", gpu=True)
    with pytest.raises(UserError, match=r"TensorRT 11\.0\.0 does not start here: CUDA.* 35; see"):
        build(chosen, b"", Path("x.onnx"), Options())


@pytest.mark.skipif(torch.cuda.is_available(), reason="it starts here")
def test_an_object_with_nothing_behind_it_is_not_taken() -> None:
    """TensorRT's own lean runtime, without a driver: to use what it gives would end the process."""
    lean = Flavour(TENSORRT, pytest.importorskip("tensorrt_lean_bindings"))
    with pytest.raises(
        UserError, match=r"TensorRT \d.* does not start here: createInferRuntime: .*CUDA"
    ):
        lean.make("Runtime", lean.log)


def test_tensorrt_needs_a_gpu_to_build() -> None:
    with pytest.raises(UserError, match="there is no CUDA device here; use --flavour tensorrt-rtx"):
        flavour.choose(TENSORRT, gpu=False)


def test_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="--flavour trt: it can be auto, tensorrt or tensorrt-rtx"):
        flavour.choose("trt", gpu=False)


def test_what_is_not_installed_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # Python's way to say: not there
    with pytest.raises(
        UserError, match=r"tensorrt is not .* pip install 'cifar-deploy\[tensorrt\]"
    ):
        flavour.load(TENSORRT)


def test_libraries_that_do_not_load_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'raise OSError("libnvinfer.so.10: cannot open shared object file")'
    (tmp_path / "tensorrt.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(UserError, match=r"does not load \(libnvinfer.so.10: cannot open"):
        flavour.load(TENSORRT)
    chosen, reason = flavour.choose("auto", gpu=True)
    assert chosen.name == RTX
    assert "does not load (libnvinfer.so.10" in reason


def test_errors_are_kept_for_the_message(rtx: Flavour) -> None:
    rtx.log.clear()
    level = rtx.module.ILogger
    rtx.log.log(level.WARNING, "a warning")
    rtx.log.log(level.ERROR, " an error\n")
    assert rtx.log.errors() == ["an error"]
    assert rtx.log.warnings() == ["a warning"]
    rtx.log.clear()
    assert rtx.log.errors() == rtx.log.warnings() == []


def test_warnings_that_come_with_every_run_do_not_fill_memory(rtx: Flavour) -> None:
    rtx.log.clear()
    for number in range(flavour.WARNINGS + 5):
        rtx.log.log(rtx.module.ILogger.WARNING, f"number {number}")
    kept = rtx.log.warnings()
    rtx.log.clear()
    assert len(kept) == flavour.WARNINGS
    assert kept[-1] == f"number {flavour.WARNINGS + 4}"


def test_the_librarys_cuda_is_that_of_its_wheel(
    rtx: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str) -> None:
        place = tmp_path / f"{name}-10.13.0.35.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 10.13\n")

    def cuda() -> str | None:
        return Flavour(TENSORRT, rtx.module).cuda

    assert rtx.cuda == "13"  # as pyproject.toml has it
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda() is None  # the operating system's, or an archive's
    install("tensorrt_rtx_cu14_libs")
    install("tensorrt_lean_cu14_libs")
    install("tensorrt_cu14_bindings")
    assert cuda() is None
    install("tensorrt_cu12_libs")
    assert cuda() == "12"
    install("tensorrt-cu13-libs")
    assert cuda() is None


def test_the_names_are_the_files_names() -> None:
    assert flavour.NAMES == (TENSORRT, RTX) == ("tensorrt", "tensorrt-rtx")
