"""The backends whose headers are on no package index: run where their folders are given.

ONNXRUNTIME_ROOT: a release of ONNX Runtime with include/, and lib/ with libonnxruntime.so.1, which
may be a link to the wheel's (site-packages/onnxruntime/capi).
TENSORRT_ROOT: TensorRT, include/ as in github.com/NVIDIA/TensorRT, and lib/ where it is to run.
TENSORRT_RTX_ROOT: TensorRT for RTX, whose library the wheel tensorrt_rtx_cu13_libs has.
CIFAR_DEPLOY_ENGINE_PACKAGE: what `cifar-deploy package MODEL --target cpp --format trt` wrote.
TensorRT also needs the CUDA toolkit, in CUDA_HOME or /usr/local/cuda.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import CPP, RUNTIMES, WARNINGS, Packed, cmake, need, run, without

from cifar_deploy.data.dataset import Dataset
from cifar_deploy.device import system
from cifar_deploy.engines.flavour import RTX, Flavour
from cifar_deploy.engines.manifest import Gpu, refusal
from cifar_deploy.engines.options import targets
from cifar_deploy.export.onnx_file import PRECISIONS

CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def given(variable: str) -> Path:
    """The path in `variable`; the test is skipped without it."""
    if not os.environ.get(variable):
        pytest.skip(f"needs {variable}: see the top of this file")
    return Path(os.environ[variable]).resolve()


@pytest.fixture(scope="session")
def onnxruntime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `classify` and `probe`, with ONNX Runtime alone; built without warnings."""
    root = given("ONNXRUNTIME_ROOT")
    build = tmp_path_factory.mktemp("onnxruntime") / "build"
    options = [f"-DONNXRUNTIME_ROOT={root}", "-DCIFAR_DEPLOY_WITH_ONNXRUNTIME=ON"]
    others = without(*(name for name in RUNTIMES if name != "ONNXRUNTIME"))
    cmake(CPP, build, [*options, *others], "classify", "probe")
    return build / "bin"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnx_runtime_from_cpp_is_onnx_runtime_from_python(
    precision: str, onnxruntime: Path, packed: Callable[[str], Packed], real_data: Dataset
) -> None:
    package = packed(precision)
    done = run(onnxruntime / "classify", package.folder, "--self-test")
    assert done.stdout.startswith(b"PASS: 64 images")
    assert b"(ONNX Runtime 1." in done.stdout
    images = real_data.test.images[:1000]
    command = (onnxruntime / "probe", "logits", package.folder, "onnxruntime", 64)
    raw = run(*command, given=images.tobytes()).stdout
    found, wanted = np.frombuffer(raw, np.float32).reshape(1000, 10), package.logits(images)
    assert np.array_equal(found.argmax(1), wanted.argmax(1))
    assert np.abs(found - wanted).max() < 1e-3


def test_onnx_runtime_allocates_nothing_of_ours(
    onnxruntime: Path, packed: Callable[[str], Packed]
) -> None:
    done = run(onnxruntime / "probe", "allocations", packed("fp32").folder, "onnxruntime")
    counted = json.loads(done.stdout)
    assert counted["batches"]["program"] == counted["batches_resized"]["program"] == 0


def test_full_memory_is_told_and_survived(
    onnxruntime: Path, packed: Callable[[str], Packed]
) -> None:
    done = run(onnxruntime / "probe", "memory", packed("fp32").folder, "onnxruntime")
    told = r"8 ONNX Runtime cannot run a batch of \d+: .*; use smaller batches\n0 \n"
    assert re.fullmatch(told, done.stdout.decode())


def test_onnx_runtimes_refusals(onnxruntime: Path, packed: Callable[[str], Packed]) -> None:
    command = (onnxruntime / "classify", packed("fp32").folder, "--self-test")
    said = run(*command, "--device", "gpu", status=2).stderr
    assert b"ONNX Runtime takes auto, cpu, cuda or cuda:N" in said
    said = run(*command, "--device", "cuda:99", status=2).stderr
    assert b"ONNX Runtime cannot load model.onnx on cuda:99" in said
    said = run(*command, "--backend", "openvino", status=2).stderr
    assert b"-DCIFAR_DEPLOY_WITH_OPENVINO=ON" in said


@pytest.mark.parametrize("flavour", ["TENSORRT", "TENSORRT_RTX"])
def test_tensorrt_compiles_without_warnings(flavour: str, tmp_path: Path) -> None:
    root = given(f"{flavour}_ROOT")
    need("c++")
    headers = ["-isystem", root / "include", "-isystem", CUDA / "include"]
    define = f"-DCIFAR_DEPLOY_HAS_{flavour}=1"
    source = CPP / "examples" / "classify.cpp"
    command = ["c++", "-std=c++17", "-O1", *WARNINGS, f"-I{CPP / 'include'}", *headers, define]
    done = run(*command, "-c", source, "-o", tmp_path / "classify.o")
    assert done.stderr == b""


@pytest.fixture(scope="session")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classify` with TensorRT, or with TensorRT for RTX where that is what is given."""
    flavour = "TENSORRT" if os.environ.get("TENSORRT_ROOT") else "TENSORRT_RTX"
    root = given(f"{flavour}_ROOT")
    if not (root / "lib").exists():
        pytest.skip(f"needs the library, in {root / 'lib'}")
    build = tmp_path_factory.mktemp("tensorrt") / "build"
    options = [f"-D{flavour}_ROOT={root}", f"-DCIFAR_DEPLOY_WITH_{flavour}=ON"]
    options += [f"-DCUDAToolkit_ROOT={CUDA}"]
    others = without(*(name for name in RUNTIMES if name != flavour))
    cmake(CPP, build, [*options, *others], "classify", "benchmark")
    return build / "bin"


def engine_package(packed: Packed, folder: Path, build: Path, **changes: str) -> Path:
    """A package whose manifest speaks of an engine, for refusals before an engine is looked at."""
    lines = dict(
        line.split(" ", 1) for line in (packed.folder / "manifest.txt").read_text().splitlines()
    )
    cache = (build.parent / "CMakeCache.txt").read_text()
    rtx = "CIFAR_DEPLOY_WITH_TENSORRT_RTX:STRING=ON" in cache
    lines |= {"backend": "tensorrt-rtx" if rtx else "tensorrt", "compute_capability": "any"}
    lines |= {"tensorrt": "0.0.0.1", "profiles": "1:128:1024", **changes}
    folder.mkdir()
    for name in ("model.onnx", "labels.txt"):
        (folder / name).write_bytes((packed.folder / name).read_bytes())
    (folder / "manifest.txt").write_text("".join(f"{k} {v}\n" for k, v in lines.items()))
    return folder


def test_tensorrt_refuses_engines_of_another_version_or_gpu(
    tensorrt: Path, packed: Callable[[str], Packed], tmp_path: Path
) -> None:
    def refused(folder: Path) -> str:
        return run(tensorrt / "classify", folder, "--self-test", status=2).stderr.decode()

    said = refused(engine_package(packed("fp32"), tmp_path / "version", tensorrt))
    assert "was built by TensorRT 0.0.0.1, and an engine runs only with the version" in said
    found = re.search(r"this program has TensorRT.* (\d+\.\d+\.\d+):", said)
    assert found is not None
    other = {"tensorrt": found[1], "system": "Linux s390x"}
    said = refused(engine_package(packed("fp32"), tmp_path / "system", tensorrt, **other))
    assert f"model.onnx was built on Linux s390x, and this is {system()}: export" in said
    other = {"tensorrt": found[1], "system": system(), "compute_capability": "1.1"}
    said = refused(engine_package(packed("fp32"), tmp_path / "gpu", tensorrt, **other))
    # Without a GPU that is what is told.
    assert "was built for GPUs of compute capability 1.1" in said or "needs an NVIDIA GPU" in said


def test_what_is_advised_for_another_gpu_is_what_validate_advises(
    rtx: Flavour, tmp_path: Path
) -> None:
    root = given("TENSORRT_RTX_ROOT")
    need("c++")
    gpus = ["7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1", "12.2", "13.0"]
    source, program = tmp_path / "advice.cpp", tmp_path / "advice"
    calls = [f"{{{gpu.replace('.', ', ')}}}" for gpu in gpus]
    source.write_text(f"""
#include <cifar_deploy/backends/tensorrt.hpp>
#include <iostream>
int main() {{
    const int gpus[][2] = {{{", ".join(calls)}}};
    for (const auto& gpu : gpus) {{
        std::cout << cifar_deploy::detail::other_engine("it", gpu[0], gpu[1]) << "\\n";
    }}
}}
""")
    headers = ["-isystem", root / "include", "-isystem", CUDA / "include", f"-I{CPP / 'include'}"]
    define = "-DCIFAR_DEPLOY_HAS_TENSORRT_RTX=1"
    run("c++", "-std=c++17", *WARNINGS, *headers, define, source, "-o", program)
    said = dict(zip(gpus, run(program).stdout.decode().splitlines(), strict=True))
    # An engine for no GPU that there is, so that every one is refused.
    manifest = {"flavour": RTX, "tensorrt": rtx.version, "targets": ["1.1"]}
    for gpu, advice in said.items():
        refused = refusal(manifest, rtx.version, Gpu("a GPU", gpu), targets(rtx)) or ""
        for words in ("does not support this GPU", "without --compute-capability"):
            assert (words in advice) == (words in refused)
        named = [text.partition("with --")[2] for text in (advice, refused)]
        assert named[0] == named[1]


@pytest.mark.gpu
def test_an_engine_gives_the_vectors_answers(tensorrt: Path) -> None:
    package = given("CIFAR_DEPLOY_ENGINE_PACKAGE")
    done = run(tensorrt / "classify", package, "--self-test")
    assert done.stdout.startswith(b"PASS: 64 images")
    command = (tensorrt / "benchmark", package, "--json", "--seconds", "1", "--batch", "1,64,7")
    sweep = json.loads(run(*command).stdout)["sweep"]
    assert [timing["batch"] for timing in sweep] == [1, 64, 7]
    assert sweep[1]["images_per_second"] > sweep[0]["images_per_second"]
