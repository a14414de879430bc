"""What the commands share: options of the same name and meaning, and how they speak."""

import contextlib
import copy
import csv
import dataclasses
import functools
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from cifar_deploy import disk, store
from cifar_deploy.errors import UserError, plain
from cifar_deploy.kind import Format, Precision
from cifar_deploy.terminal import watched

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cifar_deploy.data.dataset import Dataset

# Characters of a text's column that are left in a narrow terminal: a version or a sha256 is whole.
LEAST_TEXT = 16


class Source(StrEnum):
    """Where images come from."""

    auto = "auto"
    synthetic = "synthetic"


class OnnxBy(StrEnum):
    """What runs ONNX files."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Target(StrEnum):
    """Who takes the package."""

    cpp = "cpp"
    triton = "triton"


def command(without: Collection[str] = ()) -> str:
    """The command that runs, as it is typed, but for the options `without`."""
    return shlex.join(["cifar-deploy", *(word for word in sys.argv[1:] if word not in without)])


def is_stdout(file: Path | None) -> bool:
    """Whether `file`, of an option that takes one, is standard output."""
    return str(file) == "-"


def _place(option: str, suffix: str) -> Callable[[Path | None], Path | None]:
    """The callback of an `option` for a file of this `suffix`: its place is looked at before work.

    It raises UserError where the disk refuses it, and for a name without the suffix: other commands
    have such an option alone, and what follows it is then a model or a file that is to be read.
    """

    def place(file: Path | None) -> Path | None:
        if file is None or is_stdout(file):
            return file
        model = Path(file, store.CARD).is_file()
        if not model:
            disk.check_place(file)
        stream = "/dev" in map(str, file.parents) or (file.exists() and not file.is_file())
        if model or (file.suffix.lower() != suffix and not stream):
            raise UserError(
                f"{option} {file}: it takes a file's name that ends in {suffix}, or - to print the "
                f"{suffix[1:].upper()}; write {option} FILE{suffix}, or {option} - {file}"
            )
        return file

    return place


JsonFileOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE.json|-",
        help="Also write the results to this file as JSON; - prints only the JSON.",
        callback=_place("--json", ".json"),
    ),
]


def csv_option(option: str, help: str) -> Any:
    """An option for a file of CSV, or - for standard output. `help` says what is written."""
    return typer.Option(
        option,
        metavar="FILE.csv|-",
        help=f"Also write {help} to this file as CSV; - prints only the CSV.",
        callback=_place(option, ".csv"),
    )


def several(kind: type[StrEnum], help: str) -> Any:
    """An option of which several values can be given: with commas between, or by repeating it.

    A command gets them as members of `kind`, each once and in the order given, or None. What is
    none of them is refused by the parser, as it refuses the value of an option that takes one.
    """
    words = [member.value for member in kind]

    def members(texts: list[str] | None) -> list[StrEnum] | None:
        parts = [part.strip() for text in texts or () for part in text.split(",")]
        for part in parts:
            if part not in words:
                choices = ", ".join(map(repr, words))
                raise typer.BadParameter(f"{part!r} is not one of {choices}.")
        return list(dict.fromkeys(map(kind, parts))) or None

    return typer.Option(metavar=f"[{'|'.join(words)}],...", help=help, parser=str, callback=members)


DeviceOption = Annotated[
    str, typer.Option(help="Where to run: auto (a GPU if there is one), cpu, cuda or cuda:N.")
]
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK", help="Architecture, as resnet18; `cifar-deploy models` lists them."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPU threads. [default: $OMP_NUM_THREADS, or one a core]", min=1, max=1024),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the data set; default $CIFAR_DEPLOY_DATA, else data/."),
]
# Of a model that is there.
ITS_DATA = "your own images that the model was trained on, else $CIFAR_DEPLOY_DATA, else data/"
ItsDataDirOption = Annotated[
    Path | None, typer.Option(help=f"Folder of the data set; default: {ITS_DATA}.")
]
SourceOption = Annotated[
    Source,
    typer.Option(
        "--data", help="Data set: auto (what is in --data-dir), or synthetic (generated)."
    ),
]
ItsSourceOption = Annotated[
    Source | None,
    typer.Option(
        "--data",
        help="Data set: auto (what is in --data-dir), or synthetic (generated); default: what the "
        "model was trained on.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TrustFlag = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Load an engine without a matching manifest, too: it is code that will run here.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Trained models, by name or folder; default: all."),
]
BatchOption = Annotated[
    int | None,
    typer.Option(help="Images per step, of all processes together; default: the recipe's."),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Recipe to use instead of the network's own: a word such as speed, a TOML file, or a "
        "model's card.json."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a key of the recipe; may be repeated. `cifar-deploy recipe NETWORK` explains "
        "the keys.",
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        help="Begin with trained weights: imagenet, a model's folder, or a file; with @SHA256 "
        "behind it, only with that very file."
    ),
]
TeacherOption = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        metavar="MODEL",
        help="Also learn from the answers of this trained model; may be repeated; with @SHA256 "
        "behind it, only from those very weights.",
    ),
]
WeightsFileOption = Annotated[
    Path | None,
    typer.Option(help="File of torchvision's weights for --init imagenet; default: download it."),
]

FormatOption = Annotated[
    list[Format] | None,
    several(Format, "Take only the models' files of this format, or of both: onnx,trt."),
]
PrecisionOption = Annotated[
    list[Precision] | None,
    several(
        Precision, "Take only the models' files of these precisions, one or several: fp32,fp16."
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean of the pixels (0..1) in training, R,G,B; default: the model's, where there is "
        "one, or the data set's.",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B", help="Standard deviation of the pixels (0..1) in training; as --mean."
    ),
]


def per_channel(text: str | None, option: str, positive: bool = False) -> list[float] | None:
    """Three numbers with commas between them, or one for all channels. Raises UserError."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(math.isfinite(v) and (v > 0 or not positive) for v in values):
        kind = "positive numbers" if positive else "numbers"
        raise UserError(f"{option} {text}: three {kind} as 0.49,0.48,0.45, or one for all channels")
    # A mean over 1 is one of pixels in 0..255; 1/255 as std is for networks that take those.
    low, high = (1e-3, 10.0) if positive else (-1.0, 1.0)
    if not all(low <= v <= high for v in values):
        raise UserError(
            f"{option} {text}: they are of pixels in 0..1, from {low:g} to {high:g}; those of "
            "pixels in 0..255 are divided by 255"
        )
    return values


def by_teachers(models: list[str] | None) -> list[str]:
    """What `--teacher` overrides in the recipe."""
    return [f"distill.teachers={json.dumps(models, ensure_ascii=False)}"] if models else []


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """`rows` as lines of CSV; what holds a comma, a quote or the end of a line is quoted."""
    lines = []
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow(row)  # whose own ends of lines have \r quoted wherever it stands
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def print_card(card: disk.Json, folder: store.ModelFolder) -> None:
    """Print the card of `folder` as JSON, with the path of the weights, where it has their name."""
    print_json({**card, "weights": {**card["weights"], "path": str(folder.weights)}})


def wide(width: int, table: "Table") -> "Console":
    """Where `table` is printed: the terminal, or `width` columns where there is none.

    In one that is narrower than its columns need, whole lines are wrapped by the terminal: half a
    number would read as another.
    """
    from rich.console import Console

    console = Console()
    console.width = max(console.width if watched(console) else width, _least_width(table))
    return console


def _least_width(table: "Table") -> int:
    """The columns of a terminal that `table` needs: texts are folded, what is `no_wrap` is not."""
    from rich.console import Console

    folded = copy.copy(table)
    folded.columns = [
        column if column.no_wrap else dataclasses.replace(column, max_width=LEAST_TEXT)
        for column in table.columns
    ]
    return Console(width=10_000).measure(folded).maximum


def show(
    table: Any,
    notes: list[str],
    value: Any,
    json_file: Path | None,
    width: int,
    instead: str | None = None,
) -> None:
    """Print a table with its notes, and write the JSON; or, for "-", print the JSON alone.

    A text that is to be printed `instead` of the table has standard output for itself. Neither a
    disk nor a standard output that refuses takes the other from what was measured.
    """
    if is_stdout(json_file):
        print_json(value)
        return
    try:
        if instead is not None:
            typer.echo(instead, nl=False)
            return
        console = wide(width, table)
        console.print(table)
        for line in notes:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    finally:
        if json_file:
            disk.write_json(json_file, value)


class Lasting:
    """A stream that nobody need be reading: a terminal that was closed ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or lose it."""
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """Yield what is told of the work: a line that changes on a terminal, lines anywhere else.

    There, what is done in turns is told at its first one only.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not watched(console):
        yield functools.cache(say)
        return
    with console.status(what) as status:
        yield status.update


def say_doubts(dataset: "Dataset", val: bool = False) -> None:
    """Tell what makes an accuracy on these images say less than it seems."""
    from cifar_deploy.data.doubts import doubts

    for line in doubts(dataset, val):
        say(line)


def say_doubtful(model: str, card: disk.Json) -> None:
    """Tell of what the accuracy in a card hides."""
    from cifar_deploy.data.doubts import doubtful

    if (classes := card.get("classes")) and (said := doubtful(classes)):
        say(f"{model}: {said}")


def say(text: str) -> None:
    """Tell `text` on standard error, whatever names are in it."""
    typer.echo(plain(text), err=True)
