"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn, TextIO, cast

import typer

from cifar_deploy import __version__
from cifar_deploy.cli import (
    benchmark,
    data,
    demo,
    doctor,
    export,
    find_lr,
    import_weights,
    layers,
    models,
    package,
    pages,
    predict,
    profile,
    recipe,
    signals,
    train,
    validate,
)
from cifar_deploy.cli.options import Lasting
from cifar_deploy.device import launched, threads_allowed
from cifar_deploy.disk import now
from cifar_deploy.errors import OwnError, UserError, plain

FIRST_SPEAKS = 3.0  # seconds
LONGEST = 4_000  # characters of an error: a name in it may be a page
app = typer.Typer(
    name="cifar-deploy",
    cls=pages.Group,
    help="Train image classifiers, export them, and prove that the exported file is as good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order in which they are needed; each with what the list of commands says of it.
COMMANDS: dict[str, dict[str, tuple[Callable[..., None], str]]] = {
    "Train": {
        "train": (train.train, "Train a network on CIFAR-10 or on your own images."),
        "recipe": (recipe.recipe, "Print a network's recipe and explain every key of it."),
        "find-lr": (find_lr.find_lr, "Suggest a peak learning rate, by a range test."),
        "import": (import_weights.import_weights, "Bring in weights that another program trained."),
    },
    "Deploy and prove": {
        "export": (export.export, "Export trained models to ONNX or TensorRT files."),
        "validate": (validate.validate, "Prove that exported files are as accurate as the model."),
        "package": (package.package, "Write what C++ or Triton needs to run a proved file."),
    },
    "Measure": {
        "benchmark": (benchmark.benchmark, "Time PyTorch and exported files side by side."),
        "profile": (profile.profile, "Show the time that each layer of an ONNX file takes."),
        "layers": (layers.layers, "Show which layers of an ONNX file lose accuracy."),
    },
    "Use": {
        "predict": (predict.predict, "Classify pictures with a model or an exported file."),
    },
    "Look": {
        "models": (models.models, "List networks, trained models and exported files."),
        "data": (data.data, "Show which data set is found; preview or split it."),
        "doctor": (doctor.doctor, "Try which formats and runtimes work on this machine."),
        "demo": (demo.demo, "Train, export and prove the smallest network."),
    },
}
for panel, commands in COMMANDS.items():
    for name, (command, short) in commands.items():
        app.command(name, cls=pages.Command, short_help=short, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line and leave with its exit status."""
    try:
        _run()
    except SystemExit as end:
        if not launched():
            raise
        leave(int(end.code or 0))


def leave(status: int) -> NoReturn:
    """End one of torchrun's processes before Python shuts down.

    Gloo's threads outlive their group once DDP has used it, and one that lets go of a tensor while
    Python shuts down aborts a run that was done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run() -> None:
    """A user's error is one or two lines on standard error and status 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    # Large pages for large tensors: training on a CPU spends less time on page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if allowed := threads_allowed():
        threads = min(allowed, len(os.sched_getaffinity(0)))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # A file's name need not be UTF-8; in JSON what comes out is an escape that it knows.
    lax = ("strict", "surrogateescape")  # the latter in C.UTF-8
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in lax:
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = cast("TextIO", Lasting(sys.stderr))
    with signals.as_ctrl_c() as ended:
        try:
            status = app(standalone_mode=False) or 0
            sys.exit(status and (ended() or status))
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(ended() or 130)
        except Exception as error:
            if ended():  # what a library made of the signal
                sys.exit(ended())
            said = _refusal(error)
            if said is None:
                raise
            if debug:
                traceback.print_exception(error)
            elif said:
                print(plain(_in_turn(said, error))[:LONGEST], file=sys.stderr)
            sys.exit(2)


def _refusal(error: Exception) -> str | None:
    """What is told of an error that a user can cause; None where it is a crash, which is ours."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, OSError):  # of a path that was named, or of standard output
        if isinstance(error, BrokenPipeError):
            return None
        return f"error: {error.filename or 'standard output'}: {error.strerror or error}"
    if refused := _of_the_gpu(error):
        return f"error: {refused}"
    # The parser's errors have no public base class; without a command it shows the help.
    wrong = getattr(error, "format_message", None)
    if wrong is None:
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(wrong())
    said = " ".join(str(wrong()).replace("Value error, ", "").split()).rstrip(".")
    return f"error: {said}; see --help"


def _in_turn(said: str, error: Exception) -> str:
    """The same, when it is this process's turn to say it: torchrun may have started several."""
    if not launched() or os.environ["RANK"] == "0":
        return said
    if not isinstance(error, OwnError) and os.environ["LOCAL_RANK"] != "0":
        # The first process of the machine may have the same error and tells it, and torchrun ends
        # this one meanwhile. Who alone has it speaks for itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as it has SIGTERM
        time.sleep(FIRST_SPEAKS)
    return f"process {os.environ['RANK']}: {said}"


def _of_the_gpu(error: Exception) -> str:
    """A line for a GPU that is full or fails, where no command has said more; else nothing."""
    if "torch" not in sys.modules:
        return ""
    from cifar_deploy.runtimes.cuda import refusal

    return refusal(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # --debug is taken by `_run`
    now()  # what is wrong with $SOURCE_DATE_EPOCH is told before any work
    several = launched() and os.environ["WORLD_SIZE"] != "1"
    if several and context.invoked_subcommand != "train":
        raise UserError(
            f"`{context.invoked_subcommand}` is one process's: run it without torchrun, which is "
            "for `train`"
        )
