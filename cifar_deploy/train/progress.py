"""What a person sees of a training run: a bar on a terminal, a line an epoch anywhere else."""

import contextlib
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_deploy.store import Json


class Lasting:
    """A stream that nobody need be reading: a terminal that was closed ends no training."""

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


class Bar:
    """A `loop.Watch` that draws on standard error. A context manager."""

    def __init__(self, steps: int, epochs: int, done: int = 0, quiet: bool = False) -> None:
        self.epochs = epochs
        file: Any = Lasting(sys.stderr)
        self.console = Console(file=file, quiet=quiet)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=steps, completed=done, figures="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, done: int, epoch: int, loss: float, accuracy: float, rate: float) -> None:
        """Move the bar; `rate` in images a second."""
        figures = f"loss {loss:.3f}  accuracy {100 * accuracy:.1f} %  {rate:,.0f} images/s"
        name = f"epoch {epoch + 1}/{self.epochs}"
        self.progress.update(self.task, completed=done, description=name, figures=figures)

    def epoch(self, record: Json) -> None:
        """Print the epoch's line."""
        line = (
            f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss']:.3f}  "
            f"accuracy {100 * record['train_accuracy']:.2f} %"
        )
        if "holdout_accuracy" in record:
            line += f"  held out {100 * record['holdout_accuracy']:.2f} %"
        self.console.print(f"{line}  {record['seconds']:.0f} s", highlight=False)
