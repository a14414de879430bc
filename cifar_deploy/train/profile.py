"""Where the time of a training step goes: a trace of a few steps, and a table of their parts."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cifar_deploy.disk import atomic_path

FIRST, STEPS = 2, 8  # steps of a sitting: the first ones are slower than the rest
KERNELS = 12  # lines in the table


class Profile:
    """Looks at `STEPS` steps and writes a trace of them; after that it does nothing.

    To be closed in the end: a process that ends with a profiler at work crashes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = defaultdict(float)
        self.seen = self.taken = 0
        self._profiler: profile | None = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a step. While profiling the device is waited for on both sides."""
        if self._profiler is None:
            yield
            return
        self._wait()
        started = time.perf_counter()
        with record_function(name):
            yield
            self._wait()
        self.parts[name] += time.perf_counter() - started

    def step(self, path: Path, last: bool, say: Callable[[str], None]) -> None:
        """After each step: start, go on or end; in the end write the trace to `path`."""
        self.seen += 1
        if self._profiler is not None:
            self.taken += 1
            if self.taken == STEPS or last:
                self._end(path, say)
        elif last and not self.taken:
            say(f"no profile: that needs {FIRST + 1} steps or more, and there were {self.seen}")
        elif self.seen == FIRST and not self.taken:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def close(self) -> None:
        """Stop where a run ends in the middle of the steps that are looked at."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _end(self, path: Path, say: Callable[[str], None]) -> None:
        assert self._profiler is not None
        self._wait()
        profiler = self._profiler
        self.close()
        with atomic_path(path) as part:
            profiler.export_chrome_trace(str(part))
        say(f"{self.table(profiler)}\ntrace: {path} (open it in ui.perfetto.dev)")

    def table(self, profiler: profile) -> str:
        """Milliseconds a step by part, then by operator or kernel."""
        whole = sum(self.parts.values()) or 1.0
        lines = [f"{'part of a step':<52}{'ms':>10}{'share':>9}"]
        for name, seconds in sorted(self.parts.items(), key=lambda pair: -pair[1]):
            lines.append(_line(name, seconds / self.taken, seconds / whole))
        on_device = self.device.type == "cuda"
        # On a GPU the kernels: the operators that launched them have their time once more.
        wanted = self.device.type.upper()
        rows = [
            (row.key, (row.self_device_time_total if on_device else row.self_cpu_time_total) / 1e6)
            for row in profiler.key_averages()
            if row.device_type.name == wanted and not row.is_user_annotation
            if row.key not in self.parts and not row.key.startswith("ProfilerStep")
        ]
        lines.append(f"{'kernel' if on_device else 'operator':<52}{'ms':>10}{'share':>9}")
        for name, seconds in sorted(rows, key=lambda pair: -pair[1])[:KERNELS]:
            lines.append(_line(name, seconds / self.taken, seconds / whole))
        return "\n".join(lines)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _line(name: str, seconds: float, share: float) -> str:
    return f"{name[:50]:<52}{1e3 * seconds:>10.2f}{100 * share:>8.1f}%"
