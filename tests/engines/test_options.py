from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_deploy.engines.build import build
from cifar_deploy.engines.flavour import Flavour
from cifar_deploy.engines.options import (
    Options,
    Profile,
    capabilities,
    check,
    default_targets,
    hardware,
    target,
    targets,
)
from cifar_deploy.errors import UserError


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("1/128/1024", Profile(1, 128, 1024)),
        ("2:4:8", Profile(2, 4, 8)),
        ("32", Profile(32, 32, 32)),
        ("1/1/1", Profile(1, 1, 1)),
    ],
)
def test_profiles_are_read(text: str, profile: Profile) -> None:
    assert Profile.parse(text) == profile


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0/1/2", "at least 1 image"),
        ("0", "at least 1 image"),
        ("8/4/16", "min <= opt <= max"),
        ("1/8/4", "min <= opt <= max"),
        ("1/2", "write min/opt/max"),
        ("1/2/3/4", "write min/opt/max"),
        ("", "write min/opt/max"),
        ("-1/2/3", "write min/opt/max"),
        ("a/b/c", "write min/opt/max"),
        ("1/2/99999999", "is no batch"),
    ],
)
def test_bad_profiles_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"workspace": 0}, "--workspace 0: it is in MiB"),
        ({"workspace": 1 << 50}, "it is in MiB, from 1 to 16777216"),
        ({"level": 6}, "goes from 0 to 5"),
        ({"hardware_compatibility": "all"}, "it can be ampere"),
        ({"version_compatible": True}, "--version-compatible is TensorRT's"),
        ({"hardware_compatibility": "ampere+"}, "--hardware-compatibility is TensorRT's"),
        ({"timing_cache": Path("t")}, "--timing-cache-file is TensorRT's"),
        ({"strip_weights": True}, "--strip-weights: .* only with a CUDA device"),
        ({"layer_info": True}, "--export-layer-info: .* only with a CUDA device"),
        ({"compute_capabilities": ("9.0",)}, r"--compute-capability 9.0: .* 8.6, 8.9, 12.0"),
        ({"compute_capabilities": ("8.6", "x")}, "--compute-capability x"),
    ],
)
def test_what_rtx_cannot_do_without_a_gpu_is_refused(
    asked: dict[str, Any], reason: str, rtx: Flavour
) -> None:
    with pytest.raises(UserError, match=reason):
        check(Options(**asked), rtx, gpu=False)


def test_what_tensorrt_alone_can_do_passes(rtx: Flavour) -> None:
    asked = Options(timing_cache=Path("t"), version_compatible=True, workspace=1 << 24)
    check(asked, Flavour("tensorrt", rtx.module), gpu=True)


def test_what_it_can_do_passes(rtx: Flavour) -> None:
    check(Options(), rtx, gpu=False)
    check(Options(workspace=64, level=5, compute_capabilities=("8.6", "12.0")), rtx, gpu=False)
    check(Options(strip_weights=True, layer_info=True), rtx, gpu=True)


def test_without_weights_it_builds_for_one_target(rtx: Flavour) -> None:
    check(Options(strip_weights=True, compute_capabilities=("8.6",)), rtx, gpu=True)
    with pytest.raises(UserError, match="--strip-weights takes one --compute-capability"):
        check(Options(strip_weights=True, compute_capabilities=("8.6", "8.9")), rtx, gpu=True)


def test_compute_capabilities_are_rtxs(rtx: Flavour) -> None:
    other = Flavour("tensorrt", rtx.module)
    with pytest.raises(UserError, match="--compute-capability is for tensorrt-rtx"):
        check(Options(compute_capabilities=("8.6",)), other, gpu=True)
    check(Options(version_compatible=True, hardware_compatibility="ampere+"), other, gpu=True)


def test_default_targets_are_those_in_an_engines_header(
    rtx: Flavour, graph: Callable[[str], bytes]
) -> None:
    def header(*asked: str) -> int:
        """A bit for each target, as version 1.7 writes them."""
        options = Options(compute_capabilities=asked)
        return int.from_bytes(build(rtx, graph("Relu"), Path("x"), options).engine[32:36], "little")

    default = default_targets(rtx)
    bits = [header(capability) for capability in default]
    later = header() - sum(bits)
    # One more is for all that is newer.
    assert later.bit_count() == 1
    assert later > max(bits)
    assert set(targets(rtx)) - set(default) == {"7.5"}


def test_trtexecs_words_are_taken(rtx: Flavour) -> None:
    words = ("sameComputeCapability", "same-compute-capability", "ampere+", "none", None)
    levels = [hardware(word) for word in words]
    same = "same-compute-capability"
    assert levels == [same, same, "ampere+", None, None]
    for level in levels:
        asked = Options(hardware_compatibility=level)
        check(asked, Flavour("tensorrt", rtx.module), gpu=True)
    assert hardware("all") == "all"  # which `check` refuses


@pytest.mark.parametrize(
    "texts",
    [
        ["8.6", "8.9", "12.0"],
        ["8.6,8.9,12.0"],
        ["8.6 8.9 12.0"],
        ["8.6, 8.9", " 12.0 "],
        ["8.6,", "8.9", "12.0", "8.6"],
    ],
)
def test_targets_may_stand_in_one_word_or_in_several(texts: list[str]) -> None:
    assert capabilities(texts) == ("8.6", "8.9", "12.0")


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_no_target_is_no_default(rtx: Flavour, text: str) -> None:
    said = r"--compute-capability names none: TensorRT for RTX .* builds for 7\.5, "
    with pytest.raises(UserError, match=said):
        check(Options(compute_capabilities=capabilities([text])), rtx, gpu=False)


def test_a_target_is_the_librarys_own(rtx: Flavour) -> None:
    assert target(rtx, "8.6") == rtx.module.ComputeCapability.SM86
    assert target(rtx, "12.0") == rtx.module.ComputeCapability.SM120
