"""What can be asked of a build, by trtexec's names where it has one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cifar_deploy.engines.flavour import RTX, Flavour, numbers
from cifar_deploy.errors import UserError

HARDWARE = {  # this program's words, and the library's
    "ampere+": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}
# What trtexec calls otherwise.
TRTEXEC: dict[str, str | None] = {
    "sameComputeCapability": "same-compute-capability",
    "none": None,
}
AMPERE = "8.0"  # Turing is built for only where it is asked for
LEVELS = range(6)
LARGEST_WORKSPACE = 1 << 24  # MiB, 16 TiB; the library counts bytes in 64 bits
LARGEST_BATCH = 1 << 20  # images; beyond it is a slip of the keyboard


@dataclass(frozen=True)
class Profile:
    """An optimization profile: the batches an engine takes, and the one it is tuned for."""

    min: int = 1
    opt: int = 128
    max: int = 1024

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read "min/opt/max", or one number for a fixed batch. Raises UserError where it is none.

        "1:128:1024" reads the same.
        """
        parts = re.split(r"[/:]", text)
        if not all(part.isdecimal() for part in parts) or len(parts) not in (1, 3):
            raise UserError(f"--batch-profile {text}: write min/opt/max, as 1/128/1024")
        low, opt, high = map(int, parts if len(parts) == 3 else parts * 3)
        if low < 1:
            raise UserError(f"--batch-profile {text}: a batch has at least 1 image")
        if not low <= opt <= high:
            raise UserError(f"--batch-profile {text}: min <= opt <= max does not hold")
        if high > LARGEST_BATCH:
            raise UserError(f"--batch-profile {text}: a batch over {LARGEST_BATCH:,} is no batch")
        return cls(low, opt, high)


@dataclass(frozen=True)
class Options:
    """How to build. None and empty: the library's own choice."""

    profiles: tuple[Profile, ...] = (Profile(),)
    workspace: int | None = None  # MiB of GPU memory a layer may use while it is tried and run
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None  # a key of HARDWARE
    compute_capabilities: tuple[str, ...] = ()  # as "8.6"
    level: int | None = None  # builder optimisation level
    strip_weights: bool = False
    layer_info: bool = False
    tf32: bool = False  # off, as in the reference: fp32 means fp32


def hardware(text: str | None) -> str | None:
    """What --hardware-compatibility asks for, in this program's words or in trtexec's."""
    return TRTEXEC.get(text, text) if text else text


def capabilities(texts: Iterable[str]) -> tuple[str, ...]:
    """The compute capabilities in `texts`, each once; a text may be "8.6" or "8.6,8.9 12.0"."""
    found = [word for text in texts for word in re.split(r"[,\s]+", text.strip(", "))]
    return tuple(dict.fromkeys(found))


def check(options: Options, flavour: Flavour, gpu: bool) -> None:
    """Raise UserError for what this flavour cannot do, or not without a CUDA device (`gpu`)."""
    rtx = flavour.name == RTX
    if options.workspace is not None and not 1 <= options.workspace <= LARGEST_WORKSPACE:
        raise UserError(
            f"--workspace {options.workspace}: it is in MiB, from 1 to {LARGEST_WORKSPACE}"
        )
    if options.level is not None and options.level not in LEVELS:
        raise UserError(f"--builder-optimization-level {options.level}: it goes from 0 to 5")
    level = options.hardware_compatibility
    if level is not None and level not in HARDWARE:
        raise UserError(f"--hardware-compatibility {level}: it can be {' or '.join(HARDWARE)}")
    if rtx and options.version_compatible:
        raise UserError(f"--version-compatible is TensorRT's; {flavour} has no lean runtime for it")
    if rtx and level is not None:
        raise UserError(
            "--hardware-compatibility is TensorRT's; an engine of tensorrt-rtx runs on every GPU "
            "that it supports, or on those named with --compute-capability"
        )
    if rtx and options.timing_cache is not None:
        raise UserError(
            f"--timing-cache-file is TensorRT's; {flavour} times nothing while building"
        )
    if options.compute_capabilities and not rtx:
        raise UserError(
            "--compute-capability is for tensorrt-rtx; tensorrt builds for the GPU in this "
            "machine, or for more with --hardware-compatibility"
        )
    for wish, name in (
        (options.strip_weights, "--strip-weights"),
        (options.layer_info, "--export-layer-info"),
    ):
        if wish and not gpu:
            raise UserError(
                f"{name}: {flavour} can do that only with a CUDA device, and there is none here"
            )
    if options.strip_weights and len(options.compute_capabilities) > 1:
        raise UserError(
            f"--strip-weights takes one --compute-capability: {flavour} builds an engine without "
            "weights for one GPU"
        )
    for capability in options.compute_capabilities:
        target(flavour, capability)


def target(flavour: Flavour, capability: str) -> object:
    """The library's member for a compute capability as "8.6"; UserError where it has none."""
    known = targets(flavour)
    if capability not in known:
        what = capability or "names none"
        raise UserError(
            f"--compute-capability {what}: {flavour} builds for "
            f"{', '.join(sorted(known, key=numbers))}"
        )
    return known[capability]


def targets(flavour: Flavour) -> dict[str, object]:
    """The compute capabilities, as "8.6", that TensorRT for RTX builds for: its own members."""
    members: dict[str, object] = flavour.module.ComputeCapability.__members__
    return {
        f"{name[2:-1]}.{name[-1]}": member
        for name, member in members.items()
        if re.fullmatch(r"SM\d{2,}", name)
    }


def default_targets(flavour: Flavour) -> list[str]:
    """Of `targets` those that an engine runs on without --compute-capability, oldest first.

    GPUs that are newer than the last of them run it as well, as the library says; it compiles
    kernels for the GPU when it loads an engine. It has no call that lists them.
    https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
    """
    known = sorted(targets(flavour), key=numbers)
    return [capability for capability in known if numbers(capability) >= numbers(AMPERE)]
