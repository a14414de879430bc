"""A package on a machine without this repository: its README's commands, and what they answer."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from building import need, openvino_options
from PIL import Image
from processes import call
from workshop import NAME

from cifar_deploy import load


def commands(readme: str, images: Path) -> list[str]:
    """The commands in the README's code blocks on `images`, but for installing and the picture."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", readme)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    said = [line for line in lines if not line.startswith("pip ") and "cat.jpg" not in line]
    return [line.replace("IMAGES", str(images)) for line in said]


@pytest.fixture(scope="module")
def built(
    proved: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An unpacked package in which its README's commands were run, and what they printed."""
    need("cmake", "make", "c++")
    openvino_options()  # or skip: the README finds the wheel by itself
    place = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(proved)
        patch.setenv("CIFAR_DEPLOY_DATA", str(pictures))
        patch.delenv("CIFAR_DEPLOY_MODELS", raising=False)
        assert call(patch, "package", NAME, "--target", "cpp", "--out", place / "it.tar.gz") == 0
        fp16 = ("--precision", "fp16", "--out", place / "fp16")
        assert call(patch, "package", NAME, *fp16) == 0
    with tarfile.open(place / "it.tar.gz") as archive:
        archive.extractall(place, filter="data")
    folder = place / f"{NAME}-package"
    said = commands((folder / "README.md").read_text(), pictures / "test")
    assert len(said) == 4  # configure, build, self-test, the whole test set
    # `python` of the README is ours; nothing else here knows of this repository.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", "\n".join(said)],
        cwd=folder,
        env={"PATH": path, "HOME": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def classify(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(program / "build" / "classify"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def test_the_readmes_commands_end_in_a_pass(built: tuple[Path, str]) -> None:
    _, printed = built
    assert "warning" not in printed.lower()
    assert re.search(r"(?m)^PASS: 64 images, .*ONNX Runtime", printed)
    assert re.search(r"(?m)^PASS: [1-9]\d+ images, .* % right .* were by ONNX Runtime", printed)


def test_fp16_passes_too(built: tuple[Path, str]) -> None:
    folder, _ = built
    done = classify(folder, folder.parent / "fp16", "--self-test")
    assert done.returncode == 0, done
    assert done.stdout.startswith("PASS: 64 images")


def test_both_languages_give_the_same_answer(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = built
    picture = tmp_path / "large.png"
    pixels = np.random.default_rng(3).integers(0, 256, (70, 110, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    (mine,) = load(folder, "cpu").predict(picture)
    said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in mine.top(3))
    done = classify(folder, folder, picture)
    assert done.stdout == f"{picture}: {said}\n", done


def test_the_self_test_tells_which_image_differs(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = built
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed, ignore=shutil.ignore_patterns("build"))
    path = changed / "vectors" / "logits.f32"
    before = path.read_bytes()
    logits = np.frombuffer(before, "<f4").reshape(64, -1).copy()
    logits[41] = logits[41][::-1]
    path.write_bytes(logits.tobytes())
    assert classify(folder, changed, "--self-test").returncode == 2  # the sha256 differs
    manifest = changed / "manifest.txt"
    sums = [hashlib.sha256(data).hexdigest() for data in (before, logits.tobytes())]
    manifest.write_text(manifest.read_text().replace(*sums))
    done = classify(folder, changed, "--self-test")
    assert done.returncode == 1
    assert "image 41" in done.stdout + done.stderr


def test_a_runtime_that_is_missing_is_told(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = built
    configure = ["cmake", "-S", str(folder), "-B", str(tmp_path / "build")]
    off = ["-D", "CIFAR_DEPLOY_WITH_OPENVINO=OFF", "-D", "CIFAR_DEPLOY_WITH_ONNXRUNTIME=OFF"]
    done = subprocess.run([*configure, *off], capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs OpenVINO or ONNX Runtime" in " ".join(done.stderr.split())
