"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

import io
import os
import sys
from typing import Annotated

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
    models,
    package,
    predict,
    train,
    validate,
)
from cifar_deploy.errors import OwnError, UserError

app = typer.Typer(
    name="cifar-deploy",
    help="Train image classifiers, export them, and prove that the exported file is as good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order in which they are needed.
app.command()(train.train)
app.command("find-lr")(find_lr.find_lr)
app.command("import")(import_weights.import_weights)
app.command()(export.export)
app.command()(validate.validate)
app.command()(benchmark.benchmark)
app.command()(package.package)
app.command()(predict.predict)
app.command()(models.models)
app.command()(data.data)
app.command()(doctor.doctor)
app.command()(demo.demo)


def main() -> None:
    """Run the command line and leave with its exit status."""
    try:
        _run()
    except SystemExit as end:
        if "LOCAL_RANK" not in os.environ:
            raise
        # One of torchrun's processes. Gloo's threads outlive their group once DDP has used it, and
        # one that lets go of a tensor while Python shuts down aborts a run that was done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def _run() -> None:
    """A user's error is one or two lines on standard error and status 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    # Large pages for large tensors: training on a CPU spends less time on page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # A file's name need not be UTF-8; in JSON what comes out is an escape that it knows.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except UserError as error:
        if debug:
            raise
        # Among torchrun's processes one speaks for all, and who alone has an error for itself.
        local = os.environ.get("LOCAL_RANK", "0")
        if local == "0" or isinstance(error, OwnError):
            who = "" if local == "0" else f"process {os.environ.get('RANK', local)}: "
            print(f"{who}error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # of a path that was named, or of standard output
        if debug or isinstance(error, BrokenPipeError):
            raise
        name = error.filename or "standard output"
        print(f"error: {name}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not debug and (refused := _of_the_gpu(error)):
            print(f"error: {refused}", file=sys.stderr)
            sys.exit(2)
        # The parser's errors have no public base class; without a command it shows the help.
        wrong = getattr(error, "format_message", None)
        if wrong is None or debug:
            raise
        said = " ".join(str(wrong()).replace("Value error, ", "").split()).rstrip(".")
        helpful = type(error).__name__ == "NoArgsIsHelpError"
        print(wrong() if helpful else f"error: {said}; see --help", file=sys.stderr)
        sys.exit(2)


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
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    pass  # --debug is taken by `main`
