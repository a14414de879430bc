"""`cifar-deploy models`."""

from typing import Annotated

import typer

from cifar_deploy import architectures, store
from cifar_deploy.cli.options import JsonFlag, in_epochs, print_json, wide
from cifar_deploy.errors import UserError


def models(
    name: Annotated[
        str | None, typer.Argument(help="Print the layers of this network, or of this model's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What networks there are, what is trained and what is exported; or one network's layers."""
    if name:
        from cifar_deploy.architectures.summary import layers, text

        network = architectures.network_of(name)
        if as_json:
            print_json(layers(network))
        else:
            typer.echo(text(network))
        return
    from cifar_deploy.architectures.summary import overview

    entries = overview()
    if as_json:
        print_json(entries)
    else:
        _show(entries)
    damaged = [entry["damaged"] for entry in entries if entry["damaged"]]
    if damaged:  # after the others
        raise UserError("\n".join(damaged))


def _show(entries: list[store.Json]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("network", "alias", "parameters", "trained: test top-1", "time", "exported"):
        right = heading == "parameters"
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for entry in entries:
        cells = (
            _name(entry),
            ", ".join(entry["aliases"]),
            f"{entry['parameters']:,}" if entry["parameters"] else "-",
            _top1(entry),
            f"{entry['wall_seconds']:,.0f} s" if entry["wall_seconds"] is not None else "-",
            ", ".join(f + " (stale)" * (f in entry["stale"]) for f in entry["exported"]) or "-",
        )
        table.add_row(*map(Text, cells))  # a file's name may hold what rich takes for markup
    wide(120).print(table)
    for entry in entries:
        if entry["command"]:
            gone = "" if entry["weights"] else "; its weights are not here"
            known = entry["data"] in (None, "CIFAR-10")
            of = "" if known else f"; its accuracy is of {entry['data']}'s images"
            typer.echo(f"{entry['model']}: {entry['command']}, on {entry['device']}{of}{gone}")


def _name(entry: store.Json) -> str:
    model, network = entry["model"], entry["network"]
    return str(model) if network in (model, None) else f"{model} ({network})"


def _top1(entry: store.Json) -> str:
    """Accuracy, spread and length of training, as a cell."""
    if entry["damaged"]:
        return "damaged card"
    accuracy = entry["test_accuracy"]
    if accuracy is None:
        return "-"
    if entry["epochs"] is None:
        return f"{100 * accuracy:.2f} % (imported)"
    length = in_epochs(entry["epochs"])
    if entry["seeds"] == 1:
        return f"{100 * accuracy:.2f} % ({length}, 1 seed)"
    mean, spread = (100 * entry[f"test_accuracy_{key}"] for key in ("mean", "std"))
    return f"{mean:.2f} ± {spread:.2f} % ({length}, {entry['seeds']} seeds)"
