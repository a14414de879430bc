"""`cifar-deploy package`."""

from pathlib import Path
from typing import Annotated

import typer

from cifar_deploy import architectures, cards, store
from cifar_deploy.cli.options import (
    ItsDataDirOption,
    JsonFlag,
    Target,
    print_json,
    say,
    say_doubtful,
)
from cifar_deploy.engines.flavour import AUTO
from cifar_deploy.engines.options import LARGEST_BATCH
from cifar_deploy.errors import UserError, points
from cifar_deploy.exporting import Quantising, write_onnx
from cifar_deploy.kind import Format, Precision, to_export


def package(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|FILE", help="Trained model, or one of its exported files."),
    ],
    target: Annotated[
        Target,
        typer.Option(
            help="Who takes it: cpp (a C++ program), or triton (Triton Inference Server)."
        ),
    ] = Target.cpp,
    format: Annotated[
        Format | None,
        typer.Option(help="Which of the model's files: onnx, or trt (an engine). [default: onnx]"),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Which of the model's files. [default: fp32]")
    ] = None,
    flavour: Annotated[
        str | None,
        typer.Option(
            help="With --format trt, whose engine: tensorrt, tensorrt-rtx, or auto (the one that "
            "is there). [default: auto]"
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            help="triton: copies of the model that run at once, on each GPU or on the CPU. "
            "[default: 1]",
            min=1,
            max=1000,
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="triton: largest batch that the server puts together. [default: the file's "
            "largest, or 512 where it takes any]",
            min=1,
            max=LARGEST_BATCH,
        ),
    ] = None,
    queue_delay: Annotated[
        int | None,
        typer.Option(
            help="triton: microseconds that a request waits for others to join its batch. "
            "[default: 100]",
            min=0,
            max=10_000_000,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder, or a file ending in .tar.gz; default MODEL-package, or "
            "MODEL-triton."
        ),
    ] = None,
    unproved: Annotated[
        bool, typer.Option("--unproved", help="Package a file without a PASS of `validate`, too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the package that is there.")
    ] = False,
    data_dir: ItsDataDirOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what a machine without Python needs to run a proved file: a folder or a .tar.gz.

    A model's ONNX file is exported first where it is missing or older than the weights, int8 as it
    was before: calibrated on as many images, with the same layers in fp32. An engine has to be
    there.
    """
    file = Path(model) if Path(model).suffix in store.EXPORTED else None
    if file and (format or precision or flavour):
        raise UserError(f"--format, --precision and --flavour choose a model's file, not {file}")
    if file and not file.is_file():
        raise UserError(f"{file} does not exist; run: {to_export(file)}")
    folder = store.ModelFolder(file.parent.resolve()) if file else architectures.folder(model)
    if file and not folder.weights.exists():
        raise UserError(f"{file} has no trained model beside it; a model's own files are packaged")
    name = f"{folder.name}-{'package' if target is Target.cpp else target.value}"
    place = out or Path(name)
    from cifar_deploy.package import write

    write.check_target(place, force)
    card = cards.read_card(folder)
    if flavour not in (None, AUTO) and format is not Format.trt:
        raise UserError("--flavour is an engine's; it goes with --format trt")
    from cifar_deploy.package import cpp, source, triton

    servers = {"instances": instances, "max_batch": max_batch, "queue_delay": queue_delay}
    asked = {key: value for key, value in servers.items() if value is not None}
    if asked and target is not Target.triton:
        option = next(iter(asked)).replace("_", "-")
        raise UserError(f"--{option} is the server's; it goes with --target triton")
    if not file:
        kind = (precision or Precision.fp32).value
        if format is Format.trt:
            file = source.engine(folder, kind, flavour or AUTO)
        else:
            file = folder.onnx(kind)
            if source.is_stale(folder, kind):
                write_onnx([folder], [kind], Quantising.again(file, data_dir), told=say)
    found = source.find(folder, file, target.value)
    if not unproved:
        source.require_proof(found)
    if target is Target.triton:
        contents = triton.contents(found, triton.Serving(**asked))
    else:
        from cifar_deploy.data import find
        from cifar_deploy.package import vectors

        dataset = find.of_models(None, data_dir)(folder.name, card)
        contents = cpp.contents(found, vectors.make(found, dataset))
        dataset.expect_classes(folder.name, found.classes)
    write.write(contents, place, name)
    say_doubtful(folder.name, card)
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
            f"{points(found.proof['upper_bound_of_loss_points'] / 100, 3)} points (95 %), "
            f"{found.proof['margin_points']:g} allowed"
        )
    say(
        f"{place}  {sum(map(len, contents.values())) / 1e6:.1f} MB, {len(contents)} files, {proved}"
    )
