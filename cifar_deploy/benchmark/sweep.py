"""All runtimes of a model side by side over the batch sizes.

They take turns in short slices, so that a drift of the clocks hits all alike.
"""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch

from cifar_deploy import device as machine
from cifar_deploy.benchmark.contenders import (
    Contender,
    Failure,
    Who,
    additions,
    are_remote,
    failure,
    left_out,
    not_taken,
)
from cifar_deploy.benchmark.flight import Flight, Flown, flight
from cifar_deploy.data.dataset import SIZE, Images
from cifar_deploy.disk import Json, stamp
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.protocol import REMOTE, takes, unversioned
from cifar_deploy.timing import (
    Call,
    Lane,
    Pool,
    Timing,
    collect,
    default_batches,
    summarise,
    times,
    warm_up,
)
from cifar_deploy.watch import Span, Watch, describe, summary

TURNS = 5  # slices of the time for latency
FLIGHT_TURNS = 2  # of that for throughput
ENERGY_SECONDS = 2.0  # of throughput at least, where a counter moves only every 20 to 100 ms
PIXELS_SEED = 0
UNFINISHED = "it was ended early: the rest was not measured"
NO_GPU = "no GPU is measured: these are the CPU runtimes, without copies"
ASKED = "what is served is timed as a client sees it: the network and the server's queue included"

Say = Callable[[str], None]  # told what is being done, for the progress line


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    batches: tuple[int, ...]
    seconds: float  # of latency, and at least of throughput, for each file and batch
    in_flight: tuple[int, ...]  # batches in flight for throughput, one count after another
    chosen: bool = True  # whether the batches were asked for; else they are those of each file


@dataclass(frozen=True)
class Load:
    """Latency with several batches in flight, in milliseconds, and of how many calls it is."""

    p50: float
    p99: float
    calls: int


@dataclass(frozen=True)
class Throughput:
    """With several batches in flight, trtexec's Throughput in images a second."""

    in_flight: int
    images: int
    seconds: float
    images_per_second: float
    joules: float | None  # of the whole card; None without an energy counter
    images_per_joule: float | None
    latency_ms: Load  # of a batch from its issue until its answer is there, see Flown


@dataclass(frozen=True)
class Row:
    """What was measured of one contender at one batch size."""

    who: Who
    timing: Timing
    throughputs: tuple[Throughput, ...]  # one for each count of batches in flight that was measured
    card: Json | None  # clocks, temperature, power while it was measured; None where not watched
    steady: bool  # whether its times were so when the warm-up ended
    # A cold start, of libraries that were loaded; None of what is served.
    open_s: float | None  # seconds to open the contender, the same in each of its rows
    first_call_ms: float | None  # then the first call at this batch size, see Lane.first
    # What it has taken by the end of that call since before it was opened, see Memory.
    memory_mib: int | None

    @property
    def throughput(self) -> Throughput | None:
        """The first of them."""
        return self.throughputs[0] if self.throughputs else None


@dataclass
class Benchmark:
    """All that was measured."""

    settings: Settings
    facts: Json  # the machine and the versions
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    tried: bool = False  # whether anything took a batch
    ended: UserError | KeyboardInterrupt | None = None  # what ended it early


def pixels(device: torch.device) -> Images:
    """Random pixels, uint8 [n, 32, 32, 3]: speed does not depend on what they show."""
    count = 40_000 if device.type == "cuda" else 4_096
    return np.random.default_rng(PIXELS_SEED).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def run(
    models: Iterable[Sequence[Contender]],
    settings: Settings,
    device: torch.device,
    say: Say = lambda _: None,
) -> Benchmark:
    """Measure every contender at every batch size; those of one model take turns.

    The contenders of one model are let go before the next ones are asked for: where `models` makes
    them when they are, no more than one model's are in the memory.

    What ends it early, Ctrl-C or a GPU that fails, is left in the answer's `ended`, and what was
    done before is kept: whole batch sizes, and the last one's latency where that was through. It is
    raised where there is nothing yet.
    """
    pool: Pool | None = None
    added: list[str] = []
    remote: list[bool] = []
    with Watch(device) as watch:
        result = Benchmark(settings, conditions(device, watch))
        try:
            for mine in models:
                batches = _sizes(mine, settings)
                if pool is None or len(pool.images) < max(batches):
                    pool = Pool(pixels(device), device, max(batches))
                    result.facts["pool_mib"] = round(pool.images.nbytes / 2**20, 1)
                added += additions(mine)
                if settings.chosen:
                    added += left_out(mine, settings.batches)
                remote += are_remote(mine)
                for batch in batches:
                    _batch(mine, batch, pool, result, watch, say)
                del mine
                let_go(device)
        except (UserError, KeyboardInterrupt) as end:
            if not result.rows:
                raise
            result.ended = end  # with its traceback: nothing on the GPU is let go before it is told
            result.remarks.append(UNFINISHED)
        result.remarks += [*added, *remarks(remote, device, watch)]
    return result


def let_go(device: torch.device) -> None:
    """Make room: what is no longer used, and torch keeps, other runtimes cannot take."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _sizes(entered: Sequence[Contender], settings: Settings) -> list[int]:
    """The batch sizes of one model: those that were asked for, or all that its contenders have."""
    if settings.chosen:
        return list(settings.batches)
    return sorted({size for one in entered for size in default_batches(one.runtime)})


def remarks(remote: Sequence[bool], device: torch.device, watch: Watch) -> list[str]:
    """What has to be known of a measurement: what was not at hand here, and what disturbed.

    `remote`: of all that took part, as `are_remote` says.
    """
    said = [ASKED] if any(remote) else []
    if device.type != "cuda" and not all(remote):
        said.append(NO_GPU)
    return [*said, *watch.remarks()]


def conditions(device: torch.device, watch: Watch) -> Json:
    """Under what a measurement is made, ready for JSON."""
    return {
        **describe(device, watch),
        "time": stamp(),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
    }


class _Turn:
    """A contender at one batch size while it is measured."""

    def __init__(self, contender: Contender, pool: Pool, batch: int) -> None:
        self.contender, self._pool, self._batch = contender, pool, batch
        self._calls: list[Call] = []
        self._spans: list[Span] = []
        self._lane: Lane | None = None
        self._flight: Flight | None = None
        self._throughputs: list[Throughput] = []
        self._steady = False
        # What a server computes on is not watched, be it the card that is here.
        self._remote = contender.runtime.device == REMOTE

    def warm(self) -> None:
        with self.contender.memory.step():
            self._lane = Lane(self.contender.runtime, self._pool, self._batch)
            self._first_ms = self._lane.first()
        self._memory_mib = self.contender.memory.mib
        self._steady = warm_up(self._lane)

    def once(self) -> None:
        """A call that is not timed."""
        assert self._lane
        self._lane.call()

    def time(self, seconds: float) -> None:
        assert self._lane
        begin = time.perf_counter()
        calls = collect(self._lane.call, seconds, fewest=1)
        # The first finds the caches as another contender left them; five such would be the p99.
        self._calls += calls[1:] or calls
        self._spans.append((begin, time.perf_counter()))

    def leave(self) -> None:
        """Let the buffers of the latency go."""
        with self.contender.memory.step():
            self._lane = None

    def board(self, in_flight: int) -> None:
        self._flight = None  # its buffers make room
        self._flown: list[Flown] = []
        self._joules: float | None = 0.0
        self._flight = flight(
            self.contender.runtime, self._pool, self._batch, in_flight, self.contender.one_stream
        )

    def fly_once(self) -> None:
        """A flight that is not timed, as short as can be."""
        assert self._flight
        self._flight.fly(0.0)

    def fly(self, seconds: float, watch: Watch) -> None:
        assert self._flight
        before, begin = watch.joules(), time.perf_counter()
        self._flown.append(self._flight.fly(seconds))
        after = watch.joules()
        self._spans.append((begin, time.perf_counter()))
        if self._remote or before is None or after is None or self._joules is None:
            self._joules = None
        else:
            self._joules += after - before

    def row(self, watch: Watch) -> Row:
        """What was timed; of the throughput what flew to the end."""
        on_cuda = self.contender.runtime.device.startswith("cuda")
        return Row(
            self.contender.who,
            summarise(self._batch, self._calls, on_cuda),
            tuple(self._throughputs),
            None if self._remote else summary(watch.samples, self._spans),
            self._steady,
            None if self._remote else self.contender.open_s,
            None if self._remote else self._first_ms,
            None if self._remote else self._memory_mib,
        )

    def land(self) -> None:
        """Sum up what flew."""
        assert self._flight
        images = sum(flown.images for flown in self._flown)
        seconds = sum(flown.seconds for flown in self._flown)
        calls = [spent for flown in self._flown for spent in flown.milliseconds]
        spent = times(calls)
        self._throughputs.append(
            Throughput(
                self._flight.count,
                images,
                seconds,
                images / seconds,
                self._joules,
                images / self._joules if self._joules else None,
                Load(spent.p50, spent.p99, len(calls)),
            )
        )


def _batch(
    entered: Sequence[Contender],
    batch: int,
    pool: Pool,
    result: Benchmark,
    watch: Watch,
    say: Say,
) -> None:
    """One batch size of one model: latency in turns, then throughput in turns."""
    settings = result.settings
    left = []
    for one in entered:
        if takes(one.runtime.batches, batch):
            left.append(_Turn(one, pool, batch))
        elif settings.chosen and one.named:
            result.failures.append(Failure(one.model, one.name, not_taken(one), batch))
    result.tried |= bool(left)

    def each(what: str, do: Callable[[_Turn], None]) -> None:
        """`do` for all that are left; one that fails leaves."""
        for turn in list(left):
            who = turn.contender
            say(f"{who.model}, batch {batch}: {who.name} {what}")
            try:
                do(turn)
            except (UserError, RuntimeError) as error:
                left.remove(turn)
                result.failures.append(failure(who, batch, error))

    # On a GPU some record graphs as they warm up, and torch then frees what it has cached: those
    # before them would allocate anew in their first timed call (torch.cuda.graph.__enter__).
    on_cuda = any(one.runtime.device.startswith("cuda") for one in entered)
    each("warms up", _Turn.warm)
    if on_cuda:
        each("warms up", _Turn.once)
    for _ in range(TURNS):
        each("latency", lambda turn: turn.time(settings.seconds / TURNS))
    timed = list(left)
    try:
        each("latency", _Turn.leave)  # all of them: there is more room for what is in flight
        counted = watch.joules() is not None
        seconds = max(settings.seconds, ENERGY_SECONDS) if counted else settings.seconds
        for count in settings.in_flight:
            each("warms up", partial(_Turn.board, in_flight=count))
            if on_cuda:
                each("warms up", _Turn.fly_once)
            for _ in range(FLIGHT_TURNS):
                each("throughput", lambda turn: turn.fly(seconds / FLIGHT_TURNS, watch))
            for turn in left:
                turn.land()
    finally:  # the latency also of what then did not fit several times, or was ended
        result.rows += [turn.row(watch) for turn in timed]


def judged(rows: Sequence[Row]) -> list[Row]:
    """Those that a bound is for: the files', or PyTorch's where no file was measured."""
    files = [row for row in rows if unversioned(row.who.runtime) != "PyTorch"]
    return files or list(rows)


def slower_than(rows: Sequence[Row], bound: float) -> list[str]:
    """What is said of each row whose p99 of the latency is over `bound`, both in milliseconds."""
    return [
        f"{row.who.model}, {row.who.name}, batch {row.timing.batch}: "
        f"its latency has a p99 of {p99:,.6g} ms, over --max-latency {bound:g}"
        for row in rows
        if (p99 := row.timing.latency.p99) > bound
    ]


def to_json(result: Benchmark, command: str) -> Json:
    """What a program reads: times in milliseconds.

    Who asks for one count of batches in flight reads what there was before several could be asked
    for: its number in the settings, and of each row `throughput`, which is the first of several.
    """
    rows = []
    for one in map(asdict, result.rows):
        first = next(iter(one["throughputs"]), None)
        rows.append({**one.pop("who"), **one.pop("timing"), "throughput": first, **one})
    settings = asdict(result.settings)
    if len(counts := result.settings.in_flight) < 2:
        settings["in_flight"] = counts[0] if counts else 0
    return {
        "command": command,
        **result.facts,
        "settings": settings,
        "remarks": result.remarks,
        "rows": rows,
        "failures": [asdict(failure) for failure in result.failures],
    }
