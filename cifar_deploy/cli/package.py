"""`cifar-deploy package`."""

from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, store
from cifar_deploy.cli.export import Quantising, write_onnx
from cifar_deploy.cli.options import (
    DataDirOption,
    Format,
    JsonFlag,
    Precision,
    Target,
    print_json,
    say,
)
from cifar_deploy.errors import UserError


def package(
    model: Annotated[str, typer.Argument(help="A trained model.")],
    target: Annotated[
        Target, typer.Option(help="cpp: for a C++ program; triton: for Triton Inference Server.")
    ] = Target.cpp,
    format: Annotated[Format, typer.Option(help="ONNX, or an engine.")] = Format.onnx,
    precision: Annotated[Precision, typer.Option(help="Of the exported file.")] = Precision.fp32,
    flavour: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt-rtx.")] = "auto",
    instances: Annotated[
        int | None,
        typer.Option(help="Triton: so many on each GPU, or on the CPU. [default: 1]", min=1),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Triton: images put together at most. [default: the file's]", min=1),
    ] = None,
    queue_delay: Annotated[
        int | None,
        typer.Option(help="Triton: microseconds to wait for others. [default: 100]", min=0),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, or a file ending in .tar.gz; else MODEL-package, MODEL-triton."),
    ] = None,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Also a file that validate gave no PASS.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a package that is there.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what a machine without Python needs to run a proved file: a folder or a .tar.gz.

    An ONNX file is exported first where it is missing or older than the weights, int8 as it was
    before: calibrated on as many images, with the same layers in fp32. An engine has to be there.
    """
    folder = architectures.folder(model)
    name = f"{folder.name}-{'package' if target is Target.cpp else target.value}"
    place = out or Path(name)
    from cifar_deploy.package import write

    write.check_target(place, force)
    card = store.read_card(folder)
    if flavour != "auto" and format is Format.onnx:
        raise UserError("--flavour is an engine's; it goes with --format trt")
    from cifar_deploy.package import cpp, source, triton

    servers = {"instances": instances, "max_batch": max_batch, "queue_delay": queue_delay}
    asked = {key: value for key, value in servers.items() if value is not None}
    if asked and target is not Target.triton:
        option = next(iter(asked)).replace("_", "-")
        raise UserError(f"--{option} is the server's; it goes with --target triton")
    if format is Format.onnx and source.is_stale(folder, precision.value):
        as_before = Quantising.again(folder.onnx(precision.value), data_dir)
        write_onnx([folder], [precision.value], as_before)
    found = source.find(folder, format.value, precision.value, flavour, target.value)
    if not unproved:
        source.require_proof(found)
    if target is Target.triton:
        contents = triton.contents(found, triton.Serving(**asked))
    else:
        from cifar_deploy.data import find
        from cifar_deploy.package import vectors

        dataset = find.load(*find.trained_on(card, None, data_dir))
        contents = cpp.contents(found, vectors.make(found, dataset))
    write.write(contents, place, name)
    if as_json:
        print_json(
            {
                "package": str(place),
                "target": target.value,
                "file": str(found.path),
                "sha256": found.sha256,
                "proved": found.proved,
                "contents": sorted(contents),
            }
        )
        return
    proved = "NOT PROVED"
    if found.proved and found.proof:
        proved = (
            f"proved by {found.proof['runtime']} to lose at most "
            f"{found.proof['upper_bound_of_loss_points']:.2g} points (95 %), "
            f"{found.proof['margin_points']:g} allowed"
        )
    say(
        f"{place}  {sum(map(len, contents.values())) / 1e6:.1f} MB, {len(contents)} files, {proved}"
    )
