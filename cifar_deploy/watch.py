"""What the card does while it is measured: clocks, temperature, power, energy, who slows it."""

import contextlib
import functools
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from cifar_deploy import device as machine
from cifar_deploy.disk import Json

INTERVAL = 0.05  # seconds between samples
# Seconds that NVML's utilisation may look back: it is that of the past period, of up to a second
# (nvmlUtilization_t), and the period that has ended may have done so almost a second ago.
LOOKS_BACK = 2.0
BUSY = 0.05  # share of a device used by others from which it is said

Span = tuple[float, float]  # begin and end, by time.perf_counter

# NVML's bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that slow a working card down.
# An idle card (1) and clocks chosen by its owner (2, 0x100) are no throttling.
REASONS = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost with another card",
    0x20: "temperature, by the driver",
    0x40: "temperature, by the hardware",
    0x80: "power brake",
}
CHOSEN = {0x2: "the owner set its application clocks", 0x100: "the display's clock setting"}


@dataclass(frozen=True)
class Sample:
    """The card at one moment."""

    time: float
    clock: int  # of the multiprocessors, MHz
    memory_clock: int  # MHz
    temperature: int  # degrees Celsius
    watts: float
    reasons: int


def throttled(reasons: int) -> list[str]:
    """In words, what slowed the card down."""
    return [text for bit, text in REASONS.items() if reasons & bit]


def summary(samples: Sequence[Sample], spans: Sequence[Span]) -> Json | None:
    """The samples that fall into `spans`; None where there are none."""
    mine = [s for s in samples if any(begin <= s.time <= end for begin, end in spans)]
    if not mine:
        return None
    reasons = 0
    for sample in mine:
        reasons |= sample.reasons
    clocks = [sample.clock for sample in mine]
    return {
        "samples": len(mine),
        "clock_mhz": {
            "min": min(clocks),
            "median": statistics.median(clocks),
            "max": max(clocks),
        },
        "memory_clock_mhz": statistics.median(sample.memory_clock for sample in mine),
        "temperature_c": max(sample.temperature for sample in mine),
        "power_w": round(statistics.mean(sample.watts for sample in mine), 1),
        "throttled": throttled(reasons),
    }


class Watch:
    """Samples a CUDA device with NVML (nvidia-ml-py) in a thread, while it is open.

    On a CPU, or without NVML, it has no samples; `missing` says why NVML does not work.
    """

    def __init__(self, device: torch.device) -> None:
        self.samples: list[Sample] = []
        self.missing = ""
        self._nvml: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self._cpu = _processor_times()
        if device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            self.missing = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
            self._sample()
            self.samples.clear()
            self._use_before = _use_before(uuid)
        except pynvml.NVMLError as error:
            self._nvml = None
            self.missing = f"NVML: {error}"

    def __enter__(self) -> Self:
        if self._nvml:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._nvml:
            self._thread.join()

    def facts(self) -> Json:
        """The card itself: driver, clocks and power at most. Empty without NVML."""
        if not self._nvml:
            return {}
        nvml, handle = self._nvml, self._handle
        return {
            "name": nvml.nvmlDeviceGetName(handle),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "cuda_of_driver": _dotted(nvml.nvmlSystemGetCudaDriverVersion_v2()),
            "max_clock_mhz": self._asked(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
            "max_memory_clock_mhz": self._asked(
                nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM
            ),
            "power_limit_w": _watts(self._asked(nvml.nvmlDeviceGetEnforcedPowerLimit)),
            "energy_counter": self.joules() is not None,
        }

    def joules(self) -> float | None:
        """The card's energy counter; None where it has none (before Volta) or there is no NVML."""
        if not self._nvml:
            return None
        counted = self._asked(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return counted / 1000 if counted is not None else None

    def remarks(self) -> list[str]:
        """What disturbed the whole measurement: throttling, chosen clocks, other processes."""
        reasons = 0
        for sample in self.samples:
            reasons |= sample.reasons
        said = []
        if self.missing:
            said.append(f"the card was not watched: {self.missing}")
        if slowed := throttled(reasons):
            share = sum(1 for s in self.samples if throttled(s.reasons)) / len(self.samples)
            said.append(
                f"the card was throttled: {', '.join(slowed)} ({100 * share:.0f} % of the samples)"
            )
        said += [f"clocks: {text}" for bit, text in CHOSEN.items() if reasons & bit]
        if self._nvml:
            if others := self._other_processes():
                said.append(f"the card was busy: {others} other processes compute on it")
            if self._use_before > BUSY:
                said.append(
                    f"the card was busy before: {100 * self._use_before:.0f} % in use by others"
                )
        if (share := _used_by_others(self._cpu, _processor_times())) > BUSY:
            said.append(f"the processor was busy: others used {100 * share:.0f} % of it")
        return said

    def _other_processes(self) -> int:
        """Processes with a context on the card, less this one.

        In a container NVML may name this process by another number, so they are counted.
        """
        running = self._asked(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        return max(0, len(running or []) - 1)

    def _asked(self, question: Any, *arguments: Any) -> Any:
        """The answer, or None where this card or driver has none."""
        try:
            return question(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def _sample(self) -> None:
        nvml = self._nvml
        self.samples.append(
            Sample(
                time.perf_counter(),
                self._asked(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM) or 0,
                self._asked(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM) or 0,
                self._asked(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU) or 0,
                self._power() or 0.0,
                # The older of its two names: every version of the package has it.
                self._asked(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0,
            )
        )

    def _power(self) -> float | None:
        """Watts at this moment.

        From Ampere on NVML's usual answer is the mean of the last second, in which others had their
        turn (nvmlDeviceGetPowerUsage, nvml.h). Cards and drivers before have no other answer.
        """
        nvml = self._nvml
        if moment := getattr(nvml, "NVML_FI_DEV_POWER_INSTANT", None):
            for found in self._asked(nvml.nvmlDeviceGetFieldValues, [moment]) or []:
                if found.nvmlReturn == nvml.NVML_SUCCESS:
                    return _watts(int(found.value.uiVal))
        return _watts(self._asked(nvml.nvmlDeviceGetPowerUsage))

    def _sample_on(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sample()


def describe(device: torch.device, watch: Watch) -> Json:
    """The machine a measurement was made on, ready for JSON."""
    facts: Json = {"device": machine.describe(device), "cpu": machine.cpu_name()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "name": card.name,
            "compute_capability": f"{card.major}.{card.minor}",
            "memory_gib": round(card.total_memory / 2**30, 1),
            "l2_mib": card.L2_cache_size / 2**20,
            "multiprocessors": card.multi_processor_count,
            **watch.facts(),
        }
    if watch.missing:
        facts["not_watched"] = watch.missing
    return facts


@functools.cache
def _use_before(uuid: str) -> float:
    """Share of the time in which others used a card, before this process measures on it.

    Once a process, after a time in which it left the card alone: NVML does not say whose work it
    was.
    """
    import pynvml

    time.sleep(LOOKS_BACK)
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _processor_times() -> tuple[float, float, float]:
    """Seconds of processor time since the start: of all, of all busy, of this process and below."""
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0, mine
    ticks = [float(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    all_, idle = sum(ticks), ticks[3] + ticks[4]
    second = os.sysconf("SC_CLK_TCK")
    return all_ / second, (all_ - idle) / second, mine + _ticks_of_children() / second


def _ticks_of_children() -> int:
    """Processor time of the processes below this one that go on, as torch.compile's workers do.

    `os.times` has those that have ended.
    """
    found = {}  # by process: its parent, and its own time and that of its children that ended
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # In bytes: the kernel may have cut a name within a letter.
            words = stat.read_bytes().rpartition(b")")[2].split()
            found[int(stat.parent.name)] = int(words[1]), sum(map(int, words[11:15]))
    ours, new = set[int](), {os.getpid()}
    while new:
        ours |= new
        new = {process for process, (parent, _) in found.items() if parent in new} - ours
    return sum(ticks for process, (_, ticks) in found.items() if process in ours - {os.getpid()})


def _used_by_others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """Share of the processor that other processes had between two readings."""
    everything, busy, mine = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, busy - mine) / everything if everything > 0 else 0.0
