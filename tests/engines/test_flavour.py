import sys
from pathlib import Path

import pytest

from cifar_deploy.engines import flavour
from cifar_deploy.engines.flavour import RTX, TENSORRT, Flavour
from cifar_deploy.errors import UserError


def test_without_a_gpu_auto_is_tensorrt_for_rtx(rtx: Flavour) -> None:
    chosen, reason = flavour.choose("auto", gpu=False)
    assert chosen is rtx
    assert "no CUDA device" in reason


def test_with_a_gpu_auto_is_tensorrt_where_it_imports(
    rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    flavour.load.cache_clear()
    # The other member of the family stands in: its classes are the same.
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.module)
    try:
        chosen, reason = flavour.choose("auto", gpu=True)
        assert chosen.name == TENSORRT
        assert "installed" in reason
        assert str(chosen) == f"TensorRT {rtx.version}"
    finally:
        flavour.load.cache_clear()


def test_tensorrt_needs_a_gpu_to_build() -> None:
    with pytest.raises(UserError, match="there is no CUDA device here; use --flavour tensorrt-rtx"):
        flavour.choose(TENSORRT, gpu=False)


def test_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="--flavour trt: it can be auto, tensorrt or tensorrt-rtx"):
        flavour.choose("trt", gpu=False)


def test_what_is_not_installed_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    flavour.load.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # Python's way to say: not there
    with pytest.raises(
        UserError, match=r"tensorrt is not .* pip install 'cifar-deploy\[tensorrt\]"
    ):
        flavour.load(TENSORRT)


def test_libraries_that_do_not_load_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flavour.load.cache_clear()
    text = 'raise OSError("libnvinfer.so.10: cannot open shared object file")'
    (tmp_path / "tensorrt.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(UserError, match=r"does not load \(libnvinfer.so.10: cannot open"):
        flavour.load(TENSORRT)


def test_errors_are_kept_for_the_message(rtx: Flavour) -> None:
    rtx.log.clear()
    level = rtx.module.ILogger
    rtx.log.log(level.WARNING, "a warning")
    rtx.log.log(level.ERROR, " an error\n")
    assert rtx.log.errors() == ["an error"]
    rtx.log.clear()
    assert rtx.log.errors() == []


def test_the_names_are_the_files_names() -> None:
    assert flavour.NAMES == (TENSORRT, RTX) == ("tensorrt", "tensorrt-rtx")
