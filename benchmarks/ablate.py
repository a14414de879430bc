"""What each ingredient of a recipe is worth: held-out accuracy with it, and with it changed.

    python benchmarks/ablate.py custom_resnet --seeds 3 \\
        --set augment.cutout=0 --set train.ema=0 --set "augment.flip=false augment.alternate=false"

Every --set is a variation: one change, or several with spaces between them. The recipe itself comes
first. 5,000 training images are held out and judged at the end; the test images are not looked at.
What is done stands in build/ablate/NETWORK.json and is not done again: the same command goes on
where it was stopped. At the end it prints the table for docs/training.md.
"""

import argparse
import hashlib
import json
import statistics
import sys
from pathlib import Path

import common

from cifar_deploy import architectures, disk, recipe, store
from cifar_deploy import device as machine
from cifar_deploy.data import find
from cifar_deploy.data.dataset import Dataset
from cifar_deploy.errors import UserError
from cifar_deploy.train import teachers
from cifar_deploy.train.interrupt import Interrupted
from cifar_deploy.train.loop import Diverged, Job, Trainer
from cifar_deploy.train.process import prepare
from cifar_deploy.train.progress import Bar

WHOLE = "the recipe"


def key_of(variation: str, seed: int, chosen: recipe.Recipe, data_sha256: str, device: str) -> str:
    """What a result stands under: another recipe, data set, teacher or device gives another."""
    facts = json.dumps(
        [chosen.to_dict(), data_sha256, teachers.facts(chosen), device], sort_keys=True
    )
    return f"{variation} / seed {seed} / {hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def run(options: argparse.Namespace, dataset: Dataset) -> list[disk.Json]:
    """All results, in the order of the variations; those in the file are taken from there."""
    if options.hold_out < 1 or options.seeds < 1:
        raise UserError("--hold-out and --seeds are 1 or more")
    place = options.out / f"{options.network}.json"
    done: disk.Json = disk.read_json(place) if place.exists() else {"results": {}}
    folder = store.ModelFolder(store.models_root() / options.network)
    found = recipe.find(options.recipe, folder, options.network)
    basis = [f"data.holdout={options.hold_out}", "data.test=false", *options.basis]
    if options.epochs is not None:
        basis.append(f"train.epochs={options.epochs}")
    sha256 = dataset.sha256
    device = machine.describe(machine.pick(options.device))
    as_it_is = recipe.load(found, basis)
    for variation in options.set:
        if recipe.load(found, [*basis, *variation.split()]) == as_it_is:
            raise UserError(f"--set {variation} changes nothing: the recipe has that already")
    results = []
    # A seed after the other, so that every variation has a first result soon.
    for seed in range(options.seeds):
        for variation in (WHOLE, *options.set):
            changes = [] if variation == WHOLE else variation.split()
            chosen = recipe.load(found, [*basis, *changes, f"train.seed={seed}"])
            key = key_of(variation, seed, chosen, sha256, device)
            if key not in done["results"]:
                print(f"{variation}, seed {seed}", file=sys.stderr)
                done["results"][key] = one(options, chosen, dataset, variation, seed)
                done |= {"versions": machine.versions()}
                disk.write_json(place, done)
            results.append(done["results"][key])
    return results


def one(
    options: argparse.Namespace,
    chosen: recipe.Recipe,
    dataset: Dataset,
    variation: str,
    seed: int,
) -> disk.Json:
    """Train once, from its checkpoint where it was stopped in the middle."""
    folder = store.ModelFolder(options.out / options.network)

    def made(resume: bool) -> Trainer:
        where = machine.pick(options.device)
        return Trainer(Job(options.network, chosen, dataset, where, folder, resume))

    try:
        trainer = made(folder.checkpoint.exists())
    except UserError:  # another run's checkpoint
        trainer = made(False)
    told = {"network": options.network, "variation": variation, "seed": seed}
    try:
        with Bar(trainer.steps, chosen.train.epochs, trainer.state.step) as bar:
            card = trainer.run(bar)
    except Diverged as error:
        folder.checkpoint.unlink(missing_ok=True)  # it would again
        return {**told, "holdout_accuracy": None, "error": str(error), "recipe": chosen.to_dict()}
    return {
        **told,
        "holdout_accuracy": card["holdout_accuracy"],
        "holdout_images": card["data"]["holdout_images"],
        "epochs": card["epochs"],
        "wall_seconds": card["wall_seconds"],
        "device": card["device"],
        "recipe": card["recipe"],
    }


def table(results: list[disk.Json]) -> str:
    """Mean and spread by variation, and the difference to the recipe, as Markdown."""
    by_name: dict[str, list[disk.Json]] = {}
    for result in results:
        by_name.setdefault(result["variation"], []).append(result)
    if lost := [r["error"] for r in by_name[WHOLE] if r["holdout_accuracy"] is None]:
        raise UserError(f"{WHOLE} itself failed: {lost[0]}")
    whole = statistics.fmean(r["holdout_accuracy"] for r in by_name[WHOLE])
    first = by_name[WHOLE][0]
    lines = [
        f"{first['network']}, {first['epochs']} epochs, {first['holdout_images']:,} images held "
        f"out, {len(by_name[WHOLE])} seeds, {first['device']}:",
        "",
        "| variation | held out, % | difference | seconds |",
        "|---|---|---|---|",
    ]
    for name, runs in by_name.items():
        if any(r["holdout_accuracy"] is None for r in runs):
            lines.append(f"| `{name}` | diverged | | |")
            continue
        found = [100 * r["holdout_accuracy"] for r in runs]
        mean = statistics.fmean(found)
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        difference = "" if name == WHOLE else f"{mean - 100 * whole:+.2f}"
        seconds = statistics.fmean(r["wall_seconds"] for r in runs)
        code = name if name == WHOLE else f"`{name}`"
        lines.append(f"| {code} | {mean:.2f}{spread} | {difference} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", type=architectures.canonical)
    parser.add_argument("--set", action="append", default=[], metavar="'SECTION.KEY=VALUE ...'")
    parser.add_argument(
        "--basis", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all of them"
    )
    parser.add_argument(
        "--recipe", help="a file (TOML, or a model's card), or a word such as speed"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--hold-out", type=int, default=5_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", choices=find.SOURCES, default="auto")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/ablate"))
    options = parser.parse_args()
    prepare(machine.pick(options.device))
    with disk.only_writer(options.out / options.network):
        print(table(run(options, find.load(options.data, options.data_dir))))


if __name__ == "__main__":
    try:
        common.run(main)
    except Interrupted as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stop.signal)
