"""`cifar-deploy import`."""

from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, disk, store
from cifar_deploy.cli.options import (
    DataDirOption,
    DeviceOption,
    JsonFlag,
    MeanOption,
    NetworkArgument,
    Source,
    SourceOption,
    StdOption,
    command,
    per_channel,
    print_card,
    say,
    say_doubtful,
)
from cifar_deploy.errors import UserError


def import_weights(
    network: NetworkArgument,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="State dict to bring in: .safetensors, or torch's .pth."
        ),
    ],
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = None,
    data: SourceOption = Source.auto,
    out: Annotated[Path | None, typer.Option(help="Output folder; default models/NETWORK.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring in weights that another program trained, and measure their test accuracy.

    export, validate, benchmark and package then take them as if they had been trained here.
    """
    name = architectures.canonical(network)
    folder = store.ModelFolder(out or store.models_root() / name)
    given = (per_channel(mean, "--mean"), per_channel(std, "--std", positive=True))
    from cifar_deploy.data import find
    from cifar_deploy.device import pick
    from cifar_deploy.train.foreign import bring, listed

    with disk.only_writer(folder.path):
        for there in (folder.weights, folder.checkpoint, folder.card):
            if there.exists():
                raise UserError(
                    f"{there} is there already; write elsewhere with --out, or remove it"
                )
        where, dataset = pick(device), find.load(data.value, data_dir)
        card = bring(name, file, dataset, where, folder, *given, command({"--json"}))
    right, facts = card["test_accuracy"], card["data"]
    chance = 1 / len(dataset.classes)
    if right < chance + 0.1 * (1 - chance):
        say(
            "that is hardly more than chance: were the pixels normalised otherwise (--mean, "
            "--std), are the classes in another order, is a part of the network another one?"
        )
    say_doubtful(name, card)
    if as_json:
        print_card(card, folder)
        return
    typer.echo(
        f"{name}: {100 * right:.2f} % of {len(dataset.test):,} test images, pixels normalised with "
        f"mean {listed(facts['mean'])} and std {listed(facts['std'])}"
    )
    typer.echo(f"{folder.weights}  {folder.card}")
