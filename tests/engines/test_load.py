import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from gpus import supported
from processes import python

from cifar_deploy.disk import sha256_of
from cifar_deploy.engines import cache, load
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.load import Opened, deserialise, gpu_of, open_engine, refit
from cifar_deploy.engines.manifest import Gpu
from cifar_deploy.errors import UserError
from cifar_deploy.store import manifest_path, write_manifest

CPU = torch.device("cpu")


@pytest.fixture
def kept(tmp_path: Path, engine: bytes, rtx: Flavour) -> Path:
    path = tmp_path / "tiny.fp32.tensorrt-rtx.engine"
    path.write_bytes(engine)
    write_manifest(path, {"flavour": rtx.name, "tensorrt": rtx.version, "targets": []})
    return path


def test_without_a_gpu_that_is_the_reason(kept: Path) -> None:
    assert gpu_of(CPU) is None
    with pytest.raises(UserError, match="runs on a CUDA GPU; none is here") as caught:
        open_engine(kept, CPU)
    assert "\n" not in str(caught.value)


def test_the_bytes_are_checked_before_the_machine(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(UserError, match="sha256 differs"):
        open_engine(kept, CPU)
    manifest_path(kept).unlink()
    with pytest.raises(UserError, match="has no manifest"):
        open_engine(kept, CPU)
    with pytest.raises(UserError, match="runs on a CUDA GPU"):
        open_engine(kept, CPU, trust=True)


@pytest.mark.parametrize("length", [0, 10, 64, 1000])
def test_what_the_library_finds_invalid_is_told_in_a_line(
    length: int, kept: Path, engine: bytes, rtx: Flavour
) -> None:
    with pytest.raises(UserError, match=f"{kept}: {rtx} ") as caught:
        deserialise(rtx, engine[:length], kept, {})
    assert "\n" not in str(caught.value)


def test_rubbish_is_malformed(kept: Path, rtx: Flavour) -> None:
    with pytest.raises(UserError, match="invalid here: malformed engine; export it again"):
        deserialise(rtx, b"rubbish " * 100, kept, {})


def test_a_stripped_engine_wants_the_onnx_file_it_was_built_from(
    tmp_path: Path, rtx: Flavour
) -> None:
    onnx = tmp_path / "tiny.fp32.onnx"
    path = tmp_path / "tiny.fp32.tensorrt-rtx.engine"

    def opened(sha256: str) -> Opened:
        source = {"file": onnx.name, "sha256": sha256}
        return Opened(rtx, None, None, {"stripped": True, "onnx": source})

    with pytest.raises(UserError, match=r"has no weights in it, and .*tiny.fp32.onnx to refit"):
        refit(opened("0" * 64), path)
    onnx.write_bytes(b"another")
    with pytest.raises(UserError, match=r"was built from another tiny.fp32.onnx"):
        refit(opened("0" * 64), path)
    outside = Opened(rtx, None, None, {"onnx": {"file": "../../etc/passwd"}})
    with pytest.raises(UserError, match=f"and {tmp_path / 'passwd'} to refit"):
        refit(outside, path)
    # With the right file the library is asked, and only then.
    with pytest.raises(TypeError, match="Refitter"):
        refit(opened(sha256_of(onnx)), path)


@pytest.mark.parametrize(
    ("diagnostic", "logged", "told"),
    [
        # As version 1.7.1.116 answered on an H200, compute capability 9.0.
        ("UNSUPPORTED_CC", "", r"does not support this GPU's compute capability; run the ONNX"),
        ("OLD_CUDA_DRIVER", "driver 570", r"here: old cuda driver; it says: driver 570$"),
    ],
)
def test_what_another_export_does_not_mend_is_told(
    kept: Path,
    engine: bytes,
    rtx: Flavour,
    monkeypatch: pytest.MonkeyPatch,
    diagnostic: str,
    logged: str,
    told: str,
) -> None:
    bits = int(getattr(rtx.module.EngineInvalidityDiagnostics, diagnostic))

    class Runtime(rtx.module.Runtime):  # type: ignore[misc, name-defined]
        """The library's, on a machine that it does not support."""

        def get_engine_validity(self, _: bytes) -> Any:
            if logged:
                rtx.log.log(rtx.module.ILogger.ERROR, logged)
            return rtx.module.EngineValidity.INVALID, bits

    monkeypatch.setattr(rtx.module, "Runtime", Runtime)
    with pytest.raises(UserError, match=told) as caught:
        deserialise(rtx, engine, kept, {})
    assert "export it again" not in str(caught.value)


def test_a_gpu_that_the_engine_was_not_built_for_is_told_the_way_out(
    kept: Path, engine: bytes, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runtime(rtx.module.Runtime):  # type: ignore[misc, name-defined]
        """The library's, on a GPU that is not among the default targets."""

        def get_engine_validity(self, _: bytes) -> Any:
            trt = rtx.module
            return trt.EngineValidity.INVALID, int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC)

    monkeypatch.setattr(rtx.module, "Runtime", Runtime)
    said = r"not built for compute capability 7.5 \(NVIDIA T4\); .* --compute-capability 7.5"
    with pytest.raises(UserError, match=said):
        deserialise(rtx, engine, kept, {}, Gpu("NVIDIA T4", "7.5"))
    with pytest.raises(UserError, match="does not support this GPU's compute capability"):
        deserialise(rtx, engine, kept, {}, Gpu("NVIDIA H200", "9.0"))


@pytest.mark.parametrize("told_by", ["the header's check", "the log"])
def test_an_engine_too_large_for_the_gpu_is_told_with_the_need(
    told_by: str, kept: Path, engine: bytes, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = rtx.module
    few = int(trt.EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY)

    class Runtime(trt.Runtime):  # type: ignore[misc, name-defined]
        """The library's, on a GPU whose memory others have."""

        def get_engine_validity(self, _: bytes) -> Any:
            valid = trt.EngineValidity
            return (valid.VALID, 0) if told_by == "the log" else (valid.INVALID, few)

        def deserialize_cuda_engine(self, _: bytes) -> None:
            said = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
            rtx.log.log(trt.ILogger.ERROR, said)

    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (12 << 20, 8192 << 20))
    large = engine + bytes(30 << 20)
    with pytest.raises(UserError) as caught:
        deserialise(rtx, large, kept, {})
    assert str(caught.value) == (
        f"{kept}: the GPU's memory does not hold the engine: it needs 30 MiB or more, "
        "12 of 8,192 MiB are free; close what else runs there"
    )


@pytest.mark.gpu
def test_a_whole_engine_is_opened(kept: Path) -> None:
    with supported():
        assert open_engine(kept, torch.device("cuda", 0)).engine.num_io_tensors == 2


def test_a_cache_is_used_only_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep/kernels.cache"
    assert cache.read(path) == b""
    cache.write(path, b"first")
    cache.write(path, b"kernels")
    assert cache.read(path) == b"kernels"
    path.write_bytes(b"changed")
    assert cache.read(path) == b""
    cache.write(path, b"kernels")
    manifest_path(path).unlink()
    assert cache.read(path) == b""


def test_a_disk_that_refuses_a_cache_is_told(tmp_path: Path) -> None:
    path = tmp_path / "kernels.cache"
    manifest_path(path).mkdir()  # what cannot be removed as a file can
    with pytest.raises(UserError, match=r"cannot write .*kernels\.cache"):
        cache.write(path, b"kernels")


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_cache_whose_writing_was_killed_is_made_anew(
    tmp_path: Path, there: bool, moved: int
) -> None:
    path = tmp_path / "timing.cache"
    if there:
        cache.write(path, b"old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from cifar_deploy.engines import cache\n"
        "path, left, replace = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path.replace\n"
        "def killed(part, target):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return replace(part, target)\n"
        "pathlib.Path.replace = killed\n"
        "cache.write(path, b'new')\n"
    )
    done = python("-c", code, path, str(moved))
    assert done.returncode == (0 if moved == 2 else -signal.SIGKILL), done.stderr
    assert cache.read(path) == (b"old" if there else b"", b"", b"new")[moved]
    cache.check(path)
    cache.write(path, b"anew")
    assert cache.read(path) == b"anew"


def test_a_cache_whose_manifest_is_no_json_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    cache.write(path, b"timings")
    for damaged in (b"", b"{", b"\xff"):
        manifest_path(path).write_bytes(damaged)
        assert cache.read(path) == b""
        cache.check(path)
    manifest_path(path).write_text("[]")  # of whatever program
    with pytest.raises(UserError, match="is no cache of this program's"):
        cache.check(path)


def test_only_a_cache_or_a_new_file_can_become_one(tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "deep/timing.cache"
    cache.check(path)
    assert not path.parent.exists()
    cache.write(path, b"timings")
    cache.check(path)
    foreign = tmp_path / "model.safetensors"
    foreign.write_bytes(b"weights")
    for file in (foreign, kept):  # the other has a manifest, of an engine
        with pytest.raises(UserError, match=f"{file} is there and is no cache"):
            cache.check(file)
    with pytest.raises(UserError, match=r"cannot write .*safetensors"):
        cache.check(foreign / "timing.cache")


def test_what_is_deserialised_is_what_was_checked(
    kept: Path, engine: bytes, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[bytes] = []

    def meanwhile(_device: torch.device) -> Gpu:
        kept.write_bytes(b"put there after the check")
        return Gpu("a card", "8.9")

    def deserialise(_flavour: Flavour, raw: bytes, *_more: object) -> Opened:
        handed.append(raw)
        return Opened(rtx, None, None, {})

    monkeypatch.setattr(load, "gpu_of", meanwhile)
    monkeypatch.setattr(load, "deserialise", deserialise)
    open_engine(kept, CPU)
    assert handed == [engine]
    known = {"flavour": rtx.name, "sha256": hashlib.sha256(engine).hexdigest()}
    with pytest.raises(UserError, match="was changed while it was opened"):
        open_engine(kept, CPU, known=known)


def test_without_a_home_folder_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_011)  # which has no account
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        cache.folder()


def test_caches_lie_where_the_system_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "cifar-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache/cifar-deploy"
