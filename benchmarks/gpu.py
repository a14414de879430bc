"""Everything that needs a GPU, in one command: test, train, export, validate, benchmark.

    make gpu OUT=results STAGES="tests train:simple_cnn,cnn9 export validate benchmark"

Each stage runs the program as a user would, a command at a time. A command that fails is written
down and the rest goes on. No stage runs longer than its limit, nor all of them than --total: a
training stops at its checkpoint, and the next call goes on with what is left. Needs no network and
nothing but what is installed; WHEELS names a folder of wheels to use besides. Weights stay in WORK;
OUT gets a few small files, `summary.json`, `gpu.log`, `report.html`, a JSON file of most stages and
LoadGen's logs, and besides what `pack` makes.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # of the program only names and constants are used here
STAGES = ("tests", "train", "speed", "export", "validate", "benchmark", "cpp", "loadgen")
# What is trained and measured first, should the time not do for all: the dearest comes last.
ORDER = (
    "custom_resnet",
    "cnn9",
    "mobilenet_v3_small",
    "simple_cnn",
    "resnet18",
    "vgg19",
    "resnet50",
)
ALL = (*STAGES, "pack")
PART = 15 << 20  # bytes of a packed part
# How a command is asked to stop, and the seconds it then has. On Ctrl-C `train` writes its
# checkpoint, `benchmark` what it has measured and pytest its summary.
ASKING = ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0))
ENDING = (signal.SIGTERM, signal.SIGHUP)  # what tells this script to end; the latter a terminal
POLL = 0.05  # seconds between two looks at what runs
TERMINAL = sys.stdout.isatty()
INTERRUPTED = 130  # the exit status after Ctrl-C
REFUSED = 2  # ... and after what the user has to mend
SPEED_SEEDS = 3  # at least
PATIENCE = 180.0  # seconds for what looks at the machine; the doctor compiles engines
# What tells CMake of the runtimes that the C++ library is built with, and its option for each.
CPP_RUNTIMES = {
    "ONNXRUNTIME_ROOT": "ONNXRUNTIME",
    "OpenVINO_DIR": "OPENVINO",
    "TENSORRT_ROOT": "TENSORRT",
    "TENSORRT_RTX_ROOT": "TENSORRT_RTX",
}
# What the program uses, and what is lost without it.
LIBRARIES = {
    "onnxruntime": "ONNX files do not run",
    "rich": "no table, no progress: train, validate and benchmark stop",
    "jinja2": "no report: validate stops",
    "torchinfo": "`models` does not work",
    "pynvml": "clocks, power and energy are not measured",
    "mlperf_loadgen": "no MLPerf scenarios",
    "tensorrt": "no engines of that flavour",
    "tensorrt_rtx_bindings": "no engines of that flavour",
}


@dataclass
class Step:
    """One command of a stage, or why there was none."""

    stage: str
    name: str
    command: str = ""
    seconds: float = 0.0
    rc: int | None = None
    status: str = "skipped"  # ok, failed, running, stopped (before its end), not started, skipped
    error: str = ""

    @property
    def title(self) -> str:
        """How a line about it begins."""
        return f"{self.stage:<10}{self.name:<34}"


@dataclass
class Session:
    """What was asked for, and what came of it."""

    asked: argparse.Namespace
    begun: str = ""
    end: float = math.inf  # of the whole call (time.monotonic)
    # The GPU and the libraries.
    facts: dict[str, Any] = field(default_factory=lambda: {"missing": {}, "checks": {}})
    steps: list[Step] = field(default_factory=list)

    def until(self, seconds: float) -> float:
        """The end (time.monotonic) of what may take so long, within the end of the whole."""
        return min(time.monotonic() + seconds, self.end)

    @property
    def out(self) -> Path:
        """The folder for results."""
        return Path(self.asked.out)

    @property
    def log(self) -> Path:
        """What all commands print."""
        return self.out / "gpu.log"

    @property
    def work(self) -> Path:
        """The folder for models and what is kept between calls."""
        return Path(self.asked.work)

    def environment(self) -> dict[str, str]:
        """Of every command: the checkout first, then the wheels; models in the work folder."""
        path = [str(ROOT), str(self.work / "site"), os.environ.get("PYTHONPATH", "")]
        return {
            # What torch.compile has found is there for the next call, too.
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "CIFAR_DEPLOY_MODELS": str(self.work / "models"),
        }


# --- running ------------------------------------------------------------------------------------


@dataclass
class Running:
    """A command that has begun, and where in which file its output is."""

    step: Step
    process: subprocess.Popen[bytes]
    log: Path
    start: int
    begin: float  # time.monotonic


def run(
    session: Session,
    stage: str,
    name: str,
    command: Sequence[str],
    end: float,
    explain: "Explain | None" = None,
) -> Step:
    """Run `command` until `end` (time.monotonic) at most; its output goes to the log.

    `explain` makes status and error of a bad exit status and of what it printed; by default it
    failed, and `first_error` is the error.
    """
    return run_all(session, stage, {name: command}, end, explain=explain)[0]


def run_all(
    session: Session,
    stage: str,
    commands: Mapping[str, Sequence[str]],
    end: float,
    jobs: int = 1,
    explain: "Explain | None" = None,
    ended: Callable[[], None] = lambda: None,
) -> list[Step]:
    """The same for commands by their names, `jobs` at a time; `ended` is called after each.

    What several print at a time goes to the log as each ends.
    """
    steps = [
        Step(stage, name, " ".join(command).replace(sys.executable, "python"))
        for name, command in commands.items()
    ]
    waiting = list(zip(steps, commands.values(), strict=True))
    active: list[Running] = []
    try:
        while waiting or active:
            if waiting and len(active) < jobs:
                begun = _start(session, *waiting.pop(0), end, jobs > 1)
                active += [begun] if begun else []
                continue
            over = time.monotonic() >= end
            done = [one for one in active if over or one.process.poll() is not None]
            if not done:
                time.sleep(POLL)
                continue
            _stopped(done, "stopped at its limit")
            _end(done)
            for one in done:
                active.remove(one)
                _finish(session, one, explain or _failure)
                ended()
    except KeyboardInterrupt:
        _stopped(active, "this script was told to end")
        save(session)  # before the commands take their time to end
        raise
    finally:
        _end(active)
        for one in active:
            _finish(session, one, explain or _failure)
    return steps


def _start(
    session: Session, step: Step, command: Sequence[str], end: float, own_log: bool
) -> Running | None:
    """Begin a command, if there is time."""
    session.steps.append(step)
    begin = time.monotonic()
    if begin >= end:
        step.status = "not started"
        print(f"{step.title}not started: the time is up")
        return None
    print(step.title, end="began\n" if own_log else "", flush=True)
    step.status = "running"
    save(session)  # this script, too, may be killed
    log = session.work / f"{step.stage}.{step.name}.log" if own_log else session.log
    with log.open("ab") as file:
        file.write(f"\n=== {step.stage} {step.name}\n$ {step.command}\n".encode())
        file.flush()
        start = file.tell()
        # A group of its own, so that all of it can be ended; not a session, which would outlive
        # the end of this one.
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=session.environment(),
            cwd=ROOT,
            process_group=0,
        )
    return Running(step, process, log, start, begin)


def _stopped(some: list[Running], why: str) -> None:
    """Write down of those that still run why they are about to be ended."""
    for one in some:
        if one.process.poll() is None:
            one.step.status, one.step.error = "stopped", why


def _end(some: list[Running]) -> None:
    """Ask what still runs of the processes' groups to stop, all at once, then make it."""
    processes = [one.process for one in some]
    try:
        for number, seconds in ASKING:
            until = time.monotonic() + seconds
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, number)
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
    finally:  # also what they have left behind, and where somebody is impatient
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _finish(session: Session, one: Running, explain: "Explain") -> None:
    """Write down what came of a command that has ended."""
    step = one.step
    step.seconds = round(time.monotonic() - one.begin, 1)
    step.rc = one.process.returncode
    printed = one.log.read_bytes()
    if one.log != session.log:
        with session.log.open("ab") as file:
            file.write(printed)
        one.log.unlink()
    if step.status == "running":
        step.status = "ok"
        if step.rc:
            output = printed[one.start :].decode(errors="replace")
            step.status, step.error = explain(step.rc, output)
    save(session)  # what comes after may be killed
    title = step.title if one.log != session.log else ""
    result = f"{step.status:<8}{step.seconds:8.1f} s  {step.error}"[:160].rstrip()
    print(title + result, flush=True)


Explain = Callable[[int, str], tuple[str, str]]


def _failure(_rc: int, output: str) -> tuple[str, str]:
    return "failed", first_error(output)


def first_error(output: str) -> str:
    """The line of a failed command's output that says most: its own error, else the exception."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (
        r"error: ",
        r"CMake Error: |cifar_deploy: ",
        r"FAILED |ERROR ",
        r"[\w.]*(Error|Exception|Interrupt)\b",
    ):
        for line in lines:
            if re.match(pattern, line):
                return line[:400]
    return lines[-1][:400] if lines else "it said nothing"


def skip(session: Session, stage: str, error: str) -> None:
    """Write down why a stage is left out."""
    session.steps.append(Step(stage, "-", error=error))
    print(f"{stage:<10}{'-':<34}skipped: {error}")


def before(session: Session, stage: str, name: str, what: str) -> None:
    """Write down what an earlier call has done."""
    step = Step(stage, name, status="ok", error=what)
    session.steps.append(step)
    print(f"{step.title}{what}")


def overrides(changes: list[str]) -> list[str]:
    """What changes a recipe, as options."""
    return [part for value in changes for part in ("--set", value)]


def program(*arguments: str) -> list[str]:
    """The program's command line."""
    return [sys.executable, "-m", "cifar_deploy", *arguments]


# --- stages -------------------------------------------------------------------------------------


def tests(session: Session, names: list[str], end: float) -> None:
    """The tests that need a GPU, all or those of the named files."""
    options = ["-m", "gpu", "-v", "-ra", "--durations=10", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *(names or ["tests"]), *options]
    run(session, "tests", ",".join(names) or "gpu", command, end)


def train(session: Session, names: list[str], end: float) -> None:
    """Train every network that has a recipe and is not trained in the work folder yet."""
    commands = {}
    for name in names or recipes():
        folder = session.work / "models" / name
        seeds = seeds_of(session, name)
        if seeds >= session.asked.seeds and not session.asked.again:
            before(session, "train", name, "trained before")
            continue
        unfinished = (folder / "checkpoint.safetensors", folder / "seeds")
        first = seeds and not session.asked.again  # of more seeds
        begun = ["--resume"] if first or any(path.exists() for path in unfinished) else []
        begun += ["--seeds", str(session.asked.seeds)] if session.asked.seeds > 1 else []
        source = ["--device", session.asked.device, "--data", session.asked.data]
        commands[name] = program("train", name, *source, *overrides(session.asked.set), *begun)
    # The cards after each training: what comes next may be killed.
    run_all(
        session, "train", commands, end, session.asked.jobs, ended=partial(write_cards, session)
    )
    write_cards(session)


def speed(session: Session, names: list[str], end: float) -> None:
    """Time to 94 %: custom_resnet's speed recipe, beside airbench where its script is named."""
    if session.asked.device == "cpu":
        skip(session, "speed", "its time is a GPU's")
        return
    script = [sys.executable, str(ROOT / "benchmarks" / "train_speed.py")]
    asked, seeds = session.asked, max(session.asked.seeds, SPEED_SEEDS)
    options = ["--seeds", str(seeds), *overrides(asked.speed_set)]
    options += ["--airbench", asked.airbench] if asked.airbench else []
    found = session.work / "speed.json"
    timed = json.loads(found.read_text()) if found.exists() else {}
    kinds = ["ours", *(["airbench"] if asked.airbench else [])]
    if not asked.again and all(len(timed.get(k, {}).get("runs", [])) >= seeds for k in kinds):
        before(session, "speed", "custom_resnet", "measured before")
    else:
        command = [*script, "--json", str(found), "gpu", *options]
        run(session, "speed", "custom_resnet", command, end)
    write_cards(session)


def write_cards(session: Session) -> None:
    """The cards of what was trained here, and what the speed stage measured."""
    cards, timed = {}, session.work / "speed.json"
    for card in sorted(session.work.glob("models/*/card.json")):
        if trained_here(session, card.parent.name):
            cards[card.parent.name] = json.loads(card.read_text())
    more = {"speed": json.loads(timed.read_text())} if timed.exists() else {}
    write(session.out / "train.json", {"cards": cards, **more})


def export(session: Session, names: list[str], end: float) -> None:
    """Every format in every precision, but for files that are there, of these weights.

    A model at a time only where all together fail.
    """
    from cifar_deploy.store import ModelFolder, manifest_path

    chosen = trained_of(session, "export", names)
    if not chosen:
        return
    for flavour, why in unsupported(session).items():
        skip(session, "export", f"engines of {flavour}: {why}")
    for label, options in formats(session):
        missing = [
            name for name in chosen if session.asked.again or not made(session, name, options)
        ]
        if not missing:
            before(session, "export", f"{label} of {len(chosen)} models", "exported before")
            continue
        command = program("export", *missing, *options)
        step = run(session, "export", f"{label} of {len(chosen)} models", command, end)
        if step.status == "failed" and len(missing) > 1:
            for name in missing:
                run(session, "export", f"{label} {name}", program("export", name, *options), end)
    folders = [ModelFolder(path) for path in sorted(session.work.glob("models/*"))]
    beside = [manifest_path(file) for folder in folders for file in folder.exported()]
    manifests = [json.loads(path.read_text()) for path in beside if path.exists()]
    write(session.out / "export.json", {"manifests": manifests})


def validate(session: Session, names: list[str], end: float) -> None:
    """The verdicts over all models at once, one by one where that crashes; then latency, too.

    With --cpu-verdicts, where ONNX Runtime has no CUDA provider, on the CPU as well: the GPU waits
    meanwhile.
    """
    chosen = those(session, "validate", names, exported, "exported")
    if not chosen:
        return
    options = ["--device", session.asked.device]
    if session.asked.images:
        options += ["--images", str(session.asked.images)]
    options += session.asked.validate_args.split()
    judged: dict[str, list[Any]] = {}

    def keep(key: str, some: list[Any]) -> None:
        judged[key] = some
        write(session.out / "validation.json", judged)

    _validate(session, chosen, "", options, end, partial(keep, "models"))
    cuda = session.facts["checks"].get("onnxruntime cuda", {"works": True})
    there = "onnxruntime" not in session.facts["missing"]
    on_cpu = session.asked.cpu_verdicts and session.asked.device != "cpu"
    if on_cpu and there and not cuda["works"]:
        options = [*options, "--no-latency"]
        options[1] = "cpu"
        keep_cpu = partial(keep, "models_on_cpu")
        _validate(session, chosen, " on the CPU", options, end, keep_cpu)


def _validate(
    session: Session,
    names: list[str],
    where: str,
    options: list[str],
    end: float,
    keep: Callable[[list[Any]], None],
) -> None:
    """`keep` gets all that is judged so far, each time: what comes after may be killed."""
    found = session.work / "validation.json"

    def judge(label: str, some: list[str], page: Path, *more: str) -> list[Any]:
        found.unlink(missing_ok=True)
        written = ["--json", str(found), "--report", str(page)]
        command = program("validate", *some, *options, *more, *written)
        run(session, "validate", label + where, command, end, partial(_verdicts, found))
        return json.loads(found.read_text())["models"] if found.exists() else []

    page = session.work / "report-cpu.html" if where else session.out / "report.html"
    quick = "--no-latency"
    judged = judge(f"{len(names)} models", names, page, quick)
    keep(judged)
    if not judged and len(names) > 1 and session.steps[-1].status == "failed":
        for name in names:
            judged += judge(name, [name], session.work / f"{name}.html", quick)
            keep(judged)
    elif _usable(judged) and quick not in options:  # the verdicts are safe: now what takes its time
        keep(judge(f"{len(names)} models, latency", names, page) or judged)


def _usable(judged: list[Any]) -> bool:
    """Whether any file could be run."""
    verdicts = {row["verdict"] for model in judged for row in model["rows"]}
    return not verdicts <= {"REFERENCE", "UNUSABLE"}


def _verdicts(found: Path, rc: int, output: str) -> tuple[str, str]:
    """Which files did not pass; where nothing was judged, the error."""
    if not found.exists():
        return _failure(rc, output)
    rows = [row for model in json.loads(found.read_text())["models"] for row in model["rows"]]
    said = [
        f"{Path(row['file']).name}: {row['verdict']}"
        for row in rows
        if row["verdict"] in NOT_PASSED
    ]
    return "failed", "; ".join(said)


NOT_PASSED = ("FAIL", "INCONCLUSIVE", "UNUSABLE")


def benchmark(session: Session, names: list[str], end: float) -> None:
    """The latency table of each model; what an earlier call measured is not measured again.

    PyTorch takes part also where nothing is exported. Then once more with torch.compile, whose
    max-autotune takes minutes a model: at two batch sizes.
    """
    chosen = trained_of(session, "benchmark", names)
    options = ["--device", session.asked.device, "--seconds", str(session.asked.seconds)]
    options += session.asked.benchmark_args.split()
    sizes = [part for size in session.asked.batch for part in ("--batch", size)]
    if {"--compile", "--no-compile"} & set(options) or session.asked.device == "cpu":
        _measure(session, "benchmark", chosen, [("", [*options, *sizes])], end)
        return
    _measure(session, "benchmark", chosen, [("", [*options, *sizes, "--no-compile"])], end)
    sizes = sizes or ["--batch", "1", "--batch", "256"]
    _measure(session, "benchmark", chosen, [("compiled", [*options, *sizes, "--compile"])], end)


def cpp(session: Session, names: list[str], end: float) -> None:
    """What is proved, in C++: the package of each file with a PASS, judged and timed there.

    The library is built with the runtimes that the environment names. What they do not run on the
    device is left out; what an earlier call has found in order is not run again.
    """
    if missing := [tool for tool in ("cmake", "c++") if not shutil.which(tool)]:
        skip(session, "cpp", f"{' and '.join(missing)} not found")
        return
    named = {name: os.environ[name] for name in CPP_RUNTIMES if os.environ.get(name)}
    if not named:
        skip(session, "cpp", f"none of {', '.join(CPP_RUNTIMES)} names a runtime's folder")
        return
    if {"TENSORRT_ROOT", "TENSORRT_RTX_ROOT"} <= named.keys():  # a program holds one of them
        skip(
            session, "cpp", "TENSORRT_RTX_ROOT, beside TENSORRT_ROOT: give it in a call of its own"
        )
        del named["TENSORRT_RTX_ROOT"]
    chosen = those(session, "cpp", names, exported, "exported")
    files = [(name, file) for name in chosen for file in proved(session, name, named)]
    if not files:
        runs = ", ".join(named)
        skip(session, "cpp", f"no file with a PASS runs on {session.asked.device} by {runs}")
        return
    build = session.work / "cpp-build"
    options = [f"-D{name}={Path(path).absolute()}" for name, path in named.items()]
    for name, option in CPP_RUNTIMES.items():
        options.append(f"-DCIFAR_DEPLOY_WITH_{option}={'ON' if name in named else 'OFF'}")
    make = ["cmake", "-S", str(ROOT / "cpp"), "-B", str(build), *options]
    programs = ["cmake", "--build", str(build), "--target", "classify", "benchmark"]
    for what, command in (("configure", make), ("build", programs)):
        if run(session, "cpp", f"{what} the library", command, end).status != "ok":
            return
    results = session.work / "cpp"
    results.mkdir(exist_ok=True)
    for name, file in files:
        found = results / f"{file.name}.json"
        if _run_before(found, file) and not session.asked.again:
            before(session, "cpp", file.name, "run before")
            continue
        place = session.work / "packages" / file.name
        shutil.rmtree(place, ignore_errors=True)
        command = program("package", str(file), "--target", "cpp", "--out", str(place))
        if run(session, "cpp", f"package {file.name}", command, end).status != "ok":
            continue
        script = [sys.executable, str(ROOT / "benchmarks" / "cpp_target.py"), str(place)]
        script += ["--model", name, "--programs", str(build / "bin"), "--json", str(found)]
        script += ["--device", session.asked.device, "--seconds", str(session.asked.seconds)]
        if session.asked.batch:
            script += ["--batch", ",".join(session.asked.batch)]
        run(session, "cpp", file.name, script, end, _unlike)
        write_runs(session, "cpp")  # each time: what comes after may be killed
    write_runs(session, "cpp")


def proved(session: Session, name: str, runtimes: Mapping[str, str]) -> list[Path]:
    """The model's files that have a PASS where it counts, and run by those runtimes of C++."""
    from cifar_deploy.errors import UserError
    from cifar_deploy.package import source
    from cifar_deploy.store import ModelFolder

    there = {CPP_RUNTIMES[name].lower().replace("_", "-") for name in runtimes}
    # OpenVINO is for CPUs.
    on_onnx = {"onnxruntime", *(["openvino"] if session.asked.device == "cpu" else [])}
    files = []
    for file in exported(session, name):
        with contextlib.suppress(UserError):  # damaged, or of other weights: validate has told
            found = source.find(ModelFolder(session.work / "models" / name), file)
            runs = found.backend in there or (found.engine is None and there & on_onnx)
            files += [file] if found.proved and runs else []
    return files


def _run_before(found: Path, file: Path) -> bool:
    """Whether the package of just this file was found in order."""
    from cifar_deploy.disk import sha256_of

    if not found.exists():
        return False
    (result,) = json.loads(found.read_text())["results"]
    return bool(result["ok"] and result["sha256"] == sha256_of(file))


def _unlike(rc: int, output: str) -> tuple[str, str]:
    """In what a package is not what it was proved to be."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if not re.search(r": PASS: \d+ images", line)]
    return ("failed", "; ".join(said)[:400]) if rc == 1 and said else _failure(rc, output)


def loadgen(session: Session, names: list[str], end: float) -> None:
    """MLPerf's scenarios of each model."""
    if "mlperf_loadgen" in session.facts["missing"]:
        skip(session, "loadgen", "mlcommons-loadgen is not installed")
        return
    ways = []
    for scenario in ("SingleStream", "Offline"):
        options = ["--device", session.asked.device, "--scenario", scenario, "--no-compile"]
        options += ["--seconds", str(5 * session.asked.seconds)]
        options += ["--out", str(session.work / "loadgen-logs")]
        options += ["--images", str(session.asked.images)] if session.asked.images else []
        ways.append((scenario, options))
    _measure(session, "loadgen", trained_of(session, "loadgen", names), ways, end)
    if (logs := session.work / "loadgen-logs").exists():  # what the figures rest on, in one file
        shutil.make_archive(str(session.out / "loadgen-logs"), "gztar", logs)


def _measure(
    session: Session,
    stage: str,
    names: list[str],
    ways: list[tuple[str, list[str]]],
    end: float,
) -> None:
    results = session.work / stage
    results.mkdir(parents=True, exist_ok=True)
    for name in names:
        for way, options in ways:
            found = results / f"{name}{way and '.'}{way}.json"
            if _measured(session, name, found) and not session.asked.again:
                before(session, stage, found.stem, "measured before")
                continue
            command = program("benchmark", name, *options, "--json", str(found))
            since = time.time()
            run(session, stage, found.stem, command, end, partial(_unmeasured, found, since))
            write_runs(session, stage)  # each time: what comes after may be killed
    write_runs(session, stage)


def _measured(session: Session, name: str, found: Path) -> bool:
    """Whether a measurement was made to its end, with all files that there are now."""
    if not found.exists():
        return False
    from cifar_deploy.benchmark.sweep import UNFINISHED

    value = json.loads(found.read_text())
    told = _results(value) + value["failures"]
    names = {entry["name"].partition(", ")[0] for entry in told}  # without the file's runtime
    files = {file.name for file in exported(session, name)}
    return UNFINISHED not in value["remarks"] and files <= names


def _results(value: dict[str, Any]) -> list[Any]:
    """What was measured, by the program or by LoadGen."""
    measured: list[Any] = value.get("rows") or value.get("results") or []
    return measured


def _unmeasured(found: Path, since: float, rc: int, output: str) -> tuple[str, str]:
    """What was not measured; no failure where files could not be opened and the rest was."""
    if rc != 1 or not found.exists() or found.stat().st_mtime < since:
        return _failure(rc, output)
    value = json.loads(found.read_text())
    failures = value["failures"]
    if not failures:
        return _failure(rc, output)
    said = []
    for one in failures:
        batch = "" if one["batch"] is None else f", batch {one['batch']}"
        said.append(f"{one['name']}{batch}: {one['reason']}")
    opened = [one for one in failures if one["batch"] or not FILE.search(one["name"])]
    return "failed" if opened or not _results(value) else "ok", "; ".join(said)


FILE = re.compile(r"\.(onnx|engine)\b")


def write_runs(session: Session, stage: str) -> None:
    """What a stage has measured."""
    found = sorted((session.work / stage).glob("*.json"))
    runs = {path.stem: json.loads(path.read_text()) for path in found}
    write(session.out / f"{stage}.json", {"runs": runs})


def pack(session: Session, names: list[str], end: float) -> None:
    """Weights, cards and curves of the named models as a tar in parts of at most 15 MiB.

    Put together again with: cat models.tar.* | tar x
    """
    whole = session.work / "models.tar"
    added: set[str] = set()
    with tarfile.open(whole, "w") as archive:
        for name in names or recipes():
            for file in ("model.safetensors", "card.json", "curves.png", "log.jsonl"):
                path = session.work / "models" / name / file
                if path.exists():
                    archive.add(path, f"{name}/{file}")
                    added.add(name)
    left_out = [name for name in names if name not in added]
    if left_out or not added:
        lost = ", ".join(left_out) or "all"
        fail(session, "pack", f"nothing of {lost} is in {session.work}/models")
    if not added:
        return
    parts = 0
    with whole.open("rb") as packed:
        while piece := packed.read(PART):
            (session.out / f"models.tar.{parts:02d}").write_bytes(piece)
            parts += 1
    session.steps.append(Step("pack", ",".join(names) or "all", status="ok", rc=0))
    print(f"{'pack':<10}{parts} parts, {whole.stat().st_size / 1e6:.1f} MB")
    whole.unlink()


# --- what there is ------------------------------------------------------------------------------


def recipes() -> list[str]:
    """The networks that have a recipe, in the order in which they are worth their time."""
    from cifar_deploy.architectures import NETWORKS

    ordered = sorted(NETWORKS, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return [name for name in ordered if (ROOT / "models" / name / "recipe.toml").exists()]


def trained_of(session: Session, stage: str, names: list[str]) -> list[str]:
    """The trained ones of the names, or of all that have a recipe."""
    return those(session, stage, names, trained, "trained")


def those(
    session: Session,
    stage: str,
    names: list[str],
    there: Callable[[Session, str], object],
    what: str,
) -> list[str]:
    """Those of the names, or of all that have a recipe, that are `there`, which is called `what`.

    The others that were asked for are a failure, and so it is where none is there.
    """
    chosen = [name for name in names or recipes() if there(session, name)]
    left_out = [name for name in names if name not in chosen]
    if left_out or not chosen:
        fail(session, stage, f"nothing of {', '.join(left_out) or 'all'} is {what}")
    return chosen


def fail(session: Session, stage: str, error: str) -> None:
    """Write down that a stage has nothing to work on, or not all that was asked for."""
    session.steps.append(Step(stage, "-", status="failed", error=error))
    print(f"{stage:<10}{'-':<34}failed: {error}")


def trained(session: Session, name: str) -> bool:
    """Whether the model is trained; what the checkout has is used where nothing else is."""
    folder, published = session.work / "models" / name, ROOT / "models" / name
    begun = (folder / "card.json").exists() or (folder / "checkpoint.safetensors").exists()
    # Of some networks only the card is published.
    if not begun and (published / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("model.safetensors", "card.json"):
            shutil.copy(published / file, folder / file)
    return (folder / "card.json").exists()


def trained_here(session: Session, name: str) -> bool:
    """Whether the model was trained in the work folder, and not taken from the checkout."""
    card, published = (p / name / "card.json" for p in (session.work / "models", ROOT / "models"))
    if not card.exists() or (session.work / "models" / name / "seeds").exists():
        return False
    return not published.exists() or card.read_bytes() != published.read_bytes()


def seeds_of(session: Session, name: str) -> int:
    """With how many seeds the model was trained in the work folder."""
    if not trained_here(session, name):
        return 0
    card = json.loads((session.work / "models" / name / "card.json").read_text())
    return len(card.get("runs") or [card])


def exported(session: Session, name: str) -> list[Path]:
    """The model's exported files."""
    from cifar_deploy.store import ModelFolder

    return ModelFolder(session.work / "models" / name).exported()


def made(session: Session, name: str, options: list[str]) -> bool:
    """Whether the file that `export` with these options makes is there, of the weights of now."""
    from cifar_deploy.cards import card_of, stale
    from cifar_deploy.engines.flavour import TENSORRT
    from cifar_deploy.store import ModelFolder, manifest_path

    folder = ModelFolder(session.work / "models" / name)
    asked = dict(zip(options[::2], options[1::2], strict=True))
    precision, flavour = asked["--precision"], asked.get("--flavour")
    file = folder.engine(precision, flavour) if flavour else folder.onnx(precision)
    if not file.exists() or not manifest_path(file).exists() or stale(file, card_of(folder)):
        return False
    if flavour != TENSORRT:
        return True
    built = json.loads(manifest_path(file).read_text()).get("gpu") or {}
    return bool(built.get("name") == session.facts.get("gpu"))


def formats(session: Session) -> Iterator[tuple[str, list[str]]]:
    """Label and options of each format, flavour and precision that can be made here."""
    from cifar_deploy.kind import Format, Precision

    asked = session.asked
    kinds = [kind for kind in Format if not asked.format or kind in asked.format]
    precisions = [p for p in Precision if not asked.precision or p in asked.precision]
    useless = unsupported(session)
    there = [name for name in installed(session) if name not in useless]
    for kind in kinds:
        for flavour in there if kind == Format.trt else [""]:
            for precision in precisions:
                if kind == Format.onnx and precision == Precision.int8:
                    continue  # it is for CPUs; that of an engine comes with the engine
                options = ["--format", kind.value, "--precision", precision.value]
                options += ["--flavour", flavour] if flavour else []
                yield " ".join(filter(None, [kind.value, flavour, precision.value])), options


def installed(session: Session) -> list[str]:
    """The flavours of TensorRT that are installed here."""
    from cifar_deploy.engines import flavour as flavours

    missing = set(session.facts["missing"])
    return [name for name in flavours.NAMES if missing.isdisjoint(flavours.MODULES[name])]


def unsupported(session: Session) -> dict[str, str]:
    """Of these, those that could not build and load an engine here, and what they said."""
    tried = {name: session.facts["checks"].get(name) for name in installed(session)}
    return {name: one["detail"] for name, one in tried.items() if one and not one["works"]}


PROBE = """
import importlib.util, json, sys
import torch
there = torch.cuda.is_available()
facts = {"torch": torch.__version__, "cuda": torch.version.cuda}
facts["gpu"] = torch.cuda.get_device_name(0) if there else None
if there:
    facts["compute_capability"] = "%d.%d" % torch.cuda.get_device_capability(0)
facts["missing"] = [name for name in sys.argv[1:] if not importlib.util.find_spec(name)]
print(json.dumps(facts))
"""


def machine(session: Session) -> dict[str, Any]:
    """The GPU and the libraries, as the commands see them."""
    done, failure = look(session, [sys.executable, "-c", PROBE, *LIBRARIES])
    facts: dict[str, Any] = {"torch": failure, "missing": []}
    if not failure:
        facts = json.loads(done.splitlines()[-1])
    facts["missing"] = {name: LIBRARIES[name] for name in facts["missing"]}
    facts["checks"] = checks(session)
    if smi := shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,clocks.max.sm,power.limit,temperature.gpu"
        said, failure = look(session, [smi, query, "--format=csv,noheader"])
        facts["nvidia_smi"] = said or failure
    return {**facts, "python": platform.python_version()}


def look(session: Session, command: Sequence[str]) -> tuple[str, str]:
    """What a command that looks at the machine prints, and why it failed; "" where it did not."""
    seconds = max(0.0, session.until(PATIENCE) - time.monotonic())
    try:
        done = subprocess.run(
            command,
            env=session.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return "", f"stopped after {seconds:.1f} s"
    return done.stdout.strip(), first_error(done.stderr) if done.returncode else ""


def checks(session: Session) -> dict[str, Any]:
    """What the program's doctor tried here, by name; a trial may end its process, or never end."""
    printed, failure = look(session, program("doctor", "--json"))
    # Libraries that it tries may print as well.
    answer = re.search(r"^\{$.*", printed, re.MULTILINE | re.DOTALL)
    if answer and not failure:
        return {check.pop("name"): check for check in json.loads(answer[0])["checks"]}
    return {"doctor": {"works": False, "detail": failure or "it said nothing"}}


def install(session: Session) -> None:
    """The wheels of the WHEELS folder, beside what is installed; without a network."""
    wheels = sorted(str(path) for path in Path(session.asked.wheels).absolute().glob("*.whl"))
    target = str(session.work / "site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command = [*pip, "--upgrade", "--target", target, *wheels]
    run(session, "wheels", f"{len(wheels)} wheels", command, session.until(300))


# --- the whole ----------------------------------------------------------------------------------


def write(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all: this script may be killed."""
    from cifar_deploy.disk import write_text

    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def earlier_steps(summary: Path) -> list[dict[str, Any]]:
    """The steps in a `summary.json`; none where it is missing, or damaged, which is told."""
    if not summary.exists():
        return []
    try:
        return [asdict(Step(**step)) for step in json.loads(summary.read_text())["steps"]]
    except (ValueError, KeyError, TypeError):
        print(f"{summary} is no summary of this script's; it is written anew", flush=True)
        return []


def save(session: Session) -> list[dict[str, Any]]:
    """Write `summary.json`, keeping what earlier calls said of other steps. Returns all steps."""
    path = session.out / "summary.json"
    earlier = earlier_steps(path)

    def same(stage: str, name: str) -> tuple[str, str]:  # of however many models
        return stage, re.sub(r"\d+ models", "models", name)

    mine = {same(step.stage, step.name) for step in session.steps}
    # Also what a stage said of itself is said anew.
    mine |= {(step.stage, "-") for step in session.steps if step.status != "not started"}
    steps = [step for step in earlier if same(step["stage"], step["name"]) not in mine]
    steps += [asdict(step) for step in session.steps]
    summary = {
        "machine": session.facts,
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "begun": session.begun,
        "ended": now(),
        "not_ok": len(unwell(steps)),
        "steps": steps,
    }
    write(path, summary)
    return steps


def unwell(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that failed or did not end."""
    return [step for step in steps if step["status"] not in ("ok", "skipped")]


def summarise(session: Session) -> int:
    """Print what came of every step; the exit status."""
    steps, facts = save(session), session.facts
    print(f"\n{facts.get('gpu') or 'no GPU'}, torch {facts.get('torch')}")
    for module, lost in facts["missing"].items():
        print(f"not installed: {module} ({lost})")
    for stage in dict.fromkeys(step["stage"] for step in steps):
        there = [step for step in steps if step["stage"] == stage]
        states = [step["status"] for step in there]
        counted = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        print(f"{stage:<10}{sum(s['seconds'] for s in there):8.1f} s  {counted}")
    for step in unwell(steps):
        print(f"{step['stage']} {step['name']}: {step['status']}: {step['error']}"[:200])
    print(f"results: {session.out}")
    return 1 if unwell(steps) else 0


def now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def chosen_stages(text: str) -> list[tuple[str, list[str]]]:
    """ "train:simple_cnn,cnn9 export" as stages with their names. UserError where there is none."""
    from cifar_deploy.errors import UserError

    stages = []
    for word in text.split():
        stage, _, names = word.partition(":")
        if stage not in ALL:
            raise UserError(f"no stage is called {stage}; there are {', '.join(ALL)}")
        stages.append((stage, [name for name in names.split(",") if name]))
    return stages


def main() -> int:
    """Parse, run the stages, sum up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "build/gpu/out"), help="results go here")
    parser.add_argument("--work", default=str(ROOT / "build/gpu"), help="models, kept for later")
    parser.add_argument("--stages", default=" ".join(STAGES), help=f"of {', '.join(ALL)}")
    parser.add_argument("--limit", type=float, default=480, help="seconds a stage may take")
    parser.add_argument("--total", type=float, default=math.inf, help="... and all of them")
    parser.add_argument("--wheels", default="", help="folder of wheels to install first")
    parser.add_argument("--device", default="cuda", help="cuda; cpu to try this script out")
    parser.add_argument("--data", default="auto", help="auto or synthetic")
    parser.add_argument("--set", action="append", default=[], help="override recipes to train")
    parser.add_argument("--speed-set", action="append", default=[], help="override speed's recipe")
    parser.add_argument("--seeds", type=int, default=1, help="train with so many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time on the device")
    parser.add_argument("--airbench", default="", help="airbench94_muon.py, for the speed stage")
    parser.add_argument("--format", action="append", default=[], help="export only these")
    parser.add_argument("--precision", action="append", default=[], help="export only these")
    parser.add_argument("--images", type=int, default=0, help="validate on the first so many")
    parser.add_argument("--seconds", type=float, default=1.0, help="a file and batch, benchmark")
    parser.add_argument("--batch", action="append", default=[], help="batch sizes, benchmark")
    parser.add_argument("--validate-args", default="", help="more options, as one text")
    parser.add_argument("--cpu-verdicts", action="store_true", help="where CUDA runs no ONNX file")
    parser.add_argument("--benchmark-args", default="", help="more options, as one text")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    session = Session(parser.parse_args(), begun=now())
    if session.asked.jobs < 1:
        parser.error("--jobs: at least 1")
    session.end = session.until(session.asked.total)
    from cifar_deploy.errors import UserError

    try:
        stages = chosen_stages(session.asked.stages)
        make_folders(session)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    try:
        run_stages(session, stages)
    except KeyboardInterrupt:
        print("\ntold to end")
        summarise(session)
        return INTERRUPTED
    return summarise(session)


def make_folders(session: Session) -> None:
    """The folders for results and for models. Raises UserError where the disk refuses."""
    from cifar_deploy.disk import check_place
    from cifar_deploy.errors import disk_errors

    session.asked.out = str(session.out.absolute())
    session.asked.work = str(session.work.absolute())
    if session.asked.airbench:
        session.asked.airbench = str(Path(session.asked.airbench).absolute())
    for folder in (session.out, session.work / "models"):
        with disk_errors(folder, "make"):
            folder.mkdir(parents=True, exist_ok=True)
        check_place(folder / "summary.json")


def run_stages(session: Session, stages: list[tuple[str, list[str]]]) -> None:
    """One after another, on the machine as it is found."""
    if session.asked.wheels:
        install(session)
    sys.path.insert(1, str(session.work / "site"))  # as the commands have it
    session.facts = machine(session)
    print(f"{session.facts.get('gpu') or 'no GPU'}, torch {session.facts['torch']}", flush=True)
    for stage, names in stages:
        try:
            globals()[stage](session, names, session.until(session.asked.limit))
        except Exception as error:  # a stage's own fault: the others still run
            session.steps.append(Step(stage, "-", status="failed", error=repr(error)))
            print(f"{stage:<10}failed: {error!r}")


def interrupt(number: int, _frame: FrameType | None) -> None:
    """They are Ctrl-C; `timeout` sends its own twice, and the second must not disturb the end."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    if number == signal.SIGHUP and TERMINAL:  # nothing can be printed there any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    # A shell makes what it runs in the background deaf to Ctrl-C, and so what that runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
