import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from cifar_deploy import watch as room
from cifar_deploy.watch import Sample, Watch, describe, summary, throttled

CPU = torch.device("cpu")


def sample(at: float, clock: int = 1_700, reasons: int = 0, watts: float = 300.0) -> Sample:
    return Sample(at, clock, 2_600, 55, watts, reasons)


def test_reasons_are_told_in_words() -> None:
    assert throttled(0x4 | 0x40) == ["power limit", "temperature, by the hardware"]
    assert throttled(0x1 | 0x2 | 0x100) == []  # idle, and clocks that the owner chose


def test_the_bits_are_those_of_the_library() -> None:
    nvml = pytest.importorskip("pynvml")
    bits = {
        "power limit": nvml.nvmlClocksEventReasonSwPowerCap,
        "hardware slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "sync boost with another card": nvml.nvmlClocksEventReasonSyncBoost,
        "temperature, by the driver": nvml.nvmlClocksEventReasonSwThermalSlowdown,
        "temperature, by the hardware": nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "power brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    assert {text: bit for bit, text in room.REASONS.items()} == bits
    assert list(room.CHOSEN) == [
        nvml.nvmlClocksEventReasonApplicationsClocksSetting,
        nvml.nvmlClocksEventReasonDisplayClockSetting,
    ]


def test_only_samples_within_the_spans_count() -> None:
    samples = [sample(0.5, 900), sample(1.5, 1_600), sample(2.5, 100), sample(3.5, 1_800, 0x4)]
    found = summary(samples, [(1, 2), (3, 4)])
    assert found
    assert found["samples"] == 2
    assert found["clock_mhz"] == {"min": 1_600, "median": 1_700, "max": 1_800}
    assert found["throttled"] == ["power limit"]
    assert summary(samples, [(10, 11)]) is None


def test_on_a_cpu_it_counts_nothing() -> None:
    with Watch(CPU) as watch:
        assert watch.joules() is None
        assert watch.facts() == {}
        time.sleep(0.02)
    assert watch.samples == []
    assert not watch.missing
    assert "gpu" not in describe(CPU, watch)


def test_throttling_is_remarked_with_its_share() -> None:
    watch = Watch(CPU)
    watch.samples += [sample(1.0), sample(2.0, reasons=0x4), sample(3.0, reasons=0x6)]
    said = watch.remarks()
    assert any(line.startswith("the card was throttled: power limit (67 %") for line in said)
    assert "clocks: the owner set its application clocks" in said


def test_what_others_use_of_the_processor() -> None:
    # 10 s of two processors: 8 s busy, of which this process had 5.
    assert room._used_by_others((0, 0, 0), (20.0, 8.0, 5.0)) == pytest.approx(0.15)
    assert room._used_by_others((0, 0, 0), (0.0, 0.0, 0.0)) == 0


def test_what_our_own_processes_use_is_ours_also_while_they_go_on() -> None:
    # As torch.compile's workers do: a process below a process.
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True); input()"
    named = "Программа-другая".encode()[:15]  # as long as the kernel keeps names: half a letter
    burn = f"open('/proc/self/comm', 'wb').write({named!r})\n{burn}"
    inner = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    before = room._processor_times()[2]
    with subprocess.Popen(
        [sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert room._processor_times()[2] - before > 0.4
        process.communicate(b"\n")


def test_the_use_by_others_is_asked_once_and_not_of_our_own_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worked = time.perf_counter()  # our own work ends now, and NVML looks back
    asked = []

    def utilization(handle: str) -> SimpleNamespace:
        asked.append(handle)
        ours = time.perf_counter() - worked < room.LOOKS_BACK
        return SimpleNamespace(gpu=97 if ours else 0)

    nvml = SimpleNamespace(nvmlDeviceGetHandleByUUID=str, nvmlDeviceGetUtilizationRates=utilization)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    room._use_before.cache_clear()
    try:
        assert [room._use_before("GPU-1") for _ in range(2)] == [0, 0]
        assert asked == ["GPU-1"]
    finally:
        room._use_before.cache_clear()


@pytest.mark.parametrize(
    ("told", "watts"),
    [
        ((0, 202_500), 202.5),
        ((3, 0), 365.0),  # not supported: a card before Ampere
        (None, 365.0),  # a driver that knows no fields
    ],
)
def test_power_is_that_of_the_moment_where_it_is_told(
    told: tuple[int, int] | None, watts: float
) -> None:
    class Refused(Exception):
        pass

    def fields(handle: str, names: list[int]) -> list[SimpleNamespace]:
        assert (handle, names) == ("GPU-1", [186])
        if told is None:
            raise Refused
        return [SimpleNamespace(nvmlReturn=told[0], value=SimpleNamespace(uiVal=told[1]))]

    nvml = pytest.importorskip("pynvml")
    watch = Watch(CPU)
    watch._handle = "GPU-1"
    watch._nvml = SimpleNamespace(
        NVML_FI_DEV_POWER_INSTANT=nvml.NVML_FI_DEV_POWER_INSTANT,
        NVML_SUCCESS=nvml.NVML_SUCCESS,
        NVMLError=Refused,
        nvmlDeviceGetFieldValues=fields,
        nvmlDeviceGetPowerUsage=lambda _: 365_000,
    )
    assert watch._power() == watts


@pytest.mark.gpu
def test_our_own_work_is_not_others() -> None:
    device = torch.device("cuda", 0)
    work = torch.randn(4096, 4096, device=device)
    room._use_before.cache_clear()
    for _ in range(2):
        begin = time.perf_counter()
        while time.perf_counter() - begin < 1.0:
            work = (work @ work).clamp(-1, 1)
            torch.cuda.synchronize()
        with Watch(device) as watch:
            pass
        if watch.missing or watch._other_processes():
            pytest.skip(watch.missing or "others use the card")
        assert not any("busy before" in line for line in watch.remarks())


@pytest.mark.gpu
def test_a_card_is_sampled_and_its_energy_counted() -> None:
    device = torch.device("cuda", 0)
    work = torch.randn(4096, 4096, device=device)
    with Watch(device) as watch:
        if watch.missing:
            pytest.skip(watch.missing)
        before = watch.joules()
        begin = time.perf_counter()
        while time.perf_counter() - begin < 1.0:
            work = (work @ work).clamp(-1, 1)
            torch.cuda.synchronize()
        end = time.perf_counter()
        after = watch.joules()
    found = summary(watch.samples, [(begin, end)])
    assert found
    assert found["samples"] >= 5
    assert found["clock_mhz"]["max"] > 100
    assert 0 < found["temperature_c"] < 120
    assert found["power_w"] > 1
    if before is not None and after is not None:  # Volta and later
        assert 1 < after - before < 2_000
    facts = describe(device, watch)["gpu"]
    assert facts["name"] == torch.cuda.get_device_name(device)
    assert facts["max_clock_mhz"] >= found["clock_mhz"]["max"]
