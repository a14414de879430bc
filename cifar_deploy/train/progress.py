"""What a person sees of a training run: a bar on a terminal, a line a minute in a log."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_deploy.disk import Json
from cifar_deploy.terminal import watched

# Off a terminal: to the first line of a run, and from one line to the next.
FIRST_SECONDS, NEXT_SECONDS = 20.0, 60.0


class Bar:
    """A `loop.Watch` that draws on standard error. A context manager.

    Where that is no terminal, it writes a line an epoch, and about once a minute in a longer one.
    `clock` gives seconds.
    """

    def __init__(
        self,
        steps: int,
        epochs: int,
        done: int = 0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.epochs, self.clock = steps, epochs, clock
        self.begun: tuple[float, int] | None = None  # when this process's steps began, and where
        self.due = 0.0  # when the next line is
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not watched(self.console),
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
        now = self.clock()
        if self.begun is None:  # a first step is slow, and what came before it was none
            self.begun, self.due = (now, done), now + FIRST_SECONDS
        if now >= self.due and not watched(self.console):
            at = f"step {done:,}/{self.steps:,}, {name}"
            self._say(f"{at}  {figures}{self._left(done, ' at this rate')}")

    def epoch(self, record: Json) -> None:
        """Print the epoch's line."""
        line = (
            f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss']:.3f}  "
            f"accuracy {100 * record['train_accuracy']:.2f} %"
        )
        if "holdout_accuracy" in record:
            line += f"  held out {100 * record['holdout_accuracy']:.2f} %"
        line += f"  {record['seconds']:.0f} s"
        if watched(self.console):
            self.console.print(line, highlight=False)
        else:
            self._say(line + self._left(record["epoch"] * self.steps // self.epochs))

    def _say(self, line: str) -> None:
        # Nobody knows how wide a log is: it is not folded.
        self.console.print(line, highlight=False, soft_wrap=True)
        self.due = self.clock() + NEXT_SECONDS

    def _left(self, done: int, note: str = "") -> str:
        """How long the steps after `done` will take; nothing where that is not known yet."""
        then, before = self.begun or (self.clock(), done)
        seconds = self.clock() - then
        if seconds < FIRST_SECONDS or not before < done < self.steps:
            return ""
        minutes = max(1, round(seconds / (done - before) * (self.steps - done) / 60))
        hours, minutes = divmod(minutes, 60)
        return f"  about {f'{hours} h ' if hours else ''}{minutes} min left{note}"
