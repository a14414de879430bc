"""The table that `benchmark` prints, and the words under it."""

import os
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cifar_deploy.benchmark.contenders import Failure, Who
from cifar_deploy.benchmark.mlperf import Result, Runs
from cifar_deploy.benchmark.sweep import Benchmark, Row, Throughput
from cifar_deploy.disk import Json
from cifar_deploy.terminal import sheet
from cifar_deploy.timing import WARM_UP_SECONDS, Times

# trtexec's terms, where it has one.
TEXTS = ("name", "runtime")
NUMBERS = (
    "batch",
    "H2D\np50 ms",
    "compute\np50 ms",
    "D2H\np50 ms",
    "enqueue\np50 ms",
    "latency\nmin ms",
    "\np50",
    "\np90",
    "\np99",
    "images/s",
    "in flight\nbatches",
    "\nimages/s",
    "\np50 ms",
    "\np99",
    "images/J",
)
NONE = "-"
CALLS_FOR_P99 = 100
BATCHES_IN_FLIGHT = 20  # fewer, and how the last ones end counts


def table(rows: Sequence[Row]) -> Table:
    """A line a contender, batch and count in flight; those of a model and batch stand together."""
    result = sheet((*TEXTS, *NUMBERS), NUMBERS, narrow=True)
    before: tuple[str, int] | None = None
    for row in rows:
        group = (row.who.model, row.timing.batch)
        if before and group != before:
            result.add_section()
        before = group
        for line in lines(row):
            result.add_row(*map(Text, line))  # names are no markup
    return result


def lines(row: Row) -> list[list[str]]:
    """The texts of a row's lines, one for each heading; from the second on what is in flight."""
    timing = row.timing
    name = row.who.name
    if not name.startswith(row.who.model):
        name = f"{row.who.model}, {name}"
    alone = [
        name,
        _runtime(row.who),
        str(timing.batch),
        *(_median(part) for part in (timing.h2d, timing.compute, timing.d2h, timing.enqueue)),
        *(milliseconds(getattr(timing.latency, q)) for q in ("min", "p50", "p90", "p99")),
        f"{timing.images_per_second:,.0f}",
    ]
    first, *others = map(_load, row.throughputs or [None])
    return [[*alone, *first], *([""] * len(alone) + other for other in others)]


def _load(flown: Throughput | None) -> list[str]:
    """The texts of what was in flight."""
    if not flown:
        return [NONE] * 5
    per_joule = flown.images_per_joule
    return [
        str(flown.in_flight),
        f"{flown.images_per_second:,.0f}",
        milliseconds(flown.latency_ms.p50),
        milliseconds(flown.latency_ms.p99),
        (f"{per_joule:,.0f}" if per_joule >= 100 else f"{per_joule:.3g}") if per_joule else NONE,
    ]


def _runtime(who: Who) -> str:
    provider = who.provider.removesuffix("ExecutionProvider")
    return f"{who.runtime}, {provider}"


def _median(times: Times | None) -> str:
    return milliseconds(times.p50) if times else NONE


def milliseconds(value: float) -> str:
    """Three digits that count, and microseconds at most."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def notes(result: Benchmark) -> list[str]:
    """What stands under the table: the machine, the terms, what disturbed, what failed."""
    lines = _machine(result.facts)
    if gpu := result.facts.get("gpu"):
        lines.append(_card(result, gpu))
    terms = (
        "latency: H2D + compute + D2H of one batch after another; images/s: at its median by the "
        "host's clock"
    )
    if counts := result.settings.in_flight:
        terms += f"; in flight: {', '.join(map(str, counts))} batches at once"
    lines += [f"{terms}.", *_cold(result.rows), *_memory(result.rows), *doubtful(result.rows)]
    return lines + _said(result.remarks, result.failures)


def _cold(rows: Sequence[Row]) -> list[str]:
    """A line a model: of each contender what it takes to the first answer."""
    first: dict[Who, Row] = {}
    for row in rows:
        first.setdefault(row.who, row)
    said: dict[tuple[str, int], list[str]] = {}
    for who, row in first.items():
        if row.open_s is not None and row.first_call_ms is not None:
            both = (1000 * row.open_s, row.first_call_ms)
            spent = " + ".join(f"{ms:,.1f}" if ms < 10 else f"{ms:,.0f}" for ms in both)
            said.setdefault((who.model, row.timing.batch), []).append(f"{who.name} {spent} ms")
    return [
        f"Cold start of {model}, opening + first call of batch {batch}: {'; '.join(each)}."
        for (model, batch), each in said.items()
    ]


def _memory(rows: Sequence[Row]) -> list[str]:
    """A line a model: what each contender takes when it has had its largest batch."""
    last = {row.who: row for row in sorted(rows, key=lambda row: row.timing.batch)}
    said: dict[tuple[str, int], list[str]] = {}
    for who in dict.fromkeys(row.who for row in rows):
        row = last[who]
        if row.memory_mib is not None:
            told = f"{who.name} {row.memory_mib:,} MiB"
            said.setdefault((who.model, row.timing.batch), []).append(told)
    return [
        f"Memory of {model}, from before opening to after the first call of batch {batch}: "
        f"{'; '.join(each)}."
        for (model, batch), each in said.items()
    ]


def doubtful(rows: Sequence[Row]) -> list[str]:
    """Of rows whose figures rest on little: what is to be known."""
    lines = []
    if few := [row.timing.calls for row in rows if row.timing.calls < CALLS_FOR_P99]:
        lines.append(
            f"{len(few)} of {len(rows)} rows have fewer than {CALLS_FOR_P99} calls, the fewest "
            f"{min(few)}: their p99 is about the slowest call; --seconds makes more."
        )
    flown = [one.images // row.timing.batch for row in rows for one in row.throughputs]
    if short := [batches for batches in flown if batches < BATCHES_IN_FLIGHT]:
        lines.append(
            f"{len(short)} of {len(flown)} figures in flight are of fewer than {BATCHES_IN_FLIGHT} "
            f"batches, the fewest {min(short)}: they may be off by some percent."
        )
    if unsteady := sum(not row.steady for row in rows):
        lines.append(
            f"{unsteady} of {len(rows)} rows were not steady after {WARM_UP_SECONDS:g} s of "
            "warm-up, and were timed all the same."
        )
    return lines


def scenario_notes(runs: Runs) -> list[str]:
    """What stands under the table of a scenario."""
    settings = runs.settings
    terms = f"MLPerf LoadGen, {settings.scenario}, at least {settings.seconds:g} s"
    if settings.scenario == "Offline":
        batches = {result.batch for result in runs.results} or {settings.batch}
        flights = {result.in_flight for result in runs.results} or {settings.in_flight}
        batch, at_once = (" or ".join(map(str, sorted(some))) for some in (batches, flights))
        terms += f", batch {batch}, {at_once} in flight"
    if runs.results:
        logs = os.path.commonpath([result.logs for result in runs.results])
        terms += f"; {runs.results[0].images:,} images; logs: {logs}"
    return [*_machine(runs.facts), f"{terms}.", *_said(runs.remarks, runs.failures)]


def _machine(facts: Json) -> list[str]:
    libraries = ", ".join(
        f"{name} {version}" for name, version in facts["versions"].items() if name in SHOWN
    )
    return [f"{facts['device']}; {libraries}."]


def _said(remarks: Sequence[str], failures: Sequence[Failure]) -> list[str]:
    lines = [f"{remark}." for remark in remarks]
    for failure in failures:
        where = f", batch {failure.batch}" if failure.batch else ""
        lines.append(f"{failure.model}, {failure.name}{where}: {failure.reason}")
    return lines


SHOWN = ("torch", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt")


def _card(result: Benchmark, gpu: dict[str, object]) -> str:
    """Driver, and clocks, temperature and power while it was measured."""
    said = [f"driver {gpu['driver']}"] if "driver" in gpu else []
    cards = [row.card for row in result.rows if row.card]
    if cards:
        low = min(card["clock_mhz"]["min"] for card in cards)
        high = max(card["clock_mhz"]["max"] for card in cards)
        said += [
            f"clock {low} to {high} of {gpu.get('max_clock_mhz')} MHz",
            f"at most {max(card['temperature_c'] for card in cards)} degrees C",
            f"{max(card['power_w'] for card in cards):.0f} of {gpu.get('power_limit_w')} W",
        ]
    return f"{gpu['name']}: {', '.join(said) or 'not watched'}."


def scenario_table(results: Sequence[Result]) -> Table:
    """A line a file, with what LoadGen found."""
    single = results[0].scenario == "SingleStream" if results else False
    metric = "p90 ms\n(early stopping)" if single else "images/s"
    numbers = (metric, "queries", "top-1\n%")
    table = sheet(("name", "runtime", *numbers, "LoadGen says"), numbers, narrow=True)
    for result in results:
        measured = f"{result.images_per_second:,.0f}"
        if single:
            early = result.early_stopping_p90_ms
            measured = milliseconds(result.p90_ms) if result.p90_ms else NONE
            measured += f" ({milliseconds(early)})" if early else ""
        table.add_row(
            Text(f"{result.who.model}, {result.who.name}"),
            _runtime(result.who),
            measured,
            f"{result.queries:,}",
            f"{100 * result.accuracy:.2f}",
            "VALID" if result.valid else f"INVALID: {result.why_invalid or 'see its summary'}",
        )
    return table
