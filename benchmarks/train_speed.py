"""How fast training is: time to 94 % on a GPU, images a second on a CPU.

    python benchmarks/train_speed.py gpu [--seeds 10] [--airbench airbench94_muon.py]
    python benchmarks/train_speed.py cpu [--network vgg19] [--steps 12] [--rounds 3]
    python benchmarks/train_speed.py compiled [--network mobilenet_v3_small]
    python benchmarks/train_speed.py precisions [--network resnet18]
    python benchmarks/train_speed.py convolutions [--fp32]
    python benchmarks/train_speed.py memory [--network resnet50]
    python benchmarks/train_speed.py subnormals [--dead 36]

`gpu` trains custom_resnet's speed recipe with several seeds, and after each run airbench's where
the path of its script is given (it is not part of this project): on the same card, in turns.
Warm-up, compilation and data loading stand apart from the training time, for both. `cpu` compares
this loop with the usual one, a DataLoader with torchvision's transforms in fp32, in turns, and
`compiled` with itself under torch.compile, `precisions` itself in fp32 and bf16.
`convolutions` times the kinds that `train.cpu_convolution` does its own way, there and in torch's.
`memory` times steps on a CPU in processes that keep what they freed, and in others; `subnormals`
Muon's steps in processes that take numbers next to zero for zero, and in others.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import common
import torch
from torch import nn

from cifar_deploy import architectures, disk, recipe, store
from cifar_deploy import device as machine
from cifar_deploy.data import find
from cifar_deploy.data.dataset import SIZE, Dataset
from cifar_deploy.train.cpu_convolution import CONNECTED, CpuConvolutions
from cifar_deploy.train.loop import Job, Trainer
from cifar_deploy.train.muon import Muon
from cifar_deploy.train.objective import Objective
from cifar_deploy.train.process import flush_subnormals, keep_freed, prepare

NETWORK = "custom_resnet"


class Silent:
    """A `loop.Watch` that looks away."""

    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        """Nothing."""

    def epoch(self, record: disk.Json) -> None:
        """Nothing."""


def summary(values: list[float]) -> disk.Json:
    """Mean, sample standard deviation and range."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


# --- GPU: time to accuracy ----------------------------------------------------------------------


def ours(job: Job, seed: int) -> disk.Json:
    """One run: accuracy, seconds of training, and what came before."""
    train = dataclasses.replace(job.recipe.train, seed=seed)
    mine = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, train=train))
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    card = Trainer(mine).run(Silent())
    return {
        "seed": seed,
        "accuracy": card["test_accuracy"],
        # With the whitened filters, which stand in airbench's time as well.
        "train_seconds": card["train_seconds"] + card["init_seconds"],
        "wall_seconds": card["wall_seconds"],
        "warmup_seconds": card["warmup_seconds"],
        "data_seconds": card["data_seconds"],
        "all_seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }


def airbench(script: Path, dataset: Dataset, room: Path) -> Callable[[str], disk.Json]:
    """airbench's script as a function that makes one run of it, on the data set read here."""
    data = room / "cifar10"
    data.mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        tensors = {
            "images": torch.from_numpy(split.images),
            "labels": torch.from_numpy(split.labels),
            "classes": list(dataset.classes),
        }
        torch.save(tensors, data / f"{name}.pt")
    sys.argv[0] = str(script)  # it reads its own source
    spec = importlib.util.spec_from_file_location("airbench", script)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told: list[dict[str, Any]] = []
    wanted = ("val_acc", "tta_val_acc", "time_seconds")  # the rest of its variables holds memory
    module.print_training_details = lambda variables, is_final_entry: told.append(
        {name: variables[name] for name in wanted if name in variables}
    )
    network = module.CifarNet().cuda().to(memory_format=torch.channels_last)
    network.compile(mode="max-autotune")

    def run(name: str) -> disk.Json:
        told.clear()
        module.main(name, network)
        last = told[-1]
        return {
            "accuracy": float(last["val_acc"]),
            "accuracy_with_test_time_augmentation": float(last["tta_val_acc"]),
            # Its own clock; it runs through the test-time augmentation, which its 94 % need.
            "train_seconds": float(last["time_seconds"]),
            "train_seconds_before_test": float(told[-2]["time_seconds"]),
        }

    return run


def gpu(options: argparse.Namespace) -> disk.Json:
    """The speed recipe over seeds, with airbench between its runs."""
    device = machine.pick("cuda")
    started = time.perf_counter()
    dataset = find.load("auto", options.data_dir)
    reading = time.perf_counter() - started
    chosen = recipe.load(store.packaged_recipe(NETWORK, "speed.toml"), options.set)
    result: disk.Json = {"recipe": chosen.to_dict(), "read_seconds": round(reading, 3)}
    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        job = Job(NETWORK, chosen, dataset, device, store.ModelFolder(room / NETWORK))
        theirs = None
        script = options.airbench.resolve() if options.airbench else None
        if script:
            with contextlib.chdir(room):
                theirs = airbench(script, dataset, room)
                started = time.perf_counter()
                theirs("warmup")
                result["airbench_warmup_seconds"] = round(time.perf_counter() - started, 3)
        mine, other = [], []
        for seed in range(options.seeds):
            mine.append(ours(job, seed))
            print(f"ours      {mine[-1]['accuracy']:.4f} {mine[-1]['train_seconds']:.3f} s")
            if theirs:
                with contextlib.chdir(room):
                    other.append(theirs(str(seed)))
                print(f"airbench  {other[-1]['accuracy']:.4f} {other[-1]['train_seconds']:.3f} s")
            compare(result, mine, other)
            common.keep(options, device, result)  # a machine may be lost between two runs
    return result


def compare(result: disk.Json, mine: list[disk.Json], other: list[disk.Json]) -> None:
    """Write into `result` what the runs so far say."""
    for name, runs in (("ours", mine), ("airbench", other)):
        if runs:
            keys = ("accuracy", "train_seconds")
            result[name] = {"runs": runs, **{k: summary([r[k] for r in runs]) for k in keys}}
    if other:
        ratio = (
            result["ours"]["train_seconds"]["mean"] / result["airbench"]["train_seconds"]["mean"]
        )
        result["times_airbench"] = ratio


# --- CPU: images a second -----------------------------------------------------------------------


def usual(dataset: Dataset, network_name: str, batch: int, workers: int) -> Callable[[int], float]:
    """The usual loop: DataLoader, transforms of one image after another, fp32, NCHW."""
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    mean, std = dataset.normalisation
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(dataset.train)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image = Image.fromarray(dataset.train.images[index])
            return change(image), int(dataset.train.labels[index])

    loader = DataLoader(Images(), batch, shuffle=True, num_workers=workers, drop_last=True)
    network = architectures.build(network_name, len(dataset.classes)).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()

    def run(steps: int) -> float:
        batches = (each for _ in itertools.count() for each in loader)  # epoch after epoch
        next(batches)  # the workers are up
        started = time.perf_counter()
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()  # as everyone logs it
        return steps * batch / (time.perf_counter() - started)

    return run


def ready(dataset: Dataset, network: str, batch: int, *changes: str) -> Trainer:
    """A run with the network's own recipe, on images of their own size, before its first step."""
    found = store.packaged_recipe(network)
    same = (f"train.batch_size={batch}", "schedule.first_size=0")
    chosen = recipe.load(found, [*same, *changes])
    place = store.ModelFolder(Path("unused"))
    trainer = Trainer(Job(network, chosen, dataset, torch.device("cpu"), place))
    trainer._prepare()
    return trainer


def this(trainer: Trainer) -> Callable[[int], float]:
    """This project's loop."""
    batch = trainer.job.recipe.train.batch_size

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        return steps * batch / (time.perf_counter() - started)

    return run


def cpu(options: argparse.Namespace) -> disk.Json:
    """Images a second of this loop and the usual one, in turns."""
    prepare(torch.device("cpu"))  # as a training does; the usual loop has it, too
    dataset = find.load("auto", options.data_dir)
    loops = {
        "this": this(ready(dataset, options.network, options.batch_size)),
        "usual": usual(dataset, options.network, options.batch_size, options.workers),
    }
    result = in_turns(loops, options) | {"workers": options.workers}
    print(f"this loop: {result['ratio']:.2f} times the usual one")
    return result


def compiled(options: argparse.Namespace) -> disk.Json:
    """Images a second of this loop with torch.compile and without, in turns."""
    runs = varied(options, {"compiled": "train.compile=on", "eager": "train.compile=off"})
    warmup = runs["compiled"].warmup_seconds
    print(f"compiled after {warmup:.0f} s")
    result = in_turns({name: this(trainer) for name, trainer in runs.items()}, options)
    print(f"{options.network}: {result['ratio']:.2f} times as fast with torch.compile")
    return result | {"warmup_seconds": round(warmup, 1)}


def precisions(options: argparse.Namespace) -> disk.Json:
    """Images a second of this loop in fp32 and in bf16, in turns."""
    runs = varied(options, {name: f"train.precision={name}" for name in ("fp32", "bf16")})
    result = in_turns({name: this(trainer) for name, trainer in runs.items()}, options)
    print(f"{options.network}: {result['ratio']:.2f} times as fast in fp32")
    return result


def varied(options: argparse.Namespace, changes: dict[str, str]) -> dict[str, Trainer]:
    """By name, a run that is `ready` with each change of the recipe."""
    prepare(torch.device("cpu"))  # as a training does
    dataset = find.load("auto", options.data_dir)
    return {
        name: ready(dataset, options.network, options.batch_size, change)
        for name, change in changes.items()
    }


def in_turns(loops: dict[str, Callable[[int], float]], options: argparse.Namespace) -> disk.Json:
    """Images a second of two loops; the ratio is of the medians, of the first to the second."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for run in loops.values():
        run(1)
    for turn in range(options.rounds):
        for name, run in loops.items():
            rates[name].append(run(options.steps))
            print(f"round {turn + 1}  {name:<9}{rates[name][-1]:8.1f} images/s")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    one, other = medians.values()
    return {
        "network": options.network,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "bf16": machine.has_bf16(torch.device("cpu")),  # what a recipe that leaves it open takes
        "images_per_second": rates,
        "median": medians,
        "ratio": one / other,
    }


# --- CPU: what a process sets for itself --------------------------------------------------------


def memory(options: argparse.Namespace) -> disk.Json:
    """Seconds and page faults of a training step, with `keep_freed` and without, in turns."""
    step = functools.partial(one_step, options.network, options.batch_size)
    result = apart(options.rounds, ("given back", "kept"), step)
    print(f"{options.network}, batch {options.batch_size}: {result['ratio']} times as fast")
    return {"network": options.network, "batch_size": options.batch_size, **result}


def one_step(network: str, batch_size: int, kept: bool) -> disk.Json:
    """A bf16 training step of 32x32 images: seconds and page faults, medians of five after three.

    A heap that keeps what was freed grows now and then until the fifth step or later.
    """
    if kept:
        keep_freed(torch.device("cpu"))
    model = architectures.build(network).to(memory_format=torch.channels_last)
    objective = Objective(model, torch.tensor(1 / 255), torch.tensor(0.0), 0.1, bf16=True)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images = torch.randint(0, 256, (batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch_size,))
    seconds, faults = [], []
    for _ in range(8):
        started = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        objective(images, labels)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        "seconds": round(statistics.median(seconds[3:]), 3),
        "faults": statistics.median(faults[3:]),
    }


def subnormals(options: argparse.Namespace) -> disk.Json:
    """Seconds of Muon's step where filters died, with `flush_subnormals` and without, in turns."""
    step = functools.partial(one_update, options.dead)
    result = apart(options.rounds, ("computed", "flushed"), step)
    print(f"{options.dead} of 512 filters dead: {result['ratio']} times as fast")
    return {"dead": options.dead, **result}


def one_update(dead: int, flushed: bool) -> disk.Json:
    """Muon's step for 512 filters of 512 channels after another: its seconds.

    `dead` filters have no gradient, and a momentum that has decayed into subnormal numbers.
    """
    if flushed:
        flush_subnormals(torch.device("cpu"))
    filters = torch.nn.Parameter(torch.randn(512, 512, 3, 3))
    group = {"params": [filters], "muon": True, "keep_norm": False}
    optimizer = Muon([group], lr=0.01, momentum=0.9, nesterov=True)
    alive = (torch.arange(512) >= dead).float().view(-1, 1, 1, 1)
    gradient = 1e-3 * torch.randn_like(filters) * alive
    decayed = 1e-40 * torch.rand_like(filters) * (1 - alive)
    optimizer.state[filters]["momentum_buffer"] = gradient + decayed
    seconds = 0.0
    for _ in range(2):
        filters.grad = gradient.clone()
        started = time.perf_counter()
        optimizer.step()
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 4)}


def apart(rounds: int, names: tuple[str, str], step: Callable[[bool], disk.Json]) -> disk.Json:
    """What `step` measures in processes without a setting and with it, in turns."""
    found: dict[str, list[disk.Json]] = {name: [] for name in names}
    for turn in range(rounds):
        for name, its in zip(names, (False, True), strict=True):
            # A process each: what is set holds for a whole one.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found[name].append(pool.submit(step, its).result())
            figures = ", ".join(f"{n:,} {what}" for what, n in found[name][-1].items())
            print(f"round {turn + 1}, {name}: {figures}")
    medians = {
        name: statistics.median(step["seconds"] for step in steps) for name, steps in found.items()
    }
    without, having = medians.values()
    return {"steps": found, "median_seconds": medians, "ratio": round(without / having, 2)}


# --- CPU: single convolutions -------------------------------------------------------------------

# Channels in and out, side of the plane, side of the filter, groups, stride; of the seven networks.
IN_BF16 = (
    (512, 512, 4, 3, 1, 1),
    (512, 512, 2, 3, 1, 1),
    (256, 256, 4, 3, 1, 1),
    (512, 512, 4, 3, 1, 2),
    (64, 256, 32, 1, 1, 1),
    (512, 128, 16, 1, 1, 1),
    (1024, 2048, 8, 1, 1, 2),
    (512, 2048, 4, 1, 1, 1),
    (288, 288, 8, 5, 288, 2),
    (240, 240, 8, 5, 240, 1),
    (16, 16, 16, 3, 16, 1),
)
IN_FP32 = (
    (64, 64, 32, 3, 1, 1),
    (64, 128, 32, 3, 1, 1),
    (128, 128, 16, 3, 1, 1),
    (256, 256, 16, 3, 1, 1),
    (512, 512, 8, 3, 1, 1),
    (512, 512, 6, 3, 1, 1),
    (512, 512, 4, 3, 1, 1),
    (512, 512, 2, 3, 1, 1),
    (512, 512, 2, 3, 1, 2),
    (512, 512, 1, 3, 1, 1),
)


def convolutions(options: argparse.Namespace) -> disk.Json:
    """Milliseconds of a forward and backward pass, torch's way and this project's."""
    prepare(torch.device("cpu"))  # as a training does
    results = []
    for inputs, outputs, plane, side, groups, stride in IN_FP32 if options.fp32 else IN_BF16:
        layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
        layer.to(memory_format=torch.channels_last)
        dtype = torch.float32 if options.fp32 else torch.bfloat16
        x = torch.randn(options.batch_size, inputs, plane, plane, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        found: dict[str, list[float]] = {"torch": [], "this": []}
        for turn in range(options.rounds + 1):
            for name, way in (("torch", contextlib.nullcontext()), ("this", CpuConvolutions())):
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=not options.fp32), way:
                    y = layer(x)
                y.backward(y.detach())
                if turn:  # the first is a warm-up
                    found[name].append(1e3 * (time.perf_counter() - started))
        medians = {name: round(statistics.median(times), 2) for name, times in found.items()}
        ratio = round(medians["torch"] / medians["this"], 2)
        shape = f"{inputs} -> {outputs}, {plane}x{plane}, {side}x{side} / {stride}"
        dense = "Winograd" if options.fp32 and plane > CONNECTED else "small plane"
        kind = "depthwise" if groups > 1 else "1x1" if side == 1 else dense
        print(
            f"{shape:<28}{kind:<13}{medians['torch']:8.1f} {medians['this']:8.1f} ms {ratio:6.1f}"
        )
        results.append({"shape": shape, "kind": kind, "milliseconds": medians, "ratio": ratio})
    return {
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "precision": "fp32" if options.fp32 else "bf16",
        "convolutions": results,
    }


def main() -> None:
    """Parse, run, write the JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("--data-dir", type=Path)
    kinds = parser.add_subparsers(dest="kind", required=True)
    on_gpu = kinds.add_parser("gpu")
    on_gpu.add_argument("--seeds", type=int, default=10)
    on_gpu.add_argument("--airbench", type=Path, help="airbench94_muon.py, from its repository")
    on_gpu.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    on_cpu = kinds.add_parser("cpu")
    on_cpu.add_argument("--workers", type=int, default=2)
    others = [kinds.add_parser(name) for name in ("compiled", "precisions")]
    for loops, batch in ((on_cpu, 512), *((other, 256) for other in others)):
        loops.add_argument("--network", type=architectures.canonical, default=NETWORK)
        loops.add_argument("--steps", type=int, default=12)
        loops.add_argument("--rounds", type=int, default=3)
        loops.add_argument("--batch-size", type=int, default=batch)
    single = kinds.add_parser("convolutions")
    single.add_argument("--batch-size", type=int, default=256)
    single.add_argument("--rounds", type=int, default=5)
    single.add_argument("--fp32", action="store_true", help="in fp32 and not in bf16")
    kept = kinds.add_parser("memory")
    kept.add_argument("--network", type=architectures.canonical, default="resnet50")
    kept.add_argument("--batch-size", type=int, default=128)
    kept.add_argument("--rounds", type=int, default=3)
    tiny = kinds.add_parser("subnormals")
    tiny.add_argument("--dead", type=int, default=36, help="filters of 512 that get no gradient")
    tiny.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ways = (gpu, cpu, compiled, precisions, convolutions, memory, subnormals)
    measures = {function.__name__: function for function in ways}
    result = measures[options.kind](options)
    common.keep(options, torch.device("cuda" if options.kind == "gpu" else "cpu"), result)


if __name__ == "__main__":
    common.run(main)
