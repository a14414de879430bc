"""How a processor is named beside a figure, on machines of other architectures."""

import shutil
from pathlib import Path

import pytest

from cifar_deploy.device import cpu_name


def machine(root: Path, cpuinfo: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(cpuinfo)
    return root


def on_arm(*parts: str) -> str:
    """What Linux says of ARM's cores: numbers, and no name."""
    core = "processor\t: {}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    return "".join(core.format(number, part) for number, part in enumerate(parts))


def test_x86_names_itself(tmp_path: Path) -> None:
    said = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9B14\n\n"
    assert cpu_name(machine(tmp_path, said)) == "AMD EPYC 9B14"


def test_a_board_is_named_in_its_device_tree(tmp_path: Path) -> None:
    root = machine(tmp_path, on_arm("0xd42"))
    (root / "proc" / "device-tree").mkdir()
    (root / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    assert cpu_name(root) == "NVIDIA Jetson AGX Orin"


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
def test_lscpu_knows_arms_numbers(tmp_path: Path) -> None:
    root = machine(tmp_path, on_arm("0xd0c", "0xd0c"))
    cpus = root / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True)
    for file in ("possible", "present", "online"):
        (cpus / file).write_text("0-1\n")
    assert cpu_name(root) == "Neoverse-N1"


def test_a_machine_that_tells_nothing_has_a_name_all_the_same(tmp_path: Path) -> None:
    assert cpu_name(tmp_path)
    assert cpu_name(machine(tmp_path, on_arm("0xd0c")))  # and no sysfs for lscpu to read
