"""The ways in which a project takes the library, and what CMake says when something is missing."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from building import CPP, RUNTIMES, Packed, cmake, need, openvino_options, run, without
from PIL import Image

import cifar_deploy
from cifar_deploy.data.dataset import Dataset

PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(consumer LANGUAGES CXX)
{take}
find_package(OpenVINO REQUIRED COMPONENTS Runtime)  # a project may look for it, too
add_executable(minimal minimal.cpp)
target_link_libraries(minimal PRIVATE cifar_deploy::cifar_deploy)
"""
FIND = "find_package(cifar_deploy 0.1 REQUIRED)"
SUBDIRECTORY = 'add_subdirectory("${CPP}" cifar_deploy)'
FETCH = """
include(FetchContent)
FetchContent_Declare(cifar_deploy SOURCE_DIR "${CPP}/.." SOURCE_SUBDIR cpp)
FetchContent_MakeAvailable(cifar_deploy)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library was installed to; that needs no runtime."""
    need("cmake", "ninja", "c++")
    folder = tmp_path_factory.mktemp("install")
    options = [*without(*RUNTIMES), "-DCIFAR_DEPLOY_BUILD_TESTS=OFF"]
    cmake(CPP, folder / "build", [*options, "-DCIFAR_DEPLOY_BUILD_EXAMPLES=OFF"])
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.mark.parametrize("way", ["find_package", "add_subdirectory", "FetchContent"])
def test_a_project_takes_the_library(
    way: str,
    installed: Path,
    packed: Callable[[str], Packed],
    real_data: Dataset,
    tmp_path: Path,
) -> None:
    take = {"find_package": FIND, "add_subdirectory": SUBDIRECTORY, "FetchContent": FETCH}[way]
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(take=take))
    shutil.copy(CPP / "examples" / "minimal.cpp", tmp_path)
    options = [f"-DCPP={CPP}", *openvino_options(), *without(*RUNTIMES[1:])]
    said = cmake(tmp_path, tmp_path / "build", [*options, f"-DCMAKE_PREFIX_PATH={installed}"])
    assert "cifar_deploy: with OpenVINO" in said
    picture = tmp_path / "picture.ppm"
    Image.fromarray(real_data.test.images[0]).resize((100, 80)).save(picture)
    done = run(tmp_path / "build" / "minimal", packed("fp32").folder, picture)
    assert re.fullmatch(r"cat \d+\.\d %\n", done.stdout.decode())
    # What the project installs is its own.
    run("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "prefix")
    assert not list(tmp_path.glob("prefix/**/*.hpp"))
    assert b"no folder" in run(tmp_path / "build" / "minimal", "none", picture, status=2).stderr


@pytest.fixture(autouse=True)
def no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the paths that other tests take from the environment."""
    for name in ("ONNXRUNTIME_ROOT", "TENSORRT_ROOT", "TENSORRT_RTX_ROOT"):
        monkeypatch.delenv(name, raising=False)


def configured(tmp_path: Path, *options: str) -> str:
    need("cmake", "ninja", "c++")
    # As on a machine without any of them.
    bare = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("OpenVINO",)]
    done = run(
        *("cmake", "-S", CPP, "-B", tmp_path / "build", "-G", "Ninja", *bare, *options),
        status=1 if any(option.endswith("=ON") for option in options) else 0,
    )
    return " ".join((done.stdout + done.stderr).decode().split())


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("OPENVINO", "OpenVINO_DIR"),
        ("ONNXRUNTIME", "ONNXRUNTIME_ROOT"),
        ("TENSORRT", "TENSORRT_ROOT"),
        ("TENSORRT_RTX", "TENSORRT_RTX_ROOT"),
    ],
)
def test_cmake_names_the_path_to_set(option: str, path: str, tmp_path: Path) -> None:
    said = configured(tmp_path, f"-DCIFAR_DEPLOY_WITH_{option}=ON")
    assert f"CIFAR_DEPLOY_WITH_{option} is ON, and" in said
    assert f"Set {path} to the folder" in said


def test_cmake_says_what_is_missing_where_nothing_is_demanded(tmp_path: Path) -> None:
    said = configured(tmp_path)
    for path in ("OpenVINO_DIR", "ONNXRUNTIME_ROOT", "TENSORRT_ROOT", "TENSORRT_RTX_ROOT"):
        assert f"To use it: Set {path} to" in said
    assert "no runtime was found" in said


CROSS = """
set(CMAKE_FIND_ROOT_PATH "${CMAKE_CURRENT_LIST_DIR}/sysroot")
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
"""


def onnxruntime(root: Path) -> Path:
    """As a release of ONNX Runtime lies there, as far as CMake looks."""
    for file in ("include/onnxruntime_cxx_api.h", "lib/libonnxruntime.so"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_a_path_that_was_set_is_meant_also_with_a_toolchain_file(tmp_path: Path) -> None:
    release = onnxruntime(tmp_path / "release")
    (tmp_path / "cross.cmake").write_text(CROSS)
    cross = f"-DCMAKE_TOOLCHAIN_FILE={tmp_path / 'cross.cmake'}"
    assert "with ONNX Runtime" in configured(tmp_path, cross, f"-DONNXRUNTIME_ROOT={release}")


def test_another_path_is_meant_also_in_a_build_folder_that_knew_one(tmp_path: Path) -> None:
    for version in ("old", "new"):
        onnxruntime(tmp_path / version)
    configured(tmp_path, f"-DONNXRUNTIME_ROOT={tmp_path / 'old'}")
    for options in ([f"-DONNXRUNTIME_ROOT={tmp_path / 'new'}"], []):
        assert "with ONNX Runtime" in configured(tmp_path, *options)
        cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
        assert f"CIFAR_DEPLOY_ONNXRUNTIME_INCLUDE:PATH={tmp_path / 'new'}/include\n" in cache
        library = tmp_path / "new/lib/libonnxruntime.so"
        assert f"CIFAR_DEPLOY_ONNXRUNTIME_LIBRARY:FILEPATH={library}\n" in cache


def test_another_path_in_the_environment_is_meant_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("old", "new"):
        onnxruntime(tmp_path / version)
    # The last as a build calls it, from a shell that has no such variable.
    for version, known in (("old", "old"), ("new", "new"), ("", "new")):
        monkeypatch.setenv("ONNXRUNTIME_ROOT", str(tmp_path / version) if version else "")
        assert "with ONNX Runtime" in configured(tmp_path)
        cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
        assert f"CIFAR_DEPLOY_ONNXRUNTIME_INCLUDE:PATH={tmp_path / known}/include\n" in cache


def test_paths_that_were_given_themselves_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = onnxruntime(tmp_path / "release")
    given = [
        f"-DCIFAR_DEPLOY_ONNXRUNTIME_LIBRARY={release}/lib/libonnxruntime.so",
        f"-DCIFAR_DEPLOY_ONNXRUNTIME_INCLUDE={release}/include",
    ]
    for elsewhere in ("one", "another"):
        monkeypatch.setenv("ONNXRUNTIME_ROOT", str(tmp_path / elsewhere))
        assert "with ONNX Runtime" in configured(tmp_path, *given)
        given = []


def test_a_relative_path_begins_where_cmake_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime(tmp_path / "release")
    tensorrt(tmp_path / "rtx", "", "libtensorrt_rtx.so")
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    roots = ["-DONNXRUNTIME_ROOT=../release", "-DTENSORRT_RTX_ROOT=../rtx"]
    for _ in range(2):
        said = configured(tmp_path, *roots, *without("TENSORRT"))
        assert "with ONNX Runtime" in said
        assert "Set TENSORRT_RTX_ROOT" not in said


def test_the_folder_that_was_looked_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These begin in the source folder.
    monkeypatch.setenv("TENSORRT_ROOT", "../trt")
    said = configured(tmp_path, "-DONNXRUNTIME_ROOT:PATH=release")
    assert f"and lib/). It is {CPP}/release now." in said
    assert f"and lib/). It is {CPP.parent}/trt now." in said


def test_auto_in_small_letters_is_auto(tmp_path: Path) -> None:
    said = configured(tmp_path, "-DCIFAR_DEPLOY_WITH_OPENVINO=auto")
    assert "without OpenVINO. To use it: Set OpenVINO_DIR to" in said


def tensorrt(root: Path, version: str, library: str) -> Path:
    """As a release of TensorRT lies there, as far as CMake looks."""
    (root / "include").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "include" / "NvInferRuntime.h").touch()
    (root / "include" / "NvInferVersion.h").write_text(version)
    (root / "lib" / library).touch()
    return root


def test_a_tensorrt_that_is_too_old_is_none(tmp_path: Path) -> None:
    root = tensorrt(tmp_path / "8", "#define NV_TENSORRT_MAJOR 8 //!< major\n", "libnvinfer.so")
    said = configured(tmp_path, f"-DTENSORRT_ROOT={root}")
    assert f"without TensorRT 10 or later. To use it: In {root}/include is version 8." in said
    new = "#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
    root = tensorrt(tmp_path / "11", new, "libnvinfer.so")
    assert "TensorRT 10 or later" not in configured(tmp_path, f"-DTENSORRT_ROOT={root}")


def test_windows_names_the_library_by_its_version(tmp_path: Path) -> None:
    version = "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 7\n"
    root = tensorrt(tmp_path / "rtx", version, "libtensorrt_rtx_1_7.so")
    said = configured(tmp_path, f"-DTENSORRT_RTX_ROOT={root}", *without("TENSORRT"))
    # Found, and used where the CUDA toolkit is, too.
    assert "Set TENSORRT_RTX_ROOT" not in said


def test_both_tensorrts_in_one_program_are_refused(tmp_path: Path) -> None:
    both = [f"-DCIFAR_DEPLOY_WITH_TENSORRT{kind}=ON" for kind in ("", "_RTX")]
    assert "TensorRT or TensorRT for RTX, not both" in configured(tmp_path, *both)


def test_warnings_in_the_headers_are_errors(tmp_path: Path) -> None:
    # Of a copy with a narrowing conversion: what CMakeLists.txt promises holds for the headers too.
    need("cmake", "ninja", "c++")
    shutil.copytree(CPP, tmp_path / "cpp")
    header = tmp_path / "cpp" / "include" / "cifar_deploy" / "sha256.hpp"
    header.write_text(header.read_text() + "\ninline char narrow(int wide) { return wide; }\n")
    options = ["-S", tmp_path / "cpp", "-B", tmp_path / "build", "-G", "Ninja"]
    run("cmake", *options, *without(*RUNTIMES))
    done = run("cmake", "--build", tmp_path / "build", "--target", "minimal", status=1)
    assert b"-Werror" in done.stdout


def test_the_headers_compile_where_char_is_unsigned(tmp_path: Path) -> None:
    need("c++")  # as on ARM
    options = ["-std=c++17", "-funsigned-char", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    run("c++", *options, f"-I{CPP / 'include'}", CPP / "examples" / "minimal.cpp")


MACROS = (("min", "<"), ("max", ">"))


def test_the_headers_stand_the_macros_of_windows(tmp_path: Path) -> None:
    need("c++")
    headers = sorted((CPP / "include" / "cifar_deploy").glob("*.hpp"))
    standard = {
        line
        for header in headers
        for line in header.read_text().splitlines()
        if line.startswith("#include <")
    }
    macros = [f"#define {name}(a, b) ((a) {sign} (b) ? (a) : (b))" for name, sign in MACROS]
    ours = [f'#include "cifar_deploy/{header.name}"' for header in headers]
    program = tmp_path / "program.cpp"
    program.write_text("\n".join([*sorted(standard), *macros, *ours, ""]))
    run("c++", "-std=c++17", "-fsyntax-only", f"-I{CPP / 'include'}", program)


def test_the_version_is_the_programs() -> None:
    text = (CPP / "CMakeLists.txt").read_text()
    found = re.search(r"project\(cifar_deploy VERSION ([\d.]+)", text)
    assert found is not None
    version = cifar_deploy.__version__.split("+")[0]
    assert found[1] == version
    header = (CPP / "include" / "cifar_deploy" / "version.hpp").read_text()
    assert f'#define CIFAR_DEPLOY_VERSION "{version}"' in header
    assert f"JOIN(v{version.replace('.', '_')}," in header


def test_parts_of_a_program_with_other_runtimes_keep_apart(tmp_path: Path) -> None:
    # Each of two libraries may hold the headers: the linker must not take one's for both.
    need("c++", "nm")
    names = set[str]()
    for runtime in ("OPENVINO", "ONNXRUNTIME", "TENSORRT", "TENSORRT_RTX"):
        code = tmp_path / "name.cpp"
        code.write_text('#include "cifar_deploy/version.hpp"\nCIFAR_DEPLOY_NAMESPACE\n')
        option = f"-DCIFAR_DEPLOY_HAS_{runtime}=1"
        done = run("c++", "-E", "-P", option, f"-I{CPP / 'include'}", code)
        names.add(done.stdout.decode().strip())
    version = f"v{cifar_deploy.__version__.replace('.', '_')}"
    assert names == {
        f"{version}_{n}" for n in ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx")
    }
    minimal = tmp_path / "minimal.o"
    source = CPP / "examples" / "minimal.cpp"
    run("c++", "-std=c++17", "-c", f"-I{CPP / 'include'}", source, "-o", minimal)
    symbols = run("nm", "-C", "--defined-only", minimal).stdout.decode().splitlines()
    ours = [line.split(maxsplit=2)[2] for line in symbols if " cifar_deploy::" in line]
    ours = [name for name in ours if name.startswith("cifar_deploy::")]
    assert len(ours) > 20
    assert [name for name in ours if not name.startswith(f"cifar_deploy::{version}::")] == []


def test_the_second_of_two_headers_that_differ_is_told(tmp_path: Path) -> None:
    need("cmake", "ninja")
    for name in ("first", "same", "other"):
        for part in ("cmake", "include"):
            shutil.copytree(CPP / part, tmp_path / name / part)
    header = tmp_path / "other" / "include" / "cifar_deploy" / "types.hpp"
    header.write_text(header.read_text() + "// newer\n")
    for second, told in (("same", False), ("other", True)):
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.21)\nproject(two LANGUAGES CXX)\n"
            f"include(first/cmake/CifarDeploy.cmake)\ninclude({second}/cmake/CifarDeploy.cmake)\n"
        )
        options = ["-S", tmp_path, "-B", tmp_path / second / "build", "-G", "Ninja"]
        said = run("cmake", *options, *without(*RUNTIMES)).stderr.decode()
        assert ("which differ" in " ".join(said.split())) == told


def test_the_minimal_program_is_minimal() -> None:
    lines = (CPP / "examples" / "minimal.cpp").read_text().splitlines()
    assert len(lines) <= 40
