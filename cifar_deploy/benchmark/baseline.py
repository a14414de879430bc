"""An earlier measurement, as `benchmark --json` wrote it, and what takes longer since."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_deploy.benchmark.sweep import Row
from cifar_deploy.disk import Json, read_json
from cifar_deploy.errors import UserError
from cifar_deploy.runtimes.protocol import unversioned

Key = tuple[str, str, str, int]  # model, name, runtime without its version, batch


@dataclass(frozen=True)
class Baseline:
    """Medians of the latency, in milliseconds."""

    path: Path
    medians: dict[Key, float]


@dataclass(frozen=True)
class Change:
    """The median latency of one row, in milliseconds, before and now."""

    model: str
    name: str
    batch: int
    before: float
    now: float

    @property
    def slower(self) -> float:
        """By so many percent; below 0 where it is faster."""
        return 100 * (self.now / self.before - 1)


def read(path: Path, device: str) -> Baseline:
    """What was measured then. Raises UserError for another file, and for one of another device."""
    value = read_json(path)
    try:
        medians = {
            _key(row["model"], row["name"], row["runtime"], row["batch"]): row["latency"]["p50"]
            for row in value["rows"]
        }
        measured_on = value["device"]
        usable = all(isinstance(median, int | float) for median in medians.values())
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
    return Baseline(path, medians)


def changes(before: Baseline, rows: Sequence[Row]) -> list[Change]:
    """Every row that was measured then, too."""
    found = []
    for row in rows:
        who, batch = row.who, row.timing.batch
        if median := before.medians.get(_key(who.model, who.name, who.runtime, batch)):
            found.append(Change(who.model, who.name, batch, median, row.timing.latency.p50))
    return found


def _key(model: str, name: str, runtime: str, batch: int) -> Key:
    """A file's name has the runtime behind it only where several ran it."""
    return model, name.partition(", ")[0], unversioned(runtime), batch


def slower(found: Sequence[Change], percent: float) -> list[Change]:
    """Those that take longer by more than `percent`."""
    return [change for change in found if change.slower > percent]


def notes(before: Baseline, found: Sequence[Change], late: Sequence[Change]) -> list[str]:
    """What stands under the table of it; `late` are the `slower` ones of `found`."""
    if not found:
        return [f"Nothing of {before.path} was measured here."]
    ratios = [change.now / change.before for change in found]
    lines = [
        f"Against {before.path}: {len(found)} of {len(before.medians)} rows, their medians "
        f"{min(ratios):.2f} to {max(ratios):.2f} times as long."
    ]
    for change in late:
        lines.append(
            f"{change.model}, {change.name}, batch {change.batch}: SLOWER by "
            f"{change.slower:.0f} %: {change.now:.3g} ms at the median, {change.before:.3g} then"
        )
    return lines


def to_json(before: Baseline, found: Sequence[Change], percent: float) -> Json:
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
    }
