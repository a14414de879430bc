"""Measuring from Python, `benchmark_model`, and what the command `benchmark` is made of."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cifar_deploy import address, architectures, cards, store
from cifar_deploy.address import Address
from cifar_deploy.engines.options import LARGEST_BATCH
from cifar_deploy.errors import UserError, check_range
from cifar_deploy.kind import Kind, to_export

if TYPE_CHECKING:
    import torch

    from cifar_deploy.benchmark import sweep
    from cifar_deploy.benchmark.contenders import Contender, Failure
    from cifar_deploy.runtimes.onnx_interface import Pixels

# A model, what is measured of it, and whether it is all of the model's, PyTorch too.
Work: TypeAlias = tuple[store.ModelFolder, list[Path | Address], bool]
MOST_IN_FLIGHT = 9999

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """How fast one file, or PyTorch, is at one batch size. Times of latency are of whole batches.

    Of what could not be measured `reason` says why, and there are no figures.
    """

    model: str
    name: str  # of the file, or how PyTorch runs
    batch: int | None  # images a call; None where there was no call at all
    reason: str = ""
    runtime: str | None = None  # with its version
    provider: str | None = None
    device: str | None = None
    precision: str | None = None
    min_ms: float | None = None  # of the latency: copy to the device, computing, copy back
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    h2d_ms: float | None = None  # medians of its parts; None on a CPU, where there are no copies
    compute_ms: float | None = None
    d2h_ms: float | None = None
    enqueue_ms: float | None = None  # the host's
    images_per_second: float | None = None  # one batch after another
    in_flight: int | None = None  # batches at once, of the next two
    in_flight_images_per_second: float | None = None
    images_per_joule: float | None = None  # None where the device does not tell what it takes
    open_s: float | None = None  # to open the file
    first_call_ms: float | None = None  # then the first call at this batch size
    memory_mib: int | None = None  # taken by the end of that since before it was opened
    calls: int | None = None  # that the latency is of; of few, p99 is about the slowest
    steady: bool | None = None  # whether the times were so when the warm-up ended


def benchmark_model(
    model: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    format: str | Iterable[str] | None = None,
    precision: str | Iterable[str] | None = None,
    batch: int | Iterable[int] | None = None,
    seconds: float = 1.0,
    in_flight: int | None = None,
    compile: bool | None = None,
    device: "str | int | torch.device" = "auto",
    threads: int | None = None,
    runtime: str | Iterable[str] = "onnxruntime",
    trust: bool = False,
) -> list[Measurement]:
    """Time PyTorch and exported files side by side: a measurement for each and each batch size.

    It is not called `benchmark`, which is a subpackage: whoever imports that has it under this
    name.

    `model` is a trained model's name, alias or folder, with its files of this `format` ("onnx",
    "trt") and `precision` ("fp32", "fp16", "int8"), by default all; or a file; or
    `grpc://HOST:PORT/MODEL`; or several of them. `batch` is a size or several, by default those of
    1, 8, 32, 128, 256 and 1024 that a file takes; `seconds` what each is timed for; `in_flight` how
    many batches run at once for throughput, 4 on a GPU and 2 on a CPU, 0 for none. `compile` times
    torch.compile, too, by default on a GPU. `device`, `runtime`, which may be several, and `trust`
    are as in `load`; `threads` is for all that this process runs on the CPU, from then on.

    Nothing is printed: what disturbed, or was left out, goes to the logger "cifar_deploy.measuring"
    (WARNING), with what is done (INFO). Raises UserError for what cannot be measured so, where
    nothing could be, and where a GPU fails; its text names arguments as the command does. Then, and
    after Ctrl-C, what was measured before is lost: a call for each model keeps it.
    """
    if isinstance(model, str | PathLike) or not isinstance(model, Iterable):
        model = [model]
    targets = [architectures.named(one) for one in model]
    if not targets:
        raise UserError("no model and no file was named")
    kind = Kind.of(format, precision)
    if batch is None:
        sizes: tuple[int, ...] = ()
    elif isinstance(batch, Iterable) and not isinstance(batch, str):
        sizes = tuple(batch)
    else:
        sizes = (batch,)
    if batch is not None and not sizes:
        raise UserError(f"batch {batch}: it is one size or more")
    for size in sizes:
        check_range("batch", size, 1, LARGEST_BATCH, whole=True)
    sizes = tuple(dict.fromkeys(sizes))
    check_range("seconds", seconds, 0)
    check_range("in_flight", in_flight, 0, MOST_IN_FLIGHT, whole=True)
    check_range("threads", threads, 1, 1024, whole=True)
    contest = Contest.of(targets, kind)
    from cifar_deploy.device import pick
    from cifar_deploy.runtimes.load import check_onnx

    if isinstance(runtime, str) or not isinstance(runtime, Iterable):
        runtime = [runtime]
    onnx = list(runtime)
    check_onnx(onnx)
    measured = measure(
        contest,
        pick(device, threads),
        batches=sizes,
        seconds=seconds,
        in_flight=None if in_flight is None else (in_flight,),
        compiled=compile,
        onnx=list(dict.fromkeys(onnx)),
        trust=trust,
        told=log.info,
    )
    if measured.ended:
        raise measured.ended
    from cifar_deploy.benchmark.table import doubtful

    for remark in [*doubtful(measured.rows), *measured.remarks]:
        log.warning(remark)
    lost = [Measurement(one.model, one.name, one.batch, one.reason) for one in measured.failures]
    return [*map(_measurement, measured.rows), *lost]


def _measurement(row: "sweep.Row") -> Measurement:
    who, timing, flown = row.who, row.timing, row.throughput
    return Measurement(
        model=who.model,
        name=who.name,
        batch=timing.batch,
        runtime=who.runtime,
        provider=who.provider,
        device=who.device,
        precision=who.precision,
        min_ms=timing.latency.min,
        p50_ms=timing.latency.p50,
        p90_ms=timing.latency.p90,
        p99_ms=timing.latency.p99,
        h2d_ms=timing.h2d.p50 if timing.h2d else None,
        compute_ms=timing.compute.p50,
        d2h_ms=timing.d2h.p50 if timing.d2h else None,
        enqueue_ms=timing.enqueue.p50 if timing.enqueue else None,
        images_per_second=timing.images_per_second,
        in_flight=flown.in_flight if flown else None,
        in_flight_images_per_second=flown.images_per_second if flown else None,
        images_per_joule=flown.images_per_joule if flown else None,
        open_s=row.open_s,
        first_call_ms=row.first_call_ms,
        memory_mib=row.memory_mib,
        calls=timing.calls,
        steady=row.steady,
    )


@dataclass(frozen=True)
class Contest:
    """What is measured side by side."""

    work: list[Work]
    said: list[str]  # of files that are stale or missing
    damaged: dict[store.ModelFolder, UserError]  # of all models those that are left out for it

    @classmethod
    def of(cls, targets: Sequence[str], kind: Kind) -> "Contest":
        """`targets` as `benchmark_model` takes them.

        All trained models where none is named, but for damaged ones. Raises UserError for what is
        not there, and for a damaged model that is named or where all are.
        """
        work, damaged = _contestants(targets, kind)
        # Now: nothing may come between what was measured and its table.
        return cls(work, [*_stale(work), *_unexported(work)], damaged)

    def opened(
        self,
        where: "torch.device",
        compiled: bool | None,
        trust: bool,
        pixels: "Pixels | None",
        onnx: Sequence[str],
        failures: "list[Failure]",
    ) -> "Iterator[list[Contender]]":
        """A model's contenders, each when its turn has come.

        What is damaged, and what cannot run, joins `failures`. `compiled`: PyTorch through
        torch.compile, too; None: on a GPU. The rest is `contenders`'.
        """
        from cifar_deploy.benchmark.contenders import Failure, contenders

        for folder, error in self.damaged.items():
            reason = str(error).removeprefix(f"{folder.weights} ")
            failures.append(Failure(folder.name, folder.weights.name, reason))
        with_compile = where.type == "cuda" if compiled is None else compiled
        for name in dict.fromkeys(folder.name for folder, *_ in self.work):
            mine = [one for one in self.work if one[0].name == name]
            opened, lost = contenders(mine, where, with_compile, trust, pixels, onnx)
            failures.extend(lost)
            if opened:
                yield opened
            del opened


def measure(
    contest: Contest,
    where: "torch.device",
    *,
    batches: tuple[int, ...],
    seconds: float,
    in_flight: tuple[int, ...] | None,
    compiled: bool | None,
    onnx: Sequence[str],
    trust: bool,
    told: Callable[[str], None],
) -> "sweep.Benchmark":
    """Time all of the contest as `benchmark_model` does, `in_flight` several counts if need be.

    `batches` are those that were asked for, if any; `told` gets what is being done. Raises
    UserError where there was nothing to measure at all.
    """
    from cifar_deploy.benchmark import sweep
    from cifar_deploy.runtimes.onnx_interface import Pixels
    from cifar_deploy.timing import BATCHES

    counts = usual_in_flight(where) if in_flight is None else in_flight
    flights = tuple(count for count in counts if count)
    settings = sweep.Settings(batches or BATCHES, seconds, flights, bool(batches))
    failures: list[Failure] = []
    # Speed does not depend on how pixels are normalised.
    models = contest.opened(where, compiled, trust, Pixels(), onnx, failures)
    result = sweep.run(models, settings, where, told)
    result.failures[:0] = failures
    check_some(result.tried, result.failures)
    result.remarks += contest.said
    return result


def usual_in_flight(where: "torch.device") -> tuple[int, ...]:
    """How many batches are in flight where nobody says."""
    return (4,) if where.type == "cuda" else (2,)


def check_some(tried: bool, failures: "Sequence[Failure]") -> None:
    """Raise UserError where there was nothing to measure at all."""
    if failures and not tried:
        first = failures[0]
        raise UserError(f"nothing to measure: {first.name}: {first.reason}")


def _stale(work: list[Work]) -> list[str]:
    """What is said of files that are not of the weights that were timed beside them."""
    return [
        f"{file.name} was exported from other weights than {folder.name} has now; export it again"
        for folder, files, whole in work
        if whole
        for card in [cards.card_of(folder)]
        for file in files
        if isinstance(file, Path) and cards.stale(file, card)
    ]


def _unexported(work: list[Work]) -> list[str]:
    """What is said of models that PyTorch alone can run: one line for all of them."""
    lone = [str(folder.path) for folder, files, whole in work if whole and not files]
    if not lone:
        return []
    has = "has" if len(lone) == 1 else "have"
    return [
        f"{', '.join(lone)} {has} no exported files, and PyTorch alone was measured: "
        f"`cifar-deploy export {' '.join(lone)}` makes some"
    ]


def _contestants(
    targets: Sequence[str], kind: Kind
) -> tuple[list[Work], dict[store.ModelFolder, UserError]]:
    """Models with their files and PyTorch, files alone, served models; else all trained models.

    Of all models the damaged ones stand apart, unless there is no other.
    """
    served = {t: found for t in targets if (found := address.read(t))}
    files = [Path(t) for t in targets if t not in served and Path(t).is_file()]
    kind.of_models([*files, *served.values()])
    named = [t for t in targets if t not in served and Path(t) not in files]
    if lost := [t for t in named if Path(t).suffix in store.EXPORTED]:
        way = to_export(Path(lost[0]))
        raise UserError(f"there is no file {lost[0]}; give its path, or run: {way}")
    folders = [architectures.folder(t) for t in named]
    if not targets:
        folders = kind.trained() if kind.chosen else store.all_trained()
    damaged: dict[store.ModelFolder, UserError] = {}
    for folder in folders:
        try:
            cards.read_card(folder)
        except UserError as error:
            damaged[folder] = error
            if targets or len(damaged) == len(folders):
                raise
    folders = [folder for folder in folders if folder not in damaged]
    those = kind.needed if kind.chosen else kind.files
    work: list[Work] = [(folder, list(those(folder)), True) for folder in folders]
    work += [(store.ModelFolder(file.parent), [file], False) for file in files]
    places: dict[str, Path] = {}
    for folder, *_ in work:  # in the table and in the JSON a model has its name alone
        here = folder.path.resolve()
        if places.setdefault(folder.name, here) != here:
            raise UserError(f"two models are called {folder.name}; measure one after the other")
    work += [
        (store.ModelFolder(store.models_root() / one.model), [one], False)
        for one in served.values()
    ]
    return work, damaged
