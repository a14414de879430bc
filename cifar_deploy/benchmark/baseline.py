"""An earlier measurement, as `benchmark --json` wrote it, and what takes longer since."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_deploy.benchmark.sweep import Row
from cifar_deploy.disk import Json, is_number, read_json
from cifar_deploy.errors import UserError, few
from cifar_deploy.runtimes.protocol import unversioned

FEW_CALLS = 10  # fewer have a median that the next measurement need not have
DISTURBED = ("the card was", "the processor was", "clocks:")  # how `Watch.remarks` begin
Key = tuple[str, str, str, int]  # model, name, runtime without its version, batch


@dataclass(frozen=True)
class Baseline:
    """Medians of the latency, in milliseconds, and what was said of them."""

    path: Path
    medians: dict[Key, float]
    doubtful: frozenset[Key]  # medians of few calls, or of a warm-up that did not become steady
    disturbed: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """The median latency of one row, in milliseconds, before and now."""

    model: str
    name: str
    batch: int
    before: float
    now: float
    doubtful: bool  # as of a Baseline, then or now

    @property
    def slower(self) -> float:
        """By so many percent; below 0 where it is faster."""
        return 100 * (self.now / self.before - 1)


def read(path: Path, device: str) -> Baseline:
    """What was measured then. Raises UserError for another file, and for one of another device."""
    value = read_json(path)
    try:
        rows = {
            _key(row["model"], row["name"], row["runtime"], row["batch"]): row
            for row in value["rows"]
        }
        medians = {key: row["latency"]["p50"] for key, row in rows.items()}
        doubtful = frozenset(
            key
            for key, row in rows.items()
            if _little(row.get("calls", FEW_CALLS), row.get("steady", True))
        )
        remarks = [str(remark) for remark in value.get("remarks", [])]
        measured_on = value["device"]
        usable = all(map(is_number, medians.values()))
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{path} is not what `benchmark --json` writes without --scenario")
    if measured_on != device:
        raise UserError(
            f"{path} is of {measured_on}, and this is {device}: their times cannot be compared"
        )
    if not all(median > 0 for median in medians.values()):
        raise UserError(f"{path} has a latency of no time")
    disturbed = tuple(remark for remark in remarks if remark.startswith(DISTURBED))
    return Baseline(path, medians, doubtful, disturbed)


def changes(before: Baseline, rows: Sequence[Row]) -> list[Change]:
    """Every row that was measured then, too."""
    found = []
    for row in rows:
        who, timing = row.who, row.timing
        key = _key(who.model, who.name, who.runtime, timing.batch)
        if median := before.medians.get(key):
            doubtful = key in before.doubtful or _little(timing.calls, row.steady)
            now = timing.latency.p50
            found.append(Change(who.model, who.name, timing.batch, median, now, doubtful))
    return found


def _little(calls: int, steady: bool) -> bool:
    """Whether a median rests on little."""
    return calls < FEW_CALLS or not steady


def _key(model: str, name: str, runtime: str, batch: int) -> Key:
    """A file's name has the runtime behind it only where several ran it."""
    return model, name.partition(", ")[0], unversioned(runtime), batch


def missing(before: Baseline, rows: Sequence[Row]) -> list[Key]:
    """What was measured then, and is not now."""
    keys = (_key(r.who.model, r.who.name, r.who.runtime, r.timing.batch) for r in rows)
    return sorted(before.medians.keys() - set(keys))


def slower(found: Sequence[Change], percent: float) -> list[Change]:
    """Those that take longer by more than `percent`."""
    return [change for change in found if change.slower > percent]


def notes(
    before: Baseline, found: Sequence[Change], late: Sequence[Change], lost: Sequence[Key] = ()
) -> list[str]:
    """What stands under the table; `late` are those that are `slower`, `lost` the `missing`."""
    if not found:
        return [f"Nothing of {before.path} was measured here."]
    ratios = [change.now / change.before for change in found]
    lines = [
        f"Against {before.path}: {len(found)} of {len(before.medians)} rows, their medians "
        f"{min(ratios):.2f} to {max(ratios):.2f} times as long."
    ]
    for change in late:
        percent = math.ceil(round(10 * change.slower, 6)) / 10  # never what is allowed
        lines.append(
            f"{change.model}, {change.name}, batch {change.batch}: SLOWER by {percent:,g} %: "
            f"{_ms(change.now)} ms at the median, {_ms(change.before)} then"
        )
    if lost:
        names = [f"{model}, {name}, batch {batch}" for model, name, _, batch in lost]
        lines.append(f"Measured then, and not now: {few(names)}.")
    if before.disturbed:
        lines.append(f"When {before.path} was measured, {'; '.join(before.disturbed)}.")
    if doubtful := sum(change.doubtful for change in found):
        lines.append(
            f"{doubtful} of the {len(found)} medians are, then or now, of fewer than {FEW_CALLS} "
            "calls or were not steady after the warm-up: measure again, with more --seconds."
        )
    return lines


def _ms(value: float) -> str:
    """With a digit more than a table has: a small difference is to be seen."""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def to_json(
    before: Baseline, found: Sequence[Change], percent: float, lost: Sequence[Key] = ()
) -> Json:
    """What a program reads of it: times in milliseconds."""
    return {
        "file": str(before.path),
        "max_slowdown_percent": percent,
        "rows": [
            {
                "model": change.model,
                "name": change.name,
                "batch": change.batch,
                "before_p50": change.before,
                "now_p50": change.now,
                "slower_percent": change.slower,
            }
            for change in found
        ],
        "missing": [
            dict(zip(("model", "name", "runtime", "batch"), key, strict=True)) for key in lost
        ],
    }
