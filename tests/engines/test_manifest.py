import json
import re
from pathlib import Path
from typing import Any

import pytest

from cifar_deploy.device import system
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.manifest import Gpu, read, refusal, runs_on
from cifar_deploy.engines.options import target, targets
from cifar_deploy.errors import UserError
from cifar_deploy.store import manifest_path, write_manifest

RTX = {"flavour": "tensorrt-rtx", "tensorrt": "1.7.1.116"}
TRT = {
    "flavour": "tensorrt",
    "tensorrt": "10.13.2.6",
    "gpu": {"name": "NVIDIA L4", "compute_capability": "8.9"},
}
ANY = {**RTX, "targets": [], "default_targets": ["8.0", "8.6", "8.9", "12.0", "12.1"]}
L4, H100 = Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA H100", "9.0")
ADA, TURING = Gpu("NVIDIA RTX 4090", "8.9"), Gpu("NVIDIA T4", "7.5")
BLACKWELL, NEWER = Gpu("NVIDIA RTX 5090", "12.0"), Gpu("a card to come", "13.0")
KNOWN = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # what TensorRT for RTX 1.7.1 builds for


@pytest.fixture
def kept(tmp_path: Path, engine: bytes) -> Path:
    """An engine with its manifest."""
    path = tmp_path / "tiny.fp32.tensorrt-rtx.engine"
    path.write_bytes(engine)
    write_manifest(path, RTX)
    return path


def test_the_manifest_of_a_whole_engine(kept: Path) -> None:
    assert read(kept).items() >= RTX.items()


def test_changed_bytes_are_told_and_trusted_only_on_demand(kept: Path) -> None:
    raw = bytearray(kept.read_bytes())
    raw[-1] ^= 1
    kept.write_bytes(raw)
    with pytest.raises(UserError, match="sha256 differs"):
        read(kept)
    assert read(kept, trust=True)["tensorrt"] == "1.7.1.116"


def test_a_truncated_engine_is_told(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(UserError, match="was changed or cut short; export it again"):
        read(kept)


def test_an_engine_without_a_manifest_is_not_loaded(kept: Path) -> None:
    manifest_path(kept).unlink()
    with pytest.raises(UserError, match=r"has no manifest .* or give --trust"):
        read(kept)
    assert read(kept, trust=True) == {"flavour": "tensorrt-rtx"}  # as its first bytes say


def test_an_engine_of_the_other_flavour_is_told(kept: Path) -> None:
    write_manifest(kept, {**RTX, "flavour": "tensorrt"})
    with pytest.raises(UserError, match="is an engine of tensorrt-rtx, and its manifest says"):
        read(kept)
    with pytest.raises(UserError, match="is an engine of tensorrt-rtx"):
        read(kept, trust=True)


def test_a_foreign_manifest_is_told(kept: Path) -> None:
    write_manifest(kept, {"flavour": "openvino"})
    with pytest.raises(UserError, match="names no flavour of TensorRT"):
        read(kept)


def test_a_missing_engine_and_a_broken_manifest_are_told(kept: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.engine"):
        read(kept.with_name("none.engine"))
    manifest_path(kept).write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read(kept)


@pytest.mark.parametrize(
    ("manifest", "version", "gpu", "reason"),
    [
        (RTX, "", None, "an engine of TensorRT for RTX 1.7.1.116 runs on a CUDA GPU; none is"),
        (RTX, "1.8.0.1", L4, "built with TensorRT for RTX 1.7.1.116, this is 1.8.0.1"),
        ({**TRT, "tensorrt": "11.4.0.1"}, "10.13.2.6", L4, "11.4.0.1, this is 10.13.2.6"),
        (TRT, "10.13.3.9", L4, "10.13.2.6, this is 10.13.3.9"),
        (TRT, "10.13.2.9", L4, "10.13.2.6, this is 10.13.2.9"),
        ({**TRT, "version_compatible": True}, "10.12.0.36", L4, "10.13.2.6, this is 10.12.0.36"),
        ({**TRT, "version_compatible": True}, "12.0.0.1", L4, "10.13.2.6, this is 12.0.0.1"),
        (
            {**TRT, "tensorrt": "11.1.0.6", "version_compatible": True},
            *("12.0.0.1", L4, "11.1.0.6, this is 12.0.0.1"),
        ),
        (TRT, "10.13.2.6", H100, "built for compute capability 8.9 .NVIDIA L4., this is 9.0"),
        (TRT, "10.13.2.6", ADA, "built for NVIDIA L4, this is NVIDIA RTX 4090"),
        (
            {**TRT, "hardware_compatibility": "same-compute-capability"},
            "10.13.2.6",
            H100,
            "compute capability 8.9 .* this is 9.0",
        ),
        (
            {**TRT, "hardware_compatibility": "ampere+"},
            "10.13.2.6",
            TURING,
            "built for Ampere and later, this is 7.5",
        ),
        (
            {**RTX, "targets": ["8.6", "8.9"]},
            "1.7.1.116",
            H100,
            r"1.7.1.116 does not support this GPU's compute capability of 9.0 \(NVIDIA H100\); run "
            "the ONNX file on it, or an engine of --flavour tensorrt$",
        ),
        (
            {**RTX, "targets": ["8.6", "8.9"]},
            "1.7.1.116",
            BLACKWELL,
            r"built for compute capability 8.6, 8.9, this is 12.0 \(NVIDIA RTX 5090\); export it "
            "again with --compute-capability 12.0$",
        ),
        (
            {**RTX, "targets": ["8.6", "8.9"]},
            "1.7.1.116",
            NEWER,
            r"this is 13.0 \(a card to come\); export it again without --compute-capability$",
        ),
        (
            ANY,
            "1.7.1.116",
            TURING,
            r"built for compute capability 8.0, .*, 12.1 and later, this is 7.5 \(NVIDIA T4\); "
            "export it again with --compute-capability 7.5 --precision fp16$",
        ),
        (ANY, "1.7.1.116", Gpu("NVIDIA V100", "7.0"), r"does not support .* 7.0 \(NVIDIA V100\)"),
        (ANY, "1.7.1.116", H100, r"does not support .* 9.0 \(NVIDIA H100\); run the ONNX file"),
    ],
)
def test_why_an_engine_cannot_run_here(
    manifest: dict[str, Any], version: str, gpu: Gpu | None, reason: str
) -> None:
    said = refusal(manifest, version, gpu, KNOWN)
    assert said
    assert re.search(reason, said)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("manifest", "version", "gpu"),
    [
        (RTX, "1.7.1.116", H100),  # of an earlier version of this program: the library is asked
        (ANY, "1.7.1.116", ADA),
        (ANY, "1.7.1.116", NEWER),
        (ANY, "1.7.1.116", Gpu("NVIDIA B200", "10.0")),  # not certain: the library is asked
        ({**ANY, "default_targets": ["8.0", "9.0"]}, "1.7.1.116", H100),  # it may learn to
        (RTX, "1.7.2.1", ADA),
        ({**RTX, "targets": ["8.6", "8.9"]}, "1.7.1.116", ADA),
        (TRT, "10.13.2.6", L4),
        ({**TRT, "version_compatible": True}, "10.13.2.6", L4),
        ({**TRT, "version_compatible": True}, "10.15.0.1", L4),
        ({**TRT, "version_compatible": True}, "11.1.0.106", L4),
        ({**TRT, "hardware_compatibility": "same-compute-capability"}, "10.13.2.6", ADA),
        ({**TRT, "hardware_compatibility": "ampere+"}, "10.13.2.6", H100),
        ({**TRT, "hardware_compatibility": "ampere+"}, "10.13.2.6", Gpu("NVIDIA A100", "8.0")),
        ({"flavour": "tensorrt"}, "10.13.2.6", L4),  # trusted, nothing known
    ],
)
def test_nothing_speaks_against_it(manifest: dict[str, Any], version: str, gpu: Gpu) -> None:
    assert refusal(manifest, version, gpu, KNOWN) is None


def test_an_engine_is_of_a_system() -> None:
    manifest = {**TRT, "system": "Linux x86_64"}
    said = refusal(manifest, "10.13.2.6", L4, KNOWN, "Linux aarch64")
    assert said == "built on Linux x86_64, this is Linux aarch64; export it again here"
    assert refusal(manifest, "10.13.2.6", L4, KNOWN, "Linux x86_64") is None
    assert refusal({**TRT, "system": system()}, "10.13.2.6", L4, KNOWN) is None
    assert refusal({**RTX, "system": None}, "1.7.1.116", L4, KNOWN, "Linux aarch64") is None


def test_the_advice_is_what_the_library_takes(rtx: Flavour) -> None:
    manifest = {**RTX, "targets": ["8.9"]}
    for here in [*targets(rtx), "5.0", "8.7", "9.0", "10.0", "13.0"]:
        said = refusal(manifest, "1.7.1.116", Gpu("a card", here), targets(rtx))
        if advised := said and re.search(r" with --compute-capability (\S+)", said):
            target(rtx, advised[1])  # an error where it does not build for that
        assert bool(advised) == (here in targets(rtx) and here != "8.9")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (RTX, "GPUs that TensorRT for RTX 1.7.1.116 supports"),
        (
            ANY,
            "compute capability 8.0, 8.6, 8.9, 12.0, 12.1 and later, "
            "the default of TensorRT for RTX 1.7.1.116",
        ),
        ({**RTX, "targets": ["8.6", "12.0"]}, "compute capability 8.6, 12.0, as asked"),
        (TRT, "NVIDIA L4, compute capability 8.9"),
        ({**TRT, "system": "Linux x86_64"}, "NVIDIA L4, compute capability 8.9, Linux x86_64"),
        ({**TRT, "hardware_compatibility": "same-compute-capability"}, "compute capability 8.9"),
        ({**TRT, "hardware_compatibility": "ampere+"}, "Ampere and later"),
        ({"flavour": "tensorrt"}, "GPUs that TensorRT supports"),
    ],
)
def test_what_an_engine_is_for_is_told(manifest: dict[str, Any], said: str) -> None:
    assert runs_on(manifest) == said


def test_the_manifest_beside_it_is_json(kept: Path) -> None:
    assert json.loads(manifest_path(kept).read_text())["file"] == kept.name


def test_it_is_the_bytes_that_will_be_loaded_which_are_checked(kept: Path) -> None:
    raw = kept.read_bytes()
    with pytest.raises(UserError, match="sha256 differs"):
        read(kept, raw=raw[:-1] + b"x")
    kept.write_bytes(b"of another export by now")
    assert read(kept, raw=raw)["tensorrt"] == "1.7.1.116"
    assert read(kept, True, raw)["flavour"] == "tensorrt-rtx"
    manifest_path(kept).unlink()
    assert read(kept, True, raw) == {"flavour": "tensorrt-rtx"}
